"""Losses that compare each code with something of its class: a centre, or a classifier's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mg_milvus.training.centres import hash_centres
from mg_milvus.training.hash_loss import HashLoss, label_shares, signs


class OrthoHash(HashLoss):
    """Cosine with the orthogonal binary target of the class, with a margin, as a cross-entropy.

    Hoe et al., "One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective", NeurIPS 2021:
    logits are ``scale * (cos(u, centre) - margin * label)``. Several labels share the target equally (the paper's label
    smoothing). Scale 8 and margin 0.2 are those of the authors' code. The paper balances the bits by a batch
    normalisation without which ``u`` should not come here; that is the network's.

    Args:
        classes: number of labels.
        bits: code length.
        scale: of the cosines, before the softmax.
        margin: by which the cosine with the right target must be larger, in cosine.
        seed: of the targets.
    """

    centres: torch.Tensor

    def __init__(self, classes: int, bits: int, scale: float = 8.0, margin: float = 0.2, seed: int = 0) -> None:
        super().__init__(classes, bits)
        self.scale = scale
        self.margin = margin
        self.register_buffer("centres", torch.from_numpy(hash_centres(classes, bits, seed)).float())

    def _loss(self, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosines = F.normalize(u, dim=1) @ F.normalize(self.centres.to(u.dtype), dim=1).T
        return F.cross_entropy(self.scale * (cosines - self.margin * labels), label_shares(labels))


class CSQ(HashLoss):
    """Central similarity: binary cross-entropy of every bit with the hash centre, and a quantisation term.

    Yuan et al., "Central Similarity Quantization for Efficient Image and Video Retrieval", CVPR 2020. The loss applies
    tanh itself: with ``h = tanh(u)`` it is ``BCE((h + 1) / 2, (centre + 1) / 2) + weight * (|h| - 1)^2``, means over
    bits and pictures. The centre of several labels is the majority vote of theirs, ties after a fixed random word. The
    quantisation term is that of the authors' code, with its weight for ResNet-50 (0.0001 to 0.001 for AlexNet); the
    paper writes ``log cosh(|h| - 1)``, which is half of it to leading order.

    Args:
        classes: number of labels.
        bits: code length.
        quantisation: weight of the quantisation term.
        seed: of the centres and of the word that breaks ties.
    """

    centres: torch.Tensor
    tie_break: torch.Tensor

    def __init__(self, classes: int, bits: int, quantisation: float = 0.05, seed: int = 0) -> None:
        super().__init__(classes, bits)
        self.quantisation = quantisation
        self.register_buffer("centres", torch.from_numpy(hash_centres(classes, bits, seed)).float())
        coins = torch.randint(2, (bits,), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("tie_break", coins.float() * 2 - 1)

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (n, classes) float -> centres (n, bits) of -1 and +1."""
        votes = labels @ self.centres.to(labels.dtype)
        return torch.where(votes == 0, self.tie_break.to(labels.dtype), votes.sign())

    def _loss(self, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # (tanh(u) + 1) / 2 is sigmoid(2u): the cross-entropy on logits stays finite for any u.
        central = F.binary_cross_entropy_with_logits(2 * u, (self.targets(labels) + 1) / 2)
        return central + self.quantisation * (u.tanh().abs() - 1).square().mean()


class GreedyHash(HashLoss):
    """A linear classifier on the signs themselves, whose gradient passes the sign unchanged, and a cubic penalty.

    Su et al., "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN", NeurIPS 2018: cross-entropy of
    ``classifier(sign(u))`` plus ``penalty * mean |u - sign(u)|^3``. Weight 0.1 is the authors' for CIFAR-10 (1 for
    ImageNet); their classifier has no bias. Several labels share the target of the cross-entropy equally, which the
    paper, for single labels, leaves open. The classifier is a parameter of the loss: the optimiser needs it.

    Args:
        classes: number of labels.
        bits: code length.
        penalty: weight of the distance to the signs.
    """

    def __init__(self, classes: int, bits: int, penalty: float = 0.1) -> None:
        super().__init__(classes, bits)
        self.penalty = penalty
        self.classifier = nn.Linear(bits, classes, bias=False)

    def _loss(self, u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        codes = signs(u) + (u - u.detach())  # the signs exactly, with the gradient of u
        logits = codes @ self.classifier.weight.to(u.dtype).T
        distance = (u - signs(u)).abs().pow(3).mean()
        return F.cross_entropy(logits, label_shares(labels)) + self.penalty * distance
