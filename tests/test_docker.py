"""The files under docker/ say what the documentation promises; no engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from mg_milvus.cli.app import app

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


def test_milvus_and_its_bucket_are_published_to_this_machine_only(compose: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert ports == {
        "milvus": ["127.0.0.1:19530:19530", "127.0.0.1:9091:9091"],
        "minio": ["127.0.0.1:9000:9000"],  # mgm load --bucket writes there
    }
    milvus, minio = (compose["services"][name]["environment"] for name in ("milvus", "minio"))
    assert milvus["MINIO_ACCESS_KEY_ID"] == minio["MINIO_ROOT_USER"]
    assert milvus["MINIO_SECRET_ACCESS_KEY"] == minio["MINIO_ROOT_PASSWORD"]


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    images = {name: plain(service["image"]) for name, service in compose["services"].items()}
    for name, image in images.items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", image), name
    # Woodpecker lost segments before 2.6.18, and needs a MinIO with conditional writes (Milvus' documentation).
    assert release(images["milvus"]) >= (2, 6, 22)
    values = yaml.safe_load((DOCKER / "cluster-values.yaml").read_text())
    assert values["image"]["all"]["tag"] == images["milvus"].partition(":")[2]
    for tag in (images["minio"].partition(":")[2], values["minio"]["image"]["tag"]):
        assert tag >= "RELEASE.2024-12-18T13-15-44Z"


def plain(text: str) -> str:
    """Text of compose.yaml, with the default of each variable."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def release(image: str) -> tuple[int, ...]:
    return tuple(map(int, image.partition(":v")[2].split(".")))


def test_data_lies_in_named_volumes(compose: dict[str, Any]) -> None:
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith("$")
    }
    assert used == set(compose["volumes"]) == {"etcd", "minio", "milvus", "cache"}


@pytest.mark.parametrize(
    ("schema", "file"),
    [("compose-spec", "docker/compose.yaml"), ("github-workflows", ".github/workflows/test.yml")],
)
def test_the_published_schema_accepts_the_file(schema: str, file: str) -> None:
    command = ["-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(DOCKER.parent / file)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


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


PROBES = {"replicas": int, "resources": dict, "nodeSelector": dict, "affinity": dict, "tolerations": list,
          "extraEnv": list, "profiling": dict, "strategy": dict}  # fmt: skip
CHART: dict[str, Any] = {
    "cluster": {"enabled": bool},
    "image": {"all": {"repository": str, "tag": str, "pullPolicy": str}, "tools": dict},
    "streaming": {"enabled": bool, "woodpecker": dict},
    "woodpecker": {"enabled": bool, "replicaCount": int, "image": dict, "persistence": dict, "resources": dict},
    "pulsarv3": {"enabled": bool},
    "indexNode": {"enabled": bool} | PROBES,
    "proxy": {"enabled": bool, "http": dict, "tls": dict, "annotations": dict, "hpa": dict} | PROBES,
    "mixCoordinator": {"enabled": bool, "activeStandby": dict, "annotations": dict, "service": dict} | PROBES,
    "streamingNode": PROBES,
    "dataNode": {"enabled": bool, "annotations": dict, "hpa": dict} | PROBES,
    "queryNode": {"enabled": bool, "disk": {"enabled": bool, "size": dict}, "annotations": dict, "hpa": dict} | PROBES,
    "etcd": {"enabled": bool, "replicaCount": int, "image": dict, "persistence": {"enabled": bool, "size": str}},
    "minio": {
        "enabled": bool, "mode": str, "image": {"tag": str, "pullPolicy": str}, "bucketName": str, "rootPath": str,
        "persistence": {"enabled": bool, "size": str},
    },
    "extraConfigFiles": {"user.yaml": str},
}  # fmt: skip
"""Keys of the chart's values and their types, as zilliztech/milvus-helm has them (values.yaml and templates)."""


def misfits(values: Any, chart: Any, path: str = "") -> list[str]:
    if isinstance(chart, dict) and isinstance(values, dict):
        return [
            misfit
            for key, value in values.items()
            for misfit in (
                misfits(value, chart[key], f"{path}.{key}")
                if key in chart
                else [f"{path}.{key} is no value of the chart"]
            )
        ]
    expected = dict if isinstance(chart, dict) else chart
    return [] if type(values) is expected else [f"{path} is {values!r}, expected {expected.__name__}"]


def test_the_chart_knows_the_values_of_the_cluster() -> None:
    values = yaml.safe_load((DOCKER / "cluster-values.yaml").read_text())
    assert misfits(values, CHART) == []
    wrong = {"queryNodes": {}, "etcd": {"replicaCount": "3"}, "minio": {"persistence": {"sise": "1Gi"}}}
    assert misfits(wrong, CHART) == [
        ".queryNodes is no value of the chart", ".etcd.replicaCount is '3', expected int",
        ".minio.persistence.sise is no value of the chart",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "encode-job.yaml").read_text())
    return loaded


@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_kubernetes_accepts_the_job(job: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(job, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {"completion": 16}}, version, strict=True)


def test_the_job_has_a_pod_for_each_shard(job: dict[str, Any]) -> None:
    """What the schema does not say: limits of failures for each index need pods that are never restarted in place."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert job["spec"]["completionMode"] == "Indexed"
    assert str(job["spec"]["completions"]) == environment["SHARDS"]
    assert container["resources"]["limits"]["cpu"] == environment["OMP_NUM_THREADS"]
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    for each in [container, *pod["initContainers"]]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for each in [container, *pod["initContainers"]] for mount in each["volumeMounts"]} == volumes
    fetch = pod["initContainers"][0]["command"]
    assert fetch[:2] == ["python", "-c"]
    compile(fetch[2], "the command", "exec")


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """An environment whose mgm writes its arguments and the number of threads to a file, and returns $CODE."""
    program = tmp_path / "mgm"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@" > {tmp_path}/calls\nexit "$CODE"\n')
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": "0"}


def called(folder: Path) -> tuple[int, dict[str, Any]]:
    """The threads, and the options of mgm encode as mgm reads them."""
    threads, command, *arguments = (folder / "calls").read_text().splitlines()
    assert command == "encode"
    return int(threads), get_command(app).commands["encode"].make_context("encode", arguments).params


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (3, 0), (1, 1), (2, 2)])
def test_a_pod_encodes_its_shard(
    job: dict[str, Any], tmp_path: Path, stub: dict[str, str], code: int, ends: int
) -> None:
    """Unreadable images are no failure of the pod."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]} | {"JOB_COMPLETION_INDEX": "15"}
    done = subprocess.run(container["command"], env=stub | environment | {"CODE": str(code)})
    assert done.returncode == ends
    threads, options = called(tmp_path)
    assert (threads, options["workers"], options["shard"]) == (2, 2, "16/16")
    assert (options["sources"], options["out"]) == (["s3://shop/images"], "s3://shop/codes")
    assert options["encoder"] == "/encoder/mine.safetensors"


SBATCH = {
    "job-name": r"[\w-]+", "array": r"1-\d+", "ntasks": r"\d+", "cpus-per-task": r"\d+", "mem": r"\d+[KMGT]",
    "time": r"(\d+-)?\d+:\d\d:\d\d", "requeue": "", "open-mode": "append|truncate", "output": r"[\w-]+%A_%a\.log",
}  # fmt: skip
"""Options of sbatch and the form of their values (its manual page)."""


def test_slurm_reads_the_options_of_the_script() -> None:
    script = DOCKER / "encode.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    # sbatch reads no further than the first line that is not a comment.
    first = next(place for place, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.removeprefix("#SBATCH --") for line in lines[:first] if line.startswith("#SBATCH")]
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    named = dict(option.partition("=")[::2] for option in options)
    assert [name for name, value in named.items() if not re.fullmatch(SBATCH[name], value)] == []
    assert f"shards=${{SHARDS:-{named['array'].removeprefix('1-')}}}" in lines
    # After a preemption the log goes on where it was.
    assert {"requeue", "open-mode"} <= set(named)


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (3, 0), (1, 1)])
def test_a_task_of_slurm_encodes_its_shard(tmp_path: Path, stub: dict[str, str], code: int, ends: int) -> None:
    """One shard again is still one of 16."""
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_CPUS_PER_TASK": "4", "CODE": str(code)}
    command = ["bash", DOCKER / "encode.sbatch", "my photos/", "mine.safetensors", "codes/"]
    assert subprocess.run(command, env=stub | slurm).returncode == ends
    threads, options = called(tmp_path)
    assert (threads, options["workers"], options["shard"]) == (4, 4, "7/16")
    assert (options["sources"], options["out"], options["encoder"]) == (["my photos/"], "codes/", "mine.safetensors")
    done = subprocess.run([*command, "more"], env=stub | slurm, capture_output=True, text=True)
    assert (done.returncode, done.stderr.startswith("expected SOURCE ENCODER FOLDER")) == (2, True)
