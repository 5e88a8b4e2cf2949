"""Learning weights: measures by hand and against scikit-learn, the gain by brute force."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from mg_milvus.codes import hamming, pack
from mg_milvus.errors import LabelError, QueryError, SchemaError
from mg_milvus.evaluation.labels import Labelled, Level
from mg_milvus.evaluation.metrics import relevance
from mg_milvus.evaluation.protocols import GroundTruth, relevance_from_labels, relevance_from_pairs
from mg_milvus.evaluation.tune import (
    GOAL_FUNCTIONS,
    GOALS,
    Queries,
    Target,
    Tuning,
    deal_folds,
    learn,
    sample_queries,
    tune,
)
from mg_milvus.schema.models import FusionSettings, Granularity, Schema
from mg_milvus.search.fusion import Fusion, fuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.records import Failure

BITS = {"right": 64, "noise": 32}


def class_codes(classes: NDArray[np.int64], bits: int, flipped: float, seed: int) -> Codes:
    """A random code for each class, with this share of each image's bits flipped; .5 is pure noise."""
    random = np.random.default_rng(seed)
    centres = random.random((classes.max() + 1, bits)) < 0.5
    return pack(centres[classes] ^ (random.random((len(classes), bits)) < flipped))


def leave_one_out(codes: Mapping[str, Codes]) -> Queries:
    grades = relevance(CLASSES, CLASSES)
    np.fill_diagonal(grades, 255)
    distances = {name: hamming(own, own).astype(np.uint16) for name, own in codes.items()}
    return Queries(distances, {name: own.shape[1] * 8 for name, own in codes.items()}, grades, CLASSES)


def schema_of(codes: Mapping[str, Codes], method: str = "rank", rrf_k: int = 60, **weights: float) -> Schema:
    granularities = tuple(
        Granularity(name=name, bits=own.shape[1] * 8, weight=weights.get(name, 1.0)) for name, own in codes.items()
    )
    return Schema(granularities=granularities, fusion=FusionSettings(method=method, rrf_k=rrf_k))


CLASSES = np.arange(120) % 6
NOISY = {"right": class_codes(CLASSES, 64, 0.3, 1), "noise": class_codes(CLASSES, 32, 0.5, 2)}
EQUAL = dict.fromkeys(NOISY, 1.0)


@pytest.fixture(scope="module")
def noisy() -> Queries:
    return leave_one_out(NOISY)


def brute_force(query: int, weights: Mapping[str, float], method: str = "rank") -> float:
    """Average precision of one query, expected over the orders in ties, by the fusion that queries go through."""
    others = [row for row in range(len(CLASSES)) if row != query]
    fused = fuse(
        [f"{row:03}" for row in others],
        {name: hamming(own[query : query + 1], own[others])[0] for name, own in NOISY.items()},
        bits=BITS, weights=weights, fusion=Fusion(method),  # type: ignore[arg-type]
    )  # fmt: skip
    scores, relevant = np.round(fused.scores, 9), CLASSES[others] == CLASSES[query]
    precision, before, found = 0.0, 0, 0
    for score in np.unique(scores)[::-1]:
        size, held = int((scores == score).sum()), int(relevant[scores == score].sum())
        for place in range(size):
            # This place holds a relevant one with probability held / size; then so many more are before it in the tie.
            more = place * (held - 1) / max(size - 1, 1)
            precision += held / size * (found + more + 1) / (before + place + 1)
        before, found = before + size, found + held
    return precision / relevant.sum()


def test_noise_is_dropped_and_the_gain_is_that_of_brute_force(noisy: Queries) -> None:
    found = learn(noisy, schema_of(NOISY), "map", folds=4)
    folds = deal_folds(CLASSES, 4)
    assert found.weights == {"right": 1.0, "noise": 0.0}
    assert found.better
    assert (found.queries, found.candidates, len(found.gains)) == (120, 120, 4)
    equal = np.array([brute_force(query, EQUAL) for query in range(120)])
    alone = np.array([brute_force(query, {"right": 1.0}) for query in range(120)])
    gains = [(alone - equal)[folds == fold].mean() for fold in range(4)]
    assert found.gains == pytest.approx(gains, abs=1e-4)
    assert found.gain == pytest.approx(np.mean(gains), abs=1e-4)
    assert found.gain > 0.05
    assert found.standard_error == pytest.approx(np.std(gains, ddof=1) / 2, abs=1e-4)
    assert found.equal == pytest.approx(equal.mean(), abs=1e-4)
    assert found.tuned == pytest.approx(alone.mean(), abs=1e-4)
    assert found.before == found.equal


@pytest.mark.parametrize("goal", GOALS)
def test_score_fusion_drops_noise_for_every_goal_and_keeps_rrf_k(noisy: Queries, goal: str) -> None:
    found = learn(noisy, schema_of(NOISY, "score", rrf_k=33), goal, folds=4)  # type: ignore[arg-type]
    assert found.weights["noise"] <= 0.25
    assert found.weights["right"] == 1
    assert found.better
    assert (found.goal, found.rrf_k) == (goal, 33)


def test_identical_granularities_keep_equal_weights() -> None:
    codes = dict.fromkeys(("coarse", "mid", "fine"), class_codes(CLASSES, 64, 0.35, 1))
    found = learn(leave_one_out(codes), schema_of(codes, "score"), "map", folds=5)
    assert (found.weights, found.gain, found.better) == (dict.fromkeys(codes, 1.0), 0, False)


def test_chance_is_rarely_taken_for_gain() -> None:
    """Of eight draws of pure noise, one standard error lets about one in six through."""
    better = 0
    for draw in range(8):
        codes = {name: class_codes(CLASSES, 32, 0.5, 3 * draw + place) for place, name in enumerate(("a", "b", "c"))}
        better += learn(leave_one_out(codes), schema_of(codes), "recall@1", folds=5).better
    assert better <= 3


def test_weights_that_do_as_well_already_are_left_alone(noisy: Queries) -> None:
    found = learn(noisy, schema_of(NOISY, right=3.0, noise=0.0), "map", folds=4)
    assert found.gain > found.standard_error
    assert found.before == pytest.approx(found.tuned)
    assert not found.better


@pytest.mark.parametrize(
    ("gains", "before", "better"),
    [
        ((0.1, 0.3), 0.5, True),  # 0.2 with an error of 0.1
        ((0.1, 0.3), 0.7, False),
        ((0.0, 0.3), 0.5, False),  # 0.15 with an error of 0.15
        ((-0.1, -0.3), 0.5, False),
        ((0.0, 0.0), 0.5, False),
    ],
)
def test_better_is_more_than_one_standard_error(gains: tuple[float, float], before: float, better: bool) -> None:
    tuning = Tuning("map", 9, 9, {"a": 1.0, "b": 0.5}, 60, 0.5, before, 0.5 + sum(gains) / 2, gains)
    assert tuning.better is better


def test_the_goals_by_hand() -> None:
    """Ranks by key: 0, {1, 2} tied, 3, 4."""
    keys, grades = np.array([1, 2, 2, 5, 9]), np.array([0, 2, 1, 2, 0], np.uint8)
    goals = {name: function(keys, grades) for name, function in GOAL_FUNCTIONS.items()}
    tied_gain = (3 + 1) / 2  # of the class 3, of the group 1
    reached = tied_gain / np.log2(3) + tied_gain / np.log2(4) + 3 / np.log2(5)
    assert goals == pytest.approx({
        "map": ((1 / 2 + 1 / 3) / 2 + 2 / 4) / 2,  # the relevant one in the tie is second or third
        "recall@1": 0,
        "ndcg": reached / (3 + 3 / np.log2(3) + 1 / np.log2(4)),
    })  # fmt: skip
    first = np.array([9, 2, 2, 2, 9])
    assert GOAL_FUNCTIONS["recall@1"](first, grades) == pytest.approx(2 / 3)  # the group does not count


def test_average_precision_is_the_mean_over_all_orders_inside_ties() -> None:
    keys = np.array([1, 2, 2, 2, 2, 3, 3, 3])
    grades = np.array([0, 2, 0, 2, 0, 0, 2, 1], np.uint8)
    orders = [[0, *first, *second] for first in permutations(range(1, 5)) for second in permutations(range(5, 8))]
    true = [average_precision_score(grades[order] == 2, -np.arange(8)) for order in orders]
    assert GOAL_FUNCTIONS["map"](keys, grades) == pytest.approx(np.mean(true))


def test_folds_are_even_stratified_and_always_the_same() -> None:
    strata = np.array([0] * 10 + [1] * 10 + [2] * 3)
    folds = deal_folds(strata, 5)
    assert folds.tolist() == deal_folds(strata, 5).tolist()
    assert sorted(np.bincount(folds).tolist()) == [4, 4, 5, 5, 5]
    for stratum in (0, 1):
        assert np.bincount(folds[strata == stratum]).tolist() == [2] * 5
    for count, parts in ((9, 5), (10, 1)):
        with pytest.raises(QueryError, match=f"{count} queries for {parts} folds"):
            deal_folds(np.zeros(count, np.int64), parts)


def labelled(classes: Level | None, count: int, groups: Level | None = None) -> Labelled:
    return Labelled((None,) * count, classes, groups or classes)  # type: ignore[arg-type]


def test_relevance_from_shared_labels() -> None:
    names = ("a/x", "a/y", "b/z")
    classes = Level(names, ((0,), (0, 2), (1,), (2,), (1,)))
    groups = Level(("a", "b"), ((0,), (0, 1), (0,), (1,), (0,)))
    truth = GroundTruth(labelled(classes, 5, groups))
    assert truth.queries().tolist() == [0, 1, 2, 3, 4]
    assert truth.relevance(np.array([0, 3])).tolist() == [[255, 2, 1, 0, 1], [0, 2, 0, 255, 0]]
    fewer = truth.subset(np.array([1, 2, 3]))
    assert fewer.queries().tolist() == [0, 2]  # the other image of a/y is gone
    assert fewer.strata(fewer.queries()).tolist() == [0, 2]
    assert fewer.relevance(np.array([1])).tolist() == [[1, 255, 0]]


def test_relevance_from_pairs() -> None:
    truth = GroundTruth(labelled(None, 4), {0: frozenset({1, 3}), 2: frozenset({1})})
    assert truth.queries().tolist() == [0, 2]
    assert truth.relevance(np.array([0, 2])).tolist() == [[255, 2, 0, 2], [0, 2, 255, 0]]
    assert truth.strata(np.array([0, 2])).tolist() == [0, 0]
    fewer = truth.subset(np.array([0, 2, 3]))
    assert fewer.pairs == {0: frozenset({2})}


def test_queries_are_a_random_sample_of_the_images(noisy: Queries) -> None:
    names = tuple(f"class {number}" for number in range(6))
    truth = GroundTruth(labelled(Level(names, tuple((int(own),) for own in CLASSES)), 120))
    every, some = sample_queries(truth, NOISY, 1000), sample_queries(truth, NOISY, 48)
    assert (every.relevance == noisy.relevance).all()
    assert (every.distances["right"] == noisy.distances["right"]).all()
    assert (len(some), some.relevance.shape, dict(some.bits)) == (48, (48, 120), BITS)
    rows = np.flatnonzero(some.relevance == 255) % 120  # each query is excluded from its own candidates
    assert (some.strata == CLASSES[rows]).all()
    assert len(set(rows)) == 48


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Eight plain images: photos/a/0.png ... photos/b/3.png."""
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), (60 * number, 10, 99)).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def ignore(failure: Failure) -> None:
    raise AssertionError(failure)


def test_pairs_are_read_from_every_kind_of_table(few: Path) -> None:
    table = few.parent / "relevant.csv"
    table.write_text("query,relevant,note\na/0.png,b/0.png,x\na/0.png,photos/b/1.png,y\na/1.png,b/1.png,\n")
    lines = few.parent / "relevant.jsonl"
    lines.write_text(
        json.dumps({"query": "a/0.png", "relevant": ["b/0.png", str(few / "b" / "1.png")]})
        + "\n"
        + json.dumps({"query": "photos/a/1.png", "relevant": "b/1.png"})
    )
    for file in (table, lines):
        found = relevance_from_pairs(few, file, ignore)
        assert [Path(image.path).relative_to(few).as_posix() for image in found.labelled.images][4:6] == [
            "b/0.png",
            "b/1.png",
        ]
        assert found.pairs == {0: frozenset({4, 5}), 1: frozenset({5})}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,found\na/0.png,b/0.png\n", "columns 'query', 'found'; expected query and relevant"),
        ("query,relevant\n", "names no pairs"),
        ("query,relevant\na/0.png,b/9.png\n", r"line 2: 'b/9.png' is no image in .*photos"),
        ("query,relevant\na/0.png,\n", "line 2: None is no image"),
        ("query,relevant\na/0.png,photos/a/0.png\n", "line 2: 'a/0.png' is given as relevant to itself"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(few: Path, text: str, message: str) -> None:
    table = few.parent / "relevant.csv"
    table.write_text(text)
    with pytest.raises(LabelError, match=message):
        relevance_from_pairs(few, table, ignore)


def test_labels_that_teach_nothing_are_refused(few: Path) -> None:
    with pytest.raises(LabelError, match="has no labels"):
        relevance_from_labels(few / "a", None, ignore)
    (few / "labels.csv").write_text("path,label\na/0.png,cat\nb/0.png,cat\n")
    with pytest.raises(LabelError, match="all 2 images have the label 'cat'"):
        relevance_from_labels(few, few / "labels.csv", lambda _: None)


def test_what_cannot_be_tuned_is_refused_before_any_image_is_read(few: Path) -> None:
    one = few.parent / "one.yaml"
    one.write_text("granularities: [{name: fine, bits: 64}]\n")
    default = Target(schema="default", out=few.parent / "out.yaml")
    for target, options, error, message in (
        (default, {"goal": "speed"}, QueryError, "goal is 'speed', expected map, recall@1, ndcg"),
        (default, {"labels": "a", "pairs": "b"}, QueryError, "exclude each other"),
        (default, {}, QueryError, "8 queries for 5 folds"),
        (default, {"queries": 3, "folds": 2}, QueryError, "3 queries for 2 folds"),
        (Target(schema=one), {}, QueryError, "only granularity is fine"),
        (Target(schema="compact"), {}, SchemaError, "'compact' is a preset.*--out"),
        (Target(schema="default", out=few / "no" / "x.yaml"), {}, SchemaError, "there is no folder .*no; choose"),
    ):
        with pytest.raises(error, match=message):
            tune(few, target, progress=lambda _: pytest.fail("an image was read"), **options)  # type: ignore[arg-type]
    assert not (few.parent / "out.yaml").exists()
