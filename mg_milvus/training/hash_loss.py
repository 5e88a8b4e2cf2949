"""What the supervised losses of deep hashing have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class HashLoss(nn.Module, ABC):
    """A loss of relaxed codes and labels: (n, bits) real numbers and (n, classes) labels -> a scalar.

    Relaxed codes are what the network puts out, before sign and without tanh. Labels are multi-hot: one or several ones
    a picture; shares between 0 and 1, as mixup makes them, are weights of the labels. Computed in float32 (float64 if
    the codes are) also under autocast.

    Args:
        classes: number of labels.
        bits: code length.
    """

    def __init__(self, classes: int, bits: int) -> None:
        super().__init__()
        self.classes = classes
        self.bits = bits

    def step(self, progress: float) -> None:
        """Tell the loss the share of training done, 0 to 1; most losses are the same all the way."""

    def forward(self, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss over the batch.

        Args:
            u: (n, bits) relaxed codes, any float dtype.
            labels: (n, classes) bool or float.

        Returns:
            scalar.

        Raises:
            ValueError: another shape.
        """
        expected = (len(u), self.bits), (len(u), self.classes)
        if (u.shape, labels.shape) != expected:
            raise ValueError(
                f"codes {tuple(u.shape)} and labels {tuple(labels.shape)}, expected {expected[0]} and {expected[1]}"
            )
        with torch.autocast(u.device.type, enabled=False):
            u = full_precision(u)
            return self._loss(u, labels.to(u.dtype))

    @abstractmethod
    def _loss(self, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of checked codes and labels, in full precision."""


def full_precision(u: torch.Tensor) -> torch.Tensor:
    """Half-precision numbers as float32; float32 and float64 as they are."""
    return u.to(torch.promote_types(u.dtype, torch.float32))


def signs(u: torch.Tensor) -> torch.Tensor:
    """+1 above 0 and -1 elsewhere, as codes are packed; no gradient."""
    return (u.detach() > 0).to(u.dtype) * 2 - 1


def label_shares(labels: torch.Tensor) -> torch.Tensor:
    """Labels (n, classes) -> the same, with sum 1 a picture; a picture without labels keeps its zeros."""
    return labels / labels.sum(dim=1, keepdim=True).clamp(min=1e-12)
