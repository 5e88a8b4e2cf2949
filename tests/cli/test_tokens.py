"""Tokens are shown nowhere: by no command, however they are given, whatever the server does with them."""

from __future__ import annotations

import base64
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from mg_milvus.bulk.encode import encode
from mg_milvus.cli.app import app, run
from mg_milvus.index import ImageIndex
from tests.conftest import make_photos
from tests.in_process import mgm
from tests.servers import free_port, refusing_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mg_milvus.config import MilvusConfig

PASSWORD = "hunter22secret"
TOKEN = f"who:{PASSWORD}"
NEVER = (PASSWORD, *(base64.b64encode(text.encode()).decode() for text in (TOKEN, PASSWORD)))
WAYS = ("option", "variable", "uri", "file")

ARGUMENTS = {
    "ingest": ["photos"],
    "query": ["photos/disc/00.jpg"],
    "delete": ["photos/disc/00.jpg"],
    "tag": ["photos/disc/00.jpg", "--add", "beach"],
    "refit": ["--to", "other"],
    "facets": ["kind"],
    "eval": ["photos", "--through-index"],
    "tune": ["photos"],
    "serve": ["--port", "0"],
    "load": ["codes"],
    "export": ["out"],
    "schema diff": ["schema.yaml"],
    "relocate": ["photos/disc", "photos/stripes"],
}
"""What a command needs besides the server to get as far as asking it."""


def commands(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """The commands that reach a server, with the names of their parameters."""
    for name, command in group.commands.items():
        names = {parameter.name for parameter in command.params}
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        elif names & {"uri", "token"}:
            yield " ".join((*before, name)), names


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_commands_are_found() -> None:
    assert {"ingest", "info", "schema show", "serve"} <= COMMANDS.keys()
    assert ARGUMENTS.keys() <= COMMANDS.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    encode(make_photos(folder / "photos", 4), out=folder / "codes", encoder="builtin")
    (folder / "schema.yaml").write_text("collection: images\n")
    return folder


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """Where nobody answers, and who refuses every token."""
    with refusing_server() as refusing:
        yield f"http://127.0.0.1:{free_port()}", refusing


def told(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and all that it prints."""
    monkeypatch.setattr(sys, "argv", ["mgm", *arguments])
    with warnings.catch_warnings():
        code = run()
    return code, "".join(capfd.readouterr())


def given(way: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for a server, after the token was given in a way."""
    monkeypatch.delenv("MGM_TOKEN", raising=False)
    Path("mgm.yaml").unlink(missing_ok=True)
    if way == "variable":
        monkeypatch.setenv("MGM_TOKEN", TOKEN)
    if way == "file":
        Path("mgm.yaml").write_text(f"token: {TOKEN}\n")
    place = uri.replace("://", f"://{TOKEN}@") if way == "uri" else uri
    return ["--uri", place, *(["--token", TOKEN] if way == "option" else [])]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_shows_the_token(
    command: str, way: str, folder: Path, servers: tuple[str, str], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    answers = (("does not answer", "0.2"), ("refused the token", "20"))  # the first is waited for
    for number, (uri, (expected, seconds)) in enumerate(zip(servers, answers, strict=True)):
        timeout = ["--timeout", seconds] if "timeout" in COMMANDS[command] else []
        as_log = (number + WAYS.index(way)) % 2 == 1
        monkeypatch.setenv("MGM_DEBUG", str(int(as_log)))
        options = [*given(way, uri, monkeypatch), *timeout, *(["--log-json"] if as_log else [])]
        code, text = told([*command.split(), *ARGUMENTS.get(command, []), *options], monkeypatch, capfd)
        assert (code, expected in text) == (1, True), text
        assert uri in text
        if number == 1 and (command, way) != ("serve", "option"):  # that one is the page's
            assert "user and password: ***, ***" in text
        assert not [secret for secret in NEVER if secret in text], text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("debug", "flags"), [("0", []), ("1", []), ("0", ["--log-json"]), ("1", ["--log-json"])])
def test_no_report_of_a_bug_shows_the_token(
    debug: str, flags: list[str], way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(config: MilvusConfig, *_: object) -> None:
        assert config.token == TOKEN
        raise RuntimeError(f"{config.uri} was not made for {config.token!r}, {' or '.join(NEVER)}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ImageIndex, "from_config", fail)
    monkeypatch.setenv("MGM_DEBUG", debug)
    code, text = told(["info", *given(way, "http://there", monkeypatch), *flags], monkeypatch, capfd)
    assert code == 1
    assert "http://there was not made for '***', *** or *** or ***" in text
    assert ("Traceback" in text) == (debug == "1")
    assert not [secret for secret in NEVER if secret in text]


def command_lines(word: str) -> list[str]:
    """Those of this machine's processes that hold a word."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if word in line:
            found.append(line)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_no_process_is_started_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of processes is for every user of the machine."""
    monkeypatch.setenv("MGM_TOKEN", TOKEN)
    (tmp_path / "mgm.yaml").write_text(f"token: {TOKEN}\n")
    with ImageIndex.open(tmp_path / "own.db", token=TOKEN) as index:
        assert not index.exists
        index.ingest(make_photos(tmp_path / "photos", 1))
        engine = command_lines(str(tmp_path / "own.db"))
    up = ("--data", tmp_path / "shared.db")
    assert mgm("up", *up, "--port", 0, cwd=tmp_path).returncode == 0
    try:
        served = command_lines(str(tmp_path / "shared.db"))
    finally:
        assert mgm("down", *up, cwd=tmp_path).returncode == 0
    assert (len(engine), len(served)) == (1, 2)
    assert not [line for line in (*engine, *served) if any(secret in line for secret in NEVER)]
