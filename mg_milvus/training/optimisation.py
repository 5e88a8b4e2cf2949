"""What the optimiser is told: rates, which weights decay, and what running out of memory looks like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.training.configuration import TrainingConfiguration


def rate_at(progress: float, configuration: TrainingConfiguration) -> float:
    """Learning rate at a share of the training: linear warm-up, then a cosine to 0 (Loshchilov and Hutter 2017)."""
    settings = configuration.optimisation
    if progress < settings.warm_up:
        return settings.rate * max(progress, 1e-4) / settings.warm_up
    done = (progress - settings.warm_up) / max(1 - settings.warm_up, 1e-9)
    return settings.rate * (1 + math.cos(math.pi * done)) / 2


def parameter_groups(
    parameters: Sequence[torch.nn.Parameter], configuration: TrainingConfiguration
) -> list[dict[str, Any]]:
    """Weights of convolutions and linear maps decay; scales and offsets do not (He et al. 2018, "Bag of Tricks")."""
    return [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": configuration.optimisation.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1]},
    ]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get memory, on any device."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in str(error)
        or ("out of memory" in str(error).lower())
    )
