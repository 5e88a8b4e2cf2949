"""Fusion: distances of candidates on all granularities -> one ranking. Pure numpy, no I/O.

Rank fusion is weighted reciprocal rank fusion (Cormack et al. 2009) over the union of the candidates, each
with its exact distance on every granularity; score fusion is the convex combination of normalised distances (Bruch
et al. 2022). Chance fusion adds up how rare it is to be as near by chance, as Fisher's combined probability does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mg_milvus.schema.models import REGIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.search.chance import Chance


DEFAULT_RRF_K = 60


@dataclass(frozen=True, slots=True)
class Fusion:
    """How scores are computed.

    Attributes:
        method: ``rank``: score = sum of weight / (rrf_k + rank); ``score``: sum of weight * (1 - distance / bits);
            ``chance``: sum of weight * -log10 of the share of random pairs that are as near.
        rrf_k: the constant of rank fusion; a smaller one favours the first ranks.
        chance: the distances of random pairs, for every granularity with a weight; ``chance`` needs it.
    """

    method: Literal["rank", "score", "chance"] = "rank"
    rrf_k: int = DEFAULT_RRF_K
    chance: Chance | None = None


RANK_FUSION = Fusion()


@dataclass(frozen=True, slots=True)
class Fused:
    """A ranking of n candidates.

    Attributes:
        order: (n,) indices into the candidates, best first.
        scores: (n,) float64 fused scores, in the order of the candidates; higher is better.
        ranks: granularity -> (n,) float64 ranks from 1, in the order of the candidates; ties share their mean rank.
    """

    order: NDArray[np.intp]
    scores: NDArray[np.float64]
    ranks: dict[str, NDArray[np.float64]]


def shared_ranks(distances: NDArray[Any]) -> NDArray[np.float64]:
    """Rank candidates from 1, nearest first; equal distances share their mean rank.

    Args:
        distances: (n,) distances in bits, whole numbers or not.

    Returns:
        (n,) float64 ranks.
    """
    order = np.argsort(distances)
    ordered = distances[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    last = np.append(first[1:], len(order))
    ranks = np.empty(len(order))
    ranks[order] = np.repeat((first + last + 1) / 2, last - first)
    return ranks


def fuse(
    ids: Sequence[str],
    distances: Mapping[str, NDArray[Any]],
    *,
    bits: Mapping[str, int],
    weights: Mapping[str, float],
    fusion: Fusion = RANK_FUSION,
) -> Fused:
    """Rank candidates by all granularities together.

    Equal scores are ordered by the weighted normalised distance, then by id, so the ranking is deterministic.

    Args:
        ids: (n,) primary keys of the candidates, all different.
        distances: granularity -> (n,) distances in bits, one for every candidate.
        bits: granularity -> code length.
        weights: granularity -> weight; a negative one pushes down what is near. Granularities that are missing or 0 are
            ignored.
        fusion: the formula of the scores.

    Raises:
        ValueError: no positive weight, a weight for an unknown granularity, lengths that differ, or no chance.
    """
    if fusion.method == "chance" and fusion.chance is None:
        raise ValueError("fusion by chance needs the distances of random pairs")
    used = {name: weight for name, weight in sorted(weights.items()) if weight}
    if not any(weight > 0 for weight in used.values()):
        raise ValueError(f"weights are {dict(weights)}, expected at least one above 0")
    missing = [name for name in used if name not in distances or name not in bits]
    if missing:
        raise ValueError(f"there are no distances or bits for {', '.join(missing)}; known are {', '.join(distances)}")
    if any(len(values) != len(ids) for values in distances.values()):
        raise ValueError(f"expected {len(ids)} distances for each granularity, as many as ids")

    ranks = {name: shared_ranks(np.asarray(values)) for name, values in distances.items()}
    nearness = np.zeros(len(ids))
    for name, weight in used.items():
        nearness += weight * (1 - np.asarray(distances[name]) / bits[name])
    scores = nearness
    if fusion.method != "score":
        scores = np.zeros(len(ids))
        for name, weight in used.items():
            if fusion.chance is None or fusion.method == "rank":
                scores += weight / (fusion.rrf_k + ranks[name])
            else:
                scores -= weight * np.log10(fusion.chance.of(name, distances[name]))
    largest = max(map(abs, used.values()))  # scores that differ by rounding only are equal at any scale of the weights
    order = _ordered(ids, np.round(scores / largest, 12), np.round(nearness / largest, 12))
    return Fused(order, scores, ranks)


def lead(fused: Fused, leading: Mapping[str, NDArray[np.bool_]], weight: float, rrf_k: int) -> Fused:
    """Move candidates that stand out on a granularity before all others.

    Their score grows by ``lead_score``, where the first of all others has at most weight / (rrf_k + 1).

    Args:
        fused: by rank.
        leading: granularity -> (n,) which candidates stand out on it.
        weight: sum of the weights of ``fused``.
        rrf_k: the constant of ``fused``.
    """
    scores = fused.scores.copy()
    for name, chosen in leading.items():
        scores[chosen] += lead_score(name, fused.ranks[name][chosen], weight, rrf_k)
    rounded = np.round(scores[fused.order] / weight, 12)
    return Fused(fused.order[np.argsort(-rounded, kind="stable")], scores, fused.ranks)


def lead_score(name: str, rank: Any, weight: float, rrf_k: int) -> Any:
    """What a candidate's score has more for standing out on a granularity: weight / (rrf_k + rank there).

    On the regions one image stands out, whether it is the first there or not, and has weight / (rrf_k + 1).
    """
    return weight / (rrf_k + (1 if name == REGIONS else rank))


def _ordered(ids: Sequence[str], scores: NDArray[np.float64], nearness: NDArray[np.float64]) -> NDArray[np.intp]:
    """Order by falling score, then falling nearness, then id; each key is compared within ties of the one before."""
    order = np.argsort(-scores, kind="stable")
    tied = _tied(scores[order])
    some = order[tied]
    order[tied] = some = some[np.lexsort((-nearness[some], -scores[some]))]
    equal = _tied(scores[some]) & _tied(nearness[some])
    if equal.any():
        last = some[equal]
        names = np.array([ids[i] for i in last], dtype=np.str_)
        some[equal] = last[np.lexsort((names, -nearness[last], -scores[last]))]
        order[tied] = some
    return order


def _tied(ordered: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of n values in order equal the one before or behind them."""
    equal = np.concatenate(([False], ordered[1:] == ordered[:-1], [False]))
    tied: NDArray[np.bool_] = equal[1:] | equal[:-1]
    return tied[: len(ordered)]
