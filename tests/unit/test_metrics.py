"""Figures of rankings against scikit-learn, every order inside the ties, and values worked out by hand."""

from __future__ import annotations

from itertools import groupby, permutations, product
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from mg_milvus.codes import pack
from mg_milvus.evaluation import metrics
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, RankingScores, code_blocks, relevance, score_rankings


def score(distances: object, grades: object, dtype: str = "int64", **settings: object) -> RankingScores:
    block = np.atleast_2d(np.array(distances, dtype)), np.atleast_2d(np.array(grades, np.uint8))
    return score_rankings([block], **settings)


def numbers(scores: RankingScores) -> list[float]:
    """Every figure of a score, in one list."""
    within = [*scores.precision_within.values(), *scores.recall_within.values()]
    cuts = [*scores.precision.values(), *scores.recall.values(), *scores.ndcg.values()]
    up_to_k = [] if scores.map_at_k is None else [scores.map_at_k, *scores.average_precisions_at_k]
    alone = [scores.queries, scores.map, scores.map_tie_end, scores.map_at_r]
    return [*alone, *cuts, *within, *up_to_k, *scores.average_precisions]


def random_block(seed: int, queries: int = 6, rows: int = 200, values: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grades = rng.choice(np.array([0, 1, 2], np.uint8), (queries, rows), p=[0.7, 0.2, 0.1])
    return rng.integers(0, values, (queries, rows)), grades


def orders(distances: list[int], grades: list[int]) -> list[list[int]]:
    """The grades by rank, for every order inside the ties."""
    rows = sorted(zip(distances, grades, strict=True))
    ties_in_order = [[grade for _, grade in tie] for _, tie in groupby(rows, key=lambda row: row[0])]
    choices = product(*(permutations(tie) for tie in ties_in_order))
    return [[grade for tie in choice for grade in tie] for choice in choices]


def at_k(ranked: list[int], k: int) -> float:
    hits = [grade > 0 for grade in ranked[:k]]
    return sum(hit * sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits)) / max(1, sum(hits))


def at_r(ranked: list[int]) -> float:
    number = sum(grade > 0 for grade in ranked)
    hits = [grade > 0 for grade in ranked[:number]]
    return sum(hit * sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits)) / number


def average_precision(ranked: list[int]) -> float:
    hits = [grade > 0 for grade in ranked]
    return sum(hit * sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits)) / sum(hits)


def dcg(ranked: list[int], k: int) -> float:
    return sum((2**grade - 1) / log2(rank + 1) for rank, grade in enumerate(ranked[:k], 1))


@pytest.mark.parametrize("values", [3, 20, 5000])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "float64"])
@pytest.mark.parametrize("relevant_from", [1, 2])
def test_average_precision_is_scikit_learns(values: int, dtype: str, relevant_from: int) -> None:
    distances, grades = random_block(1, values=min(values, 250) if dtype == "uint8" else values)
    scores = score(distances, grades, dtype, relevant_from=relevant_from)
    expected = [
        average_precision_score(row >= relevant_from, -near.astype(float))
        for row, near in zip(grades, distances, strict=True)
    ]
    assert scores.map_tie_end == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("values", [3, 20, 5000])
@pytest.mark.parametrize("dtype", ["int64", "float64"])
@pytest.mark.parametrize("relevant_from", [1, 2])
def test_ndcg_is_scikit_learns(values: int, dtype: str, relevant_from: int) -> None:
    distances, grades = random_block(2, values=values)
    scores = score(distances, grades, dtype, ks=(1, 7, 100, 200, 300), relevant_from=relevant_from)
    gains = 2.0**grades - 1
    assert scores.ndcg == pytest.approx({k: ndcg_score(gains, -distances, k=k) for k in (1, 7, 100, 200, 300)})


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6).filter(
        lambda rows: any(grade for _, grade in rows)
    ),
    st.sampled_from(["int64", "float64"]),
)
def test_figures_at_a_rank_are_means_over_every_order(rows: list[tuple[int, int]], dtype: str) -> None:
    distances, grades = [list(column) for column in zip(*rows, strict=True)]
    scores = score(distances, grades, dtype, ks=(1, 2, 3, 8))
    ranked = orders(distances, grades)
    relevant = sum(grade > 0 for grade in grades)
    assert scores.map_at_r == pytest.approx(np.mean([at_r(one) for one in ranked]))
    assert scores.map == pytest.approx(np.mean([average_precision(one) for one in ranked]))
    for k in (1, 2, 3, 8):
        up_to_k = score(distances, grades, dtype, map_at=k).map_at_k
        assert up_to_k == pytest.approx(np.mean([at_k(one, k) for one in ranked]))
        hits = np.mean([sum(grade > 0 for grade in one[:k]) for one in ranked])
        ideal = dcg(sorted(grades, reverse=True), k)
        assert scores.precision[k] == pytest.approx(hits / k)
        assert scores.recall[k] == pytest.approx(hits / relevant)
        assert scores.ndcg[k] == pytest.approx(np.mean([dcg(one, k) for one in ranked]) / ideal)


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_a_tie_by_hand(dtype: str) -> None:
    # One row alone, then four that tie, of which one is relevant; the last row is relevant.
    scores = score([0, 1, 1, 1, 1, 2], [0, 0, 1, 0, 0, 2], dtype, ks=(1, 2, 3, 5, 10))
    assert scores.precision == pytest.approx({1: 0, 2: 0.25 / 2, 3: 0.5 / 3, 5: 1 / 5, 10: 2 / 10})
    assert scores.recall == pytest.approx({1: 0, 2: 0.125, 3: 0.25, 5: 0.5, 10: 1})
    assert scores.map_tie_end == pytest.approx((1 / 5 + 2 / 6) / 2)
    assert scores.map == pytest.approx((np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5]) + 2 / 6) / 2)
    assert scores.average_precisions == pytest.approx([scores.map])
    # R is 2, and the row at rank 2 is the relevant one in one order of four.
    assert scores.map_at_r == pytest.approx(0.25 * (1 / 2) / 2)
    assert scores.ndcg[2] == pytest.approx(0.25 / log2(3) / (3 + 1 / log2(3)))


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_precision_within_a_radius_by_hand(dtype: str) -> None:
    distances = [[0, 2, 2, 3], [3, 4, 5, 6], [2, 9, 9, 9], [0, 1, 2, 3]]
    grades = [[1, 2, 0, 2], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    # The second finds nothing, the third nothing relevant, the fourth has nothing to find and does not count.
    scores = score(distances, grades, dtype, radius=4)
    assert scores.precision_within == pytest.approx({
        0: 1 / 3, 1: 1 / 3, 2: (2 / 3 + 0 + 0) / 3, 3: (3 / 4 + 1 + 0) / 3, 4: (3 / 4 + 1 + 0) / 3,
    })  # fmt: skip
    assert scores.recall_within == pytest.approx({
        0: 1 / 9, 1: 1 / 9, 2: 2 / 9, 3: (1 + 1 / 4) / 3, 4: (1 + 1 / 2) / 3,
    })  # fmt: skip
    # Of the first, only rows of grade 2 are relevant now; the others have none.
    assert score(distances, grades, dtype, radius=2, relevant_from=2).precision_within[2] == pytest.approx(1 / 3)
    assert score(distances, grades, dtype, radius=0).precision_within == pytest.approx({0: 1 / 3})
    assert score(np.add(distances, 5), grades, dtype, radius=2).precision_within == {0: 0, 1: 0, 2: 0}
    assert score(distances, grades, dtype).precision_within == {}


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_a_radius_counts_what_a_plain_count_does(dtype: str) -> None:
    distances, grades = random_block(8, values=12)
    grades[1, 3] = NOT_A_CANDIDATE
    scores = score(distances, grades, dtype, radius=14, relevant_from=2)
    for radius in range(15):
        near = (distances <= radius) & (grades != NOT_A_CANDIDATE)
        hits = (near & (grades == 2)).sum(axis=1)
        assert scores.precision_within[radius] == pytest.approx(np.mean(hits / np.maximum(near.sum(axis=1), 1)))
        assert scores.recall_within[radius] == pytest.approx(np.mean(hits / (grades == 2).sum(axis=1)))


def hashnets_map(distances: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """mAP@k as HashNet's and CSQ's programs compute it, 0 for a query without a relevant row among the first k."""
    precisions = []
    for near, wanted in zip(distances, relevant, strict=True):
        match = wanted[np.argsort(near, kind="stable")[:k]]
        shares = np.cumsum(match) / np.arange(1, len(match) + 1)
        precisions.append((shares * match).sum() / match.sum() if match.any() else 0.0)
    return float(np.mean(precisions))


@pytest.mark.parametrize("dtype", ["int64", "float64"])
@pytest.mark.parametrize("k", [1, 7, 50, 200, 1000])
def test_map_at_k_is_hashnets_where_nothing_ties(k: int, dtype: str) -> None:
    _, grades = random_block(9)
    distances = np.array([np.random.default_rng(row).permutation(200) for row in range(len(grades))])
    found = score(distances, grades, dtype, map_at=k, relevant_from=2)
    assert found.map_at_k == pytest.approx(hashnets_map(distances, grades == 2, k))
    assert found.average_precisions_at_k.mean() == pytest.approx(found.map_at_k)
    if k >= 200:
        assert found.average_precisions_at_k == pytest.approx(found.average_precisions)


def test_map_at_k_inside_a_large_tie_is_the_mean_of_many_orders() -> None:
    random = np.random.default_rng(10)
    distances, relevant = random.integers(0, 4, (1, 600)), random.random((1, 600)) < 0.2
    found = score(distances, relevant, map_at=230).map_at_k
    orders = [random.permutation(600) for _ in range(2000)]
    values = [hashnets_map(distances[:, order], relevant[:, order], 230) for order in orders]
    assert found == pytest.approx(np.mean(values), abs=4 * np.std(values) / 2000**0.5)


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_a_row_that_is_no_candidate_is_as_good_as_absent(dtype: str) -> None:
    distances, grades = random_block(3)
    out = np.arange(len(distances))
    grades[out, out] = NOT_A_CANDIDATE
    distances[out, out] = 0
    without = [np.array([np.delete(row, i) for i, row in enumerate(table)]) for table in (distances, grades)]
    settings = {"ks": (1, 10, 500), "radius": 3, "map_at": 20}
    assert numbers(score(distances, grades, dtype, **settings)) == numbers(score(*without, dtype, **settings))


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_a_query_with_nothing_to_find_counts_in_no_mean(dtype: str) -> None:
    scores = score([[0, 1], [0, 1], [0, 1]], [[0, 1], [0, 0], [255, 255]], dtype, ks=(1,), radius=1)
    assert scores.queries == 3
    assert scores.average_precisions == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    assert (scores.map, scores.precision[1], scores.recall[1], scores.ndcg[1], scores.precision_within[1]) == (
        0.5, 0, 0, 0, 0.5,
    )  # fmt: skip


def test_ndcg_counts_queries_that_have_only_groups() -> None:
    scores = score([[0, 1], [0, 1]], [[2, 0], [0, 1]], ks=(1, 2), relevant_from=2)
    assert scores.average_precisions == pytest.approx([1, np.nan], nan_ok=True)
    assert scores.ndcg == pytest.approx({1: 1 / 2, 2: (1 + 1 / log2(3)) / 2})
    assert (scores.precision, scores.recall) == ({1: 1, 2: 0.5}, {1: 1, 2: 1})


@pytest.mark.parametrize("dtype", ["int64", "float64"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 4)])
def test_nothing_to_find_at_all(shape: tuple[int, int], dtype: str) -> None:
    scores = score(np.zeros(shape), np.zeros(shape), dtype, radius=2)
    assert scores.queries == shape[0]
    assert np.isnan(numbers(scores)[1:]).all()


def test_no_blocks() -> None:
    scores = score_rankings([], ks=())
    assert (scores.queries, scores.precision, len(scores.average_precisions)) == (0, {}, 0)
    assert np.isnan(scores.map)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_one_row(dtype: str) -> None:
    scores = score([[7]], [[2]], dtype, ks=(1, 4), map_at=3)
    assert numbers(scores) == [1, 1, 1, 1, 1, 0.25, 1, 1, 1, 1, 1, 1, 1]
    assert score([[7]], [[2]], dtype, radius=7).recall_within == dict.fromkeys(range(7), 0) | {7: 1}


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 30), st.integers(1, 9), st.sampled_from([1, 2]))
def test_the_order_of_the_rows_means_nothing(seed: int, queries: int, rows: int, values: int, start: int) -> None:
    distances, grades = random_block(seed, queries, rows, values)
    order = np.random.default_rng(seed).permutation(rows)
    settings = {"ks": (1, 3), "map_at": 7, "relevant_from": start}
    expected = pytest.approx(numbers(score(distances, grades, **settings)), nan_ok=True)
    assert numbers(score(distances[:, order], grades[:, order], **settings)) == expected
    # Counted or sorted, as integers or as real numbers, from 0 or not: the ranking is the same.
    assert numbers(score(distances / 4, grades, "float32", **settings)) == expected
    assert numbers(score(distances - 100, grades, "int8", **settings)) == expected
    assert numbers(score(distances * 10**6, grades, **settings)) == expected


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_the_size_of_blocks_and_strips_means_nothing(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    distances, grades = random_block(4, queries=11)
    whole = numbers(score(distances, grades, dtype, radius=2, map_at=30))
    monkeypatch.setattr(metrics, "DISTANCES_AT_ONCE", 450)
    parts = [(distances[i : i + 3].astype(dtype), grades[i : i + 3]) for i in range(0, 11, 3)]
    assert numbers(score_rankings(iter(parts), radius=2, map_at=30)) == pytest.approx(whole)


def test_infinite_distances_tie_at_the_end() -> None:
    scores = score([0.5, np.inf, np.inf, -np.inf], [0, 1, 0, 1], "float64", ks=(3,))
    assert scores.map_tie_end == pytest.approx((1 + 2 / 4) / 2)
    assert scores.map == pytest.approx((1 + (2 / 3 + 2 / 4) / 2) / 2)
    assert scores.precision[3] == pytest.approx((1 + 1 / 2) / 3)


def test_the_callers_arrays_are_left_alone() -> None:
    distances, grades = random_block(5)
    kept = distances.copy(), grades.copy()
    score_rankings([(distances, grades), (distances / 2, grades)], radius=2)
    assert (distances == kept[0]).all()
    assert (grades == kept[1]).all()


@pytest.mark.parametrize(
    ("distances", "grades", "settings", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4), np.uint8), {}, r"distances \(2, 3\) and relevance \(2, 4\)"),
        (np.zeros(3), np.zeros(3, np.uint8), {}, r"expected \(q, n\)"),
        (np.zeros((1, 2)), np.array([[0, 3]], np.uint8), {}, "other values than 0, 1, 2 and 255"),
        (np.zeros((1, 2)), np.zeros((1, 2), np.int64), {}, "as uint8"),
        (np.array([[0, np.nan]]), np.zeros((1, 2), np.uint8), {}, "hold nan"),
        (np.zeros((1, 2)), np.zeros((1, 2), np.uint8), {"ks": (0, 5)}, "k is 0, expected at least 1"),
        (np.zeros((1, 2)), np.zeros((1, 2), np.uint8), {"map_at": 0}, "k is 0, expected at least 1"),
        (np.zeros((1, 2)), np.zeros((1, 2), np.uint8), {"relevant_from": 3}, "relevant_from is 3, expected 1 or 2"),
    ],
)
def test_bad_blocks_are_refused(distances: np.ndarray, grades: np.ndarray, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_rankings([(distances, grades)], **settings)


def test_a_row_that_is_no_candidate_may_have_any_distance() -> None:
    assert score([0.0, np.nan], [1, NOT_A_CANDIDATE], "float64").map == 1


def test_blocks_of_codes() -> None:
    rng = np.random.default_rng(6)
    bits, queries = rng.random((9, 24)) > 0.5, rng.random((5, 24)) > 0.5
    grades = rng.integers(0, 3, (5, 9)).astype(np.uint8)
    blocks = list(code_blocks(pack(queries), pack(bits), lambda rows: grades[rows], block=2))
    assert [len(distances) for distances, _ in blocks] == [2, 2, 1]
    assert (np.concatenate([distances for distances, _ in blocks]) == (queries[:, None] != bits).sum(axis=2)).all()
    assert (np.concatenate([part for _, part in blocks]) == grades).all()
    assert blocks[0][0].dtype.kind == "i"


def test_relevance_of_ids_by_hand() -> None:
    classes, groups = np.array([0, 1, 2]), np.array([0, 0, 1])
    expected = [[2, 1, 0], [1, 2, 0]]
    found = relevance(classes[:2], classes, groups[:2], groups)
    assert (found.tolist(), found.dtype) == (expected, np.uint8)
    assert relevance(classes[:2], classes).tolist() == [[2, 0, 0], [0, 2, 0]]


def test_relevance_of_several_labels_by_hand() -> None:
    classes = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    groups = np.array([[1, 0], [1, 1], [1, 0], [0, 1]], bool)
    assert relevance(classes[1:3], classes, groups[1:3], groups).tolist() == [[2, 2, 1, 1], [2, 1, 2, 0]]


def test_one_label_is_the_same_as_ids_and_as_one_hot() -> None:
    ids = np.random.default_rng(7).integers(0, 5, 30)
    one_hot = np.eye(5, dtype=bool)[ids]
    groups = ids // 2
    assert (relevance(ids[:4], ids, groups[:4], groups) == relevance(one_hot[:4], one_hot, groups[:4], groups)).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((np.zeros(2), np.zeros((3, 2))), r"shapes \(2,\) and \(3, 2\)"),
        ((np.zeros((2, 4)), np.zeros((3, 2))), r"shapes \(2, 4\) and \(3, 2\)"),
        ((np.zeros(2), np.zeros(3), np.zeros(2)), "one side only"),
    ],
)
def test_labels_that_do_not_match_are_refused(labels: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relevance(*labels)
