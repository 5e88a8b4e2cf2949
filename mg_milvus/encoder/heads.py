"""From feature maps to the features that are hashed: pooling of several stages, joined per granularity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

GEM_POWER = 3.0


class Reading(BaseModel):
    """What one granularity reads: which stages, and how each is pooled.

    ``gem`` is the generalised mean over all places (Radenovic et al. 2018); ``pyramid`` averages in each of
    ``cells`` x ``cells`` cells and so keeps where things are (Lazebnik et al. 2006).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    pooling: Literal["gem", "pyramid"] = "gem"
    cells: Annotated[int, Field(ge=1, le=8)] = 1


def gem(maps: torch.Tensor, power: float = GEM_POWER) -> torch.Tensor:
    """Generalised mean over places: (n, c, h, w) -> (n, c) float32. Negative activations count as 0."""
    return maps.float().clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power)


def pyramid(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """Averages in a grid of cells: (n, c, h, w) -> (n, c * cells * cells) float32."""
    return F.adaptive_avg_pool2d(maps.float(), cells).flatten(1)


def read(maps: Mapping[str, torch.Tensor], reading: Reading) -> torch.Tensor:
    """Pool and join the stages of one granularity; every stage has length 1, and so has the whole.

    Args:
        maps: stage -> (n, c, h, w).
        reading: which stages, and how.

    Returns:
        (n, d) float32 on the CPU.
    """
    parts = [
        F.normalize(gem(maps[s]) if reading.pooling == "gem" else pyramid(maps[s], reading.cells), dim=1)
        for s in reading.stages
    ]
    return F.normalize(torch.cat(parts, dim=1), dim=1).cpu()
