"""Pixels of any depth and colour space as 8 bits of sRGB, which everything after decoding expects.

Samples of more than 8 bits are scaled by the bits that they use, as sensors of 10, 12 or 14 bits have them; colours are
converted by the embedded profile.
"""

from __future__ import annotations

import io
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

_BAND = 1 << 18
"""Approximate pixels of a band."""
_DEPTHS = (8, 10, 12, 14, 16)
"""Bits that samples of 16 bits may use."""
_DEEP = re.compile(r";16([BLN])$")
"""End of Pillow's name for samples of 16 bits, of which it keeps the high byte; and their order of bytes."""
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_FULL = 64
"""A high byte from here on belongs to a sample that uses all 16 bits."""
_MODES = {"RGB": 3, "L": 1, "CMYK": 4}
"""Mode of an image -> channels that its profile describes."""
_LEAST = 2
"""A profile that changes no colour by more of 255 is sRGB by another name, and left alone."""
_MOST_BYTES = 4 * 2**20
"""Larger profiles are not read; those of printers have up to 3 MB."""
_STEPS = np.linspace(0, 255, 9).astype(np.uint8)


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield an image in bands of rows, each with its top, so that temporary arrays stay small."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def is_deep(image: Image.Image) -> bool:
    """Whether an image file in colours, not loaded yet, has samples of 16 bits, of which Pillow keeps the high byte."""
    tiles = getattr(image, "tile", ())
    return image.mode in {"RGB", "RGBA"} and bool(tiles) and all(_DEEP.search(_raw_mode(tile)) for tile in tiles)


def stretched(image: Image.Image, again: Callable[[], ImageFile]) -> Image.Image:
    """An image in colours whose samples of 16 bits use 8, 10, 12 or 14 of them, scaled by these; others as they are.

    Args:
        image: loaded; ``is_deep`` before.
        again: opens the same file once more.
    """
    colours = image.getbands()[:3]
    if max(high for _, high in image.getextrema()[:3]) >= _FULL or "transparency" in image.info:  # type: ignore[misc]
        return image
    low = again()
    low.tile = [tile._replace(args=_other_order(tile)) for tile in low.tile]
    low.load()  # as if its bytes were in the other order: the low ones

    def samples(top: int, band: Image.Image) -> NDArray[np.uint16]:
        high_bytes = np.asarray(band, np.uint16)[..., : len(colours)]
        low_bytes = np.asarray(low.crop((0, top, band.width, top + band.height)), np.uint16)[..., : len(colours)]
        return np.bitwise_or(np.left_shift(high_bytes, 8), low_bytes)

    eight_of = _to_eight(max(int(samples(top, band).max()) for top, band in bands(image)))
    scaled = image.copy()
    for top, band in bands(image):
        pixels = np.array(band)
        pixels[..., : len(colours)] = eight_of[samples(top, band)]
        scaled.paste(Image.fromarray(pixels), (0, top))
    return scaled


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _other_order(tile: Any) -> Any:
    """The arguments of a tile whose decoder takes the other byte of each sample."""
    other = _DEEP.sub(lambda match: f";16{_OTHER[match[1]]}", _raw_mode(tile))
    return other if isinstance(tile.args, str) else (other, *tile.args[1:])


def _to_eight(highest: int) -> NDArray[np.uint8]:
    """The table from samples to 8 bits, by the bits that the highest sample needs."""
    top_value = next(2**bits - 1 for bits in _DEPTHS if highest < 2**bits)
    table = (np.arange(top_value + 1) * 255 + top_value // 2) // top_value
    return np.asarray(table, np.uint8)


def grey_of(image: Image.Image) -> Image.Image:
    """Convert greyscale of 16 or 32 bits, or of floats, to mode L.

    Integers from 0 to 65,535 keep the scale of the bits that are used: 8, 10, 12, 14 or 16, as sensors have them.
    Floats from 0 to 1 keep their scale; other ranges are stretched to 0 … 255.
    """
    grey = Image.new("L", image.size)
    low, high = _span(image)
    if image.mode != "F" and low >= 0 and high <= 65_535:
        eight_of = _to_eight(int(high))
        key = image.info.get("transparency")
        for top, band in bands(image):
            values = np.asarray(band)
            eight = eight_of[values]
            if isinstance(key, int):
                eight = np.where(values == key, np.uint8(255), eight)
            grey.paste(Image.fromarray(eight), (0, top))
        return grey
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    for top, band in bands(image):
        numbers = np.rint((_finite(band) - low) * (255 / ((high - low) or 1.0)))
        grey.paste(Image.fromarray(numbers.astype(np.uint8)), (0, top))
    return grey


def _span(image: Image.Image) -> tuple[float, float]:
    """Smallest and largest value of an image."""
    spans = [(values.min(), values.max()) for values in (_finite(band) for _, band in bands(image))]
    return float(min(low for low, _ in spans)), float(max(high for _, high in spans))


def _finite(band: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of mode RGB, L or CMYK to mode RGB, by its ICC profile; without a sound one, plainly."""
    if profile and len(profile) <= _MOST_BYTES and image.mode in _MODES:
        transform = _transform(bytes(profile), image.mode)
        if transform is not None:
            return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion from a profile to sRGB; None where none is needed, or the profile says nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
        colours = _grid(mode)
        changed = np.asarray(transform.apply(colours), np.int16) - np.asarray(colours.convert("RGB"), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform if np.abs(changed).max() > _LEAST else None


def _grid(mode: str) -> Image.Image:
    """Colours of all kinds: nine steps of each channel."""
    channels = _MODES[mode]
    axes = np.meshgrid(*[_STEPS] * channels, indexing="ij")
    colours: NDArray[np.uint8] = np.stack(axes, axis=-1).reshape(1, -1, channels)
    return Image.fromarray(colours[..., 0] if channels == 1 else colours, mode if channels == 4 else None)
