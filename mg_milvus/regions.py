"""Regions of a picture: overlapping windows at several scales, and their boxes in pixels. Pure numpy.

Region number ``r`` of every picture is window ``r``: scale by scale as the schema lists them, in each from top to
bottom and left to right. A window is a share of the picture, so it has the picture's shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Scale = tuple[float, int]
"""Side of a window as a share of the picture's, and windows along each side."""
Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


def windows(scales: Sequence[Scale]) -> NDArray[np.float64]:
    """All windows: (regions, 4) of left, top, width, height as shares of the picture's sides."""
    found = []
    for size, grid in scales:
        starts = np.linspace(0, 1 - size, grid) if grid > 1 else np.array([(1 - size) / 2])
        found += [(left, top, size, size) for top in starts for left in starts]
    return np.array(found).reshape(-1, 4)


def scale_of(scales: Sequence[Scale]) -> NDArray[np.int64]:
    """The place in ``scales`` of each window: (regions,)."""
    return np.repeat(np.arange(len(scales)), [grid * grid for _, grid in scales])


def box_of(window: NDArray[np.float64], width: int, height: int) -> Box:
    """A window (4,) of a picture as a box in its pixels, at least a pixel wide and high and inside the picture."""
    left, top = (min(int(share * side), side - 1) for share, side in zip(window, (width, height), strict=False))
    across, down = (max(1, round(share * side)) for share, side in zip(window[2:], (width, height), strict=True))
    return left, top, min(across, width - left), min(down, height - top)


def region_id(picture: str, number: int) -> str:
    """Primary key of a region: the picture's id and the window's number."""
    return f"{picture}:{number}"


def split_id(region: str) -> tuple[str, int]:
    """Picture id and window number of a region's primary key."""
    picture, _, number = region.rpartition(":")
    return picture, int(number)
