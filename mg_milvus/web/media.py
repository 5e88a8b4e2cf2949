"""Image files: originals of indexed images, thumbnails and their cache, uploads, request bodies."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import time
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, cast

import anyio
from fastapi.responses import StreamingResponse
from PIL import Image
from starlette.formparsers import MultiPartException, MultiPartParser

from mg_milvus import files
from mg_milvus.bulk.lists import ingested_content
from mg_milvus.errors import ImageError, ServeError
from mg_milvus.files import one_line, write_private
from mg_milvus.images.decode import check_header, decode, decoding
from mg_milvus.images.discover import text_path
from mg_milvus.images.kinds import kind_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from mg_milvus.store.base import Row
    from mg_milvus.web.limits import Body


_UPLOAD = re.compile(r"[^\W_][\w-]{0,60}-[0-9a-f]{12}\.[a-z]{3,4}")
"""Names that ``keep_upload`` gives: no separator, no leading dot."""


class TooLargeError(Exception):
    """A body has more bytes than are accepted."""


async def read_body(request: Request, most: int, body: Body | None = None) -> bytes:
    """The whole body of a request, counted in ``body``.

    Raises:
        TooLargeError: it has more than ``most`` bytes; the rest is not read.
        BusyError: too many bytes are in memory.
        ImageError: it is a form, as ``curl -F`` sends.
    """
    if is_form(request):
        raise ImageError("the body is a form, expected the image itself: curl --data-binary @x.jpg instead of curl -F")
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > most:
        raise TooLargeError
    read = bytearray()
    async for chunk in request.stream():
        if body is not None:
            body.add(len(chunk))
        read += chunk
        if len(read) > most:
            raise TooLargeError
    return bytes(read)


def is_form(request: Request) -> bool:
    """Whether the body has several parts."""
    return request.headers.get("content-type", "").lower().startswith("multipart/")


async def read_images(request: Request, most: int, body: Body, names: Mapping[str, int]) -> list[tuple[str, bytes]]:
    """The images of a form, in its order, all counted in ``body``.

    Args:
        request: with a body of ``multipart/form-data``.
        most: bytes of the largest image.
        body: counts them.
        names: name of a part -> how many there may be.

    Returns:
        Name of the part and content of each.

    Raises:
        TooLargeError: one has more than ``most`` bytes.
        BusyError: too many bytes are in memory.
        ImageError: the form is damaged, has other parts, or too many.
    """

    async def counted() -> AsyncIterator[bytes]:
        async for chunk in request.stream():
            body.add(len(chunk))
            yield chunk

    try:
        form = await MultiPartParser(
            request.headers, cast("AsyncGenerator[bytes]", counted()), max_files=sum(names.values()), max_fields=0
        ).parse()
    except MultiPartException as error:
        raise ImageError(
            f"the form cannot be read: {one_line(error.message)}; expected files: curl -F image=@a.jpg -F image=@b.jpg"
        ) from error
    images: list[tuple[str, bytes]] = []
    try:
        for name, part in form.multi_items():
            if isinstance(part, str):  # without fields, there is none
                raise ImageError(f"the part '{one_line(name)}' is no file, expected files {', '.join(names)}")
            if name not in names:
                known = " or ".join(names)
                raise ImageError(
                    f"the form has a part '{one_line(name)}', expected {known}: curl -F {next(iter(names))}=@a.jpg"
                )
            if sum(name == known for known, _ in images) >= names[name]:
                known = ", ".join(f"{count} of '{each}'" for each, count in names.items())
                raise ImageError(f"the form has a part too many, '{one_line(name)}'; expected at most {known}")
            if (part.size or 0) > most:
                raise TooLargeError
            images.append((name, await part.read()))
    finally:
        await form.close()
    return images


def keep_upload(folder: Path, name: str, data: bytes, max_pixels: int) -> str:
    """Write an upload into the folder, if it is an image; the same image under the same name is kept once.

    Returns:
        The name of the file: the letters and digits of the sender's name, then a hash of the content.

    Raises:
        ImageError: it cannot be read.
        ServeError: it cannot be written.
    """
    try:
        decode(data, least=64, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"'{name}' {error}") from error
    stem = unicodedata.normalize("NFC", PurePath(name.replace("\\", "/")).stem)
    stem = re.sub(r"[\W_]+", "-", stem).strip("-")[:60].strip("-") or "image"
    kept = f"{stem}-{hashlib.blake2b(data, digest_size=6).hexdigest()}{kind_of(data).suffix}"
    try:
        if not (folder / kept).exists():
            write_private(folder / kept, data)
    except OSError as error:
        raise ServeError(f"'{name}' cannot be kept in {folder}: {error.strerror}") from error
    return kept


def upload_path(folder: Path, kept: str) -> Path:
    """The path of an upload, by the name that ``keep_upload`` gave.

    Raises:
        ServeError: there is no such upload.
    """
    if not _UPLOAD.fullmatch(kept) or not (folder / kept).is_file():
        raise ServeError(f"there is no upload '{kept}'; send the image to /api/uploads first")
    return folder / kept


THUMBNAIL_SIDES = (240, 480, 1600)
"""Possible longest sides in pixels: few, so that the cache stays small."""

QUALITY = 82
_HASH = re.compile(r"[0-9a-f]{32}")
MAX_CACHE_BYTES = 1_000_000_000
"""Limit of the cache; thumbnails unused for longest are removed first."""
MAX_CACHE_DAYS = 30
"""Days that an unused thumbnail is kept."""


class Thumbnails:
    """JPEGs of indexed images, cached by the content of the image. Safe to use from several threads."""

    def __init__(self, folder: Path | None, max_pixels: int) -> None:
        """``folder`` is created when needed; None: no cache."""
        self._folder, self._max_pixels = folder, max_pixels

    def of(self, row: Row, side: int) -> bytes:
        """The thumbnail of a row whose file exists with the ingested content.

        Raises:
            ImageError: the file is gone, cannot be read, or has another content. The cached thumbnails of a file that
                is gone are removed.
        """
        file = self._file(row.content_hash, side)
        data = _read_cached(file) if self._is_unchanged(row) else None
        if data is not None:
            return data
        with ingested_content(row) as (_, content):  # a copy has the same content and another time
            data = _read_cached(file)
            if data is not None:
                return data
            data = self._render(content, side)
        if file is not None:
            with suppress(OSError):  # a full disk only costs time
                write_private(file, data)
        return data

    def usage(self) -> tuple[int, int]:
        """Number of cached thumbnails, and their bytes."""
        sizes = [size for _, size, _ in self._kept()]
        return len(sizes), sum(sizes)

    def clear(self) -> None:
        """Remove all cached thumbnails; one that cannot be removed still counts in ``usage``."""
        for *_, file in self._kept():
            with suppress(OSError):
                file.unlink()

    def trim(self, most: int = MAX_CACHE_BYTES) -> None:
        """Remove thumbnails unused for ``MAX_CACHE_DAYS``, then the longest unused above ``most`` bytes."""
        known = sorted(self._kept())
        total = sum(size for _, size, _ in known)
        oldest = time.time() - MAX_CACHE_DAYS * 86_400
        for used, size, file in known:
            if total <= most and used >= oldest:
                return
            file.unlink(missing_ok=True)
            total -= size

    def _kept(self) -> list[tuple[float, int, Path]]:
        """Of each cached thumbnail: last use in seconds since the epoch, bytes, file."""
        known = []
        for file in self._folder.glob("*/*.jpg") if self._folder is not None else ():
            with suppress(OSError):
                status = file.stat()
                known.append((status.st_mtime, status.st_size, file))
        return known

    def _file(self, content_hash: str, side: int) -> Path | None:
        """Path of a cached thumbnail; None for an invalid hash: a row is untrusted data, and could name any file."""
        if self._folder is None or not _HASH.fullmatch(content_hash):
            return None
        return self._folder / content_hash[:2] / f"{content_hash}-{side}.jpg"

    def _is_unchanged(self, row: Row) -> bool:
        """Whether size and time of the file are those of the row; the thumbnails of a file that is gone are removed."""
        try:
            status = text_path(row.path).stat()
        except (OSError, ValueError):
            for side in THUMBNAIL_SIDES:
                file = self._file(row.content_hash, side)
                if file is not None:
                    with suppress(OSError):
                        file.unlink()
            return False
        return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (row.size, row.mtime_ns)

    def _render(self, content: bytes, side: int) -> bytes:
        with decoding(content, least=side, max_pixels=self._max_pixels) as decoded:
            image = decoded.image.copy()
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        return buffer.getvalue()


def _read_cached(file: Path | None) -> bytes | None:
    """A cached thumbnail, marked as used now."""
    if file is not None:
        with suppress(OSError):
            data = file.read_bytes()
            os.utime(file)
            return data
    return None


def default_folder() -> Path:
    """Default folder of the thumbnails; see ``files.cache_folder``."""
    return files.cache_folder("thumbnails")


_BLOCK = 1 << 18
_RANGE = re.compile(r"bytes=(?=\d|-\d)(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Original:
    """The open file of a row, after its content was checked.

    Attributes:
        file: unbuffered; the holder of this record closes it.
        size: bytes.
        media_type: determined by the content.
    """

    file: FileIO
    size: int
    media_type: str


def open_original(row: Row) -> Original:
    """Open the file of a row to send it unchanged.

    Raises:
        ImageError: as ``ingested_content``; or its header cannot be parsed as a whole.
    """
    with ingested_content(row) as (file, data):
        check_header(data)
        # The checked file stays open: its path may lead to another one by now.
        return Original(FileIO(os.dup(file.fileno())), len(data), kind_of(data).media_type)


class OriginalResponse(StreamingResponse):
    """Sends an open file, or the requested range of it, and closes it."""

    def __init__(self, original: Original, range_header: str | None, headers: Mapping[str, str]) -> None:
        """``range_header``: the header Range."""
        self._original = original
        size = original.size
        part = _range(range_header, size)
        start, stop = part or (0, size)
        own = dict(headers) | {"accept-ranges": "bytes", "content-length": str(stop - start)}
        status = 200
        if part is not None:
            inside = start < stop
            status = 206 if inside else 416
            own["content-range"] = f"bytes {start}-{stop - 1}/{size}" if inside else f"bytes */{size}"
        super().__init__(self._blocks(start, stop), status, own, original.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._original.file.close()

    async def _blocks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        while start < stop:
            length = min(_BLOCK, stop - start)
            block = await anyio.to_thread.run_sync(os.pread, self._original.file.fileno(), length, start)
            if not block:
                raise OSError("the file became shorter while it was sent")
            start += len(block)
            yield block


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and stop of a single range, equal when it lies outside the file; None: send the whole file."""
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    stop = min(size, int(last) + 1) if last else size
    return min(int(first), stop), stop
