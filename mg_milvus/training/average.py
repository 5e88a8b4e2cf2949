"""Exponential moving average of a network's weights (Polyak and Juditsky 1992), buffers included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class MovingAverage:
    """average <- decay * average + (1 - decay) * weights, after every step; early steps use a smaller decay."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after step ``step``, from 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, share)
            else:
                self.weights[name].copy_(value)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Go on from these weights."""
        for name, value in self.weights.items():
            value.copy_(weights[name])
