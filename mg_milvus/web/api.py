"""``/api``: queries and images (``router``), changes of the index (``changes_router``)."""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathParameter
from fastapi import Query as QueryParameter
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mg_milvus.codes import signs
from mg_milvus.errors import ImageError, MgMilvusError, QueryError, ServeError
from mg_milvus.images.discover import path_text, text_path
from mg_milvus.schema.models import REGIONS
from mg_milvus.search.query import QueryTerm, names_regions
from mg_milvus.search.query_image import whole_codes
from mg_milvus.search.rows import spellings as spellings_of
from mg_milvus.web.jobs import Job, events
from mg_milvus.web.limits import check_filter
from mg_milvus.web.media import (
    THUMBNAIL_SIDES,
    OriginalResponse,
    is_form,
    keep_upload,
    open_original,
    read_body,
    read_images,
    upload_path,
)
from mg_milvus.web.schemas import (
    ID_PATTERN,
    MAX_TERMS,
    IndexedQueryParameters,
    IndexedVerifyParameters,
    Info,
    QueryParameters,
    QueryResponse,
    VerificationResponse,
    VerifyParameters,
    decode_codes,
    encode_codes,
    parse_crop,
    result_fields,
    row_fields,
)
from mg_milvus.web.shares import PREFIX, Share, small_copy
from mg_milvus.web.state import CurrentState, EventStream, State, check_writable, count_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mg_milvus.codes import QueryCodes
    from mg_milvus.search.query import QueryOptions
    from mg_milvus.search.query_image import QueryImage


router = APIRouter()
T = TypeVar("T")

IMAGE_BODY = {"requestBody": {
    "required": True,
    "description": "The image file itself, as bytes.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}}  # fmt: skip
IMAGES_BODY = {"requestBody": {
    "required": True,
    "description": "The image file itself, as bytes; or a form of several, the files image and unlike.",
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": {"type": "object", "properties": {
            name: {"type": "array", "items": {"type": "string", "format": "binary"}} for name in ("image", "unlike")
        }}},
    },
}}  # fmt: skip
ERROR: dict[str, Any] = {
    "content": {"application/json": {"schema": {
        "type": "object", "required": ["error"], "properties": {"error": {"type": "string"}},
    }}},
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The query is invalid.", **ERROR},
    404: {"description": "There is no such image, or no index yet.", **ERROR},
    422: {"description": "An image or a parameter cannot be read.", **ERROR},
}
BUSY: dict[int | str, dict[str, Any]] = {
    503: {"description": "The server is busy: Retry-After says after how many seconds to retry.", **ERROR}
}
UNNAMED_IMAGE = "the bytes given as an image"
"""How messages of ``images.decode`` name an image without a path."""

REVALIDATE = {"cache-control": "private, no-cache"}
"""A browser may keep the response, and shows it again only after the server has confirmed it."""

RowId = Annotated[str, PathParameter(pattern=ID_PATTERN, description="Id of an indexed image.")]


@dataclass(frozen=True, slots=True)
class _QuerySource:
    """What a query searches with: the codes of an image, its width and height, and its id when it is indexed.

    Words alone have no codes.
    """

    codes: QueryCodes
    size: tuple[int, int] = (0, 0)
    id: str | None = None


@router.post("/api/query", response_model=QueryResponse, openapi_extra=IMAGES_BODY, responses={
    **ERRORS, **BUSY, 413: {"description": "The image has too many bytes.", **ERROR},
})  # fmt: skip
async def query_image(
    request: Request, state: CurrentState, parameters: Annotated[QueryParameters, QueryParameter()]
) -> Response:
    """Search with an image: ``curl --data-binary @cat.jpg "http://127.0.0.1:8000/api/query?k=5"``.

    A form of files ``image`` and ``unlike`` is one query with several images, and so is an image with ``like`` or
    ``unlike``: ``curl -F image=@red.jpg -F image=@shoe.jpg -F unlike=@boot.jpg http://127.0.0.1:8000/api/query``.
    """
    started, options = time.perf_counter(), parameters.options()
    with state.bodies.body() as body:
        if is_form(request):
            named = await read_images(
                request, state.settings.max_upload_bytes, body, {"image": MAX_TERMS, "unlike": MAX_TERMS}
            )
        else:
            named = [("image", await read_body(request, state.settings.max_upload_bytes, body))]
        terms = _row_terms(parameters)
        single = not terms and [name for name, _ in named] == ["image"]
        sources = []
        for place, (_, data) in enumerate(named, 1):
            try:
                sources.append(await _encode(state, data, options if single else _whole_options(state)))
            except ImageError as error:
                which = "the image that was sent" if len(named) == 1 else f"image {place} of {len(named)}"
                raise ImageError(f"{which}{str(error).removeprefix(UNNAMED_IMAGE)}") from error
    if single:
        return await _respond(state, sources[0], parameters, started)
    uploaded = [
        QueryTerm(codes=source.codes, weight=-1.0 if name == "unlike" else 1.0)
        for (name, _), source in zip(named, sources, strict=True)
    ]
    return await _respond_to_several(state, [*uploaded, *terms], parameters, started)


@router.get("/api/query", response_model=QueryResponse, responses={**ERRORS, **BUSY})
async def query_indexed(
    state: CurrentState, parameters: Annotated[IndexedQueryParameters, QueryParameter()]
) -> Response:
    """Search with an indexed image (left out of the hits), a crop of it, codes, words alone, or several images.

    For a crop, or when regions are searched, the image's file is read again; otherwise its stored codes are used.
    Several of ``id``, ``codes``, ``like`` and ``unlike`` are one query with all these images.
    """
    started, options = time.perf_counter(), parameters.options()
    row_id, codes = parameters.id, parameters.codes
    terms = _row_terms(parameters)
    if terms or len(codes) > 1:
        given = [QueryTerm(like=row_id)] if row_id else []
        decoded = [QueryTerm(codes=(await _in_thread(_decode_source, state, each)).codes) for each in codes]
        return await _respond_to_several(state, [*given, *decoded, *terms], parameters, started)
    if parameters.text and not (row_id or codes):
        return await _respond(state, _QuerySource({}), parameters, started)
    if bool(row_id) == bool(codes):
        raise QueryError("give an id or codes, and not both, or text; an image is sent with POST")
    if not row_id:
        if options.get("crop") is not None:
            raise QueryError("crop needs the image itself: send it with POST, or give an id")
        source = await _in_thread(_decode_source, state, codes[0])
        return await _respond(state, source, parameters, started)
    row = await _in_thread(state.index.row, row_id)
    if options.get("crop") is not None or options.get("views") or names_regions(options):
        own: QueryCodes = (await _encode(state, text_path(row.path), options)).codes
    else:
        stored = await _in_thread(state.index.codes, row_id)
        own = {name: signs(code) for name, code in stored.items()}
    return await _respond(state, _QuerySource(own, (row.width, row.height), row_id), parameters, started)


def _row_terms(parameters: QueryParameters) -> list[QueryTerm]:
    """The further images of a query, which the address names."""
    return [QueryTerm(like=each) for each in parameters.like] + [
        QueryTerm(like=each, weight=-1.0) for each in parameters.unlike
    ]


def _whole_options(state: State) -> QueryOptions:
    """How one of several images is encoded: as a whole, without regions and views."""
    return {"weights": dict.fromkeys(state.index.schema.bits, 1.0)}


async def _respond_to_several(
    state: State, terms: Sequence[QueryTerm], parameters: QueryParameters, started: float
) -> Response:
    if parameters.candidates:
        raise QueryError("candidates are those of one image; search with one, or without candidates")
    options = parameters.options()
    # views are of one image, and off for several unless they are asked for
    options["views"] = parameters.views

    def search() -> dict[str, Any]:
        index = state.index
        unlike = [_decode_source(state, text).codes for text in parameters.unlike_codes]
        every = [*terms, *(QueryTerm(codes=codes, weight=-1.0) for codes in unlike)]
        result = index.search_together(every, **options)
        query = {
            "id": None, "codes": "", "width": 0, "height": 0, "crop": None,
            "terms": [
                {
                    "id": term.like, "weight": term.weight,
                    "codes": "" if term.codes is None else encode_codes(
                        whole_codes(index.schema, term.codes), index.fingerprint
                    ),
                }
                for term in every
            ],
        }  # fmt: skip
        return {"query": query} | result_fields(result, index.schema, with_candidates=False)

    return await _timed(state, search, options, started)


async def _encode(state: State, image: Any, options: QueryOptions) -> _QuerySource:
    """Encode a query image, in one batch with those of concurrent requests."""

    def decode() -> QueryImage:
        return state.index.decode_query(image, max_pixels=state.settings.max_pixels, **options)

    decoded = await anyio.to_thread.run_sync(decode, limiter=state.decode_limiter)
    return _QuerySource(await state.encode(decoded), (decoded.width, decoded.height))


def _decode_source(state: State, codes: str) -> _QuerySource:
    if codes.startswith(PREFIX):
        share = state.shares.get(codes.removeprefix(PREFIX))
        own = share.codes
        if share.fingerprint != state.index.fingerprint:  # a refit has given the collection other codes
            options: QueryOptions = {"crop": share.small_crop()}
            if REGIONS in own:
                options["regions"] = "contains"
            (own,) = state.index.encode([state.index.decode_query(share.thumbnail, **options)])
        return _QuerySource(own, (share.width, share.height))
    return _QuerySource(decode_codes(codes, state.index.schema, state.index.fingerprint))


async def _respond(state: State, source: _QuerySource, parameters: QueryParameters, started: float) -> Response:
    options = parameters.options()

    def search() -> dict[str, Any]:
        index, schema = state.index, state.index.schema
        result = index.search(
            source.codes, exclude=() if source.id is None else (source.id,), all_candidates=parameters.candidates,
            **options,
        )  # fmt: skip
        own = {name: source.codes[name] for name in schema.bits if source.codes}
        codes = encode_codes(own, index.fingerprint) if own else ""
        width, height = source.size
        asked = {"id": source.id, "codes": codes, "width": width, "height": height, "crop": options.get("crop")}
        return {"query": asked} | result_fields(result, schema, with_candidates=parameters.candidates)

    return await _timed(state, search, options, started)


async def _timed(state: State, search: Callable[[], dict[str, Any]], options: QueryOptions, started: float) -> Response:
    response = await (
        state.filter_queue.run(search) if options.get("filter") or options.get("cluster") else _in_thread(search)
    )
    response["seconds"] = round(time.perf_counter() - started, 4)
    state.metrics.query(response["seconds"])
    return JSONResponse(response)


@router.post("/api/shares", openapi_extra=IMAGE_BODY, responses={
    **ERRORS, **BUSY, 413: {"description": "The image has too many bytes.", **ERROR},
})  # fmt: skip
async def share(
    request: Request,
    state: CurrentState,
    name: Annotated[str, QueryParameter(max_length=1000, description="Its name: cat.jpg")] = "",
    crop: Annotated[str | None, QueryParameter(description="Search with this crop: X,Y,W,H in pixels.")] = None,
) -> dict[str, str]:
    """Keep a query image for a link, for a week: its codes, with those of its regions, and a small copy.

    The response has ``codes`` for ``/api/query``.
    """
    schema = state.index.schema
    options: QueryOptions = {"crop": parse_crop(crop) if crop else None}
    if schema.regions is not None:
        options["regions"] = "contains"
    with state.bodies.body() as body:
        data = await read_body(request, state.settings.max_upload_bytes, body)
        try:
            source = await _encode(state, data, options)
            limiter = state.decode_limiter
            small = await anyio.to_thread.run_sync(small_copy, data, state.settings.max_pixels, limiter=limiter)
        except ImageError as error:
            raise ImageError(f"the image that was sent{str(error).removeprefix(UNNAMED_IMAGE)}") from error
    kept = Share(source.codes, state.index.fingerprint, name, *source.size, small, options["crop"])
    return {"codes": PREFIX + await _in_thread(state.shares.add, kept)}


@router.get("/api/shares/{name}", responses=ERRORS)
async def get_share(state: CurrentState, name: str) -> dict[str, Any]:
    """The query image of a shared link: its name, size, and small copy, and whether its regions can be searched."""
    found = await _in_thread(state.shares.get, name.removeprefix(PREFIX))
    return {
        "name": found.name, "width": found.width, "height": found.height, "regions": REGIONS in found.codes,
        "thumbnail": f"data:image/jpeg;base64,{base64.b64encode(found.thumbnail).decode()}",
    }  # fmt: skip


@router.post("/api/verify", response_model=list[VerificationResponse], openapi_extra=IMAGE_BODY, responses={
    **ERRORS, **BUSY, 413: {"description": "The image has too many bytes.", **ERROR},
})  # fmt: skip
async def verify_image(
    request: Request, state: CurrentState, parameters: Annotated[VerifyParameters, QueryParameter()]
) -> Response:
    """Compare an image with indexed ones by their pixels: the same image, edited, the same flat object, and where."""
    with state.bodies.body() as body:
        data = await read_body(request, state.settings.max_upload_bytes, body)
        try:
            return await _verify(state, data, parameters)
        except ImageError as error:
            raise ImageError(f"the image that was sent{str(error).removeprefix(UNNAMED_IMAGE)}") from error


@router.get("/api/verify", response_model=list[VerificationResponse], responses={**ERRORS, **BUSY})
async def verify_indexed(
    state: CurrentState, parameters: Annotated[IndexedVerifyParameters, QueryParameter()]
) -> Response:
    """Compare an indexed image with others by their pixels, see above; its file is read."""
    row = await _in_thread(state.index.row, parameters.id)
    try:
        return await _verify(state, text_path(row.path), parameters)
    except ImageError as error:
        raise _file_error(parameters.id) from error


async def _verify(state: State, image: Any, parameters: VerifyParameters) -> Response:
    ids = parameters.ids.split(",")
    verify = partial(state.index.verify, image, ids, crop=parameters.box(), max_pixels=state.settings.max_pixels)
    found = await anyio.to_thread.run_sync(verify, limiter=state.verify_limiter)
    return JSONResponse([{"id": own, **each.as_dict()} for own, each in zip(ids, found, strict=True)])


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    return await anyio.to_thread.run_sync(partial(function, *arguments))


@router.get("/api/sample", responses={**ERRORS, **BUSY})
async def sample(
    state: CurrentState,
    count: Annotated[int, QueryParameter(ge=1, le=1000, description="Number of images, at most.")] = 60,
    filter: Annotated[str | None, QueryParameter(description="Only rows that match this Milvus expression.")] = None,  # noqa: A002
) -> list[dict[str, Any]]:
    """A random sample of indexed images: id, path, and the row's other fields."""
    check_filter(filter)
    draw = partial(state.index.sample, count, filter or None)
    rows = await (state.filter_queue.run(draw) if filter else _in_thread(draw))
    return [row_fields(row) for row in rows]


Typed = Annotated[str, QueryParameter(max_length=200, description="What is typed; its case does not count.")]
MAX_COMPLETIONS = 20


@router.get("/api/tags", responses={**ERRORS, **BUSY})
async def tags(state: CurrentState, prefix: Typed = "") -> dict[str, int]:
    """Tags that a word begins with, and how many images have them, the most frequent first; twenty at most."""

    def count() -> Mapping[Any, int]:
        try:
            return state.index.tags()
        except QueryError:  # no image has any
            return {}

    counts = await state.filter_queue.run(lambda: state.counts.get("tags", count))
    start = prefix.strip().casefold()
    return _first(counts, lambda tag: tag.casefold().startswith(start) or f" {start}" in tag.casefold())


@router.get("/api/values", responses={**ERRORS, **BUSY})
async def values(
    state: CurrentState,
    field: Annotated[str, QueryParameter(max_length=200, description="A field of the schema's own.")],
    text: Typed = "",
) -> dict[str, int]:
    """Values of a text field that hold what is typed, and how many images have them; twenty at most."""
    own = {each.name: each.type for each in state.index.schema.fields}
    if own.get(field) != "string":
        texts = ", ".join(name for name, kind in own.items() if kind == "string") or "none"
        raise QueryError(f"'{field}' is not a field of texts, expected one of: {texts}")
    count = partial(state.index.facets, field)
    counts = await state.filter_queue.run(lambda: state.counts.get(f"values {field}", count))
    return _first(counts, lambda value: text.strip().casefold() in value.casefold())


@router.get("/api/spellings", responses={**ERRORS, **BUSY})
async def spellings(
    state: CurrentState,
    field: Annotated[str, QueryParameter(max_length=200, description="path, or a field of the schema's own.")],
    text: Typed,
) -> list[str]:
    """How a text is written in the values of a field, whatever the case: a filter's ``like`` heeds it."""
    count = partial(state.index.facets, field)
    counts = await state.filter_queue.run(lambda: state.counts.get(f"values {field}", count))
    return await anyio.to_thread.run_sync(spellings_of, counts, text)


def _first(counts: Mapping[Any, int], matches: Callable[[str], bool]) -> dict[str, int]:
    found = ((value, count) for value, count in counts.items() if isinstance(value, str) and matches(value))
    return dict(islice(found, MAX_COMPLETIONS))


@router.get("/api/images/{id}", responses=ERRORS)
async def get_row(state: CurrentState, id: RowId) -> dict[str, Any]:  # noqa: A002
    """One row: path, size, width, height, and the schema's own fields."""
    return row_fields(await _in_thread(state.index.row, id))


@router.get("/api/images/{id}/thumbnail", response_class=Response, responses={
    **ERRORS, 200: {"content": {"image/jpeg": {}}, "description": "A JPEG whose longest side is at most ``side``."},
    304: {"description": "Unchanged: If-None-Match names it."},
})  # fmt: skip
async def thumbnail(
    request: Request,
    state: CurrentState,
    id: RowId,  # noqa: A002
    side: Annotated[
        int, QueryParameter(description="Pixels: 240, 480 or 1600.", json_schema_extra={"enum": list(THUMBNAIL_SIDES)})
    ] = THUMBNAIL_SIDES[1],
) -> Response:
    """A small JPEG of an indexed image."""
    if side not in THUMBNAIL_SIDES:
        raise QueryError(f"side is {side}, expected one of {', '.join(map(str, THUMBNAIL_SIDES))}")
    row = await _in_thread(state.index.row, id)
    try:
        data = await anyio.to_thread.run_sync(state.thumbnails.of, row, side, limiter=state.decode_limiter)
    except ImageError as error:
        raise _file_error(id) from error
    headers = REVALIDATE | {"etag": f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'}
    if _has_cached(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


@router.get("/api/images/{id}/original", response_class=Response, responses={
    **ERRORS, 200: {"content": {"image/*": {}}, "description": "The file as it is."},
    206: {"content": {"image/*": {}}, "description": "The requested range of it."},
    304: {"description": "Unchanged: If-None-Match names it."},
})  # fmt: skip
async def original(request: Request, state: CurrentState, id: RowId) -> Response:  # noqa: A002
    """The image file as it is, if its content is still what was ingested."""
    row = await _in_thread(state.index.row, id)
    try:
        opened = await anyio.to_thread.run_sync(open_original, row, limiter=state.decode_limiter)
    except ImageError as error:
        raise _file_error(id) from error
    headers = REVALIDATE | {"etag": f'"{row.content_hash}"'}
    if _has_cached(request, headers["etag"]):
        opened.file.close()
        return Response(status_code=304, headers=headers)
    name = quote(text_path(row.path).name.encode("utf-8", "surrogateescape"))
    headers["content-disposition"] = f"inline; filename*=UTF-8''{name}"
    same = request.headers.get("if-range", headers["etag"]) == headers["etag"]
    return OriginalResponse(opened, request.headers.get("range") if same else None, headers)


@router.get("/api/info", response_model=Info, responses=ERRORS)
async def info(state: CurrentState) -> Response:
    """Facts about the index, as ``mgm info --json``."""
    return JSONResponse((await _in_thread(state.index.info)).as_dict())


@router.get("/health", responses={503: {"description": "The index does not respond.", **ERROR}})
async def health(state: CurrentState) -> dict[str, str]:
    """Whether the index responds; no token is required."""
    with state.health_slots.take():
        await _in_thread(count_rows, state)
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(state: CurrentState) -> Response:
    """Counts and durations, in the text format of Prometheus."""
    return PlainTextResponse(
        state.metrics.text(await _in_thread(count_rows, state)), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


def _file_error(row_id: str) -> MgMilvusError:
    return ImageError(
        f"the file of image {row_id} is gone, cannot be read, or was changed since it was ingested: put it back, or "
        "ingest it again"
    )


def _has_cached(request: Request, etag: str) -> bool:
    """Whether the browser has the current version."""
    known = request.headers.get("if-none-match", "")
    return any(each.strip().removeprefix("W/") in {etag, "*"} for each in known.split(","))


CHANGE_ERRORS: dict[int | str, dict[str, Any]] = {
    **ERRORS, **BUSY, 403: {"description": "The page is read-only.", **ERROR},
}  # fmt: skip
changes_router = APIRouter(prefix="/api", dependencies=[Depends(check_writable)], responses=CHANGE_ERRORS)


class IngestRequest(BaseModel):
    """What to ingest: uploads by the names that the server gave them, or one folder that the server may read."""

    model_config = ConfigDict(extra="forbid")

    uploads: list[str] = Field(default=[], max_length=20_000)
    folder: str | None = None


@changes_router.post("/uploads", openapi_extra=IMAGE_BODY, responses={
    413: {"description": "The image has too many bytes.", **ERROR},
    507: {"description": "The folder of uploads is full.", **ERROR},
})  # fmt: skip
async def upload(
    request: Request,
    state: CurrentState,
    name: Annotated[str, QueryParameter(max_length=1000, description="Its name: cat.jpg")],
) -> dict[str, str]:
    """Send one image to be ingested; the response says under which name."""
    folder = _upload_folder(state)
    with state.bodies.body() as body:
        await anyio.to_thread.run_sync(state.upload_quota.check)
        data = await read_body(request, state.settings.max_upload_bytes, body)
        kept = await anyio.to_thread.run_sync(
            keep_upload, folder, name, data, state.settings.max_pixels, limiter=state.decode_limiter
        )
    state.upload_quota.add(len(data))
    return {"upload": kept, "path": path_text(folder / kept)}


@changes_router.post("/ingest", status_code=202)
def ingest(state: CurrentState, request: IngestRequest) -> dict[str, Any]:
    """Start an ingest; one runs at a time. ``/api/ingest/events`` reports its progress."""
    if bool(request.uploads) == (request.folder is not None):
        raise QueryError("give the names of uploads, or a folder, and not both")
    if request.folder is not None:
        folder, top = state.settings.resolve_ingest_folder(request.folder)
        if not folder.is_dir():
            raise QueryError(f"'{path_text(folder)}' is not a folder any more")
        return state.ingests.start([folder], top).as_dict()
    folder = _upload_folder(state)
    return state.ingests.start([upload_path(folder, kept) for kept in request.uploads], folder.resolve()).as_dict()


@changes_router.get("/ingest")
def ingest_state(state: CurrentState) -> dict[str, Any]:
    """The state of the running ingest, or of the last one."""
    return _job(state).as_dict()


@changes_router.get("/ingest/events", response_class=StreamingResponse, responses={
    200: {"content": {"text/event-stream": {}}, "description": "The state, now and at each change."},
})  # fmt: skip
async def ingest_events(state: CurrentState) -> StreamingResponse:
    """Server-sent events with the state of the ingest, until it ends."""
    return EventStream(events(_job(state), state.shutdown), state.stream_slots)


@changes_router.delete("/ingest", status_code=202)
def stop_ingest(state: CurrentState) -> dict[str, Any]:
    """Stop the running ingest after its batch; what was written stays."""
    job = _job(state)
    state.ingests.stop()
    return job.as_dict()


@changes_router.delete("/images/{id}")
def delete(state: CurrentState, id: RowId) -> dict[str, int]:  # noqa: A002
    """Remove one row; the image file stays where it is."""
    return {"deleted": state.index.delete([id])}


def _upload_folder(state: CurrentState) -> Path:
    if state.settings.upload_folder is None:
        raise ServeError("uploads are off: start mgm serve with --upload-to FOLDER")
    return state.settings.upload_folder


def _job(state: CurrentState) -> Job:
    if state.ingests.job is None:
        raise HTTPException(404, "nothing has been ingested from this page yet")
    return state.ingests.job
