"""``evaluate_codes``: the figures of codes that are there already, from any source."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.code_health import health, joint_collisions
from mg_milvus.evaluation.rankings import Recipe
from mg_milvus.evaluation.scoring import FUSED, KS, code_rankings, score_all, told_as
from mg_milvus.fusion import DEFAULT_RRF_K

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.evaluation.scoring import RelevanceOf, Scores
    from mg_milvus.hits import Progress


def evaluate_codes(
    queries: Mapping[str, Codes],
    database: Mapping[str, Codes],
    relevance: NDArray[np.uint8] | RelevanceOf,
    *,
    weights: Mapping[str, float] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    rrf_k: int = DEFAULT_RRF_K,
    ks: Sequence[int] = KS,
    groups: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Score the rankings of codes: each granularity on its own, and fused.

    Args:
        queries: granularity -> (q, bits / 8) uint8.
        database: granularity -> (n, bits / 8) uint8.
        relevance: (q, n) uint8 of 0 (not relevant), 1 (same group only), 2 (relevant) and 255 (no candidate, such as
            the query itself), or a function that makes it for a slice of the queries, which takes less memory;
            ``metrics.relevance`` makes it from labels. Queries without a 2 count nowhere.
        weights: granularity -> weight in ``rank`` and ``score`` fusion; default: all 1.
        recipes: other fusions instead of these two.
        rrf_k: constant of rank fusion.
        ks: ranks of P@k, R@k and NDCG@k.
        groups: also ``map_group``, where grades 1 and 2 are relevant.
        threads: default: one a core.
        progress: called after each block.

    Returns:
        ``{"queries", "database", "granularities": {name: {"bits", "health", "map", ...}}, "fused": {name: {"map",
        ...}}, "collisions": {name: share, "joint": share}}``; see ``metrics.RankingScores`` for the figures and for how
        ties count, ``code_health`` for the health of the database's codes.

    Raises:
        ValueError: the granularities, lengths or shapes do not fit each other.
    """
    if recipes is None:
        used = {name: weight for name, weight in (weights or dict.fromkeys(database, 1.0)).items() if weight > 0}
        recipes = {"rank": Recipe("rank", used, rrf_k), "score": Recipe("score", used, rrf_k)}
    scores = score_codes(
        queries, database, relevance, recipes=recipes, ks=ks, groups=groups, threads=threads, progress=progress
    )
    asked = next(iter(scores.values())).ranking.queries
    return {"queries": asked, "database": len(next(iter(database.values())))} | code_figures(scores, database, ks)


def score_codes(
    queries: Mapping[str, Codes],
    database: Mapping[str, Codes],
    relevance: NDArray[np.uint8] | RelevanceOf,
    *,
    recipes: Mapping[str, Recipe],
    ks: Sequence[int] = KS,
    groups: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Scores]:
    """The scores by name of the ranking, fused ones as ``fused:NAME``; arguments as in ``evaluate_codes``."""
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
        count, rows, code_rankings(queries, database, different), relevance_of, ks=ks, with_radius=frozenset(database),
        groups=groups, threads=threads, told=told_as("scoring codes", count, progress),
    )  # fmt: skip
    return {name: scores[name] for name in database} | {FUSED + name: scores[FUSED + same[name]] for name in recipes}


def code_figures(scores: Mapping[str, Scores], database: Mapping[str, Codes], ks: Sequence[int]) -> dict[str, Any]:
    """The parts ``granularities``, ``fused`` and ``collisions`` of the stable form."""
    found = health_figures(database)
    for name, own in found["granularities"].items():
        own |= scores[name].as_dict(ks)
    fused = {name.removeprefix(FUSED): own.as_dict(ks) for name, own in scores.items() if name.startswith(FUSED)}
    return found | {"fused": fused}


def health_figures(database: Mapping[str, Codes]) -> dict[str, Any]:
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
