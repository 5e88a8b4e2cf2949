"""Servers that are reached with TLS: a proxy that ends it before Milvus Lite over TCP, asked as users ask."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
from pymilvus import MilvusException
from typer.testing import CliRunner

from mg_milvus import errors
from mg_milvus.bulk.import_jobs import ImportApi
from mg_milvus.cli.app import app
from mg_milvus.cli.settings import settings_from
from mg_milvus.config import MilvusConfig, Tls, split_token
from mg_milvus.index import ImageIndex
from mg_milvus.store.client import translate
from tests.images import save_image
from tests.servers import free_port, lite_server
from tests.tls import make_certificates, tls_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "milvus.test"


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls") / "pems")


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Milvus without TLS that has one image."""
    folder = tmp_path_factory.mktemp("behind")
    image = save_image(folder / "a.png", 1)
    with lite_server(folder / "m.db") as server:
        with ImageIndex.open(server.uri, timeout=60) as index:
            index.ingest(image)
        yield server.uri


def count(uri: str, tls: Tls | None, timeout: float = 60) -> int:
    with ImageIndex.open(uri, tls=tls, timeout=timeout) as index:
        return index.count()


def test_a_server_whose_authority_is_given_is_reached(pems: Path, behind: str) -> None:
    with tls_proxy(pems, behind) as port:
        tls = Tls(ca_cert=str(pems / "ca.pem"), server_name=NAME)
        assert count(f"https://127.0.0.1:{port}", tls) == 1
        assert count(f"http://127.0.0.1:{port}", tls) == 1  # --secure needs no https


def test_with_a_client_certificate_and_without(pems: Path, behind: str) -> None:
    with tls_proxy(pems, behind, client_certificate=True) as port:
        own = str(pems / "client.pem"), str(pems / "client.key")
        assert count(f"https://127.0.0.1:{port}", Tls(str(pems / "ca.pem"), *own, NAME)) == 1
        with pytest.raises(errors.StoreUnavailableError, match=r"TLS failed \(.*check --ca-cert, --client-cert"):
            count(f"https://127.0.0.1:{port}", Tls(str(pems / "ca.pem"), server_name=NAME), 3)


@pytest.mark.parametrize(
    ("ca", "name", "message"),
    [
        ("other.pem", NAME, r"its certificate is not trusted \(.*\): give --ca-cert FILE"),
        (None, NAME, "its certificate is not trusted"),
        ("ca.pem", "wrong.test", "or --server-name NAME as the certificate says"),
    ],
)
def test_a_server_that_is_not_trusted_is_not_used(
    pems: Path, behind: str, ca: str | None, name: str, message: str
) -> None:
    tls = Tls(ca_cert=str(pems / ca) if ca else None, server_name=name)
    with tls_proxy(pems, behind) as port, pytest.raises(errors.StoreUnavailableError, match=message) as caught:
        count(f"https://me:hunter22@127.0.0.1:{port}", tls, 3)
    assert "\n" not in str(caught.value)
    assert "hunter22" not in str(caught.value)


class Repeats(BaseHTTPRequestHandler):
    """Says that it has no jobs, or, to who does not name a collection, repeats the token."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = {"code": 0, "data": {"records": []}} if "collectionName" in asked else {
            "code": 7, "message": f"no job\nof {self.headers['Authorization']}"
        }  # fmt: skip
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_import_jobs_are_asked_for_with_the_same_certificates(pems: Path, scheme: str) -> None:
    with HTTPServer(("127.0.0.1", 0), Repeats) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with tls_proxy(pems, f"http://127.0.0.1:{server.server_port}", client_certificate=True) as port:
                own = str(pems / "client.pem"), str(pems / "client.key")

                def api(ca: str, name: str | None) -> ImportApi:
                    return ImportApi(
                        MilvusConfig(
                            f"{scheme}://127.0.0.1:{port}", "me:hunter22", None, 30, Tls(str(pems / ca), *own, name)
                        )
                    )

                assert api("ca.pem", NAME).running("images") == []
                with pytest.raises(errors.StoreError, match=r"refused an import job \(7\): no job of Bearer \*\*\*$"):
                    api("ca.pem", NAME).job("1")
                for ca, name in (("other.pem", NAME), ("ca.pem", "wrong.test"), ("ca.pem", None)):
                    with pytest.raises(errors.UnsupportedError, match=r"failed \(.*certificate verify failed"):
                        api(ca, name).running("images")
        finally:
            server.shutdown()


def test_a_server_without_tls_says_so(behind: str) -> None:
    with pytest.raises(errors.StoreUnavailableError, match="does not speak TLS: leave --secure out"):
        count(behind, Tls(), 3)


def test_nobody_there_is_no_trouble_with_tls(pems: Path) -> None:
    with pytest.raises(errors.StoreUnavailableError, match="does not answer"):
        count(f"https://127.0.0.1:{free_port()}", Tls(str(pems / "ca.pem")), 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ca_cert": "none.pem"}, r"ca_cert '.*none.pem' cannot be read: No such file"),
        ({"ca_cert": "server.ext"}, r"ca_cert '.*server.ext' is not a certificate in PEM"),
        ({"ca_cert": "ca.pem", "client_cert": "client.pem"}, "a client certificate was given for TLS without its key"),
        ({"client_key": "client.key"}, "a client key was given for TLS without its certificate"),
        ({"client_cert": "client.pem", "client_key": "client.key"}, "without the server's authority"),
        (
            {"ca_cert": "ca.pem", "client_cert": "client.pem", "client_key": "server.key"},
            "are not a certificate and its key",
        ),
    ],
)
def test_files_that_cannot_serve_are_named(pems: Path, given: dict[str, str], message: str) -> None:
    tls = Tls(**{name: str(pems / file) for name, file in given.items()})
    with pytest.raises(errors.StoreError, match=message):
        count("https://127.0.0.1:1", tls, 2)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_takes_options_environment_and_file(
    pems: Path, behind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with tls_proxy(pems, behind) as port:
        monkeypatch.setenv("MGM_URI", f"http://me:hunter22@127.0.0.1:{port}")
        options = ("--secure", "--ca-cert", pems / "ca.pem", "--server-name", NAME, "--timeout", 60)
        told = json.loads(run("info", "--json", *options))
        assert (told["rows"], told["uri"]) == (1, f"http://127.0.0.1:{port}")
        assert settings_from().milvus().tls is None  # what one command was given is not kept for the next
        monkeypatch.setenv("MGM_SECURE", "1")
        monkeypatch.setenv("MGM_CA_CERT", str(pems / "ca.pem"))
        monkeypatch.setenv("MGM_SERVER_NAME", NAME)
        checks = json.loads(run("doctor", "--json", "--timeout", 60))["checks"]
        assert [check["ok"] for check in checks if check["name"] in {"milvus", "collection"}] == [True, True]
        assert "hunter22" not in json.dumps(checks)
        for name in ("URI", "SECURE", "CA_CERT", "SERVER_NAME"):
            monkeypatch.delenv(f"MGM_{name}")
        (tmp_path / "mgm.yaml").write_text(
            f"uri: https://me:hunter22@127.0.0.1:{port}\nca_cert: {pems / 'ca.pem'}\nserver_name: {NAME}\n"
        )
        assert "bits: 256" in run("schema", "show", "--timeout", 60)


def test_the_names_of_the_options_are_those_of_the_settings() -> None:
    help_text = CliRunner().invoke(app, ["query", "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--secure", "--ca-cert", "--client-cert", "--client-key", "--server-name"):
        assert option in help_text
        variable = "MGM_" + option.removeprefix("--").replace("-", "_").upper()
        assert f"Env: {variable}" in help_text


@pytest.mark.parametrize("repeated", ["me:hunter22", "hunter22", "bWU6aHVudGVyMjI=", "aHVudGVyMjI="])
def test_a_server_that_repeats_the_token_is_not_repeated(repeated: str) -> None:
    error = translate(
        MilvusException(1800, f"auth check failure: {repeated} is wrong"), MilvusConfig("there", "me:hunter22")
    )
    assert isinstance(error, errors.AuthenticationError)
    assert "auth check failure: *** is wrong" in str(error)


@pytest.mark.parametrize(
    ("uri", "token", "expected"),
    [
        ("http://me:pass@host:1/db", None, ("http://host:1/db", "me:pass")),
        ("http://me:p%40ss@host:1", None, ("http://host:1", "me:p@ss")),
        ("http://me:p/w@r#d?@host:1", None, ("http://host:1", "me:p/w@r#d?")),
        ("http://me:pass@host:1", "an-api-key", ("http://host:1", "an-api-key")),
        ("http://key@[::1]:1", None, ("http://[::1]:1", "key")),
        ("http://@host:1", None, ("http://host:1", None)),
        ("http://host:1", "t", ("http://host:1", "t")),
        ("who@me.db", None, ("who@me.db", None)),
    ],
)
def test_the_token_is_taken_out_of_the_uri(uri: str, token: str | None, expected: tuple[str, str | None]) -> None:
    assert split_token(uri, token) == expected
