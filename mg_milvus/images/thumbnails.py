"""Thumbnails, also as JPEGs in data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from mg_milvus.errors import ImageError
from mg_milvus.images.decode import opening

if TYPE_CHECKING:
    from mg_milvus.images.decode import ImageSource
    from mg_milvus.records import Box

JPEG_QUALITY = 82

FRAME = ("black", "white", "white", "#ff7a1a", "#ff7a1a", "white", "black")
"""Colours of the frame around a region, a pixel each, from outside to inside; visible on any image."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A thumbnail: its data URI (empty when the image is unreadable), and the size of the full image in pixels."""

    uri: str = ""
    width: int = 0
    height: int = 0


def thumbnail(source: ImageSource, side: int, box: Box | None = None) -> Thumbnail:
    """A thumbnail as a data URI; see ``small``. That of an unreadable image is empty."""
    try:
        image, width, height = small(source, side, box)
    except ImageError:
        return Thumbnail()
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(uri, width, height)


def small(source: ImageSource, side: int, box: Box | None = None) -> tuple[Image.Image, int, int]:
    """A thumbnail, optionally with a frame around a region.

    Args:
        source: the image.
        side: longest side of the thumbnail in pixels, at most.
        box: the region as x, y, width, height in pixels of the full image.

    Returns:
        The thumbnail; width and height of the full image, upright.

    Raises:
        ImageError: it cannot be read.
    """
    with opening(source, least=side) as decoded:
        width, height = decoded.width, decoded.height
        image = decoded.image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    if box:
        scale = image.width / width
        left, top, right, bottom = (round(scale * x) for x in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        draw = ImageDraw.Draw(image)
        for inset, colour in enumerate(FRAME):
            edges = (
                left + inset,
                top + inset,
                max(left + inset, right - 1 - inset),
                max(top + inset, bottom - 1 - inset),
            )
            draw.rectangle(edges, outline=colour)
    return image, width, height
