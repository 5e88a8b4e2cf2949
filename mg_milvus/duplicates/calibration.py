"""How often unrelated pictures are near by chance, told from the index itself.

The distances of random pairs of an index show how fast its unrelated pairs thin out towards zero. Near-duplicates are
among those pairs and are most of the nearest ones, so the nearest cannot simply be counted: they are extrapolated.
Near zero, the number of unrelated pairs follows a power of their distance, the local intrinsic dimension D (Houle 2013;
Amsaleg et al. 2015). What is measured is not that distance but a count of bits, with Poisson's noise. A power law seen
through this noise has density gamma(d + D) / d! at d bits, which does not vanish at 0. It is fitted (``tails``) to the
nearest pairs that are not duplicates. Of the pictures that it then takes for duplicates one is kept, and it is fitted
again.

Distances alone cannot tell copies from a class of pictures that look all alike to the encoder (frames of one camera,
forms, blurred thumbnails): those count as near-duplicates, and what is expected by chance does not hold among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates.forest import Forest, groups
from mg_milvus.duplicates.pairs import distance_counts, pairs_within
from mg_milvus.duplicates.tails import Tail, fitted_tail, largest_distance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

FINE = "fine"
"""The granularity that tells pictures apart."""
SAMPLE = 4096
"""Rows whose pairs are looked at."""
CHECK_RATE = 0.03
"""A pair must be nearer on every other granularity than all but this share of the unrelated pairs."""
_LEAST_LIMIT = 1 / 8
"""But it need not be nearer than this share of the bits: where most pictures have copies, the rest are few and odd."""
_LIKELY = 0.9
"""Precision at which pictures are left out as duplicates before the estimate is made again."""


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
