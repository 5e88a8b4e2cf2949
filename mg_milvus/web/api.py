"""``/api``, the reading half: questions, pictures, a look around."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from mg_milvus.errors import MgMilvusError, PictureError, QueryError
from mg_milvus.images.discover import text_path
from mg_milvus.question import QueryOptions, names_parts
from mg_milvus.web.about import rows
from mg_milvus.web.asking import Answer, Info, answer, codes_from, codes_text, described, options
from mg_milvus.web.files import read_body
from mg_milvus.web.limits import check_filter
from mg_milvus.web.originals import OriginalResponse, open_original
from mg_milvus.web.state import Shared, State  # noqa: TC001 - FastAPI reads the annotations
from mg_milvus.web.thumbnails import SIDES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.search import Prepared

router = APIRouter()
T = TypeVar("T")

PICTURE_BODY = {"requestBody": {
    "required": True,
    "description": "The picture file itself, as bytes.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}}  # fmt: skip
ERROR: dict[str, Any] = {
    "content": {"application/json": {"schema": {
        "type": "object", "required": ["error"], "properties": {"error": {"type": "string"}},
    }}},
}  # fmt: skip
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The question cannot be answered as asked.", **ERROR},
    404: {"description": "There is no such picture, or no index yet.", **ERROR},
    422: {"description": "A picture or a parameter cannot be read.", **ERROR},
}
BUSY: dict[int | str, dict[str, Any]] = {
    503: {"description": "Too much is being done at once: Retry-After says when to come again.", **ERROR}
}
BYTES = "the bytes given as a picture"
"""How ``open_picture`` names what has no name."""

ASK_AGAIN = {"cache-control": "private, no-cache"}
"""A browser may keep it, and shows it only when it is still there."""

RowId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="Id of an indexed picture.")]
Options = Annotated[QueryOptions, Depends(options)]
WithCandidates = Annotated[bool, Query(description="Also tell every candidate with its distances.")]


@router.post("/api/query", response_model=Answer, openapi_extra=PICTURE_BODY, responses={
    **PROBLEMS, **BUSY, 413: {"description": "The picture has too many bytes.", **ERROR},
})  # fmt: skip
async def query_with_a_picture(
    request: Request, shared: Shared, asked: Options, candidates: WithCandidates = False
) -> Response:
    """Ask with a picture: ``curl --data-binary @cat.jpg "http://127.0.0.1:8000/api/query?k=5"``."""
    started = time.perf_counter()
    with shared.intake.body() as body:
        data = await read_body(request, shared.settings.max_upload_bytes, body)
        try:
            codes, size = await _encoded(shared, data, asked)
        except PictureError as error:
            raise PictureError(f"the picture that was sent{str(error).removeprefix(BYTES)}") from error
    return await _answered(shared, codes, asked, started, candidates, size=size)


@router.get("/api/query", response_model=Answer, responses={**PROBLEMS, **BUSY})
async def query_with_what_is_there(
    shared: Shared, asked: Options, candidates: WithCandidates = False,
    id: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$", description="An indexed picture.")] = None,  # noqa: A002
    codes: Annotated[str | None, Query(description="What an earlier answer said under query.codes.")] = None,
) -> Response:  # fmt: skip
    """Ask with a picture that is indexed (it is left out of the hits), with a part of it, or with codes.

    For a part, or when regions are asked, its file is read again; otherwise its codes in the index are enough.
    """
    started = time.perf_counter()
    if bool(id) == bool(codes):
        raise QueryError("give an id or codes, and not both; a picture is sent with POST")
    if not id:
        if asked.get("crop") is not None:
            raise QueryError("crop needs the picture itself: send it with POST, or give an id")
        given = await _in_thread(_given_codes, shared, codes or "")
        return await _answered(shared, given, asked, started, candidates)
    row = await _in_thread(shared.browser.row, id)
    if asked.get("crop") is not None or names_parts(asked):
        codes_there, _ = await _encoded(shared, text_path(row.path), asked)
    else:
        codes_there = await _in_thread(shared.browser.codes_of, id)
    return await _answered(shared, codes_there, asked, started, candidates, size=(row.width, row.height), row_id=id)


@router.get("/api/sample", responses={**PROBLEMS, **BUSY})
async def sample(
    shared: Shared,
    count: Annotated[int, Query(ge=1, le=1000, description="How many, at most.")] = 60,
    filter: Annotated[str | None, Query(description="Only rows that match this Milvus expression.")] = None,  # noqa: A002
) -> list[dict[str, Any]]:
    """Indexed pictures at random: id, path, and the row's other fields."""
    check_filter(filter)
    look = partial(shared.browser.sample, count, filter or None)
    rows = await (shared.filtering.run(look) if filter else _in_thread(look))
    return [described(row) for row in rows]


@router.get("/api/pictures/{id}", responses=PROBLEMS)
async def row(shared: Shared, id: RowId) -> dict[str, Any]:  # noqa: A002
    """One row: path, size, width, height, and the schema's own fields."""
    return described(await _in_thread(shared.browser.row, id))


@router.get("/api/pictures/{id}/thumbnail", response_class=Response, responses={
    **PROBLEMS, 200: {"content": {"image/jpeg": {}}, "description": "A JPEG whose longest side is at most so long."},
    304: {"description": "It is what If-None-Match names."},
})  # fmt: skip
async def thumbnail(
    request: Request,
    shared: Shared,
    id: RowId,  # noqa: A002
    side: Annotated[
        int, Query(description="Pixels: 240, 480 or 1600.", json_schema_extra={"enum": list(SIDES)})
    ] = SIDES[1],
) -> Response:
    """A small JPEG of an indexed picture."""
    if side not in SIDES:
        raise QueryError(f"side is {side}, expected one of {', '.join(map(str, SIDES))}")
    found = await _in_thread(shared.browser.row, id)
    try:
        data = await anyio.to_thread.run_sync(shared.thumbnails.of, found, side, limiter=shared.decoding)
    except PictureError as error:
        raise _gone(id) from error
    headers = ASK_AGAIN | {"etag": f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'}
    if _is_known(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


@router.get("/api/pictures/{id}/original", response_class=Response, responses={
    **PROBLEMS, 200: {"content": {"image/*": {}}, "description": "The file as it is."},
    206: {"content": {"image/*": {}}, "description": "The range of it that was asked for."},
    304: {"description": "It is what If-None-Match names."},
})  # fmt: skip
async def original(request: Request, shared: Shared, id: RowId) -> Response:  # noqa: A002
    """The picture file as it is, if it is still what was ingested."""
    found = await _in_thread(shared.browser.row, id)
    try:
        opened = await anyio.to_thread.run_sync(open_original, found, limiter=shared.decoding)
    except PictureError as error:
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
    return PictureError(
        f"the file of picture {row_id} is gone, cannot be read, or was changed since it was ingested: put it back, or "
        "ingest it again"
    )


def _is_known(request: Request, etag: str) -> bool:
    """Whether the browser has it already."""
    known = request.headers.get("if-none-match", "")
    return any(each.strip().removeprefix("W/") in {etag, "*"} for each in known.split(","))


def _given_codes(shared: State, text: str) -> dict[str, Codes]:
    return codes_from(text, shared.index.schema, shared.browser.fingerprint)


async def _encoded(shared: State, picture: Any, asked: QueryOptions) -> tuple[dict[str, Codes], tuple[int, int]]:
    """Codes of a picture as a question wants them, encoded together with others, and its width and height."""

    def prepare() -> Prepared:
        parts = shared.browser.question(asked).parts
        return shared.browser.prepare(picture, asked.get("crop"), shared.settings.max_pixels, parts)

    ready = await anyio.to_thread.run_sync(prepare, limiter=shared.decoding)
    return await shared.encode(ready), (ready.width, ready.height)


async def _answered(
    shared: State, codes: Mapping[str, Codes], asked: QueryOptions, started: float, candidates: bool, *,
    size: tuple[int, int] = (0, 0), row_id: str | None = None,
) -> Response:  # fmt: skip
    def work() -> dict[str, Any]:
        without: Sequence[str] = () if row_id is None else (row_id,)
        schema, found = shared.index.schema, None
        if candidates:
            question, hits, found = shared.browser.ask_wide(codes, asked, without)
        else:
            question, hits = shared.browser.ask(codes, asked, without)
        mine = {name: codes[name] for name in schema.bits}
        return answer(question, hits, found, schema, {
            "id": row_id, "codes": codes_text(mine, shared.browser.fingerprint), "width": size[0], "height": size[1],
            "crop": asked.get("crop"),
        })  # fmt: skip

    told = await (shared.filtering.run(work) if asked.get("filter") else _in_thread(work))
    told["seconds"] = round(time.perf_counter() - started, 4)
    shared.meters.query(told["seconds"])
    return JSONResponse(told)


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    return await anyio.to_thread.run_sync(partial(function, *arguments))
