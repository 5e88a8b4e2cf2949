"""Metrics of rankings, computed from their ties. Pure numpy.

Integer distances of a small range are counted, without sorting; other distances are sorted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mg_milvus.codes import Codes, hamming, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


Ints = NDArray[np.int64]
Distances = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]
Relevance = NDArray[np.uint8]

SAME_GROUP = 1
SAME_CLASS = 2
NOT_A_CANDIDATE = 255

# Integer distances that span more values than this are sorted.
WIDEST_COUNT = 4096
# Distances looked at in one go, which bounds the working memory whatever the size of the caller's blocks.
DISTANCES_AT_ONCE = 1 << 20


class Ties(NamedTuple):
    """The ties of q queries that hold a graded row, by query, then by distance.

    Attributes:
        longest: no query has more rows than this.
        within: (q, radius + 1, 3) rows at most 0, 1 ... ``radius`` away, by grade; (q, 0, 3) without a radius.
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
        radius: the largest distance that ``within`` counts up to.

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
    step = max(1, DISTANCES_AT_ONCE // max(1, columns))
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
    near = np.clip(_radii(radius) - low + 1, 0, bins)
    within = np.zeros((len(distances), near.max(initial=0) + 1, 3), np.int64)
    np.cumsum(by_grade[:, : within.shape[1] - 1], axis=1, out=within[:, 1:])
    size = by_grade.sum(axis=2)
    before = np.cumsum(size, axis=1) - size
    held = by_grade[:, :, 1:].any(axis=2)
    counts = (by_grade[:, :, grade][held] for grade in (SAME_GROUP, SAME_CLASS))
    return Ties(distances.shape[1], within[:, near], np.nonzero(held)[0], before[held], size[held], *counts)


def _radii(radius: int | None) -> Ints:
    return np.arange(0 if radius is None else radius + 1)


def _sorted(distances: Distances, relevance: Relevance, radius: int | None) -> Ties:
    """Ties of any distances: each query's are sorted, and those of its graded rows are looked up among them."""
    radii = _radii(radius)
    within = np.zeros((len(distances), len(radii), 3), np.int64)
    some_out = (relevance == NOT_A_CANDIDATE).any(axis=1)
    ties = []
    for query, (row, grades) in enumerate(zip(distances, relevance, strict=True)):
        candidates = np.sort(row[grades != NOT_A_CANDIDATE] if some_out[query] else row)
        if len(candidates) and np.isnan(candidates[-1]):
            raise ValueError("distances hold nan, expected numbers; leave a row out by a relevance of 255")
        graded = np.flatnonzero((grades == SAME_GROUP) | (grades == SAME_CLASS))
        graded = graded[np.argsort(row[graded])]
        values, grade = row[graded], grades[graded]
        first = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1]))) if len(values) else graded
        rows, tied = np.diff(first, append=len(values)), values[first]
        before = np.searchsorted(candidates, tied, side="left")
        size = np.searchsorted(candidates, tied, side="right") - before
        same_class = np.add.reduceat(grade == SAME_CLASS, first, dtype=np.int64) if len(first) else rows
        ties.append(np.stack([np.full(len(first), query), before, size, rows - same_class, same_class]))
        near = np.searchsorted(values, radii, side="right")
        for own in (SAME_GROUP, SAME_CLASS):
            within[query, :, own] = np.concatenate([[0], np.cumsum(grade == own)])[near]
        within[query, :, 0] = np.searchsorted(candidates, radii, side="right") - near
    return Ties(distances.shape[1], within, *np.concatenate(ties, axis=1))


Floats = NDArray[np.float64]

# Gain of a grade: 2 ** grade - 1.
GROUP_GAIN, CLASS_GAIN = 1, 3


@dataclass(frozen=True, slots=True)
class RankingScores:
    """Means over the queries that have relevant rows to find; nan where no query has.

    Attributes:
        queries: number of queries, those without relevant rows among them.
        map: mean average precision over whole rankings; expectation inside ties (McSherry and Najork, ECIR 2008).
        map_tie_end: the same with the precision taken at the end of each tie, as scikit-learn has it.
        map_at_k: mAP of the first ``map_at`` rows alone, as papers on deep hashing have it (HashNet, ICCV 2017, and
            CSQ, CVPR 2020): the sum of ``P(i) rel(i)`` over these ranks, divided by the number of relevant rows among
            them; 0 where there are none (HashNet's own program leaves such a query out, CSQ's counts it). Not the AP@k
            that divides by the smaller of k and the number of all relevant rows. Expectation inside ties; None where it
            is not asked for.
        map_at_r: mean of ``1/R sum_{i<=R} P(i) rel(i)``, R the number of rows relevant to the query (Musgrave et al., A
            Metric Learning Reality Check, ECCV 2020); expectation inside ties.
        precision: k -> share of relevant rows among the k nearest, divided by k even where there are fewer rows;
            expectation inside ties.
        recall: k -> share of the relevant rows that are among the k nearest; expectation inside ties.
        ndcg: k -> DCG over the best possible DCG, with gain ``2**grade - 1`` (Burges et al., ICML 2005) and discount
            ``1/log2(1 + rank)``; expectation inside ties, as in scikit-learn's ``ndcg_score``. A mean over the queries
            that have a row of grade 1 or 2, whatever ``relevant_from`` is.
        precision_within: distance 0 ... ``radius`` -> mean precision of the rows at most so far away, 0 for a query
            that finds none, as the papers on deep hashing count it; empty where no radius is asked for.
        recall_within: the same of the share of the relevant rows that are at most so far away.
        average_precisions: (queries,) float64 of ``map``, in the order of the queries; nan for those without relevant
            rows.
        average_precisions_at_k: the same of ``map_at_k``; None where it is not asked for.
    """

    queries: int
    map: float
    map_tie_end: float
    map_at_k: float | None
    map_at_r: float
    precision: dict[int, float]
    recall: dict[int, float]
    ndcg: dict[int, float]
    precision_within: dict[int, float]
    recall_within: dict[int, float]
    average_precisions: Floats
    average_precisions_at_k: Floats | None


def score_rankings(
    blocks: Iterable[tuple[Distances, Relevance]],
    *,
    ks: Iterable[int] = (1, 10, 100),
    radius: int | None = None,
    relevant_from: int = SAME_GROUP,
    map_at: int | None = None,
) -> RankingScores:
    """Score the rankings that distances make, one block of queries after the other.

    Args:
        blocks: distances (q, n), integer or real, smaller is nearer, and relevance (q, n) uint8: 0 not relevant, 1 same
            group, 2 same class, 255 (``NOT_A_CANDIDATE``) no row to be found, like the query itself.
        ks: the ranks of P@k, R@k and NDCG@k.
        radius: the largest distance of ``precision_within`` and ``recall_within``.
        relevant_from: the grade from which a row is relevant, 1 or 2; NDCG takes the grades as they are.
        map_at: the last rank of ``map_at_k``.

    Raises:
        ValueError: shapes that differ, distances that are nan, a grade or an argument that is not one of these.
    """
    ranks = sorted(set(ks))
    lowest = min([*ranks, *([] if map_at is None else [map_at])], default=1)
    if lowest < 1:
        raise ValueError(f"k is {lowest}, expected at least 1")
    if relevant_from not in {SAME_GROUP, SAME_CLASS}:
        raise ValueError(f"relevant_from is {relevant_from}, expected {SAME_GROUP} or {SAME_CLASS}")
    radii = _radii(radius)
    parts = [_nothing(len(ranks), len(radii))]
    for distances, relevance in blocks:
        parts += [_query_metrics(ties, ranks, relevant_from, map_at) for ties in ties_of(distances, relevance, radius)]
    joined = _QueryMetrics(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    scored = joined.relevant > 0
    graded = joined.graded > 0
    return RankingScores(
        queries=len(scored),
        map=_mean(joined.average_precision[scored]),
        map_tie_end=_mean(joined.tie_end[scored]),
        map_at_k=None if map_at is None else _mean(joined.at_k[scored]),
        map_at_r=_mean(joined.at_r[scored]),
        precision={k: _mean(joined.precision[scored, i]) for i, k in enumerate(ranks)},
        recall={k: _mean(joined.recall[scored, i]) for i, k in enumerate(ranks)},
        ndcg={k: _mean(joined.ndcg[graded, i]) for i, k in enumerate(ranks)},
        precision_within={int(r): _mean(joined.precision_within[scored, r]) for r in radii},
        recall_within={int(r): _mean(joined.recall_within[scored, r]) for r in radii},
        average_precisions=np.where(scored, joined.average_precision, np.nan),
        average_precisions_at_k=None if map_at is None else np.where(scored, joined.at_k, np.nan),
    )


def code_blocks(
    queries: Codes, database: Codes, relevance_of: Callable[[slice], Relevance], block: int = 256
) -> Iterator[tuple[NDArray[np.int32], Relevance]]:
    """Blocks for ``score_rankings`` from codes.

    Args:
        queries: (q, bytes) uint8.
        database: (n, bytes) uint8.
        relevance_of: slice of the queries -> their relevance, (q', n) uint8.
        block: queries per block.

    Yields:
        Hamming distances (q', n) int32 and relevance (q', n) uint8.
    """
    for start in range(0, len(queries), block):
        rows = slice(start, min(start + block, len(queries)))
        yield hamming(queries[rows], database), relevance_of(rows)


def relevance(
    query_classes: NDArray[Any],
    classes: NDArray[Any],
    query_groups: NDArray[Any] | None = None,
    groups: NDArray[Any] | None = None,
) -> Relevance:
    """Grade every pair of query and row: 2 where they share a class, 1 where they share only a group, else 0.

    Args:
        query_classes: (q,) ids where an image has one class, or (q, classes) one-hot bool where it may have several.
        classes: (n,) ids or (n, classes) one-hot, of the rows.
        query_groups: the same for groups; without groups no pair is graded 1.
        groups: of the rows.

    Returns:
        (q, n) uint8.

    Raises:
        ValueError: ids against one-hot, one-hot of another width, or groups of one side only.
    """
    if (query_groups is None) != (groups is None):
        raise ValueError("groups are given for one side only, expected both or neither")
    grades = _shared(query_classes, classes).astype(np.uint8) * np.uint8(SAME_CLASS)
    if query_groups is not None and groups is not None:
        np.maximum(grades, _shared(query_groups, groups), out=grades)
    return grades


def _shared(queries: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether query and row have a label in common: (q, n) bool."""
    if queries.ndim == rows.ndim == 1:
        same: NDArray[np.bool_] = queries[:, None] == rows[None, :]
        return same
    if queries.ndim == rows.ndim == 2 and queries.shape[1] == rows.shape[1]:
        common: NDArray[np.bool_] = queries.astype(np.float32) @ rows.astype(np.float32).T > 0
        return common
    raise ValueError(
        f"labels have shapes {queries.shape} and {rows.shape}, expected (q,) and (n,), or (q, c) and (n, c)"
    )


class _QueryMetrics(NamedTuple):
    """What each of q queries scores; 0 where it has nothing to find."""

    relevant: Floats
    graded: Floats
    average_precision: Floats
    tie_end: Floats
    at_k: Floats
    at_r: Floats
    precision_within: Floats
    recall_within: Floats
    precision: Floats
    recall: Floats
    ndcg: Floats


def _nothing(ranks: int, radii: int) -> _QueryMetrics:
    plain = (np.empty(0) for _ in range(6))
    return _QueryMetrics(*plain, *(np.empty((0, width)) for width in (radii, radii, ranks, ranks, ranks)))


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


@lru_cache(maxsize=4)
def _discounts(rows: int) -> Floats:
    """Sums of the first 0, 1 ... rows discounts ``1/log2(1 + rank)``: (rows + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, rows + 2)))])


@lru_cache(maxsize=4)
def _harmonic(rows: int) -> Floats:
    """Harmonic numbers 0, 1, 1 + 1/2 ...: (rows + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, rows + 1))])


@lru_cache(maxsize=4)
def _log_factorials(rows: int) -> Floats:
    """Logarithms of 0!, 1! ... rows!: (rows + 1,)."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, rows + 1)))])


def _query_metrics(ties: Ties, ranks: Sequence[int], relevant_from: int, map_at: int | None) -> _QueryMetrics:
    """The metrics of every query, as sums over its ties."""
    queries = len(ties.within)
    discounts, harmonic = _discounts(ties.longest), _harmonic(ties.longest)

    def total(values: Floats | Ints, keep: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """Sums over each query's ties, those that are kept."""
        return np.bincount(ties.query[keep], values, queries).astype(np.float64, copy=False)

    def share(part: Floats | Ints, whole: Floats | Ints) -> Floats:
        return part / np.where(whole > 0, whole, 1)

    groups, classes = total(ties.same_group), total(ties.same_class)
    found = ties.same_class + (ties.same_group if relevant_from == SAME_GROUP else 0)
    relevant = total(found)
    # Relevant rows nearer than the tie: those ahead of it in the flat list, less those of the queries before.
    ahead = np.cumsum(found) - found - (np.cumsum(relevant) - relevant)[ties.query]
    tie_end = share(total(found * (ahead + found) / (ties.before + ties.size)), relevant)

    # Position t of the n in a tie is relevant with probability r/n, and then expects (t-1)(r-1)/(n-1) relevant rows
    # before it in the tie. In closed form: the sum of that precision, t from 1 to the last position that counts.
    def summed(last: Ints, keep: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        before, size, hits = ties.before[keep], ties.size[keep], found[keep]
        inverse = harmonic[before + last] - harmonic[before]
        crowding = (hits - 1) / np.maximum(size - 1, 1)
        precision = hits / size * ((ahead[keep] + 1) * inverse + crowding * (last - (before + 1) * inverse))
        return total(precision, keep)

    average_precision = share(summed(ties.size), relevant)
    keep = ties.before < relevant[ties.query]
    up_to_r = np.minimum(relevant[ties.query[keep]].astype(np.int64) - ties.before[keep], ties.size[keep])
    at_r = share(summed(up_to_r, keep), relevant)
    at_k = np.zeros(queries)
    if map_at is not None:
        keep = ties.before + ties.size <= map_at
        whole = summed(ties.size[keep], keep)
        at_k = share(whole, total(found[keep], keep))
        for tie in np.flatnonzero((ties.before < map_at) & ~keep & (found > 0)):
            query = ties.query[tie]
            divided = _DividedTie(ties.longest, ties.before[tie], ties.size[tie], found[tie], ahead[tie])
            at_k[query] = divided.average_precision(map_at, whole[query])

    keep = ties.before < max(ranks, default=0)
    before, size, hits = ties.before[keep], ties.size[keep], found[keep]
    gain = (ties.same_group[keep] * GROUP_GAIN + ties.same_class[keep] * CLASS_GAIN) / size
    precision, recall, ndcg = (np.empty((queries, len(ranks))) for _ in range(3))
    for column, k in enumerate(ranks):
        reached = total(hits / size * np.clip(k - before, 0, size), keep)
        precision[:, column] = reached / k
        recall[:, column] = share(reached, relevant)
        cut = discounts[: k + 1]
        reached = total(gain * (_upto(cut, before + size) - _upto(cut, before)), keep)
        best = (CLASS_GAIN - GROUP_GAIN) * _upto(cut, classes) + GROUP_GAIN * _upto(cut, classes + groups)
        ndcg[:, column] = share(reached, best)
    near = ties.within[:, :, relevant_from:].sum(axis=2)
    return _QueryMetrics(
        relevant, groups + classes, average_precision, tie_end, at_k, at_r,
        share(near, ties.within.sum(axis=2)), share(near, relevant[:, None]), precision, recall, ndcg,
    )  # fmt: skip


class _DividedTie(NamedTuple):
    """A tie that rank k divides.

    Attributes:
        longest: rows of the ranking, at most.
        before: rows nearer than the tie.
        size: rows in it.
        hits: relevant ones in it.
        ahead: relevant rows nearer than the tie.
    """

    longest: int
    before: int
    size: int
    hits: int
    ahead: float

    def average_precision(self, k: int, whole: float) -> float:
        """The expected ``sum of P(i) rel(i) up to k, over the relevant rows up to k``.

        Args:
            k: the last rank.
            whole: the sum of ``P(i) rel(i)`` over the ties before.
        """
        seen = k - self.before
        # How many relevant rows are among the first ``seen`` of the tie is hypergeometric; for a given number x of them
        # these rows are themselves a tie of x relevant among ``seen``.
        x = np.arange(max(0, seen - (self.size - self.hits)), min(self.hits, seen) + 1)
        logs = _log_factorials(self.longest)
        chance = -(logs[x] + logs[self.hits - x] + logs[seen - x] + logs[self.size - self.hits - seen + x])
        chance = np.exp(chance - chance.max())
        harmonic = _harmonic(self.longest)
        inverse = harmonic[k] - harmonic[self.before]
        crowding = (x - 1) / max(seen - 1, 1)
        precision = x / seen * ((self.ahead + 1) * inverse + crowding * (seen - (self.before + 1) * inverse))
        values = (whole + precision) / np.maximum(self.ahead + x, 1)
        return float(chance @ values / chance.sum())


def _upto(sums: Floats, rank: Floats | Ints) -> Floats:
    """The sum up to a rank, or up to the last rank of all."""
    return sums[np.minimum(rank, len(sums) - 1).astype(np.int64)]


# Codes unpacked in one go, which bounds the working memory.
AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class Health:
    """What the bits of n codes are worth.

    Attributes:
        bits: the length of a code.
        balance: mean over the bits of ``2 |share of ones - 1/2|``: 0 where every bit is half ones (ideal), 1 where all
            are constant.
        correlation: mean absolute Pearson correlation over all pairs of bits that vary, 0 (ideal) to 1; 0 where fewer
            than two bits vary.
        effective_bits: participation ratio ``(sum l)^2 / sum l^2`` of the eigenvalues l of the bits' covariance (Gao et
            al., A theory of multineuronal dimensionality, dynamics and measurement, bioRxiv 2017): ``bits`` where all
            vary alike and independently, 1 where all say the same, 0 where none varies.
        collisions: share of the images whose code is also another image's, 0 to 1.
    """

    bits: int
    balance: float
    correlation: float
    effective_bits: float
    collisions: float


def health(codes: Codes) -> Health:
    """The health of codes (n, bits / 8) uint8, one image each.

    Raises:
        ValueError: no codes.
    """
    if not codes.size:
        raise ValueError(f"codes have shape {codes.shape}, expected at least one code of at least one byte")
    ones, covariance = _moments(codes)
    variance = np.diag(covariance)
    varying = variance > 0
    deviation = np.sqrt(variance[varying])
    correlation = np.abs(covariance[np.ix_(varying, varying)] / np.outer(deviation, deviation))
    pairs = correlation[np.triu_indices(len(correlation), k=1)]
    # The eigenvalues' sum is the trace, the sum of their squares that of all entries of the symmetric matrix.
    squares = np.square(covariance).sum()
    return Health(
        bits=codes.shape[1] * 8,
        balance=float(np.mean(2 * np.abs(ones - 0.5))),
        correlation=float(pairs.mean()) if len(pairs) else 0.0,
        effective_bits=float(variance.sum() ** 2 / squares) if squares > 0 else 0.0,
        collisions=_collisions(codes),
    )


def joint_collisions(codes: Mapping[str, Codes]) -> float:
    """Share of the images whose codes are another image's on every granularity, 0 to 1.

    Args:
        codes: granularity -> (n, bytes) uint8, the same images in the same order.

    Raises:
        ValueError: no codes, or not as many for each granularity.
    """
    counts = {name: len(part) for name, part in codes.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise ValueError(f"there are {counts} codes, expected as many, and at least one, for every granularity")
    return _collisions(np.concatenate(list(codes.values()), axis=1))


def _collisions(codes: Codes) -> float:
    _, times = np.unique(codes, axis=0, return_counts=True)
    return float(times[times > 1].sum() / len(codes))


def _moments(codes: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of ones (bits,) and covariance (bits, bits) of the bits as 0 and 1."""
    bits = codes.shape[1] * 8
    together = np.zeros((bits, bits))
    for start in range(0, len(codes), AT_ONCE):
        # Whole numbers this small are exact in float32.
        part = unpack(codes[start : start + AT_ONCE]).astype(np.float32)
        together += part.T @ part
    ones = np.diag(together) / len(codes)
    return ones, together / len(codes) - np.outer(ones, ones)
