"""``evaluate`` from a folder to figures: against a second way to the same numbers, and through an index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from mg_milvus.codes import hamming
from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.base import Encoder
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import EncoderError, QueryError, SchemaError
from mg_milvus.evaluation.evaluate import evaluate
from mg_milvus.evaluation.report import Evaluation, report_data
from mg_milvus.images.augment import AUGMENTATIONS, STRENGTHS
from mg_milvus.images.decode import open_image
from mg_milvus.images.discover import content_hash
from mg_milvus.schema.models import Schema
from tests.conftest import KINDS, kind_of_image

BITS = {"coarse": 32, "mid": 64}
LABELS = {"disc": "round/disc", "stripes": "square/stripes", "blocks": "square/blocks"}
PER_KIND = 18


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """54 images in two groups and three classes, one that is alone in its class, and a broken one."""
    root = tmp_path_factory.mktemp("evaluated") / "images"
    for kind, label in LABELS.items():
        (root / label).mkdir(parents=True)
        for number in range(PER_KIND):
            kind_of_image(kind, number).save(root / label / f"{number:02}.png")
    (root / "alone").mkdir()
    kind_of_image("disc", 99).save(root / "alone" / "0.png")
    (root / "round" / "disc" / "broken.jpg").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def evaluation(folder: Path, encoder: Encoder) -> Evaluation:
    return evaluate(folder, encoder=encoder, bits=BITS, ks=(1, 5), curves=True)


def sample_of(features: dict[str, np.ndarray], paths: list[Path]) -> dict[str, np.ndarray]:
    """One of each content, in the order of content hashes."""
    rows = {content_hash(path.read_bytes()): row for row, path in reversed(list(enumerate(paths)))}
    return {name: values[[rows[hashed] for hashed in sorted(rows)]] for name, values in features.items()}


def features_of(encoder: Encoder, paths: list[Path]) -> dict[str, np.ndarray]:
    return encoder.features([encoder.prepare(open_image(path, least=encoder.side).image) for path in paths])


def readable(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


@pytest.fixture(scope="module")
def features(folder: Path, encoder: Encoder) -> dict[str, np.ndarray]:
    """Of the readable images, in their order; nobody changes them."""
    return features_of(encoder, readable(folder))


def test_figures_are_those_of_a_second_computation(
    folder: Path, encoder: Encoder, features: dict[str, np.ndarray], evaluation: Evaluation
) -> None:
    paths = readable(folder)
    adapted = encoder.adapted(sample_of(features, paths), BITS)
    classes = np.array([str(path.parent) for path in paths])
    figures = evaluation.to_json()
    assert figures["fingerprint"] == adapted.fingerprint

    def mean(labels: np.ndarray, similarity: np.ndarray) -> float:
        found = []
        for row in range(len(paths)):
            others = np.arange(len(paths)) != row
            if (classes[others] == classes[row]).any():
                found.append(average_precision_score(labels[others] == labels[row], similarity[row][others]))
        return float(np.mean(found))

    codes = adapted.codes(features)
    for name in BITS:
        similarity = -hamming(codes[name], codes[name]).astype(float)
        found = figures["granularities"][name]
        assert found["bits"] == BITS[name]
        assert found["map_tie_end"] == pytest.approx(mean(classes, similarity), abs=1e-6)
        low, high = found["map_interval"]
        assert low < found["map"] < high
        cosine = cosine_similarity(features[name] - features[name].mean(axis=0))
        assert figures["float"]["granularities"][name]["map"] == pytest.approx(mean(classes, cosine), abs=1e-4)
    best = max(BITS, key=lambda name: figures["float"]["granularities"][name]["map"])
    assert (figures["float"]["granularity"], figures["float"]["map"]) == (
        best, figures["float"]["granularities"][best]["map"],
    )  # fmt: skip


def test_the_json_has_its_stable_form(evaluation: Evaluation) -> None:
    figures = json.loads(json.dumps(evaluation.to_json()))
    assert (figures["queries"], figures["database"], figures["alone"]) == (54, 55, 1)
    assert list(figures["granularities"]) == list(BITS)
    assert list(figures["fused"]) == ["rank", "score", "category", "object", "balanced"], "instance asks fine alone"
    for part in (*figures["granularities"].values(), *figures["fused"].values(), figures["float"]):
        assert {"map", "map_interval", "map_tie_end", "map_at_r", "map_group", "precision", "recall", "ndcg"} <= set(
            part
        )
        assert list(part["precision"]) == list(part["recall"]) == list(part["ndcg"]) == ["1", "5"]
        assert 0 <= part["map"] <= 1
    assert set(figures["collisions"]) == {"coarse", "mid", "joint"}
    assert [Path(failure["path"]).name for failure in figures["failures"]] == ["broken.jpg"]
    assert figures["heads"] == "adapted on 55 images"


def test_curves_and_average_precisions_of_queries_are_in_the_json(evaluation: Evaluation, folder: Path) -> None:
    figures = json.loads(json.dumps(evaluation.to_json()))
    curves = figures["curves"]
    names = [*BITS, "fused:rank", "fused:score", "fused:category", "fused:object", "fused:balanced"]
    assert list(curves["by_rank"]) == [*names, "float:coarse", "float:mid"]
    assert {name: len(own["precision"]) for name, own in curves["by_radius"].items()} == {"coarse": 33, "mid": 65}
    assert curves["by_radius"]["mid"]["precision"][2] == figures["granularities"]["mid"]["precision_radius_2"]
    assert (curves["ranks"][0], curves["ranks"][-1], curves["by_rank"]["mid"]["recall"][-1]) == (1, 55, 1)
    per_query = figures["per_query"]
    assert list(per_query) == [str(path) for path in readable(folder) if path.parent.name != "alone"]
    mean = np.mean([own["fused:rank"] for own in per_query.values()])
    assert mean == pytest.approx(figures["fused"]["rank"]["map"], abs=1e-6)


def test_several_seeds_draw_other_queries_and_fit_other_heads(folder: Path, encoder: Encoder) -> None:
    options = {"protocol": "split", "share": 0.05, "encoder": encoder, "bits": BITS, "ks": (1,), "map_at": 5}
    evaluation = evaluate(folder, seed=3, seeds=2, curves=True, **options)  # type: ignore[arg-type]
    found = evaluation.to_json()
    single = evaluate(folder, seed=4, **options).to_json()  # type: ignore[arg-type]
    assert (found["seeds"], [run["seed"] for run in found["runs"]]) == ([3, 4], [3, 4])
    assert {key: found["runs"][1][key] for key in ("granularities", "fused", "float", "per_query")} == {
        key: single[key] for key in ("granularities", "fused", "float", "per_query")
    }
    assert len({run["fingerprint"] for run in found["runs"]}) == 2
    values = [run["fused"]["rank"]["map_at_k"] for run in found["runs"]]
    assert found["fused"]["rank"]["map_at_k"] == pytest.approx(np.mean(values), abs=1e-6)
    assert found["deviation"]["fused"]["rank"]["map_at_k"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    precision = [run["curves"]["by_rank"]["mid"]["precision"] for run in found["runs"]]
    assert found["curves"]["by_rank"]["mid"]["precision"] == pytest.approx(np.mean(precision, axis=0), abs=1e-6)
    report = report_data(evaluation, "Two seeds")
    assert list(report.metrics["mid"])[:2] == ["mAP@5", "mAP@5±"]
    assert report.setup[-1] == "distances and queries below: of seed 3"


def test_map_up_to_a_rank_is_that_of_a_second_computation(folder: Path, encoder: Encoder) -> None:
    found = evaluate(folder, encoder=encoder, bits=BITS, ks=(1,), map_at=10)
    assert len(found.runs) == 1
    codes, labels = found.runs[0].database_codes["mid"], found.runs[0].split.images.classes
    assert labels is not None
    classes = labels.ids()
    expected = []
    for row in found.runs[0].split.queries:
        distances = hamming(codes[row : row + 1], codes)[0]
        others = np.delete(np.arange(len(codes)), row)
        # Every order inside the tie that rank 10 divides, by drawing: its rows are alike otherwise.
        drawn = []
        for draw in range(60):
            order = np.random.default_rng(draw).permutation(others)
            match = classes[order[np.argsort(distances[order], kind="stable")][:10]] == classes[row]
            drawn.append((np.cumsum(match) / np.arange(1, 11) * match).sum() / max(1, match.sum()))
        expected.append(np.mean(drawn))
    figures = found.to_json()["granularities"]["mid"]
    assert figures["map_at_k"] == pytest.approx(np.mean(expected), abs=0.01)
    low, high = figures["map_at_k_interval"]
    assert low < figures["map_at_k"] < high


def test_heads_are_fitted_on_seen_classes_and_on_training_lists(
    tmp_path: Path, folder: Path, encoder: Encoder, features: dict[str, np.ndarray]
) -> None:
    paths = readable(folder)
    labels = ["/".join(path.parts[len(folder.parts) : -1]) for path in paths]
    (tmp_path / "seen.txt").write_text("square/stripes\nsquare/blocks\n")
    # Heads are fitted to 50 images at least: the smaller sample shows which they would be.
    shared = {"encoder": encoder, "bits": BITS, "ks": (1,)}
    found = evaluate(folder, protocol="zero-shot", seen=tmp_path / "seen.txt", **shared)  # type: ignore[arg-type]
    assert len(found.runs) == 1
    assert found.to_json()["seen"] == ["square/blocks", "square/stripes"]
    fitted = [labels[row] for row in found.runs[0].split.to_fit]
    assert (set(fitted), len(fitted)) == ({"square/blocks", "square/stripes"}, 2 * PER_KIND)
    assert found.to_json()["heads"] == "the encoder's own", "36 images are too few"

    for name, rows in (("train", range(52)), ("database", range(55)), ("test", range(0, 55, 2))):
        lines = [f"/theirs/{paths[row].relative_to(folder)} {labels[row]}" for row in rows]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    lists = [tmp_path / f"{name}.txt" for name in ("train", "database", "test")]
    figures = evaluate(folder, lists=lists, **shared).to_json()  # type: ignore[arg-type]
    adapted = encoder.adapted(sample_of({name: own[:52] for name, own in features.items()}, paths[:52]), BITS)
    assert (figures["heads"], figures["fingerprint"]) == ("adapted on 52 images", adapted.fingerprint)
    assert (figures["protocol"], figures["queries"], figures["database"]) == ("split", 27, 55)
    with pytest.raises(QueryError, match="other images are for that; leave --through-index out"):
        evaluate(folder, lists=lists, through_index=True, **shared)  # type: ignore[arg-type]


def test_the_report_shows_what_was_evaluated(evaluation: Evaluation) -> None:
    data = report_data(evaluation, "A title")
    figures = evaluation.to_json()
    assert data.bars["mid"] == data.metrics["mid"]["mAP"] == figures["granularities"]["mid"]["map"]
    assert data.float_map == data.metrics["float"]["mAP"] == figures["float"]["map"]
    recall, precision = data.curves["mid"]
    assert (np.diff(recall) >= 0).all()
    assert (recall[-1], precision[0]) == (
        pytest.approx(1), pytest.approx(figures["granularities"]["mid"]["precision"]["1"], abs=1e-6),
    )  # fmt: skip
    ranks, at_n = data.by_rank["rank fusion"]
    assert (ranks[0], at_n[0]) == (1, pytest.approx(figures["fused"]["rank"]["precision"]["1"], abs=1e-6))
    radii, within = data.by_radius["mid"]
    assert (len(radii), within[2]) == (65, figures["granularities"]["mid"]["precision_radius_2"])
    same, different = data.histograms["coarse"]
    assert (same.sum(), different.sum()) == (3 * PER_KIND * (PER_KIND - 1), 54 * 54 - 3 * PER_KIND * (PER_KIND - 1))
    precisions = [query.average_precision for query in data.queries]
    assert precisions == sorted(precisions, reverse=True)
    worst = data.queries[-1]
    assert worst.path not in {hit.path for hit in worst.results}
    assert {hit.relevant for query in data.queries for hit in query.results} == {True, False}


def test_heads_are_fitted_on_the_database_and_never_on_queries(tmp_path: Path, encoder: Encoder) -> None:
    for kind in KINDS:
        for part, numbers in (("database", range(18)), ("queries", range(40, 44))):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in numbers:
                kind_of_image(kind, number).save(tmp_path / part / kind / f"{number}.png")
    options = {"queries": tmp_path / "queries", "encoder": encoder, "bits": BITS, "ks": (1, 5)}
    found = evaluate(tmp_path / "database", through_index=True, **options).to_json()  # type: ignore[arg-type]
    paths = readable(tmp_path / "database")
    adapted = encoder.adapted(sample_of(features_of(encoder, paths), paths), BITS)
    assert (found["fingerprint"], found["queries"], found["database"]) == (adapted.fingerprint, 12, 54)
    through = found["through_index"]
    assert (through["same_encoder"], through["largest_difference"], through["depth"]) == (True, 0, 54)
    assert through["fused"]["rank"]["precision"] == found["fused"]["rank"]["precision"]
    fixed = evaluate(tmp_path / "database", heads="fixed", **options).to_json()  # type: ignore[arg-type]
    assert (fixed["fingerprint"], fixed["heads"]) == (encoder.with_bits(BITS).fingerprint, "the encoder's own")


def test_an_index_answers_leave_one_out_alike(folder: Path, encoder: Encoder, evaluation: Evaluation) -> None:
    found = evaluate(
        folder, encoder=encoder, bits=BITS, ks=(1, 5), through_index=True, milvus=MilvusConfig("memory:")
    ).to_json()
    through = found.pop("through_index")
    assert found == {key: value for key, value in evaluation.to_json().items() if key != "curves"}
    assert (through["same_encoder"], through["largest_difference"]) == (True, 0)
    for part in ("granularities", "fused"):
        assert list(through[part]) == list(found[part])
        for name, own in through[part].items():
            assert own == {figure: found[part][name][figure] for figure in ("precision", "recall")}


def test_copies_find_their_originals(folder: Path, encoder: Encoder) -> None:
    evaluation = evaluate(folder, protocol="copies", encoder=encoder, bits=BITS, copies=2)
    figures = evaluation.to_json()
    assert (figures["queries"], figures["database"], list(figures["copies"])) == (2, 55, list(AUGMENTATIONS))
    mild = figures["copies"]["jpeg"]["mild"]
    assert set(mild) == {*BITS, "rank", "score", "category", "object", "balanced", "float:coarse", "float:mid"}
    assert mild["float:mid"]["recall@10"] == 1.0, "a slight recompression moves features little"
    versions = [figures["copies"][edit][strength]["mid"] for edit in AUGMENTATIONS for strength in STRENGTHS]
    assert figures["granularities"]["mid"]["recall"]["1"] == pytest.approx(
        np.mean([own["recall@1"] for own in versions]), abs=1e-5
    )
    assert report_data(evaluation, "Copies").metrics["recall@1, jpeg, mild"]["mid"] == mild["mid"]["recall@1"]


def test_the_rank_of_an_original_is_the_worst_of_its_tie() -> None:
    from mg_milvus.evaluation.copies import _worst_rank

    distances = np.array([3, 1, 3, 0, 3])
    assert [_worst_rank(distances, row) for row in range(5)] == [5, 2, 5, 1, 5]


def test_trained_heads_of_another_length_are_refused_before_images_are_read(
    folder: Path, encoder: Encoder, features: dict[str, np.ndarray]
) -> None:
    fixed = encoder.baseline(features, {"mid": 32}, "lsh")  # type: ignore[attr-defined]
    with pytest.raises(EncoderError, match="made for 32 bits of 'mid', the schema asks for 64"):
        evaluate(folder, encoder=fixed, bits={"mid": 64}, progress=lambda told: pytest.fail(str(told)))


def test_options_that_exclude_each_other_are_refused(folder: Path) -> None:
    with pytest.raises(SchemaError, match="coarse has 33 bits"):
        evaluate(folder, bits={"coarse": 33})
    for options, message in (
        ({"protocol": "copies", "queries": folder}, "makes its own queries"),
        ({"heads": "best"}, "heads is 'best', expected adapt or fixed"),
        ({"through_index": True, "depth": 3}, "depth is 3, expected at least 100"),
        ({"ks": (0, 1)}, "the ranks to report are"),
        ({"through_index": True, "sample": 10}, "an ingest fits the heads on 5000"),
        ({"map_at": 0}, "the last rank of mAP is 0"),
        ({"seeds": 3}, "there are 3 seeds, expected 1, or more where a seed draws something"),
        ({"protocol": "split", "queries": folder, "seeds": 3}, "without queries or lists of one's own"),
        ({"seeds": 0}, "there are 0 seeds"),
        ({"protocol": "split", "seeds": 2, "through_index": True}, "is asked with one seed, not 2"),
        ({"protocol": "copies", "map_at": 5}, "has whole rankings"),
        ({"lists": ["a.txt", "b.txt"], "labels": "c.csv"}, "leave --queries and --labels out"),
    ):
        with pytest.raises(QueryError, match=message):
            evaluate(folder, schema=Schema(), **options)  # type: ignore[arg-type]
