"""Which rows hang together through near pairs, without remembering the pairs.

Groups by union-find need no more than a minimum spanning forest of the pairs: it joins the same rows at every
distance, and has fewer edges than there are rows, however many pairs there are (Gower and Ross 1969).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates.pairs import Pairs

if TYPE_CHECKING:
    from collections.abc import Iterable

_LEAST_WAITING = 1 << 16
"""Pairs gathered before the forest is made anew, at least."""


class UnionFind:
    """Disjoint sets of the numbers below ``count``."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def root(self, number: int) -> int:
        """The number that stands for the set; paths are halved on the way."""
        parents = self._parents
        while (parent := parents[number]) != number:
            parents[number] = number = parents[parent]
        return number

    def join(self, left: int, right: int) -> bool:
        """Make one set of two; whether they were two."""
        low, high = sorted((self.root(left), self.root(right)))
        self._parents[high] = low
        return low != high


class Forest:
    """Grown by pairs; memory in proportion to the rows."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[Pairs] = []
        self._waiting = 0
        self._trees = np.arange(count)  # row -> its tree, named by one of its rows
        self._longest = np.zeros(count, np.int32)  # tree -> its longest edge

    def add(self, pairs: Pairs) -> None:
        """Take more pairs in."""
        # Ends that hang together already, through edges none of which is longer, need no more.
        trees = self._trees[pairs.left]
        pairs = pairs.where((trees != self._trees[pairs.right]) | (pairs.distances < self._longest[trees]))
        self._kept.append(pairs)
        self._waiting += len(pairs.left)
        if self._waiting > max(_LEAST_WAITING, 2 * self._count):
            self.edges()

    def edges(self) -> Pairs:
        """The forest: fewer pairs than rows, nearest first; equal distances in the order of the rows."""
        empty = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
        left, right, distances = map(np.concatenate, zip(empty, *self._kept, strict=True))
        order = np.lexsort((right, left, distances))
        sets = UnionFind(self._count)
        ends = zip(left[order].tolist(), right[order].tolist(), strict=True)
        joins = order[np.fromiter((sets.join(*pair) for pair in ends), bool, len(order))]
        forest = Pairs(left[joins], right[joins], distances[joins])
        self._kept, self._waiting = [forest], 0
        self._trees = np.fromiter(map(sets.root, range(self._count)), np.int64, self._count)
        self._longest = np.zeros(self._count, np.int32)
        np.maximum.at(self._longest, self._trees[forest.left], forest.distances)
        return forest


def groups(edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Rows that hang together through edges, each list and the list of lists in ascending order; none of one row."""
    places: dict[int, int] = {}
    numbered = [(places.setdefault(left, len(places)), places.setdefault(right, len(places))) for left, right in edges]
    sets = UnionFind(len(places))
    for left, right in numbered:
        sets.join(left, right)
    members: dict[int, list[int]] = {}
    for row in sorted(places):
        members.setdefault(sets.root(places[row]), []).append(row)
    return list(members.values())
