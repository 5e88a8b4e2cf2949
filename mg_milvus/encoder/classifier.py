"""Tags of images from a network's classifier: calibrated probabilities of ImageNet's classes, and of their groups.

The classifier is the last layer of networks with ImageNet weights: 1,000 numbers from the average of the last stage,
which is computed anyway.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.schema.tags import LEAST, LEVELS, NAMES, NO_TAG, TAG_COLUMNS, level_of, vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tags = NDArray[np.int16]


TAGS = "tags"
"""Beside the granularities of features: the tags, (n, tags) int16, ``NO_TAG`` where there are fewer."""
TEMPERATURE = 1.15
"""What the logits are divided by, so that of the names with a probability of .7 seven in ten are right
(benchmarks/words.py)."""


def tags_of(averages: NDArray[np.floating[Any]], classifier: NDArray[np.float32]) -> Tags:
    """The stored tags of images.

    Args:
        averages: (n, c) of the last stage over all places.
        classifier: (classes, c + 1) weights, the bias last.

    Returns:
        (n, tags) int16: names, most probable first, then the most probable group, each from ``LEAST`` on.
    """
    logits = (averages.astype(np.float32) @ classifier[:, :-1].T + classifier[:, -1]) / TEMPERATURE
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    of_groups = shares @ _membership()
    tags = np.full((len(shares), len(TAG_COLUMNS)), NO_TAG, np.int16)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :NAMES]
    group = of_groups.argmax(axis=1)
    for row, (own, names) in enumerate(zip(shares, best, strict=True)):
        for place, name in enumerate(names):
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
