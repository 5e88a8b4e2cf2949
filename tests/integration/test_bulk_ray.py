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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mg_milvus import errors
from mg_milvus.bulk.cluster import _connected, workers
from mg_milvus.bulk.encode import EncodeOptions, encode
from mg_milvus.encoder.function import FunctionEncoder, function_encoder
from mg_milvus.encoder.load import load_encoder
from mg_milvus.ingest.pipeline import Settings
from tests.conftest import make_photos
from tests.in_process import mgm
from tests.waiting import wait_until


class RaisedByRay(Exception):
    pass


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
    """A cluster of this machine: the URL that other machines would use."""

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
            yield Head(f"ray://127.0.0.1:{client_port}")
        finally:
            running.terminate()
            running.wait(timeout=60)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def pixels_encoder(features) -> FunctionEncoder:
    """An encoder around ``features`` (images of 4 x 4 pixels), with heads of random features."""
    random = np.random.default_rng(0)
    plain = function_encoder(features)
    names = plain.state.configuration.poolings
    bits = {"coarse": 64, "mid": 128, "fine": 256}
    return plain.adapted({name: random.normal(size=(60, 48)).astype(np.float32) for name in names}, bits)


def pixels(images) -> np.ndarray:
    return np.asarray([np.asarray(image.resize((4, 4)), np.float32).ravel() for image in images])


def test_a_killed_worker_changes_no_file(home, head, tmp_path):
    driver, killed = os.getpid(), tmp_path / "killed"

    def features(images):
        with contextlib.suppress(FileExistsError):
            if os.getpid() != driver:
                killed.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return pixels(images)

    encoder = pixels_encoder(features)
    settings = Settings(batch_size=1)
    options = {on: EncodeOptions(on=on, settings=settings, rows_per_file=10) for on in (None, "ray")}
    alone = encode(home / "photos", out=tmp_path / "alone", encoder=encoder, options=options[None])
    assert not killed.exists()
    report = encode(home / "photos", out=tmp_path / "codes", encoder=encoder, options=options["ray"])
    assert killed.exists()
    assert (report.encoded, report.files) == (alone.encoded, alone.files) == (60, 6)
    assert [Path(failure.path).name for failure in report.failures] == ["07a.jpg"]
    assert contents(tmp_path / "codes") == contents(tmp_path / "alone")


def test_what_is_encoded_already_is_skipped(home, head, tmp_path):
    """What a driver that was killed leaves: some of the files, no mark."""
    out = Path(shutil.copytree(home / "local", tmp_path / "codes"))
    (out / "shard-0001-of-0001.json").unlink()
    for lost in sorted(out.glob("*.parquet"))[4:]:
        lost.unlink()
    done = mgm(*command(str(out)), "--on", head.url, cwd=home)
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    assert (report["unchanged"], report["encoded"], report["failed"], report["seen"]) == (40, 26, 1, 67)
    assert contents(out) == contents(home / "local")


def test_images_that_kill_every_worker_are_named(home, head, tmp_path):
    def features(images):
        found = pixels(images)
        if os.getpid() != driver and (np.abs(found - killer).max(axis=1) < 8).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    driver = os.getpid()
    with Image.open(home / "photos" / "blocks" / "00.jpg") as image:
        killer = pixels([image.convert("RGB")])
    encoder = pixels_encoder(features)
    options = EncodeOptions(on="ray", settings=Settings(batch_size=1))
    with pytest.raises(
        errors.ClusterError, match=r"3 workers .* died at the same 8 files, from .*00\.jpg to .*07\.jpg"
    ):
        encode(home / "photos" / "blocks", out=tmp_path / "codes", encoder=encoder, options=options)
    assert list((tmp_path / "codes").glob("*.parquet")) == []


class BusyHead:
    """In place of ``ray``: a head that starts the process of a driver only when asked for the third time."""

    exceptions = SimpleNamespace(RayError=RaisedByRay)
    _private = SimpleNamespace(worker=SimpleNamespace())

    def __init__(self, reason: str):
        self.reason, self.calls = reason, []
        self.util = SimpleNamespace(disconnect=lambda: self.calls.append("disconnect"))

    def is_initialized(self) -> bool:
        return False

    def init(self, address, **_) -> None:
        self.calls.append(address)
        if len(self.calls) < 5:
            raise RuntimeError(self.reason)

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_a_busy_head_is_asked_again():
    url = "ray://head:10001"
    busy = BusyHead(
        "Initialization failure from server: Starting Ray client server failed. See ray_client_server_23000.err"
    )
    with _connected(busy, url):
        pass
    assert busy.calls == [url, "disconnect", url, "disconnect", url, "shutdown"]
    other = BusyHead("Version mismatch: The cluster was started with Python 3.9")
    with pytest.raises(errors.ClusterError, match=r"cannot be reached \(Version mismatch"), _connected(other, url):
        pass
    assert other.calls == [url, "disconnect"]


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
