"""What queries want, how a setting of fusion ranks it, and how good that is. Pure numpy, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mg_milvus.fusion import shared_ranks
from mg_milvus.metrics import CLASS_GAIN, GROUP_GAIN, NOT_A_CANDIDATE, SAME_CLASS, SAME_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Goal = Literal["map", "recall@1", "ndcg"]
Method = Literal["rank", "score"]
Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
Relevance = NDArray[np.uint8]

GOALS: tuple[Goal, ...] = get_args(Goal)
"""``map``: mean average precision over the whole ranking. ``recall@1``: the share of queries whose first result is
wanted. ``ndcg``: NDCG of the first ``NDCG_AT`` results."""
NDCG_AT = 100

_LAST = np.float32(-1)
"""The score of what is no candidate."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is learned.

    Attributes:
        weights: of the granularities, in the order of ``Questions.bits``; the largest is 1.
        rrf_k: the constant of rank fusion; score fusion does without.
    """

    weights: tuple[float, ...]
    rrf_k: int

    @classmethod
    def of(cls, weights: tuple[float, ...], rrf_k: int) -> Setting:
        """The setting that ranks alike and has 1 for its largest weight, rounded to what people can read."""
        top = max(weights)
        return cls(tuple(round(weight / top, 3) for weight in weights), rrf_k)


@dataclass(frozen=True, slots=True)
class Questions:
    """Queries, their distances to all candidates, and what they want.

    Attributes:
        distances: granularity -> (q, n) unsigned integers, Hamming distances in bits.
        bits: granularity -> code length.
        relevance: (q, n) uint8: 2 wanted, 1 same group (counts for ``ndcg`` only), 0 not, 255 no candidate, like the
            query itself. Every query wants something.
    """

    distances: Mapping[str, NDArray[np.unsignedinteger[Any]]]
    bits: Mapping[str, int]
    relevance: Relevance
    _ranks: dict[str, Scores] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, bits in self.bits.items():
            # The ranks in a row depend on the distance alone: one entry for each distance that there can be.
            table = np.empty((len(self.relevance), bits + 1), np.float32)
            for row, own, grades in zip(table, self.distances[name], self.relevance, strict=True):
                counts = np.bincount(own[grades != NOT_A_CANDIDATE], minlength=bits + 1)
                row[:] = np.cumsum(counts) - counts + (counts + 1) / 2
            self._ranks[name] = table

    def __len__(self) -> int:
        return len(self.relevance)

    def scores(self, setting: Setting, method: Method) -> Iterator[Scores]:
        """Fuse, as ``mg_milvus.fusion.fuse`` does with all pictures as candidates.

        Yields:
            For each query (n,) float32, higher is nearer; what is no candidate has -1.
        """
        used = self._used(setting)
        tables: dict[str, Scores] = {}
        for name, weight in used.items():
            if method == "rank":
                tables[name] = np.float32(weight) / (np.float32(setting.rrf_k) + self._ranks[name])
            else:
                line = weight * (1 - np.arange(self.bits[name] + 1) / self.bits[name])
                tables[name] = np.broadcast_to(line.astype(np.float32), (len(self), len(line)))
        for query, grades in enumerate(self.relevance):
            fused = sum(table[query][self.distances[name][query]] for name, table in tables.items())
            yield np.where(grades == NOT_A_CANDIDATE, _LAST, fused)

    def scores_at(self, setting: Setting, method: Method, depth: int) -> Iterator[Floats]:
        """Like ``scores``, with ``depth`` candidates of each granularity and ranks in their union, as a query has.

        The other pictures follow behind, in the order of ``scores``: whoever asks for more results gets more depth.
        """
        used = self._used(setting)
        for query, whole in enumerate(self.scores(setting, method)):
            known = np.flatnonzero(self.relevance[query] != NOT_A_CANDIDATE)
            own = {name: self.distances[name][query] for name in used}
            nearest = [known[np.argsort(values[known], kind="stable")[:depth]] for values in own.values()]
            union = np.unique(np.concatenate(nearest))
            row = whole.astype(np.float64)
            if method == "rank":
                ranks = {name: shared_ranks(values[union]) for name, values in own.items()}
                row[union] = sum(weight / (setting.rrf_k + ranks[name]) for name, weight in used.items())
            row[union] += len(used)  # above all others, for no weight and no part of a score is more than 1
            yield row

    def _used(self, setting: Setting) -> dict[str, float]:
        return {name: weight for name, weight in zip(self.bits, setting.weights, strict=True) if weight > 0}


def goals_of(goal: Goal, scores: Iterable[Scores | Floats], relevance: Relevance) -> Floats:
    """The goal of every query: (q,) from 0 to 1, as an expectation over the orders inside ties.

    ``mg_milvus.metrics`` takes the precision of mAP at a tie's end instead. That is no goal to learn by: it grows where
    ties are broken by noise.
    """
    measure = {"map": _average_precision, "recall@1": _first, "ndcg": _ndcg}[goal]
    return np.array([measure(row, grades) for row, grades in zip(scores, relevance, strict=True)])


def _average_precision(scores: Scores | Floats, grades: Relevance) -> float:
    """Expected over the orders inside ties (McSherry and Najork, ECIR 2008)."""
    ordered, wanted = np.sort(scores), np.sort(scores[grades == SAME_CLASS])

    def above(values: NDArray[Any], side: Literal["left", "right"]) -> NDArray[np.intp]:
        """How many are above each wanted one; from the left, its own tie is counted too."""
        return len(values) - np.searchsorted(values, wanted, side=side)

    before, found_before = above(ordered, "right"), above(wanted, "right")
    size, found = above(ordered, "left") - before, above(wanted, "left") - found_before
    harmonic = _harmonic(len(scores))
    inverse = harmonic[before + size] - harmonic[before]
    crowding = (found - 1) / np.maximum(size - 1, 1)
    precision = (found_before + 1) * inverse + crowding * (size - (before + 1) * inverse)
    return float(np.mean(precision / size))


@lru_cache(maxsize=2)
def _harmonic(count: int) -> Floats:
    """Harmonic numbers 0, 1, 1 + 1/2 ...: (count + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, count + 1))])


def _first(scores: Scores | Floats, grades: Relevance) -> float:
    return float(np.mean(grades[scores == scores.max()] == SAME_CLASS))


def _ndcg(scores: Scores | Floats, grades: Relevance) -> float:
    gains = np.select([grades == SAME_CLASS, grades == SAME_GROUP], [CLASS_GAIN, GROUP_GAIN], 0)
    count = min(NDCG_AT, len(scores))
    discounts = 1 / np.log2(np.arange(2, count + 2))
    first = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    first = first[np.argsort(-scores[first], kind="stable")]
    _, tie = np.unique(-scores[first], return_inverse=True)
    mean = np.bincount(tie, gains[first]) / np.bincount(tie)
    return float(mean[tie][:count] @ discounts) / float(np.sort(gains)[::-1][:count] @ discounts)
