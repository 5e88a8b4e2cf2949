"""All pairs of near codes, exactly, and their connected components.

Two codes that differ in at most ``radius`` bits differ in at most as many in any of their words. So blocks of pairs are
compared by XOR and popcount on the first words only, and in full for the few pairs that are still near.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

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
        counts += np.bincount(_distances(words, rows, columns)[upper], minlength=width)
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
    cores = os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores, "mgm-pairs")
    running: deque[Future[Pairs]] = deque()
    try:
        for rows, columns in _blocks(words.shape[1], first):
            running.append(pool.submit(_near, words, radius, rows, columns))
            if len(running) > 4 * cores:
                pairs = running.popleft().result()
                if len(pairs.left):
                    yield pairs
            if columns.stop == words.shape[1]:
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

    At most ``MOST`` of one row, its nearest; each pair comes once, in the order of the rows.

    Args:
        words: (words, n), see ``as_words``.
        first: rows whose pairs are wanted; n for all.
        radius: in bits.
        nearest: rows of each that are taken however far they are.
        on_row: called with the number of first rows done.
    """
    count = words.shape[1]
    most = min(MOST, count - 1)
    found = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))]
    starts = range(0, first, ROWS) if most > 0 else range(0)
    limits = radius, nearest, most
    with ThreadPoolExecutor(os.cpu_count(), "mgm-nearest") as pool:
        blocks = pool.map(lambda start: _nearest(words, slice(start, min(start + ROWS, first)), limits), starts)
        for start, pairs in zip(starts, blocks, strict=True):
            found.append(pairs)
            on_row(min(start + ROWS, first))
    left, right, distances = map(np.concatenate, zip(*found, strict=True))
    _, places = np.unique(left * count + right, return_index=True)
    return Pairs(left[places], right[places], distances[places])


def _nearest(words: NDArray[np.uint64], rows: slice, limits: tuple[int, int, int]) -> Pairs:
    """The pairs of one block of rows; see ``nearest_pairs``."""
    radius, nearest, most = limits
    distances = _distances(words, rows, slice(0, words.shape[1])).astype(np.int32)
    own = np.arange(rows.start, rows.stop)
    distances[np.arange(len(own)), own] = np.iinfo(np.int32).max
    others = np.argpartition(distances, most - 1, axis=1)[:, :most]
    apart = np.take_along_axis(distances, others, 1)
    order = np.lexsort((others, apart), axis=1)
    others, apart = np.take_along_axis(others, order, 1), np.take_along_axis(apart, order, 1)
    taken = (apart <= radius) | (np.arange(most) < nearest)
    left = np.broadcast_to(own[:, None], others.shape)[taken]
    right = others[taken]
    return Pairs(np.minimum(left, right), np.maximum(left, right), apart[taken])


def _blocks(count: int, first: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks that hold all pairs i < j with i < first."""
    for start in range(0, first, ROWS):
        end = min(start + ROWS, first)
        for column in range(start, count, COLUMNS):
            yield slice(start, end), slice(column, min(column + COLUMNS, count))


def _near(words: NDArray[np.uint64], radius: int, rows: slice, columns: slice) -> Pairs:
    """The near pairs i < j of one block."""
    compared = max(1, -(-radius // _BITS_A_WORD))
    distances = _distances(words[:compared], rows, columns)
    near = np.flatnonzero(distances <= radius)
    left, right = np.divmod(near, distances.shape[1])
    left += rows.start
    right += columns.start
    upper = left < right
    left, right = left[upper], right[upper]
    pairs = Pairs(left, right, distances_of(words, left, right))
    return pairs.where(pairs.distances <= radius)


def _distances(words: NDArray[np.uint64], rows: slice, columns: slice) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Distances of a block, (rows, columns); those of up to three words, at most 192, fit into a byte."""
    shape = rows.stop - rows.start, columns.stop - columns.start
    distances = np.zeros(shape, np.uint8 if len(words) < 4 else np.uint16)
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
