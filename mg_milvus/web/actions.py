"""``/api/lists``, ``/api/images/tag`` and ``/api/images/delete``: what is done with images that were selected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from mg_milvus.bulk.lists import archive_chunks, json_of, paths_of, table_of
from mg_milvus.duplicates.move import can_undo
from mg_milvus.errors import ServeError
from mg_milvus.images.paths import Disks
from mg_milvus.web.api import BUSY, CHANGE_ERRORS, ERRORS
from mg_milvus.web.limits import BusyError, Form
from mg_milvus.web.schemas import RowIdText
from mg_milvus.web.state import CurrentState, State, busy_response, check_writable

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

    from mg_milvus.records import Failure

MAX_SELECTED = 20_000
MAX_ARCHIVE_BYTES = 20_000_000_000

Ids = Annotated[list[RowIdText], Field(min_length=1, max_length=MAX_SELECTED, description="Indexed images.")]
_TYPES: dict[str, str] = {
    "txt": "text/plain; charset=utf-8", "csv": "text/csv; charset=utf-8", "json": "application/json",
    "zip": "application/zip",
}  # fmt: skip


class ListRequest(BaseModel):
    """Which images to list, and how: ``txt`` has the paths, ``csv`` and ``json`` all fields, ``zip`` the files."""

    model_config = ConfigDict(extra="forbid")

    ids: Ids
    form: Form


class TagRequest(BaseModel):
    """Which images to tag, and how."""

    model_config = ConfigDict(extra="forbid")

    ids: Ids
    add: Annotated[list[str], Field(max_length=20)] = []
    remove: Annotated[list[str], Field(max_length=20)] = []


class DeleteRequest(BaseModel):
    """Which rows to remove."""

    model_config = ConfigDict(extra="forbid")

    ids: Ids


router = APIRouter(prefix="/api/lists", responses={**ERRORS, **BUSY})
changes_router = APIRouter(prefix="/api/images", dependencies=[Depends(check_writable)], responses=CHANGE_ERRORS)


@router.post("")
async def prepare_list(state: CurrentState, request: ListRequest) -> dict[str, Any]:
    """Prepare a list; the response says under which name ``GET /api/lists/{name}`` sends it, and what is missing."""
    return await anyio.to_thread.run_sync(_prepare, state, request)


def _prepare(state: State, request: ListRequest) -> dict[str, Any]:
    rows = state.index.rows(request.ids)
    missing: list[str] = []
    size = 0
    if request.form == "zip":
        disks = Disks()
        here = [disks.state(row.path, row.size, row.mtime_ns) == "here" for row in rows]
        missing = [row.path for row, there in zip(rows, here, strict=True) if not there]
        rows = [row for row, there in zip(rows, here, strict=True) if there]
        size = sum(row.size for row in rows)
        if not rows:
            raise HTTPException(422, "none of these files is there as it was ingested: put them back, or ingest again")
        if size > MAX_ARCHIVE_BYTES:
            raise HTTPException(
                422, f"these files have {size:,} bytes, at most {MAX_ARCHIVE_BYTES:,} go into one zip: select fewer"
            )
    elif request.form == "txt":
        paths_of(rows)  # whether it can be written
    return {
        "name": state.lists.add(rows, request.form), "images": len(rows), "bytes": size, "missing": missing[:100],
        "missing_count": len(missing),
    }  # fmt: skip


@router.get("/{name}", response_class=StreamingResponse, responses={
    200: {"content": {kind: {} for kind in _TYPES.values()}, "description": "The list as a file."},
})  # fmt: skip
async def send_list(state: CurrentState, name: str) -> StreamingResponse:
    """A prepared list, as a file. A zip has the list ``MISSING.txt`` where a file has gone meanwhile."""
    found = state.lists.get(name)
    if found is None:
        raise HTTPException(404, "there is no such list any more: make it again")
    headers = {"content-disposition": f'attachment; filename="images.{found.form}"'}
    failures: list[Failure] = []
    match found.form:
        case "zip":
            return _Archive(state, archive_chunks(found.rows, failures), headers=headers, media_type=_TYPES["zip"])
        case "txt":
            data = paths_of(found.rows)
        case "csv":
            data = ("\ufeff" + table_of(found.rows)).encode()  # without the mark, spreadsheets guess the encoding
        case _:
            data = json_of(found.rows).encode()
    return StreamingResponse(iter([data]), headers=headers, media_type=_TYPES[found.form])


class _Archive(StreamingResponse):
    """Sends a zip, and holds a slot as long as that lasts."""

    def __init__(self, state: State, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._slots = state.archive_slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or 503 when no slot is free."""
        try:
            with self._slots.take():
                await super().__call__(scope, receive, send)
        except BusyError as error:
            await busy_response(error)(scope, receive, send)


@changes_router.post("/tag")
async def tag(state: CurrentState, request: TagRequest) -> dict[str, int]:
    """Add and remove tags of one's own."""
    changed = await anyio.to_thread.run_sync(state.index.tag, request.ids, request.add, request.remove)
    state.counts.clear()
    return {"changed": changed}


@changes_router.post("/delete")
async def delete(state: CurrentState, request: DeleteRequest) -> dict[str, int]:
    """Remove rows; the image files stay where they are."""
    return {"deleted": await anyio.to_thread.run_sync(state.index.delete, request.ids)}


class MoveRequest(BaseModel):
    """Which images of a search for near-duplicates to move."""

    model_config = ConfigDict(extra="forbid")

    report: Annotated[str, Field(description="The name in the report that /api/duplicates/events ends with.")]
    ids: Ids


class IgnoreRequest(BaseModel):
    """Images that are no duplicates of each other."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[list[RowIdText], Field(min_length=2, max_length=100)]


copies_router = APIRouter(
    prefix="/api/duplicates", dependencies=[Depends(check_writable)], responses=CHANGE_ERRORS
)  # fmt: skip


@copies_router.get("/moved")
async def moved(state: CurrentState) -> dict[str, bool]:
    """Whether files were moved that can be put back."""
    folder = state.settings.move_folder
    return {"undo": folder is not None and await anyio.to_thread.run_sync(can_undo, folder)}


@copies_router.post("/move")
async def move(state: CurrentState, request: MoveRequest) -> dict[str, Any]:
    """Move the files of copies to the folder of ``--allow-move``; their rows leave the index. Nothing is deleted."""
    folder, report = _move_folder(state), state.reports.get(request.report)
    if report is None:
        raise HTTPException(404, "there is no such search any more: search again")
    done = await anyio.to_thread.run_sync(state.index.move_duplicates, report, request.ids, folder)
    return done.as_dict()


@copies_router.post("/undo")
async def undo(state: CurrentState) -> dict[str, Any]:
    """Put back what was moved last, files and rows."""
    return (await anyio.to_thread.run_sync(state.index.undo_move, _move_folder(state))).as_dict()


@copies_router.post("/ignore")
async def ignore(state: CurrentState, request: IgnoreRequest) -> dict[str, int]:
    """Remember that images are no duplicates of each other."""
    file = state.settings.ignore_file
    if file is None:
        raise ServeError("this page does not remember pairs: start mgm serve with --ignore FILE")
    return {"pairs": await anyio.to_thread.run_sync(state.index.not_duplicates, file, *request.ids)}


def _move_folder(state: State) -> Path:
    if state.settings.move_folder is None:
        raise ServeError("nothing may be moved from this page: start mgm serve with --allow-move FOLDER")
    return state.settings.move_folder
