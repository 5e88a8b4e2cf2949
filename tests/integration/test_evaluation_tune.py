"""Learning weights: measures by hand and by the metrics, rankings against real queries, the gain by brute force."""

from __future__ import annotations

import json
from dataclasses import replace
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
from mg_milvus.evaluation.metrics import relevance, score_rankings
from mg_milvus.evaluation.protocols import Wanted, wanted_by_labels, wanted_by_pairs
from mg_milvus.evaluation.tune import (
    GOALS,
    Queries,
    Setting,
    Target,
    Tuning,
    folds_of,
    goals_of,
    learn,
    learn_from,
    tune,
)
from mg_milvus.schema.models import FusionSettings, Granularity, Schema
from mg_milvus.search.fusion import Fusion, fuse
from mg_milvus.search.query import Query
from mg_milvus.search.searcher import Searcher
from mg_milvus.store.base import Description, Row
from tests.memory_store import MemoryStore

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


def leave_one_out(codes: Mapping[str, Codes], grades: NDArray[np.uint8]) -> Queries:
    grades = grades.copy()
    np.fill_diagonal(grades, 255)
    distances = {name: hamming(own, own).astype(np.uint16) for name, own in codes.items()}
    return Queries(distances, {name: own.shape[1] * 8 for name, own in codes.items()}, grades)


CLASSES = np.arange(120) % 6
NOISY = {"right": class_codes(CLASSES, 64, 0.3, 1), "noise": class_codes(CLASSES, 32, 0.5, 2)}
EQUAL = dict.fromkeys(NOISY, 1.0)


@pytest.fixture(scope="module")
def noisy() -> Queries:
    return leave_one_out(NOISY, relevance(CLASSES, CLASSES))


def brute_force(query: int, weights: Mapping[str, float], method: str = "rank") -> float:
    """Average precision of one query, expected over the orders in ties, by the fusion that queries go through."""
    others = [row for row in range(len(CLASSES)) if row != query]
    fused = fuse(
        [f"{row:03}" for row in others],
        {name: hamming(own[query : query + 1], own[others])[0] for name, own in NOISY.items()},
        bits=BITS, weights=weights, fusion=Fusion(method),  # type: ignore[arg-type]
    )  # fmt: skip
    scores, wanted = np.round(fused.scores, 9), CLASSES[others] == CLASSES[query]
    precision, before, found = 0.0, 0, 0
    for score in np.unique(scores)[::-1]:
        size, held = int((scores == score).sum()), int(wanted[scores == score].sum())
        for place in range(size):
            # This place holds a wanted one with probability held / size; then so many more are before it in the tie.
            more = place * (held - 1) / max(size - 1, 1)
            precision += held / size * (found + more + 1) / (before + place + 1)
        before, found = before + size, found + held
    return precision / wanted.sum()


def test_noise_is_dropped_and_the_gain_is_that_of_brute_force(noisy: Queries) -> None:
    folds = folds_of(CLASSES, 4)
    found = learn(noisy, "map", folds, weights=EQUAL, rrf_k=60, depth=100)
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
    found = learn(noisy, goal, folds_of(CLASSES, 4), weights=EQUAL, rrf_k=33, depth=100, method="score")  # type: ignore[arg-type]
    assert found.weights["noise"] <= 0.25
    assert found.weights["right"] == 1
    assert found.better
    assert (found.goal, found.rrf_k) == (goal, 33)


def test_granularities_that_are_all_the_same_keep_equal_weights() -> None:
    codes = dict.fromkeys(("coarse", "mid", "fine"), class_codes(CLASSES, 64, 0.35, 1))
    queries = leave_one_out(codes, relevance(CLASSES, CLASSES))
    for goal in GOALS:
        found = learn(
            queries, goal, folds_of(CLASSES, 5), weights=dict.fromkeys(codes, 1.0), rrf_k=60, depth=70, method="score"
        )
        assert (found.weights, found.gain, found.better) == (dict.fromkeys(codes, 1.0), 0, False)


def test_chance_is_not_taken_for_gain() -> None:
    """Nothing can be learned from noise alone: what looks good on the queries learned from is not on the others."""
    codes = {name: class_codes(CLASSES, 32, 0.5, seed) for seed, name in enumerate(("a", "b", "c"))}
    queries = leave_one_out(codes, relevance(CLASSES, CLASSES))
    found = learn(queries, "recall@1", folds_of(CLASSES, 5), weights=dict.fromkeys(codes, 1.0), rrf_k=60, depth=100)
    assert not found.better


def test_weights_that_do_as_well_already_are_left_alone(noisy: Queries) -> None:
    folds = folds_of(CLASSES, 4)
    found = learn(noisy, "map", folds, weights={"right": 3.0, "noise": 0.0}, rrf_k=60, depth=100)
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
    tuning = Tuning("map", 9, 9, {"a": 1.0, "b": 0.5}, 60, 100, 0.5, before, 0.5 + sum(gains) / 2, gains)
    assert tuning.better is better


def test_the_measures_by_hand() -> None:
    """Five candidates and the query itself; ranks by score: 0, {1, 2} tied, 3, 4."""
    scores = np.array([[0.9, 0.8, 0.8, 0.5, 0.1, -1.0]], np.float32)
    grades = np.array([[0, 2, 1, 2, 0, 255]], np.uint8)
    # The wanted one in the tie is second or third.
    assert goals_of("map", scores, grades) == pytest.approx([((1 / 2 + 1 / 3) / 2 + 2 / 4) / 2])
    assert goals_of("recall@1", scores, grades) == pytest.approx([0])
    tied_gain = (3 + 1) / 2
    reached = tied_gain / np.log2(3) + tied_gain / np.log2(4) + 3 / np.log2(5)
    assert goals_of("ndcg", scores, grades) == pytest.approx([reached / (3 + 3 / np.log2(3) + 1 / np.log2(4))])
    first = np.array([[0.1, 0.8, 0.8, 0.8, 0.1, -1.0]], np.float32)
    assert goals_of("recall@1", first, grades) == pytest.approx([2 / 3])  # the group does not count


def test_average_precision_is_the_mean_over_all_orders_inside_ties() -> None:
    scores = np.array([3, 2, 2, 2, 2, 1, 1, 1])
    grades = np.array([0, 2, 0, 2, 0, 0, 2, 1], np.uint8)
    orders = [
        [0, *first, *second] for first in permutations(range(1, 5)) for second in permutations(range(5, 8))
    ]  # fmt: skip
    true = [average_precision_score(grades[order] == 2, -np.arange(8)) for order in orders]
    assert goals_of("map", scores[None], grades[None]) == pytest.approx([np.mean(true)])


@pytest.mark.parametrize("method", ["rank", "score"])
def test_measures_agree_with_the_metrics(method: str) -> None:
    random = np.random.default_rng(3)
    classes = random.integers(0, 12, 250)
    grades = relevance(classes, classes, classes // 3, classes // 3)
    codes = {"a": class_codes(classes, 16, 0.3, 4), "b": class_codes(classes, 24, 0.4, 5)}
    queries = leave_one_out(codes, grades)
    setting = Setting((1.0, 0.3), 20)
    scores = np.array(list(queries.scores(setting, method)))  # type: ignore[arg-type]
    known = score_rankings([(-scores, queries.relevance)], ks=(1, 100), relevant_from=2)
    untied = scores + random.uniform(0, 1e-9, scores.shape) * (queries.relevance != 255)
    precisions = score_rankings([(-untied, queries.relevance)], relevant_from=2).average_precisions
    assert goals_of("map", untied, queries.relevance) == pytest.approx(precisions)
    assert goals_of("recall@1", scores, queries.relevance).mean() == pytest.approx(known.precision[1])
    assert goals_of("ndcg", scores, queries.relevance).mean() == pytest.approx(known.ndcg[100])


@pytest.mark.parametrize("method", ["rank", "score"])
@pytest.mark.parametrize("weights", [(1.0, 0.4, 0.7), (0.0, 1.0, 0.5)])
def test_scores_are_those_of_real_queries(method: str, weights: tuple[float, ...]) -> None:
    """The first ``depth`` of each granularity, asked of a store; boundaries of ties by id there, by row here."""
    classes = np.arange(150) % 5
    codes = {name: class_codes(classes, bits, 0.35, bits) for name, bits in (("a", 16), ("b", 64), ("c", 128))}
    queries = leave_one_out(codes, relevance(classes, classes))
    schema = Schema(granularities=tuple(Granularity(name=g, bits=own.shape[1] * 8) for g, own in codes.items()))
    store = MemoryStore("images")
    store.create(Description(schema, "f" * 16))
    store.upsert([
        Row(f"{row:032x}", f"/{row}", 1, 1, 1, 1, "", {g: own[row].tobytes() for g, own in codes.items()})
        for row in range(150)
    ])  # fmt: skip
    setting = Setting(weights, 20)
    for depth in (10, 40, 149):
        options = {"k": depth, "depth": depth, "weights": dict(zip(codes, weights, strict=True)), "rrf_k": 20}
        query = Query.of(schema, {**options, "fusion": method})  # type: ignore[typeddict-item]
        query = replace(query, k=150)
        for place, scores in zip(range(3), queries.scores_at(setting, method, depth), strict=False):  # type: ignore[arg-type]
            own = {name: values[place : place + 1] for name, values in codes.items()}
            (hits,) = Searcher(store, schema).search(own, query, [f"{place:032x}"])
            used = sum(weight > 0 for weight in weights)
            found = {int(hit.id, 16): hit.score for hit in hits}
            assert {row for row, score in enumerate(scores) if score >= used} == set(found)
            assert [scores[row] - used for row in found] == pytest.approx(list(found.values()), rel=1e-5)
            assert scores[place] == -1


def test_depth_is_the_smallest_that_finds_what_is_wanted() -> None:
    """What a query wants is 71st on both granularities; those before it on one are far behind on the other."""
    near, far = np.full(70, 30), np.full(70, 200)
    rest = np.full(400, 250)
    distances = {
        "a": np.concatenate([[0, 60], near, far, rest]).astype(np.uint16),
        "b": np.concatenate([[0, 60], far, near, rest]).astype(np.uint16),
    }
    count = 20
    grades = np.zeros((count, 542), np.uint8)
    grades[:, 0], grades[:, 1] = 255, 2
    queries = Queries(
        {name: np.tile(own, (count, 1)) for name, own in distances.items()}, dict.fromkeys("ab", 256), grades
    )
    zeros = np.zeros(count, np.int64)
    both = {"a": 1.0, "b": 1.0}
    found = learn(queries, "recall@1", folds_of(zeros, 5), weights=both, rrf_k=60, depth=30, method="score")
    assert (found.weights, found.equal, found.depth) == (both, 1.0, 100)
    few = Queries({name: own[:, :99] for name, own in queries.distances.items()}, queries.bits, grades[:, :99])
    found = learn(few, "recall@1", folds_of(zeros, 5), weights=both, rrf_k=60, depth=30, method="score")
    assert found.depth == 30  # too few images to tell


def test_folds_are_even_stratified_and_always_the_same() -> None:
    strata = np.array([0] * 10 + [1] * 10 + [2] * 3)
    folds = folds_of(strata, 5)
    assert folds.tolist() == folds_of(strata, 5).tolist()
    assert sorted(np.bincount(folds).tolist()) == [4, 4, 5, 5, 5]
    for stratum in (0, 1):
        assert np.bincount(folds[strata == stratum]).tolist() == [2] * 5
    for count, parts in ((9, 5), (10, 1)):
        with pytest.raises(QueryError, match=f"{count} queries for {parts} folds"):
            folds_of(np.zeros(count, np.int64), parts)


def labelled(classes: Level | None, count: int, groups: Level | None = None) -> Labelled:
    return Labelled((None,) * count, classes, groups or classes)  # type: ignore[arg-type]


def test_what_labels_want() -> None:
    names = ("a/x", "a/y", "b/z")
    classes = Level(names, ((0,), (0, 2), (1,), (2,), (1,)))
    groups = Level(("a", "b"), ((0,), (0, 1), (0,), (1,), (0,)))
    wanted = Wanted(labelled(classes, 5, groups))
    assert wanted.queries().tolist() == [0, 1, 2, 3, 4]
    assert wanted.relevance(np.array([0, 3])).tolist() == [[255, 2, 1, 0, 1], [0, 2, 0, 255, 0]]
    fewer = wanted.subset(np.array([1, 2, 3]))
    assert fewer.queries().tolist() == [0, 2]  # the other image of a/y is gone
    assert fewer.strata(fewer.queries()).tolist() == [0, 2]
    assert fewer.relevance(np.array([1])).tolist() == [[1, 255, 0]]


def test_what_pairs_want() -> None:
    wanted = Wanted(labelled(None, 4), {0: frozenset({1, 3}), 2: frozenset({1})})
    assert wanted.queries().tolist() == [0, 2]
    assert wanted.relevance(np.array([0, 2])).tolist() == [[255, 2, 0, 2], [0, 2, 255, 0]]
    assert wanted.strata(np.array([0, 2])).tolist() == [0, 0]
    fewer = wanted.subset(np.array([0, 2, 3]))
    assert fewer.pairs == {0: frozenset({2})}


def test_only_some_of_the_images_ask() -> None:
    schema = Schema(granularities=tuple(Granularity(name=g, bits=bits) for g, bits in BITS.items()))
    names = tuple(f"class {number}" for number in range(6))
    wanted = Wanted(labelled(Level(names, tuple((int(own),) for own in CLASSES)), 120))
    found = learn_from(wanted, NOISY, schema, "map", folds=4, queries=48)
    assert (found.queries, found.candidates) == (48, 120)
    assert found.weights == {"right": 1.0, "noise": 0.0}
    score = schema.model_copy(update={"fusion": FusionSettings(method="score", rrf_k=7)})
    assert learn_from(wanted, NOISY, score, "map", folds=4).rrf_k == 7


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
    table = few.parent / "wanted.csv"
    table.write_text("query,wanted,note\na/0.png,b/0.png,x\na/0.png,photos/b/1.png,y\na/1.png,b/1.png,\n")
    lines = few.parent / "wanted.jsonl"
    lines.write_text(
        json.dumps({"query": "a/0.png", "wanted": ["b/0.png", str(few / "b" / "1.png")]})
        + "\n"
        + json.dumps({"query": "photos/a/1.png", "wanted": "b/1.png"})
    )
    for file in (table, lines):
        found = wanted_by_pairs(few, file, ignore)
        assert [Path(image.path).relative_to(few).as_posix() for image in found.labelled.images][4:6] == [
            "b/0.png",
            "b/1.png",
        ]
        assert found.pairs == {0: frozenset({4, 5}), 1: frozenset({5})}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,found\na/0.png,b/0.png\n", "columns 'query', 'found'; expected query and wanted"),
        ("query,wanted\n", "names no pairs"),
        ("query,wanted\na/0.png,b/9.png\n", r"line 2: 'b/9.png' is no image in .*photos"),
        ("query,wanted\na/0.png,\n", "line 2: None is no image"),
        ("query,wanted\na/0.png,photos/a/0.png\n", "line 2: 'a/0.png' wants itself"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(few: Path, text: str, message: str) -> None:
    table = few.parent / "wanted.csv"
    table.write_text(text)
    with pytest.raises(LabelError, match=message):
        wanted_by_pairs(few, table, ignore)


def test_labels_that_teach_nothing_are_refused(few: Path) -> None:
    with pytest.raises(LabelError, match="has no labels"):
        wanted_by_labels(few / "a", None, ignore)
    (few / "labels.csv").write_text("path,label\na/0.png,cat\nb/0.png,cat\n")
    with pytest.raises(LabelError, match="all 2 images have the label 'cat'"):
        wanted_by_labels(few, few / "labels.csv", lambda _: None)


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
