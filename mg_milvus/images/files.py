"""Opening picture files. A name may lead anywhere by now, so what is checked is the opened file, never the name.

Nothing else of the package opens a picture file by its name.
"""

from __future__ import annotations

import io
import os
import re
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg_milvus.errors import PictureError
from mg_milvus.images.memory import MemoryBudget

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

MAX_BYTES = 512 * 2**20
"""The largest picture file that is read: 200 million pixels without compression, 8 bits a sample, are 600 million
bytes; with the weakest compression in use about half."""

READ_SECONDS = 120.0
"""How long reading one file may take. Looked at between two blocks: a single call to a file system that hangs is not
cut short."""

_BLOCK = 4 * 2**20
_HEAD = 32
"""Bytes that tell the kind of a picture."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""A FIFO without a writer would be waited for; a terminal would become the process's own."""

_OTHERS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of picture file: its name in Pillow, its first bytes, file ending and media type."""

    name: str
    start: re.Pattern[bytes]
    suffix: str
    media_type: str


KINDS = (
    Kind("JPEG", re.compile(rb"\xff\xd8\xff"), ".jpg", "image/jpeg"),
    Kind("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), ".png", "image/png"),
    Kind("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp", "image/webp"),
    Kind("GIF", re.compile(rb"GIF8[79]a"), ".gif", "image/gif"),
    Kind("BMP", re.compile(rb"BM"), ".bmp", "image/bmp"),
    Kind("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]"), ".tif", "image/tiff"),
    Kind("PPM", re.compile(rb"P[1-6f]\s"), ".ppm", "image/x-portable-anymap"),
    Kind("AVIF", re.compile(rb"....ftyp(avi[fs]|m[is]f1)", re.DOTALL), ".avif", "image/avif"),
)
"""What ``decode`` reads. Pillow's other formats are left out: it starts Ghostscript for EPS."""

reading = MemoryBudget(2 * MAX_BYTES)
"""What the picture files take that are in memory at once, as files, in this process."""


def kind_of(data: bytes) -> Kind:
    """The kind of a picture, by its first bytes.

    Raises:
        PictureError: none that can be read; the message goes on where a name is put before it.
    """
    if not data:
        raise PictureError("is empty: 0 bytes")
    for kind in KINDS:
        if kind.start.match(data):
            return kind
    raise PictureError(f"is not a picture that can be read: expected one of {', '.join(kind.name for kind in KINDS)}")


def open_file(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a regular file for reading, unbuffered; links are followed, and nothing is waited for.

    Raises:
        PictureError: there is none, it may not be read, or it is a folder, a FIFO, a device or a socket. The message
            goes on where a name is put before it, as all of this module.
    """
    try:
        _check_regular(os.stat(path))  # opening some devices has effects: those are not even opened
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError as error:
        raise PictureError("does not exist") from error
    except PictureError:
        raise
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        _check_regular(os.fstat(descriptor))  # the name may lead to another file by now
        return io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = next((name for is_one, name in _OTHERS if is_one(status.st_mode)), "no regular file")
        raise PictureError(f"is {what}: expected a picture file")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The whole content of a picture file.

    The first bytes are looked at first: what is no picture, or is larger than ``MAX_BYTES``, is not read. A file that
    grows meanwhile is read up to that limit, and for ``READ_SECONDS``.

    Raises:
        PictureError: it is not read; the reason.
    """
    with open_file(path) as file:
        return read_opened(file)


def read_opened(file: io.FileIO) -> bytes:
    """The whole content of a picture file that ``open_file`` opened; see ``read_file``."""
    give_up = time.monotonic() + READ_SECONDS
    try:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD)
        kind_of(head)
        _check_bytes(size)
        content = io.BytesIO()
        block = head
        while block:
            content.write(block)
            _check_bytes(content.tell())
            if time.monotonic() > give_up:
                raise PictureError(f"cannot be read: {content.tell()} of {size} bytes came in {READ_SECONDS:.0f} s")
            block = file.read(_BLOCK)
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror or error}") from error
    return content.getvalue()


@contextmanager
def content_of(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The whole content of a picture file, and its share of ``reading`` while the block runs; see ``read_file``."""
    with open_file(path) as file, held_for_reading(file):
        yield read_opened(file)


def held_for_reading(file: io.FileIO) -> AbstractContextManager[None]:
    """The share of ``reading`` that the content of an opened file has."""
    return reading.held(min(os.fstat(file.fileno()).st_size, MAX_BYTES))


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise PictureError(f"has {size} bytes: expected a picture file of at most {MAX_BYTES}")
