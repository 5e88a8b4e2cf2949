"""Other users of the machine: they read nothing that is kept, keep nobody out, and are not taken for a server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mg_milvus import session
from mg_milvus.config import MilvusConfig
from mg_milvus.errors import StoreError
from mg_milvus.files import write_whole
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Granularity, Schema
from mg_milvus.store import lite, lite_server
from mg_milvus.store.base import Description
from mg_milvus.store.milvus import open_store
from tests.conftest import kind_of_image
from tests.in_process import mgm
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

DESCRIPTION = Description(Schema(granularities=(Granularity(name="coarse", bits=16),)), "0123456789abcdef")

BECOME = "import fcntl, json, os, socket, sys, time; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"


def other_user(script: str, *arguments: str | Path) -> str:
    """What a script of another user prints."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", BECOME + script, *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def staying_user(script: str, *arguments: str | Path) -> Iterator[str]:
    """The line that a script of another user prints first; the script is ended afterwards."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", f"{BECOME}{script}\ntime.sleep(600)", *map(str, arguments)],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The one under which everybody may read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(params=[0o1777, 0o777], ids=["as-tmp", "open"])
def shared(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that all users of the machine may write to."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to act as another user: sudo make suite")
    folder = Path(tempfile.mkdtemp(prefix="mgm-shared-"))
    folder.chmod(request.param)
    try:
        if other_user("print(os.access(sys.argv[1], os.W_OK))", folder) != "True":
            pytest.skip(f"another user cannot come to {folder}: set TMPDIR to a folder for all")
        yield folder
        for left in folder.glob("*.db"):
            lite_server.down(left)
    finally:
        shutil.rmtree(folder)


def rights(folder: Path) -> dict[str, int]:
    """The rights of all files and folders below a folder, by their path in it."""
    return {str(file.relative_to(folder)): stat.S_IMODE(file.lstat().st_mode) for file in folder.rglob("*")}


def make(file: Path) -> None:
    store = open_store(MilvusConfig(str(file), collection="images"))
    store.create(DESCRIPTION)
    store.close()


def test_what_lies_beside_the_data_is_for_its_owner_only(tmp_path: Path) -> None:
    own, shared = tmp_path / "own.db", tmp_path / "shared.db"
    store = open_store(MilvusConfig(str(own), collection="images"))
    store.create(DESCRIPTION)
    try:
        lite_server.up(shared, 0)
        make(shared)
        assert rights(tmp_path) == dict.fromkeys(
            ("own.db", ".own.db.lock", "shared.db", ".shared.db.lock", ".shared.db.server", "shared.db.log"), 0o600
        )
    finally:
        lite_server.down(shared)
        store.close()


def test_the_log_is_for_its_owner_only_also_when_it_begins_anew(tmp_path: Path) -> None:
    log = lite_server.open_log(tmp_path / "a.db")
    for _ in range(150):
        log.info("%s", "x" * 9_000)
    for handler in list(log.handlers):
        handler.close()
        log.removeHandler(handler)
    assert rights(tmp_path) == {"a.db.log": 0o600, "a.db.log.1": 0o600}


def test_the_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    uri = lite.start(file)
    try:
        folder = Path(uri.removeprefix("unix:")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        lite.stop(file)


def test_caches_and_uploads_are_for_their_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
    from mg_milvus.web import media
    from mg_milvus.web.media import keep_upload

    image = tmp_path / "a.png"
    kind_of_image("disc", 1).save(image)
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    with ImageIndex.open("memory:") as index:
        index.ingest(image)
        (row,) = [row for batch in index.session.store.scan() for row in batch]
        media.Thumbnails(media.default_folder(), 10_000).of(row, 240)
    session._cache("0123456789abcdef", b"an encoder")
    keep_upload(home / "new" / "uploads", "a.png", image.read_bytes(), 10_000)
    found = rights(home)
    files = [name for name in found if (home / name).is_file()]
    assert {Path(name).suffix for name in files} == {".jpg", ".safetensors", ".png"}
    assert len(files) == 3
    assert found == {name: 0o600 if name in files else 0o700 for name in found}


def test_files_that_the_user_names_and_folders_that_are_there_have_the_usual_rights(tmp_path: Path) -> None:
    kind_of_image("disc", 1).save(tmp_path / "a.png")
    write_whole(tmp_path / "encoder.safetensors", b"an encoder")
    assert mgm("schema", "init", "--out", "schema.yaml", cwd=tmp_path).returncode == 0
    assert mgm("ingest", "a.png", cwd=tmp_path).returncode == 0
    assert mgm("query", "a.png", "--html", "hits.html", cwd=tmp_path).returncode == 0
    lite_server.data_file(tmp_path / "folder")
    found = rights(tmp_path)
    assert {name: found[name] for name in ("encoder.safetensors", "schema.yaml", "hits.html", "folder", "mgm.db")} == {
        "encoder.safetensors": 0o644, "schema.yaml": 0o644, "hits.html": 0o644, "folder": 0o755, "mgm.db": 0o600,
    }  # fmt: skip


def test_rights_that_were_given_stay(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    make(file)
    file.chmod(0o664)
    lite.lock_file(file).chmod(0o660)
    make(file)
    assert rights(tmp_path) == {"a.db": 0o664, ".a.db.lock": 0o660}


def test_a_lock_file_that_others_may_only_read_is_narrowed(tmp_path: Path) -> None:
    """Milvus Lite's own package makes it so, and whoever may read it may hold it."""
    file = tmp_path / "a.db"
    lite.lock_file(file).touch(0o644)
    make(file)
    assert rights(tmp_path)[".a.db.lock"] == 0o600


REASONS = {"link": ("it is a link",), "pipe": ("No such device", "not a regular file"), "folder": ("Is a directory",)}


@pytest.mark.parametrize("kind", sorted(REASONS))
@pytest.mark.parametrize("name", [".a.db.lock", "a.db.log"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(tmp_path: Path, kind: str, name: str) -> None:
    target, put = tmp_path / "precious", tmp_path / name
    target.write_text("precious")
    if kind == "link":
        put.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(put)
    else:
        put.mkdir()
    start = time.monotonic()
    with pytest.raises(StoreError) as told:
        lite_server.up(tmp_path / "a.db", 0)
    assert time.monotonic() - start < 30
    assert str(put) in str(told.value)
    assert any(reason in str(told.value) for reason in REASONS[kind])
    assert target.read_text() == "precious"
    assert lite_server.served(tmp_path / "a.db") is None


def test_another_user_can_neither_read_what_is_kept_nor_hold_the_lock(shared: Path) -> None:
    file = shared / "a.db"
    make(file)
    lite_server.up(file, 0)
    script = """
for file in sys.argv[1:]:
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.open(file, flags)
            print(file)
        except PermissionError:
            pass
"""
    files = sorted(shared.iterdir())
    assert [each.name for each in files] == [".a.db.lock", ".a.db.server", "a.db", "a.db.log"]
    assert other_user(script, *files) == ""


HOLD = """
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
os.fchmod(lock, 0o666)
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
"""


def test_a_lock_file_of_another_user_is_refused_at_once(shared: Path) -> None:
    file = shared / "a.db"
    with staying_user(HOLD, lite.lock_file(file)) as said:
        assert said == "held"
        with pytest.raises(StoreError, match="it belongs to another user") as told:
            make(file)
        assert type(told.value) is StoreError, "it is not locked, but refused"
        done = mgm("up", "--data", file, "--port", "0", cwd=shared)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert f"{lite.lock_file(file)} cannot be written (it belongs to another user" in done.stderr
    assert not file.exists()


def test_a_log_of_another_user_is_refused(shared: Path) -> None:
    file = shared / "a.db"
    other_user("open(sys.argv[1], 'w').close(); os.chmod(sys.argv[1], 0o666)", lite_server.log_of(file))
    done = mgm("up", "--data", file, "--port", "0", cwd=shared)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"{lite_server.log_of(file)} cannot be written (it belongs to another user" in done.stderr


LINK = "os.symlink(sys.argv[1], sys.argv[2])"


@pytest.mark.parametrize("exists", [True, False])
def test_a_data_file_that_is_a_link_of_another_user_is_refused(shared: Path, tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "own.db", shared / "a.db"
    if exists:
        make(target)
    before = rights(tmp_path)
    other_user(LINK, target, link)
    with pytest.raises(StoreError, match=r"a\.db: it belongs to another user, .*, and is a link in a folder"):
        make(link)
    for command in (("info", "--uri", link), ("up", "--data", link, "--port", "0"), ("down", "--data", link)):
        done = mgm(*command, cwd=tmp_path)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), command
        assert exists is False or f"{link}: it belongs to another user" in done.stderr
    assert rights(tmp_path) == before


def test_a_folder_that_is_a_link_of_another_user_is_refused(shared: Path, tmp_path: Path) -> None:
    other_user(LINK, tmp_path, shared / "data")
    for place in ("data", "data/deeper", "data/a.db"):
        with pytest.raises(StoreError, match="it belongs to another user"):
            lite_server.data_file(shared / place)
    assert rights(tmp_path) == {}


def test_links_of_this_user_and_in_folders_of_one_user_are_followed(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target = tmp_path / "deep" / "own.db"
    (shared / "a.db").symlink_to(target)
    (tmp_path / "relative.db").symlink_to("deep/../deep/own.db")
    (tmp_path / "theirs.db").symlink_to(target)
    os.chown(tmp_path / "theirs.db", 65534, 65534, follow_symlinks=False)
    for link in (shared / "a.db", tmp_path / "relative.db", tmp_path / "theirs.db"):
        assert lite_server.data_file(link) == target.resolve()
    (tmp_path / "round.db").symlink_to("round.db")
    with pytest.raises(StoreError, match="Too many levels"):
        lite_server.data_file(tmp_path / "round.db")


FORGE = """
server = socket.create_server(("127.0.0.1", 0))
uri = f"http://127.0.0.1:{server.getsockname()[1]}"
record = {"file": sys.argv[1], "uri": uri, "pid": os.getpid(), "log": "", "since": "", "socket": ""}
held = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o666)
os.write(held, json.dumps(record).encode())
fcntl.lockf(held, fcntl.LOCK_EX)
print(uri, flush=True)
"""


def test_the_record_of_another_user_is_not_believed(shared: Path) -> None:
    file = shared / "a.db"
    make(file)
    with staying_user(FORGE, file, lite_server.record_of(file)) as uri:
        assert uri.startswith("http://127.0.0.1:")
        assert lite_server.served(file) is None
        store = open_store(MilvusConfig(str(file), collection="images"))
        assert (store.count(), "shared" in store.server()) == (0, False)
        store.close()
        done = mgm("down", "--data", file, cwd=shared)
        assert (done.returncode, done.stdout) == (0, f"{file} is not served: nothing to stop\n")
        # The one who may write to the folder replaces it.
        assert lite_server.up(file, 0)[0].uri != uri


def test_a_record_that_another_user_holds_or_may_write_is_not_believed(shared: Path) -> None:
    """Even where it is this user's file: one that a copy, or a careless chmod, opened to all."""
    file = shared / "a.db"
    record = lite_server.record_of(file)
    record.touch()
    record.chmod(0o666)
    with staying_user(FORGE, file, record):
        for mode in (0o666, 0o600):
            record.chmod(mode)
            assert lite_server.served(file) is None
    with keeper_of(file, {}) as found:
        assert found is not None
    with keeper_of(file, {}, 0o620) as found:
        assert found is None


@contextlib.contextmanager
def keeper_of(file: Path, changes: dict[str, object], mode: int = 0o600) -> Iterator[lite_server.Served | None]:
    """What is believed of a record that another process of this user's holds."""
    record: dict[str, object] = {
        "file": str(file),
        "uri": "http://127.0.0.1:19530",
        "log": "",
        "since": "",
        "socket": "",
    } | changes
    script = (
        "import fcntl, json, os, sys, time\n"
        "held = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)\n"
        "os.fchmod(held, int(sys.argv[3]))\n"
        "record = {'pid': os.getpid()} | json.loads(sys.argv[2])\n"
        "os.write(held, json.dumps(record).encode())\n"
        "fcntl.lockf(held, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", script, lite_server.record_of(file), json.dumps(record), str(mode)],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield lite_server.served(file)
        finally:
            process.kill()


@pytest.mark.parametrize(
    "changes",
    [
        {"uri": "http://127.0.0.2:19530"},
        {"uri": "http://localhost:19530"},
        {"uri": "http://169.254.169.254:80"},
        {"uri": "http://127.0.0.1:19530@example.org:80"},
        {"uri": "http://127.0.0.1:65536"},
        {"uri": "http://127.0.0.1:19530\n"},
        {"uri": 19530},
        {"uri": ["http://127.0.0.1:19530"]},
        {"file": None},
        {"log": {}},
        {"since": 0},
        {"socket": 0},
        {"file": "/elsewhere.db"},
        {"pid": True},
        {"pid": "1"},
        {"pid": 1.0},
        {"more": ""},
        {"log": "x" * 16_000},
    ],
    ids=str,
)
def test_what_a_record_says_is_checked(tmp_path: Path, changes: dict[str, object]) -> None:
    file = tmp_path / "a.db"
    with keeper_of(file, changes) as found:
        assert found is None


def test_a_record_is_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with keeper_of(file, {"log": "x" * 8_000}) as found:
        assert found is not None
        assert (found.file, found.uri, found.log) == (str(file), "http://127.0.0.1:19530", "x" * 8_000)


@pytest.mark.parametrize("content", ["[" * 15_000, "{}", "[]", "null", "\0\xff", ""])
def test_what_is_no_record_is_none(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = lite_server.record_of(tmp_path / "a.db")
    record.write_text(content)
    record.chmod(0o600)
    monkeypatch.setattr(lite_server, "_holder", lambda _: os.getpid())
    assert lite_server.served(tmp_path / "a.db") is None


def test_a_record_that_is_a_link_or_a_pipe_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite_server, "_holder", lambda _: os.getpid())
    record, elsewhere = lite_server.record_of(tmp_path / "a.db"), tmp_path / "elsewhere"
    found = {
        "file": str(tmp_path / "a.db"),
        "uri": "http://127.0.0.1:1",
        "pid": os.getpid(),
        "log": "",
        "since": "",
        "socket": "",
    }
    elsewhere.write_text(json.dumps(found))
    elsewhere.chmod(0o600)
    record.hardlink_to(elsewhere)
    assert lite_server.served(tmp_path / "a.db") is not None, "else this would prove nothing"
    record.unlink()
    record.symlink_to(elsewhere)
    assert lite_server.served(tmp_path / "a.db") is None
    record.unlink()
    os.mkfifo(record)
    assert lite_server.served(tmp_path / "a.db") is None
