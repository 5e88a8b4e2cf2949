"""``/api/duplicates``: the search for near-duplicates, at once or with its progress."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Depends
from fastapi import Query as QueryParameter
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mg_milvus.duplicates.report import KEEP
from mg_milvus.errors import MgMilvusError
from mg_milvus.web.api import BUSY, ERRORS
from mg_milvus.web.jobs import Job, bug_message, events
from mg_milvus.web.security import error_response
from mg_milvus.web.state import CurrentState, EventStream, State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mg_milvus.records import Progress

router = APIRouter(prefix="/api/duplicates", responses={**ERRORS, **BUSY})


def duplicate_options(
    state: CurrentState,
    distance: Annotated[
        int | None, QueryParameter(ge=0, description="Largest distance of near images on fine, in bits.")
    ] = None,
    precision: Annotated[
        float | None,
        QueryParameter(gt=0, lt=1, description="Instead: share of the pairs that are not near by chance: 0.99"),
    ] = None,
    keep: Annotated[str, QueryParameter(description=f"Which image of a group to keep: {', '.join(KEEP)}.")] = "best",
) -> dict[str, Any]:
    """The options of a search for near-duplicates, from the address."""
    file = state.settings.ignore_file
    return {
        "distance": distance,
        "precision": precision,
        "keep": keep,
        "ignore": file if file and file.exists() else None,
    }


DuplicateOptions = Annotated[dict[str, Any], Depends(duplicate_options)]


@router.get("")
async def duplicates(state: CurrentState, options: DuplicateOptions) -> Response:
    """Groups of near-identical images, as ``mgm duplicates --json``; may take minutes; ``/events`` reports progress."""

    def report_progress(_: Progress) -> None:
        if state.shutdown.is_set():
            raise _StoppedError

    find = partial(state.index.duplicates, **options, progress=report_progress)
    try:
        with state.duplicate_slots.take():
            report = await anyio.to_thread.run_sync(find, limiter=state.duplicates_limiter)
    except _StoppedError:
        return error_response(503, "the server shut down during the search; retry when it is back")
    return JSONResponse(report.as_dict())


@router.get("/events", response_class=StreamingResponse, responses={
    200: {"content": {"text/event-stream": {}}, "description": "The state, now and at each change, and the report."},
})  # fmt: skip
def duplicates_with_progress(state: CurrentState, options: DuplicateOptions) -> StreamingResponse:
    """The same as server-sent events; the last one has the report. The search stops when the client disconnects."""
    search = duplicate_events(state, options)
    return EventStream(search, state.duplicate_slots)


async def duplicate_events(state: State, options: dict[str, Any]) -> AsyncGenerator[str]:
    """Server-sent events of a search, which stops soon after the generator is closed."""
    job, stopped = Job("duplicates", stage="waiting"), threading.Event()

    def report_progress(progress: Progress) -> None:
        job.stage, job.done, job.total = progress.stage, progress.done, progress.total
        if stopped.is_set() or state.shutdown.is_set():
            raise _StoppedError

    def work() -> None:
        try:
            report = state.index.duplicates(**options, progress=report_progress)
            job.report, job.state = report.as_dict() | {"name": state.reports.add(report)}, "done"
        except MgMilvusError as error:
            job.error, job.state = str(error), "failed"
        except _StoppedError:
            job.state = "failed"
        except Exception as error:
            job.error, job.state = bug_message(error), "failed"
            raise

    working = asyncio.create_task(anyio.to_thread.run_sync(work, limiter=state.duplicates_limiter))
    try:
        async for event in events(job, state.shutdown):
            yield event
        await working
    finally:
        stopped.set()


class _StoppedError(Exception):
    """The client has disconnected, or the server shuts down."""
