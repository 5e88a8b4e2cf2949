"""Augmentation: edited copies of images as people make them, which ``fine`` codes should still match.

All augmentations are deterministic, take an RGB image and return a new one.
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
class Augmentation:
    """One way to edit an image.

    Attributes:
        description: the change at each strength, weakest first.
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
            ImageError: it does not apply to the image; the message continues a sentence that begins with its name.
        """
        if strength not in self.versions:
            raise QueryError(f"strength {strength!r} is unknown: expected one of {', '.join(self.versions)}")
        return self.versions[strength](image)


def crop(image: Image.Image, *, area: float) -> Image.Image:
    """Crop to a share of the area with the aspect of the image, slightly left of and below the centre."""
    width, height = (max(1, round(side * area**0.5)) for side in image.size)
    left, top = int((image.width - width) * 0.4), int((image.height - height) * 0.6)
    return image.crop((left, top, left + width, top + height))


def rotate(image: Image.Image, *, degrees: float) -> Image.Image:
    """Rotate counter-clockwise about the centre; same size, black corners."""
    return image.rotate(degrees, Image.Resampling.BICUBIC)


def recolour(image: Image.Image, *, saturation: float = 1.0, hue: int = 0) -> Image.Image:
    """Scale the saturation, 0 for grey, and shift hues by ``hue`` 255ths of the circle (21: red to orange)."""
    faded = ImageEnhance.Color(image).enhance(saturation)
    if not hue:
        return faded
    hues, *rest = faded.convert("HSV").split()
    turned = hues.point([(value + hue) % 255 for value in range(256)])
    return Image.merge("HSV", (turned, *rest)).convert("RGB")


def brighten(image: Image.Image, *, factor: float) -> Image.Image:
    """Multiply every sample by a factor, clipped at 255."""
    return ImageEnhance.Brightness(image).enhance(factor)


def blur(image: Image.Image, *, radius: float) -> Image.Image:
    """Apply Gaussian blur; the radius is the standard deviation in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def recompress(image: Image.Image, *, quality: int) -> Image.Image:
    """Save as a JPEG, 4:2:0, and decode it.

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


def add_text(image: Image.Image, *, text: str, width: float, box: float = 0.0) -> Image.Image:
    """Draw white text with a black outline along the lower edge, and a plain box at the upper right.

    Args:
        image: RGB.
        text: one line.
        width: of the text, as a share of the image's width.
        box: share of the area that the box covers; it has the image's aspect.
    """
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    if box:
        width_of_box, height_of_box = (max(1, round(side * box**0.5)) for side in image.size)
        left, top = round(0.96 * image.width) - width_of_box, round(0.04 * image.height)
        draw.rectangle((left, top, left + width_of_box - 1, top + height_of_box - 1), fill=_BOX_COLOUR)
    # Text width is proportional to the font size, so one measurement suffices.
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


_SINGLE: dict[str, Augmentation] = {
    "crop": Augmentation(
        "0.9 / 0.7 / 0.5 of the area kept, a little off the middle",
        _three(*(partial(crop, area=area) for area in (0.9, 0.7, 0.5))),
    ),
    "flip": Augmentation("mirrored left to right, the same at every strength", _three(*[ImageOps.mirror] * 3)),
    "rotation": Augmentation(
        "5 / 10 / 15 degrees, same size, black corners",
        _three(*(partial(rotate, degrees=degrees) for degrees in (5, 10, 15))),
    ),
    "colour": Augmentation(
        "saturation x 0.6 / hues turned by 30 degrees / greyscale",
        _three(partial(recolour, saturation=0.6), partial(recolour, hue=21), partial(recolour, saturation=0.0)),
    ),
    "brightness": Augmentation(
        "x 1.2 / x 1.5 / x 0.5",
        _three(*(partial(brighten, factor=factor) for factor in (1.2, 1.5, 0.5))),
    ),
    "blur": Augmentation(
        "Gaussian, radius 1 / 1.5 / 2 pixels",
        _three(*(partial(blur, radius=radius) for radius in (1, 1.5, 2))),
    ),
    "text": Augmentation(
        "caption / caption and a box on 4 % of the area / large text and a box, together on about 15 %",
        _three(
            partial(add_text, text=_CAPTION, width=0.6),
            partial(add_text, text=_CAPTION, width=0.6, box=0.04),
            partial(add_text, text=_LARGE, width=0.55, box=0.08),
        ),
    ),
    "jpeg": Augmentation(
        "JPEG quality 60 / 30 / 10",
        _three(*(partial(recompress, quality=quality) for quality in (60, 30, 10))),
    ),
}
"""Single augmentations, in the order in which ``all`` applies them."""


def _all(image: Image.Image, *, strength: str) -> Image.Image:
    for augmentation in _SINGLE.values():
        image = augmentation.apply(image, strength)
    return image


AUGMENTATIONS: dict[str, Augmentation] = _SINGLE | {
    "all": Augmentation(
        f"{', '.join(_SINGLE)}: one after another, all at one strength",
        _three(*(partial(_all, strength=strength) for strength in STRENGTHS)),
    )
}
"""Name -> augmentation; ``all`` is the last."""
