"""Serve the page until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from h11 import CLIENT, IDLE, SEND_BODY
from uvicorn.protocols.http.h11_impl import H11Protocol

from mg_milvus.errors import ServeError
from mg_milvus.web.app import create_app
from mg_milvus.web.settings import check_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from mg_milvus.index import ImageIndex
    from mg_milvus.web.settings import WebSettings

PATIENCE = 2
"""Seconds that open streams get when the server ends."""


HEAD_SECONDS = 10.0
"""A request's head has to be there so long after the connection, or after the answer before it."""

HEAD_BYTES = 16_384
"""Of a head; whether it may have a few more depends on how it comes, twice as many are never taken."""

STALL_SECONDS, STALL_BYTES = 30.0, 15_000
"""A body that comes, and an answer that goes, has to get on by so many bytes in so many seconds: no faster than the
slowest lines, so that they can take as long as they need."""

LOOK_SECONDS = 1.0
MOST_CONNECTIONS = 512
BACKLOG = 128
"""So many are taken at once: few enough that the first of them are not closed for the last before they are read."""

_NO_ROOM = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """uvicorn's protocol, which lets nobody keep a connection for nothing.

    uvicorn waits for ever for the rest of a head or of a body, and for a client to read. Its own ``limit_concurrency``
    counts all connections, idle ones as well, and then refuses everyone: here the one that does the least makes room.
    """

    def __init__(self, *arguments: Any, closed: Callable[[str], None], most: int, **options: Any) -> None:
        """``closed`` is told why; there are ``most`` connections at once."""
        super().__init__(*arguments, **options)
        self._closed, self._most = closed, most
        self._timer: asyncio.TimerHandle | None = None
        self._received = 0
        self._idle_since = self.loop.time()
        self._body_mark, self._answer_mark = (0, 0.0), (0, 0.0)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, and close another one where there are too many."""
        crowd = cast("set[Connection]", self.connections)
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if len(crowd) > self._most:
            weakest = max(crowd - {self}, key=lambda one: (one._readiness(), -one._idle_since))
            if weakest._readiness():
                weakest._drop("crowd")
            else:
                transport.write(_NO_ROOM)
                self._drop("crowd", at_once=False)
                return
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # it would hold the connection, and the body of its request, for seconds

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, a few at a time: h11 looks at the size of a head only where it is not complete."""
        self._received += len(data)
        for start in range(0, len(data), HEAD_BYTES):
            if self.transport.is_closing():
                break
            super().data_received(data[start : start + HEAD_BYTES])

    def on_response_complete(self) -> None:
        """The time for the next head begins, and nobody reads the rest of the body."""
        self._idle_since = self.loop.time()
        self.cycle.body.clear()
        super().on_response_complete()

    def _readiness(self) -> int:
        """How readily this connection makes room: 0: it is answered; 1: it sends, or reads the end; 2: neither."""
        if self.cycle is None or self.cycle.response_complete:
            return 1 if self.transport.get_write_buffer_size() else 2
        return 1 if self._sends_body() else 0

    def _sends_body(self) -> bool:
        return self.conn.states[CLIENT] is SEND_BODY and not self.flow.read_paused

    def _look(self) -> None:
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        # What is still to be sent: it may grow as the answer is made, and has to shrink again.
        least, since = self._answer_mark
        if unsent == 0 or unsent <= least - STALL_BYTES:
            self._answer_mark = unsent, now
        else:
            self._answer_mark = max(unsent, least), since
        if not self._sends_body() or self._received >= self._body_mark[0] + STALL_BYTES:
            self._body_mark = self._received, now
        if self.conn.states[CLIENT] is not IDLE:
            self._idle_since = now
        if now - self._answer_mark[1] > STALL_SECONDS:
            self._drop("answer")
        elif now - self._body_mark[1] > STALL_SECONDS:
            self._drop("body")
        elif unsent == 0 and now - self._idle_since > HEAD_SECONDS:
            self._drop("head")
        else:
            self._timer = self.loop.call_later(LOOK_SECONDS, self._look)

    def _drop(self, reason: str, *, at_once: bool = True) -> None:
        self._closed(reason)
        self.connections.discard(self)
        (self.transport.abort if at_once else self.transport.close)()


def most_connections() -> int:
    """As many as there are, and never more than half of the files that the process may open."""
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(8, min(MOST_CONNECTIONS, soft // 2))


def bind(host: str, port: int, token: str | None) -> socket.socket:
    """Take the port, before anything slow is done.

    Raises:
        ServeError: it is taken, or the host is no address of this machine, or it needs a token.
    """
    check_address(host, token)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, place = found[0]
        taken = socket.socket(family, kind)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ServeError(f"host '{host}' with port {port} is no address: {error}") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(place)
    except OSError as error:
        taken.close()
        raise ServeError(
            f"cannot listen on {host} port {port}: {error.strerror}; is another program there? Choose another port "
            "with --port, or 0 for any that is free"
        ) from error
    return taken


def address(host: str, taken: socket.socket) -> str:
    """Where a browser finds the page; for all addresses of the machine, by its own name for itself."""
    name = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{f'[{name}]' if ':' in name else name}:{taken.getsockname()[1]}/"


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Not the traceback that uvicorn writes for each visitor who is cut off when the server ends."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown exceeded" not in record.getMessage()


def config(app: FastAPI) -> uvicorn.Config:
    """How uvicorn serves the application: guarded connections, no log of addresses (one may hold the token)."""
    guarded = partial(Connection, closed=app.state.mgm.meters.closed, most=most_connections())
    return uvicorn.Config(
        app, http=cast("type[asyncio.Protocol]", guarded), ws="none", log_level="error", access_log=False,
        h11_max_incomplete_event_size=HEAD_BYTES, server_header=False, timeout_graceful_shutdown=PATIENCE,
        lifespan="on", backlog=BACKLOG,
    )  # fmt: skip


def serve(
    index: ImageIndex, settings: WebSettings, taken: socket.socket, started: Callable[[], None] = lambda: None
) -> None:
    """Serve on a bound socket until Ctrl-C or SIGTERM; both are a good end.

    Args:
        index: stays the caller's to close.
        settings: see ``WebSettings``.
        taken: from ``bind``.
        started: called when the page can be asked for.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.mgm.ending.set()
            log.addFilter(_is_worth_saying)
            try:
                await super().shutdown(sockets)
            finally:
                log.removeFilter(_is_worth_saying)

    app, log = create_app(index, settings), logging.getLogger("uvicorn.error")
    server = Server(config(app))
    main = threading.current_thread() is threading.main_thread()
    # uvicorn sends itself the signal again when all is done; by then it has been answered.
    before = signal.signal(signal.SIGTERM, lambda *_: None) if main else None
    try:
        server.run(sockets=[taken])
    except KeyboardInterrupt:
        pass
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        taken.close()
