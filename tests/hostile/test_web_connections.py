"""Connections that are opened and not used: they are closed, and keep nobody else from being answered."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("uvicorn", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from mg_milvus.web import app
from mg_milvus.web.security import WebSettings
from tests.conftest import kind_of_image
from tests.hostile.web_servers import in_thread, mgm_serve
from tests.images import encoded
from tests.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

"""Seconds that a loaded machine gets for what takes one."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules, ten times as fast."""
    monkeypatch.setattr(app, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(app, "STALL_SECONDS", 2.0)
    monkeypatch.setattr(app, "CHECK_SECONDS", 0.1)


def connect(port: int, said: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    with suppress(ConnectionError):  # it may be closed already
        made.sendall(said)
    return made


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends the connection, in the time that the test has."""
    with suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return True


def healthy(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=PATIENCE) as answer:
        return answer.status == 200


def closed_because(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        text = answer.read().decode()
    lines = [line for line in text.splitlines() if line.startswith("mgm_connections_closed_total{")]
    return {line.split('"')[1]: int(float(line.rsplit(" ", 1)[1])) for line in lines}


def test_three_thousand_half_sent_heads(tmp_path: Path) -> None:
    """The attack: before, all of them stayed open, and the server had no file left for anyone else."""
    resource = pytest.importorskip("resource", reason="needs limits of open files")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 4000 if before[1] == resource.RLIM_INFINITY else min(4000, before[1])
    with mgm_serve(tmp_path) as served, ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, before[0]), before[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        count = min(3000, max(most, before[0]) - 500)
        with ThreadPoolExecutor(100) as pool:  # the queue of new connections is short: one after the other, many wait
            opened = pool.map(connect, [served.port] * count, [b"GET / HTTP/1.1\r\nHost: 127.0"] * count)
            for connection in opened:
                stack.enter_context(connection)
        assert healthy(served.port)
        files = Path(f"/proc/{served.process.pid}/fd")
        if files.is_dir():
            assert len(list(files.iterdir())) < app.MAX_CONNECTIONS + 200


def test_more_connections_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest that ask nothing make room; who asks is answered."""
    monkeypatch.setattr(app, "MAX_CONNECTIONS", 20)
    with in_thread(WebSettings()) as (port, _), ExitStack() as stack:
        opened = [stack.enter_context(connect(port, b"GET / HTTP/1.1\r\nHost: 127.0")) for _ in range(60)]
        assert healthy(port)
        assert all(is_closed(connection) for connection in opened[:30])
        assert closed_because(port)["limit"] >= 40


def test_a_body_that_gets_on_is_kept_before_one_that_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_CONNECTIONS", 20)
    image = encoded(kind_of_image("disc", 1), "JPEG")
    with in_thread(WebSettings()) as (port, _), ExitStack() as stack:
        upload = stack.enter_context(connect(port, head(port, len(image), "Expect: 100-continue\r\n")))
        assert upload.recv(100).startswith(b"HTTP/1.1 100 ")  # it is being read
        upload.sendall(image[:100])
        for _ in range(60):
            stack.enter_context(connect(port))
        upload.sendall(image[100:])
        assert upload.recv(12) == b"HTTP/1.1 404"  # there is no index: the query was read to its end


def head(port: int, length: int, more: str = "") -> bytes:
    return f"POST /api/query HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n{more}\r\n".encode()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "head"),
        (b"GET / HTTP/1.1\r\nHost: 127.0", "head"),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health HT", "head"),
        (b"POST /api/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nabc", "body"),
        (b"POST /api/ingest HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n{", "body"),
        (b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nabc", "body"),
    ],
)
def test_what_never_gets_on_is_closed(said: bytes, reason: str) -> None:
    with in_thread(WebSettings()) as (port, _), connect(port, said) as connection:
        assert is_closed(connection)
        assert closed_because(port) == {reason: 1}
        assert healthy(port)


@pytest.mark.usefixtures("quick")
def test_a_head_that_comes_a_byte_at_a_time_is_closed() -> None:
    with in_thread(WebSettings()) as (port, _), connect(port) as connection:
        started = time.monotonic()
        with suppress(ConnectionError):
            for _ in range(600):
                connection.sendall(b"G" if time.monotonic() - started < 1 else b"E")
                time.sleep(0.1)
        assert closed_because(port) == {"head": 1}


@pytest.mark.usefixtures("quick")
def test_a_body_that_comes_a_byte_at_a_time_is_closed() -> None:
    with in_thread(WebSettings()) as (port, _), connect(port, head(port, 100_000)) as connection:
        with suppress(ConnectionError):
            for _ in range(600):
                connection.sendall(b"x")
                time.sleep(0.1)
        assert closed_because(port) == {"body": 1}


@pytest.mark.usefixtures("quick")
def test_a_slow_line_may_take_many_times_as_long() -> None:
    """20 kB every quarter of a second, for more than twice the seconds in which 15 kB have to come."""
    with in_thread(WebSettings()) as (port, _), connect(port, head(port, 20 * 20_000)) as connection:
        for _ in range(20):
            connection.sendall(b"x" * 20_000)
            time.sleep(0.25)
        assert connection.recv(12) == b"HTTP/1.1 404"  # there is no index: it was read to its end
        assert closed_because(port) == {}


@pytest.mark.usefixtures("quick")
def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from mg_milvus.web import app as application

    monkeypatch.setattr(
        application, "page_facts", lambda _: {"title": "x" * 20_000_000, "rows": 0, "bits": {"fine": 0}}
    )
    with in_thread(WebSettings()) as (port, _), connect(port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET /duplicates HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        wait_until(lambda: closed_because(port), "the connection is closed", pause=0.2)
        assert closed_because(port) == {"response": 1}


@pytest.mark.usefixtures("quick")
def test_a_stream_of_events_stays_when_there_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    from mg_milvus.web import jobs

    monkeypatch.setattr(jobs, "KEEPALIVE_SECONDS", 1.0)
    with in_thread(WebSettings()) as (port, app):
        app.state.mgm.ingests.job = jobs.Job("long", stage="at work")
        with connect(port, f"GET /api/ingest/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()) as stream:
            said = b""
            while said.count(b": running") < 4:  # twice what a stalled body gets
                came = stream.recv(4096)
                assert came, said
                said += came
        assert closed_because(port) == {}


def test_a_thousand_streams_of_events() -> None:
    from mg_milvus.web import app as application
    from mg_milvus.web import jobs

    with in_thread(WebSettings()) as (port, app), ExitStack() as stack:
        app.state.mgm.ingests.job = jobs.Job("long")
        ask = f"GET /api/ingest/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        streams = [stack.enter_context(connect(port, ask)) for _ in range(application.MAX_STREAMS)]
        assert {stream.recv(12) for stream in streams} == {b"HTTP/1.1 200"}
        for _ in range(1000 - application.MAX_STREAMS):
            with connect(port, ask) as refused:
                assert refused.recv(12) == b"HTTP/1.1 503"
        with connect(port, ask) as refused:
            answer = refused.recv(4096)
        assert b"\r\nretry-after: 5\r\n" in answer.lower()
        streams.pop().close()

        def accepted() -> bool:
            with connect(port, ask) as stream:
                return stream.recv(12) == b"HTTP/1.1 200"

        wait_until(accepted, "the place of the closed stream is free", pause=0.1)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"400"),
        (b"GET /?" + b"a=b&" * 30_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", b"400"),
        (b"POST /api/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
        (b"POST /api/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 18 + b"\r\n\r\n", b"413"),
        (b"POST /api/ingest HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000001\r\n\r\n", b"413"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    ],
)
def test_huge_and_broken_heads_are_refused(page: int, said: bytes, status: bytes) -> None:
    with connect(page) as connection:
        sending = threading.Thread(target=_send, args=(connection, said))
        sending.start()
        assert connection.recv(12) == b"HTTP/1.1 " + status
        sending.join()
    assert healthy(page)


@pytest.fixture(scope="module")
def page() -> Iterator[int]:
    with in_thread(WebSettings()) as (port, _):
        yield port


def _send(connection: socket.socket, said: bytes) -> None:
    with suppress(ConnectionError):
        connection.sendall(said)
