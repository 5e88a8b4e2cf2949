"""Fused orders by tables against ``fusion.fuse``, and figures of codes against scikit-learn and brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, ndcg_score

from mg_milvus.codes import hamming
from mg_milvus.evaluation import scoring
from mg_milvus.evaluation.metrics import RankingScores
from mg_milvus.evaluation.scoring import (
    Recipe,
    Scores,
    ScoringOptions,
    code_metrics,
    compare,
    curves_of,
    fused_keys,
    health_metrics,
    interval,
    recipes_of,
    score_codes,
    smoothed_rankings,
)
from mg_milvus.evaluation.tune import expected_average_precision
from mg_milvus.schema.models import PROFILES, Schema
from mg_milvus.search.fusion import Fusion, fuse

BITS = {"coarse": 16, "mid": 32, "fine": 64}
RECIPES = (
    Recipe("rank", {"coarse": 1.0, "mid": 1.0, "fine": 1.0}),
    Recipe("score", {"coarse": 1.0, "mid": 1.0, "fine": 1.0}),
    Recipe("rank", {"mid": 0.5, "fine": 2.0}, rrf_k=1),
    Recipe("score", {"coarse": 3.0, "fine": 0.25}),
    Recipe("rank", {"coarse": 1000.0, "mid": 700.0}, rrf_k=5),
)


def order_of(keys: NDArray[np.int64], ids: list[str]) -> list[int]:
    return sorted(range(len(ids)), key=lambda row: (keys[row], ids[row]))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), spread=st.integers(1, 16), seed=st.integers(0, 10_000))
def test_keys_order_rows_as_fuse_does(rows: int, spread: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    distances = {name: random.integers(0, spread + 1, rows) for name in BITS}
    ids = [f"{i:03}" for i in random.permutation(rows)]
    for recipe, keys in zip(RECIPES, fused_keys(distances, BITS, RECIPES), strict=True):
        fused = fuse(
            ids, distances, bits=BITS, weights=recipe.weights, fusion=Fusion(recipe.method, recipe.rrf_k)
        )  # fmt: skip
        assert order_of(keys, ids) == fused.order.tolist()


def test_equal_scores_are_ordered_by_nearness_and_nothing_else_ties() -> None:
    # Rows 0 and 1 swap ranks 1 and 2, so their scores are equal; row 1 is 3/16 away in all, row 0 8/32.
    distances = {"coarse": np.array([0, 3, 9]), "mid": np.array([8, 0, 30])}
    keys = fused_keys(distances, BITS, [Recipe("rank", {"coarse": 1.0, "mid": 1.0})])[0]
    assert keys[1] < keys[0] < keys[2]
    same = {"coarse": np.array([4, 4, 1]), "mid": np.array([7, 7, 9])}
    keys = fused_keys(same, BITS, [Recipe("rank", {"coarse": 1.0, "mid": 1.0})])[0]
    assert keys[0] == keys[1] != keys[2]


def test_rows_that_are_no_candidates_do_not_push_others_down() -> None:
    random = np.random.default_rng(3)
    distances = {name: random.integers(0, 9, 30) for name in BITS}
    candidates = np.ones(30, bool)
    candidates[[4, 17]] = False
    ids = [f"{i:03}" for i in range(30)]
    without = {name: values[candidates] for name, values in distances.items()}
    left = [key for key, kept in zip(ids, candidates, strict=True) if kept]
    for recipe, keys in zip(RECIPES, fused_keys(distances, BITS, RECIPES, candidates), strict=True):
        fused = fuse(left, without, bits=BITS, weights=recipe.weights, fusion=Fusion(recipe.method, recipe.rrf_k))
        assert order_of(keys[candidates], left) == fused.order.tolist()


def test_the_recipes_of_a_schema_are_both_fusions_and_every_profile() -> None:
    schema = Schema.from_yaml(
        "granularities: [{name: coarse, bits: 64, weight: 2.0}, {name: own, bits: 64, weight: 0.5}]\n"
        "fusion: {rrf_k: 7}\n"
    )
    recipes = recipes_of(schema)
    assert list(recipes) == ["rank", "score", *PROFILES]
    assert recipes["rank"] == Recipe("rank", {"coarse": 2.0, "own": 0.5}, 7)
    assert recipes["score"] == Recipe("score", {"coarse": 2.0, "own": 0.5}, 7)
    assert recipes["category"] == Recipe("rank", {"coarse": 2.5, "own": 0.5}, 7)


def codes_of(count: int, seed: int, classes: NDArray[np.int64]) -> dict[str, NDArray[np.uint8]]:
    """Codes of which those of a class are alike."""
    random, centres = np.random.default_rng(seed), np.random.default_rng(99)
    found = {}
    for name, bits in BITS.items():
        middle = centres.random((classes.max() + 1, bits)) < 0.5
        found[name] = np.packbits(middle[classes] ^ (random.random((count, bits)) < 0.25), axis=1)
    return found


@pytest.fixture
def asked() -> tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint8]], NDArray[np.uint8]]:
    """Codes of 20 queries and 90 rows, and their grades by 6 classes in 3 groups; row 5 is no candidate for query 2."""
    query_classes, classes = np.arange(20) % 6, np.arange(90) % 6
    grades = np.where(
        query_classes[:, None] == classes, 2, np.where(query_classes[:, None] // 2 == classes // 2, 1, 0)
    ).astype(np.uint8)
    grades[2, 5] = 255
    return codes_of(20, 1, query_classes), codes_of(90, 2, classes), grades


def brute(
    queries: dict[str, NDArray[np.uint8]],
    database: dict[str, NDArray[np.uint8]],
    grades: NDArray[np.uint8],
    recipe: Recipe,
) -> tuple[float, float, float]:
    """mAP, P@10 and NDCG@10 of a fused ranking: ``fuse`` for each query, scores as ranks, ties by scikit-learn."""
    precisions, at_ten, gains = [], [], []
    for row in range(len(grades)):
        kept = grades[row] != 255
        distances = {name: hamming(queries[name][row : row + 1], codes[kept])[0] for name, codes in database.items()}
        ids = [f"{i:03}" for i in range(kept.sum())]
        fused = fuse(ids, distances, bits=BITS, weights=recipe.weights, fusion=Fusion(recipe.method, recipe.rrf_k))
        nearness = sum(w * (1 - distances[name] / BITS[name]) for name, w in sorted(recipe.weights.items()))
        standing = list(zip(np.round(fused.scores, 12), np.round(nearness, 12), strict=True))
        places = {pair: place for place, pair in enumerate(sorted(set(standing)))}
        score = np.array([places[pair] for pair in standing])
        own = grades[row][kept]
        precisions.append(average_precision_score(own == 2, score))
        gains.append(ndcg_score([np.array([0, 1, 3])[own]], [score], k=10))
        # Expected relevant rows among ten: whole ties, and the share of the one that is cut.
        found, free = 0.0, 10
        for value in sorted(set(score), reverse=True):
            tie = own[score == value] == 2
            found += tie.mean() * min(free, len(tie))
            free -= min(free, len(tie))
        at_ten.append(found / 10)
    return float(np.mean(precisions)), float(np.mean(at_ten)), float(np.mean(gains))


def test_figures_are_those_of_brute_force_however_the_queries_are_cut_into_blocks(
    asked: tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint8]], NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries, database, grades = asked
    recipes = {f"recipe {i}": recipe for i, recipe in enumerate(RECIPES)}
    options = ScoringOptions(ks=(1, 10), map_at=20, groups=True)
    whole = code_metrics(score_codes(queries, database, grades, recipes, options), database, (1, 10))
    singles = {name: (Recipe("score", {name: 1.0}), whole["granularities"][name]) for name in BITS}
    fused = {name: (recipe, whole["fused"][name]) for name, recipe in recipes.items()}
    for recipe, figures in (singles | fused).values():
        expected = brute(queries, database, grades, recipe)
        assert (figures["map_tie_end"], figures["precision"]["10"], figures["ndcg"]["10"]) == pytest.approx(
            expected, abs=1e-6
        )
    assert whole["granularities"]["mid"]["bits"] == 32

    monkeypatch.setattr(scoring, "PAIRS", 3 * 90)
    scores = score_codes(queries, database, grades.__getitem__, recipes, replace(options, threads=2))
    assert close(code_metrics(scores, database, (1, 10)), whole)


def test_curves_are_the_metrics_at_every_rank_and_radius(
    asked: tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    queries, database, grades = asked
    options = ScoringOptions(ks=(1, 5, 90), radii={"mid": 32})
    scores = score_codes(queries, database, grades, {"rank": RECIPES[0]}, options)
    curves = curves_of(scores, (1, 5, 90))
    assert (curves["ranks"], list(curves["by_radius"])) == ([1, 5, 90], ["mid"])
    assert list(curves["by_rank"]) == list(scores)
    candidates, relevant = (grades != 255).sum(axis=1), (grades == 2).sum(axis=1)
    # All rows, by rank or by radius: precision is the share of relevant ones, recall is whole.
    assert curves["by_rank"]["mid"]["recall"][-1] == curves["by_radius"]["mid"]["recall"][-1] == 1
    assert curves["by_rank"]["mid"]["precision"][-1] == pytest.approx(relevant.mean() / 90, abs=1e-6)
    assert curves["by_radius"]["mid"]["precision"][-1] == pytest.approx((relevant / candidates).mean(), abs=1e-6)
    assert len(curves["by_radius"]["mid"]["precision"]) == 33


def close(left: object, right: object) -> bool:
    """Equal JSON, numbers to six decimals."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    return left == pytest.approx(right, abs=2e-6)


def test_group_map_counts_the_whole_group(
    asked: tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    queries, database, grades = asked
    scores = score_codes(queries, database, grades, {"rank": RECIPES[0]}, ScoringOptions(groups=True))
    distances = hamming(queries["mid"], database["mid"])
    expected = [
        expected_average_precision(row[own != 255], 2 * (own[own != 255] > 0).astype(np.uint8))
        for row, own in zip(distances, grades, strict=True)
    ]
    assert scores["mid"].map_group == pytest.approx(np.mean(expected))
    assert list(scores["mid"].ranking.precision_within) == [0, 1, 2]
    assert scores["fused:rank"].ranking.precision_within == {}


def test_queries_with_nothing_to_find_count_nowhere(
    asked: tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    queries, database, grades = asked
    grades[[0, 7]] = np.minimum(grades[[0, 7]], 1)
    scores = score_codes(queries, database, grades, {"rank": RECIPES[0]})
    rest = np.setdiff1d(np.arange(20), [0, 7])
    without = score_codes(
        {name: codes[rest] for name, codes in queries.items()}, database, grades[rest], {"rank": RECIPES[0]}
    )
    for name, found in scores.items():
        assert found.ranking.queries == 18
        assert np.flatnonzero(np.isnan(found.ranking.average_precisions)).tolist() == [0, 7]
        assert close(found.as_dict((1, 10)), without[name].as_dict((1, 10)))


def test_what_does_not_fit_together_is_refused(
    asked: tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    queries, database, grades = asked
    recipes = {"rank": RECIPES[0]}
    with pytest.raises(ValueError, match="relevance has shape"):
        score_codes(queries, database, grades[:, 1:], recipes)
    with pytest.raises(ValueError, match="weights for hue"):
        score_codes(queries, database, grades, {"rank": Recipe("rank", {"hue": 1.0})})
    with pytest.raises(ValueError, match="expected the same granularities"):
        score_codes({"mid": queries["mid"]}, database, grades, recipes)
    with pytest.raises(ValueError, match="0 queries"):
        score_codes({name: codes[:0] for name, codes in queries.items()}, database, grades[:0], recipes)


def test_collisions_are_counted_per_granularity_and_jointly() -> None:
    database = {
        "coarse": np.array([[1], [1], [1], [2]], np.uint8),
        "fine": np.array([[5], [5], [6], [7]], np.uint8),
    }
    figures = health_metrics(database)
    assert figures["collisions"] == {"coarse": 0.75, "fine": 0.5, "joint": 0.5}
    assert figures["granularities"]["fine"]["bits"] == 8
    assert figures["granularities"]["fine"]["health"]["collisions"] == 0.5


def test_an_interval_is_that_of_the_mean_and_leaves_out_what_is_unknown() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.2, 400)
    low, high = interval(np.append(values, np.nan))
    half = 1.96 * values.std() / 20  # the normal approximation of the mean of 400
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    assert interval(values) == (low, high)
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_smoothed_features_are_sums_over_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    rows = random.standard_normal((60, 8)).astype(np.float32)
    grades = np.zeros((60, 60), np.uint8)
    np.fill_diagonal(grades, 255)
    monkeypatch.setattr(scoring, "_BLOCK", 7)
    name, found = next(smoothed_rankings(rows, rows)(slice(0, 60), grades))
    assert name == "smoothed"

    def unit(row: NDArray[np.float64]) -> NDArray[np.float64]:
        return row / np.linalg.norm(row)

    centred = [unit(row) for row in rows.astype(np.float64) - rows.mean(axis=0)]

    def expanded(own: NDArray[np.float64], others: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        near = sorted(others, key=lambda other: -(own @ other))[:10]
        return unit(own + sum(max(own @ other, 0) ** 3 * other for other in near))

    augmented = [expanded(own, centred[:i] + centred[i + 1 :]) for i, own in enumerate(centred)]
    queries = [expanded(own, augmented[:i] + augmented[i + 1 :]) for i, own in enumerate(centred)]
    assert -found == pytest.approx(np.array(queries) @ np.array(augmented).T, abs=1e-5)


def test_a_difference_that_may_be_chance_is_called_equal() -> None:
    def scores(values: NDArray[np.float64]) -> Scores:
        mean = float(values.mean())
        ranking = RankingScores(len(values), mean, mean, None, mean, {}, {}, {}, {}, {}, values, None)
        return Scores(ranking, None)

    random = np.random.default_rng(1)
    base, noise = random.random(300), random.normal(0, 0.1, 300)
    floats = {"float": scores(base - 0.2), "float_smoothed": scores(base)}
    better = compare({"mid": scores(base + 1), "fused:rank": scores(base + 0.05 + noise)}, floats)
    assert (better["codes"], better["floats"], better["equal"]) == ("rank", "float_smoothed", False)
    assert better["map"] == pytest.approx(0.05 + noise.mean(), abs=1e-6)
    assert compare({"fused:rank": scores(base - noise.mean() + noise)}, floats)["equal"]
