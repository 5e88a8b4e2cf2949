"""From feature maps to the features that are hashed: pooling of several stages, joined per granularity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_serializer
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
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


def windowed(maps: torch.Tensor, windows: NDArray[np.float64], power: float = GEM_POWER) -> torch.Tensor:
    """Generalised mean in each window: (n, c, h, w) and (r, 4) shares -> (n, r, c) float32.

    Borders fall on whole places. Sums come from a summed-area table (Crow 1984), so many windows cost little more than
    one; in double precision, because they are differences of large sums.
    """
    height, width = maps.shape[2:]
    table = F.pad(maps.float().clamp(min=1e-6).pow(power).double().cumsum(2).cumsum(3), (1, 0, 1, 0)).flatten(2)
    left, right = _borders(windows[:, 0], windows[:, 2], width)
    top, bottom = _borders(windows[:, 1], windows[:, 3], height)

    def corner(row: NDArray[np.int64], column: NDArray[np.int64]) -> torch.Tensor:
        return table[:, :, torch.from_numpy(row * (width + 1) + column).to(maps.device)]

    sums = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    places = torch.from_numpy((bottom - top) * (right - left)).to(maps.device)
    return (sums / places).clamp(min=1e-18).pow(1 / power).float().transpose(1, 2)


def width(reading: Reading, channels: Mapping[str, int]) -> int:
    """The d of ``read`` for stages of these channels."""
    each = {"gem": 1, "pyramid": reading.cells**2, "mirrored": 2 * reading.cells * ((reading.cells + 1) // 2)}
    return each[reading.pooling] * sum(channels[stage] for stage in reading.stages)


def _borders(
    start: NDArray[np.float64], length: NDArray[np.float64], places: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First place of each window, and the first behind it; a window has at least one place."""
    first = np.minimum(np.rint(start * places).astype(np.int64), places - 1)
    return first, np.clip(np.rint((start + length) * places).astype(np.int64), first + 1, places)


def read_regions(maps: Mapping[str, torch.Tensor], reading: Reading, windows: NDArray[np.float64]) -> torch.Tensor:
    """As ``read`` with ``gem``, in each window (r, 4): (n, r, d) float32 on the CPU."""
    parts = [F.normalize(windowed(maps[stage], windows), dim=2) for stage in reading.stages]
    return F.normalize(torch.cat(parts, dim=2), dim=2).cpu()


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
