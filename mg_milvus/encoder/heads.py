"""From feature maps to the features that are hashed: pooling of several stages, joined per granularity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_serializer
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import SerializerFunctionWrapHandler

GEM_POWER = 3.0


class Reading(BaseModel):
    """What one granularity reads: which stages, and how each is pooled.

    ``gem`` is the generalised mean over all places (Radenovic et al. 2018); ``pyramid`` averages in each of
    ``cells`` x ``cells`` cells and so keeps where things are (Lazebnik et al. 2006); ``mirrored`` takes the generalised
    mean in each cell, then sums and differences of the left and the right, which a mirrored picture has too.

    ``smoothing`` is for heads fitted to a collection: steps of a random walk between neighbouring pictures, more for
    coarser likeness (see ``manifold.py``); 0 gives linear heads (see ``fit.py``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    pooling: Literal["gem", "pyramid", "mirrored"] = "gem"
    cells: Annotated[int, Field(ge=1, le=8)] = 1
    smoothing: Annotated[int, Field(ge=0, le=64)] = 0

    @model_serializer(mode="wrap")
    def _as_older_files(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Without ``smoothing`` where it is 0: files older than it have their fingerprint over the other fields."""
        fields: dict[str, object] = handler(self)
        return fields if self.smoothing else {name: value for name, value in fields.items() if name != "smoothing"}


def gem(maps: torch.Tensor, power: float = GEM_POWER) -> torch.Tensor:
    """Generalised mean over places: (n, c, h, w) -> (n, c) float32. Negative activations count as 0."""
    return maps.float().clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power)


def pyramid(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """Averages in a grid of cells: (n, c, h, w) -> (n, c * cells * cells) float32."""
    return F.adaptive_avg_pool2d(maps.float(), cells).flatten(1)


def mirrored(maps: torch.Tensor, cells: int, power: float = GEM_POWER) -> torch.Tensor:
    """Generalised means in a grid, the same for a mirrored grid: (n, c, h, w) -> (n, 2 * c * cells * ceil(cells / 2)).

    First the sums of each cell of the left half, middle column included, with its mirror image, then their absolute
    differences; float32.
    """
    grid = F.adaptive_avg_pool2d(maps.float().clamp(min=1e-6).pow(power), cells).pow(1 / power)
    half = (cells + 1) // 2
    left, right = grid[..., :half], grid.flip(3)[..., :half]
    return torch.cat([left + right, (left - right).abs()], dim=1).flatten(1)


def read(maps: Mapping[str, torch.Tensor], reading: Reading) -> torch.Tensor:
    """Pool and join the stages of one granularity; every stage has length 1, and so has the whole.

    Args:
        maps: stage -> (n, c, h, w).
        reading: which stages, and how.

    Returns:
        (n, d) float32 on the CPU.
    """
    pool: Callable[[torch.Tensor], torch.Tensor] = {
        "gem": gem,
        "pyramid": lambda x: pyramid(x, reading.cells),
        "mirrored": lambda x: mirrored(x, reading.cells),
    }[reading.pooling]
    parts = [F.normalize(pool(maps[stage]), dim=1) for stage in reading.stages]
    return F.normalize(torch.cat(parts, dim=1), dim=1).cpu()
