"""Tags of images from a network's classifier: calibrated probabilities of ImageNet's classes, and of their groups.

The classifier is the last layer of networks with ImageNet weights: 1,000 numbers from the average of the last stage,
which is computed anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray  # noqa: TC002 - pydantic reads the annotations

from mg_milvus.schema.tags import GROUPS, LEAST, LEVELS, NAMES, NO_TAG, level_of, vocabulary

if TYPE_CHECKING:
    Tags = NDArray[np.int16]


TAGS = "tags"
"""Beside the granularities of features: the tags, (n, tags) int16, ``NO_TAG`` where there are fewer."""
TEMPERATURE = 1.15
"""What the logits are divided by, so that of the names with a probability of .7 seven in ten are right
(benchmarks/words.py)."""


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A linear layer over the average of the last stage, in 8 bits, which take a half of half precision.

    Attributes:
        weight: (classes, c) int8.
        scale: (classes,) float32; the weights of a class are ``weight * scale``.
        bias: (classes,) float32.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def of(cls, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Self:
        """Round weights (classes, c) to 8 bits."""
        scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
        return cls(np.rint(weight / scale[:, None]).astype(np.int8), scale, bias.astype(np.float32))

    def matrix(self) -> NDArray[np.float32]:
        """(c + 1, classes) float32: the weights, the bias last."""
        return np.vstack([(self.weight * self.scale[:, None]).T, self.bias]).astype(np.float32)


def tags_of(averages: NDArray[np.floating[Any]], matrix: NDArray[np.float32]) -> Tags:
    """The stored tags of images.

    Args:
        averages: (n, c) of the last stage over all places.
        matrix: of the classifier.

    Returns:
        (n, tags) int16: names, most probable first, then the most probable group, each from ``LEAST`` on.
    """
    logits = (averages.astype(np.float32) @ matrix[:-1] + matrix[-1]) / TEMPERATURE
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    of_groups = shares @ _membership()
    tags = np.full((len(shares), NAMES + GROUPS), NO_TAG, np.int16)
    best = np.argpartition(shares, -NAMES, axis=1)[:, -NAMES:]
    group = of_groups.argmax(axis=1)
    for row, (own, names) in enumerate(zip(shares, best, strict=True)):
        for place, name in enumerate(sorted(names, key=lambda name: -own[name])):
            tags[row, place] = _stored(int(name), own[name])
        tags[row, NAMES] = _stored(len(own) + int(group[row]), of_groups[row, group[row]])
    return tags


def _stored(number: int, probability: float) -> int:
    return number * LEVELS + level_of(float(probability)) if probability >= LEAST else NO_TAG


@cache
def _membership() -> NDArray[np.float32]:
    """(names, groups) float32: 1 where a name belongs to a group."""
    table = vocabulary()
    belongs = np.zeros((table.names, len(table.tags) - table.names), np.float32)
    for name, group in enumerate(table.groups):
        if group >= 0:
            belongs[name, group - table.names] = 1
    return belongs
