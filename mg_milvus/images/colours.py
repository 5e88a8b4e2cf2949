"""Colours of an embedded profile as sRGB, which everything after decoding expects."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MODES = {"RGB": 3, "L": 1, "CMYK": 4}
"""Mode of an image -> channels that its profile describes."""
_LEAST = 2
"""A profile that changes no colour by more of 255 is sRGB by another name, and left alone."""
_MOST_BYTES = 4 * 2**20
"""Larger profiles are not read; those of printers have up to 3 MB."""
_STEPS = np.linspace(0, 255, 9).astype(np.uint8)


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
