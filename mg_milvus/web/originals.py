"""Picture files as they are, whole or in ranges: read from the very file that was checked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING

import anyio
from fastapi.responses import StreamingResponse

from mg_milvus.images.decode import check_header
from mg_milvus.images.files import kind_of
from mg_milvus.web.files import ingested_content

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Receive, Scope, Send

    from mg_milvus.store import Row

_BLOCK = 1 << 18
_RANGE = re.compile(r"bytes=(?=\d|-\d)(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Original:
    """The file of a row, open, after its content was checked.

    Attributes:
        file: unbuffered; whoever has this record closes it.
        size: bytes.
        media_type: by its content.
    """

    file: FileIO
    size: int
    media_type: str


def open_original(row: Row) -> Original:
    """Open the file of a row, to be sent as it is.

    Raises:
        PictureError: as ``ingested_content``; or its header cannot be parsed as a whole.
    """
    with ingested_content(row) as (file, data):
        check_header(data)
        # Read on from the file that was checked, whatever its name leads to by now.
        return Original(FileIO(os.dup(file.fileno())), len(data), kind_of(data).media_type)


class OriginalResponse(StreamingResponse):
    """Sends an opened file, or the one range of it that was asked for, and closes it."""

    def __init__(self, original: Original, wanted: str | None, headers: Mapping[str, str]) -> None:
        """``wanted``: the header Range."""
        self._original = original
        size = original.size
        part = _range(wanted, size)
        start, stop = part or (0, size)
        own = dict(headers) | {"accept-ranges": "bytes", "content-length": str(stop - start)}
        status = 200
        if part is not None:
            inside = start < stop
            status = 206 if inside else 416
            own["content-range"] = f"bytes {start}-{stop - 1}/{size}" if inside else f"bytes */{size}"
        super().__init__(self._blocks(start, stop), status, own, original.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._original.file.close()

    async def _blocks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        while start < stop:
            wanted = min(_BLOCK, stop - start)
            block = await anyio.to_thread.run_sync(os.pread, self._original.file.fileno(), wanted, start)
            if not block:
                raise OSError("the file became shorter while it was sent")
            start += len(block)
            yield block


def _range(wanted: str | None, size: int) -> tuple[int, int] | None:
    """First byte, and the one behind the last, of a single range; alike when it lies outside; None: send the whole."""
    found = _RANGE.fullmatch(wanted or "")
    if found is None:
        return None
    first, last = found[1], found[2]
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    stop = min(size, int(last) + 1) if last else size
    return min(int(first), stop), stop
