"""Codes propose, pixels decide: what is a copy, what only looks like one, and what may go."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from mg_milvus.duplicates import verdicts
from mg_milvus.errors import ImageError, NotIndexedError, QueryError
from mg_milvus.index import ImageIndex
from tests.unit.test_verify import captioned, letter, photo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mg_milvus.duplicates.report import DuplicateReport, GroupMember


def drawing(x: int) -> Image.Image:
    """White lines on transparency."""
    image = Image.new("RGBA", (200, 200))
    ImageDraw.Draw(image).line([(20, x), (180, 200 - x), (x, 20)], (255, 255, 255, 255), 5)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs with copies of some, and images that only look alike."""
    made = tmp_path_factory.mktemp("field") / "photos"
    made.mkdir()
    for number in range(5):
        photo(number).save(made / f"{number}.jpg", quality=92)
    shutil.copy(made / "0.jpg", made / "0 copy.jpg")
    ImageEnhance.Brightness(photo(1)).enhance(1.2).save(made / "1 brighter.jpg", quality=70)
    photo(1).resize((240, 160), Image.Resampling.LANCZOS).save(made / "1 small.jpg", quality=90)
    photo(2).crop((14, 10, 466, 310)).save(made / "2 cropped.jpg", quality=92)
    ImageOps.mirror(photo(3)).save(made / "3 mirrored.jpg", quality=92)
    captioned(photo(4)).save(made / "4 captioned.jpg", quality=92)
    for number in range(2):
        letter(number).save(made / f"letter {number}.png")
        drawing(40 + 90 * number).save(made / f"drawing {number}.png")
        Image.new("L", (300, 200), 4 * number).save(made / f"blank {number}.png")
    return made


@pytest.fixture(scope="module")
def index(folder: Path) -> Iterator[ImageIndex]:
    with ImageIndex.open("memory:") as opened:
        opened.ingest(folder)
        yield opened


def name(path: str | None) -> str:
    return "" if path is None else Path(path).stem


def members(report: DuplicateReport) -> dict[str, GroupMember]:
    return {name(member.path): member for group in report.groups for member in group.members}


def offered(report: DuplicateReport) -> set[str]:
    return {name(path) for path in report.removable_paths}


def test_copies_are_found_and_only_they(index: ImageIndex):
    report = index.duplicates()
    assert sorted(sorted(name(member.path) for member in group.members) for group in report.groups) == [
        ["0", "0 copy"], ["1", "1 brighter", "1 small"], ["2", "2 cropped"], ["3", "3 mirrored"], ["4", "4 captioned"],
    ]  # fmt: skip
    found = {own: member.verdict for own, member in members(report).items()}
    assert {found["0"], found["0 copy"]} == {"", "identical file"}
    assert {found["1"], found["1 small"]} == {"", "same image"}
    for own, edited in (("2", "2 cropped"), ("3", "3 mirrored"), ("4", "4 captioned")):
        assert {found[own], found[edited]} == {"", "edited"}  # either has more bytes and stays
    assert "1 small" in offered(report)
    assert len(offered(report) & {"0", "0 copy"}) == 1
    assert not offered(report) & {"1", "2", "2 cropped", "3", "3 mirrored", "4", "4 captioned"}
    assert report.verdicts["similar"] >= 1
    assert any(line.startswith("looked at ") and "same image" in line for line in report.summary(index.schema.bits))


def test_edited_copies_are_offered_when_asked_for(index: ImageIndex):
    report = index.duplicates(edited=True)
    assert len(offered(report)) == 6
    assert {name(path) for path in report.removable_paths} & {"letter 0", "letter 1", "drawing 0", "blank 0"} == set()


def test_no_distance_makes_letters_drawings_or_blank_images_copies(index: ImageIndex):
    report = index.duplicates(distance=256, edited=True)
    assert {own.split()[0] for own in members(report)} == {"0", "1", "2", "3", "4"}


def test_a_distance_limits_what_is_looked_at(index: ImageIndex):
    assert set(members(index.duplicates(distance=0))) == {"0", "0 copy"}


def test_one_image(index: ImageIndex, folder: Path, tmp_path: Path):
    photo(2).save(tmp_path / "new.jpg", quality=60)
    report = index.duplicates(of=tmp_path / "new.jpg")
    assert set(members(report)) == {"new", "2", "2 cropped"}
    letter(7).save(tmp_path / "letter.png")
    assert index.duplicates(of=tmp_path / "letter.png").groups == ()
    report = index.duplicates(of=folder / "0.jpg")
    assert members(report)["0 copy"].verdict or members(report)["0"].verdict == "identical file"


def test_folders_that_stay(tmp_path: Path):
    small, large = tmp_path / "small", tmp_path / "large"
    for own in (small, large):
        own.mkdir()
    for number in range(3):
        photo(number).save(large / f"{number}.jpg", quality=92)
    photo(0).resize((240, 160)).save(small / "0 small.jpg")
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path)
        assert offered(index.duplicates()) == {"0 small"}
        assert offered(index.duplicates(keep_folder=[small])) == {"0"}
        assert offered(index.duplicates(reference=[small])) == {"0"}
        assert offered(index.duplicates(reference=[small, large])) == set()


def test_an_image_that_is_gone_is_compared_by_codes_and_said_to_be(tmp_path: Path):
    for number in range(3):
        photo(number).save(tmp_path / f"{number}.jpg", quality=92)
    shutil.copy(tmp_path / "0.jpg", tmp_path / "gone.jpg")
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path)
        (tmp_path / "gone.jpg").unlink()
        report = index.duplicates()
        assert {own: (member.mark, member.verdict) for own, member in members(report).items()} == {
            "0": ("keep", ""), "gone": ("file gone", "alike by codes"),
        }  # fmt: skip
        assert report.removable == ()
        assert (report.near_pairs, report.unseen_pairs, report.missing) == (1, 3, 1)


def test_an_image_that_cannot_be_read_any_more_is_not_offered(tmp_path: Path):
    for number in range(3):
        photo(number).save(tmp_path / f"{number}.jpg", quality=92)
    photo(0).save(tmp_path / "again.jpg", quality=80)
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path)
        (tmp_path / "again.jpg").write_bytes(b"no image")
        report = index.duplicates()
    assert (report.removable, report.away) == ((), 1)
    assert any("cannot be read" in line for line in report.summary({"coarse": 64, "mid": 128, "fine": 256}))


def test_verdicts_are_kept_and_a_damaged_cache_is_made_anew(index: ImageIndex, monkeypatch: pytest.MonkeyPatch):
    first = index.duplicates().as_dict() | {"seconds": 0}
    with sqlite3.connect(verdicts.cache_file()) as kept:
        number = kept.execute("select count(*) from pairs").fetchone()[0]
    kept.close()
    assert number >= 6
    with monkeypatch.context() as blind:
        blind.setattr(verdicts, "read_pixels", lambda _: pytest.fail("it was looked at before"))
        assert index.duplicates().as_dict() | {"seconds": 0} == first
    verdicts.cache_file().write_bytes(b"no database" * 500)
    assert index.duplicates().as_dict() | {"seconds": 0} == first


def test_progress_and_json(index: ImageIndex):
    told = []
    report = index.duplicates(progress=told.append)
    looked = [step for step in told if step.stage == "looking at pairs"]
    assert looked
    assert looked[-1].done == looked[-1].total
    text = json.dumps(report.as_dict())
    assert "same image" in text
    assert json.loads(text)["verdicts"]["identical file"] == 1


def test_pairs_that_are_no_duplicates_are_remembered_by_content(folder: Path, tmp_path: Path):
    seen = tmp_path / "seen.jsonl"
    shutil.copytree(folder, tmp_path / "moved")
    with ImageIndex.open("memory:") as index:
        index.ingest(folder)
        assert index.not_duplicates(seen, folder / "2.jpg", folder / "2 cropped.jpg") == 1
        assert index.not_duplicates(seen, folder / "2 cropped.jpg", index.row(folder / "2.jpg").id) == 0
        line = json.loads(seen.read_text())
        assert sorted(map(name, line["paths"])) == ["2", "2 cropped"]
        assert set(line["contents"]) == {index.row(folder / f"{own}.jpg").content_hash for own in ("2", "2 cropped")}
        report = index.duplicates(ignore=seen, distance=256)
        assert not {"2", "2 cropped"} & set(members(report))
        assert {"1", "3", "3 mirrored"} <= set(members(report))
        assert report.ignored == 1
        assert "1 pair left out as no duplicates" in report.summary(index.schema.bits)
        assert index.duplicates(of=folder / "2.jpg", ignore=seen).ignored == 1
        assert index.duplicates(of=folder / "2.jpg", ignore=seen).groups == ()
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path / "moved")
        assert not {"2", "2 cropped"} & set(members(index.duplicates(ignore=seen)))


def test_two_of_three_copies_told_apart_may_each_stay_with_the_third(folder: Path, index: ImageIndex, tmp_path: Path):
    seen = tmp_path / "seen.jsonl"
    assert index.not_duplicates(seen, folder / "1.jpg", folder / "1 small.jpg", folder / "0.jpg") == 3
    found = members(index.duplicates(ignore=seen))
    assert {name(found[own].duplicate_of) for own in ("1", "1 small")} <= {"1 brighter", ""}


def test_an_image_that_is_gone_is_left_out_by_the_content_it_had(tmp_path: Path):
    for number in range(3):
        photo(number).save(tmp_path / f"{number}.jpg", quality=92)
    photo(0).save(tmp_path / "gone.jpg", quality=80)
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path)
        (tmp_path / "gone.jpg").unlink()
        assert len(index.duplicates(distance=16).groups) == 1
        assert index.not_duplicates(tmp_path / "seen", tmp_path / "gone.jpg", tmp_path / "0.jpg") == 1
        report = index.duplicates(distance=16, ignore=tmp_path / "seen")
    assert (report.groups, report.near_pairs, report.ignored) == ((), 0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{}", "line 1 is '{}', expected"),
        (b'\n{"contents": ["a", "b"]}', "line 2 is"),
        (b'{"contents": ["' + 32 * b"0" + b'", "' + 32 * b"0" + b'"]}', "two different hashes"),
        (b"\xff", "is not a text of UTF-8"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused(index: ImageIndex, tmp_path: Path, text: bytes | None, message: str):
    if text is not None:
        (tmp_path / "seen").write_bytes(text)
    with pytest.raises(QueryError, match=re.escape(message)):
        index.duplicates(ignore=tmp_path / "seen")


def test_images_that_make_no_pair_are_refused(index: ImageIndex, folder: Path, tmp_path: Path):
    seen = tmp_path / "seen"
    with pytest.raises(QueryError, match="have the same content"):
        index.not_duplicates(seen, folder / "0.jpg", folder / "0 copy.jpg")
    with pytest.raises(QueryError, match="1 image given"):
        index.not_duplicates(seen, folder / "0.jpg")
    with pytest.raises(NotIndexedError):
        index.not_duplicates(seen, folder / "0.jpg", tmp_path / "nothing.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError, match=re.escape("text.jpg")):
        index.not_duplicates(seen, folder / "0.jpg", tmp_path / "text.jpg")
    with pytest.raises(QueryError, match="cannot be written"):
        index.not_duplicates(tmp_path / "no" / "folder", folder / "0.jpg", folder / "1.jpg")
    assert not seen.exists()
