"""The application: its parts put together, its errors as JSON, and the pages."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mg_milvus import __version__, pages
from mg_milvus.browse import Browser
from mg_milvus.display import shown
from mg_milvus.duplicates.grouping import KEEP
from mg_milvus.errors import (
    CollectionNotFoundError,
    MgMilvusError,
    NotIndexedError,
    PictureError,
    QueryError,
    ServeError,
    StoreError,
    StoreUnavailableError,
)
from mg_milvus.web import api, comparing, manage
from mg_milvus.web.about import about
from mg_milvus.web.batching import Batcher
from mg_milvus.web.files import TooLargeError, read_body
from mg_milvus.web.guard import Access, Guard, TooManyAttemptsError, refused
from mg_milvus.web.ingesting import Ingesting, unexpected
from mg_milvus.web.limits import BusyError, Filtering, FullError, Intake, Places, Room
from mg_milvus.web.meters import Meters
from mg_milvus.web.state import State, busy
from mg_milvus.web.thumbnails import Thumbnails

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mg_milvus.index import ImageIndex
    from mg_milvus.web.settings import WebSettings

HERE = Path(__file__).parent
LOOKS = Path(pages.__file__).parent
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
    (PictureError, 422),
    (QueryError, 400),
    (ServeError, 400),
)
"""Kind of error -> status; the first that fits. What a user's input did is 4xx; the rest is 500."""


def create_app(index: ImageIndex, settings: WebSettings) -> FastAPI:
    """The application over one index, which stays the caller's to close."""
    meters = Meters()
    browser = Browser(index.connection)
    state = State(
        index=index, settings=settings, browser=browser, meters=meters,
        encode=Batcher(browser.encode, LARGEST_BATCH, meters.batch),
        thumbnails=Thumbnails(settings.thumbnail_folder, settings.max_pixels),
        ingesting=Ingesting(index, settings.max_pixels),
        # Decoding fills cores and memory: as many pictures at once as there are cores.
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
        description="Search pictures by pictures. The same verbs and the same JSON as the command mgm.",
    )  # fmt: skip
    app.state.mgm = state
    app.include_router(api.router)
    app.include_router(manage.router)
    app.include_router(comparing.router)
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
    with suppress(MgMilvusError):  # without an index, or without its encoder, the first question says so
        state.browser.encode([state.browser.prepare(Image.new("RGB", (64, 64)))])


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
        question = form.get("question", [""])[0]
        try:
            if not state.access.is_token(request, offered):
                return _html("sign_in.html.jinja", 401, problem=WRONG, question=question)
        except TooManyAttemptsError as error:
            return _too_many_page(error, question)
        return state.access.sign_in(request, RedirectResponse(f"/?{question}" if question else "/", 303))

    @app.post("/sign-out", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        return state.access.sign_out(request, RedirectResponse("/", 303))


def _sign_in_page(request: Request, error: TooManyAttemptsError | None) -> Response:
    """Asks for the token, and leads on to the question that was asked for."""
    question = request.url.remove_query_params("token").query
    if error is not None:
        return _too_many_page(error, question)
    problem = WRONG if "token" in request.query_params else None
    return _html("sign_in.html.jinja", 401, problem=problem, question=question)


def _too_many_page(error: TooManyAttemptsError, question: str) -> Response:
    answer = _html("sign_in.html.jinja", 429, problem=f"{str(error)[:1].upper()}{str(error)[1:]}.", question=question)
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
            return refused(413, f"the picture has more than {settings.max_upload_bytes:,} bytes: send a smaller one")
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
