"""Picture files that come and go: what an indexed one holds, where uploads are kept, how much of a body is read."""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING

from mg_milvus.encoder.files import write_private
from mg_milvus.errors import PictureError, ServeError
from mg_milvus.images.decode import decode
from mg_milvus.images.discover import content_hash, text_path
from mg_milvus.images.files import held_for_reading, kind_of, open_file, read_opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

    from starlette.requests import Request

    from mg_milvus.store import Row
    from mg_milvus.web.limits import Body

_UPLOAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}-[0-9a-f]{12}\.[a-z]{3,4}")
"""Names that ``keep_upload`` gives: no separator, no dots in front."""


class TooLargeError(Exception):
    """A body of more bytes than are taken."""


@contextmanager
def ingested_content(row: Row) -> Iterator[tuple[FileIO, bytes]]:
    """The file of a row, opened once, and what it holds, if that is what was ingested.

    A path may lead to another file than it did then; whatever it leads to, only the bytes that the row was made of
    come back. Links are followed, as when they were ingested. The content's share of the memory is held while the
    block runs.

    Raises:
        PictureError: the file is gone, cannot be read, is not a picture, or has another content.
    """
    with open_file(text_path(row.path)) as file, held_for_reading(file):
        data = read_opened(file)
        if content_hash(data) != row.content_hash:
            raise PictureError("has another content than when it was ingested")
        yield file, data


async def read_body(request: Request, most: int, body: Body | None = None) -> bytes:
    """The whole body of a request, counted as ``body`` among those that are in memory.

    Raises:
        TooLargeError: it has more than ``most`` bytes; the rest was not read.
        BusyError: too much is in memory already.
    """
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


def keep_upload(folder: Path, name: str, data: bytes, max_pixels: int) -> str:
    """Write an uploaded picture into the folder, if it is one; the same picture under the same name is kept once.

    Returns:
        The name it was given: of the sender's own, what is harmless, then a hash of the content.

    Raises:
        PictureError: it cannot be read.
        ServeError: it cannot be written.
    """
    try:
        decode(data, least=64, max_pixels=max_pixels)
    except PictureError as error:
        raise PictureError(f"'{name}' {error}") from error
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePath(name.replace("\\", "/")).stem).strip("-")[:60] or "picture"
    kept = f"{stem}-{hashlib.blake2b(data, digest_size=6).hexdigest()}{kind_of(data).suffix}"
    try:
        if not (folder / kept).exists():
            write_private(folder / kept, data)
    except OSError as error:
        raise ServeError(f"'{name}' cannot be kept in {folder}: {error.strerror}") from error
    return kept


def upload_path(folder: Path, kept: str) -> Path:
    """Where an upload is, by the name that ``keep_upload`` gave.

    Raises:
        ServeError: there is no such upload.
    """
    if not _UPLOAD.fullmatch(kept) or not (folder / kept).is_file():
        raise ServeError(f"there is no upload '{kept}'; send the picture to /api/uploads first")
    return folder / kept
