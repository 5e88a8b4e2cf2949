"""Who may use what ``mgm up`` serves: its user's programs, others with the token, strangers not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from pymilvus import DataType, MilvusClient, MilvusException
from typer.testing import CliRunner

from mg_milvus.cli.app import app
from mg_milvus.config import MilvusConfig
from mg_milvus.errors import AuthenticationError
from mg_milvus.schema.models import Granularity, Schema
from mg_milvus.store import lite_server
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import open_store
from tests.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mg_milvus.store.lite_server import Server

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no Milvus Lite for Windows")
MGM = Path(sysconfig.get_path("scripts")) / "mgm"
NOBODY = 65534
COUNT = 20
NAME = "images"
DESCRIPTION = Description(Schema(granularities=(Granularity(name="coarse", bits=16),)), "0123456789abcdef")


def rows(start: int, count: int) -> list[Row]:
    return [
        Row(f"{n:032x}", f"/{n}.jpg", n, n, 1, 1, "", {"coarse": n.to_bytes(2)}) for n in range(start, start + count)
    ]


def mgm(*arguments: str | Path) -> str:
    """What a command prints, on both outputs."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments]).output


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every user can enter, the home of this test; its path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="mgm-token-"))
    folder.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.delenv("MGM_TOKEN", raising=False)
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[Server]:
    """A server with a collection of ``COUNT`` rows."""
    file = place / "photos.db"
    found, _ = lite_server.up(file, 0)
    try:
        with contextlib.closing(open_store(MilvusConfig(str(file), collection=NAME))) as store:
            store.create(DESCRIPTION)
            store.upsert(rows(0, COUNT))
        yield found
    finally:
        lite_server.down(file)


@pytest.fixture(scope="module")
def token(running: Server) -> str:
    found = lite_server.token_of(running)
    assert len(found) >= 43  # 32 bytes
    return found


def count(running: Server) -> int:
    with contextlib.closing(open_store(MilvusConfig(running.file, collection=NAME))) as store:
        return store.count()


def entry_of(running: Server) -> Path:
    (found,) = (Path.home() / ".local/state/mg-milvus").glob(f"*-{running.uri.rpartition(':')[2]}.json")
    return found


@pytest.mark.parametrize("guess", ["", "wrong", "root:Milvus", "ü", "nearly"])
def test_without_the_token_nothing_is_read_or_changed(running: Server, token: str, guess: str) -> None:
    sent = token[:-1] + ("A" if token[-1] != "A" else "B") if guess == "nearly" else guess
    with pytest.raises(MilvusException):  # it cannot even connect
        MilvusClient(running.uri, token=sent, timeout=5)
    with pytest.raises(AuthenticationError, match=r"refused the token .* its user sees with mgm up --status"):
        open_store(MilvusConfig(running.uri, collection=NAME, token=sent or "stranger"))
    assert count(running) == COUNT


@pytest.mark.parametrize("method", ["ShowCollections", "Search", "Query", "Insert", "Delete", "DropCollection", "Xyz"])
@pytest.mark.parametrize("metadata", [(), (("authorization", "wrong"),), (("authorization", ""),), (("token", "x"),)])
def test_every_call_is_asked_for_it(running: Server, method: str, metadata: tuple[tuple[str, str], ...]) -> None:
    """Not only the one that pymilvus begins with; and none says what there is."""
    with grpc.insecure_channel(running.uri.removeprefix("http://")) as channel:
        call = channel.unary_unary(f"/milvus.proto.milvus.MilvusService/{method}")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=metadata, timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert running.file not in str(refused.value.details())


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_what_strangers_send_is_not_kept_in_memory(running: Server) -> None:
    def most() -> int:
        lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    before, body = most(), bytes(64_000_000)
    with grpc.insecure_channel(
        running.uri.removeprefix("http://"), options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        call = channel.unary_unary("/milvus.proto.milvus.MilvusService/Insert")
        for _ in range(4):
            with pytest.raises(grpc.RpcError) as refused:
                call(body, timeout=PATIENCE)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert most() - before < 40_000


def test_many_calls_of_strangers_keep_nobody_else_out(running: Server, token: str) -> None:
    with grpc.insecure_channel(running.uri.removeprefix("http://")) as channel:
        call = channel.unary_unary("/milvus.proto.milvus.MilvusService/Search")
        refused = [call.future(b"", timeout=PATIENCE) for _ in range(600)]
        assert count(running) == COUNT  # in the midst of them
        assert {each.exception().code() for each in refused} <= {
            grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED,
        }  # fmt: skip
    with contextlib.closing(open_store(MilvusConfig(running.uri, collection=NAME, token=token))) as store:
        assert store.count() == COUNT


def test_with_the_token_other_programs_can_do_everything(running: Server, token: str) -> None:
    client = MilvusClient(running.uri, token=token, dedicated=True)  # no time limit, as most programs have none
    with contextlib.closing(client):
        assert NAME in client.list_collections()
        schema = client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=16)
        schema.add_field("text", DataType.VARCHAR, max_length=60_000)
        index = client.prepare_index_params("code", index_type="BIN_FLAT", metric_type="HAMMING")
        client.create_collection("other", schema=schema, index_params=index)
        # More than the four megabytes that gRPC takes by itself, there and back.
        assert client.upsert("other", [{"id": n, "code": bytes([0, n]), "text": "x" * 50_000} for n in range(120)])
        (hits,) = client.search("other", [bytes([0, 1])], limit=3, anns_field="code", output_fields=["text"])
        assert (hits[0]["id"], hits[0]["distance"]) == (1, 0)
        assert sum(len(row["text"]) for row in client.query("other", "id >= 0", output_fields=["text"])) == 6_000_000
        with pytest.raises(MilvusException, match="collection not found"):  # the engine's own words
            client.query("nowhere", "id >= 0")
        client.drop_collection("other")
    with contextlib.closing(open_store(MilvusConfig(running.uri, collection=NAME, token=token))) as store:
        assert store.count() == COUNT


def test_calls_of_several_threads_and_of_one_that_gives_up(running: Server, token: str) -> None:
    client = MilvusClient(running.uri, token=token, dedicated=True)

    def ask(number: int) -> int:
        (hits,) = client.search(NAME, [number.to_bytes(2)], limit=1, anns_field="coarse")
        return int(hits[0]["distance"])

    with contextlib.closing(client), ThreadPoolExecutor(8) as pool:
        with pytest.raises((MilvusException, grpc.RpcError)):
            client.query(NAME, "pk >= ''", timeout=1e-6)
        assert list(pool.map(ask, range(COUNT))) == [0] * COUNT


def test_programs_of_its_user_need_no_token(running: Server) -> None:
    """By the file's name and by the URI, two at once; none of them goes by the port."""
    commands = [[MGM, "info", "--uri", where, "--json"] for where in (running.file, running.uri)]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    told = [json.loads(program.communicate(timeout=PATIENCE)[0]) for program in programs]
    assert [each["rows"] for each in told] == [COUNT, COUNT]
    port = running.uri.rpartition(":")[2]
    for uri in (running.uri, f"http://localhost:{port}", f"tcp://127.0.0.1:{port}", f"{running.uri}/"):
        assert lite_server.server_at(uri) == running
    for uri in (f"https://127.0.0.1:{port}", f"http://127.0.0.2:{port}", f"http://example.org:{port}",
                "http://127.0.0.1:1", "http://127.0.0.1", f"http://[::1]:{port}"):  # fmt: skip
        assert lite_server.server_at(uri) is None


def test_its_user_is_told_the_token_when_asked_and_only_then(running: Server, token: str) -> None:
    by_file = ("--data", running.file)
    assert mgm("up", *by_file, "--status", "--show-token") == token + "\n"
    assert mgm("up", *by_file, "--show-token") == token + "\n"
    assert "the JSON does not contain the token" in mgm("up", *by_file, "--show-token", "--json")
    printed = [
        mgm("up", *by_file), mgm("up", *by_file, "--json"), mgm("up", *by_file, "--status"),
        mgm("up", *by_file, "--status", "--json"), mgm("info", "--uri", running.uri, "--json"),
        mgm("info", "--uri", running.uri), mgm("doctor", "--uri", running.uri),
        mgm("info", "--uri", running.uri, "--token", token), mgm("info", "--uri", running.uri, "--token", "x" + token),
        lite_server.log_of(Path(running.file)).read_text(), lite_server.record_of(Path(running.file)).read_text(),
    ]  # fmt: skip
    assert all(printed)
    assert not [text for text in printed if token in text]
    assert "mgm up --status --show-token" in printed[0]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_no_list_of_processes_holds_it(running: Server, token: str) -> None:
    seen = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line, environment = (process / "cmdline").read_bytes(), b""
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes()
            seen += running.file.encode() in line
            assert token.encode() not in line + environment
    assert seen >= 2  # the engine, and the process before it


def test_what_is_kept_is_for_its_user_only(running: Server, token: str) -> None:
    entry = entry_of(running)
    assert json.loads(entry.read_text()) == {"file": running.file, "token": token}
    for path, mode in ((entry, 0o600), (lite_server.record_of(Path(running.file)), 0o600), (entry.parent, 0o700),
                       (Path(running.socket).resolve().parent, 0o700)):  # fmt: skip
        facts = path.stat()
        assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (mode, os.getuid()), path


STRANGER = """
import os, socket, sys
from pathlib import Path
from mg_milvus.errors import MgMilvusError
from mg_milvus.config import MilvusConfig
from mg_milvus.store import milvus, lite_server
from mg_milvus.store.milvus import open_store

uri, path, target, *files = sys.argv[1:]
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
for place in (path, target):
    try:
        socket.socket(socket.AF_UNIX).connect(place)
        print("connected to", place)
    except PermissionError:
        pass
for file in files:
    try:
        print("read", file, Path(file).read_bytes())
    except PermissionError:
        pass
print(lite_server.server_at(uri))
try:
    print("rows", open_store(MilvusConfig(uri)).count())
except MgMilvusError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to act as another user: sudo make suite"
)
def test_another_user_gets_neither_through_the_socket_nor_through_the_port(running: Server) -> None:
    files = [entry_of(running), lite_server.record_of(Path(running.file))]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER.format(nobody=NOBODY), running.uri, running.socket,
         str(Path(running.socket).resolve()), *map(str, files)],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("None\nAuthenticationError\n", 0), done.stderr
    assert count(running) == COUNT


def test_clients_find_a_server_again_that_comes_back_with_another_token(place: Path) -> None:
    file = place / "again.db"
    first, _ = lite_server.up(file, 0)
    try:
        token = lite_server.token_of(first)
        stores = [
            open_store(MilvusConfig(where, collection=NAME, timeout=PATIENCE)) for where in (first.uri, str(file))
        ]
        stores[0].create(DESCRIPTION)
        stores[0].upsert(rows(0, 5))
        os.kill(first.pid, 9)
        wait_until(lambda: lite_server.server_of(file) is None, "nobody serves the file")
        assert lite_server.server_at(first.uri) is None  # what it left is no server
        second, _ = lite_server.up(file, int(first.uri.rpartition(":")[2]))
        assert lite_server.token_of(second) != token
        assert [store.count() for store in stores] == [5, 5]
        for store in stores:
            store.close()
        left = entry_of(second)
        lite_server.down(file)
        assert not left.exists()
    finally:
        lite_server.down(file)


def test_what_a_server_left_is_removed_by_the_next(place: Path, running: Server) -> None:
    entry = entry_of(running)
    left = entry.with_name(entry.name.replace(running.uri.rpartition(":")[2], "1"))
    for text in ("", "[]", "{}", '{"file": 1', json.dumps({"file": str(place / "gone.db"), "token": "x"}), "[" * 9000,
                 json.dumps({"file": running.file, "token": "another port's"})):  # fmt: skip
        left.write_text(text)
        assert lite_server.server_at("http://127.0.0.1:1") is None
    left.with_suffix(".sock").symlink_to("/nowhere")
    lite_server.up(place / "next.db", 0)
    lite_server.down(place / "next.db")
    assert not left.exists()
    assert not left.with_suffix(".sock").is_symlink()
    assert lite_server.server_at(running.uri) == running


def test_a_folder_that_others_can_enter_is_not_believed(running: Server, place: Path) -> None:
    folder = entry_of(running).parent
    for mode in (0o777, 0o750, 0o701):
        folder.chmod(mode)
        try:
            assert lite_server.server_at(running.uri) is None
        finally:
            folder.chmod(0o700)
    assert lite_server.server_at(running.uri) == running
    if os.getuid() == 0:
        os.chown(place, NOBODY, NOBODY)  # a home of another's, as sudo leaves it: nothing is made there
        try:
            assert lite_server.server_at(running.uri) is None
        finally:
            os.chown(place, 0, 0)


def test_a_home_with_a_long_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link in it cannot be connected to; the socket itself can."""
    home = place / ("x" * 90)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    running, _ = lite_server.up(home / "far.db", 0)
    try:
        for where in (running.uri, running.file):
            with contextlib.closing(open_store(MilvusConfig(where, collection=NAME))) as store:
                assert "Milvus Lite" in store.server()
    finally:
        lite_server.down(home / "far.db")
