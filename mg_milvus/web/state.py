"""What the handlers of one application share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

if TYPE_CHECKING:
    import threading

    import anyio

    from mg_milvus.browse import Browser
    from mg_milvus.codes import Codes
    from mg_milvus.index import ImageIndex
    from mg_milvus.search import Prepared
    from mg_milvus.web.batching import Batcher
    from mg_milvus.web.ingesting import Ingesting
    from mg_milvus.web.meters import Meters
    from mg_milvus.web.settings import WebSettings
    from mg_milvus.web.thumbnails import Thumbnails


@dataclass(frozen=True, slots=True)
class State:
    """See the classes; ``ending`` is set when the server is about to end, and long answers end with it."""

    index: ImageIndex
    settings: WebSettings
    browser: Browser
    meters: Meters
    encode: Batcher[Prepared, dict[str, Codes]]
    thumbnails: Thumbnails
    ingesting: Ingesting
    decoding: anyio.CapacityLimiter
    comparing: anyio.CapacityLimiter
    ending: threading.Event


def _state(request: Request) -> State:
    found: State = request.app.state.mgm
    return found


Shared = Annotated[State, Depends(_state)]
