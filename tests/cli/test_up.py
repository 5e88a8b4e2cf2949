"""``mgm up`` and ``mgm down``: one file for all programs of a machine, whatever happens to its server."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mg_milvus.cli.app import app
from mg_milvus.config import MilvusConfig
from mg_milvus.errors import StoreError, UnsupportedError
from mg_milvus.schema.models import Granularity, Schema
from mg_milvus.store import lite_server
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import open_store
from tests.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DESCRIPTION = Description(Schema(granularities=(Granularity(name="coarse", bits=16),)), "0123456789abcdef")


def rows(start: int, count: int) -> list[Row]:
    return [
        Row(f"{n:032x}", f"/{n}.jpg", n, n, 1, 1, "", {"coarse": n.to_bytes(2)}) for n in range(start, start + count)
    ]


def mgm(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A data file's name; whatever serves a file of the folder is ended afterwards."""
    yield tmp_path / "photos.db"
    for left in tmp_path.rglob("*.db"):
        lite_server.down(left)


def test_one_index_for_all_programs_until_it_is_stopped(file: Path) -> None:
    code, out, errors = mgm("up", "--data", file, "--port", "0")
    assert (code, errors) == (0, "")
    running = lite_server.server_of(file)
    assert running is not None
    assert out.splitlines()[0] == f"{file} is served at {running.uri}, for your own programs only"
    assert f"mgm ingest photos/ --uri {running.uri}\n" in out
    assert f"mgm down --data {file}\n" in out

    by_file, by_uri = (
        open_store(MilvusConfig(str(file), collection="images")),
        open_store(MilvusConfig(running.uri, collection="images")),
    )
    by_file.create(DESCRIPTION)
    by_file.upsert(rows(0, 50))
    assert by_uri.count() == 50
    assert by_file.server().endswith(f"shared at {running.uri}")
    code, out, _ = mgm("info", "--uri", file, "--json")
    assert (code, json.loads(out)["rows"]) == (0, 50)
    by_file.close()
    by_uri.close()

    again = mgm("up", "--data", file)
    assert (again[0], again[1].splitlines()[0]) == (
        0, f"{file} is already served at {running.uri}, for your own programs only",
    )  # fmt: skip
    assert json.loads(mgm("up", "--data", file, "--json")[1]) == {
        "running": True, "started": False, "file": str(file), "uri": running.uri, "pid": running.pid,
        "log": str(file) + ".log", "since": running.since,
    }  # fmt: skip
    assert mgm("down", "--data", file) == (0, f"{file} is no longer served at {running.uri}\n", "")
    assert mgm("down", "--data", file) == (0, f"{file} is not served: nothing to stop\n", "")
    assert json.loads(mgm("down", "--data", file, "--json")[1]) == {"file": str(file), "stopped": False}
    store = open_store(MilvusConfig(str(file), collection="images"))
    assert (store.count(), "shared" in store.server()) == (50, False)
    store.close()
    assert "is served at" in (file.parent / "photos.db.log").read_text()
    assert {path.name for path in file.parent.iterdir()} == {"photos.db", "photos.db.log", ".photos.db.lock"}


def test_status(file: Path) -> None:
    assert mgm("up", "--status", "--data", file) == (1, f"{file} is not served: mgm up --data {file}\n", "")
    code, out, _ = mgm("up", "--status", "--data", file, "--json")
    assert (code, json.loads(out)) == (1, {"running": False, "file": str(file)})
    running, fresh = lite_server.up(file, 0)
    assert fresh
    code, out, _ = mgm("up", "--status", "--data", file)
    assert code == 0
    assert out.startswith(f"{file} is served at {running.uri} since {running.since} by process {running.pid}\n")
    code, out, _ = mgm("up", "--status", "--data", file, "--json")
    assert (code, json.loads(out)["uri"], json.loads(out)["running"]) == (0, running.uri, True)


def test_nobody_beyond_the_loopback_address_can_reach_it(file: Path) -> None:
    port = int(lite_server.up(file, 0)[0].uri.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    for other in ("127.0.0.2", socket.gethostbyname(socket.gethostname())):
        if sys.platform == "linux" and other != "127.0.0.1":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, port), timeout=PATIENCE)


def test_the_default_is_the_file_that_commands_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def file_of(*arguments: str) -> str:
        return str(json.loads(mgm("down", "--json", *arguments)[1])["file"])

    assert file_of() == str(tmp_path / "mgm.db")
    monkeypatch.setenv("MGM_URI", "holidays.db")
    assert file_of() == str(tmp_path / "holidays.db")
    monkeypatch.setenv("MGM_URI", "http://127.0.0.1:19530")  # as one may set it after mgm up
    assert file_of() == str(tmp_path / "mgm.db")
    assert file_of("--data", "deep/folder") == str(tmp_path / "deep" / "folder" / "mgm.db")


def test_after_kill_9_of_the_server_all_acknowledged_rows_are_there(file: Path) -> None:
    uri = lite_server.up(file, 0)[0].uri
    for round_, victim in enumerate(("daemon", "engine", "daemon")):
        running = lite_server.up(file, int(uri.rpartition(":")[2]))[
            0
        ]  # at once, and at the port of the one that was killed
        store = open_store(MilvusConfig(uri, collection="images", timeout=PATIENCE))
        store.create(DESCRIPTION)
        store.upsert(rows(100 * round_, 100))
        pid = running.pid
        if victim == "engine":
            found = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True)
            pid = int(found.stdout)
        os.kill(pid, signal.SIGKILL)
        if victim == "engine":  # which the daemon starts again
            assert store.count() == 100 * (round_ + 1)
            assert lite_server.down(file) == running
        store.close()
        wait_until(lambda: lite_server.server_of(file) is None, "nobody serves the file")
        assert mgm("up", "--status", "--data", file)[0] == 1
        alone = open_store(MilvusConfig(str(file), collection="images"))
        assert alone.count() == 100 * (round_ + 1)
        alone.close()


def test_sigterm_is_a_good_end(file: Path) -> None:
    running = lite_server.up(file, 0)[0]
    store = open_store(MilvusConfig(running.uri, collection="images"))
    store.create(DESCRIPTION)
    store.upsert(rows(0, 10))
    store.close()
    os.kill(running.pid, signal.SIGTERM)
    wait_until(lambda: not lite_server.record_of(file).exists(), "the server has removed its record")
    assert "the engine has ended" in lite_server.log_of(file).read_text()
    alone = open_store(MilvusConfig(str(file), collection="images"))
    assert alone.count() == 10
    alone.close()


def test_a_record_that_a_crash_left_is_not_a_server(file: Path) -> None:
    """Even when its process number is that of another program by now: this one."""
    record = {"file": str(file), "uri": "http://127.0.0.1:1", "pid": os.getpid(), "log": "", "since": "", "socket": ""}
    for left in (json.dumps(record), "", "{}", '{"pid": "x', "[]", "\0\xff"):
        lite_server.record_of(file).write_text(left)
        assert lite_server.server_of(file) is None
        assert mgm("down", "--data", file)[:2] == (0, f"{file} is not served: nothing to stop\n")
    assert lite_server.up(file, 0)[1]
    # Locked, but not by the process that the record names.
    honest = lite_server.record_of(file).read_text()
    lite_server.record_of(file).write_text(json.dumps(record))
    assert lite_server.server_of(file) is None
    lite_server.record_of(file).write_text(honest)


def test_a_file_that_another_program_has_open(file: Path) -> None:
    holder = open_store(MilvusConfig(str(file), collection="images"))
    code, out, errors = mgm("up", "--data", file, "--port", "0")
    holder.close()
    assert (code, out, len(errors.splitlines())) == (1, "", 1)
    assert f"{file} is open in another process" in errors
    assert f"mgm up --data {file}" in errors
    assert mgm("up", "--data", file, "--port", "0")[0] == 0


def test_ports(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, errors = mgm("up", "--data", file, "--port", str(port))
        assert (code, len(errors.splitlines())) == (1, 1)
        assert f"cannot listen on 127.0.0.1 port {port}" in errors
        assert "--port" in errors
    running = lite_server.up(file, port)[0]
    assert running.uri == f"http://127.0.0.1:{port}"
    # The engine itself would share the port with the first, and each would get half of the calls.
    assert (
        f"port {port} (Address already in use)" in mgm("up", "--data", file.with_name("b.db"), "--port", str(port))[2]
    )
    code, _, errors = mgm("up", "--data", file, "--port", str(port + 1))
    assert (code, len(errors.splitlines())) == (1, 1)
    assert f"is served at {running.uri} already" in errors
    assert "mgm down" in errors


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("my photos.db", "'my photos.db' cannot be the name of a Milvus Lite file"),
        (f"{'x' * 40}.db", "up to 36 letters"),
        ("missing/photos.db", "does not exist: make it first"),
        ("notes.txt", "cannot be created (File exists): give another folder, or a file that ends in .db"),
        ("text.db", "is not a Milvus Lite file, or damaged"),
        pytest.param(
            "/proc/mgm.db",
            "cannot be written",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: writes below /proc"),
        ),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, place: str, sentence: str) -> None:
    for name in ("notes.txt", "text.db"):
        (tmp_path / name).write_text("These are notes." * 100)
    code, out, errors = mgm("up", "--data", tmp_path / place, "--port", "0")
    assert (code, out, len(errors.splitlines())) == (1, "", 1)
    assert sentence in errors
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "text.db"}


def test_windows(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UnsupportedError, match="no Milvus Lite for Windows: start a Milvus server"):
        lite_server.up(file)


def test_two_at_once_make_one_server(file: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: lite_server.up(file, 0), range(3)))
    assert sorted(fresh for _, fresh in answers) == [False, False, True]
    assert len({running for running, _ in answers}) == 1


def test_of_two_at_one_port_only_one_gets_it(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def up(name: str) -> str:
        try:
            return lite_server.up(file.with_name(name), port)[0].uri
        except StoreError as exc:
            return str(exc)

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(up, ("a.db", "b.db")))
    assert answers[0].startswith(f"cannot listen on 127.0.0.1 port {port} (")
    assert answers[1] == f"http://127.0.0.1:{port}"


def test_the_log_stays_short(file: Path) -> None:
    log = lite_server.open_log(file)
    for number in range(300):
        log.info("%d %s", number, "x" * 9_000)
    for handler in list(log.handlers):
        handler.close()
        log.removeHandler(handler)
    sizes = {path.name: path.stat().st_size for path in file.parent.iterdir()}
    assert set(sizes) == {"photos.db.log", "photos.db.log.1"}
    assert max(sizes.values()) <= lite_server.LOG_BYTES
    assert f" 299 {'x' * 9_000}\n" in lite_server.log_of(file).read_text()
    assert logging.getLogger("mg_milvus.daemon").handlers == []
