"""``/api/images``: all images in order, page by page."""

from __future__ import annotations

from typing import Annotated, Any

import anyio
from fastapi import APIRouter
from fastapi import Query as QueryParameter

from mg_milvus.web.limits import check_filter
from mg_milvus.web.schemas import row_fields
from mg_milvus.web.state import CurrentState, count_rows

router = APIRouter(prefix="/api")

MAX_PAGE = 500


@router.get("/images")
async def images(
    state: CurrentState,
    order_by: Annotated[
        str,
        QueryParameter(
            max_length=300,
            description=("folder, name, date, tag, or any field of the rows; with - before it falling: -size."),
        ),
    ] = "folder",
    filter: Annotated[str | None, QueryParameter(description="Only rows that match this Milvus expression.")] = None,  # noqa: A002
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Number of rows, at most.")] = 100,
    offset: Annotated[int, QueryParameter(ge=0, description="Rows of that order to pass over.")] = 0,
) -> dict[str, Any]:
    """All images, or those that match, in order: their number, one page of rows, and with the first page the sections.

    A row that is gone by now is null. Sections are the folders, months, tags or texts of the order: name and first
    place.
    """  # fmt: skip
    check_filter(filter)

    def read() -> dict[str, Any]:
        listing = state.listings.of(state.index, order_by, filter or "", count_rows(state))
        ids = listing.ids[offset : offset + limit]
        there = {row.id: row_fields(row) for row in state.index.page(ids)}
        found: dict[str, Any] = {"total": len(listing.ids), "rows": [there.get(own) for own in ids]}
        if offset == 0:
            found["sections"] = [{"name": name, "first": first} for name, first in listing.sections]
        return found

    return await (state.filter_queue.run(read) if filter else anyio.to_thread.run_sync(read))
