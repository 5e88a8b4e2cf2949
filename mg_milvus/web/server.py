"""Serve the page until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn

from mg_milvus.errors import ServeError
from mg_milvus.web.app import create_app
from mg_milvus.web.settings import check_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from mg_milvus.index import ImageIndex
    from mg_milvus.web.settings import WebSettings

PATIENCE = 2
"""Seconds that open streams get when the server ends."""


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
    server = Server(uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False,
        timeout_graceful_shutdown=PATIENCE, lifespan="on",
    ))  # fmt: skip
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
