"""Losses of deep hashing, each as its paper has it; what differs from paper or code, and why, is said with each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mg_milvus.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.training.config import TrainingConfiguration


class HashLoss(nn.Module, ABC):
    """A loss of relaxed codes and labels: (n, bits) real numbers and (n, classes) labels -> a scalar.

    Relaxed codes are what the network puts out, before sign and without tanh. Labels are multi-hot: one or several ones
    an image; shares between 0 and 1, as mixup makes them, are weights of the labels. Computed in float32 (float64 if
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
    """Labels (n, classes) -> the same, with sum 1 an image; an image without labels keeps its zeros."""
    return labels / labels.sum(dim=1, keepdim=True).clamp(min=1e-12)


ENUMERABLE_BITS = 16
"""Up to this length all words can be listed, and the farthest one taken each time."""
_DRAWS = 64
_DRAWS_IN_ALL = 2**16


def hash_centres(classes: int, bits: int, seed: int = 0) -> NDArray[np.int8]:
    """Words for the classes, all different; the same arguments give the same words.

    With ``bits`` a power of two and ``classes <= 2 * bits`` any two words differ in half of the bits (some of them in
    all, when there are more classes than bits). Otherwise each word is the farthest of many from those before it.

    Args:
        classes: number of words.
        bits: their length.
        seed: of the choice.

    Returns:
        (classes, bits) int8 of -1 and +1.

    Raises:
        TrainingError: there are fewer words than classes.
    """
    if not 1 <= classes <= 2**bits:
        raise TrainingError(
            f"{classes} classes cannot have different codes of {bits} bits, expected 1 to {2**bits} classes; "
            "use more bits"
        )
    random = np.random.default_rng(seed)
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        return _hadamard_rows(classes, bits, random)
    if bits <= ENUMERABLE_BITS:
        return _farthest_of_all(classes, bits, random)
    return _farthest_of_draws(classes, bits, random)


def _hadamard_rows(classes: int, bits: int, random: np.random.Generator) -> NDArray[np.int8]:
    """Rows of a Hadamard matrix, chosen at random, each or its negative, and then the opposites of the same rows.

    Left as they are, the first rows share their first bit, which then says nothing. Any choice of rows and signs is
    orthogonal, and has the same mean square of the bits' sums over the classes; of several, the one whose largest sums
    are smallest is taken.
    """
    matrix = np.ones((1, 1), np.int8)
    while len(matrix) < bits:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])

    def draw() -> NDArray[np.int8]:
        rows = matrix[random.permutation(bits)[:classes]]
        rows = rows * random.choice(np.array([-1, 1], np.int8), (len(rows), 1))
        return np.concatenate([rows, -rows])[:classes]

    return min((draw() for _ in range(_DRAWS)), key=lambda words: float((words.sum(axis=0, dtype=float) ** 4).sum()))


def _farthest_of_all(classes: int, bits: int, random: np.random.Generator) -> NDArray[np.int8]:
    """Farthest-first traversal of all words; ties are broken at random."""
    numbers = random.permutation(2**bits)
    words = ((numbers[:, None] >> np.arange(bits)) & 1).astype(np.float32) * 2 - 1
    chosen = np.zeros(classes, np.int64)
    closeness = words @ words[0]
    for place in range(1, classes):
        chosen[place] = closeness.argmin()
        closeness = np.maximum(closeness, words @ words[chosen[place]])
    return words[chosen].astype(np.int8)


def _farthest_of_draws(classes: int, bits: int, random: np.random.Generator) -> NDArray[np.int8]:
    """Each word the one of several random ones that is farthest from its nearest predecessor (Mitchell 1991)."""
    draws = max(1, min(_DRAWS, _DRAWS_IN_ALL // classes))  # many classes: time grows with their square
    centres = np.empty((classes, bits), np.float32)
    for place in range(classes):
        closeness = np.float32(bits)
        while closeness == bits:  # every draw was taken already
            words = random.choice(np.array([-1, 1], np.float32), (draws, bits))
            nearest = (words @ centres[:place].T).max(axis=1, initial=-bits)
            closeness = nearest.min()
            centres[place] = words[nearest.argmin()]
    return centres.astype(np.int8)


class OrthoHash(HashLoss):
    """Cosine with the orthogonal binary target of the class, with a margin, as a cross-entropy.

    Hoe et al., "One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective", NeurIPS 2021:
    logits are ``scale * (cos(u, centre) - margin * label)``. Several labels share the target equally (the paper's label
    smoothing). Scale 8 and margin 0.2 are those of the authors' code (0.3 for CIFAR-10, in its README). The paper
    balances the bits by a batch normalisation without which ``u`` should not come here; that is the network's.

    Differs from the code: its targets are coins, which are orthogonal in expectation only; those of ``hash_centres``
    are orthogonal, as the paper wants them, wherever there are such words.

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
    bits and images. The centre of several labels is the majority vote of theirs, ties after a fixed random word. The
    quantisation term is that of the authors' code, with its weight for ResNet-50 (0.0001 to 0.001 for AlexNet); the
    paper writes ``log cosh(|h| - 1)``, which is half of it to leading order. The pairwise term that the code also has
    weighs 0 in all of its commands.

    Differs from the code: it takes the first rows of the Hadamard matrix, then those of its negative, where the first
    bit is the same for all classes up to as many as bits, and the first word is all ones; ``hash_centres`` draws rows
    and signs so that every bit divides the classes. For other lengths, and more classes, the code draws words of half
    ones until they are far apart; here each is the farthest of many. Either way the mean distance is at least half of
    the bits, the paper's definition 1.

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
    paper, for single labels, leaves open. The classifier is a parameter of the loss: the optimizer needs it.

    Differs from the paper: the penalty is a mean over bits and images, as in the code, not a sum. Differs from the
    code: the sign of 0 is -1, as codes are packed, not 0.

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


class DSH(HashLoss):
    """Contrastive loss of squared Euclidean distances, and a pull towards -1 and +1.

    Liu et al., "Deep Supervised Hashing for Fast Image Retrieval", CVPR 2016. With ``d = |u_i - u_j|^2``, the mean over
    the pairs i < j of the batch of ``d / 2`` for similar ones (with a label in common) and ``max(margin - d, 0) / 2``
    for others, plus ``regulariser * (r_i + r_j)``, ``r`` the sum over bits of ``||u| - 1|``. Margin ``2 * bits``
    (binary codes that differ in half of their bits have this ``d``) and 0.01 are the paper's.

    Differs from the code: that takes half of the paper's regulariser, which it adds once an image, not once for either
    image of a pair.

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
    the batch, without an image and itself: the mean over similar pairs plus the mean over the others. ``c`` is the
    Jaccard index of the labels of a similar pair, and 1 for others, which it would silence. Alpha and the growth of
    beta, ``sqrt(1 + growth * progress)``, are those of the authors' code: 10 / bits, and 1 to sqrt(51) over its 10,000
    steps.

    Differs from the paper: a mean over pairs, as in the code, not a sum, so that the rate does not depend on the batch.
    Differs from the code: pairs are all of one batch, not those between two batches, which are half as many from as
    many images; beta grows at every step, not every 200; the weights are the paper's, not a number to be chosen for
    each data set (``class_num``); and nothing is cut off where z exceeds 15, since softplus does not overflow.

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
    """Instance discrimination: a view must find the other view of its image among all views of the batch.

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
        """Relaxed codes of two views, (n, bits) each, row by row of the same images -> the mean over all 2n views."""
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
    """Every bit should be one for half of the images: the mean over bits of the squared mean of ``tanh(u)``, 0 to 1.

    Weiss, Torralba and Fergus, "Spectral Hashing", NIPS 2008: the bits of a batch sum to 0, relaxed by tanh.
    """

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """(n, bits) relaxed codes -> scalar."""
        with torch.autocast(u.device.type, enabled=False):
            return full_precision(u).tanh().mean(dim=0).square().mean()


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
        """Views of each image that the losses compare: 2 with instance discrimination."""
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
            labels: level -> (views * n, labels) float, 1 where the image has the label (blends between, with mixup).
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
