"""The sum of the losses: which loss sees which codes and labels, and with what weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from mg_milvus.training.losses import SUPERVISED, BitBalance, NTXent, Quantisation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.training.configuration import TrainingConfiguration
    from mg_milvus.training.hash_loss import HashLoss

GROUP_SHARE = 0.3
"""Weight of the softmax loss of the groups beside that of the classes."""
LEVELS = {"coarse": "groups", "mid": "classes"}
"""Which level of labels supervises a granularity."""


class Objective(nn.Module):
    """All losses of one training. Its parameters, if a loss has some, are trained along.

    ``labels`` gives the number of labels of each level; a level that is not there is not supervised.
    """

    def __init__(self, configuration: TrainingConfiguration, labels: Mapping[str, int]) -> None:
        super().__init__()
        weights, bits = configuration.weights, configuration.bits
        self._weights = weights
        self._smoothing = configuration.optimisation.smoothing
        self.supervised = nn.ModuleDict({
            name: SUPERVISED[configuration.supervised](classes=labels[level], bits=bits[name])
            for name, level in LEVELS.items()
            if name in bits and level in labels and getattr(weights, name)
        })  # fmt: skip
        self._contrast = NTXent() if "fine" in bits and weights.fine else None
        self._quantisation, self._balance = Quantisation(), BitBalance()
        self._codes = [*self.supervised, *(["fine"] if self._contrast else [])]

    @property
    def views(self) -> int:
        """Views of each picture that the losses compare: 2 with instance discrimination."""
        return 2 if self._contrast else 1

    def step(self, progress: float) -> None:
        """Tell the losses that change with time the share of the training that is done."""
        for loss in self.supervised.values():
            cast("HashLoss", loss).step(progress)

    def forward(
        self,
        codes: Mapping[str, torch.Tensor],
        scores: Mapping[str, torch.Tensor],
        labels: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Weighted losses by name; their sum is to be minimised.

        Args:
            codes: granularity -> (views * n, bits) relaxed codes, all first views before all second ones.
            scores: granularity -> (views * n, labels) of the softmax classifiers.
            labels: level -> (views * n, labels) float, 1 where the picture has the label (blends between, with mixup).
        """
        found: dict[str, torch.Tensor] = {}
        for name, loss in self.supervised.items():
            found[name] = getattr(self._weights, name) * loss(codes[name], labels[LEVELS[name]])
        if self._contrast is not None:
            first, second = codes["fine"].chunk(2)
            found["fine"] = self._weights.fine * self._contrast(first, second)
        for name, values in scores.items():
            target = labels[LEVELS[name]]
            share = self._weights.softmax * (GROUP_SHARE if name == "coarse" else 1.0)
            entropy = F.cross_entropy(values, target / target.sum(1, keepdim=True), label_smoothing=self._smoothing)
            found["softmax"] = share * entropy + found.get("softmax", torch.zeros_like(entropy))
        if self._codes and self._weights.quantisation:
            terms = [self._quantisation(codes[name]) for name in self._codes]
            found["quantisation"] = self._weights.quantisation * torch.stack(terms).mean()
        if self._codes and self._weights.balance:
            terms = [self._balance(codes[name]) for name in self._codes]
            found["balance"] = self._weights.balance * torch.stack(terms).mean()
        return found
