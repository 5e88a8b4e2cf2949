"""Words as a query: the images that have a word's tags, the most probable first, as one more ranking of the fusion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.schema.tags import LEVELS, condition, probability
from mg_milvus.store.filter_language import both

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mg_milvus.store.base import Row, Store


FARTHEST = 100
"""The distance of an image without any tag of the word: distances are percent that are missing to certainty."""
_MOST_ROWS = 16_384
"""Rows read, at most: more are equally probable."""


def distances(tags: Sequence[Sequence[int]], word: frozenset[int]) -> NDArray[np.float64]:
    """The distances (n,) of n images, by their stored tags, to a word: 100 * (1 - probability)."""
    return FARTHEST * (1 - np.array([probability(own, word) for own in tags], np.float64))


def retrieve_tagged(store: Store, word: frozenset[int], depth: int, where: str | None) -> list[str]:
    """The ids of the images, at most ``depth``, that most probably show what a word says; ties by id.

    No more rows are read than the least probability that suffices lets through, however many images have a tag.
    """
    level = _level(store, word, depth, where)
    found: list[Row] = []
    for rows in store.scan(both(where, condition(word, level))):
        found += rows
        if len(found) >= max(depth, _MOST_ROWS):
            break
    far = distances([row.tags for row in found], word).round(9)
    nearest = sorted(range(len(found)), key=lambda i: (far[i], found[i].id))
    return [found[i].id for i in nearest[:depth]]


def _level(store: Store, word: frozenset[int], depth: int, where: str | None) -> int:
    """The highest level that ``depth`` images reach; 0 where they are fewer."""
    lowest, above = 0, LEVELS
    if store.count(both(where, condition(word))) <= 4 * depth:
        return lowest
    while above - lowest > 1:
        middle = (lowest + above) // 2
        if store.count(both(where, condition(word, middle))) >= depth:
            lowest = middle
        else:
            above = middle
    return lowest
