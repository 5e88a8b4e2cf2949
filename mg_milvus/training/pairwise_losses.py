"""Losses that compare codes with each other: pairs of pictures of a batch, or two views of one picture."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from mg_milvus.training.hash_loss import HashLoss, full_precision


class DSH(HashLoss):
    """Contrastive loss of squared Euclidean distances, and a pull towards -1 and +1.

    Liu et al., "Deep Supervised Hashing for Fast Image Retrieval", CVPR 2016. With ``d = |u_i - u_j|^2``, the mean over
    the pairs i < j of the batch of ``d / 2`` for similar ones (with a label in common) and ``max(margin - d, 0) / 2``
    for others, plus ``regulariser * (r_i + r_j)``, ``r`` the sum over bits of ``||u| - 1|``. Margin ``2 * bits``
    (binary codes that differ in half of their bits have this ``d``) and 0.01 are the paper's; the authors' code takes
    half of the paper's regulariser.

    Args:
        classes: number of labels.
        bits: code length.
        margin: squared distance beyond which dissimilar pairs are left alone; default: ``2 * bits``.
        regulariser: weight of the pull towards binary values.
    """

    def __init__(self, classes: int, bits: int, margin: float | None = None, regulariser: float = 0.01) -> None:
        super().__init__(classes, bits)
        self.margin = 2.0 * bits if margin is None else margin
        self.regulariser = regulariser

    def _loss(self, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        lengths = u.square().sum(dim=1)
        distances = lengths[:, None] + lengths[None, :] - 2 * u @ u.T
        similar = labels @ labels.T > 0
        pairs = torch.where(similar, distances, (self.margin - distances).clamp(min=0)) / 2
        binary = (u.abs() - 1).abs().sum(dim=1).mean()
        return _mean_where(pairs, ~_diagonal(u)) + 2 * self.regulariser * binary


class HashNet(HashLoss):
    """Weighted maximum likelihood of pair similarities, under a tanh that sharpens towards a sign.

    Cao et al., "HashNet: Deep Learning to Hash by Continuation", ICCV 2017. The loss applies tanh itself: with
    ``h = tanh(beta * u)`` and ``z = alpha * <h_i, h_j>`` a pair costs ``c * (log(1 + e^z) - s * z)``, where ``s`` is 1
    for similar pairs (with a label in common) and else 0. Similar pairs weigh |S|/|S1| and others |S|/|S0|, counted in
    the batch, without a picture and itself: the mean over similar pairs plus the mean over the others. ``c`` is the
    Jaccard index of the labels of a similar pair, and 1 for others, which it would silence. Alpha and the growth of
    beta, ``sqrt(1 + growth * progress)``, are those of the authors' code: 10 / bits, and 1 to sqrt(51) over its 10,000
    steps.

    Args:
        classes: number of labels.
        bits: code length.
        alpha: slope of the likelihood's sigmoid; default: ``10 / bits``.
        growth: how far the square of beta grows over the training.
    """

    def __init__(self, classes: int, bits: int, alpha: float | None = None, growth: float = 50.0) -> None:
        super().__init__(classes, bits)
        self.alpha = 10 / bits if alpha is None else alpha
        self.growth = growth
        self.beta = 1.0

    def step(self, progress: float) -> None:
        """Sharpen the tanh; call it before the first batch of a resumed training too."""
        self.beta = math.sqrt(1 + self.growth * progress)

    def _loss(self, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.beta * u)
        z = self.alpha * h @ h.T
        shared = labels @ labels.T
        counts = labels.sum(dim=1)
        similar, others = shared > 0, ~_diagonal(u)
        jaccard = shared / (counts[:, None] + counts[None, :] - shared).clamp(min=1e-12)
        # log(1 + e^z) - z is log(1 + e^-z).
        return _mean_where(jaccard * F.softplus(-z), similar & others) + _mean_where(F.softplus(z), ~similar & others)


class NTXent(nn.Module):
    """Instance discrimination: a view must find the other view of its picture among all views of the batch.

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR), ICML 2020:
    temperature-scaled cross-entropy of the cosines, both directions, the view itself left out. Temperature 0.1 is the
    paper's for ImageNet (0.5 for CIFAR-10). Computed in float32 also under autocast.

    Args:
        temperature: by which cosines are divided.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Relaxed codes of two views, (n, bits) each, row by row of the same pictures -> the mean over all 2n views."""
        with torch.autocast(first.device.type, enabled=False):
            logits = _cosines(torch.cat([first, second])) / self.temperature
            other = torch.arange(len(logits), device=logits.device).roll(len(first))
            return F.cross_entropy(logits.masked_fill(_diagonal(logits), -torch.inf), other)


def _cosines(u: torch.Tensor) -> torch.Tensor:
    """All cosines of (n, bits) codes with each other: (n, n)."""
    directions = F.normalize(full_precision(u), dim=1)
    return directions @ directions.T


def _diagonal(rows: torch.Tensor) -> torch.Tensor:
    """(n, n) bool, true for each of n rows with itself."""
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)


def _mean_where(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mean of the values chosen by a mask of the same shape; 0 if there are none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
