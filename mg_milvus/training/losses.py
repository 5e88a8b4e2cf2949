"""The losses of deep hashing: the supervised ones by name, and what codes should be whatever they mean."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from mg_milvus.training.hash_loss import HashLoss, full_precision, signs
from mg_milvus.training.pairwise_losses import DSH, HashNet, NTXent
from mg_milvus.training.pointwise_losses import CSQ, GreedyHash, OrthoHash

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CSQ", "DSH", "SUPERVISED", "BitBalance", "GreedyHash", "HashLoss", "HashNet", "NTXent", "OrthoHash",
    "Quantisation",
]  # fmt: skip

SUPERVISED: Mapping[str, type[HashLoss]] = MappingProxyType(
    {"orthohash": OrthoHash, "csq": CSQ, "dsh": DSH, "hashnet": HashNet, "greedyhash": GreedyHash}
)
"""Name -> loss; each is made from ``classes`` and ``bits`` alone, with the defaults of its paper."""


class Quantisation(nn.Module):
    """How much of a code's direction its signs lose: the mean of ``1 - cos(u, sign(u))``, 0 to 1.

    The quantisation error of Hoe et al. (OrthoHash, NeurIPS 2021), which does not depend on the length of ``u``.
    """

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """(n, bits) relaxed codes -> scalar."""
        with torch.autocast(u.device.type, enabled=False):
            u = full_precision(u)
            return 1 - F.cosine_similarity(u, signs(u), dim=1).mean()


class BitBalance(nn.Module):
    """Every bit should be one for half of the pictures: the mean over bits of the squared mean of ``tanh(u)``, 0 to 1.

    Weiss, Torralba and Fergus, "Spectral Hashing", NIPS 2008: the bits of a batch sum to 0, relaxed by tanh.
    """

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """(n, bits) relaxed codes -> scalar."""
        with torch.autocast(u.device.type, enabled=False):
            return full_precision(u).tanh().mean(dim=0).square().mean()
