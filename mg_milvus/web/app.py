"""The application: its parts put together, its errors as JSON, and the pages."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs

import anyio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from h11 import CLIENT, IDLE, SEND_BODY
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from mg_milvus import __version__
from mg_milvus.duplicates.report import KEEP
from mg_milvus.errors import (
    CollectionNotFoundError,
    ImageError,
    MgMilvusError,
    NotIndexedError,
    QueryError,
    ServeError,
    StoreError,
    StoreUnavailableError,
)
from mg_milvus.files import shown
from mg_milvus.html import pages
from mg_milvus.web import api
from mg_milvus.web.jobs import Batcher, Ingesting, unexpected
from mg_milvus.web.limits import BusyError, Filtering, FullError, Intake, Places, Room
from mg_milvus.web.media import Thumbnails, TooLargeError, read_body
from mg_milvus.web.metrics import Meters
from mg_milvus.web.security import Access, Guard, TooManyAttemptsError, check_address, refused
from mg_milvus.web.state import State, about, busy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mg_milvus.index import ImageIndex
    from mg_milvus.web.security import WebSettings


HERE = Path(__file__).parent
LOOKS = pages.TEMPLATES
"""The looks of the result pages, which these have too."""

LARGEST_BATCH = 32
WRONG = "That is not the token of this page."
SIGN_IN_BYTES = 10_000
MOST_CHECKS = 8
MOST_STREAMS = 64
MOST_SEARCHES = 8
"""Searches for near-duplicates, those that wait for another one included."""

STATUS: tuple[tuple[type[MgMilvusError], int], ...] = (
    (NotIndexedError, 404),
    (CollectionNotFoundError, 404),
    (StoreUnavailableError, 503),
    (ImageError, 422),
    (QueryError, 400),
    (ServeError, 400),
)
"""Kind of error -> status; the first that fits. What a user's input did is 4xx; the rest is 500."""


def create_app(index: ImageIndex, settings: WebSettings) -> FastAPI:
    """The application over one index, which stays the caller's to close."""
    meters = Meters()
    state = State(
        index=index, settings=settings, meters=meters,
        encode=Batcher(index.encode, LARGEST_BATCH, meters.batch),
        thumbnails=Thumbnails(settings.thumbnail_folder, settings.max_pixels),
        ingesting=Ingesting(index, settings.max_pixels),
        # Decoding fills cores and memory: as many images at once as there are cores.
        decoding=anyio.CapacityLimiter(os.cpu_count() or 1),
        # All pairs are compared, on all cores: a second search beside the first would slow both down.
        comparing=anyio.CapacityLimiter(1),
        access=Access(settings.token),
        intake=Intake(settings.max_upload_bytes),
        streams=Places(MOST_STREAMS, "streams of events"),
        searches=Places(MOST_SEARCHES, "searches for near-duplicates"),
        checks=Places(MOST_CHECKS, "checks"),
        filtering=Filtering(),
        room=Room(settings.upload_folder),
        ending=threading.Event(),
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        preparing = asyncio.create_task(asyncio.to_thread(_prepare, state))
        yield
        await preparing
        state.encode.close()
        await asyncio.to_thread(state.ingesting.close)

    app = FastAPI(
        title="mg-milvus", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url="/api/openapi.json",
        description="Search images by images. The same verbs and the same JSON as the command mgm.",
    )  # fmt: skip
    app.state.mgm = state
    app.include_router(api.router)
    app.include_router(api.changes_router)
    app.include_router(api.duplicates_router)
    _add_pages(app, state)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for kind in (
        MgMilvusError, TooLargeError, BusyError, FullError, ClientDisconnect, RequestValidationError, HTTPException,
        Exception,
    ):  # fmt: skip
        app.add_exception_handler(kind, partial(_as_json, settings))
    app.add_middleware(Guard, settings=settings, meters=meters, access=state.access, sign_in=_sign_in_page)
    return app


def _prepare(state: State) -> None:
    """What would make the first visitors wait: the encoder takes seconds to load."""
    state.thumbnails.trim()
    with suppress(MgMilvusError):  # without an index, or without its encoder, the first query says so
        state.index.encode([state.index.decode_query(Image.new("RGB", (64, 64)))])


def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=shown,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # granularities stay in the schema's order
    environment.globals["version"] = __version__
    return environment


TEMPLATES = _templates()


def _add_pages(app: FastAPI, state: State) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return _html("page.html.jinja", about=about(state), signed_in=state.settings.token is not None)

    @app.get("/duplicates", include_in_schema=False)
    def duplicates(keep: str = "best", distance: str = "") -> Response:
        return _html("duplicates.html.jinja", about=about(state), rules=list(KEEP), keep=keep, distance=distance)

    @app.get("/static/look.css", include_in_schema=False)
    def look() -> Response:
        return FileResponse(LOOKS / "result.css")

    @app.get("/static/duplicates.css", include_in_schema=False)
    def look_of_duplicates() -> Response:
        return FileResponse(LOOKS / "duplicates.css")

    @app.get("/docs", include_in_schema=False)
    def documentation() -> Response:
        return _html("docs.html.jinja", api=app.openapi())

    @app.post("/sign-in", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        form = parse_qs((await read_body(request, SIGN_IN_BYTES)).decode("utf-8", "replace"))
        offered = form.get("token", [""])[0]
        query = form.get("query", [""])[0]
        try:
            if not state.access.is_token(request, offered):
                return _html("sign_in.html.jinja", 401, problem=WRONG, query=query)
        except TooManyAttemptsError as error:
            return _too_many_page(error, query)
        return state.access.sign_in(request, RedirectResponse(f"/?{query}" if query else "/", 303))

    @app.post("/sign-out", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        return state.access.sign_out(request, RedirectResponse("/", 303))


def _sign_in_page(request: Request, error: TooManyAttemptsError | None) -> Response:
    """Asks for the token, and leads on to the query that was asked for."""
    query = request.url.remove_query_params("token").query
    if error is not None:
        return _too_many_page(error, query)
    problem = WRONG if "token" in request.query_params else None
    return _html("sign_in.html.jinja", 401, problem=problem, query=query)


def _too_many_page(error: TooManyAttemptsError, query: str) -> Response:
    answer = _html("sign_in.html.jinja", 429, problem=f"{str(error)[:1].upper()}{str(error)[1:]}.", query=query)
    answer.headers["retry-after"] = str(error.seconds)
    return answer


def _html(template: str, status: int = 200, **values: Any) -> Response:
    return HTMLResponse(TEMPLATES.get_template(template).render(values), status)


async def _as_json(settings: WebSettings, _: Request, error: Exception) -> Response:
    """Any error as {"error": one line}; starlette writes those of unknown kind into the log as well."""
    match error:
        case MgMilvusError():
            status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
            if isinstance(error, StoreError) and isinstance(error, ValueError):
                status = 400  # a filter that Milvus does not understand, something it cannot do
            return refused(status, str(error))
        case TooLargeError():
            return refused(413, f"the image has more than {settings.max_upload_bytes:,} bytes: send a smaller one")
        case BusyError():
            return busy(error)
        case FullError():
            return refused(507, str(error))
        case ClientDisconnect():
            return refused(400, "the body ended before its end")  # for the measures: nobody hears it
        case RequestValidationError():
            first = error.errors()[0]
            return refused(422, f"{first['loc'][-1]}: {first['msg'][:1].lower()}{first['msg'][1:]}")
        case HTTPException():
            answer = refused(error.status_code, error.detail)
            answer.headers.update(error.headers or {})
            return answer
    return refused(500, unexpected(error))


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
