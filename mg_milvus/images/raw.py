"""What a camera's sensor gave (RAW): the preview that the camera made, or else its pixels developed by LibRaw."""

from __future__ import annotations

import ctypes
import io
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import rawpy
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    Size = tuple[int, int]

_ORIENTATIONS = {3: 3, 5: 8, 6: 6}
"""LibRaw's flip -> EXIF orientation."""

_SMALL = 480
"""A preview whose shorter side has fewer pixels is not used, unless the image itself is small, too."""


class _CError:
    """The standard error of C, to which LibRaw writes of each damaged file; Python's own does not go through it."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._own: int | None = None
        self._stream, self._nowhere = ctypes.c_void_p(), None
        with suppress(OSError, AttributeError, ValueError):  # where C has none of this name, LibRaw's lines stay
            library = ctypes.CDLL(None)
            library.fopen.restype = ctypes.c_void_p
            self._stream = ctypes.c_void_p.in_dll(library, "__stderrp" if sys.platform == "darwin" else "stderr")
            self._nowhere = library.fopen(b"/dev/null", b"w")

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """While any thread is in here, C's standard error leads nowhere."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, users: int) -> None:
        with self._lock:
            if self._nowhere and not self._users:
                self._own, self._stream.value = self._stream.value, self._nowhere
            self._users += users
            if self._nowhere and not self._users:
                self._stream.value = self._own


_c_error = _CError()


class RawImageFile(ImageFile.ImageFile):
    """The sensor's pixels at half their resolution, developed when they are loaded."""

    format = "RAW"
    format_description = "camera RAW"

    def _open(self) -> None:
        with _c_error.silenced():
            self.raw: Any = rawpy.imread(self.fp)  # type: ignore[arg-type]
        sizes = self.raw.sizes
        self._size, self._mode, self.tile = (sizes.width, sizes.height), "RGB", []
        self.getexif()[ExifTags.Base.Orientation] = _ORIENTATIONS.get(sizes.flip, 1)

    def load(self) -> Any:
        """Develop the pixels; they stay as the sensor has them, and the EXIF orientation says how to turn them."""
        if self.raw is not None:
            with _c_error.silenced():
                pixels = self.raw.postprocess(half_size=True, use_camera_wb=True, output_bps=8, user_flip=0)
            self.raw.close()
            self.raw = None
            self.im = Image.fromarray(pixels).im
            self._size = self.im.size
        return super().load()


def open_raw(data: bytes) -> tuple[ImageFile.ImageFile, Size, bytes]:
    """Open a RAW file.

    Returns:
        The image to decode, whose pixels are not loaded yet; width and height of the full image; the encoded data.
    """
    raw = RawImageFile(io.BytesIO(data), "")
    full = raw.size
    try:
        with _c_error.silenced():
            thumbnail = raw.raw.extract_thumb()
    except rawpy.LibRawError:
        return raw, full, data
    if thumbnail.format is not rawpy.ThumbFormat.JPEG:
        return raw, full, data
    try:
        preview = JpegImagePlugin.JpegImageFile(io.BytesIO(thumbnail.data), "")
    except (OSError, SyntaxError, ValueError):
        return raw, full, data
    if min(preview.size) < min(_SMALL, min(full) // 2):
        return raw, full, data
    exif = preview.getexif()
    if ExifTags.Base.Orientation not in exif:
        exif[ExifTags.Base.Orientation] = raw.getexif()[ExifTags.Base.Orientation]
    raw.raw.close()
    return preview, full, thumbnail.data
