"""The tail of the unrelated pairs: fitted to counts of pairs by distance, extrapolated to zero. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates.pairs import Forest, distance_counts, groups, pairs_within

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Words = NDArray[np.uint64]


_SHARES = tuple(10 ** (step / 2) for step in range(-8, -1))
"""The tail is the nearest 0.0001 of all pairs, or more where those do not thin out towards zero (duplicates), ..."""
_LEAST_TAIL = 400
"""... and at least so many pairs: of fewer, copies too unlike to be told may be most. The farther from zero, the
steeper: a tail that is too long promises too much."""
_LEAST_FITTED = 30
_LEAST_DIMENSION = 2.0
"""Unrelated images thin out faster than this, duplicates more slowly or not at all."""
_MOST_DIMENSION = 10.0
"""The near pairs of ten thousand photographs have 6 to 9; few images show only the bulk, where it is 15 to 20."""
_AROUND = 5
_ERRORS = 2.0
"""Standard errors by which the fitted dimension is less steep than the best fit."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Unrelated pairs by distance.

    Attributes:
        rates: (distances,) share of the unrelated pairs that are at most 0, 1, 2, ... bits apart.
        dimension: D of the extrapolation.
        after: distances up to this one were left out of the fit; -1 for none.
        until: the last distance of the fit; the rates up to it are the fitted ones, beyond they are counted.
    """

    rates: NDArray[np.float64]
    dimension: float
    after: int
    until: int


def fitted_tail(counts: NDArray[np.int64], nearer: int = -1) -> Tail | None:
    """Fit the tail of the unrelated pairs.

    Between duplicates and unrelated pairs there is a valley, where the tail begins at the earliest. Where the two run
    into each other, duplicates make the fall towards zero look flatter than it is, which overstates the number of
    unrelated near pairs: so of all beginnings of the tail the one with the steepest fall is taken, less two standard
    errors.

    Args:
        counts: (distances,) number of pairs that are 0, 1, 2, ... bits apart; duplicates may be among them.
        nearer: pairs up to this distance were left out of the counts, as duplicates.

    Returns:
        None when there are too few pairs, or nearly all of the nearest are duplicates.
    """
    nearer = max(nearer, _valley(counts))
    for share in _SHARES:
        fit = _steepest(counts, nearer, max(share * counts.sum(), _LEAST_TAIL))
        if fit is not None and fit[0] >= _LEAST_DIMENSION:
            return _extrapolated(counts, *fit)
    return None


def largest_distance(expected: NDArray[np.float64], found: NDArray[np.int64], precision: float) -> int | None:
    """The largest distance at which the pairs found are expected to be this precise (Benjamini and Hochberg 1995).

    Args:
        expected: (n,) false pairs expected within 0, 1, 2, ... bits.
        found: (n,) pairs found within them.
        precision: expected false pairs are at most 1 - precision of the found ones.

    Returns:
        None when there is no such distance.
    """
    good = np.flatnonzero((found > 0) & (expected <= (1 - precision) * found))
    return int(good[-1]) if len(good) else None


def _valley(counts: NDArray[np.int64]) -> int:
    """The distance below the most frequent one around which there are the fewest pairs; -1 when that is at zero."""
    around = np.convolve(counts, np.ones(_AROUND), "valid")[: max(1, int(np.argmax(counts)))]
    lowest = len(around) - 1 - int(np.argmin(around[::-1]))
    return lowest + _AROUND // 2 if lowest else -1


def _steepest(counts: NDArray[np.int64], nearer: int, most: float) -> tuple[float, int, int] | None:
    """Dimension, distance before the first and last distance of the steepest fit to the ``most`` next pairs."""
    within = np.cumsum(np.where(np.arange(len(counts)) > nearer, counts, 0))
    until = int(np.searchsorted(within, most, side="right")) - 1
    levels = np.searchsorted(within, np.geomspace(1, most, 1 + round(2 * np.log2(most))))
    best = None
    for after in [nearer, *(int(place) for place in np.unique(levels) if nearer < place)]:
        own = counts[after + 1 : until + 1]
        number = own.sum()
        if number < _LEAST_FITTED:
            break
        distances = np.arange(after + 1, until + 1)
        mean = float(own @ distances) / number
        variance = max(float(own @ (distances - mean) ** 2) / number, 0.25)
        dimension = _dimension(distances, mean - _ERRORS * sqrt(variance / number))
        if best is None or dimension > best[0]:
            best = dimension, after, until
    return best


def _dimension(distances: NDArray[np.int64], mean: float) -> float:
    """D of which a tail over these distances has this mean (the maximum likelihood, nearly), by bisection."""
    low, high = 0.0, _MOST_DIMENSION
    for _ in range(30):
        middle = (low + high) / 2
        weights = _weights(middle, int(distances[-1]))[distances]
        low, high = (middle, high) if weights @ distances < mean * weights.sum() else (low, middle)
    return low


def _weights(dimension: float, until: int) -> NDArray[np.float64]:
    """gamma(d + D) / d! for d from 0 to ``until``, up to a factor."""
    steps = np.log1p((dimension - 1) / np.arange(1, until + 1))
    logarithms = np.concatenate([[0.0], np.cumsum(steps)])
    weights: NDArray[np.float64] = np.exp(logarithms - logarithms.max())
    return weights


def _extrapolated(counts: NDArray[np.int64], dimension: float, after: int, until: int) -> Tail:
    weights = _weights(dimension, until)
    total = counts.sum()
    rates = np.empty(len(counts))
    rates[: until + 1] = np.cumsum(weights) * counts[after + 1 : until + 1].sum() / weights[after + 1 :].sum() / total
    rates[until + 1 :] = rates[until] + np.cumsum(counts[until + 1 :]) / total
    return Tail(rates, dimension, after, until)


FINE = "fine"
"""The granularity that tells images apart."""
SAMPLE = 4096
"""Rows whose pairs are looked at."""
CHECK_RATE = 0.03
"""A pair must be nearer on every other granularity than all but this share of the unrelated pairs."""
_LEAST_LIMIT = 1 / 8
"""But it need not be nearer than this share of the bits: where most images have copies, the rest are few and odd."""
_LIKELY = 0.9
"""Precision at which images are left out as duplicates before the estimate is made again."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is near, told from a sample of an index.

    Attributes:
        tail: of the unrelated pairs on ``fine``; None when it cannot be told.
        limits: other granularity -> largest distance in bits of a near-duplicate; the code length where there are too
            few pairs to tell.
    """

    tail: Tail | None
    limits: Mapping[str, int]


def calibrated(words: Mapping[str, Words], bits: Mapping[str, int]) -> Calibration:
    """Calibrate on a sample of rows.

    Args:
        words: granularity -> (words, n), see ``as_words``, ``fine`` among them.
        bits: granularity -> code length.
    """
    rows = np.arange(words[FINE].shape[1])
    tail, nearer = None, -1
    while True:
        fine, total = words[FINE][:, rows], len(rows) * (len(rows) - 1) // 2
        counts = distance_counts(fine)
        found = fitted_tail(counts, nearer)
        if found is None:
            break
        tail = found
        distance = largest_distance(tail.rates * total, np.cumsum(counts), _LIKELY)
        if distance is None or distance <= nearer:
            break
        nearer = distance
        rows = np.delete(rows, _all_but_first(fine, distance))
    limits = {name: _limit(words[name][:, rows], bits[name]) for name in bits if name != FINE}
    return Calibration(tail, limits)


def _all_but_first(words: Words, distance: int) -> list[int]:
    """The rows of each group of near rows, without its first."""
    count = words.shape[1]
    forest = Forest(count)
    for pairs in pairs_within(words, distance, count):
        forest.add(pairs)
    edges = forest.edges()
    return [row for group in groups(zip(edges.left.tolist(), edges.right.tolist(), strict=True)) for row in group[1:]]


def _limit(words: Words, bits: int) -> int:
    counts = distance_counts(words)
    allowed = CHECK_RATE * counts.sum()
    if allowed < 1:
        return bits
    return max(int(_LEAST_LIMIT * bits), int(np.searchsorted(np.cumsum(counts), allowed, side="right")) - 1)
