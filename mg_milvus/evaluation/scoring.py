"""Fused rankings of whole databases, for many queries: the formulas of ``fusion.fuse`` by tables instead of sorting.

A Hamming distance has few values, so its shared rank is looked up in a table made by counting.
"""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.encoder.hash_heads import expanded, unit
from mg_milvus.errors import LabelError
from mg_milvus.evaluation.metrics import (
    NOT_A_CANDIDATE,
    SAME_CLASS,
    SAME_GROUP,
    RankingScores,
    health,
    joint_collisions,
    relevance,
    score_rankings,
)
from mg_milvus.records import Progress
from mg_milvus.schema.models import PROFILES
from mg_milvus.search.fusion import DEFAULT_RRF_K

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.encoder.base import Features
    from mg_milvus.schema.models import Schema

    RelevanceOf = Callable[[slice], NDArray[np.uint8]]
    RankingsOf = Callable[[slice, NDArray[np.uint8]], Iterator[tuple[str, NDArray[Any]]]]
    from mg_milvus.evaluation.labels import Level
    from mg_milvus.evaluation.protocols import Split


DECIMALS = 1e12
"""``fuse`` takes scores for equal that agree to 12 decimals."""
LARGEST_SUM = 64.0
"""Weights with a larger sum are scaled down to it, so that 12 decimals of a score fit into 64 bits."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to fuse. ``weights``: granularity -> weight above 0."""

    method: Literal["rank", "score"]
    weights: Mapping[str, float]
    rrf_k: int = DEFAULT_RRF_K


def recipes_of(schema: Schema) -> dict[str, Recipe]:
    """``rank`` and ``score`` with the schema's weights, and every profile by rank; names as in the metrics."""
    rrf_k = schema.fusion.rrf_k

    def recipe(method: Literal["rank", "score"], weights: Mapping[str, float]) -> Recipe:
        return Recipe(method, {name: weight for name, weight in sorted(weights.items()) if weight > 0}, rrf_k)

    found = {"rank": recipe("rank", schema.weights), "score": recipe("score", schema.weights)}
    for profile, weights in PROFILES.items():
        own = {name: weights.get(name, weight) for name, weight in schema.weights.items()}
        if any(own.values()):  # a profile may ask only for what this schema does not have
            found[profile] = recipe("rank", own)
    return found


def fused_keys(
    distances: Mapping[str, NDArray[np.integer]],
    bits: Mapping[str, int],
    recipes: Sequence[Recipe],
    candidates: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The fused order of one query's rows, by every recipe.

    Args:
        distances: granularity -> (n,) Hamming distances in bits.
        bits: granularity -> code length.
        recipes: how to fuse.
        candidates: (n,) bool: rows that take part; None: all. The others get a key, but no rank counts them.

    Returns:
        (recipes, n) int64: smaller is nearer, in the order of ``fuse``; rows that only their ids tell apart are equal.
    """
    near, reciprocal = {}, {}
    for name, values in distances.items():
        places = values.astype(np.intp)
        # Every distance is inside its table; the mode "clip" alone does without a buffer.
        near[name] = np.take(1 - np.arange(bits[name] + 1) / bits[name], places, mode="clip")
        ranks = _ranks(places if candidates is None else places[candidates], bits[name])
        for rrf_k in {recipe.rrf_k for recipe in recipes}:
            reciprocal[name, rrf_k] = np.take(1 / (rrf_k + ranks), places, mode="clip")
    keys = np.empty((len(recipes), len(next(iter(near.values())))), np.int64)
    for own, recipe in zip(keys, recipes, strict=True):
        total = sum(recipe.weights.values())
        scale = min(1.0, LARGEST_SUM / total)
        weights = {name: weight * scale for name, weight in recipe.weights.items()}
        nearness = _weighted(weights, near)
        if recipe.method == "score":
            own[:] = _rounded(nearness, -DECIMALS)
            continue
        # Score first, nearness where scores are equal: the one in the upper bits, the other in those that are left.
        most = total * scale * DECIMALS / (recipe.rrf_k + 1)
        free = 62 - int(np.ceil(np.log2(most + 2)))
        scores = _weighted(weights, {name: reciprocal[name, recipe.rrf_k] for name in weights})
        own[:] = _rounded(scores, -DECIMALS)
        own <<= free
        own += _rounded(nearness, -(2.0**free - 1) / (total * scale)).astype(np.int64)
    return keys


def _ranks(distances: NDArray[np.intp], bits: int) -> NDArray[np.float64]:
    """Rank of each distance 0 ... bits among these, equal ones sharing their mean rank, as ``fusion.shared_ranks``."""
    counted = np.bincount(distances, minlength=bits + 1)
    ranks: NDArray[np.float64] = np.cumsum(counted) - (counted - 1) / 2
    return ranks


def _weighted(weights: Mapping[str, float], terms: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Sum of weight times term."""
    (first, weight), *rest = weights.items()
    found = weight * terms[first]
    part = np.empty_like(found)
    for name, weight in rest:
        found += np.multiply(terms[name], weight, out=part)
    return found


def _rounded(values: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """``values`` times ``scale``, to the nearest whole number; ``values`` is used up."""
    values *= scale
    return np.rint(values, out=values)


KS = (1, 10, 100)
RADIUS = 2
"""Hamming radius of the precision that papers on deep hashing report."""
FUSED = "fused:"
"""Before the name of a fused ranking: a granularity may have the same name."""
FLOAT = "float:"
"""Before the name of a granularity: the ranking by its features."""
RESAMPLES = 1000
"""Of the queries, for an interval."""
SMOOTHED = "smoothed"
"""Name of the ranking by features with query expansion and database-side augmentation."""
EXPANSION = 10
EXPANSION_POWER = 3
"""Neighbours, and the power of their cosine, in both."""
CURVE_POINTS = 40
_BLOCK = 256
PAIRS = 1 << 20
"""Pairs of query and row in one block: about 10 MB for each ranking that is at work on it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How good one ranking is.

    Attributes:
        ranking: its metrics, for classes.
        map_group: mAP where images of the same group are relevant; None where there are no groups.
    """

    ranking: RankingScores
    map_group: float | None

    @property
    def headline(self) -> NDArray[np.float64]:
        """The average precisions (q,) that the protocol reports: up to its rank, or over the whole ranking."""
        up_to_k = self.ranking.average_precisions_at_k
        return self.ranking.average_precisions if up_to_k is None else up_to_k

    def as_dict(self, ks: Sequence[int]) -> dict[str, Any]:
        """The metrics, ready for JSON, at these ranks; the names of keys are part of the stable form."""
        ranking = self.ranking
        found: dict[str, Any] = {
            "map": _number(ranking.map),
            "map_interval": [_number(end) for end in interval(ranking.average_precisions)],
            "map_tie_end": _number(ranking.map_tie_end),
            "map_at_r": _number(ranking.map_at_r),
        }
        if ranking.map_at_k is not None and ranking.average_precisions_at_k is not None:
            found["map_at_k"] = _number(ranking.map_at_k)
            found["map_at_k_interval"] = [_number(end) for end in interval(ranking.average_precisions_at_k)]
        if self.map_group is not None:
            found["map_group"] = _number(self.map_group)
        for name, values in (("precision", ranking.precision), ("recall", ranking.recall), ("ndcg", ranking.ndcg)):
            found[name] = {str(k): _number(values[k]) for k in sorted(set(ks))}
        if RADIUS in ranking.precision_within:
            found[f"precision_radius_{RADIUS}"] = _number(ranking.precision_within[RADIUS])
        return found


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean of (q,) values, one a query; always the same.

    Percentiles of ``RESAMPLES`` bootstrap means (Efron 1979). nan are left out; without others both ends are nan.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    random = np.random.default_rng(0)
    means = [known[random.integers(0, len(known), len(known))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def compare(codes: Mapping[str, Scores], floats: Mapping[str, Scores]) -> dict[str, Any]:
    """Fused codes against the better features, query by query.

    Args:
        codes: from ``score_codes``.
        floats: name -> scores of features.

    Returns:
        ``{"codes", "floats", "map", "interval", "equal"}``: the fusion and the features with the larger mAP (up to k,
        where that is asked for), the difference of the two, its 95 % interval, and whether that holds 0.
    """
    fused = {name.removeprefix(FUSED): own for name, own in codes.items() if name in {f"{FUSED}rank", f"{FUSED}score"}}
    ours = max(fused, key=lambda name: float(np.nanmean(fused[name].headline)))
    theirs = max(floats, key=lambda name: float(np.nanmean(floats[name].headline)))
    difference = fused[ours].headline - floats[theirs].headline
    low, high = interval(difference)
    return {
        "codes": ours, "floats": theirs, "map": _number(float(np.nanmean(difference))),
        "interval": [_number(low), _number(high)], "equal": low <= 0 <= high,
    }  # fmt: skip


def _number(value: float) -> float | None:
    """Six decimals; nan, which JSON does not have, is None."""
    return None if np.isnan(value) else round(value, 6)


def curve_ranks(database: int) -> tuple[int, ...]:
    """Ranks at which curves of precision and recall are sampled: from 1 to all, evenly on a logarithmic scale."""
    return tuple(int(k) for k in np.unique(np.geomspace(1, database, CURVE_POINTS).astype(int)))


def curves_of(scores: Mapping[str, Scores], ranks: Sequence[int]) -> dict[str, Any]:
    """Curves of precision and recall, ready for JSON.

    Args:
        scores: name -> scores, at these ranks at least.
        ranks: ascending.

    Returns:
        ``{"ranks": [k ...], "by_rank": {name: {"precision": [...], "recall": [...]}}, "by_radius": {name: {"precision":
        [...], "recall": [...]}}}``: by rank at each of ``ranks``, by radius within the Hamming distances 0, 1 ..., of
        the rankings that have them.
    """

    def pair(precision: Mapping[int, float], recall: Mapping[int, float], at: Sequence[int]) -> dict[str, Any]:
        return {"precision": [_number(precision[k]) for k in at], "recall": [_number(recall[k]) for k in at]}

    rankings = {name: own.ranking for name, own in scores.items()}
    return {
        "ranks": list(ranks),
        "by_rank": {name: pair(own.precision, own.recall, ranks) for name, own in rankings.items()},
        "by_radius": {
            name: pair(own.precision_within, own.recall_within, sorted(own.precision_within))
            for name, own in rankings.items() if own.precision_within
        },
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """What to compute for every ranking, and how.

    Attributes:
        ks: ranks of P@k, R@k and NDCG@k.
        map_at: the last rank of ``map_at_k``; None: without.
        radii: names of the rankings by Hamming distance -> the largest radius of their precision and recall.
        groups: also compute mAP where grades 1 and 2 are relevant.
        threads: blocks scored in parallel; default: one a core.
        progress: called after each block.
    """

    ks: Sequence[int] = KS
    map_at: int | None = None
    radii: Mapping[str, int] = field(default_factory=dict)
    groups: bool = False
    threads: int | None = None
    progress: Callable[[Progress], None] | None = None


def score_all(
    shape: tuple[int, int],
    rankings_of: RankingsOf,
    relevance_of: RelevanceOf,
    stage: str,
    options: ScoringOptions = ScoringOptions(),
) -> dict[str, Scores]:
    """Score every ranking of every query.

    Args:
        shape: number of queries, and of rows in the database.
        rankings_of: makes the rankings of a block of queries.
        relevance_of: slice of the queries -> (q, n) uint8 as ``metrics.relevance`` makes it.
        stage: name of the work in ``Progress`` records.
        options: metrics and threads.

    Returns:
        Name -> scores, in the order of ``rankings_of``. Queries without a row of their class count nowhere; their
        average precision is nan.
    """
    count, rows = shape
    step = max(1, PAIRS // max(1, rows))
    slices = [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def block(part: slice) -> dict[str, tuple[RankingScores, float]]:
        grades = relevance_of(part)
        counted = (grades == SAME_CLASS).any(axis=1)
        # What would count nowhere is no query: then every mean of a block is over the same queries.
        found = {}
        for name, distances in rankings_of(part, grades):
            kept = ((distances, grades),) if counted.all() else ((distances[counted], grades[counted]),)
            scores = score_rankings(
                kept, ks=options.ks, radius=options.radii.get(name), relevant_from=SAME_CLASS, map_at=options.map_at
            )
            by_group = score_rankings(kept, ks=(), relevant_from=SAME_GROUP).map if options.groups else float("nan")
            found[name] = _spread(scores, counted), by_group
        return found

    parts: dict[str, list[tuple[RankingScores, float]]] = defaultdict(list)
    with ThreadPoolExecutor(options.threads or os.cpu_count(), "mgm-score") as pool:
        for part, found in zip(slices, pool.map(block, slices), strict=True):
            for name, scores in found.items():
                parts[name].append(scores)
            if options.progress:
                options.progress(Progress(stage, part.stop, count, 0))
    return {name: _joined(found, groups=options.groups) for name, found in parts.items()}


def _spread(scores: RankingScores, counted: NDArray[np.bool_]) -> RankingScores:
    def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
        precisions = np.full(len(counted), np.nan)
        precisions[counted] = values
        return precisions

    up_to_k = scores.average_precisions_at_k
    return replace(
        scores,
        average_precisions=spread(scores.average_precisions),
        average_precisions_at_k=None if up_to_k is None else spread(up_to_k),
    )


def _joined(parts: Sequence[tuple[RankingScores, float]], *, groups: bool) -> Scores:
    """The means over all blocks."""
    counted = [(scores, by_group) for scores, by_group in parts if scores.queries]
    share = np.array([scores.queries for scores, _ in counted], np.float64)
    share /= max(1.0, share.sum())

    def mean(values: Sequence[float]) -> float:
        return float(share @ np.array(values)) if counted else float("nan")

    def means(pick: Callable[[RankingScores], Mapping[int, float]]) -> dict[int, float]:
        return {k: mean([pick(scores)[k] for scores, _ in counted]) for k in pick(parts[0][0])}

    up_to_k = [scores.average_precisions_at_k for scores, _ in parts]
    known = [values for values in up_to_k if values is not None]
    ranking = RankingScores(
        queries=sum(scores.queries for scores, _ in counted),
        map=mean([scores.map for scores, _ in counted]),
        map_tie_end=mean([scores.map_tie_end for scores, _ in counted]),
        map_at_k=mean([scores.map_at_k or 0.0 for scores, _ in counted]) if known else None,
        map_at_r=mean([scores.map_at_r for scores, _ in counted]),
        precision=means(lambda scores: scores.precision),
        recall=means(lambda scores: scores.recall),
        ndcg=means(lambda scores: scores.ndcg),
        precision_within=means(lambda scores: scores.precision_within),
        recall_within=means(lambda scores: scores.recall_within),
        average_precisions=np.concatenate([scores.average_precisions for scores, _ in parts]),
        average_precisions_at_k=np.concatenate(known) if known else None,
    )
    return Scores(ranking, mean([by_group for _, by_group in counted]) if groups else None)


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
    scaled = {name: unit(values - centres[name]) for name, values in database.items()}

    def rankings(part: slice, _: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[Any]]]:
        for name, rows in scaled.items():
            yield name, -(unit(queries[name][part] - centres[name]) @ rows.T)

    return rankings


def smoothed_rankings(queries: NDArray[np.float32], database: NDArray[np.float32]) -> RankingsOf:
    """Ranking by features that are averaged over neighbours (``expanded``), which is what heads with diffusion do, too.

    Database-side augmentation, then alpha query expansion, both over the ``EXPANSION`` nearest rows. A query that is a
    row of the database is not its own neighbour.

    Args:
        queries: (q, d).
        database: (n, d); the centre of both is that of these.
    """
    centre = database.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows = unit(database - centre)
    augmented = np.empty_like(rows)
    for start in range(0, len(rows), _BLOCK):
        part = np.arange(start, min(start + _BLOCK, len(rows)))
        similar = rows[part] @ rows.T
        similar[np.arange(len(part)), part] = -1
        augmented[part] = expanded(rows[part], similar, rows, EXPANSION, EXPANSION_POWER)

    def rankings(part: slice, grades: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[Any]]]:
        own = unit(queries[part] - centre)
        similar = own @ augmented.T
        similar[grades == NOT_A_CANDIDATE] = -1
        yield SMOOTHED, -(expanded(own, similar, augmented, EXPANSION, EXPANSION_POWER) @ augmented.T)

    return rankings


def graded(split: Split) -> RelevanceOf:
    """Relevance of the database to slices of the queries; an image is no candidate for itself."""
    images = split.images
    if images.classes is None:
        raise LabelError("there are no labels to evaluate by; label the images by folders or with a table")
    classes = _labels(images.classes)
    has_groups = images.groups is not None and images.groups is not images.classes
    groups = _labels(images.groups) if has_groups and images.groups is not None else None
    database, queries = split.database, split.queries
    of_database = classes[database], None if groups is None else groups[database]
    column = np.searchsorted(database, queries)
    own = (column < len(database)) & (database[np.minimum(column, len(database) - 1)] == queries)

    def relevance_of(part: slice) -> NDArray[np.uint8]:
        rows = queries[part]
        grades = relevance(classes[rows], of_database[0], None if groups is None else groups[rows], of_database[1])
        rows = np.flatnonzero(own[part])
        grades[rows, column[part][rows]] = NOT_A_CANDIDATE
        return grades

    return relevance_of


def _labels(level: Level) -> NDArray[Any]:
    return level.one_hot() if level.several else level.ids()


def with_relevant_images(split: Split) -> tuple[Split, int]:
    """The queries that have an image of their class in the database, and the number of the others."""
    relevance_of = graded(split)
    found = np.concatenate([
        (relevance_of(slice(row, row + 64)) == SAME_CLASS).any(axis=1) for row in range(0, len(split.queries), 64)
    ])  # fmt: skip
    if not found.any():
        raise LabelError(
            "no query has another image of its class in the database; expected classes of two or more images, and "
            "the same names of classes on both sides"
        )
    return replace(split, queries=split.queries[found]), int((~found).sum())


def score_codes(
    queries: Mapping[str, Codes],
    database: Mapping[str, Codes],
    relevance: NDArray[np.uint8] | RelevanceOf,
    recipes: Mapping[str, Recipe],
    options: ScoringOptions = ScoringOptions(),
) -> dict[str, Scores]:
    """Score the rankings of codes: each granularity on its own, and fused.

    Args:
        queries: granularity -> (q, bits / 8) uint8.
        database: granularity -> (n, bits / 8) uint8.
        relevance: (q, n) uint8 of 0 (not relevant), 1 (same group only), 2 (relevant) and 255 (no candidate, such as
            the query itself), or a function that makes it for a slice of the queries, which takes less memory.
            Queries without a 2 count nowhere.
        recipes: name -> fusion.
        options: metrics and threads.

    Returns:
        Name of the ranking -> its scores; fused ones as ``fused:NAME``.

    Raises:
        ValueError: the granularities, lengths or shapes do not fit each other.
    """
    sizes = [{len(codes) for codes in side.values()} for side in (queries, database)]
    if set(queries) != set(database) or any(len(size) != 1 for size in sizes):
        raise ValueError(
            f"queries have {_shapes(queries)}, the database has {_shapes(database)}; expected the same granularities, "
            "and in each side the same number of rows"
        )
    unknown = sorted({name for recipe in recipes.values() for name in recipe.weights} - set(database))
    if unknown or not all(recipe.weights for recipe in recipes.values()):
        raise ValueError(f"weights for {', '.join(unknown) or 'nothing'}, expected some of {', '.join(database)}")
    count, rows = sizes[0].pop(), sizes[1].pop()
    if isinstance(relevance, np.ndarray):
        if relevance.shape != (count, rows):
            raise ValueError(f"relevance has shape {relevance.shape}, expected {(count, rows)}: queries, database")
        relevance_of: RelevanceOf = relevance.__getitem__
    else:
        relevance_of = relevance
    if not count or not rows:
        raise ValueError(f"there are {count} queries and {rows} rows in the database, expected at least one of each")
    # Recipes that are the same, such as ``rank`` and ``balanced`` with equal weights, are scored once.
    same = {name: next(first for first, own in recipes.items() if own == recipe) for name, recipe in recipes.items()}
    different = {name: recipes[name] for name in same.values()}
    scores = score_all(
        (count, rows), code_rankings(queries, database, different), relevance_of, "scoring codes",
        options if options.radii else replace(options, radii=dict.fromkeys(database, RADIUS)),
    )  # fmt: skip
    return {name: scores[name] for name in database} | {FUSED + name: scores[FUSED + same[name]] for name in recipes}


def code_metrics(scores: Mapping[str, Scores], database: Mapping[str, Codes], ks: Sequence[int]) -> dict[str, Any]:
    """The split ``granularities``, ``fused`` and ``collisions`` of the stable form."""
    found = health_metrics(database)
    for name, own in found["granularities"].items():
        own |= scores[name].as_dict(ks)
    fused = {name.removeprefix(FUSED): own.as_dict(ks) for name, own in scores.items() if name.startswith(FUSED)}
    return found | {"fused": fused}


def health_metrics(database: Mapping[str, Codes]) -> dict[str, Any]:
    """``{"granularities": {name: {"bits", "health"}}, "collisions": {name: share, "joint": share}}``."""
    granularities: dict[str, dict[str, Any]] = {}
    collisions: dict[str, float] = {}
    for name, codes in database.items():
        measures = {measure: round(value, 6) for measure, value in asdict(health(codes)).items()}
        granularities[name] = {"bits": measures.pop("bits"), "health": measures}
        collisions[name] = measures["collisions"]
    collisions["joint"] = round(joint_collisions(database), 6)
    return {"granularities": granularities, "collisions": collisions}


def _shapes(codes: Mapping[str, Codes]) -> str:
    return ", ".join(f"{name} {values.shape}" for name, values in codes.items()) or "nothing"
