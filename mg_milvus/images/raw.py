"""What a camera's sensor gave (RAW): the preview that the camera made, or else its pixels developed by LibRaw."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import rawpy
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

if TYPE_CHECKING:
    Size = tuple[int, int]

_ORIENTATIONS = {3: 3, 5: 8, 6: 6}
"""LibRaw's flip -> EXIF orientation."""

_SMALL = 480
"""A preview whose shorter side has fewer pixels is not used, unless the image itself is small, too."""


class RawImageFile(ImageFile.ImageFile):
    """The sensor's pixels at half their resolution, developed when they are loaded."""

    format = "RAW"
    format_description = "camera RAW"

    def _open(self) -> None:
        self.raw: Any = rawpy.imread(self.fp)  # type: ignore[arg-type]
        sizes = self.raw.sizes
        self._size, self._mode, self.tile = (sizes.width, sizes.height), "RGB", []
        self.getexif()[ExifTags.Base.Orientation] = _ORIENTATIONS.get(sizes.flip, 1)

    def load(self) -> Any:
        """Develop the pixels; they stay as the sensor has them, and the EXIF orientation says how to turn them."""
        if self.raw is not None:
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
