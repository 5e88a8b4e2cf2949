"""Details asked through the installed command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_cli import mgm
from tests.integration.test_search_regions import collage, overlap


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos/`` of 52 collages, ingested with the preset ``regions``; ``detail.jpg`` is the upper right of one."""
    folder = tmp_path_factory.mktemp("regions")
    (folder / "photos").mkdir()
    for seed in range(52):
        collage(seed).save(folder / "photos" / f"{seed:02}.png")
    collage(9).crop((120, 0, 240, 80)).resize((156, 104), Image.Resampling.BICUBIC).save(
        folder / "detail.jpg", quality=60
    )
    done = mgm("ingest", "photos", "--schema", "regions", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_detail_is_found_and_shown_where(home: Path) -> None:
    done = mgm("query", "detail.jpg", "--contains", "-k", "3", "--json", "--html", "result.html", cwd=home)
    assert done.returncode == 0, done.stderr
    first, *rest = map(json.loads, done.stdout.splitlines())
    assert len(rest) == 2
    assert first["path"] == str(home / "photos/09.png")
    assert overlap(first["box"], (120, 0, 120, 80)) >= 0.5
    assert first["distances"]["regions"] <= 128
    x, y, width, height = first["box"]
    page = (home / "result.html").read_text()
    assert f"found at {x}, {y}, {width} × {height}" in page


def test_the_table_has_a_column_for_boxes(home: Path) -> None:
    done = mgm("query", "detail.jpg", "--contains", "-k", "1", cwd=home)
    header, row = done.stdout.decode().splitlines()[:2]
    assert header.split() == ["rank", "score", "path", "verdict", "coarse", "mid", "fine", "regions", "box"]
    assert re.search(r"\d+,\d+,\d+,\d+$", row.rstrip())
    plain = mgm("query", "detail.jpg", "-k", "1", "--profile", "object", cwd=home).stdout.decode().splitlines()[0]
    assert plain.split() == ["rank", "score", "path", "verdict", "coarse", "mid", "fine"]


def test_a_crop_of_an_image_in_the_index(home: Path) -> None:
    done = mgm("query", "photos/30.png", "--crop", "0,80,120,80", "--weights", "coarse=1,regions=2", "--json", cwd=home)
    first = json.loads(done.stdout.splitlines()[0])
    assert first["path"] == str(home / "photos/30.png")
    assert (first["distances"]["coarse"], first["ranks"]["regions"]) == (0, 1.0)
    assert overlap(first["box"], (0, 80, 120, 80)) >= 0.5


def test_overlap_as_an_option(home: Path) -> None:
    shared = mgm("query", "photos/30.png", "--overlap", "-k", "1", "--json", cwd=home)
    assert json.loads(shared.stdout)["path"] == str(home / "photos/30.png")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["detail.jpg", "--contains", "--overlap"], 2, "give one of them"),
        (
            ["detail.jpg", "--contains", "--crop", "150,0,50,50"],
            1,
            "does not lie inside the image, which is 156 pixels",
        ),
        (["detail.jpg", "--crop", "0,0,0,10"], 2, "is not a part of an image"),
        (["detail.jpg", "--crop", "0,0,4,4"], 1, "4x4 pixels is too small to be recognised"),
        (["--like", "photos/30.png", "--contains"], 1, "regions are searched with the image itself"),
    ],
)
def test_mistakes(home: Path, arguments: list[str], code: int, message: str) -> None:
    done = mgm("query", *arguments, cwd=home)
    assert done.returncode == code
    assert message in " ".join(done.stderr.decode().replace("│", " ").split())
    assert done.stdout == b""


def test_info_and_doctor_tell_of_regions(home: Path) -> None:
    told = mgm("info", cwd=home).stdout.decode()
    assert "128 bits each: 2x2 of 0.7, 3x3 of 0.5, 4x4 of 0.33 of the image's sides" in told
    assert re.search(r"bytes per image\s+520", told)
    done = mgm("doctor", "--json", cwd=home)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["regions"]["message"] == "1,508 codes of regions, in step with the images"


def test_a_collection_without_regions(home: Path, tmp_path: Path) -> None:
    assert mgm("ingest", str(home / "photos"), cwd=tmp_path).returncode == 0
    done = mgm("query", str(home / "detail.jpg"), "--contains", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(b"mgm: this collection has no codes of regions")
    assert b"--schema regions" in done.stderr
