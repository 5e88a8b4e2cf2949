"""``mgm tune`` as a user meets it: the installed command, images, a schema file, a collection."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import ImageEnhance

from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from tests.conftest import KINDS, kind_of_image, make_photos
from tests.forked import program
from tests.waiting import PATIENCE

SMALL = "# mine\ncollection: copies\ngranularities: [{name: coarse, bits: 8}, {name: fine, bits: 256}]\n"


def mgm(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(), *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 images, a darker cut-out of each as query, and a schema whose coarse codes are too short to help."""
    folder = tmp_path_factory.mktemp("copies")
    (folder / "photos").mkdir()
    rows = ["query,relevant"]
    for kind in KINDS:
        for number in range(24):
            image = kind_of_image(kind, number)
            width, height = image.size
            cut = ImageEnhance.Brightness(image.crop((8, 6, width - 8, height - 6))).enhance(0.8)
            image.save(folder / "photos" / f"{kind}{number}.png")
            cut.save(folder / "photos" / f"{kind}{number}_copy.png")
            rows.append(f"{kind}{number}_copy.png,{kind}{number}.png")
    (folder / "relevant.csv").write_text("\n".join(rows) + "\n")
    (folder / "small.yaml").write_text(SMALL)
    return folder


def test_a_collection_answers_with_what_was_learned(copies: Path) -> None:
    assert mgm("ingest", "photos", "--schema", "small.yaml", "--uri", "copies.db", cwd=copies).returncode == 0
    done = mgm(
        "tune", "photos", "--pairs", "relevant.csv", "--uri", "copies.db", "--out", "out.yaml", "--json", cwd=copies
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["better"], report["collection"], report["file"]) == (True, "copies", "out.yaml")
    assert (report["queries"], report["candidates"], report["folds"]) == (72, 144, 5)
    assert report["gain"] > report["standard_error"] > 0
    assert report["tuned"] - report["equal"] == pytest.approx(report["gain"], abs=2e-6)
    assert report["new"] == report["learned"]
    assert report["old"] == {"weights": {"coarse": 1.0, "fine": 1.0}, "rrf_k": 60}
    weights = report["learned"]["weights"]
    assert weights["fine"] == 1
    assert weights["coarse"] < 0.5

    with ImageIndex.open(copies / "copies.db") as index:
        assert (index.schema.weights, index.schema.fusion.rrf_k) == (weights, report["learned"]["rrf_k"])
        (hit,) = index.query(copies / "photos" / "disc0_copy.png", k=1)
        rrf_k = report["learned"]["rrf_k"]
        fused = sum(weight / (rrf_k + hit.ranks[name]) for name, weight in weights.items())
        if hit.lead:  # it stands out as the same image
            fused += sum(weights.values()) / (rrf_k + hit.ranks[hit.lead])
        assert hit.score == pytest.approx(fused)
    written = Schema.load(copies / "out.yaml")
    assert (written.weights, written.collection) == (weights, "copies")

    again = mgm("tune", "photos", "--pairs", "relevant.csv", "--uri", "copies.db", cwd=copies)
    assert again.returncode == 0, again.stderr
    assert "Nothing was changed: the current weights do as well." in again.stdout


def test_a_schema_file_is_tuned_in_place_and_the_goal_is_said(copies: Path) -> None:
    file = copies / "mine.yaml"
    file.write_text(SMALL)
    arguments = ("tune", "photos", "--pairs", "relevant.csv", "--schema", "mine.yaml", "--goal", "recall@1")
    done = mgm(*arguments, cwd=copies, MGM_URI="nowhere.db")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("recall@1 of 72 queries among 144 images, in 5 folds:\n  equal weights    0.")
    assert "against equal ones" in done.stdout
    assert done.stdout.endswith("Written to mine.yaml.\n")
    tuned = Schema.load(file)
    assert tuned.weights["fine"] == 1
    assert tuned.weights["coarse"] < 0.5
    assert (tuned.collection, tuned.bits) == ("copies", {"coarse": 8, "fine": 256})
    assert not (copies / "nowhere.db").exists()


def test_what_is_not_better_changes_nothing_and_broken_images_are_listed(tmp_path: Path) -> None:
    """The double of each image is relevant to it, and every granularity finds it."""
    make_photos(tmp_path / "photos", per_kind=4)
    rows = ["query,relevant"]
    for image in sorted((tmp_path / "photos").rglob("*.jpg")):
        (image.parent / f"double_{image.name}").write_bytes(image.read_bytes())
        rows.append(f"{image},{image.parent}/double_{image.name}")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "relevant.csv").write_text("\n".join([*rows, f"broken.jpg,{image}"]) + "\n")
    (tmp_path / "mine.yaml").write_text(SMALL)
    arguments = ("tune", "photos", "--pairs", "relevant.csv", "--schema", "mine.yaml", "--folds", "3")
    done = mgm(*arguments, cwd=tmp_path)
    assert (done.returncode, (tmp_path / "mine.yaml").read_text()) == (3, SMALL), done.stderr
    assert "map of 12 queries among 24 images, in 3 folds:" in done.stdout
    assert "Nothing was changed: the learned weights are not better than equal ones" in done.stdout
    assert "1 could not be read:" in done.stdout
    report = json.loads(mgm(*arguments, "--out", "out.yaml", "--json", cwd=tmp_path).stdout)
    assert (report["better"], report["file"], report["new"], report["gain"]) == (False, None, report["old"], 0)
    assert [Path(failure["path"]).name for failure in report["failures"]] == ["broken.jpg"]
    assert not (tmp_path / "out.yaml").exists()


def test_wrong_tunings_end_with_one_line_and_the_remedy(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", per_kind=2)
    (tmp_path / "pairs.csv").write_text("query,relevant\ndisc/00.jpg,disc/77.jpg\n")
    cases = {
        ("photos",): "there is no index at mgm.db; make it with mgm ingest FOLDER",
        ("photos/disc", "--schema", "default", "--out", "x.yaml"): "has no labels",
        ("photos", "--schema", "default", "--out", "x.yaml"): "6 queries for 5 folds",
        ("photos", "--schema", "default", "--out", "x.yaml", "--pairs", "pairs.csv"): "'disc/77.jpg' is no image in",
        ("photos", "--schema", "compact"): "say where to write with --out FILE",
        ("nowhere", "--schema", "default", "--out", "x.yaml"): "'nowhere' does not exist",
    }
    for arguments, message in cases.items():
        done = mgm("tune", *arguments, cwd=tmp_path)
        last = done.stderr.splitlines()[-1]
        assert (done.returncode, last[:5]) == (1, "mgm: "), done.stderr
        assert message in last
    goal = mgm("tune", "photos", "--goal", "speed", cwd=tmp_path)
    assert (goal.returncode, "recall@1" in goal.stderr) == (2, True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs.csv", "photos"]
