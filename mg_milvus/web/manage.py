"""``/api``, the writing half: uploads, ingests, deletions. All of it is refused when the page is read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mg_milvus.errors import QueryError, ServeError
from mg_milvus.images.discover import path_text
from mg_milvus.web.api import BUSY, ERROR, PICTURE_BODY, PROBLEMS, RowId
from mg_milvus.web.files import keep_upload, read_body, upload_path
from mg_milvus.web.ingesting import events
from mg_milvus.web.state import Shared, Stream

if TYPE_CHECKING:
    from pathlib import Path

    from mg_milvus.web.ingesting import Job


def _may_write(shared: Shared) -> None:
    if shared.settings.read_only:
        raise HTTPException(403, "the page is read-only: start mgm serve without --read-only to change the index")


REFUSED: dict[int | str, dict[str, Any]] = {**PROBLEMS, **BUSY, 403: {"description": "The page is read-only.", **ERROR}}
router = APIRouter(prefix="/api", dependencies=[Depends(_may_write)], responses=REFUSED)


class IngestRequest(BaseModel):
    """What to ingest: uploads by the names they were given, or one folder that the server may read."""

    model_config = ConfigDict(extra="forbid")

    uploads: list[str] = Field(default=[], max_length=20_000)
    folder: str | None = None


@router.post("/uploads", openapi_extra=PICTURE_BODY, responses={
    413: {"description": "The picture has too many bytes.", **ERROR},
    507: {"description": "The folder of uploads is full.", **ERROR},
})  # fmt: skip
async def upload(
    request: Request, shared: Shared, name: Annotated[str, Query(max_length=1000, description="Its name: cat.jpg")]
) -> dict[str, str]:
    """Send one picture to be ingested; the answer says under which name."""
    folder = _upload_folder(shared)
    with shared.intake.body() as body:
        await anyio.to_thread.run_sync(shared.room.check)
        data = await read_body(request, shared.settings.max_upload_bytes, body)
        kept = await anyio.to_thread.run_sync(
            keep_upload, folder, name, data, shared.settings.max_pixels, limiter=shared.decoding
        )
    shared.room.add(len(data))
    return {"upload": kept}


@router.post("/ingest", status_code=202)
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


@router.get("/ingest")
def ingest_state(shared: Shared) -> dict[str, Any]:
    """How the running ingest is, or the last one was."""
    return _job(shared).as_dict()


@router.get("/ingest/events", response_class=StreamingResponse, responses={
    200: {"content": {"text/event-stream": {}}, "description": "The state now, and whenever it changes."},
})  # fmt: skip
async def ingest_events(shared: Shared) -> StreamingResponse:
    """Server-sent events with the state of the ingest, until it ends."""
    return Stream(events(_job(shared), shared.ending), shared.streams)


@router.delete("/ingest", status_code=202)
def stop_ingest(shared: Shared) -> dict[str, Any]:
    """Stop the running ingest after its batch; what was written stays."""
    job = _job(shared)
    shared.ingesting.stop()
    return job.as_dict()


@router.delete("/pictures/{id}")
def delete(shared: Shared, id: RowId) -> dict[str, int]:  # noqa: A002
    """Remove one row; the picture file stays where it is."""
    return {"deleted": shared.index.delete([id])}


def _upload_folder(shared: Shared) -> Path:
    if shared.settings.upload_folder is None:
        raise ServeError("uploads are off: start mgm serve with --upload-to FOLDER")
    return shared.settings.upload_folder


def _job(shared: Shared) -> Job:
    if shared.ingesting.job is None:
        raise HTTPException(404, "nothing was ingested from this page yet")
    return shared.ingesting.job
