"""Small copies of pictures, as JPEGs inside of a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from mg_milvus.errors import PictureError
from mg_milvus.images.decode import opening

if TYPE_CHECKING:
    from mg_milvus.images.decode import PictureSource
    from mg_milvus.regions import Box

JPEG_QUALITY = 82

FRAME = ("black", "white", "white", "#ff7a1a", "#ff7a1a", "white", "black")
"""Colours of the frame around a region, from outside to inside, a pixel each: seen on any picture."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture for a page: its data URI (empty when unreadable), and the size of the whole picture in pixels."""

    uri: str = ""
    width: int = 0
    height: int = 0


def thumbnail(source: PictureSource, side: int, box: Box | None = None) -> Thumbnail:
    """A small copy of a picture for a page; see ``small``. One that cannot be read has no data."""
    try:
        picture, width, height = small(source, side, box)
    except PictureError:
        return Thumbnail()
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(uri, width, height)


def small(source: PictureSource, side: int, box: Box | None = None) -> tuple[Image.Image, int, int]:
    """A small copy of a picture, with a frame around a region where one was found.

    Args:
        source: the picture.
        side: its longest side in pixels, at most.
        box: the region as x, y, width, height in pixels of the whole picture.

    Returns:
        The copy; width and height of the whole picture, upright.

    Raises:
        PictureError: it cannot be read.
    """
    with opening(source, least=side) as decoded:
        width, height = decoded.width, decoded.height
        picture = decoded.picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    if box:
        scale = picture.width / width
        left, top, right, bottom = (round(scale * x) for x in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        draw = ImageDraw.Draw(picture)
        for inset, colour in enumerate(FRAME):
            edges = (
                left + inset,
                top + inset,
                max(left + inset, right - 1 - inset),
                max(top + inset, bottom - 1 - inset),
            )
            draw.rectangle(edges, outline=colour)
    return picture, width, height
