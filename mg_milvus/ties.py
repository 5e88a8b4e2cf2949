"""Rankings reduced to their ties, which is all that the figures of ``metrics`` need. Pure numpy.

Integer distances of a small range are counted, without sorting; other distances are sorted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

Ints = NDArray[np.int64]
Distances = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]
Relevance = NDArray[np.uint8]

SAME_GROUP = 1
SAME_CLASS = 2
NOT_A_CANDIDATE = 255

# Integer distances that span more values than this are sorted.
WIDEST_COUNT = 4096
# Distances looked at in one go, which bounds the working memory whatever the size of the caller's blocks.
AT_ONCE = 1 << 20


class Ties(NamedTuple):
    """The ties of q queries that hold a graded row, by query, then by distance.

    Attributes:
        longest: no query has more rows than this.
        within: (q, 3) rows at most ``radius`` away, by grade; all 0 without a radius.
        query: (t,) which query.
        before: (t,) rows nearer than the tie.
        size: (t,) rows in the tie.
        same_group: (t,) rows in it of grade 1.
        same_class: (t,) rows in it of grade 2.
    """

    longest: int
    within: Ints
    query: Ints
    before: Ints
    size: Ints
    same_group: Ints
    same_class: Ints


def ties_of(distances: Distances, relevance: Relevance, radius: int | None) -> Iterator[Ties]:
    """The ties of a block, a strip of its queries at a time.

    Args:
        distances: (q, n) integer or real, smaller is nearer.
        relevance: (q, n) uint8 grades 0, 1, 2, or 255 for a row that is no candidate.
        radius: the distance up to which ``within`` counts.

    Raises:
        ValueError: shapes that differ, another grade, or a candidate's distance that is nan.
    """
    if distances.ndim != 2 or distances.shape != relevance.shape:
        raise ValueError(f"distances {distances.shape} and relevance {relevance.shape} differ, expected (q, n) twice")
    if relevance.dtype != np.uint8 or ((relevance > SAME_CLASS) & (relevance != NOT_A_CANDIDATE)).any():
        raise ValueError("relevance holds other values than 0, 1, 2 and 255 as uint8")
    rows, columns = distances.shape
    integer = distances.size > 0 and np.issubdtype(distances.dtype, np.integer)
    low, high = (int(distances.min()), int(distances.max())) if integer else (0, 0)
    step = max(1, AT_ONCE // max(1, columns))
    for start in range(0, rows, step):
        strip = distances[start : start + step], relevance[start : start + step]
        if integer and high - low < WIDEST_COUNT:
            yield _counted(*strip, radius, low, high)
        else:
            yield _sorted(*strip, radius)


def _counted(distances: Distances, relevance: Relevance, radius: int | None, low: int, high: int) -> Ties:
    """Ties of integer distances from low to high: a histogram over distance and grade for each query."""
    bins = high - low + 1
    histograms = np.empty((len(distances), bins, 4), np.int64)
    for histogram, row, grades in zip(histograms, distances, relevance, strict=True):
        # Rows that are no candidates fall into a fourth column, which nobody reads.
        keys = (row.astype(np.int64) - low) * 4 + np.minimum(grades, 3)
        histogram[:] = np.bincount(keys, minlength=bins * 4).reshape(bins, 4)
    by_grade = histograms[:, :, :3]
    near = 0 if radius is None else max(0, radius - low + 1)
    size = by_grade.sum(axis=2)
    before = np.cumsum(size, axis=1) - size
    held = by_grade[:, :, 1:].any(axis=2)
    counts = (by_grade[:, :, grade][held] for grade in (SAME_GROUP, SAME_CLASS))
    return Ties(
        distances.shape[1], by_grade[:, :near].sum(axis=1), np.nonzero(held)[0], before[held], size[held], *counts
    )


def _sorted(distances: Distances, relevance: Relevance, radius: int | None) -> Ties:
    """Ties of any distances: each query's are sorted, and those of its graded rows are looked up among them."""
    within = np.zeros((len(distances), 3), np.int64)
    ties = []
    for query, (row, grades) in enumerate(zip(distances, relevance, strict=True)):
        candidates = np.sort(row[grades != NOT_A_CANDIDATE])
        if len(candidates) and np.isnan(candidates[-1]):
            raise ValueError("distances hold nan, expected numbers; leave a row out by a relevance of 255")
        graded = np.flatnonzero((grades == SAME_GROUP) | (grades == SAME_CLASS))
        graded = graded[np.argsort(row[graded])]
        values, grade = row[graded], grades[graded]
        tied, first, rows = np.unique(values, return_index=True, return_counts=True)
        before = np.searchsorted(candidates, tied, side="left")
        size = np.searchsorted(candidates, tied, side="right") - before
        same_class = np.add.reduceat(grade == SAME_CLASS, first, dtype=np.int64) if len(first) else rows
        ties.append(np.stack([np.full(len(first), query), before, size, rows - same_class, same_class]))
        if radius is not None:
            near = np.bincount(grade[: np.searchsorted(values, radius, side="right")], minlength=3)
            near[0] = np.searchsorted(candidates, radius, side="right") - near.sum()
            within[query] = near
    return Ties(distances.shape[1], within, *np.concatenate(ties, axis=1))
