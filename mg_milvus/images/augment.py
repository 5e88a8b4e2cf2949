"""Edited copies of images, as people make them: what a search by ``fine`` codes has to see through.

All edits are deterministic, take an RGB image and return a new one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from mg_milvus.errors import ImageError, QueryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


STRENGTHS = ("mild", "medium", "strong")

_CAPTION = "Sample caption 2024"
_LARGE = "SALE!"
_BOX_COLOUR = (246, 205, 60)


@dataclass(frozen=True, slots=True)
class Edit:
    """One way to edit an image.

    Attributes:
        description: what is done, at the three strengths in turn.
        versions: strength -> RGB image to RGB image.
    """

    description: str
    versions: Mapping[str, Callable[[Image.Image], Image.Image]]

    def apply(self, image: Image.Image, strength: str) -> Image.Image:
        """The edited image, RGB.

        Args:
            image: RGB; it is not changed.
            strength: one of ``STRENGTHS``.

        Raises:
            QueryError: there is no such strength.
            ImageError: the image cannot be edited so; the message goes on where a name is put before it.
        """
        if strength not in self.versions:
            raise QueryError(f"strength {strength!r} is unknown: expected one of {', '.join(self.versions)}")
        return self.versions[strength](image)


def cropped(image: Image.Image, *, area: float) -> Image.Image:
    """A window of this share of the area and of the image's shape, a little left of and below the middle."""
    width, height = (max(1, round(side * area**0.5)) for side in image.size)
    left, top = int((image.width - width) * 0.4), int((image.height - height) * 0.6)
    return image.crop((left, top, left + width, top + height))


def rotated(image: Image.Image, *, degrees: float) -> Image.Image:
    """Turned counter-clockwise about the middle; the size stays, the corners that come free are black."""
    return image.rotate(degrees, Image.Resampling.BICUBIC)


def coloured(image: Image.Image, *, saturation: float = 1.0, hue: int = 0) -> Image.Image:
    """Saturation times a factor, 0 for grey; hues turned by ``hue`` 255ths of the circle (21: red to orange)."""
    faded = ImageEnhance.Color(image).enhance(saturation)
    if not hue:
        return faded
    hues, *rest = faded.convert("HSV").split()
    turned = hues.point([(value + hue) % 255 for value in range(256)])
    return Image.merge("HSV", (turned, *rest)).convert("RGB")


def brightened(image: Image.Image, *, factor: float) -> Image.Image:
    """Every sample times a factor, cut off at 255."""
    return ImageEnhance.Brightness(image).enhance(factor)


def blurred(image: Image.Image, *, radius: float) -> Image.Image:
    """Gaussian blur; the radius, in pixels of the image, is the standard deviation."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def recompressed(image: Image.Image, *, quality: int) -> Image.Image:
    """Saved as a JPEG, 4:2:0, and read again.

    Raises:
        ImageError: the image is longer than a JPEG can be.
    """
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    except OSError as error:
        raise ImageError(f"is {image.width}x{image.height} pixels, too long for a JPEG: leave it out") from error
    with Image.open(buffer) as saved:
        return saved.convert("RGB")


def lettered(image: Image.Image, *, text: str, width: float, box: float = 0.0) -> Image.Image:
    """White text with a black rim along the lower edge, and a plain box at the upper right.

    Args:
        image: RGB.
        text: one line.
        width: of the text, as a share of the image's.
        box: share of the area that the box covers; it has the image's shape.
    """
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    if box:
        width_of_box, height_of_box = (max(1, round(side * box**0.5)) for side in image.size)
        left, top = round(0.96 * image.width) - width_of_box, round(0.04 * image.height)
        draw.rectangle((left, top, left + width_of_box - 1, top + height_of_box - 1), fill=_BOX_COLOUR)
    # Lengths grow with the font size: measured at one size, the size that fills the width follows.
    size = max(1.0, 100 * width * image.width / ImageFont.load_default(100).getlength(text))
    draw.text(
        (image.width / 2, 0.96 * image.height),
        text,
        fill="white",
        font=ImageFont.load_default(size),
        anchor="md",
        stroke_width=max(1, round(size / 16)),
        stroke_fill="black",
    )
    return copy


def _three(*versions: Callable[[Image.Image], Image.Image]) -> dict[str, Callable[[Image.Image], Image.Image]]:
    return dict(zip(STRENGTHS, versions, strict=True))


_SINGLE: dict[str, Edit] = {
    "crop": Edit(
        "0.9 / 0.7 / 0.5 of the area kept, a little off the middle",
        _three(*(partial(cropped, area=area) for area in (0.9, 0.7, 0.5))),
    ),
    "flip": Edit("mirrored left to right, the same at every strength", _three(*[ImageOps.mirror] * 3)),
    "rotation": Edit(
        "5 / 10 / 15 degrees, same size, black corners",
        _three(*(partial(rotated, degrees=degrees) for degrees in (5, 10, 15))),
    ),
    "colour": Edit(
        "saturation x 0.6 / hues turned by 30 degrees / greyscale",
        _three(partial(coloured, saturation=0.6), partial(coloured, hue=21), partial(coloured, saturation=0.0)),
    ),
    "brightness": Edit(
        "x 1.2 / x 1.5 / x 0.5",
        _three(*(partial(brightened, factor=factor) for factor in (1.2, 1.5, 0.5))),
    ),
    "blur": Edit(
        "Gaussian, radius 1 / 1.5 / 2 pixels",
        _three(*(partial(blurred, radius=radius) for radius in (1, 1.5, 2))),
    ),
    "text": Edit(
        "caption / caption and a box on 4 % of the area / large text and a box, together on about 15 %",
        _three(
            partial(lettered, text=_CAPTION, width=0.6),
            partial(lettered, text=_CAPTION, width=0.6, box=0.04),
            partial(lettered, text=_LARGE, width=0.55, box=0.08),
        ),
    ),
    "jpeg": Edit(
        "JPEG quality 60 / 30 / 10",
        _three(*(partial(recompressed, quality=quality) for quality in (60, 30, 10))),
    ),
}
"""In the order in which somebody would do them: cut, turn, change colours, write on it, save."""


def _all(image: Image.Image, *, strength: str) -> Image.Image:
    for edit in _SINGLE.values():
        image = edit.apply(image, strength)
    return image


EDITS: dict[str, Edit] = _SINGLE | {
    "all": Edit(
        f"{', '.join(_SINGLE)}: one after another, all at one strength",
        _three(*(partial(_all, strength=strength) for strength in STRENGTHS)),
    )
}
"""Name -> edit; ``all`` is the last."""
