"""Regions of an image: overlapping windows at several scales, and their boxes in pixels.

Region number ``r`` of every image is window ``r``: scale by scale as the schema lists them, in each from top to
bottom and left to right. A window is a share of the image, so it has the image's shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from mg_milvus.schema.errors import Model, Problem, refused_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mg_milvus.records import Box


Scale = tuple[float, int]
"""Side of a window as a share of the image's, and windows along each side."""


def windows(scales: Sequence[Scale]) -> NDArray[np.float64]:
    """All windows: (regions, 4) of left, top, width, height as shares of the image's sides."""
    import numpy as np

    found = []
    for size, grid in scales:
        starts = np.linspace(0, 1 - size, grid) if grid > 1 else np.array([(1 - size) / 2])
        found += [(left, top, size, size) for top in starts for left in starts]
    return np.array(found).reshape(-1, 4)


def scale_of(scales: Sequence[Scale]) -> NDArray[np.int64]:
    """The index in ``scales`` of each window: (regions,)."""
    import numpy as np

    return np.repeat(np.arange(len(scales)), [grid * grid for _, grid in scales])


def box_of(window: NDArray[np.float64], width: int, height: int) -> Box:
    """A window (4,) of an image as a box in its pixels, at least a pixel wide and high and inside the image."""
    left, top = (min(int(share * side), side - 1) for share, side in zip(window, (width, height), strict=False))
    across, down = (max(1, round(share * side)) for share, side in zip(window[2:], (width, height), strict=True))
    return left, top, min(across, width - left), min(down, height - top)


def region_id(image: str, number: int) -> str:
    """Primary key of a region: the image's id and the window's number."""
    return f"{image}:{number}"


def split_id(region: str) -> tuple[str, int]:
    """Image id and window number of a region's primary key."""
    image, _, number = region.rpartition(":")
    return image, int(number)


REGIONS = "regions"
"""Name of the granularity of regions, in weights, distances and ranks."""
MOST_REGIONS = 256


class RegionScale(Model):
    """Windows of one size."""

    size: Annotated[
        float, Field(strict=True, ge=0.1, le=1, allow_inf_nan=False, description="Side of a window, of the image's.")
    ]
    grid: Annotated[int, Field(strict=True, ge=1, le=16, description="Windows along each side: grid * grid of them.")]


class RegionSettings(Model):
    """Codes of regions, a row each in a collection beside the images'."""

    bits: Annotated[int, Field(strict=True, ge=8, le=4096, multiple_of=8, description="Code length of one region.")] = (
        128
    )
    weight: Annotated[
        float,
        Field(strict=True, ge=0, allow_inf_nan=False, description="Share in the fusion; 0: only when asked for."),
    ] = 0.0
    scales: Annotated[tuple[RegionScale, ...], Field(min_length=1, max_length=8, description="Sizes of windows.")] = (
        RegionScale(size=0.7, grid=2),
        RegionScale(size=0.5, grid=3),
        RegionScale(size=0.33, grid=4),
    )

    @property
    def windows(self) -> tuple[tuple[float, int], ...]:
        """Size and grid of each scale, as ``regions.windows`` wants them."""
        return tuple((scale.size, scale.grid) for scale in self.scales)

    @property
    def count(self) -> int:
        """Regions of one image."""
        return sum(scale.grid**2 for scale in self.scales)

    @property
    def bytes_per_image(self) -> int:
        """Bytes of the codes of all regions of one image."""
        return self.count * self.bits // 8

    @model_validator(mode="after")
    def _not_too_many(self) -> RegionSettings:
        if self.count > MOST_REGIONS:
            sentence = f"there are {self.count} regions, expected at most {MOST_REGIONS}; take smaller grids"
            raise refused_all("RegionSettings", [Problem(("scales",), sentence)])
        return self
