"""The application: routes, pages, errors as JSON; and the server: its socket, its connections, its shutdown."""

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
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from h11 import CLIENT, IDLE, SEND_BODY
from jinja2 import Environment, FileSystemLoader, StrictUndefined
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
from mg_milvus.web import actions, api, browse, duplicates
from mg_milvus.web.jobs import DynamicBatcher, IngestRunner, bug_message
from mg_milvus.web.languages import LANGUAGES, language_of, translate, words
from mg_milvus.web.limits import (
    BodyBudget,
    BusyError,
    CountCache,
    FilterQueue,
    Lists,
    Reports,
    Slots,
    UploadQuota,
    UploadsFullError,
)
from mg_milvus.web.media import Thumbnails, TooLargeError, read_body
from mg_milvus.web.metrics import Metrics
from mg_milvus.web.security import PAGES, Access, Guard, TooManyAttemptsError, check_address, error_response
from mg_milvus.web.shares import Shares
from mg_milvus.web.state import CurrentState, Listings, State, busy_response, count_rows, page_facts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mg_milvus.index import ImageIndex
    from mg_milvus.web.security import WebSettings


HERE = Path(__file__).parent
STYLES = pages.TEMPLATES
"""Folder of the style sheets, which the result pages use too."""

MAX_BATCH = 32
REJECTED = "token.rejected"
"""Name of the string that says so."""
SIGN_IN_BYTES = 10_000
MAX_HEALTH_CHECKS = 8
MAX_STREAMS = 64
MAX_ARCHIVES = 2
MAX_DUPLICATE_SEARCHES = 8
"""Searches for near-duplicates, waiting ones included."""

MAX_WARM_ROWS = 200_000
"""Rows of an index whose first order is read at the start, which takes up to five seconds."""

WARM_PAUSE = 10.0
"""Seconds before that: the first queries come first."""

STATUS: tuple[tuple[type[MgMilvusError], int], ...] = (
    (NotIndexedError, 404),
    (CollectionNotFoundError, 404),
    (StoreUnavailableError, 503),
    (ImageError, 422),
    (QueryError, 400),
    (ServeError, 400),
)
"""Error class -> status, the first match. Errors that user input causes are 4xx; all others are 500."""


def create_app(index: ImageIndex, settings: WebSettings) -> FastAPI:
    """The application over one index, which the caller closes."""
    metrics = Metrics()
    state = State(
        index=index, settings=settings, metrics=metrics,
        encode=DynamicBatcher(index.encode, MAX_BATCH, metrics.batch),
        thumbnails=Thumbnails(settings.thumbnail_folder, settings.max_pixels),
        ingests=IngestRunner(index, settings.max_pixels),
        # Decoding takes a core and much memory: as many images at once as there are cores.
        decode_limiter=anyio.CapacityLimiter(os.cpu_count() or 1),
        # A search compares all pairs on all cores: a second one at the same time would slow both down.
        duplicates_limiter=anyio.CapacityLimiter(1),
        verify_limiter=anyio.CapacityLimiter(1),
        access=Access(settings.token),
        bodies=BodyBudget(settings.max_upload_bytes),
        stream_slots=Slots(MAX_STREAMS, "streams of events"),
        duplicate_slots=Slots(MAX_DUPLICATE_SEARCHES, "searches for near-duplicates"),
        health_slots=Slots(MAX_HEALTH_CHECKS, "checks"),
        filter_queue=FilterQueue(),
        upload_quota=UploadQuota(settings.upload_folder),
        lists=Lists(),
        shares=Shares(settings.share_folder),
        counts=CountCache(),
        reports=Reports(),
        archive_slots=Slots(MAX_ARCHIVES, "archives"),
        listings=Listings(index),
        shutdown=threading.Event(),
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming_up = asyncio.create_task(asyncio.to_thread(_warm_up, state))
        yield
        state.shutdown.set()
        await warming_up
        state.encode.close()
        await asyncio.to_thread(state.ingests.close)

    app = FastAPI(
        title="mg-milvus", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url="/api/openapi.json",
        description="Search images by images. The same verbs and the same JSON as the command mgm.",
    )  # fmt: skip
    app.state.mgm = state
    app.include_router(actions.router)
    app.include_router(actions.changes_router)
    app.include_router(actions.copies_router)
    app.include_router(browse.router)
    app.include_router(browse.changes_router)
    app.include_router(api.router)
    app.include_router(api.changes_router)
    app.include_router(duplicates.router)
    app.include_router(_router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for kind in (
        MgMilvusError, TooLargeError, BusyError, UploadsFullError, ClientDisconnect, RequestValidationError,
        HTTPException, Exception,
    ):  # fmt: skip
        app.add_exception_handler(kind, partial(_as_json, settings))
    app.add_middleware(Guard, settings=settings, metrics=metrics, access=state.access, sign_in=_sign_in_page)
    return app


def _warm_up(state: State) -> None:
    """Load the encoder before the first query, then the order that ``/browse`` begins with: both take seconds."""
    state.thumbnails.trim()
    with suppress(MgMilvusError):  # without an index, or without its encoder, the first query says so
        state.index.warm_up()
    if state.shutdown.wait(WARM_PAUSE):
        return
    with suppress(MgMilvusError):
        if 0 < (rows := count_rows(state)) <= MAX_WARM_ROWS:
            state.listings.of("folder", "", "", rows)


def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=shown,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # granularities stay in the schema's order
    environment.globals["version"] = __version__
    return environment


TEMPLATES = _templates()

_router = APIRouter(include_in_schema=False)
"""The pages: functions of the module, for FastAPI keeps every function that it looked at, with what that refers to."""


@_router.get("/")
def _get_search(state: CurrentState, request: Request) -> Response:
    return _page(request, "page.html.jinja", state)


@_router.get("/duplicates")
def _get_duplicates(state: CurrentState, request: Request, keep: str = "best", distance: str = "") -> Response:
    return _page(request, "duplicates.html.jinja", state, rules=list(KEEP), keep=keep, distance=distance)


@_router.get("/browse")
def _get_browse(state: CurrentState, request: Request) -> Response:
    return _page(request, "browse.html.jinja", state)


@_router.get("/overview")
def _get_overview(state: CurrentState, request: Request) -> Response:
    return _page(request, "overview.html.jinja", state)


@_router.get("/static/clusters.css")
def _get_clusters_css() -> Response:
    return FileResponse(STYLES / "clusters.css")


@_router.get("/static/look.css")
def _get_look_css() -> Response:
    return FileResponse(STYLES / "result.css")


@_router.get("/static/duplicates.css")
def _get_duplicates_css() -> Response:
    return FileResponse(STYLES / "duplicates.css")


@_router.get("/docs")
def _get_docs(request: Request) -> Response:
    return _html(request, "docs.html.jinja", api=request.app.openapi())


@_router.post("/sign-in")
async def _post_sign_in(state: CurrentState, request: Request) -> Response:
    form = parse_qs((await read_body(request, SIGN_IN_BYTES)).decode("utf-8", "replace"))
    offered = form.get("token", [""])[0]
    query = form.get("query", [""])[0]
    page = _page_name(form.get("page", [""])[0])
    try:
        if not state.access.is_token(request, offered):
            return _sign_in(request, REJECTED, query, page)
    except TooManyAttemptsError as error:
        return _too_many_page(request, error, query, page)
    return state.access.sign_in(request, RedirectResponse(f"./{page}?{query}" if query else f"./{page}", 303))


@_router.post("/sign-out")
async def _post_sign_out(state: CurrentState, request: Request) -> Response:
    return state.access.sign_out(request, RedirectResponse("./", 303))


def _sign_in_page(request: Request, error: TooManyAttemptsError | None) -> Response:
    """The page that asks for the token, and then redirects to the requested query."""
    query, page = request.url.remove_query_params("token").query, _page_name(request.url.path)
    if error is not None:
        return _too_many_page(request, error, query, page)
    problem = REJECTED if "token" in request.query_params else None
    return _sign_in(request, problem, query, page)


def _page_name(path: str) -> str:
    """The last part of a page's path; empty for the search, and for what is no page to return to."""
    name = path.rpartition("/")[2]
    return name if f"/{name}" in PAGES else ""


def _too_many_page(request: Request, error: TooManyAttemptsError, query: str, page: str) -> Response:
    values = {"problem": "token.too_many", "seconds": error.seconds, "query": query, "page": page}
    response = _html(request, "sign_in.html.jinja", 429, **values)
    response.headers["retry-after"] = str(error.seconds)
    return response


def _sign_in(request: Request, problem: str | None, query: str, page: str) -> Response:
    return _html(request, "sign_in.html.jinja", 401, problem=problem, seconds=0, query=query, page=page)


def _page(request: Request, template: str, state: State, **values: Any) -> Response:
    return _html(request, template, about=page_facts(state), signed_in=state.settings.token is not None, **values)


def _html(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A page in the language of the browser."""
    language = language_of(request)
    own = {"language": language, "languages": LANGUAGES, "words": words(language), "t": partial(translate, language)}
    headers = {"content-language": language, "vary": "accept-language, cookie"}
    return HTMLResponse(TEMPLATES.get_template(template).render(own | values), status, headers)


async def _as_json(settings: WebSettings, _: Request, error: Exception) -> Response:
    """Any error as {"error": one line}; starlette also logs unexpected ones."""
    match error:
        case MgMilvusError():
            status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
            if isinstance(error, StoreError) and isinstance(error, ValueError):
                status = 400  # a filter that Milvus does not understand, something it cannot do
            return error_response(status, str(error))
        case TooLargeError():
            limit = f"{settings.max_upload_bytes:,} bytes"
            return error_response(413, f"the image has more than {limit}: send a smaller one")
        case BusyError():
            return busy_response(error)
        case UploadsFullError():
            return error_response(507, str(error))
        case ClientDisconnect():
            return error_response(400, "the body ended before its end")  # counted only: the client is gone
        case RequestValidationError():
            first = error.errors()[0]
            return error_response(422, f"{first['loc'][-1]}: {first['msg'][:1].lower()}{first['msg'][1:]}")
        case HTTPException():
            response = error_response(error.status_code, error.detail)
            response.headers.update(error.headers or {})
            return response
    return error_response(500, bug_message(error))


SHUTDOWN_SECONDS = 2
"""Seconds that open streams get at shutdown."""


HEAD_SECONDS = 10.0
"""Seconds within which a request's head must arrive after the connection or the previous response."""

HEAD_BYTES = 16_384
"""Limit of a request's head. Depending on how it arrives a few more bytes are read, but never twice as many."""

STALL_SECONDS, STALL_BYTES = 30.0, 15_000
"""A body that is received, and a response that is sent, must progress by this many bytes in this many seconds. That is
slower than the slowest lines, so every honest client has the time it needs."""

CHECK_SECONDS = 1.0
MAX_CONNECTIONS = 512
BACKLOG = 128
"""Connections accepted at once: few enough that the first of them are read before the last would displace them."""

_NO_ROOM = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """uvicorn's protocol with time limits and a limit of connections.

    uvicorn waits for ever for the rest of a head or of a body, and for a client to read. Its own ``limit_concurrency``
    counts idle connections too and then refuses new ones: here the connection that does the least is closed instead.
    """

    def __init__(self, *arguments: Any, closed: Callable[[str], None], most: int, **options: Any) -> None:
        """``closed`` is called with the reason for closing; at most ``most`` connections are open at once."""
        super().__init__(*arguments, **options)
        self._closed, self._most = closed, most
        self._timer: asyncio.TimerHandle | None = None
        self._received = 0
        self._idle_since = self.loop.time()
        self._body_mark, self._response_mark = (0, 0.0), (0, 0.0)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept it, and close another one when there are too many."""
        connections = cast("set[Connection]", self.connections)
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if len(connections) > self._most:
            idlest = max(connections - {self}, key=lambda one: (one._readiness(), -one._idle_since))
            if idlest._readiness():
                idlest._drop("limit")
            else:
                transport.write(_NO_ROOM)
                self._drop("limit", at_once=False)
                return
        self._timer = self.loop.call_later(CHECK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching it."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # it would hold the connection, and the body of its request, for seconds

    def data_received(self, data: bytes) -> None:
        """Pass bytes on in small chunks: h11 checks the size of a head only while it is incomplete."""
        self._received += len(data)
        for start in range(0, len(data), HEAD_BYTES):
            if self.transport.is_closing():
                break
            super().data_received(data[start : start + HEAD_BYTES])

    def on_response_complete(self) -> None:
        """Start the time limit of the next head, and drop the rest of the body."""
        self._idle_since = self.loop.time()
        self.cycle.body.clear()
        super().on_response_complete()

    def _readiness(self) -> int:
        """How readily this connection makes room: 0: a response is due; 1: it sends, or reads the end; 2: neither."""
        if self.cycle is None or self.cycle.response_complete:
            return 1 if self.transport.get_write_buffer_size() else 2
        return 1 if self._sends_body() else 0

    def _sends_body(self) -> bool:
        return self.conn.states[CLIENT] is SEND_BODY and not self.flow.read_paused

    def _look(self) -> None:
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        # Unsent bytes may grow while the response is produced, and must shrink again.
        least, since = self._response_mark
        if unsent == 0 or unsent <= least - STALL_BYTES:
            self._response_mark = unsent, now
        else:
            self._response_mark = max(unsent, least), since
        if not self._sends_body() or self._received >= self._body_mark[0] + STALL_BYTES:
            self._body_mark = self._received, now
        if self.conn.states[CLIENT] is not IDLE:
            self._idle_since = now
        if now - self._response_mark[1] > STALL_SECONDS:
            self._drop("response")
        elif now - self._body_mark[1] > STALL_SECONDS:
            self._drop("body")
        elif unsent == 0 and now - self._idle_since > HEAD_SECONDS:
            self._drop("head")
        else:
            self._timer = self.loop.call_later(CHECK_SECONDS, self._look)

    def _drop(self, reason: str, *, at_once: bool = True) -> None:
        self._closed(reason)
        self.connections.discard(self)
        (self.transport.abort if at_once else self.transport.close)()


def max_connections() -> int:
    """``MAX_CONNECTIONS``, but at most half of the files that the process may open."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(8, min(MAX_CONNECTIONS, soft // 2))


def bind(host: str, port: int, token: str | None) -> socket.socket:
    """Bind the port, before anything slow is done.

    Raises:
        ServeError: it is taken, or the host is no address of this machine, or it needs a token.
    """
    check_address(host, token)
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, place = addresses[0]
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
    """The URL of the page; ``localhost`` when all addresses of the machine are bound."""
    name = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{f'[{name}]' if ':' in name else name}:{taken.getsockname()[1]}/"


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """False for the traceback that uvicorn logs for each client that is disconnected at shutdown."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown exceeded" not in record.getMessage()


def config(app: FastAPI) -> uvicorn.Config:
    """The server's configuration: guarded connections, no access log (an address may hold the token)."""
    guarded = partial(Connection, closed=app.state.mgm.metrics.closed, most=max_connections())
    return uvicorn.Config(
        app, http=cast("type[asyncio.Protocol]", guarded), ws="none", log_level="error", access_log=False,
        h11_max_incomplete_event_size=HEAD_BYTES, server_header=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        lifespan="on", backlog=BACKLOG,
    )  # fmt: skip


def serve(
    index: ImageIndex, settings: WebSettings, taken: socket.socket, started: Callable[[], None] = lambda: None
) -> None:
    """Serve on a bound socket until Ctrl-C or SIGTERM; neither is an error.

    Args:
        index: the caller closes it.
        settings: see ``WebSettings``.
        taken: from ``bind``.
        started: called when the server accepts requests.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.mgm.shutdown.set()
            log.addFilter(_is_worth_logging)
            try:
                await super().shutdown(sockets)
            finally:
                log.removeFilter(_is_worth_logging)

    app, log = create_app(index, settings), logging.getLogger("uvicorn.error")
    server = Server(config(app))
    main = threading.current_thread() is threading.main_thread()
    # uvicorn raises the signal again after the shutdown; by then it has been handled.
    before = signal.signal(signal.SIGTERM, lambda *_: None) if main else None
    try:
        server.run(sockets=[taken])
    except KeyboardInterrupt:
        pass
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        taken.close()
