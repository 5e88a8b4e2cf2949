"""Memory: how much decoding takes, and how much the threads of this process may take together."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.ImageFile import ImageFile

_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Bytes a pixel of Pillow's modes; all others take 4."""
_RGB = 4
_WHOLE_FRAMES = {"WEBP": 12, "AVIF": 12}
"""Bytes a pixel: two canvases and the frame; planes of up to 16 bits and the frame."""
_IN_PYTHON = frozenset({"ppm", "ppm_plain", "bmp_rle"})
_SCAN = b"\xff\xda"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP = 258, 262, 277, 278
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_YCBCR = 6


class MemoryBudget:
    """Bytes that are shared out among threads, first come, first served.

    Who asks for more than there is waits until nobody else holds any, and then runs alone. A thread that holds some
    already is not made to wait for more: it would wait for itself.
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
        """Hold so many bytes while the block runs; waits for its turn."""
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
    """About how many bytes decoding takes at its peak, by the header: the decoder's, and what ``decode`` makes of it.

    Args:
        file: an opened picture whose pixels are not decoded yet; a JPEG may have been told to reduce it.
        full: width and height of the whole picture.
        data: the encoded picture.
    """
    pixels = file.width * file.height
    stored = _STORED.get(file.mode, 4) * pixels
    loading = stored + _decoder(file, full[0] * full[1], data)
    grey = pixels if file.mode.startswith(("I", "F")) else 0
    return max(loading, stored + grey + _RGB * pixels, 2 * _RGB * pixels)  # loaded, converted, turned upright


def _decoder(file: ImageFile, pixels: int, data: bytes) -> int:
    """Bytes that a decoder takes beside the picture that it fills."""
    if file.format == "JPEG":
        return _coefficients(file, pixels) if data.count(_SCAN) > 1 else 0
    if file.format == "TIFF":
        return _strip(file)
    if file.format in _WHOLE_FRAMES:
        return _WHOLE_FRAMES[file.format] * pixels + len(data)
    codec = file.tile[0].codec_name if file.tile else ""
    # Decoders in Python make the raw pixels, and a copy of them.
    return 2 * len(file.getbands()) * (4 if file.mode == "I" else 1) * pixels if codec in _IN_PYTHON else 0


def _coefficients(file: ImageFile, pixels: int) -> int:
    """Of a JPEG of several scans, which are kept until the last one: two bytes each."""
    blocks = [across * down for _, across, down, _ in file.layer]  # type: ignore[attr-defined]
    return int(2 * pixels * sum(blocks) // max(blocks))


def _strip(file: ImageFile) -> int:
    """Of a TIFF that libtiff decodes: a strip or tile as samples, and one as RGBA where it converts the colours."""
    if not file.tile or file.tile[0].codec_name != "libtiff":
        return 0
    tags = file.tag_v2  # type: ignore[attr-defined]
    rows = min(tags.get(_ROWS_PER_STRIP, file.height), file.height)
    pixels = tags.get(_TILE_WIDTH, file.width) * tags.get(_TILE_LENGTH, rows)
    samples = tags.get(_SAMPLES_PER_PIXEL, 1) * max(tags.get(_BITS_PER_SAMPLE, (1,)))
    return int(pixels * (-(-samples // 8) + (4 if tags.get(_PHOTOMETRIC) == _YCBCR else 0)))
