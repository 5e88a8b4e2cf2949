"""The schema's section ``parts``: which regions of a picture get a code of their own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mg_milvus.schema_errors import Model, Problem, refused_all

PARTS = "parts"
"""Name of the granularity of regions, in weights, distances and ranks."""
MOST_REGIONS = 256


class RegionScale(Model):
    """Windows of one size."""

    size: Annotated[
        float, Field(strict=True, ge=0.1, le=1, allow_inf_nan=False, description="Side of a window, of the picture's.")
    ]
    grid: Annotated[int, Field(strict=True, ge=1, le=16, description="Windows along each side: grid * grid of them.")]


class PartsSettings(Model):
    """Codes of regions, a row each in a collection beside the pictures'."""

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
    def regions(self) -> int:
        """Regions of one picture."""
        return sum(scale.grid**2 for scale in self.scales)

    @property
    def bytes_per_picture(self) -> int:
        """Bytes of the codes of all regions of one picture."""
        return self.regions * self.bits // 8

    @model_validator(mode="after")
    def _not_too_many(self) -> PartsSettings:
        if self.regions > MOST_REGIONS:
            sentence = f"there are {self.regions} regions, expected at most {MOST_REGIONS}; take smaller grids"
            raise refused_all("PartsSettings", [Problem(("scales",), sentence)])
        return self
