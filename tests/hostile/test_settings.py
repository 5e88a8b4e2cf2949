"""A ``mgm.yaml`` that somebody left in the folder: it gets no secret, vouches for no server, and is said once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import typer

from mg_milvus import errors
from mg_milvus.cli.app import run
from mg_milvus.cli.settings import NAMES, local_settings, settings_from
from mg_milvus.config import Tls
from tests.servers import free_port
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "who:hunter22secret"
EVIL = "http://evil.test:19530"


@pytest.fixture(autouse=True)
def _clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv("MGM_" + name.upper(), raising=False)


def write(folder: Path, text: str) -> Path:
    file = folder / "mgm.yaml"
    file.write_text(text)
    file.chmod(0o644)
    return file


@contextmanager
def listener() -> Iterator[socket.socket]:
    """Takes connections; ``accept`` raises BlockingIOError where there was none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def told(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["mgm", *arguments])
    code = run()
    printed = capfd.readouterr()
    return code, printed.out, printed.err


WITH_TOKEN = (
    ["info"], ["doctor", "--json"], ["ingest", "."], ["query", "a.jpg"], ["load", "codes", "--bucket", "s3://a/b"],
    ["export", "out"], ["duplicates"], ["delete", "x"], ["tune", "."],
)  # fmt: skip
"""Commands whose --token is that of the Milvus server."""


@pytest.mark.parametrize(
    ("command", "way"),
    [
        *((command, way) for way in ("variable", "option") for command in WITH_TOKEN),
        (["serve", "--port", "0"], "variable"),  # its --token is the page's
        (["schema", "show"], "variable"),
        (["schema", "show"], "option"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_no_command_sends_a_token_to_the_server_that_a_file_in_the_folder_chose(
    command: list[str], way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with listener() as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        write(tmp_path, f"uri: {uri}\n")
        if way == "variable":
            monkeypatch.setenv("MGM_TOKEN", TOKEN)
        option = ["--token", TOKEN] if way == "option" else []
        code, _, text = told([*command, *option], monkeypatch, capfd)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert code == 2
    flat = " ".join(text.replace("│", " ").split())
    assert "hunter22" not in flat
    joined = flat.replace(" ", "")  # a long path or URI is broken where the box ends
    assert "mgm.yaml" in joined
    assert uri in joined
    assert "--token" in flat if way == "option" else "MGM_TOKEN" in flat


def refusal() -> str:
    with pytest.raises(typer.BadParameter) as caught:
        settings_from()
    message = str(caught.value)
    assert "\n" not in message
    assert "hunter22" not in message
    return message


@pytest.mark.parametrize("name", ["token", "client_cert", "client_key"])
def test_every_secret_of_the_environment_is_kept_from_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, f"uri: {EVIL}\n")
    monkeypatch.setenv(f"MGM_{name.upper()}", "hunter22.pem")
    assert refusal() == (
        f"{tmp_path}/mgm.yaml chose the uri of the server {EVIL}, and MGM_{name.upper()} would be sent there: give "
        "--uri yourself, or the variable MGM_URI, if that server is yours; otherwise leave the secret out, or remove "
        "the file"
    )
    monkeypatch.setenv("MGM_URI", EVIL)
    assert settings_from().uri == EVIL  # the owner said so


@pytest.mark.parametrize("key", ["ca_cert", "server_name"])
@pytest.mark.parametrize("inside", [True, False])
def test_it_vouches_for_no_server_that_gets_secrets(
    key: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an authority or a name of its own, somebody on the way would pass for the server."""
    write(tmp_path, f"{key}: evil\n")
    monkeypatch.setenv("MGM_URI", "https://who:hunter22@mine.test" if inside else "https://mine.test")
    if not inside:
        assert settings_from().milvus().tls == Tls(**{key: "evil"})  # no secret, and it is said
        monkeypatch.setenv("MGM_TOKEN", TOKEN)
    assert f"chose the {key} of the server https://mine.test, and " in refusal()
    monkeypatch.setenv(f"MGM_{key.upper()}", "good")
    assert settings_from().milvus().tls == Tls(**{key: "good"})


def test_all_that_it_chose_is_in_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, f"uri: {EVIL}\nca_cert: ca.pem\n")
    monkeypatch.setenv("MGM_TOKEN", TOKEN)
    assert "give --uri and --ca-cert yourself, or the variable MGM_URI and MGM_CA_CERT" in refusal()


def test_its_own_token_goes_to_its_own_server_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "uri: https://own.test\ntoken: me:hunter22\nca_cert: own.pem\nclient_cert: c\nclient_key: k\n")
    settings = settings_from()
    assert (settings.uri, settings.token) == ("https://own.test", "me:hunter22")
    assert settings.milvus().tls == Tls("own.pem", "c", "k")
    assert settings_from(uri="https://own.test").token == "me:hunter22"  # the same server
    capfd.readouterr()
    for other in ("https://other.test", "http://own.test", "https://own.test.evil"):
        settings = settings_from(uri=other)
        assert (settings.uri, settings.token, settings.milvus().tls) == (other, None, None)
        assert capfd.readouterr().err == (
            f"mgm: settings from {tmp_path}/mgm.yaml: nothing; ignored, because this is another server: "
            "token, ca_cert, client_cert, client_key\n"
        )
    monkeypatch.setenv("MGM_URI", "https://other.test")
    monkeypatch.setenv("MGM_TOKEN", TOKEN)
    assert settings_from().token == TOKEN


def test_a_password_in_a_uri_belongs_to_that_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "uri: http://me:hunter22@own.test\n")
    assert (settings_from().uri, settings_from().token) == ("http://own.test", "me:hunter22")
    assert settings_from(uri="http://other.test").token is None
    monkeypatch.setenv("MGM_TOKEN", TOKEN)
    assert "MGM_TOKEN would be sent there" in refusal()
    monkeypatch.delenv("MGM_TOKEN")
    write(tmp_path, "token: of:thefile\n")
    monkeypatch.setenv("MGM_URI", "http://me:hunter22@mine.test")
    assert settings_from().token == "me:hunter22"  # the file's would sign in as somebody else


def test_a_data_file_of_this_machine_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "uri: photos.db\n")
    monkeypatch.setenv("MGM_TOKEN", TOKEN)
    assert settings_from().uri == "photos.db"


def test_commands_that_reach_no_server_neither_refuse_nor_hold_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, f"uri: {EVIL}\nencoder: builtin\nbatch_size: 8\n")
    monkeypatch.setenv("MGM_TOKEN", TOKEN)
    monkeypatch.setenv("MGM_CLIENT_KEY", "k")
    settings = local_settings(batch_size=4)
    assert (settings.token, settings.milvus().tls, settings.encoder, settings.batch_size) == (None, None, "builtin", 4)


@pytest.mark.parametrize("flags", [[], ["--log-json"]])
def test_a_file_that_is_used_is_said_once(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "uri: own.db\ncollection: holidays\ntoken: me:hunter22\n")
    _, out, err = told(["doctor", "--json", *flags], monkeypatch, capfd)
    assert "checks" in json.loads(out)
    said = f"settings from {tmp_path}/mgm.yaml: uri, token, collection (uri: own.db)"
    if flags:
        events = [json.loads(line) for line in err.splitlines()]
        assert [event["message"] for event in events if event["event"] == "settings"] == [said]
    else:
        assert err.splitlines().count(f"mgm: {said}") == 1
        assert err.count("mgm.yaml") == 1
    assert "hunter22" not in out + err


def test_a_file_of_which_nothing_is_used_is_not_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "collection: holidays\n")
    settings_from(collection="other")
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(os.name != "posix", reason="modes and owners of POSIX")
@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_file_that_others_can_write_is_refused(mode: int, tmp_path: Path) -> None:
    file = write(tmp_path, "collection: holidays\n")
    file.chmod(mode)
    assert f"mgm.yaml can be written by others (mode {mode:o})" in refusal()
    with pytest.raises(typer.BadParameter, match="chmod go-w mgm"):
        local_settings()
    file.chmod(0o644)
    assert settings_from().collection == "holidays"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to act as another user")
@pytest.mark.parametrize("link", [False, True])
def test_a_file_of_another_user_is_refused_and_so_is_the_link_of_one(link: bool, tmp_path: Path) -> None:
    file = write(tmp_path, "collection: holidays\n")
    if link:
        file.rename(tmp_path / "mine.yaml")
        file.symlink_to("mine.yaml")
        assert settings_from().collection == "holidays"
    os.chown(file, 12345, 12345, follow_symlinks=False)
    assert "mgm.yaml belongs to user id 12345, expected yours (0) or root" in refusal()


@pytest.mark.parametrize("key", ["ca_cert", "client_cert", "client_key"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "private"])
def test_the_files_that_it_names_are_neither_waited_for_nor_shown(key: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "named"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("hunter22\n")
    (tmp_path / "ok.pem").write_text("")
    named = {"ca_cert": "ok.pem", "client_cert": "ok.pem", "client_key": "ok.pem"} | {key: str(path)}
    with pytest.raises(errors.StoreError) as caught:
        Tls(**named).check()
    assert "hunter22" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_env_file_in_the_folder_sets_nothing(tmp_path: Path) -> None:
    """pymilvus loads one: with it, everything would go through a proxy of somebody else's."""
    (tmp_path / ".env").write_text("grpc_proxy=http://evil.test:1\n")
    program = (
        "import os, sys\n"
        f"sys.argv = ['mgm', 'info', '--timeout', '0.2', '--uri', 'http://127.0.0.1:{free_port()}']\n"
        "from mg_milvus.cli.app import run\n"
        "assert run() == 1 and 'pymilvus' in sys.modules\n"
        "print(os.environ.get('grpc_proxy'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if "DOTENV" not in name and "MGM" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout == "None\n", done.stderr
