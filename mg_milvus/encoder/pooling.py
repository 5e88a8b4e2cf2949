"""What is read of feature maps, and how, without torch; ``heads.py`` reads the same in torch.

All maps are (n, c, h, w) float32; negative activations count as 0 in generalised means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_serializer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from pydantic import SerializerFunctionWrapHandler

    Maps = NDArray[np.float32]


GEM_POWER = 3
_LEAST = np.float32(1e-6)
"""What activations count at least in generalised means."""
_LEAST_LENGTH = np.float32(1e-12)
"""Vectors that are shorter stay shorter than 1."""


class Reading(BaseModel):
    """What one granularity reads: which stages, and how each is pooled.

    ``gem`` is the generalised mean over all places (Radenovic et al. 2018); ``pyramid`` averages in each of
    ``cells`` x ``cells`` cells and so keeps where things are (Lazebnik et al. 2006); ``mirrored`` takes the generalised
    mean in each cell, then sums and differences of the left and the right, which a mirrored image has too.

    ``smoothing`` is for heads fitted to a collection: steps of a random walk between neighbouring images, more for
    coarser likeness (see ``manifold.py``); 0 gives linear heads (see ``fit.py``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    pooling: Literal["gem", "pyramid", "mirrored"] = "gem"
    cells: Annotated[int, Field(ge=1, le=8)] = 1
    smoothing: Annotated[int, Field(ge=0, le=64)] = 0

    @model_serializer(mode="wrap")
    def _as_older_files(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Without ``smoothing`` where it is 0: files older than it have their fingerprint over the other fields."""
        fields: dict[str, object] = handler(self)
        return fields if self.smoothing else {name: value for name, value in fields.items() if name != "smoothing"}


def width(reading: Reading, channels: Mapping[str, int]) -> int:
    """The d of ``read`` for stages of these channels."""
    each = {"gem": 1, "pyramid": reading.cells**2, "mirrored": 2 * reading.cells * ((reading.cells + 1) // 2)}
    return each[reading.pooling] * sum(channels[stage] for stage in reading.stages)


def borders(
    start: NDArray[np.float64], length: NDArray[np.float64], places: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First place of each window, and the first behind it; a window has at least one place."""
    first = np.minimum(np.rint(start * places).astype(np.int64), places - 1)
    return first, np.clip(np.rint((start + length) * places).astype(np.int64), first + 1, places)


def read(maps: Mapping[str, Maps], reading: Reading) -> Maps:
    """Pool and join the stages of one granularity; every stage has length 1, and so has the whole.

    Args:
        maps: of each stage.
        reading: which stages, and how.

    Returns:
        (n, d) float32.
    """
    pooled = [_pooled(maps[stage], reading) for stage in reading.stages]
    return _unit(np.concatenate([_unit(rows) for rows in pooled], axis=-1))


def read_regions(maps: Mapping[str, Maps], reading: Reading, windows: NDArray[np.float64]) -> Maps:
    """As ``read`` with ``gem``, in each window (r, 4), in shares of the image: (n, r, d) float32."""
    pooled = [_windowed(maps[stage], windows) for stage in reading.stages]
    return _unit(np.concatenate([_unit(rows) for rows in pooled], axis=-1))


def _pooled(maps: Maps, reading: Reading) -> Maps:
    if reading.pooling == "gem":
        return _root(_powers(maps).reshape(*maps.shape[:2], -1).mean(axis=2))
    if reading.pooling == "pyramid":
        return _cells(maps, reading.cells).reshape(len(maps), -1)
    grid = _root(_cells(_powers(maps), reading.cells))
    half = (reading.cells + 1) // 2
    left, right = grid[..., :half], grid[..., ::-1][..., :half]
    return np.concatenate([left + right, np.abs(left - right)], axis=1).reshape(len(maps), -1)


def _windowed(maps: Maps, windows: NDArray[np.float64]) -> Maps:
    """Generalised mean in each window, from a summed-area table as in ``heads.windowed``: (n, r, c)."""
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
    """Averages in a grid: (n, c, cells, cells). Cells of sides that do not divide overlap, as torch has it."""
    height, width = maps.shape[2:]
    rows, columns = (
        [slice(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)] for side in (height, width)
    )
    return np.stack([np.stack([maps[..., y, x].mean(axis=(2, 3)) for x in columns], axis=2) for y in rows], axis=2)


def _powers(maps: Maps) -> Maps:
    """To the power ``GEM_POWER``; products, because numpy's own powers take ten times as long."""
    positive = np.maximum(maps, _LEAST)
    return positive * positive * positive


def _root(means: NDArray[np.floating]) -> NDArray[np.floating]:
    return means ** means.dtype.type(1 / GEM_POWER)


def _unit(rows: Maps) -> Maps:
    """Vectors of the last axis, of length 1."""
    made: Maps = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), _LEAST_LENGTH)
    return made
