"""Image files: reading them within limits, and the memory that reading and decoding take."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mg_milvus.errors import ImageError
from mg_milvus.files import one_line
from mg_milvus.images.colours import is_deep
from mg_milvus.images.kinds import HEAD, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from PIL.ImageFile import ImageFile


_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Bytes per pixel of Pillow's modes; all others take 4."""
_RGB = 4
_WHOLE_FRAMES = {"WEBP": 12, "AVIF": 12, "HEIF": 12, "JPEG2000": 20, "JXL": 24, "RAW": 12}
"""Bytes per pixel that a decoder takes beside the image: canvases, planes of up to 32 bits, copies."""
_IN_PYTHON = frozenset({"ppm", "ppm_plain", "bmp_rle"})
_SCAN = b"\xff\xda"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP = 258, 262, 277, 278
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_YCBCR = 6


class MemoryBudget:
    """A limit on the bytes that threads hold together, first come, first served.

    A request above the limit waits until nobody else holds any. A thread that holds some already does not wait for
    more, because it could wait for itself.
    """

    def __init__(self, most: int) -> None:
        """``most``: bytes that may be held at once."""
        self.most = most
        self._held = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._own = threading.local()

    @contextmanager
    def held(self, count: int) -> Iterator[None]:
        """Hold ``count`` bytes while the block runs; waits for its turn."""
        depth = getattr(self._own, "depth", 0)
        if depth:
            with self._changed:
                self._held += count
        else:
            self._wait_for(count)
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            with self._changed:
                self._held -= count
                self._changed.notify_all()

    def _wait_for(self, count: int) -> None:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                while self._waiting[0] is not turn or (self._held and self._held + count > self.most):
                    self._changed.wait()
                self._held += count
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()


def memory_needed(file: ImageFile, full: tuple[int, int], data: bytes) -> int:
    """Estimate the peak memory of ``decode`` from an image's header, in bytes.

    Args:
        file: an opened image whose pixels are not decoded yet; of a JPEG, after ``draft``.
        full: width and height of the whole image.
        data: the encoded image.
    """
    pixels = file.width * file.height
    stored = _STORED.get(file.mode, 4) * pixels
    loading = stored + _decoder(file, full[0] * full[1], data) + (2 * stored if is_deep(file) else 0)
    grey = pixels if file.mode.startswith(("I", "F")) else 0
    return max(loading, stored + grey + _RGB * pixels, 2 * _RGB * pixels)  # loaded, converted, turned upright


def _decoder(file: ImageFile, pixels: int, data: bytes) -> int:
    """Bytes that a decoder takes in addition to the image."""
    if file.format == "JPEG":
        return _coefficients(file, pixels) if data.count(_SCAN) > 1 else 0
    if file.format == "TIFF":
        return _strip(file)
    if file.format in _WHOLE_FRAMES:
        return _WHOLE_FRAMES[file.format] * pixels + len(data)
    codec = file.tile[0].codec_name if file.tile else ""
    # Decoders in Python hold the raw pixels and a copy.
    return 2 * len(file.getbands()) * (4 if file.mode == "I" else 1) * pixels if codec in _IN_PYTHON else 0


def _coefficients(file: ImageFile, pixels: int) -> int:
    """Bytes of the coefficients of a JPEG with several scans, which are kept until the last one: two each."""
    blocks = [across * down for _, across, down, _ in file.layer]  # type: ignore[attr-defined]
    return int(2 * pixels * sum(blocks) // max(blocks))


def _strip(file: ImageFile) -> int:
    """Bytes of a strip or tile that libtiff decodes: as samples, and as RGBA where it converts colours."""
    if not file.tile or file.tile[0].codec_name != "libtiff":
        return 0
    tags = file.tag_v2  # type: ignore[attr-defined]
    rows = min(tags.get(_ROWS_PER_STRIP, file.height), file.height)
    pixels = tags.get(_TILE_WIDTH, file.width) * tags.get(_TILE_LENGTH, rows)
    samples = tags.get(_SAMPLES_PER_PIXEL, 1) * max(tags.get(_BITS_PER_SAMPLE, (1,)))
    return int(pixels * (-(-samples // 8) + (4 if tags.get(_PHOTOMETRIC) == _YCBCR else 0)))


MAX_BYTES = 512 * 2**20
"""Largest image file to read. 200 million pixels of 8 bits are 600 million bytes without compression, and about half
with the weakest compression in use."""

READ_SECONDS = 120.0
"""Limit on the time to read one file, checked between blocks: a single call that hangs is not interrupted."""

_BLOCK = 4 * 2**20

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""Without waiting for the writer of a FIFO, and without a terminal becoming the controlling one."""

_OTHERS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


reading = MemoryBudget(2 * MAX_BYTES)
"""Memory of the encoded files that this process holds at once."""


def head_of(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a file.

    Raises:
        ImageError: as ``open_file``.
    """
    with open_file(path) as file:
        try:
            return file.read(HEAD)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from error


def open_file(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a regular file for reading, unbuffered and without blocking; links are followed.

    Raises:
        ImageError: it does not exist, may not be read, or is a folder, a FIFO, a device or a socket. The message
            continues a sentence that begins with the file's name, as all of this module.
    """
    try:
        _check_regular(os.stat(path))  # opening some devices has side effects
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError as error:
        raise ImageError("does not exist") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        _check_regular(os.fstat(descriptor))  # the path may lead to another file by now
        return io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = next((name for is_one, name in _OTHERS if is_one(status.st_mode)), "no regular file")
        raise ImageError(f"is {what}: expected an image file")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read an image file, if its first bytes are those of an image.

    At most ``MAX_BYTES`` are read, and for at most ``READ_SECONDS``, even if the file grows meanwhile.

    Raises:
        ImageError: it is not an image, too large, or cannot be read.
    """
    with open_file(path) as file:
        return read_opened(file)


def read_opened(file: io.FileIO) -> bytes:
    """Read an image file that ``open_file`` opened; see ``read_file``."""
    deadline = time.monotonic() + READ_SECONDS
    try:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD)
        kind_of(head)
        _check_bytes(size)
        content = io.BytesIO()
        block = head
        while block:
            content.write(block)
            _check_bytes(content.tell())
            if time.monotonic() > deadline:
                raise ImageError(f"cannot be read: {content.tell()} of {size} bytes came in {READ_SECONDS:.0f} s")
            block = file.read(_BLOCK)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    return content.getvalue()


def read_stream(read: Callable[[int], object]) -> bytes:
    """Read an encoded image from the ``read`` of a binary file or stream, from where it stands to its end.

    Raises:
        ImageError: it gives text, more than ``MAX_BYTES``, or cannot be read.
    """
    content = bytearray()
    try:
        while block := read(_BLOCK):
            if not isinstance(block, bytes | bytearray | memoryview):
                raise ImageError(f"gives {type(block).__name__}, expected bytes: open it in binary mode, 'rb'")
            content += block
            _check_bytes(len(content))
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not content:
        raise ImageError("is at its end: rewind it first, with seek(0)")
    return bytes(content)


def data_uri(text: str) -> bytes | None:
    """The content of a ``data:image/...;base64,`` URI; None for a text that is no data URI.

    Raises:
        ImageError: it is a data URI of something else, or holds no base64. The message names it.
    """
    head, comma, body = text.partition(",")
    kind = re.match(r"data:([\w.+-]+/[\w.+-]+)?(;[^,]*)?$", head, re.IGNORECASE)
    if not comma or kind is None:
        return None
    if not head.lower().endswith(";base64") or not (kind[1] or "image/").lower().startswith("image/"):
        raise ImageError(f"cannot be read: got {one_line(head, 60)},..., expected data:image/...;base64,...")
    try:
        return base64.b64decode("".join(unquote(body).split()), validate=True)
    except ValueError as error:
        raise ImageError(f"cannot be read: {error}; expected data:image/...;base64,...") from error


def refuse_url(path: str) -> None:
    """Refuse a URL: nothing is fetched from the network, so that no query depends on it or tells of it.

    Raises:
        ImageError: with the way that works.
    """
    if re.match(r"(https?|ftp|s3|gs)://?[^/]", path, re.IGNORECASE):
        raise ImageError("is a URL, expected a file; fetch it: curl -sSL URL | mgm query -, or give its bytes")


@contextmanager
def content_of(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Read an image file, holding its share of the budget ``reading`` while the block runs; see ``read_file``."""
    with open_file(path) as file, held_for_reading(file):
        yield read_opened(file)


def held_for_reading(file: io.FileIO) -> AbstractContextManager[None]:
    """A context that holds the share of ``reading`` for the content of an opened file."""
    return reading.held(min(os.fstat(file.fileno()).st_size, MAX_BYTES))


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(f"has {size} bytes: expected an image file of at most {MAX_BYTES}")
