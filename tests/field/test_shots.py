"""The files of one shot count as one: RAW and JPEG, the parts of a Live Photo, sidecars."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mg_milvus.images.shots import Shots
from mg_milvus.index import ImageIndex
from tests.field.test_duplicates import members, offered
from tests.unit.test_verify import photo

if TYPE_CHECKING:
    from mg_milvus.duplicates.report import DuplicateReport


def names(paths: tuple[str, ...]) -> list[str]:
    return [Path(path).name for path in paths]


def touch(folder: Path, *files: str) -> None:
    for own in files:
        (folder / own).write_bytes(own.encode())


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        (["a.JPG", "a.CR2", "b.CR2"], "a.JPG", ["a.CR2"]),
        (["a.JPG", "A.cr2"], "A.cr2", ["a.JPG"]),
        (["a.HEIC", "a.MOV", "a.AAE"], "a.HEIC", ["a.AAE", "a.MOV"]),
        (["a.jpg", "a.png"], "a.jpg", []),
        (["a.jpg", "a.png", "a.xmp"], "a.jpg", ["a.png", "a.xmp"]),
        (["a.jpg", "a.CR2", "a.CR2.xmp", "a.jpg.json"], "a.jpg", ["a.CR2", "a.CR2.xmp", "a.jpg.json"]),
        (["a.jpg", "a.png", "a.png.json"], "a.jpg", []),
        (["a.jpg", "a.txt", "a"], "a.jpg", []),
        (["a.MP.jpg", "a.MP"], "a.MP.jpg", ["a.MP"]),
        (["2024.01.05.jpg", "2024.01.06.xmp"], "2024.01.05.jpg", []),
    ],
)
def test_the_files_of_a_shot(tmp_path: Path, files: list[str], own: str, expected: list[str]):
    touch(tmp_path, *files)
    assert names(Shots().parts(str(tmp_path / own))) == expected


def test_one_image_of_each_shot_is_looked_at(tmp_path: Path):
    files = ("a.CR2", "a.JPG", "b.png", "b.jpg", "c.dng")
    touch(tmp_path, *files)
    paths = [*(str(tmp_path / own) for own in files), "https://example.org/a.JPG"]
    assert Shots().together(paths) == [[str(tmp_path / "a.JPG"), str(tmp_path / "a.CR2")]]


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """A shot of a JPEG and what stands for its RAW file (the content is a PNG), and two photographs."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in range(3):
        photo(number).save(folder / f"{number}.jpg", quality=92)
    photo(0).save(tmp_path / "raw.png")
    shutil.move(tmp_path / "raw.png", folder / "0.dng")
    return folder


def duplicates(*folders: Path, **options: Any) -> DuplicateReport:
    with ImageIndex.open("memory:") as index:
        index.ingest(*folders)
        return index.duplicates(**options)


def test_raw_and_jpeg_are_no_duplicates_of_each_other(shots: Path):
    report = duplicates(shots)
    assert (report.groups, report.rows) == ((), 3)


def test_a_copy_without_the_raw_file_goes_and_the_shot_stays_by_every_rule(shots: Path, tmp_path: Path):
    photo(0).resize((960, 640)).save(tmp_path / "export.png")
    with ImageIndex.open("memory:") as index:
        index.ingest(shots, tmp_path / "export.png")
        for rule in ("best", "newest", "first"):
            report = index.duplicates(keep=rule)
            assert offered(report) == {"export"}
            assert names(members(report)["0"].parts) == ["0.dng"]


def test_a_shot_is_offered_whole_where_each_of_its_files_has_a_copy(shots: Path, tmp_path: Path):
    (shots / "0.xmp").write_text("<x:xmpmeta/>")
    shutil.copytree(shots, tmp_path / "backup")
    report = duplicates(shots, tmp_path / "backup", reference=[shots])
    assert sorted(names(report.removable_paths)) == ["0.dng", "0.jpg", "0.xmp", "1.jpg", "2.jpg"]
    assert {Path(path).parent.name for path in report.removable_paths} == {"backup"}
    (tmp_path / "backup" / "0.xmp").write_text("<x:xmpmeta>edited</x:xmpmeta>")
    report = duplicates(shots, tmp_path / "backup", reference=[shots])
    assert offered(report) == {"1", "2"}
    all_members = [member for group in report.groups for member in group.members]
    kept = next(member for member in all_members if member.path == str(tmp_path / "backup" / "0.jpg"))
    assert (kept.mark, names(kept.parts)) == ("identical file", ["0.dng", "0.xmp"])


def test_a_raw_file_never_goes_for_a_jpeg(shots: Path, tmp_path: Path):
    export = tmp_path / "export"
    export.mkdir()
    shutil.move(shots / "0.jpg", export / "0.jpg")
    with ImageIndex.open("memory:") as index:
        index.ingest(shots, export)
        report = index.duplicates(keep_folder=[export])
        assert report.removable == ()
        assert {Path(member.path).suffix for member in report.groups[0].members} == {".jpg", ".dng"}
        assert names(index.duplicates(keep_folder=[shots]).removable_paths) == ["0.jpg"]


def test_a_live_photo_keeps_its_movie(shots: Path, tmp_path: Path):
    (shots / "1.mov").write_bytes(b"movie")
    shutil.copy(shots / "1.jpg", tmp_path / "copy.jpg")
    with ImageIndex.open("memory:") as index:
        index.ingest(shots, tmp_path / "copy.jpg")
        assert offered(index.duplicates(keep="first")) == {"copy"}
        assert index.duplicates(reference=[tmp_path / "copy.jpg"]).removable == ()


def test_the_raw_file_of_an_image_is_no_duplicate_of_it(shots: Path, tmp_path: Path):
    with ImageIndex.open("memory:") as index:
        index.ingest(shots)
        assert index.duplicates(of=shots / "0.jpg").groups == ()
        shutil.copy(shots / "0.jpg", tmp_path / "new.jpg")
        found = members(index.duplicates(of=tmp_path / "new.jpg"))
    assert set(found) == {"new", "0"}
    assert names(found["0"].parts) == ["0.dng"]
