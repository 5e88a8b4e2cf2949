"""The file of a row becomes something else: a device, a FIFO, a huge file. Nothing hangs, and memory stays small."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mg_milvus.bulk.dataset import Shard
from mg_milvus.errors import ImageError
from mg_milvus.images import files
from mg_milvus.images.decode import open_image
from mg_milvus.images.discover import Found
from mg_milvus.records import Failure
from tests.conftest import make_photos
from tests.found_images import images
from tests.images import encoded, image
from tests.waiting import PATIENCE

"""Seconds after which a program counts as hanging."""

GIGABYTE = 1_000_000_000


def make_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * GIGABYTE)


def make_sparse_jpeg(path: Path) -> None:
    path.write_bytes(encoded(image(1), "JPEG"))
    os.truncate(path, 3 * GIGABYTE)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


HOSTILE = {
    "zero": (make_zero, "is a device: expected an image file"),
    "sparse": (make_sparse, "is not an image that can be read: expected one of JPEG, PNG"),
    "sparse-jpeg": (make_sparse_jpeg, f"has 3000000000 bytes: expected an image file of at most {files.MAX_BYTES}"),
    "fifo": (os.mkfifo, "is a FIFO: expected an image file"),
    "folder": (Path.mkdir, "is a folder: expected an image file"),
    "socket": (make_socket, "is a socket: expected an image file"),
    "gone": (lambda path: None, "does not exist"),
}
"""Kind of what a file becomes -> what makes it at a path, and what is said of it."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_image_file_is_refused_unread(tmp_path: Path, kind: str) -> None:
    make, reason = HOSTILE[kind]
    path = tmp_path / "x.jpg"
    make(path)
    started = time.perf_counter()
    for read in (lambda: open_image(path), Found(str(path), 1, 0).read, lambda: files.read_file(path)):
        with pytest.raises(ImageError) as caught:
            read()
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 10  # three reads of nothing: milliseconds


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "gone"])
def test_a_name_that_leads_elsewhere_when_it_is_opened_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exchanged between the look at the name and the opening of the file."""
    path = tmp_path / "x.jpg"
    HOSTILE[kind][0](path)
    good = tmp_path / "good.jpg"
    good.write_bytes(encoded(image(1), "JPEG"))
    of_good = good.stat()
    monkeypatch.setattr(files.os, "stat", lambda _: of_good)
    with pytest.raises(ImageError):
        files.read_file(path)


def test_a_device_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "open", lambda *_: pytest.fail("opening some devices has effects"))
    with pytest.raises(ImageError, match="is a device"):
        files.read_file("/dev/null")


def test_a_list_of_hostile_files_is_reported_and_passed_over(tmp_path: Path) -> None:
    names = [f"fifo{suffix}" for suffix in (".jpg", ".tar", ".parquet")] + ["zero.tar", "zero.png"]
    for name in names:
        HOSTILE[name.split(".")[0]][0](tmp_path / name)
    (tmp_path / "list.txt").write_text("\n".join(names))
    failures: list[Failure] = []
    for found in images([tmp_path / "list.txt"], Shard(), failures.append):
        with pytest.raises(ImageError) as caught:
            found.read()
        failures.append(Failure(found.path, str(caught.value)))
    assert {Path(failure.path).name: failure.reason for failure in failures} == {
        name: HOSTILE[name.split(".")[0]][1]
        if name.endswith((".jpg", ".png"))
        else "it is a pipe or a device, expected a plain file"
        for name in names
    }


def test_a_file_that_grows_while_it_is_read_is_read_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    monkeypatch.setattr(files, "_BLOCK", 100)
    monkeypatch.setattr(files, "HEAD", 100)
    data = encoded(image(1), "PNG")[:500]
    path = tmp_path / "x.png"
    path.write_bytes(data)
    assert files.read_file(path) == data
    with files.open_file(path) as opened:
        real = os.fstat(opened.fileno())
        path.write_bytes(data + bytes(1000))
        monkeypatch.setattr(files.os, "fstat", lambda _: real)  # it grew only after its size was looked at
        with pytest.raises(ImageError, match=r"^has 1[01]\d\d bytes: expected an image file of at most 1000$"):
            files.read_opened(opened)


def test_a_file_that_comes_in_drops_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(files.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(files, "_BLOCK", 10)
    (tmp_path / "x.png").write_bytes(encoded(image(1), "PNG"))
    with pytest.raises(ImageError, match=r"^cannot be read: \d+ of \d+ bytes came in 120 s$"):
        files.read_file(tmp_path / "x.png")


def test_a_link_to_an_image_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(encoded(image(1), "PNG"))
    (tmp_path / "link.png").symlink_to("real.png")
    assert open_image(tmp_path / "link.png").image.size == image(1).size


def test_no_file_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for kind, (make, _) in HOSTILE.items():
        make(tmp_path / kind)
        with pytest.raises(ImageError):
            files.read_file(tmp_path / kind)
    assert len(os.listdir("/dev/fd")) == before


USED = """
from tests import memory_store; memory_store.install()
import json, os, sys, time
from pathlib import Path
from fastapi.testclient import TestClient
from mg_milvus import ImageIndex
from mg_milvus.errors import MgMilvusError
from mg_milvus.html.pages import QueryResult, QuerySettings, result_page
from mg_milvus.web.security import WebSettings
from mg_milvus.web.app import create_app
from tests.hostile.test_image_files import HOSTILE

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10

def tried(function):
    try:
        return function()
    except MgMilvusError as error:
        return str(error)

folder = Path(sys.argv[1])
with ImageIndex.open("memory:") as index:
    index.ingest(folder)
    with TestClient(create_app(index, WebSettings()), base_url="http://127.0.0.1:8000") as client:
        hit = index.query(folder / "disc/00.jpg", k=1)[0]
        path, at = Path(hit.path), f"/api/images/{hit.id}"
        client.get(f"{at}/thumbnail")
        before, done = peak(), {}
        for kind, (make, _) in HOSTILE.items():
            path.unlink()
            make(path)
            hits = index.like(hit.id, k=4)
            done[kind] = {
                "page": result_page([QueryResult("x", path, [hit])],
                                    QuerySettings("x", index.schema.code_bits, {}, "rank")).count("data:image"),
                "thumbnail": client.get(f"{at}/thumbnail").status_code,
                "original": client.get(f"{at}/original").status_code,
                "crop": client.get(f"/api/query?id={hit.id}&crop=0,0,20,20").status_code,
                "health": client.get("/health").status_code,
                "query": tried(lambda: index.query(path)),
                "explain": tried(lambda: index.explain(path)),
                "duplicates": tried(lambda: index.duplicates(of=path)),
                "ingest": [failure.reason for failure in index.ingest(folder).failures],
                "hits": len(hits),
            }
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            path.touch()
        print(json.dumps({"done": done, "megabytes": peak() - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_whatever_a_file_becomes_every_command_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
    photos = make_photos(tmp_path / "photos", per_kind=2)
    run = subprocess.run(
        [sys.executable, "-c", USED, str(photos)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    for kind, done in result["done"].items():
        reason = HOSTILE[kind][1]
        assert {name: done[name] for name in ("page", "thumbnail", "original", "crop", "health", "hits")} == {
            "page": 0, "thumbnail": 422, "original": 422, "crop": 422, "health": 200, "hits": 4,
        }, kind  # fmt: skip
        for name in ("query", "explain", "duplicates"):
            assert reason in done[name], (kind, name)
        assert all("regular file" in said or reason in said for said in done["ingest"]), kind
        assert len(done["ingest"]) == (kind not in {"folder", "gone"}), kind
    assert result["megabytes"] < 200  # of which a megabyte is for reading: the rest is the encoder's and Python's own


SERVED = """
from tests import memory_store; memory_store.install()
import sys
from pathlib import Path
from mg_milvus import ImageIndex
from mg_milvus.web.security import WebSettings; from mg_milvus.web import app
folder = Path(sys.argv[1])
with ImageIndex.open("memory:") as index:
    index.ingest(folder)
    hit = index.query(folder / "disc/00.jpg", k=1)[0]
    taken = app.bind("127.0.0.1", 0, None)
    app.serve(index, WebSettings(), taken, lambda: print(taken.getsockname()[1], hit.id, hit.path, flush=True))
"""


def status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_page_whose_files_are_fifos_is_alive_and_ends_at_sigterm(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
    photos = make_photos(tmp_path / "photos", per_kind=2)
    with subprocess.Popen([sys.executable, "-c", SERVED, str(photos)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port, row_id, path = process.stdout.readline().split(" ", 2)
            Path(path.rstrip("\n")).unlink()
            os.mkfifo(path.rstrip("\n"))
            here = f"http://127.0.0.1:{port}"
            for _ in range(2 * (os.cpu_count() or 1)):  # more than there are threads for decoding
                assert status(f"{here}/api/images/{row_id}/thumbnail") == 422
                assert status(f"{here}/api/images/{row_id}/original") == 422
            assert status(f"{here}/health") == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
