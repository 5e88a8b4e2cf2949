"""``/api/duplicates``: groups of near-identical pictures. Reads codes only, and deletes nothing."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mg_milvus.duplicates.grouping import KEEP
from mg_milvus.duplicates.sentences import chance, criterion, headline
from mg_milvus.errors import MgMilvusError
from mg_milvus.web.api import BUSY, PROBLEMS
from mg_milvus.web.guard import refused
from mg_milvus.web.ingesting import Job, events, unexpected
from mg_milvus.web.state import Shared, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mg_milvus.hits import Progress
    from mg_milvus.index import ImageIndex

router = APIRouter(prefix="/api/duplicates", responses={**PROBLEMS, **BUSY})


def options(
    distance: Annotated[
        int | None, Query(ge=0, description="Largest distance of near pictures on fine, in bits.")
    ] = None,
    precision: Annotated[
        float | None, Query(gt=0, lt=1, description="Instead: share of the pairs found that should not be chance: 0.99")
    ] = None,
    keep: Annotated[str, Query(description=f"Which of a group stays: {', '.join(KEEP)}.")] = "best",
) -> dict[str, Any]:
    """The options of a search, from the address."""
    return {"distance": distance, "precision": precision, "keep": keep}


Options = Annotated[dict[str, Any], Depends(options)]


@router.get("")
async def duplicates(shared: Shared, asked: Options) -> Response:
    """Groups of near-identical pictures, as ``mgm duplicates --json``; may take minutes, with news in ``/events``."""

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


@router.get("/events", response_class=StreamingResponse, responses={
    200: {"content": {"text/event-stream": {}}, "description": "The state now, whenever it changes, and the report."},
})  # fmt: skip
def duplicates_with_progress(shared: Shared, asked: Options) -> StreamingResponse:
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
