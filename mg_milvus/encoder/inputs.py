"""What size of picture a network is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from mg_milvus.encoder import Pixels


def resized(picture: Image.Image, size: tuple[int, int]) -> Pixels:
    """An RGB picture -> (3, h, w) uint8 of this width and height."""
    made = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(made).transpose(2, 0, 1))


def input_size(size: tuple[int, int], side: float, multiple: int) -> tuple[int, int]:
    """Width and height of the network's input for a picture of ``size``.

    The area is about side * side and the aspect is kept, between 1:2 and 2:1, as multiples of ``multiple`` allow; there
    are few different sizes, so that pictures can share a batch. A ``multiple`` of 0 gives the square.
    """
    if not multiple:
        return round(side), round(side)
    stretch = min(max((size[0] / size[1]) ** 0.5, 0.5**0.5), 2**0.5)
    return (
        max(1, round(side * stretch / multiple)) * multiple,
        max(1, round(side / stretch / multiple)) * multiple,
    )
