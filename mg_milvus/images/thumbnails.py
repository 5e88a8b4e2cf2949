"""Small copies of images, as JPEGs inside of a page."""

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
"""Colours of the frame around a region, from outside to inside, a pixel each: seen on any image."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An image for a page: its data URI (empty when unreadable), and the size of the whole image in pixels."""

    uri: str = ""
    width: int = 0
    height: int = 0


def thumbnail(source: ImageSource, side: int, box: Box | None = None) -> Thumbnail:
    """A small copy of an image for a page; see ``small``. One that cannot be read has no data."""
    try:
        image, width, height = small(source, side, box)
    except ImageError:
        return Thumbnail()
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(uri, width, height)


def small(source: ImageSource, side: int, box: Box | None = None) -> tuple[Image.Image, int, int]:
    """A small copy of an image, with a frame around a region where one was found.

    Args:
        source: the image.
        side: its longest side in pixels, at most.
        box: the region as x, y, width, height in pixels of the whole image.

    Returns:
        The copy; width and height of the whole image, upright.

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
