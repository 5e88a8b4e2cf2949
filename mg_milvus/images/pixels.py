"""Any mode of Pillow, any accepted array or tensor layout -> 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mg_milvus.errors import PictureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

LAYOUTS = (
    "numpy (h, w), (h, w, 3) RGB or (h, w, 4) RGBA, torch (1, h, w) or (3, h, w) RGB, each uint8 or float from 0 to 1"
)
"""The accepted arrays and tensors, for messages."""

_BAND = 1 << 18
"""Pixels of a band, about."""

_SIXTEEN_TO_EIGHT = ((np.arange(65_536) + 128) // 257).astype(np.uint8)


def to_rgb(picture: Image.Image) -> Image.Image:
    """A loaded picture of any mode -> mode RGB (itself, when it is); transparency is put on white."""
    if picture.mode.startswith(("I", "F")):
        return _grey(picture).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGB", picture.size, "white")
        for top, band in _bands(picture):
            layer = band.convert("RGBA")
            white.paste(layer, (0, top), mask=layer)
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """A picture in bands of rows, each with its top: what is computed of them is small beside the picture."""
    rows = max(1, _BAND // picture.width)
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def from_array(array: NDArray[Any]) -> Image.Image:
    """(h, w) grey, (h, w, 3) RGB or (h, w, 4) RGBA, uint8 or float from 0 to 1 -> mode RGB.

    Raises:
        PictureError: another shape, type or range; the message states the layouts.
    """
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
        samples = _samples(array)
        if samples is not None:
            return to_rgb(Image.fromarray(samples))
    raise _refusal(array, array)


def is_tensor(source: object) -> bool:
    """Whether this is a torch tensor; torch is not imported to find out."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(source).__mro__)


def from_tensor(tensor: Any) -> Image.Image:
    """(1, h, w) grey or (3, h, w) RGB, uint8 or float from 0 to 1 -> mode RGB.

    Raises:
        PictureError: another shape, type or range; the message states the layouts.
    """
    given = tensor.detach().cpu()
    array: NDArray[Any] = (given.float() if given.is_floating_point() else given).numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        samples = _samples(array)
        if samples is not None:
            channels = [Image.fromarray(channel) for channel in samples]
            return Image.merge("RGB", channels if len(channels) == 3 else channels * 3)
    raise _refusal(array, tensor)


def _samples(array: NDArray[Any]) -> NDArray[np.uint8] | None:
    """The array as contiguous uint8; None when it is neither uint8 nor float from 0 to 1, or empty."""
    if array.size and array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.size and array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8, order="C")
    return None


def _refusal(array: NDArray[Any], given: Any) -> PictureError:
    span = f", values from {array.min()} to {array.max()}" if array.size and array.dtype.kind in "iuf" else ""
    return PictureError(
        f"the {type(given).__name__} given as a picture has shape {tuple(given.shape)}, type {given.dtype}{span}: "
        f"expected {LAYOUTS}"
    )


def _grey(picture: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits, or of real numbers -> mode L.

    Integers from 0 to 65,535 and real numbers from 0 to 1 keep their scale; other ranges are stretched to 0 … 255.
    """
    grey = Image.new("L", picture.size)
    low, high = _span(picture)
    if picture.mode != "F" and low >= 0 and high <= 65_535:
        key = picture.info.get("transparency")
        for top, band in _bands(picture):
            values = np.asarray(band)
            eight = _SIXTEEN_TO_EIGHT[values]
            if isinstance(key, int):
                eight = np.where(values == key, np.uint8(255), eight)
            grey.paste(Image.fromarray(eight), (0, top))
        return grey
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    for top, band in _bands(picture):
        numbers = np.rint((_finite(band) - low) * (255 / ((high - low) or 1.0)))
        grey.paste(Image.fromarray(numbers.astype(np.uint8)), (0, top))
    return grey


def _span(picture: Image.Image) -> tuple[float, float]:
    """Smallest and largest value."""
    spans = [(values.min(), values.max()) for values in (_finite(band) for _, band in _bands(picture))]
    return float(min(low for low, _ in spans)), float(max(high for _, high in spans))


def _finite(band: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
