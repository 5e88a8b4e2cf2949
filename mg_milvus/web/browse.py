"""``/api/images`` and ``/api/clusters``: all images in order, page by page, and the overview of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Depends
from fastapi import Query as QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from mg_milvus.web.api import BUSY, CHANGE_ERRORS, ERRORS
from mg_milvus.web.limits import check_filter
from mg_milvus.web.schemas import row_fields
from mg_milvus.web.state import CurrentState, check_writable, count_rows

if TYPE_CHECKING:
    from mg_milvus.search.overview import Cluster as Found
    from mg_milvus.search.overview import Clusters

router = APIRouter(prefix="/api", responses={**ERRORS, **BUSY})

MAX_PAGE = 500
Cluster = Annotated[str | None, QueryParameter(max_length=200, description="Its number, name or label.")]


class ListingParameters(BaseModel):
    """Which images to list, and which page of them."""

    order_by: Annotated[str, Field(max_length=300, description=(
        "folder, name, date, tag, or any field of the rows; with - before it falling: -size."
    ))] = "folder"  # fmt: skip
    filter: Annotated[str | None, Field(description="Only rows that match this Milvus expression.")] = None
    cluster: Annotated[str | None, Field(max_length=200, description="Only this cluster: number, name or label.")] = (
        None
    )
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="Number of rows, at most.")] = 100
    offset: Annotated[int, Field(ge=0, description="Rows of that order to pass over.")] = 0


@router.get("/images")
async def images(state: CurrentState, wanted: Annotated[ListingParameters, QueryParameter()]) -> dict[str, Any]:
    """All images, or those that match, in order: their number, one page of rows, and with the first page the sections.

    A row that is gone by now is null. Sections are the folders, months, tags or texts of the order: name and first
    place.
    """
    check_filter(wanted.filter)

    def read() -> dict[str, Any]:
        listing = state.listings.of(wanted.order_by, wanted.filter or "", wanted.cluster or "", count_rows(state))
        ids = listing.ids[wanted.offset : wanted.offset + wanted.limit]
        there = {row.id: row_fields(row) for row in state.index.page(ids)}
        found: dict[str, Any] = {"total": len(listing.ids), "rows": [there.get(own) for own in ids]}
        if wanted.offset == 0:
            found["sections"] = [{"name": name, "first": first} for name, first in listing.sections]
        if wanted.offset == 0 and wanted.cluster:
            found["cluster"] = state.index.clusters().find(wanted.cluster).title
        return found

    return await (state.filter_queue.run(read) if wanted.filter else anyio.to_thread.run_sync(read))


@router.get("/clusters")
async def clusters(state: CurrentState, within: Cluster = None) -> dict[str, Any]:
    """Clusters of alike images, as ``mgm cluster --json``: all of the first level, or one, with its parts.

    Made at the first request, and when the number of images has changed: then it takes seconds, for 100,000 images up
    to a minute.
    """

    def read() -> dict[str, Any]:
        found = state.index.clusters()
        if within:
            chain = within_chain(found, within)
            return {"rows": found.rows, "path": [one.as_dict(0) for one in chain[:-1]]} | chain[-1].as_dict(1)
        return {"rows": found.rows, "path": [], "key": "", "parts": [one.as_dict(0) for one in found.clusters]}

    return await anyio.to_thread.run_sync(read, limiter=state.duplicates_limiter)


def within_chain(found: Clusters, key_or_name: str) -> list[Found]:
    """A cluster, behind those that it lies in."""
    numbers = found.find(key_or_name).key.split(".")
    return [found.find(".".join(numbers[: depth + 1])) for depth in range(len(numbers))]


changes_router = APIRouter(prefix="/api", dependencies=[Depends(check_writable)], responses=CHANGE_ERRORS)


class NameRequest(BaseModel):
    """A cluster's new name; empty to take it away."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=200)


@changes_router.put("/clusters/{key}")
async def name_cluster(state: CurrentState, key: str, request: NameRequest) -> dict[str, Any]:
    """Name a cluster; the name stays with the index."""
    renamed = await anyio.to_thread.run_sync(state.index.name_cluster, key, request.name)
    state.listings.forget()
    return renamed.as_dict(0)
