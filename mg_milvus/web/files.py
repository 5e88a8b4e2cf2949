"""Picture files that come and go: what kind they are, where uploads are kept, how much of a body is read."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePath
from typing import TYPE_CHECKING

from mg_milvus.encoder.files import write_whole
from mg_milvus.errors import PictureError, ServeError
from mg_milvus.images.decode import decode

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from mg_milvus.web.limits import Body

_KINDS = (
    (re.compile(rb"\xff\xd8\xff"), ".jpg", "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png", "image/png"),
    (re.compile(rb"GIF8[79]a"), ".gif", "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp", "image/webp"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), ".avif", "image/avif"),
    (re.compile(rb"BM"), ".bmp", "image/bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), ".tif", "image/tiff"),
    (re.compile(rb"P[1-6fF]\s"), ".ppm", "image/x-portable-anymap"),
)
"""First bytes, ending and media type of what ``decode`` reads."""

_UPLOAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}-[0-9a-f]{12}\.[a-z]{3,4}")
"""Names that ``keep_upload`` gives: no separator, no dots in front."""


class TooLargeError(Exception):
    """A body of more bytes than are taken."""


def kind_of(data: bytes) -> tuple[str, str]:
    """File ending and media type of a picture, by its first bytes.

    Raises:
        PictureError: no kind that can be read.
    """
    for start, suffix, media_type in _KINDS:
        if start.match(data):
            return suffix, media_type
    raise PictureError("is not a picture that can be read")


def kind_of_file(path: Path) -> tuple[str, str]:
    """File ending and media type of a picture file.

    Raises:
        PictureError: no kind that can be read, or no file.
        OSError: it cannot be opened.
    """
    if not path.is_file():  # a pipe would be waited for, a device never ends
        raise PictureError("is not a file")
    with path.open("rb") as file:
        return kind_of(file.read(32))


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
    kept = f"{stem}-{hashlib.blake2b(data, digest_size=6).hexdigest()}{kind_of(data)[0]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / kept).exists():
            write_whole(folder / kept, data)
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
