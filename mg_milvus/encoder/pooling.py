"""Pooling of feature maps in numpy; ``torch_runtime`` computes the same in torch.

Feature maps are (n, c, h, w) float32; negative activations count as 0 in generalised means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Maps = NDArray[np.float32]


GEM_POWER = 3
_LEAST = np.float32(1e-6)
"""Smallest activation in generalised means."""
_LEAST_LENGTH = np.float32(1e-12)
"""Shorter vectors are not scaled to length 1."""


class Pooling(BaseModel):
    """How one granularity pools the backbone's stages.

    Attributes:
        stages: stages whose pooled maps are concatenated.
        kind: ``gem`` is the generalised mean over all places (Radenovic et al. 2018); ``pyramid`` averages in each of
            ``cells`` x ``cells`` cells and so keeps where things are (Lazebnik et al. 2006); ``mirrored`` takes the
            generalised mean in each cell, then sums and differences of left and right, which a mirrored image shares.
        cells: cells along each side.
        smoothing: steps of the random walk between neighbouring images when heads are fitted; more steps give coarser
            similarity, 0 gives linear heads (see ``hash_heads``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    kind: Literal["gem", "pyramid", "mirrored"] = "gem"
    cells: Annotated[int, Field(ge=1, le=8)] = 1
    smoothing: Annotated[int, Field(ge=0, le=64)] = 0


def width(pooling: Pooling, channels: Mapping[str, int]) -> int:
    """Length d of the vectors that ``pool`` returns for stages with these channels."""
    each = {"gem": 1, "pyramid": pooling.cells**2, "mirrored": 2 * pooling.cells * ((pooling.cells + 1) // 2)}
    return each[pooling.kind] * sum(channels[stage] for stage in pooling.stages)


def borders(
    start: NDArray[np.float64], length: NDArray[np.float64], places: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First place of each window, and the first place after it; a window covers at least one place."""
    first = np.minimum(np.rint(start * places).astype(np.int64), places - 1)
    return first, np.clip(np.rint((start + length) * places).astype(np.int64), first + 1, places)


def pool(maps: Mapping[str, Maps], pooling: Pooling) -> Maps:
    """Pool and concatenate the stages of one granularity; each stage is scaled to length 1, then the whole.

    Args:
        maps: stage -> (n, c, h, w).
        pooling: stages and kind.

    Returns:
        (n, d) float32.
    """
    pooled = [_pool_stage(maps[stage], pooling) for stage in pooling.stages]
    return _unit(np.concatenate([_unit(rows) for rows in pooled], axis=-1))


def pool_regions(maps: Mapping[str, Maps], pooling: Pooling, windows: NDArray[np.float64]) -> Maps:
    """Pool like ``pool`` with ``gem`` in each window (r, 4), given in shares of the image: (n, r, d) float32."""
    pooled = [_pool_windows(maps[stage], windows) for stage in pooling.stages]
    return _unit(np.concatenate([_unit(rows) for rows in pooled], axis=-1))


def _pool_stage(maps: Maps, pooling: Pooling) -> Maps:
    if pooling.kind == "gem":
        return _root(_powers(maps).reshape(*maps.shape[:2], -1).mean(axis=2))
    if pooling.kind == "pyramid":
        return _cells(maps, pooling.cells).reshape(len(maps), -1)
    grid = _root(_cells(_powers(maps), pooling.cells))
    half = (pooling.cells + 1) // 2
    left, right = grid[..., :half], grid[..., ::-1][..., :half]
    return np.concatenate([left + right, np.abs(left - right)], axis=1).reshape(len(maps), -1)


def _pool_windows(maps: Maps, windows: NDArray[np.float64]) -> Maps:
    """Generalised mean in each window from a summed-area table (Crow 1984): (n, r, c)."""
    height, width = maps.shape[2:]
    table = np.zeros((*maps.shape[:2], height + 1, width + 1))
    np.cumsum(_powers(maps), axis=2, out=table[:, :, 1:, 1:], dtype=np.float64)
    np.cumsum(table, axis=3, out=table)
    left, right = borders(windows[:, 0], windows[:, 2], width)
    top, bottom = borders(windows[:, 1], windows[:, 3], height)
    sums = table[:, :, bottom, right] - table[:, :, top, right] - table[:, :, bottom, left] + table[:, :, top, left]
    means = np.maximum(sums / ((bottom - top) * (right - left)), 1e-18)
    return _root(means).astype(np.float32).transpose(0, 2, 1)


def _cells(maps: Maps, cells: int) -> Maps:
    """Averages in a grid: (n, c, cells, cells). Cells overlap where a side does not divide, as in torch."""
    height, width = maps.shape[2:]
    rows, columns = (
        [slice(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)] for side in (height, width)
    )
    return np.stack([np.stack([maps[..., y, x].mean(axis=(2, 3)) for x in columns], axis=2) for y in rows], axis=2)


def _powers(maps: Maps) -> Maps:
    """Activations to the power ``GEM_POWER``, as products: numpy's power takes ten times as long."""
    positive = np.maximum(maps, _LEAST)
    return positive * positive * positive


def _root(means: NDArray[np.floating]) -> NDArray[np.floating]:
    return means ** means.dtype.type(1 / GEM_POWER)


def _unit(rows: Maps) -> Maps:
    """Scale the vectors of the last axis to length 1."""
    unit: Maps = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), _LEAST_LENGTH)
    return unit
