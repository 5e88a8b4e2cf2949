"""Many rankings of one database scored in one pass over the queries, in blocks, in threads, in bounded memory."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.evaluation.rankings import fused_keys
from mg_milvus.hits import Progress
from mg_milvus.metrics import NOT_A_CANDIDATE, SAME_CLASS, SAME_GROUP, RankingScores, score_rankings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.encoder import Features
    from mg_milvus.evaluation.rankings import Recipe

    RelevanceOf = Callable[[slice], NDArray[np.uint8]]
    # Rows of the queries and their relevance (q, n) -> name and distances (q, n) of one ranking after the other.
    RankingsOf = Callable[[slice, NDArray[np.uint8]], Iterator[tuple[str, NDArray[Any]]]]

KS = (1, 10, 100)
RADIUS = 2
"""Hamming radius of the precision that papers on deep hashing report."""
FUSED = "fused:"
"""Before the name of a fused ranking: a granularity may have the same name."""
FLOAT = "float:"
"""Before the name of a granularity: the ranking by its features."""
CURVE_POINTS = 40
PAIRS = 1 << 20
"""Pairs of query and row in one block: about 10 MB for each ranking that is at work on it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How good one ranking is.

    Attributes:
        ranking: its figures, for classes.
        map_group: mAP where pictures of the same group are relevant; None where there are no groups.
    """

    ranking: RankingScores
    map_group: float | None

    def as_dict(self, ks: Sequence[int]) -> dict[str, Any]:
        """The figures, ready for JSON, at these ranks; the names of keys are part of the stable form."""
        ranking = self.ranking
        found: dict[str, Any] = {"map": _number(ranking.map), "map_at_r": _number(ranking.map_at_r)}
        if self.map_group is not None:
            found["map_group"] = _number(self.map_group)
        for name, values in (("precision", ranking.precision), ("recall", ranking.recall), ("ndcg", ranking.ndcg)):
            found[name] = {str(k): _number(values[k]) for k in sorted(set(ks))}
        if ranking.within_radius is not None:
            found[f"precision_radius_{RADIUS}"] = _number(ranking.within_radius)
        return found


def _number(value: float) -> float | None:
    """Six decimals; nan, which JSON does not have, is None."""
    return None if np.isnan(value) else round(value, 6)


def curve_ranks(database: int) -> tuple[int, ...]:
    """Ranks at which a curve of precision over recall is sampled: from 1 to all, evenly on a logarithmic scale."""
    return tuple(int(k) for k in np.unique(np.geomspace(1, database, CURVE_POINTS).astype(int)))


def score_all(
    count: int,
    rows: int,
    rankings_of: RankingsOf,
    relevance_of: RelevanceOf,
    *,
    ks: Sequence[int] = KS,
    with_radius: frozenset[str] = frozenset(),
    groups: bool = False,
    threads: int | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> dict[str, Scores]:
    """Score every ranking of every query.

    Args:
        count: queries.
        rows: in the database.
        rankings_of: makes the rankings of a block of queries.
        relevance_of: slice of the queries -> (q, n) uint8 as ``metrics.relevance`` makes it.
        ks: ranks of P@k, R@k and NDCG@k.
        with_radius: names of the rankings that have a precision within the Hamming radius.
        groups: whether grade 1 occurs, so that mAP for groups means something.
        threads: blocks at work at once; default: one a core.
        told: called with the number of queries that are done.

    Returns:
        Name -> scores, in the order of ``rankings_of``. Queries without a row of their class count nowhere; their
        average precision is nan.
    """
    step = max(1, PAIRS // max(1, rows))
    slices = [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def block(part: slice) -> dict[str, tuple[RankingScores, float]]:
        grades = relevance_of(part)
        asked = (grades == SAME_CLASS).any(axis=1)
        # What would count nowhere is no query: then every mean of a block is over the same queries.
        found = {}
        for name, distances in rankings_of(part, grades):
            kept = ((distances, grades),) if asked.all() else ((distances[asked], grades[asked]),)
            radius = RADIUS if name in with_radius else None
            scores = score_rankings(kept, ks=ks, radius=radius, relevant_from=SAME_CLASS)
            by_group = score_rankings(kept, ks=(), relevant_from=SAME_GROUP).map if groups else float("nan")
            found[name] = _spread(scores, asked), by_group
        return found

    parts: dict[str, list[tuple[RankingScores, float]]] = defaultdict(list)
    with ThreadPoolExecutor(threads or os.cpu_count(), "mgm-score") as pool:
        for part, found in zip(slices, pool.map(block, slices), strict=True):
            for name, scores in found.items():
                parts[name].append(scores)
            told(part.stop)
    return {name: _joined(found, groups=groups) for name, found in parts.items()}


def _spread(scores: RankingScores, asked: NDArray[np.bool_]) -> RankingScores:
    precisions = np.full(len(asked), np.nan)
    precisions[asked] = scores.average_precisions
    return RankingScores(
        int(asked.sum()), scores.map, scores.map_at_r, scores.precision, scores.recall, scores.ndcg,
        scores.within_radius, precisions,
    )  # fmt: skip


def _joined(parts: Sequence[tuple[RankingScores, float]], *, groups: bool) -> Scores:
    """The means over all blocks."""
    asked = [(scores, by_group) for scores, by_group in parts if scores.queries]
    share = np.array([scores.queries for scores, _ in asked], np.float64)
    share /= max(1.0, share.sum())

    def mean(values: Sequence[float]) -> float:
        return float(share @ np.array(values)) if asked else float("nan")

    def means(pick: Callable[[RankingScores], Mapping[int, float]]) -> dict[int, float]:
        return {k: mean([pick(scores)[k] for scores, _ in asked]) for k in pick(parts[0][0])}

    within = parts[0][0].within_radius
    ranking = RankingScores(
        sum(scores.queries for scores, _ in asked),
        mean([scores.map for scores, _ in asked]),
        mean([scores.map_at_r for scores, _ in asked]),
        means(lambda scores: scores.precision),
        means(lambda scores: scores.recall),
        means(lambda scores: scores.ndcg),
        None if within is None else mean([scores.within_radius or 0.0 for scores, _ in asked]),
        np.concatenate([scores.average_precisions for scores, _ in parts]),
    )
    return Scores(ranking, mean([by_group for _, by_group in asked]) if groups else None)


def code_rankings(
    queries: Mapping[str, Codes], database: Mapping[str, Codes], recipes: Mapping[str, Recipe]
) -> RankingsOf:
    """Rankings by each granularity, named as it is, and by each recipe, named ``FUSED`` and its name."""
    bits = {name: codes.shape[1] * 8 for name, codes in database.items()}

    def rankings(part: slice, grades: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[Any]]]:
        distances = {name: hamming(queries[name][part], codes) for name, codes in database.items()}
        yield from distances.items()
        out = grades == NOT_A_CANDIDATE
        some_out = out.any(axis=1)
        keys = np.empty((len(recipes), *grades.shape), np.int64)
        for row in range(len(grades)):
            own = {name: values[row] for name, values in distances.items()}
            keys[:, row] = fused_keys(own, bits, list(recipes.values()), ~out[row] if some_out[row] else None)
        for name, ordered in zip(recipes, keys, strict=True):
            yield FUSED + name, ordered

    return rankings


def float_rankings(queries: Features, database: Features) -> RankingsOf:
    """Rankings by each of the database's features: minus the cosine, float32, of what is centred on the database."""
    centres = {name: values.mean(axis=0, dtype=np.float64).astype(np.float32) for name, values in database.items()}
    unit = {name: _unit(values - centres[name]) for name, values in database.items()}

    def rankings(part: slice, _: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[Any]]]:
        for name, rows in unit.items():
            yield name, -(_unit(queries[name][part] - centres[name]) @ rows.T)

    return rankings


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True).astype(np.float32)
    lengths[lengths == 0] = 1
    unit: NDArray[np.float32] = np.divide(values, lengths, dtype=np.float32)
    return unit


def told_as(stage: str, total: int, progress: Callable[[Progress], None] | None) -> Callable[[int], None]:
    """A callback for the number of queries done, as ``Progress`` records."""
    return lambda done: progress(Progress(stage, done, total, 0)) if progress else None
