"""Variables, folders and disks as users' machines have them: no home, proxies, read-only disks, other processes."""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
from pathlib import Path

import pytest

from mg_milvus.config import is_loopback, proxy_note
from mg_milvus.errors import ImageError, StoreError
from mg_milvus.images.decode import open_image
from mg_milvus.index import ImageIndex
from mg_milvus.store import lite
from tests.field.shells import MGM, PLAIN, make_index, shell
from tests.images import encoded, image, save_image
from tests.servers import lite_server
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("environment"))


@pytest.mark.parametrize("value", [None, "", "/dev/null/home", "relative"])
def test_a_missing_home_folder_is_none_needed(home, value):
    environment = {name: text for name, text in PLAIN.items() if name not in {"HOME", "XDG_CACHE_HOME"}}
    environment |= {} if value is None else {"HOME": value}
    done = shell(["query", "photos/0.jpg", "-k", "1", "--uri", "mgm.db"], home, "", environment)
    assert done.returncode == 0, done.stderr
    assert b"photos/0.jpg" in done.stdout


def test_an_unknown_home_is_no_bug(home):
    done = shell(["info", "--uri", "~nobody-has-this-name/x.db"], home)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert b"~nobody-has-this-name" in line


def test_a_proxy_does_not_stand_before_this_machine(tmp_path):
    with socket.socket() as taken, lite_server(tmp_path / "proxied.db") as server:
        taken.bind(("127.0.0.1", 0))  # it listens to nobody
        proxy = f"http://127.0.0.1:{taken.getsockname()[1]}"
        variables = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), proxy)
        done = shell(["info", "--uri", server.uri], tmp_path, "", {**PLAIN, **variables})
    assert b"there is no index" in done.stderr  # the server has answered


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://localhost:19530", True), ("http://127.3.2.1:1", True), ("http://[::1]:19530", True),
        ("unix:/tmp/s", True), ("http://milvus:19530", False), ("http://192.168.0.3", False), ("http://[", False),
    ],
)  # fmt: skip
def test_what_this_machine_is(uri, expected):
    assert is_loopback(uri) == expected


def test_elsewhere_the_variable_is_named(monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_note("http://milvus.example:19530") == ""
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert "http_proxy" in proxy_note("http://milvus.example:19530")
    assert "no_proxy=milvus.example" in proxy_note("http://milvus.example:19530")
    assert proxy_note("http://localhost:19530") == ""
    monkeypatch.setenv("no_proxy", "other, .example")
    assert proxy_note("http://milvus.example:19530") == ""


def test_an_index_that_cannot_be_changed_is_queried_and_stays_as_it_is(home, monkeypatch):
    # Whoever runs the tests may be root, whom no mode of a file stops.
    file = home / "mgm.db"
    before, listed = file.read_bytes(), set(os.listdir(home))
    monkeypatch.setattr(lite, "is_read_only", lambda path: path == file)
    with ImageIndex.open(file) as index:
        assert index.query(home / "photos/2.jpg", k=1)[0].path == str(home / "photos/2.jpg")
        with pytest.raises(StoreError, match="can only be queried"):
            index.delete([home / "photos/2.jpg"])
        assert index.count() == 4
    assert file.read_bytes() == before
    assert set(os.listdir(home)) == listed


def test_a_file_that_may_not_be_written_is_read_only(tmp_path, monkeypatch):
    (tmp_path / "x.db").touch()
    assert not lite.is_read_only(tmp_path / "x.db")
    assert not lite.is_read_only(tmp_path / "missing.db")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert lite.is_read_only(tmp_path / "x.db")


def test_an_index_is_pickled(home):
    with ImageIndex.open(home / "mgm.db", timeout=7) as index:
        expected = [hit.path for hit in index.query(home / "photos/1.jpg", k=3)]
        data = pickle.dumps(index)
    with pickle.loads(data) as copied:
        assert [hit.path for hit in copied.query(home / "photos/1.jpg", k=3)] == expected
        assert copied.session.config.timeout == 7


def test_images_come_as_bytes_of_any_kind(home):
    data = encoded(image(3), "PNG")
    with ImageIndex.open(home / "mgm.db") as index:
        sources = [data, bytearray(data), memoryview(data), io.BytesIO(data), io.BufferedReader(io.BytesIO(data))]
        assert len({tuple(hit.path for hit in index.query(source, k=4)) for source in sources}) == 1
        with (home / "photos/0.jpg").open("rb") as file:
            assert index.query(file, k=1)[0].path == str(home / "photos/0.jpg")
            with pytest.raises(ImageError, match="rewind"):
                index.query(file)
        with pytest.raises(ImageError, match="binary mode"):
            index.query(io.StringIO("text"))


def test_a_data_uri_is_an_image_and_a_url_is_refused_with_the_way(home):
    import base64

    uri = "data:image/jpeg;base64," + base64.b64encode((home / "photos/3.jpg").read_bytes()).decode()
    done = shell(["query", uri, "-k", "1"], home)
    assert b"photos/3.jpg" in done.stdout, done.stderr
    done = shell(["query", "https://example.com/x.jpg"], home)
    assert done.returncode == 1
    assert b"curl -sSL URL | mgm query -" in done.stderr
    done = shell(["query", "data:image/jpeg;base64,%%%"], home)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_a_data_uri_of_something_else_is_refused_with_what_was_expected(home):
    for uri, given in (
        ("data:text/plain,hello", "data:text/plain"),
        ("data:text/plain;base64,aGk=", "data:text/plain"),
    ):
        with pytest.raises(ImageError, match=rf"^the data URI cannot be read: got {given}.*, expected data:image/"):
            open_image(uri)
    with pytest.raises(ImageError, match=r"^the data URI cannot be read: .*; expected data:image/"):
        open_image("data:image/png;base64,%%%")


@pytest.mark.parametrize(
    ("limit", "said"), [("-n 8", b"this process may open 8 files, raise the limit (ulimit -n)"),
                        ("-f 8", b"bytes, raise the limit (ulimit -f)")],
)  # fmt: skip
def test_a_limit_of_the_shell_is_named_as_the_cause(tmp_path, limit, said):
    (tmp_path / "photos").mkdir()
    save_image(tmp_path / "photos/0.jpg", 0)
    done = subprocess.run(
        ["/bin/sh", "-c", f'ulimit {limit}; exec "$0" ingest photos --timeout 3', MGM],
        cwd=tmp_path, env=PLAIN, capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(said), done.stderr
