"""All pairs of near codes, exactly, and their connected components.

Two codes that differ in at most ``radius`` bits differ in at most as many in any of their words. So blocks of pairs are
compared by XOR and popcount on the first words only, and in full for the few pairs that are still near.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes


ROWS, COLUMNS = 64, 4096
"""Shape of one block of pairs, which fits into a core's cache."""

MOST = 50
"""Pairs of one row that ``nearest_pairs`` returns at most."""

_BITS_A_WORD = 20
"""Bits of the radius per word that is compared first. Unrelated codes differ in about 32 bits of a word."""


class Pairs(NamedTuple):
    """Pairs of rows and their distances.

    Attributes:
        left: (n,) int64, the smaller row number of each.
        right: (n,) int64.
        distances: (n,) int32 Hamming distances in bits.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    distances: NDArray[np.int32]

    def where(self, chosen: NDArray[np.bool_]) -> Pairs:
        """The pairs selected by a mask (n,)."""
        return Pairs(self.left[chosen], self.right[chosen], self.distances[chosen])


def as_words(codes: Codes) -> NDArray[np.uint64]:
    """Codes (n, bytes) uint8 -> (words, n) uint64, contiguous; codes are padded with zeros."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    return np.ascontiguousarray(padded.view(np.uint64).T)


def distances_of(words: NDArray[np.uint64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int32]:
    """Hamming distances of pairs of rows: (n,) and (n,) -> (n,) int32."""
    distances = np.zeros(len(left), np.int32)
    for word in words:
        distances += np.bitwise_count(word[left] ^ word[right])
    return distances


def distance_counts(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of pairs of rows i < j at each distance: (words, n) -> (64 words + 1,)."""
    width = 64 * len(words) + 1
    counts = np.zeros(width, np.int64)
    for rows, columns in _blocks(words.shape[1], words.shape[1]):
        upper = np.arange(rows.start, rows.stop)[:, None] < np.arange(columns.start, columns.stop)
        distances = _distances(words, rows, columns, _smallest(len(words)))
        counts += np.bincount(distances[upper], minlength=width)
    return counts


def pairs_within(
    words: NDArray[np.uint64], radius: int, first: int, on_row: Callable[[int], None] = lambda _: None
) -> Iterator[Pairs]:
    """Yield every pair of rows i < j with i < ``first`` that differs in at most ``radius`` bits, once.

    Runs on all cores, a bounded number of blocks ahead of the consumer; the order is deterministic.

    Args:
        words: (words, n), see ``as_words``.
        radius: in bits, 0 or more.
        first: rows that are compared with all; n for all pairs.
        on_row: called with the number of first rows done, approximately.

    Yields:
        The pairs of one block each; blocks without any are left out.
    """
    return _compared(words.shape[1], first, partial(_near, words, radius), on_row)


def _compared(
    count: int, first: int, compare: Callable[[slice, slice], Pairs], on_row: Callable[[int], None]
) -> Iterator[Pairs]:
    """Compare all blocks on all cores; see ``pairs_within``."""
    cores = os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores, "mgm-pairs")
    running: deque[Future[Pairs]] = deque()
    try:
        for rows, columns in _blocks(count, first):
            running.append(pool.submit(compare, rows, columns))
            if len(running) > 4 * cores:
                pairs = running.popleft().result()
                if len(pairs.left):
                    yield pairs
            if columns.stop == count:
                on_row(rows.stop)
        for block in running:
            pairs = block.result()
            if len(pairs.left):
                yield pairs
    finally:
        pool.shutdown(cancel_futures=True)


def nearest_pairs(
    words: NDArray[np.uint64], first: int, radius: int, nearest: int, on_row: Callable[[int], None] = lambda _: None
) -> Pairs:
    """Of each row i < ``first``, the pairs with its ``nearest`` other rows, and with more within ``radius`` bits.

    At most ``MOST`` of one row, its nearest, of equally near ones the first; each pair comes once, in the order of the
    rows. Each pair is compared once, for both of its rows. Memory grows with the rows, not with the pairs.

    Args:
        words: (words, n), see ``as_words``.
        first: rows whose pairs are wanted; n for all.
        radius: in bits.
        nearest: rows of each that are taken however far they are, at most ``MOST``.
        on_row: called with the number of first rows done, approximately.
    """
    rows = _NearestRows(words, first, radius, nearest)
    for pairs in _compared(words.shape[1], first, rows.compare, on_row):
        rows.add(pairs)
    return rows.pairs()


_SAMPLE = 1024
"""Rows that give the first bounds of the distances of the nearest."""


class _NearestRows:
    """The nearest rows of each row, gathered from blocks in the order of ``_blocks``; see ``nearest_pairs``.

    So each row meets the others in ascending order, and one that is no nearer than the last of a full list is not for
    it. ``_below`` is what a distance has to be below; a sample of the rows gives a first bound.
    """

    def __init__(self, words: NDArray[np.uint64], first: int, radius: int, nearest: int) -> None:
        self._words, self._count, self._first = words, words.shape[1], first
        self._radius, self._nearest = radius, nearest
        self._longest = 64 * len(words)
        self._below = np.full(self._count, radius + 1, np.uint16)
        self._below[first:] = 0
        if nearest:
            self._bound_by_sample()
        self._kept = np.empty(0, np.int64)  # (row * (longest + 1) + distance) * count + other, ascending
        self._new: list[NDArray[np.int64]] = []
        self._waiting = 0

    def _bound_by_sample(self) -> None:
        """Bound each row's distances by those from a sample, in which the row itself may be."""
        chosen = np.random.default_rng(0).permutation(self._count)[:_SAMPLE]
        words = np.concatenate([self._words[:, : self._first], self._words[:, chosen]], axis=1)
        for start in range(0, self._first, ROWS):
            rows = slice(start, min(start + ROWS, self._first))
            if len(chosen) <= self._nearest:
                self._below[rows] = self._longest + 1
                continue
            distances = _distances(words, rows, slice(self._first, words.shape[1]), np.uint16)
            bounds = np.partition(distances, self._nearest, axis=1)[:, self._nearest]
            self._below[rows] = np.maximum(bounds, self._radius) + 1

    def compare(self, rows: slice, columns: slice) -> Pairs:
        """The pairs i < j of one block of which one row may be among the nearest of the other."""
        below: NDArray[Any] = self._below[rows]
        right_below: NDArray[Any] = self._below[columns]
        # Bytes are compared much faster. A distance of 256 bits counts as 0 there, and is put right below.
        narrow = len(self._words) <= 4 and max(below.max(), right_below.max()) < 256
        if narrow:
            below, right_below = below.astype(np.uint8), right_below.astype(np.uint8)
        distances = _distances(self._words, rows, columns, np.uint8 if narrow else np.uint16)
        near = np.flatnonzero((distances < below[:, None]) | (distances < right_below))
        return _upper(self._words, rows, columns, near)

    def add(self, pairs: Pairs) -> None:
        """Add the pairs of the next block."""
        for row, other in ((pairs.left, pairs.right), (pairs.right, pairs.left)):
            near = pairs.distances < self._below[row]
            keys = (row[near] * (self._longest + 1) + pairs.distances[near]) * self._count + other[near]
            self._new.append(keys)
            self._waiting += len(keys)
        if self._waiting > max(_LEAST_WAITING, 2 * self._count):
            self._reduce()

    def _reduce(self) -> None:
        """Keep the nearest of each row, and lower the bounds."""
        keys = np.sort(np.concatenate([self._kept, *self._new]))
        self._new, self._waiting = [], 0
        row, distance = np.divmod(keys // self._count, self._longest + 1)
        place = np.arange(len(keys)) - np.searchsorted(row, row)
        self._kept = keys[(place < MOST) & ((distance <= self._radius) | (place < self._nearest))]
        # Who has its nearest takes no more within the radius when its list is full.
        full = place == MOST - 1
        within = np.full(self._count, self._radius + 1)
        within[row[full]] = np.minimum(distance[full], self._radius + 1)
        if self._nearest:
            has = place == self._nearest - 1
            below = np.maximum(within[row[has]], distance[has])
            self._below[row[has]] = np.minimum(self._below[row[has]], below)
        else:
            self._below[: self._first] = within[: self._first]

    def pairs(self) -> Pairs:
        """The pairs that were kept, in the order of the rows."""
        self._reduce()
        row, other = self._kept // self._count // (self._longest + 1), self._kept % self._count
        left, right = np.divmod(np.unique(np.minimum(row, other) * self._count + np.maximum(row, other)), self._count)
        return Pairs(left, right, distances_of(self._words, left, right))


def _blocks(count: int, first: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks that hold all pairs i < j with i < first."""
    for start in range(0, first, ROWS):
        end = min(start + ROWS, first)
        for column in range(start, count, COLUMNS):
            yield slice(start, end), slice(column, min(column + COLUMNS, count))


def _near(words: NDArray[np.uint64], radius: int, rows: slice, columns: slice) -> Pairs:
    """The near pairs i < j of one block."""
    compared = words[: max(1, -(-radius // _BITS_A_WORD))]
    distances = _distances(compared, rows, columns, _smallest(len(compared)))
    pairs = _upper(words, rows, columns, np.flatnonzero(distances <= radius))
    return pairs.where(pairs.distances <= radius)


def _upper(words: NDArray[np.uint64], rows: slice, columns: slice, places: NDArray[np.int64]) -> Pairs:
    """The pairs i < j at these places of a block, with their distances."""
    left, right = np.divmod(places, columns.stop - columns.start)
    left += rows.start
    right += columns.start
    upper = left < right
    left, right = left[upper], right[upper]
    return Pairs(left, right, distances_of(words, left, right))


def _smallest(words: int) -> type[np.uint8 | np.uint16]:
    """The type for distances of so many words: those of three, at most 192, fit into a byte."""
    return np.uint8 if words < 4 else np.uint16


def _distances(
    words: NDArray[np.uint64], rows: slice, columns: slice, kind: type[np.uint8 | np.uint16]
) -> NDArray[np.uint8 | np.uint16]:
    """Distances of a block, (rows, columns), of this type."""
    distances = np.zeros((rows.stop - rows.start, columns.stop - columns.start), kind)
    for word in words:
        distances += np.bitwise_count(word[rows, None] ^ word[None, columns])
    return distances


_LEAST_WAITING = 1 << 16
"""Fewest pairs to gather before they are reduced to the minimum spanning forest."""


class UnionFind:
    """Disjoint sets of the numbers below ``count``."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def root(self, number: int) -> int:
        """The representative of a set; paths are halved on the way."""
        parents = self._parents
        while (parent := parents[number]) != number:
            parents[number] = number = parents[parent]
        return number

    def join(self, left: int, right: int) -> bool:
        """Unite two sets. Returns whether they were different."""
        low, high = sorted((self.root(left), self.root(right)))
        self._parents[high] = low
        return low != high


class ConnectedComponents:
    """Incremental minimum spanning forest of near pairs (Kruskal 1956); memory grows with the rows, not the pairs."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[Pairs] = []
        self._waiting = 0
        self._trees = np.arange(count)  # row -> representative of its tree
        self._longest = np.zeros(count, np.int32)  # tree -> its longest edge, in bits

    def add(self, pairs: Pairs) -> None:
        """Add pairs."""
        # An edge inside of a tree that has no longer edge cannot improve the forest.
        trees = self._trees[pairs.left]
        pairs = pairs.where((trees != self._trees[pairs.right]) | (pairs.distances < self._longest[trees]))
        self._kept.append(pairs)
        self._waiting += len(pairs.left)
        if self._waiting > max(_LEAST_WAITING, 2 * self._count):
            self.edges()

    def edges(self) -> Pairs:
        """Edges of the forest: fewer than rows, nearest first, equal distances in the order of the rows."""
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


def connected_components(edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components with two rows or more, each component and the list of them in ascending order."""
    places: dict[int, int] = {}
    numbered = [(places.setdefault(left, len(places)), places.setdefault(right, len(places))) for left, right in edges]
    sets = UnionFind(len(places))
    for left, right in numbered:
        sets.join(left, right)
    members: dict[int, list[int]] = {}
    for row in sorted(places):
        members.setdefault(sets.root(places[row]), []).append(row)
    return list(members.values())
