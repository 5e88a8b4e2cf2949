"""The files under docker/ say what the documentation promises; no engine is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parent.parent / "docker"


def compose_is_here() -> bool:
    """Whether `docker compose` can be run; it reads files without an engine."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


def test_milvus_comes_with_its_etcd_and_minio(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"etcd", "minio", "milvus", "mgm"}
    assert compose["services"]["milvus"]["environment"]["ETCD_ENDPOINTS"] == "etcd:2379"
    assert compose["services"]["milvus"]["environment"]["MINIO_ADDRESS"] == "minio:9000"
    assert compose["services"]["mgm"]["profiles"] == ["mgm"], "mgm is not started by a plain `up`"


def test_servers_are_watched_restarted_and_waited_for(compose: dict[str, Any]) -> None:
    for name in ("etcd", "minio", "milvus"):
        service = compose["services"][name]
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name
    healthy = {"condition": "service_healthy"}
    assert compose["services"]["milvus"]["depends_on"] == {"etcd": healthy, "minio": healthy}
    assert compose["services"]["mgm"]["depends_on"] == {"milvus": healthy}


def test_only_milvus_is_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert ports == {"milvus": ["127.0.0.1:19530:19530", "127.0.0.1:9091:9091"]}


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"]), name
    assert compose["services"]["milvus"]["image"].startswith("milvusdb/milvus:v2.6.")


def test_data_lies_in_named_volumes(compose: dict[str, Any]) -> None:
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith("$")
    }
    assert used == set(compose["volumes"]) == {"etcd", "minio", "milvus", "cache"}


if compose_is_here():

    @pytest.mark.parametrize("profile", [[], ["--profile", "mgm"]], ids=["servers", "mgm"])
    def test_compose_accepts_the_file(profile: list[str]) -> None:
        command = ["docker", "compose", "--file", str(DOCKER / "compose.yaml"), *profile, "config", "--quiet"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_the_cluster_has_query_nodes_and_memory_mapping(compose: dict[str, Any]) -> None:
    values = yaml.safe_load((DOCKER / "cluster-values.yaml").read_text())
    assert values["cluster"]["enabled"] is True
    assert values["queryNode"]["replicas"] >= 2
    assert compose["services"]["milvus"]["image"] == f"milvusdb/milvus:{values['image']['all']['tag']}"
    user = yaml.safe_load(values["extraConfigFiles"]["user.yaml"])
    assert user["proxy"]["maxVectorFieldNum"] == 10
    assert set(user["queryNode"]["mmap"].values()) == {True}
    assert set(user["queryNode"]["mmap"]) == {"vectorField", "vectorIndex", "scalarField", "scalarIndex"}


def test_the_image_runs_mgm_as_nobody_special(compose: dict[str, Any]) -> None:
    lines = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    stages = [line for line in lines if line.startswith("FROM ")]
    assert stages == ["FROM python:3.12-slim AS build", "FROM python:3.12-slim"]
    final = lines[lines.index(stages[-1]) :]
    assert 'ENTRYPOINT ["mgm"]' in final
    assert [line for line in final if line.startswith("USER ")] == ["USER 1000:1000"]
    assert final.index("USER 1000:1000") < final.index('ENTRYPOINT ["mgm"]')
    assert not any(line.startswith(("RUN ", "COPY ", "ADD ")) for line in final[final.index("USER 1000:1000") :])
    assert 'ARG TORCH_INDEX=""' in lines
    assert compose["services"]["mgm"]["build"]["args"] == {"TORCH_INDEX": "${TORCH_INDEX:-}"}


def test_the_container_can_write_and_do_little(compose: dict[str, Any]) -> None:
    mgm = compose["services"]["mgm"]
    assert mgm["read_only"] is True
    assert mgm["cap_drop"] == ["ALL"]
    assert mgm["tmpfs"] == ["/tmp"]
    assert not {"privileged", "cap_add", "user", "network_mode", "pid", "devices"} & set(mgm)
    assert next(volume for volume in mgm["volumes"] if "/images" in volume).endswith(":ro")
    for name, service in compose["services"].items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name
        assert not any("docker.sock" in volume for volume in service.get("volumes", [])), name


def test_what_mgm_writes_to_is_a_volume_of_its_own_user(compose: dict[str, Any]) -> None:
    """The rest of the file system can be read-only."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    volumes = set(re.findall(r'"(/[^"]+)"', re.search(r"^VOLUME (.*)$", text, re.M)[1]))
    owned = set(re.search(r"chown mgm:mgm ([^&\n]+)", text)[1].split())
    assert owned == {"/data", "/home/mgm/.cache"} == volumes - {"/images"}
    assert "WORKDIR /data" in text


def test_no_secret_is_in_a_layer() -> None:
    """Tokens come when it is run: what a build is given stays in the image."""
    text = (DOCKER / "Dockerfile").read_text()
    assert not re.search(r"token|secret|password|MGM_", text, re.I)
    assert not re.search(r"^ADD |curl|wget|--trusted-host|COPY \. ", text, re.M)
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*", "what is not named does not reach the builder: mgm.yaml, data files, .git"


def test_the_image_has_the_versions_that_were_tested() -> None:
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    constraint = lines.index("ENV PIP_CONSTRAINT=/src/.ci/constraints.txt")
    copied = lines.index("COPY .ci/constraints.txt /src/.ci/constraints.txt")
    installs = [place for place, line in enumerate(lines) if line.startswith("RUN pip install")]
    assert copied < constraint < min(installs)


def test_what_the_image_copies_is_let_through(compose: dict[str, Any]) -> None:
    root = DOCKER.parent
    let_through = {
        line.removeprefix("!")
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = [line.split()[1:-1] for line in (DOCKER / "Dockerfile").read_text().splitlines() if line[:5] == "COPY "]
    copied = {source for sources in copies if not sources[0].startswith("--from") for source in sources}
    assert copied == let_through
    assert [source for source in copied if not (root / source).exists()] == []
