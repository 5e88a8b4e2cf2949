"""What the handlers of one application share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from starlette.responses import StreamingResponse

from mg_milvus.web.guard import refused
from mg_milvus.web.limits import RETRY_SECONDS, BusyError

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator

    import anyio
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from mg_milvus.browse import Browser
    from mg_milvus.codes import Codes
    from mg_milvus.index import ImageIndex
    from mg_milvus.search import Prepared
    from mg_milvus.web.batching import Batcher
    from mg_milvus.web.guard import Access
    from mg_milvus.web.ingesting import Ingesting
    from mg_milvus.web.limits import Filtering, Intake, Places, Room
    from mg_milvus.web.meters import Meters
    from mg_milvus.web.settings import WebSettings
    from mg_milvus.web.thumbnails import Thumbnails


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
    browser: Browser
    meters: Meters
    encode: Batcher[Prepared, dict[str, Codes]]
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
