"""Words as a query, one more ranking of the fusion: by the tags that stand for a word, or by a text's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from mg_milvus.codes import hamming, pack, weighted_hamming
from mg_milvus.schema.tags import LEVELS, condition, probability
from mg_milvus.store.filter_language import both

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import RealCodes
    from mg_milvus.store.base import Row, Store

    Distances = NDArray[np.float64]


class Words(Protocol):
    """What a text stands for in one collection."""

    @property
    def farthest(self) -> int:
        """The largest possible distance."""

    def retrieve(self, store: Store, depth: int, where: str | None) -> list[str]:
        """The ids of the ``depth`` nearest images that pass a filter, nearest first; ties by id."""

    def distances(self, rows: Sequence[Row]) -> tuple[Distances, Distances]:
        """Distances (n,) to n rows with their codes: those that rank, and those that are shown."""


@dataclass(frozen=True, slots=True)
class TaggedWords:
    """A text as the tags that it stands for.

    Attributes:
        tags: their numbers.
    """

    tags: frozenset[int]
    farthest: ClassVar[int] = 100
    """Distances are percent that are missing to certainty; of an image without any of the tags, all."""

    def retrieve(self, store: Store, depth: int, where: str | None) -> list[str]:
        """See ``Words``."""
        return retrieve_tagged(store, self.tags, depth, where)

    def distances(self, rows: Sequence[Row]) -> tuple[Distances, Distances]:
        """See ``Words``; both are the same."""
        far = distances([row.tags for row in rows], self.tags)
        return far, far


@dataclass(frozen=True, slots=True, eq=False)
class EncodedWords:
    """A text as the code that a text tower makes of it.

    It is compared by its real code, because many of its bits mean little: with a classifier's weights for vectors of
    texts, .43 of the first ten hits were right, and .36 by the signs alone (benchmarks/text_towers.py).

    Attributes:
        granularity: whose codes it is compared with.
        code: (1, bits) float32, ``in_steps``.
    """

    granularity: str
    code: RealCodes

    @property
    def farthest(self) -> int:
        """The length of the code in bits."""
        return int(self.code.shape[1])

    def retrieve(self, store: Store, depth: int, where: str | None) -> list[str]:
        """See ``Words``."""
        return list(store.nearest(self.granularity, pack(self.code), depth, where)[0].ids)

    def distances(self, rows: Sequence[Row]) -> tuple[Distances, Distances]:
        """See ``Words``: weighted, and in bits."""
        stored = np.frombuffer(b"".join(row.codes[self.granularity] for row in rows), np.uint8)
        codes = stored.reshape(len(rows), self.farthest // 8)
        return weighted_hamming(self.code, codes)[0], hamming(pack(self.code), codes)[0].astype(np.float64)


_MOST_ROWS = 16_384
"""Rows read, at most: more are equally probable."""


def distances(tags: Sequence[Sequence[int]], word: frozenset[int]) -> NDArray[np.float64]:
    """The distances (n,) of n images, by their stored tags, to a word: 100 * (1 - probability)."""
    return TaggedWords.farthest * (1 - np.array([probability(own, word) for own in tags], np.float64))


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
