"""``/api``, the reading half: queries, images, a look around."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathParameter
from fastapi import Query as QueryParameter
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mg_milvus.duplicates.report import KEEP, chance, criterion, headline
from mg_milvus.errors import ImageError, MgMilvusError, QueryError, ServeError
from mg_milvus.images.discover import path_text, text_path
from mg_milvus.search.query import QueryOptions, names_regions
from mg_milvus.web.jobs import Job, events, unexpected
from mg_milvus.web.limits import check_filter
from mg_milvus.web.media import SIDES, OriginalResponse, keep_upload, open_original, read_body, upload_path
from mg_milvus.web.schemas import Answer, Info, answer, codes_from, codes_text, described, options
from mg_milvus.web.security import refused
from mg_milvus.web.state import Shared, State, Stream, rows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from mg_milvus.codes import Codes
    from mg_milvus.index import ImageIndex
    from mg_milvus.records import Progress
    from mg_milvus.search.query_image import QueryImage


router = APIRouter()
T = TypeVar("T")

IMAGE_BODY = {"requestBody": {
    "required": True,
    "description": "The image file itself, as bytes.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}}  # fmt: skip
ERROR: dict[str, Any] = {
    "content": {"application/json": {"schema": {
        "type": "object", "required": ["error"], "properties": {"error": {"type": "string"}},
    }}},
}  # fmt: skip
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The query cannot be answered as asked.", **ERROR},
    404: {"description": "There is no such image, or no index yet.", **ERROR},
    422: {"description": "An image or a parameter cannot be read.", **ERROR},
}
BUSY: dict[int | str, dict[str, Any]] = {
    503: {"description": "Too much is being done at once: Retry-After says when to come again.", **ERROR}
}
BYTES = "the bytes given as an image"
"""How ``open_image`` names what has no name."""

ASK_AGAIN = {"cache-control": "private, no-cache"}
"""A browser may keep it, and shows it only when it is still there."""

RowId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{32}$", description="Id of an indexed image.")]
Options = Annotated[QueryOptions, Depends(options)]
WithCandidates = Annotated[bool, QueryParameter(description="Also tell every candidate with its distances.")]


@router.post("/api/query", response_model=Answer, openapi_extra=IMAGE_BODY, responses={
    **PROBLEMS, **BUSY, 413: {"description": "The image has too many bytes.", **ERROR},
})  # fmt: skip
async def query_with_an_image(
    request: Request, shared: Shared, asked: Options, candidates: WithCandidates = False
) -> Response:
    """Ask with an image: ``curl --data-binary @cat.jpg "http://127.0.0.1:8000/api/query?k=5"``."""
    started = time.perf_counter()
    with shared.intake.body() as body:
        data = await read_body(request, shared.settings.max_upload_bytes, body)
        try:
            codes, size = await _encoded(shared, data, asked)
        except ImageError as error:
            raise ImageError(f"the image that was sent{str(error).removeprefix(BYTES)}") from error
    return await _answered(shared, codes, asked, started, candidates, size=size)


@router.get("/api/query", response_model=Answer, responses={**PROBLEMS, **BUSY})
async def query_with_what_is_there(
    shared: Shared, asked: Options, candidates: WithCandidates = False,
    id: Annotated[str | None, QueryParameter(pattern=r"^[0-9a-f]{32}$", description="An indexed image.")] = None,  # noqa: A002
    codes: Annotated[str | None, QueryParameter(description="What an earlier answer said under query.codes.")] = None,
) -> Response:  # fmt: skip
    """Ask with an image that is indexed (it is left out of the hits), with a part of it, or with codes.

    For a part, or when regions are asked, its file is read again; otherwise its codes in the index are enough.
    """
    started = time.perf_counter()
    if bool(id) == bool(codes):
        raise QueryError("give an id or codes, and not both; an image is sent with POST")
    if not id:
        if asked.get("crop") is not None:
            raise QueryError("crop needs the image itself: send it with POST, or give an id")
        given = await _in_thread(_given_codes, shared, codes or "")
        return await _answered(shared, given, asked, started, candidates)
    row = await _in_thread(shared.index.row, id)
    if asked.get("crop") is not None or names_regions(asked):
        codes_there, _ = await _encoded(shared, text_path(row.path), asked)
    else:
        codes_there = await _in_thread(shared.index.codes, id)
    return await _answered(shared, codes_there, asked, started, candidates, size=(row.width, row.height), row_id=id)


@router.get("/api/sample", responses={**PROBLEMS, **BUSY})
async def sample(
    shared: Shared,
    count: Annotated[int, QueryParameter(ge=1, le=1000, description="How many, at most.")] = 60,
    filter: Annotated[str | None, QueryParameter(description="Only rows that match this Milvus expression.")] = None,  # noqa: A002
) -> list[dict[str, Any]]:
    """Indexed images at random: id, path, and the row's other fields."""
    check_filter(filter)
    look = partial(shared.index.sample, count, filter or None)
    rows = await (shared.filtering.run(look) if filter else _in_thread(look))
    return [described(row) for row in rows]


@router.get("/api/images/{id}", responses=PROBLEMS)
async def row(shared: Shared, id: RowId) -> dict[str, Any]:  # noqa: A002
    """One row: path, size, width, height, and the schema's own fields."""
    return described(await _in_thread(shared.index.row, id))


@router.get("/api/images/{id}/thumbnail", response_class=Response, responses={
    **PROBLEMS, 200: {"content": {"image/jpeg": {}}, "description": "A JPEG whose longest side is at most so long."},
    304: {"description": "It is what If-None-Match names."},
})  # fmt: skip
async def thumbnail(
    request: Request,
    shared: Shared,
    id: RowId,  # noqa: A002
    side: Annotated[
        int, QueryParameter(description="Pixels: 240, 480 or 1600.", json_schema_extra={"enum": list(SIDES)})
    ] = SIDES[1],
) -> Response:
    """A small JPEG of an indexed image."""
    if side not in SIDES:
        raise QueryError(f"side is {side}, expected one of {', '.join(map(str, SIDES))}")
    found = await _in_thread(shared.index.row, id)
    try:
        data = await anyio.to_thread.run_sync(shared.thumbnails.of, found, side, limiter=shared.decoding)
    except ImageError as error:
        raise _gone(id) from error
    headers = ASK_AGAIN | {"etag": f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'}
    if _is_known(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


@router.get("/api/images/{id}/original", response_class=Response, responses={
    **PROBLEMS, 200: {"content": {"image/*": {}}, "description": "The file as it is."},
    206: {"content": {"image/*": {}}, "description": "The range of it that was asked for."},
    304: {"description": "It is what If-None-Match names."},
})  # fmt: skip
async def original(request: Request, shared: Shared, id: RowId) -> Response:  # noqa: A002
    """The image file as it is, if it is still what was ingested."""
    found = await _in_thread(shared.index.row, id)
    try:
        opened = await anyio.to_thread.run_sync(open_original, found, limiter=shared.decoding)
    except ImageError as error:
        raise _gone(id) from error
    headers = ASK_AGAIN | {"etag": f'"{found.content_hash}"'}
    if _is_known(request, headers["etag"]):
        opened.file.close()
        return Response(status_code=304, headers=headers)
    name = quote(text_path(found.path).name.encode("utf-8", "surrogateescape"))
    headers["content-disposition"] = f"inline; filename*=UTF-8''{name}"
    same = request.headers.get("if-range", headers["etag"]) == headers["etag"]
    return OriginalResponse(opened, request.headers.get("range") if same else None, headers)


@router.get("/api/info", response_model=Info, responses=PROBLEMS)
async def info(shared: Shared) -> Response:
    """What the index is, as ``mgm info --json``."""
    return JSONResponse((await _in_thread(shared.index.info)).as_dict())


@router.get("/health", responses={503: {"description": "The index does not answer.", **ERROR}})
async def health(shared: Shared) -> dict[str, str]:
    """Whether the index answers; needs no token."""
    with shared.checks.one():
        await _in_thread(rows, shared)
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(shared: Shared) -> Response:
    """Counts and durations, in the text format of Prometheus."""
    return PlainTextResponse(
        shared.meters.text(await _in_thread(rows, shared)), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


def _gone(row_id: str) -> MgMilvusError:
    return ImageError(
        f"the file of image {row_id} is gone, cannot be read, or was changed since it was ingested: put it back, or "
        "ingest it again"
    )


def _is_known(request: Request, etag: str) -> bool:
    """Whether the browser has it already."""
    known = request.headers.get("if-none-match", "")
    return any(each.strip().removeprefix("W/") in {etag, "*"} for each in known.split(","))


def _given_codes(shared: State, text: str) -> dict[str, Codes]:
    return codes_from(text, shared.index.schema, shared.index.fingerprint)


async def _encoded(shared: State, image: Any, asked: QueryOptions) -> tuple[dict[str, Codes], tuple[int, int]]:
    """Codes of an image as a query wants them, encoded together with others, and its width and height."""

    def prepare() -> QueryImage:
        return shared.index.decode_query(image, max_pixels=shared.settings.max_pixels, **asked)

    ready = await anyio.to_thread.run_sync(prepare, limiter=shared.decoding)
    return await shared.encode(ready), (ready.width, ready.height)


async def _answered(
    shared: State, codes: Mapping[str, Codes], asked: QueryOptions, started: float, candidates: bool, *,
    size: tuple[int, int] = (0, 0), row_id: str | None = None,
) -> Response:  # fmt: skip
    def work() -> dict[str, Any]:
        without: Sequence[str] = () if row_id is None else (row_id,)
        schema = shared.index.schema
        result = shared.index.search(codes, exclude=without, all_candidates=candidates, **asked)
        found = result.candidates if candidates else None
        mine = {name: codes[name] for name in schema.bits}
        return answer(result.query, result.hits, found, schema, {
            "id": row_id, "codes": codes_text(mine, shared.index.fingerprint), "width": size[0], "height": size[1],
            "crop": asked.get("crop"),
        })  # fmt: skip

    told = await (shared.filtering.run(work) if asked.get("filter") else _in_thread(work))
    told["seconds"] = round(time.perf_counter() - started, 4)
    shared.meters.query(told["seconds"])
    return JSONResponse(told)


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    return await anyio.to_thread.run_sync(partial(function, *arguments))


def _may_write(shared: Shared) -> None:
    if shared.settings.read_only:
        raise HTTPException(403, "the page is read-only: start mgm serve without --read-only to change the index")


REFUSED: dict[int | str, dict[str, Any]] = {**PROBLEMS, **BUSY, 403: {"description": "The page is read-only.", **ERROR}}
changes_router = APIRouter(prefix="/api", dependencies=[Depends(_may_write)], responses=REFUSED)


class IngestRequest(BaseModel):
    """What to ingest: uploads by the names they were given, or one folder that the server may read."""

    model_config = ConfigDict(extra="forbid")

    uploads: list[str] = Field(default=[], max_length=20_000)
    folder: str | None = None


@changes_router.post("/uploads", openapi_extra=IMAGE_BODY, responses={
    413: {"description": "The image has too many bytes.", **ERROR},
    507: {"description": "The folder of uploads is full.", **ERROR},
})  # fmt: skip
async def upload(
    request: Request,
    shared: Shared,
    name: Annotated[str, QueryParameter(max_length=1000, description="Its name: cat.jpg")],
) -> dict[str, str]:
    """Send one image to be ingested; the answer says under which name."""
    folder = _upload_folder(shared)
    with shared.intake.body() as body:
        await anyio.to_thread.run_sync(shared.room.check)
        data = await read_body(request, shared.settings.max_upload_bytes, body)
        kept = await anyio.to_thread.run_sync(
            keep_upload, folder, name, data, shared.settings.max_pixels, limiter=shared.decoding
        )
    shared.room.add(len(data))
    return {"upload": kept}


@changes_router.post("/ingest", status_code=202)
def ingest(shared: Shared, asked: IngestRequest) -> dict[str, Any]:
    """Begin an ingest; one runs at a time. ``/api/ingest/events`` tells how it goes."""
    if bool(asked.uploads) == (asked.folder is not None):
        raise QueryError("give the names of uploads, or a folder, and not both")
    if asked.folder is not None:
        folder, top = shared.settings.folder_to_ingest(asked.folder)
        if not folder.is_dir():
            raise QueryError(f"'{path_text(folder)}' is not a folder any more")
        return shared.ingesting.start([folder], top).as_dict()
    folder = _upload_folder(shared)
    return shared.ingesting.start([upload_path(folder, kept) for kept in asked.uploads], folder.resolve()).as_dict()


@changes_router.get("/ingest")
def ingest_state(shared: Shared) -> dict[str, Any]:
    """How the running ingest is, or the last one was."""
    return _job(shared).as_dict()


@changes_router.get("/ingest/events", response_class=StreamingResponse, responses={
    200: {"content": {"text/event-stream": {}}, "description": "The state now, and whenever it changes."},
})  # fmt: skip
async def ingest_events(shared: Shared) -> StreamingResponse:
    """Server-sent events with the state of the ingest, until it ends."""
    return Stream(events(_job(shared), shared.ending), shared.streams)


@changes_router.delete("/ingest", status_code=202)
def stop_ingest(shared: Shared) -> dict[str, Any]:
    """Stop the running ingest after its batch; what was written stays."""
    job = _job(shared)
    shared.ingesting.stop()
    return job.as_dict()


@changes_router.delete("/images/{id}")
def delete(shared: Shared, id: RowId) -> dict[str, int]:  # noqa: A002
    """Remove one row; the image file stays where it is."""
    return {"deleted": shared.index.delete([id])}


def _upload_folder(shared: Shared) -> Path:
    if shared.settings.upload_folder is None:
        raise ServeError("uploads are off: start mgm serve with --upload-to FOLDER")
    return shared.settings.upload_folder


def _job(shared: Shared) -> Job:
    if shared.ingesting.job is None:
        raise HTTPException(404, "nothing was ingested from this page yet")
    return shared.ingesting.job


duplicates_router = APIRouter(prefix="/api/duplicates", responses={**PROBLEMS, **BUSY})


def duplicate_options(
    distance: Annotated[
        int | None, QueryParameter(ge=0, description="Largest distance of near images on fine, in bits.")
    ] = None,
    precision: Annotated[
        float | None,
        QueryParameter(gt=0, lt=1, description="Instead: share of the pairs found that should not be chance: 0.99"),
    ] = None,
    keep: Annotated[str, QueryParameter(description=f"Which of a group stays: {', '.join(KEEP)}.")] = "best",
) -> dict[str, Any]:
    """The options of a search, from the address."""
    return {"distance": distance, "precision": precision, "keep": keep}


DuplicateOptions = Annotated[dict[str, Any], Depends(duplicate_options)]


@duplicates_router.get("")
async def duplicates(shared: Shared, asked: DuplicateOptions) -> Response:
    """Groups of near-identical images, as ``mgm duplicates --json``; may take minutes, with news in ``/events``."""

    def show(_: Progress) -> None:
        if shared.ending.is_set():
            raise _LeftError

    find = partial(shared.index.duplicates, **asked, progress=show)
    try:
        with shared.searches.one():
            report = await anyio.to_thread.run_sync(find, limiter=shared.comparing)
    except _LeftError:
        return refused(503, "the server ended before the search did; ask again when it is back")
    return JSONResponse(report.as_dict())


@duplicates_router.get("/events", response_class=StreamingResponse, responses={
    200: {"content": {"text/event-stream": {}}, "description": "The state now, whenever it changes, and the report."},
})  # fmt: skip
def duplicates_with_progress(shared: Shared, asked: DuplicateOptions) -> StreamingResponse:
    """The same as server-sent events; the report comes with the last one. The search ends when nobody listens."""
    return Stream(events_of_a_search(shared.index, asked, shared.comparing, shared.ending), shared.searches)


async def events_of_a_search(
    index: ImageIndex, asked: dict[str, Any], one: anyio.CapacityLimiter, ending: threading.Event
) -> AsyncGenerator[str]:
    """Server-sent events of a search, which ends soon after they are no longer asked for."""
    job, left = Job("duplicates", stage="waiting"), threading.Event()

    def show(progress: Progress) -> None:
        job.stage, job.done, job.total = progress.stage, progress.done, progress.total
        if left.is_set() or ending.is_set():
            raise _LeftError

    def work() -> None:
        try:
            report = index.duplicates(**asked, progress=show)
            said = [headline(report), criterion(report, index.schema.bits), chance(report)]
            job.report, job.state = report.as_dict() | {"sentences": [text for text in said if text]}, "done"
        except MgMilvusError as error:
            job.error, job.state = str(error), "failed"
        except _LeftError:
            job.state = "failed"
        except Exception as error:
            job.error, job.state = unexpected(error), "failed"
            raise

    working = asyncio.create_task(anyio.to_thread.run_sync(work, limiter=one))
    try:
        async for event in events(job, ending):
            yield event
        await working
    finally:
        left.set()


class _LeftError(Exception):
    """Nobody listens any more, or the server ends."""
