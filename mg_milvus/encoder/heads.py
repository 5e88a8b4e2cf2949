"""From feature maps to the features that are hashed: pooling of several stages, joined per granularity, in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from mg_milvus.encoder.readings import GEM_POWER, borders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mg_milvus.encoder.readings import Reading


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
    left, right = borders(windows[:, 0], windows[:, 2], width)
    top, bottom = borders(windows[:, 1], windows[:, 3], height)

    def corner(row: NDArray[np.int64], column: NDArray[np.int64]) -> torch.Tensor:
        return table[:, :, torch.from_numpy(row * (width + 1) + column).to(maps.device)]

    sums = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    places = torch.from_numpy((bottom - top) * (right - left)).to(maps.device)
    return (sums / places).clamp(min=1e-18).pow(1 / power).float().transpose(1, 2)


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
