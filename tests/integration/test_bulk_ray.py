"""``mgm encode --on ray``: a cluster of two workers on this machine, one of which is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mg_milvus import errors
from mg_milvus.bulk.cluster import workers
from mg_milvus.bulk.encode import EncodeOptions, encode
from mg_milvus.encoder.function import function_encoder
from mg_milvus.encoder.load import load_encoder
from mg_milvus.ingest.pipeline import Settings
from tests.conftest import make_photos
from tests.in_process import mgm
from tests.waiting import wait_until

SCHEMA = "fields: [{name: caption, type: string, default: none}]\n"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """``photos/`` (60 good ones, 1 broken), a tar of 6 more, and ``local/``: their codes, made without a cluster."""
    folder = tmp_path_factory.mktemp("ray")
    make_photos(folder / "photos")
    (folder / "photos" / "disc" / "07a.jpg").write_bytes(b"no image")
    make_photos(folder / "more", per_kind=2)
    with tarfile.open(folder / "more.tar", "w") as tar:
        tar.add(folder / "more", "more")
    shutil.rmtree(folder / "more")
    (folder / "schema.yaml").write_text(SCHEMA)
    (folder / "captions.csv").write_text("path,caption\nphotos/disc/03.jpg,a red disc\n")
    done = mgm(*command("local"), cwd=folder)
    assert done.returncode == 3, done.stderr
    return folder


def command(out: str) -> list[str]:
    """Pieces of 8 images; files of 10."""
    return [
        "encode", "photos", "more.tar", "--schema", "schema.yaml", "--metadata", "captions.csv", "--encoder", "builtin",
        "--batch-size", "1", "--rows-per-file", "10", "--out", out, "--json",
    ]  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A cluster of this machine: its process, and the URL that other machines would use."""

    process: int
    url: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Four cores as far as Ray knows, so two workers; programs of this machine find it by themselves."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        port, client_port = free_ports(2)
        command = [
            Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=4", "--temp-dir", folder,
            f"--port={port}", f"--ray-client-server-port={client_port}", "--node-ip-address=127.0.0.1",
            "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000",
        ]  # fmt: skip
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        with open(Path(folder) / "log", "w") as log:
            running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: "Ray runtime started" in (Path(folder) / "log").read_text(), "the cluster starts")
            patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            yield Head(running.pid, f"ray://127.0.0.1:{client_port}")
        finally:
            running.terminate()
            running.wait(timeout=60)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def busy_workers(head: Head) -> list[int]:
    """Processes of the cluster that encode now."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    parent = {int(pid): int(ppid) for pid, ppid, *_ in rows}
    encoding = [int(pid) for pid, _, *args in rows if args and args[0].startswith("ray::Worker.encode")]
    return [pid for pid in encoding if parent.get(parent[pid]) == head.process]


def test_a_killed_worker_changes_no_file(home, head):
    killed: list[int] = []

    def kill_one() -> None:
        wait_until(lambda: len(busy_workers(head)) == 2, "two workers encode", patience=60)
        killed.append(busy_workers(head)[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    done = mgm(*command("codes"), "--on", "ray", cwd=home)
    assert done.returncode == 3, done.stderr
    killer.join()
    assert len(killed) == 1
    report = json.loads(done.stdout)
    assert (report["encoded"], report["failed"], report["files"]) == (66, 1, 7)
    assert [Path(failure["path"]).name for failure in report["failures"]] == ["07a.jpg"]
    assert contents(home / "codes") == contents(home / "local")


def test_what_is_encoded_already_is_skipped(home, head, tmp_path):
    """What a driver that was killed leaves: some of the files, no mark."""
    out = Path(shutil.copytree(home / "local", tmp_path / "codes"))
    (out / "shard-0001-of-0001.json").unlink()
    for lost in sorted(out.glob("*.parquet"))[4:]:
        lost.unlink()
    done = mgm(*command(str(out)), "--on", head.url, cwd=home)
    report = json.loads(done.stdout)
    assert (report["unchanged"], report["encoded"], report["failed"], report["seen"]) == (40, 26, 1, 67)
    assert contents(out) == contents(home / "local")


def test_images_that_kill_every_worker_are_named(home, head, tmp_path):
    def features(images):
        if os.getpid() != driver:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.asarray([np.asarray(image.resize((4, 4)), np.float32).ravel() for image in images])

    driver = os.getpid()
    random = np.random.default_rng(0)
    plain = function_encoder(features)
    names = plain.state.configuration.poolings
    bits = {"coarse": 64, "mid": 128, "fine": 256}
    encoder = plain.adapted({name: random.normal(size=(60, 48)).astype(np.float32) for name in names}, bits)
    options = EncodeOptions(on="ray", settings=Settings(batch_size=1))
    with pytest.raises(
        errors.ClusterError, match=r"3 workers .* died at the same 8 files, from .*00\.jpg to .*07\.jpg"
    ):
        encode(home / "photos" / "blocks", out=tmp_path / "codes", encoder=encoder, options=options)
    assert list((tmp_path / "codes").glob("*.parquet")) == []


def test_workers_of_a_cluster():
    """Two cores each; with GPUs one a GPU, and the cores of the machine with the fewest for each."""
    cpus = [{"CPU": 16.0}, {"CPU": 5.0}, {"memory": 1e9}]
    assert workers(cpus, "auto") == workers(cpus, "cpu") == (8 + 2, {"num_cpus": 2})
    assert workers([{"CPU": 1.0}, {"CPU": 1.0}], "auto") == (2, {"num_cpus": 1})
    assert workers([], "auto") == workers([{"memory": 1e9}], "auto") == (1, {"num_cpus": 1})
    gpus = [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 12.0, "GPU": 2.0}]
    assert workers([*cpus, *gpus], "auto") == workers(gpus, "cuda") == (10, {"num_cpus": 4, "num_gpus": 1})
    assert workers(gpus, "cpu") == (16 + 6, {"num_cpus": 2})
    with pytest.raises(errors.ClusterError, match="the Ray cluster has no GPU on its 3 machines"):
        workers(cpus, "cuda")


def test_where_to_encode_is_checked(home, tmp_path, monkeypatch):
    with pytest.raises(errors.QueryError, match="on is 'spark': expected ray, or ray://HOST:10001"):
        EncodeOptions(on="spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(errors.MissingPackageError, match=r"ray, .*: pip install 'mg-milvus\[ray\]'"):
        encode(home / "photos", out=tmp_path / "codes", encoder=load_encoder(), options=EncodeOptions(on="ray"))
