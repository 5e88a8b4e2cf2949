"""Run folders, which are repeated to the bit or refuse another configuration, and codes for other programs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

from mg_milvus.codes import hamming
from mg_milvus.encoder.base import Encoder
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import MissingPackageError, QueryError
from mg_milvus.evaluation import outputs
from mg_milvus.evaluation.evaluate import evaluate
from mg_milvus.evaluation.outputs import check_codes_file, write_codes
from mg_milvus.evaluation.report import Evaluation
from mg_milvus.store.lite_workarounds import allow_scipy, skip_scipy
from tests.conftest import make_photos

OPTIONS: dict[str, Any] = {
    "protocol": "split", "share": 0.06, "seeds": 2, "bits": {"coarse": 32, "mid": 64}, "ks": (1,), "map_at": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """54 images of three classes, 51 of which are the database: enough to fit heads on."""
    return make_photos(tmp_path_factory.mktemp("photos"), per_kind=18)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, photos: Path, encoder: Encoder) -> tuple[Path, Evaluation]:
    """A run folder, and the evaluation that filled it."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, evaluate(photos, encoder=encoder, run=folder, **OPTIONS)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_run_folder_holds_what_is_needed_to_repeat_it(first: tuple[Path, Evaluation], photos: Path) -> None:
    folder, evaluation = first
    assert sorted(content(folder)) == sorted(outputs.FILES)
    assert evaluation.metrics["run"] == {"folder": str(folder), "reproduced": None, "differences": []}
    configuration = json.loads((folder / "configuration.json").read_text())
    assert configuration["seeds"] == [0, 1]
    assert {"protocol": "split", "share": 0.06, "map_at": 10, "ks": [1]}.items() <= configuration.items()
    assert configuration["schema"]["granularities"][0]["bits"] == 32
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["numpy"] == np.__version__
    assert environment["paths"] == [str(photos)]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["granularities"] == evaluation.to_json()["granularities"]
    assert str(photos) not in (folder / "metrics.json").read_text(), "another copy of the images gives the same file"

    rows = [json.loads(line) for line in (folder / "average_precisions.jsonl").read_text().splitlines()]
    assert [(row["seed"], Path(row["query"]).parent.name) for row in rows] == [
        (seed, kind) for seed in (0, 1) for kind in ("blocks", "disc", "stripes")
    ]
    assert (photos / rows[0]["query"]).is_file()
    for number, details in enumerate(evaluation.runs):
        exact = [row["average_precision"]["fused:rank"] for row in rows if row["seed"] == number]
        assert exact == details.scores["fused:rank"].ranking.average_precisions_at_k.tolist()


def test_a_repeated_run_gives_the_same_to_the_bit(
    first: tuple[Path, Evaluation], photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    folder, evaluation = first
    before = content(folder)
    copy = tmp_path / "elsewhere"
    for file in photos.rglob("*.jpg"):
        (copy / file.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(photos)).write_bytes(file.read_bytes())
    again = evaluate(copy, encoder=encoder, run=folder, **OPTIONS)
    assert again.metrics["run"] == {"folder": str(folder), "reproduced": True, "differences": []}
    assert content(folder) == before
    assert [own.digest("mid") for own in again.runs] == [own.digest("mid") for own in evaluation.runs]


def test_another_configuration_is_refused_before_the_work(
    first: tuple[Path, Evaluation], photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    folder, _ = first
    before = content(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    fewer = make_photos(tmp_path / "fewer", per_kind=17)
    for images, run, changed, message in (
        (photos, folder, {"map_at": 20}, "another configuration: map_at was 10, now 20; name another folder"),
        (photos, folder, {"bits": {"coarse": 64, "mid": 64}}, "schema.granularities was "),
        (photos, folder, {"seed": 5}, r"seeds was \[0, 1\], now \[5, 6\]"),
        (fewer, folder, {}, "images was "),
        (photos, tmp_path / "full", {}, "holds 'thesis.tex', which is no file of a run"),
        (photos, tmp_path / "full" / "thesis.tex", {}, "cannot be made"),
    ):
        with pytest.raises(QueryError, match=message):
            evaluate(
                images, encoder=encoder, run=run, progress=lambda told: pytest.fail(str(told)), **OPTIONS | changed
            )
    assert content(folder) == before


def kept(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, metrics={key: own for key, own in evaluation.metrics.items() if key != "run"})


def test_other_metrics_are_said_with_what_may_explain_them(
    first: tuple[Path, Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, evaluation = first
    run = outputs.RunFolder(tmp_path / "run", {"seeds": [0, 1]}, str(tmp_path))
    environment = outputs.environment_of(tmp_path)
    run.check()
    run.keep(kept(evaluation), environment)
    before = content(run.path)
    metrics = kept(evaluation).metrics | {"queries": 99}
    result = run.keep(replace(evaluation, metrics=metrics), environment | {"python": "3.99"})
    assert result == {
        "folder": str(run.path), "reproduced": False,
        "differences": ["queries was 3, now 99", f'python was "{environment["python"]}", now "3.99"'],
    }  # fmt: skip
    assert content(run.path) == before

    (run.path / "configuration.json").write_text("{")
    with pytest.raises(QueryError, match=r"configuration.json' is damaged .*; remove the folder"):
        run.check()


def test_an_interrupted_run_is_written_anew(first: tuple[Path, Evaluation], tmp_path: Path) -> None:
    run = outputs.RunFolder(tmp_path, {"seeds": [0, 1]}, str(tmp_path))
    (tmp_path / "metrics.json").write_text("{")
    run.check()
    assert run.keep(kept(first[1]), {})["reproduced"] is None
    assert json.loads((tmp_path / "metrics.json").read_text())["seeds"] == [0, 1]


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_codes_for_other_programs(first: tuple[Path, Evaluation], tmp_path: Path, suffix: str) -> None:
    _, evaluation = first
    details = next(iter(evaluation.runs), None)
    assert details is not None
    file = tmp_path / f"codes{suffix}"
    write_codes(evaluation, file)
    if suffix == ".npz":
        arrays = dict(np.load(file))
        paths, names = arrays["paths"].tolist(), arrays["label_names"].tolist()
    else:
        arrays = loadmat(file)
        arrays |= {name: arrays[name].ravel() for name in ("query", "database")}
        paths, names = ([str(cell[0]) for cell in arrays[name].ravel()] for name in ("paths", "label_names"))
    query, database = arrays["query"].astype(bool), arrays["database"].astype(bool)
    assert [path for path, own in zip(paths, query, strict=True) if own] == [found.path for found in details.queries]
    assert [path for path, own in zip(paths, database, strict=True) if own] == [
        image.path for image in details.database
    ]
    assert names == ["blocks", "disc", "stripes"]
    assert [names[row.argmax()] for row in arrays["labels"]] == [Path(path).parent.name for path in paths]
    assert arrays["labels"].sum() == len(paths) == 54
    # The papers' way to a Hamming distance: half of bits less the product.
    codes = arrays["codes_mid"]
    assert (codes.dtype, codes.shape, set(np.unique(codes))) == (np.int8, (54, 64), {-1, 1})
    found = (64 - codes[query].astype(int) @ codes[database].astype(int).T) // 2
    assert (found == hamming(details.query_codes["mid"], details.database_codes["mid"])).all()


def test_files_that_codes_cannot_be_written_to(
    first: tuple[Path, Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QueryError, match=r"ends with '.csv', expected .npz or .mat"):
        check_codes_file(tmp_path / "codes.csv")
    with pytest.raises(QueryError, match="is no folder"):
        check_codes_file(tmp_path / "none" / "codes.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(QueryError, match="cannot be written"):
        write_codes(first[1], tmp_path / "folder.npz")
    with pytest.raises(QueryError, match="the protocol copies has no codes"):
        write_codes(replace(first[1], runs=()), tmp_path / "codes.npz")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mg-milvus\[mat\]', or write .npz"):
        check_codes_file(tmp_path / "codes.mat")


def test_scipy_is_there_again_after_it_was_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scipy")
    skip_scipy()
    with pytest.raises(ImportError):
        import scipy  # noqa: F401
    allow_scipy()
    assert "scipy" not in sys.modules
