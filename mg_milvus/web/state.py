"""What the handlers of one application share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from starlette.responses import StreamingResponse

from mg_milvus.errors import CollectionNotFoundError
from mg_milvus.schema.models import PROFILES
from mg_milvus.schema.regions import REGIONS
from mg_milvus.web.limits import RETRY_SECONDS, BusyError
from mg_milvus.web.security import refused

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Mapping

    import anyio
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from mg_milvus.codes import Codes
    from mg_milvus.index import ImageIndex
    from mg_milvus.search.query_image import QueryImage
    from mg_milvus.web.jobs import Batcher, Ingesting
    from mg_milvus.web.limits import Filtering, Intake, Places, Room
    from mg_milvus.web.media import Thumbnails
    from mg_milvus.web.metrics import Meters
    from mg_milvus.web.security import Access, WebSettings


@dataclass(frozen=True, slots=True)
class State:
    """See the classes.

    Attributes:
        access: who has signed in.
        intake: the bodies in memory.
        streams: answers that go on.
        searches: searches for near-duplicates, waiting ones included.
        checks: of whether the index answers, which anyone may ask for.
        filtering: those that ask with a filter, which may keep Milvus busy; others do not wait for them.
        room: what may still be uploaded.
        ending: set when the server is about to end; long answers end with it.
    """

    index: ImageIndex
    settings: WebSettings
    meters: Meters
    encode: Batcher[QueryImage, dict[str, Codes]]
    thumbnails: Thumbnails
    ingesting: Ingesting
    decoding: anyio.CapacityLimiter
    comparing: anyio.CapacityLimiter
    access: Access
    intake: Intake
    streams: Places
    searches: Places
    checks: Places
    filtering: Filtering
    room: Room
    ending: threading.Event


def _state(request: Request) -> State:
    found: State = request.app.state.mgm
    return found


Shared = Annotated[State, Depends(_state)]


class Stream(StreamingResponse):
    """Server-sent events, as long as there is a place for them."""

    def __init__(self, events: AsyncIterator[str], places: Places) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, or a refusal; the place is given back however that ends."""
        try:
            with self._places.one():
                await super().__call__(scope, receive, send)
        except BusyError as error:
            await busy(error)(scope, receive, send)


def busy(error: BusyError) -> Response:
    """What those get who come when too much is being done."""
    answer = refused(503, str(error))
    answer.headers["retry-after"] = str(RETRY_SECONDS)
    return answer


def about(shared: State) -> dict[str, Any]:
    """The collection, how it is asked unless told otherwise, and what this page may do, as plain data."""
    schema, settings = shared.index.schema, shared.settings
    exists = shared.index.exists
    return {
        "collection": shared.index.collection, "rows": rows(shared), "bits": schema.code_bits,
        "weights": schema.weights | ({REGIONS: schema.regions.weight} if schema.regions else {}),
        "profiles": _profiles(schema.weights) | ({REGIONS: {REGIONS: 1.0}} if schema.regions else {}),
        "fusion": schema.fusion.model_dump(),
        "fields": [{"name": field.name, "type": field.type} for field in schema.fields],
        "values": shared.index.facets() if exists else {},
        "can_delete": not settings.read_only,
        "can_upload": not settings.read_only and settings.upload_folder is not None,
        "folders": [] if settings.read_only else [str(folder) for folder in settings.ingest_folders],
        "max_upload_bytes": settings.max_upload_bytes,
    }  # fmt: skip


def rows(shared: State) -> int:
    """Images in the collection; 0 when there is none."""
    try:
        return shared.index.count()
    except CollectionNotFoundError:
        return 0


def _profiles(weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Profile -> weights of all granularities; those that would ask nothing of this collection are left out."""
    found = {
        profile: {name: named.get(name, weight) for name, weight in weights.items()}
        for profile, named in PROFILES.items()
    }
    return {profile: chosen for profile, chosen in found.items() if any(chosen.values())}
