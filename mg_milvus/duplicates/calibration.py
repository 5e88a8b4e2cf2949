"""Which distance makes two images duplicates: the distances of unrelated pairs, extrapolated to zero. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates.pairs import ConnectedComponents, connected_components, distance_counts, pairs_within

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Words = NDArray[np.uint64]


_SHARES = tuple(10 ** (step / 2) for step in range(-8, -1))
"""Share of all pairs, the nearest ones, to fit; a larger one where those are duplicates, which do not thin out."""
_LEAST_PAIRS = 400
"""Fewest pairs to fit: most of fewer may be distant duplicates. More pairs reach farther from zero, where the fall is
steeper, and would understate the unrelated near pairs."""
_LEAST_FITTED = 30
_LEAST_DIMENSION = 2.0
"""Unrelated images thin out faster than this, duplicates more slowly or not at all."""
_MOST_DIMENSION = 10.0
"""The near pairs of ten thousand photographs have 6 to 9; few images show only the bulk, where it is 15 to 20."""
_AROUND = 5
_ERRORS = 2.0
"""Standard errors by which the fitted dimension is less steep than the best fit."""


@dataclass(frozen=True, slots=True)
class ChanceRates:
    """Rates at which unrelated images are near by chance.

    Attributes:
        rates: (distances,) share of the unrelated pairs that are at most 0, 1, 2, ... bits apart.
        dimension: D of the extrapolation, see ``_weights``.
        after: distances up to this one were left out of the fit; -1 for none.
        until: last distance of the fit; rates up to it are fitted, later ones are counted.
    """

    rates: NDArray[np.float64]
    dimension: float
    after: int
    until: int


def fit_chance_rates(counts: NDArray[np.int64], nearer: int = -1) -> ChanceRates | None:
    """Fit the rates of unrelated pairs near distance zero.

    The fit begins at the valley between duplicates and unrelated pairs, or later. Where the two overlap, duplicates
    flatten the fall towards zero and so overstate the number of unrelated near pairs: of all beginnings the one with
    the steepest fall is taken, less two standard errors.

    Args:
        counts: (distances,) number of pairs that are 0, 1, 2, ... bits apart; duplicates may be among them.
        nearer: pairs up to this distance are known duplicates.

    Returns:
        None when there are too few pairs, or nearly all of the nearest are duplicates.
    """
    nearer = max(nearer, _valley(counts))
    for share in _SHARES:
        fit = _steepest(counts, nearer, max(share * counts.sum(), _LEAST_PAIRS))
        if fit is not None and fit[0] >= _LEAST_DIMENSION:
            return _extrapolate(counts, *fit)
    return None


def largest_distance(expected: NDArray[np.float64], within: NDArray[np.int64], precision: float) -> int | None:
    """The largest distance at which the near pairs have this expected precision (Benjamini and Hochberg 1995).

    Args:
        expected: (n,) false pairs expected within 0, 1, 2, ... bits.
        within: (n,) pairs found within 0, 1, 2, ... bits.
        precision: expected false pairs are at most 1 - precision of the pairs found.

    Returns:
        None when there is no such distance.
    """
    good = np.flatnonzero((within > 0) & (expected <= (1 - precision) * within))
    return int(good[-1]) if len(good) else None


def _valley(counts: NDArray[np.int64]) -> int:
    """The distance below the mode around which there are the fewest pairs; -1 when that is at zero."""
    around = np.convolve(counts, np.ones(_AROUND), "valid")[: max(1, int(np.argmax(counts)))]
    lowest = len(around) - 1 - int(np.argmin(around[::-1]))
    return lowest + _AROUND // 2 if lowest else -1


def _steepest(counts: NDArray[np.int64], nearer: int, most: float) -> tuple[float, int, int] | None:
    """The steepest fit to the next ``most`` pairs: dimension, distance before the first, last distance."""
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
    """D for which the weights over these distances have this mean, by bisection; nearly the maximum likelihood."""
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


def _extrapolate(counts: NDArray[np.int64], dimension: float, after: int, until: int) -> ChanceRates:
    weights = _weights(dimension, until)
    total = counts.sum()
    rates = np.empty(len(counts))
    rates[: until + 1] = np.cumsum(weights) * counts[after + 1 : until + 1].sum() / weights[after + 1 :].sum() / total
    rates[until + 1 :] = rates[until] + np.cumsum(counts[until + 1 :]) / total
    return ChanceRates(rates, dimension, after, until)


FINE = "fine"
"""The granularity that tells images apart."""
SAMPLE = 4096
"""Rows whose pairs are counted, at most."""
CHECK_RATE = 0.03
"""A pair must be nearer on every other granularity than all but this share of the unrelated pairs."""
_LEAST_LIMIT = 1 / 8
"""Smallest limit, as a share of the bits: where most images have copies, too few unrelated ones are left to tell."""
_LIKELY = 0.9
"""Precision at which duplicates are removed from the sample before the next fit."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What counts as near, from a sample of an index.

    Attributes:
        chance: of the unrelated pairs on ``fine``; None when it cannot be estimated.
        limits: other granularity -> largest distance in bits of a near-duplicate; the code length where there are too
            few pairs to estimate one.
    """

    chance: ChanceRates | None
    limits: Mapping[str, int]


def calibrate(words: Mapping[str, Words], bits: Mapping[str, int]) -> Calibration:
    """Calibrate on a sample of rows.

    Args:
        words: granularity -> (words, n), see ``as_words``, ``fine`` among them.
        bits: granularity -> code length.
    """
    rows = np.arange(words[FINE].shape[1])
    chance, nearer = None, -1
    while True:
        fine, total = words[FINE][:, rows], len(rows) * (len(rows) - 1) // 2
        counts = distance_counts(fine)
        fit = fit_chance_rates(counts, nearer)
        if fit is None:
            break
        chance = fit
        distance = largest_distance(chance.rates * total, np.cumsum(counts), _LIKELY)
        if distance is None or distance <= nearer:
            break
        nearer = distance
        rows = np.delete(rows, _all_but_first(fine, distance))
    limits = {name: _limit(words[name][:, rows], bits[name]) for name in bits if name != FINE}
    return Calibration(chance, limits)


def _all_but_first(words: Words, distance: int) -> list[int]:
    """All rows of each group of near rows but the first."""
    count = words.shape[1]
    components = ConnectedComponents(count)
    for pairs in pairs_within(words, distance, count):
        components.add(pairs)
    left, right, _ = components.edges()
    groups = connected_components(zip(left.tolist(), right.tolist(), strict=True))
    return [row for group in groups for row in group[1:]]


def _limit(words: Words, bits: int) -> int:
    counts = distance_counts(words)
    allowed = CHECK_RATE * counts.sum()
    if allowed < 1:
        return bits
    return max(int(_LEAST_LIMIT * bits), int(np.searchsorted(np.cumsum(counts), allowed, side="right")) - 1)
