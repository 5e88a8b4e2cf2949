"""The state that the handlers of one application share, and the facts that its pages start with."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from mg_milvus.errors import CollectionNotFoundError
from mg_milvus.schema.models import PROFILES, REGIONS, Schema
from mg_milvus.web.limits import RETRY_SECONDS, BusyError
from mg_milvus.web.security import error_response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import anyio
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from mg_milvus.codes import QueryCodes
    from mg_milvus.duplicates.report import DuplicateReport
    from mg_milvus.index import ImageIndex
    from mg_milvus.search.query_image import QueryImage
    from mg_milvus.search.rows import Listing
    from mg_milvus.web.jobs import DynamicBatcher, IngestRunner
    from mg_milvus.web.limits import BodyBudget, CountCache, FilterQueue, Lists, Reports, Slots, UploadQuota
    from mg_milvus.web.media import Thumbnails
    from mg_milvus.web.metrics import Metrics
    from mg_milvus.web.security import Access, WebSettings
    from mg_milvus.web.shares import Shares


_DEFAULT_COLLECTION = Schema.model_fields["collection"].default


_KEPT = 4
"""Listings in memory: of 100,000 rows each takes about ten megabytes."""
_KEPT_SECONDS = 600.0


class Listings:
    """Orders of all rows, kept for a while: reading them takes seconds. Safe to use from several threads."""

    def __init__(self, index: ImageIndex) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], tuple[float, int, Listing]] = OrderedDict()

    def of(self, order_by: str, where: str, cluster: str, rows: int) -> Listing:
        """The listing of an order, a filter and a cluster, read again when the number of rows has changed."""
        key = order_by, where, cluster
        with self._lock:  # who asks for the same at the same time waits, and does not read all rows, too
            made, counted, listing = self._kept.get(key, (0.0, -1, None))
            if listing is None or counted != rows or time.monotonic() - made > _KEPT_SECONDS:
                listing = self._index.listing(order_by, where or None, cluster or None)
                self._kept[key] = time.monotonic(), rows, listing
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return listing

    def forget(self) -> None:
        """Read again what is asked for next, as after a cluster has got another name."""
        with self._lock:
            self._kept.clear()


@dataclass(frozen=True, slots=True)
class State:
    """Everything that handlers use.

    Attributes:
        encode: encodes query images with dynamic batching.
        ingests: runs ingests, one at a time.
        decode_limiter: for decoding images: as many at once as there are cores.
        duplicates_limiter: for searches for near-duplicates: one at a time.
        verify_limiter: for comparisons by pixels: one at a time, which takes all cores.
        access: tokens and sessions.
        bodies: limits the request bodies in memory.
        stream_slots: limits open event streams.
        duplicate_slots: limits searches for near-duplicates, waiting ones included.
        health_slots: limits health checks, which need no token.
        filter_queue: limits queries with a filter, which may be expensive for Milvus; other queries do not wait.
        upload_quota: limits the folder of uploads.
        lists: lists that wait to be fetched.
        reports: of the last searches for near-duplicates.
        counts: of the values of fields and of tags, to complete what is typed.
        shares: query images of shared links.
        archive_slots: limits archives that are sent at once.
        listings: orders of all rows, for pages of them.
        shutdown: set when the server is about to end; long responses end with it.
    """

    index: ImageIndex
    settings: WebSettings
    metrics: Metrics
    encode: DynamicBatcher[QueryImage, QueryCodes]
    thumbnails: Thumbnails
    ingests: IngestRunner
    decode_limiter: anyio.CapacityLimiter
    duplicates_limiter: anyio.CapacityLimiter
    verify_limiter: anyio.CapacityLimiter
    access: Access
    bodies: BodyBudget
    stream_slots: Slots
    duplicate_slots: Slots
    health_slots: Slots
    filter_queue: FilterQueue
    upload_quota: UploadQuota
    lists: Lists
    reports: Reports[DuplicateReport]
    counts: CountCache
    shares: Shares
    archive_slots: Slots
    listings: Listings
    shutdown: threading.Event


def _state(request: Request) -> State:
    state: State = request.app.state.mgm
    return state


CurrentState = Annotated[State, Depends(_state)]


def check_writable(state: CurrentState) -> None:
    """Refuse a request that would change something, unless that is allowed.

    Raises:
        HTTPException: the page is read-only.
    """
    if state.settings.read_only:
        raise HTTPException(403, "the page is read-only: start mgm serve without --read-only to change the index")


class EventStream(StreamingResponse):
    """Server-sent events, which hold a slot as long as they last."""

    def __init__(self, events: AsyncIterator[str], slots: Slots) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._slots = slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, or 503 when no slot is free; the slot is released however that ends."""
        try:
            with self._slots.take():
                await super().__call__(scope, receive, send)
        except BusyError as error:
            await busy_response(error)(scope, receive, send)


def busy_response(error: BusyError) -> Response:
    """503 with Retry-After."""
    response = error_response(503, str(error))
    response.headers["retry-after"] = str(RETRY_SECONDS)
    return response


def page_facts(state: State) -> dict[str, Any]:
    """The collection, its default options, and what this page may do, as plain data for the page."""
    schema, settings = state.index.schema, state.settings
    return {
        "collection": state.index.collection, "title": page_title(state), "show": list(settings.show),
        "rows": count_rows(state), "bits": schema.code_bits,
        "weights": schema.weights | ({REGIONS: schema.regions.weight} if schema.regions else {}),
        "profiles": _profiles(schema.weights) | ({REGIONS: {REGIONS: 1.0}} if schema.regions else {}),
        "fusion": schema.fusion.model_dump(),
        "fields": [{"name": field.name, "type": field.type} for field in schema.fields],
        "facets": state.index.choices() if state.index.exists else {},
        "can_delete": not settings.read_only,
        "can_upload": not settings.read_only and settings.upload_folder is not None,
        "folders": [] if settings.read_only else [str(folder) for folder in settings.ingest_folders],
        "move_folder": None if settings.read_only or not settings.move_folder else str(settings.move_folder),
        "can_ignore": not settings.read_only and settings.ignore_file is not None,
        "can_share": settings.share_folder is not None,
        "max_upload_bytes": settings.max_upload_bytes,
    }  # fmt: skip


def page_title(state: State) -> str:
    """The title that was chosen, else the collection's name, or the file's where that is the default one."""
    index = state.index
    file = PurePath(index.uri)
    if state.settings.title:
        return state.settings.title
    if index.collection == _DEFAULT_COLLECTION and file.suffix == ".db" and "://" not in index.uri:
        return file.stem
    return index.collection


def count_rows(state: State) -> int:
    """Number of images in the collection; 0 when there is no collection."""
    try:
        return state.index.count()
    except CollectionNotFoundError:
        return 0


def _profiles(weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Profile -> weights of all granularities; profiles whose weights are all 0 in this collection are left out."""
    profiles = {
        profile: {name: named.get(name, weight) for name, weight in weights.items()}
        for profile, named in PROFILES.items()
    }
    return {profile: chosen for profile, chosen in profiles.items() if any(chosen.values())}
