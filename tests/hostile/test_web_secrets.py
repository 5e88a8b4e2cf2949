"""What the web page must not tell: tokens and sessions, in its answers, its log, its measures and its tracebacks."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from tests.waiting import PATIENCE

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient

from mg_milvus.index import ImageIndex
from mg_milvus.web.app import create_app
from mg_milvus.web.security import WebSettings
from tests.hostile.web_servers import TOKEN, mgm_serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MILVUS_TOKEN = "root:Xq81-mW02_zzP94r"
SITE = "http://photos.example"


def answers_of(client: TestClient) -> str:
    """Everything that an answer holds, of many requests; the cookie that begins a session apart."""
    said = []
    for path in (
        "/", "/docs", "/duplicates", "/metrics", "/health", "/api/info", "/api/openapi.json", "/api/sample", "/nowhere",
        "/api/images/" + "0" * 32, "/api/query", "/api/ingest", "/api/ingest/events", "/?id=x", "/static/main.js",
    ):  # fmt: skip
        for method in ("GET", "POST", "DELETE", "OPTIONS", "TRACE", "HEAD"):
            answer = client.request(method, path)
            said.append(f"{method} {path} {answer.status_code} {answer.headers} {answer.text}")
    return "\n".join(said)


def test_no_answer_holds_a_token_or_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGM_TOKEN", MILVUS_TOKEN)
    with (
        ImageIndex.open("memory:", token=MILVUS_TOKEN) as index,
        TestClient(create_app(index, WebSettings(token=TOKEN)), base_url=SITE) as client,
    ):
        client.post("/sign-in", data={"token": TOKEN})
        session = next(iter(client.cookies.values()))
        said = answers_of(client)
        client.cookies.clear()
        said += answers_of(client)
    assert "200" in said
    for secret in (TOKEN, MILVUS_TOKEN, MILVUS_TOKEN.partition(":")[2], session):
        assert secret not in said


def test_an_unexpected_error_says_nothing_of_itself(
    labelled_index: ImageIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"password={MILVUS_TOKEN}")

    for method in ("info", "ingest", "duplicates"):
        monkeypatch.setattr(ImageIndex, method, broken)
    app = create_app(labelled_index, WebSettings(ingest_folders=(tmp_path,)))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # the log, which is not the visitor's
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        said = [client.get("/api/info").text, client.get("/api/duplicates").text]
        assert client.post("/api/ingest", json={"folder": str(tmp_path)}).status_code == 202
        said.append(client.get("/api/ingest/events").text)
        said.append(client.get("/api/ingest").text)
    for text in said:
        assert "unexpected RuntimeError: a bug in mg-milvus" in text
        assert MILVUS_TOKEN not in text


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    try:
        return answer.status, str(answer.headers), answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


@pytest.mark.parametrize("debug", ["", "1"])
def test_what_the_server_writes_holds_no_token_and_no_session(tmp_path: Path, debug: str) -> None:
    """Also uvicorn's own log, of requests that carry the token in their address and of those that fail."""
    secrets = {"MGM_WEB_TOKEN": TOKEN, "MGM_TOKEN": MILVUS_TOKEN, "MGM_DEBUG": debug}
    with mgm_serve(tmp_path, "--upload-to", "uploads", **secrets) as served:
        status, headers, _ = ask(served.port, "GET", f"/?token={TOKEN}")
        assert status == 303
        session = re.search(r"mgm_session_\d+=([\w-]+)", headers)[1]
        cookie = f"mgm_session_{served.port}={session}"
        (tmp_path / "uploads").write_text("in the way")  # an upload cannot be kept: an error inside
        for method, path in (
            ("GET", f"/?token={TOKEN}&token={TOKEN}"), ("GET", f"/docs?token={TOKEN}"),
            ("GET", f"/api/info?token={TOKEN}"), ("GET", f"/api/sample?filter={TOKEN}"),
            ("POST", f"/api/query?crop={TOKEN}"), ("GET", f"/{TOKEN}"),
            ("POST", "/api/uploads?name=a.jpg"), ("POST", "/api/ingest"), (TOKEN, "/"), ("GET", "/metrics"),
        ):  # fmt: skip
            ask(served.port, method, path, b"GIF89a", cookie=cookie)
            ask(
                served.port,
                method,
                path,
                b"{",
                authorization=f"Bearer {TOKEN}",
                upgrade="websocket",
                connection="upgrade",
            )
        _, _, metrics = ask(served.port, "GET", "/metrics", cookie=cookie)
        out, errors = served.end()
    everything = served.line + out + errors + metrics
    for secret in (TOKEN, MILVUS_TOKEN, session):
        assert secret not in everything, everything


def test_the_token_of_the_command_line_goes_to_a_terminal_only(tmp_path: Path) -> None:
    """What goes elsewhere is kept: a service's output is a log."""
    with mgm_serve(tmp_path, "--token", TOKEN) as served:
        assert TOKEN not in served.line
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mg_milvus", "serve", "--uri", "index.db", "--port", "0", "--token", TOKEN],
        cwd=tmp_path, stdout=end, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        os.close(end)
        assert f"/?token={TOKEN}" in os.read(terminal, 1000).decode()
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_the_documentation_of_the_api_holds_no_setting_of_the_server(tmp_path: Path) -> None:
    settings = WebSettings(token=TOKEN, ingest_folders=(tmp_path,), upload_folder=tmp_path / "uploads")
    with ImageIndex.open("memory:") as index:
        described = json.dumps(create_app(index, settings).openapi())
    assert TOKEN not in described
    assert str(tmp_path) not in described


def test_a_page_for_those_without_the_token_tells_nothing_of_the_index(
    labelled_index: ImageIndex, tmp_path: Path
) -> None:
    settings = WebSettings(token=TOKEN, ingest_folders=(tmp_path,))
    with TestClient(create_app(labelled_index, settings), base_url=SITE) as client:
        for path in ("/", "/docs", "/duplicates", "/metrics", "/api/info", "/api/openapi.json", "/nowhere"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert str(tmp_path) not in answer.text
            assert "images" not in answer.text.lower()


EVERY_ANSWER = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "geolocation=(), microphone=(), payment=()",
}


@pytest.mark.parametrize(
    "asked",
    [
        lambda client: client.get("/"),
        lambda client: client.get(f"/?token={TOKEN}"),
        lambda client: client.get("/?token=wrong"),
        lambda client: client.post("/sign-in", data={"token": TOKEN}),
        lambda client: client.post("/sign-in", data={"token": "wrong"}),
        lambda client: client.post("/sign-out"),
        lambda client: client.get("/static/main.js"),
        lambda client: client.post("/api/ingest", content=b"x" * 2_000_001),
        lambda client: client.request("NONSENSE", "/"),
        lambda client: [client.get("/api/info", headers={"authorization": "Bearer wrong"}) for _ in range(9)][-1],
    ],
)
def test_every_answer_carries_the_headers(asked: Callable[[TestClient], object]) -> None:
    with ImageIndex.open("memory:") as index:
        client = TestClient(create_app(index, WebSettings(token=TOKEN)), base_url=SITE, follow_redirects=False)
        headers = asked(client).headers
    assert {name: headers.get(name) for name in EVERY_ANSWER} == EVERY_ANSWER
    assert headers["referrer-policy"] in {"same-origin", "no-referrer"}
    assert headers["cache-control"] in {"no-store", "no-cache"}
    assert "server" not in headers
