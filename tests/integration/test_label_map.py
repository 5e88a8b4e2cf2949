"""``mgm fit --labels``: what labels teach an encoder, its file, and collections that are made with it."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mg_milvus import errors
from mg_milvus.cli.app import app
from mg_milvus.codes import hamming
from mg_milvus.encoder import file
from mg_milvus.encoder.load import load_encoder
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.fit_heads import FitOptions, FitReport, fit_encoder
from mg_milvus.schema.models import Schema

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


SCHEMA = Schema.from_yaml(
    "version: 1\ngranularities: [{name: coarse, bits: 32}, {name: mid, bits: 64}, {name: fine, bits: 64}]"
)


def odd_and_even(folder: Path) -> dict[str, tuple[str, ...]]:
    """Labels that nothing in the painted images says: number/odd or number/even."""
    return {str(path): (f"number/{('even', 'odd')[int(path.stem) % 2]}",) for path in folder.rglob("*.jpg")}


@pytest.fixture(scope="module")
def taught(labelled_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitReport]:
    """An encoder file that has learned which image is odd."""
    out = tmp_path_factory.mktemp("taught") / "mine.safetensors"
    return out, fit_encoder(labelled_photos, out, FitOptions(schema=SCHEMA, labels=odd_and_even(labelled_photos)))


def mean_precision(index: ImageIndex, labels: Mapping[str, tuple[str, ...]]) -> float:
    """Share of images with the query's label among the nearest 10 by ``mid``."""
    rows = [row for batch in index.session.store.scan(None, ("mid",)) for row in batch]
    codes = np.stack([np.frombuffer(row.codes["mid"], np.uint8) for row in rows])
    own = np.array([labels[row.path][0] for row in rows])
    found = []
    for place in range(len(rows)):
        distances = hamming(codes[place : place + 1], codes)[0].astype(float)
        distances[place] = np.inf
        found.append(np.mean(own[np.argsort(distances, kind="stable")[:10]] == own[place]))
    return float(np.mean(found))


def test_images_of_a_label_lie_together(taught: tuple[Path, FitReport], labelled_photos: Path) -> None:
    out, report = taught
    labels = odd_and_even(labelled_photos)
    # All are of the group "number", which coarse learns beside the whole labels.
    assert (report.images, dict(report.labels)) == (60, {"coarse": 3, "mid": 2})
    with ImageIndex.open("memory:", schema=SCHEMA) as index:
        index.ingest(labelled_photos)
        without = mean_precision(index, labels)
    with ImageIndex.open("memory:", schema=SCHEMA, encoder=out) as index:
        index.ingest(labelled_photos)
        assert index.info().heads == "adapted on 60 images"  # heads are fitted to the collection as always
        assert without < 0.55 < 0.65 < mean_precision(index, labels)


def test_the_file_and_the_collection_keep_what_was_learned(
    taught: tuple[Path, FitReport], labelled_photos: Path, tmp_path: Path
) -> None:
    out, report = taught
    encoder = load_encoder(out)
    assert encoder.fingerprint == report.fingerprint
    images = [encoder.prepare(picture) for picture in pictures(labelled_photos)]
    plain, own = load_encoder().features(images), encoder.features(images)
    widths = {name: own[name].shape[1] - plain[name].shape[1] for name in ("coarse", "mid", "fine")}
    assert widths == {"coarse": 3, "mid": 2, "fine": 0}
    with ImageIndex.open(tmp_path / "mgm.db", schema=SCHEMA, encoder=out) as index:
        index.ingest(labelled_photos)
        asked = index.query(labelled_photos / "disc" / "00.jpg", k=1)[0]
    with ImageIndex.open(tmp_path / "mgm.db") as index:  # needs the URI alone
        assert index.query(labelled_photos / "disc" / "00.jpg", k=1)[0].score == asked.score
        assert asked.distances["mid"] == 0


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.jpg"))[:3]]


def test_what_cannot_be_learned_is_refused(
    taught: tuple[Path, FitReport], labelled_photos: Path, tmp_path: Path
) -> None:
    labels, out = odd_and_even(labelled_photos), tmp_path / "out.safetensors"
    same = dict.fromkeys(labels, ("one",))
    cases: list[tuple[FitOptions, type[Exception], str]] = [
        (FitOptions(labels=same), errors.LabelError, "all images have the labels one, expected at least two"),
        (FitOptions(labels=labels, method="itq"), errors.EncoderError, "labels teach adaptive heads only, not .* itq"),
        (FitOptions(labels=labels, bits={"fine": 64}), errors.EncoderError, "labels teach coarse and mid only"),
        (FitOptions(labels=labels, backbone=str(taught[0])), errors.EncoderError, "has learned labels already"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            fit_encoder(labelled_photos, out, options)
        assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("name", ["mean", "weights"])
@pytest.mark.parametrize("kind", ["numbers that are none", "another length"])
def test_a_damaged_map_fails_when_it_is_loaded(taught: tuple[Path, FitReport], name: str, kind: str) -> None:
    parts = file.from_bytes(taught[0].read_bytes(), "it")
    learned = parts.labels["mid"]
    values = getattr(learned, name)
    wrong = values * np.nan if kind == "numbers that are none" else values[:-1]
    crafted = parts.model_copy(update={"labels": {**parts.labels, "mid": replace(learned, **{name: wrong})}})
    with pytest.raises(errors.EncoderError, match="what labels taught mid does not work") as caught:
        load_encoder(file.to_bytes(crafted))
    assert "\n" not in str(caught.value)


def test_the_command_learns_from_folders_and_from_a_table(
    labelled_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = shutil.copytree(labelled_photos, tmp_path / "photos")
    shutil.copy(photos / "disc" / "00.jpg", photos / "beside.jpg")
    monkeypatch.chdir(tmp_path)

    def fit(labels: str) -> tuple[int, dict]:
        done = CliRunner().invoke(app, ["fit", "photos", "--out", "mine.safetensors", "--labels", labels, "--json"])
        return done.exit_code, json.loads(done.stdout or "{}")

    code, report = fit("folders")
    assert (code, report["images"], report["labels"]) == (3, 60, {"coarse": 3, "mid": 3})
    assert [failure["path"] for failure in report["failures"]] == [str(photos / "beside.jpg")]
    with open("labels.csv", "w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["path", "label"])
        rows.writerows([path.relative_to(photos), f"shape/{path.parent.name}|all"] for path in photos.rglob("*/*.jpg"))
    code, report = fit("labels.csv")
    # The groups are shape and all; three whole labels and all.
    assert (code, report["labels"]) == (3, {"coarse": 5, "mid": 4})
    code, _ = fit("none.csv")
    assert code == 1
