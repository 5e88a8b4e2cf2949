"""Fusion: the formulas written out, a brute-force reference, and properties."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_milvus.search.fusion import Fusion, fuse, lead, shared_ranks

BITS = {"coarse": 64, "mid": 128, "fine": 256}
Method = Literal["rank", "score"]


def test_ties_share_their_mean_rank() -> None:
    assert shared_ranks(np.array([7, 3, 3, 9, 3])).tolist() == [4, 2, 2, 5, 2]


def test_rank_fusion_is_the_formula() -> None:
    fused = fuse(
        ["a", "b", "c"],
        {"coarse": np.array([1, 1, 5]), "fine": np.array([30, 10, 20])},
        bits=BITS, weights={"coarse": 1, "fine": 3}, fusion=Fusion(rrf_k=10),
    )  # fmt: skip
    expected = [1 / 11.5 + 3 / 13, 1 / 11.5 + 3 / 11, 1 / 13 + 3 / 12]
    assert fused.scores == pytest.approx(expected)
    assert fused.order.tolist() == [1, 2, 0]
    assert fused.ranks["coarse"].tolist() == [1.5, 1.5, 3]
    assert fused.ranks["fine"].tolist() == [3, 1, 2]


def test_score_fusion_is_the_formula() -> None:
    fused = fuse(
        ["a", "b"],
        {"coarse": np.array([16, 32]), "fine": np.array([64, 0])},
        bits=BITS, weights={"coarse": 2, "fine": 1}, fusion=Fusion("score"),
    )  # fmt: skip
    assert fused.scores == pytest.approx([2 * 0.75 + 0.75, 2 * 0.5 + 1.0])
    assert fused.order.tolist() == [0, 1]


def test_equal_scores_go_by_weighted_distance_then_id() -> None:
    # Ranks 1 and 2 swapped: equal scores; b is nearer in sum, 10/64 + 2/128 against 1/64 + 40/128.
    swapped = {"coarse": np.array([1, 10]), "mid": np.array([40, 2])}
    assert fuse(["a", "b"], swapped, bits=BITS, weights={"coarse": 1, "mid": 1}).order.tolist() == [1, 0]
    same = {"coarse": np.array([5, 5, 5])}
    assert fuse(["z", "a", "m"], same, bits=BITS, weights={"coarse": 1}).order.tolist() == [1, 2, 0]


def test_no_candidates_is_an_empty_ranking() -> None:
    fused = fuse([], {"coarse": np.array([], int)}, bits=BITS, weights={"coarse": 1})
    assert (fused.order.tolist(), fused.scores.tolist()) == ([], [])


def test_a_negative_weight_pushes_down_what_is_near() -> None:
    near = {"coarse": np.array([0, 1, 2]), "mid": np.array([0, 8, 4])}
    fused = fuse(["a", "b", "c"], near, bits=BITS, weights={"coarse": 1, "mid": -1})
    expected = [1 / 61 - 1 / 61, 1 / 62 - 1 / 63, 1 / 63 - 1 / 62]
    assert fused.scores.tolist() == pytest.approx(expected)
    assert fused.order.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"coarse": 0}, "at least one above 0"),
        ({"coarse": -1, "mid": 0}, "at least one above 0"),
        ({"hue": 1}, "for hue"),
    ],
)
def test_bad_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(["a"], {"coarse": np.array([1]), "mid": np.array([1])}, bits=BITS, weights=weights)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 distances"):
        fuse(["a", "b"], {"coarse": np.array([1])}, bits=BITS, weights={"coarse": 1})


@st.composite
def candidates(draw: st.DrawFn) -> tuple[list[str], dict[str, np.ndarray], dict[str, float]]:
    """Small numbers, so that ties are everywhere."""
    n = draw(st.integers(1, 12))
    ids = [f"{i:02}" for i in draw(st.permutations(range(n)))]
    distances = {name: np.array(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))) for name in BITS}
    weights = {name: draw(st.sampled_from([0.25, 1.0, 3.0])) for name in BITS}
    return ids, distances, weights


def reference(
    ids: list[str], distances: dict[str, np.ndarray], weights: dict[str, float], method: str, rrf_k: int
) -> list[str]:
    """The same ranking in plain Python, from the definition in the design."""

    def rank(name: str, i: int) -> float:
        own = distances[name][i]
        nearer = sum(1 for d in distances[name] if d < own)
        equal = sum(1 for d in distances[name] if d == own)
        return nearer + (1 + equal) / 2

    def near(i: int) -> float:
        return sum(weights[g] * (1 - distances[g][i] / BITS[g]) for g in sorted(weights))

    def score(i: int) -> float:
        return near(i) if method == "score" else sum(weights[g] / (rrf_k + rank(g, i)) for g in sorted(weights))

    return [ids[i] for i in sorted(range(len(ids)), key=lambda i: (-round(score(i), 12), -round(near(i), 12), ids[i]))]


@given(candidates(), st.sampled_from(["rank", "score"]), st.sampled_from([1, 10, 60]))
def test_equals_the_brute_force_reference(
    case: tuple[list[str], dict[str, np.ndarray], dict[str, float]], method: Method, rrf_k: int
) -> None:
    ids, distances, weights = case
    fused = fuse(ids, distances, bits=BITS, weights=weights, fusion=Fusion(method, rrf_k))
    assert [ids[i] for i in fused.order] == reference(ids, distances, weights, method, rrf_k)


@given(candidates(), st.randoms(use_true_random=False), st.sampled_from(["rank", "score"]))
def test_the_order_of_rows_and_granularities_means_nothing(
    case: tuple[list[str], dict[str, np.ndarray], dict[str, float]], random: object, method: Method
) -> None:
    ids, distances, weights = case
    shuffled = list(range(len(ids)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = fuse(ids, distances, bits=BITS, weights=weights, fusion=Fusion(method))
    second = fuse(
        [ids[i] for i in shuffled],
        {name: distances[name][shuffled] for name in reversed(list(distances))},
        bits=BITS, weights=dict(reversed(weights.items())), fusion=Fusion(method),
    )  # fmt: skip
    assert [ids[i] for i in first.order] == [ids[shuffled[i]] for i in second.order]


@given(candidates(), st.sampled_from(["rank", "score"]))
def test_a_weight_of_zero_is_leaving_it_out(
    case: tuple[list[str], dict[str, np.ndarray], dict[str, float]], method: Method
) -> None:
    ids, distances, weights = case
    zeroed = fuse(ids, distances, bits=BITS, weights=weights | {"mid": 0}, fusion=Fusion(method))
    weights.pop("mid")
    left_out = fuse(
        ids, {g: d for g, d in distances.items() if g != "mid"}, bits=BITS, weights=weights, fusion=Fusion(method)
    )
    assert zeroed.order.tolist() == left_out.order.tolist()
    assert zeroed.scores.tolist() == left_out.scores.tolist()


@given(candidates(), st.sampled_from(["rank", "score"]))
def test_one_granularity_keeps_the_order_of_its_distance(
    case: tuple[list[str], dict[str, np.ndarray], dict[str, float]], method: Method
) -> None:
    ids, distances, _ = case
    fused = fuse(ids, distances, bits=BITS, weights={"fine": 2}, fusion=Fusion(method))
    assert [ids[i] for i in fused.order] == sorted(ids, key=lambda key: (distances["fine"][ids.index(key)], key))


@given(candidates(), st.data(), st.sampled_from(["rank", "score"]))
def test_coming_nearer_never_costs_places(
    case: tuple[list[str], dict[str, np.ndarray], dict[str, float]], data: st.DataObject, method: Method
) -> None:
    ids, distances, weights = case
    chosen = data.draw(st.integers(0, len(ids) - 1))
    name = data.draw(st.sampled_from(sorted(BITS)))
    before = fuse(ids, distances, bits=BITS, weights=weights, fusion=Fusion(method))
    distances[name] = distances[name].copy()
    distances[name][chosen] = max(0, distances[name][chosen] - data.draw(st.integers(1, 6)))
    after = fuse(ids, distances, bits=BITS, weights=weights, fusion=Fusion(method))
    assert after.order.tolist().index(chosen) <= before.order.tolist().index(chosen)


def test_what_stands_out_leads() -> None:
    """With the score of its own rank on that granularity for all the weight there is."""
    distances = {"coarse": np.array([1, 2, 3]), "fine": np.array([60, 50, 40])}
    fused = fuse(["a", "b", "c"], distances, bits=BITS, weights={"coarse": 2})
    assert fused.order.tolist() == [0, 1, 2]
    led = lead(fused, {"fine": np.array([False, False, True])}, 2, 60)
    assert led.order.tolist() == [2, 0, 1]
    assert led.scores.tolist() == pytest.approx([2 / 61, 2 / 62, 2 / 63 + 2 / 61])
    assert lead(fused, {}, 2, 60).order.tolist() == [0, 1, 2]


def test_fusion_by_chance_needs_the_pairs() -> None:
    with pytest.raises(ValueError, match="needs the distances of random pairs"):
        fuse(["a"], {"fine": np.array([1])}, bits=BITS, weights={"fine": 1}, fusion=Fusion("chance"))


def test_the_image_that_contains_the_query_leads_whatever_its_rank_on_the_regions() -> None:
    """Its score has 2 / 61 more: 2 / 63 + 2 / 61 is above 2 / 61 of the first."""
    far = {"mid": np.array([1, 2, 3]), "regions": np.array([1, 2, 3])}
    fused = fuse(["a", "b", "c"], far, bits={"mid": 8, "regions": 8}, weights={"mid": 2})
    led = lead(fused, {"regions": np.array([False, False, True])}, 2, 60)
    assert led.order.tolist() == [2, 0, 1]
    assert led.scores.tolist() == pytest.approx([2 / 61, 2 / 62, 2 / 63 + 2 / 61])
