"""Rows are not files, and paths are not identity: moved folders, links, names in several forms, disks that are away."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mg_milvus.cli.duplicates import Keep
from mg_milvus.errors import ImageError, NotIndexedError
from mg_milvus.images import paths
from mg_milvus.images.discover import is_under
from mg_milvus.images.paths import Disks
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from tests.conftest import kind_of_image
from tests.field.shells import shell

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS = "version: 1\nfields: [{name: title, type: string, default: ''}]"
NFC, NFD = unicodedata.normalize("NFC", "Fotos Köln"), unicodedata.normalize("NFD", "Fotos Köln")


def photos_in(folder: Path, count: int = 3) -> Path:
    """``count`` images, ``0.jpg`` and so on, and a copy of the first that is not the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        kind_of_image("disc", number).save(folder / f"{number}.jpg", quality=92)
    first = folder / "0.jpg"
    shutil.copy(first, folder / "again.jpg")
    first.write_bytes(first.read_bytes() + bytes(8))  # viewers ignore what follows the image
    return folder


@pytest.fixture
def index() -> Iterator[ImageIndex]:
    with ImageIndex.open("memory:", schema=Schema.from_yaml(FIELDS)) as opened:
        yield opened


def rows_of(index: ImageIndex) -> list[str]:
    return sorted(row.path for rows in index.session.store.scan() for row in rows)


def titled(folder: Path, table: Path) -> Path:
    table.write_text("path,title\n" + "".join(f"{file},{file.stem}\n" for file in sorted(folder.iterdir())))
    return table


def removable(index: ImageIndex, keep: str = "best", **options) -> list[str]:
    return list(index.duplicates(distance=options.pop("distance", 24), keep=keep, **options).removable_paths)


# Folders that were moved


@pytest.mark.parametrize("rule", list(Keep))
def test_no_rule_keeps_a_row_without_a_file_for_a_file_that_is_there(tmp_path: Path, index: ImageIndex, rule: Keep):
    shutil.copytree(photos_in(tmp_path / "a"), tmp_path / "b")
    index.ingest(tmp_path)
    shutil.rmtree(tmp_path / "a")
    report = index.duplicates(distance=24, keep=rule.value)
    assert report.missing == 4
    offered = report.removable_paths
    assert [Path(path).parent.name for path in offered] == ["b"]  # of b/0.jpg and b/again.jpg
    for group in report.groups:
        assert [Path(member.path).parent.name for member in group.members if member.keep] == ["b"]
        gone = [member for member in group.members if "/a/" in member.path]
        assert {(member.mark, member.keep, member.removable) for member in gone} == {("file gone", False, False)}
    told = json.loads(json.dumps(report.as_dict()))
    assert told["missing"] == 4
    assert {member["file"] for group in told["groups"] for member in group["members"]} == {"here", "gone"}
    assert any("4 rows without a file" in line and "mgm relocate" in line for line in report.summary(index.schema.bits))


def test_nothing_can_go_when_all_files_are_gone(tmp_path: Path, index: ImageIndex):
    index.ingest(photos_in(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "other.txt").touch()  # an empty folder may be the place of a disk
    report = index.duplicates(distance=24)
    assert [len(group.members) for group in report.groups] == [2]
    assert (report.removable, report.missing) == ((), 4)


def test_a_file_that_was_replaced_neither_stays_nor_goes(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / "a")
    index.ingest(folder)
    kind_of_image("stripes", 1).save(folder / "0.jpg")
    assert removable(index) == []
    assert index.duplicates(distance=24).changed == 1


def test_rows_move_with_their_fields_when_a_moved_folder_is_ingested(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / "a")
    index.ingest(folder, metadata=titled(folder, tmp_path / "table.csv"))
    folder.rename(tmp_path / "a2")
    report = index.ingest(tmp_path / "a2")
    assert (report.moved, report.added, index.count()) == (4, 0, 4)
    assert index.row(tmp_path / "a2" / "1.jpg").fields == {"title": "1"}
    assert len(removable(index)) == 1


def test_the_command_says_it_too(tmp_path: Path):
    photos_in(tmp_path / "a")
    assert shell(["ingest", "a"], tmp_path).returncode == 0
    (tmp_path / "a").rename(tmp_path / "b")
    done = shell(["duplicates", "--keep", "best", "--distance", "24"], tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"4 rows without a file" in done.stderr
    done = shell(["relocate", "a", "b", "--json"], tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"moved": 4, "absent": 0, "taken": 0})
    done = shell(["duplicates", "--keep", "best", "--distance", "24"], tmp_path)
    assert done.stdout.decode().strip() == str(tmp_path / "b" / "again.jpg")
    done = shell(["relocate", "a", "nowhere"], tmp_path)
    assert (done.returncode, done.stderr.decode()) == (
        1, "mgm: 'nowhere' does not exist: expected the folder or file where the images are now\n",
    )  # fmt: skip


# Relocation


def test_rows_are_relocated_with_codes_and_fields(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / "a" / "deep")
    photos_in(tmp_path / "other", 1)
    index.ingest(tmp_path / "a", tmp_path / "other", metadata=titled(folder, tmp_path / "table.csv"))
    codes = index.codes(folder / "1.jpg")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b" / "deep" / "2.jpg").unlink()
    told = []
    report = index.relocate(tmp_path / "a", tmp_path / "b", progress=told.append)
    assert (report.moved, report.absent, report.taken) == (3, 1, 0)
    assert (told[-1].done, told[-1].total) == (3, 3)
    assert rows_of(index) == sorted(
        [str(tmp_path / "a/deep/2.jpg"), *(str(tmp_path / f"b/deep/{n}.jpg") for n in (0, 1, "again"))]
        + [str(file) for file in (tmp_path / "other").iterdir()]
    )
    there = index.row(tmp_path / "b" / "deep" / "1.jpg")
    assert there.fields == {"title": "1"}
    assert {name: code.tobytes() for name, code in index.codes(there.id).items()} == {
        name: code.tobytes() for name, code in codes.items()
    }
    assert index.ingest(tmp_path / "b").unchanged == 3


def test_one_file_is_relocated_and_a_row_at_the_new_place_stays(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / "a")
    index.ingest(folder)
    shutil.copy(folder / "1.jpg", folder / "copy.jpg")
    assert index.relocate(folder / "1.jpg", folder / "copy.jpg").moved == 1
    assert index.relocate(folder / "0.jpg", folder / "2.jpg").as_dict() == {"moved": 0, "absent": 0, "taken": 1}
    assert str(folder / "copy.jpg") in rows_of(index)
    assert index.count() == 4
    with pytest.raises(NotIndexedError, match=r"lies in .*/none"):
        index.relocate(tmp_path / "none", folder)
    with pytest.raises(ImageError, match="does not exist: expected the folder or file where the images are now"):
        index.relocate(folder, tmp_path / "none")
    assert index.count() == 4


def test_regions_are_relocated_too(tmp_path: Path):
    parts = "version: 1\nregions: {bits: 64, scales: [{size: 0.7, grid: 2}]}"
    with ImageIndex.open("memory:", schema=Schema.from_yaml(parts)) as index:
        folder = photos_in(tmp_path / "a", 1)
        index.ingest(folder)
        store, old = index.session.store, index.row(folder / "0.jpg").id
        before = store.regions.codes([old])[old]
        folder.rename(tmp_path / "b")
        assert index.relocate(folder, tmp_path / "b").moved == 2
        new = index.row(tmp_path / "b" / "0.jpg").id
        assert store.regions.codes([new]) == {new: before}
        assert store.regions.count() == 2 * 4


# Disks that are away


def test_what_is_on_a_disk_that_is_away_is_not_gone(tmp_path: Path, index: ImageIndex, monkeypatch: pytest.MonkeyPatch):
    """An empty folder may be the place of a disk; a folder in the system's table, without its disk, certainly is."""
    shutil.copytree(photos_in(tmp_path / "disk" / "a"), tmp_path / "here")
    index.ingest(tmp_path)
    shutil.rmtree(tmp_path / "disk" / "a")
    report = index.duplicates(distance=24)
    assert (report.missing, report.away) == (0, 4)
    assert {Path(path).parent.name for path in report.removable_paths} == {"here"}
    assert len(report.removable_paths) == 1
    assert any(
        "4 rows whose file is not found or cannot be read: is its disk mounted?" in line
        for line in report.summary(index.schema.bits)
    )
    (tmp_path / "disk" / "other.txt").touch()
    assert index.duplicates(distance=24).missing == 4
    monkeypatch.setattr(paths, "_mount_points", lambda: (str(tmp_path / "disk"),))
    assert index.duplicates(distance=24).away == 4
    assert index.ingest(tmp_path, prune=True).removed == 0
    assert index.count() == 8


# Links and hard links


def test_a_link_and_its_target_are_one_file(tmp_path: Path, index: ImageIndex):
    z, a = tmp_path / "z", tmp_path / "a"
    for folder in (z, a):
        folder.mkdir()
    kind_of_image("disc", 0).save(z / "x.jpg")
    (a / "x.jpg").symlink_to("../z/x.jpg")
    index.ingest(z, a)
    kind_of_image("stripes", 0).save(z / "y.jpg")
    index.ingest(z)
    assert index.count() == 3
    report = index.duplicates(distance=0)
    assert (report.rows, report.groups) == (2, ())


@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard link", "link"])
def test_a_copy_with_two_names_goes_with_both_and_counts_once(tmp_path: Path, index: ImageIndex, link):
    folder = photos_in(tmp_path / "a")
    link(folder / "again.jpg", folder / "1 more.jpg")
    index.ingest(folder)
    report = index.duplicates(distance=24, keep="largest")
    (group,) = report.groups
    assert [Path(member.path).name for member in group.members if member.keep] == ["0.jpg"]
    assert len(group.members) == 2
    assert {Path(path).name for path in report.removable_paths} == {"again.jpg", "1 more.jpg"}
    assert f"1 removable ({(folder / 'again.jpg').stat().st_size / 1e3:.1f} kB)" in report.headline


def test_a_kept_file_is_never_offered_under_another_name(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / "a")
    os.link(folder / "0.jpg", folder / "9 hard.jpg")
    (folder / "9 link.jpg").symlink_to("0.jpg")
    index.ingest(folder)
    for rule in Keep:
        offered = {Path(path).name for path in removable(index, rule.value)}
        assert offered in ({"again.jpg"}, {"0.jpg", "9 hard.jpg", "9 link.jpg"})
    (member,) = (m for m in index.duplicates(distance=24).groups[0].members if m.keep)
    assert [Path(name).name for name in member.names] == ["9 hard.jpg", "9 link.jpg"]


def test_a_folder_behind_a_link_holds_the_same_files(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    index.ingest(folder)
    index.ingest(tmp_path / "link")
    assert index.count() == 8
    report = index.duplicates(distance=24)
    assert report.rows == 4
    assert report.removable_paths == (str(folder / "again.jpg"),)  # under the link it would be gone by then


def test_of_does_not_find_the_image_itself_under_another_name(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / "a")
    index.ingest(folder)
    (tmp_path / "link.jpg").symlink_to("a/0.jpg")
    report = index.duplicates(of=tmp_path / "link.jpg", distance=24)
    assert {Path(member.path).name for member in report.groups[0].members} == {"link.jpg", "again.jpg"}
    assert not any("0.jpg" in path for path in report.removable_paths)


# Names in several forms


def test_a_folder_renamed_from_nfd_to_nfc_is_found_by_both_names(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / NFD)
    index.ingest(folder, metadata=titled(folder, tmp_path / "table.csv"))
    for name in (NFC, NFD):
        assert index.row(tmp_path / name / "1.jpg").fields == {"title": "1"}
    folder.rename(tmp_path / NFC)
    for name in (NFC, NFD):
        assert index.row(tmp_path / name / "1.jpg").fields == {"title": "1"}
        assert len(index.like(tmp_path / name / "1.jpg")) == 3
        assert len(removable(index, within=tmp_path / name)) <= 1
    report = index.ingest(tmp_path / NFC, prune=True)
    assert (report.moved, report.removed, index.count()) == (4, 0, 4)
    assert {Path(path).parent.name for path in rows_of(index)} == {NFC}
    assert index.row(tmp_path / NFD / "1.jpg").fields == {"title": "1"}
    assert index.delete([tmp_path / NFD / "1.jpg", tmp_path / NFC / "1.jpg"]) == 1


def test_rows_that_spell_a_path_otherwise_are_moved_even_beside_a_mixed_name(tmp_path: Path, index: ImageIndex):
    mixed = tmp_path / NFC / unicodedata.normalize("NFD", "é")
    folder = photos_in(mixed)
    index.ingest(folder)
    other = tmp_path / NFD / unicodedata.normalize("NFC", "é") / "1.jpg"
    assert index.path(other) == str(folder / "1.jpg")
    (tmp_path / NFC).rename(tmp_path / NFD)  # no row has this mixture, nor has any one form
    assert index.path(other) == str(folder / "1.jpg")
    assert index.delete([other]) == 1


@pytest.mark.skipif(sys.platform == "darwin", reason="its disks hold one of the two names")
def test_two_files_whose_names_differ_in_the_form_only_are_two_files(tmp_path: Path, index: ImageIndex):
    for number, name in enumerate((NFC, NFD)):
        kind_of_image("disc", number).save(tmp_path / f"{name}.png")
    index.ingest(tmp_path)
    assert index.count() == 2
    index.delete([tmp_path / f"{NFD}.png"])
    with pytest.raises(NotIndexedError):
        index.delete([tmp_path / f"{NFD}.png"])
    assert rows_of(index) == [str(tmp_path / f"{NFC}.png")]


def test_dots_slashes_links_and_other_folders(tmp_path: Path, index: ImageIndex, monkeypatch: pytest.MonkeyPatch):
    folder = photos_in(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to("a")
    index.ingest(folder)
    monkeypatch.chdir(tmp_path / "b")
    key = index.row(folder / "1.jpg").id
    for text in ("../a/1.jpg", "./../a//1.jpg", f"{tmp_path}/b/../a/./1.jpg", "../link/1.jpg", "../a/1.jpg/"):
        assert index.row(text).id == key, text
    for text in ("../a", "../a/", "./../a/.", "../link", "../link/"):
        report = index.duplicates(distance=24, within=text)
        assert (report.rows, len(report.removable)) == (4, 1), text
    report = index.duplicates(of="../a/./0.jpg", distance=24)
    assert [Path(member.path).name for member in report.groups[0].members] == ["0.jpg", "again.jpg"]
    assert index.ingest("../a/", prune=True).unchanged == 4
    (folder / "2.jpg").unlink()
    assert index.ingest("../link/", prune=True).removed == 1


def test_rows_ingested_through_a_link_are_found_by_the_real_path(tmp_path: Path, index: ImageIndex):
    folder = photos_in(tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    index.ingest(tmp_path / "link")
    assert index.path(folder / "1.jpg") == str(tmp_path / "link" / "1.jpg")
    assert len(removable(index, within=folder)) == 1


def test_a_disk_that_ignores_case(tmp_path: Path, index: ImageIndex, monkeypatch: pytest.MonkeyPatch):
    """Played by ``lexists``, ``stat`` and ``samefile`` that find a name in any case, as such a disk does."""
    folder = photos_in(tmp_path / "Photos")

    def on_disk(path: object) -> str:
        text = os.fspath(path)  # type: ignore[call-overload]
        inside = os.path.relpath(text, tmp_path) if is_under(str(text), [str(tmp_path)]) else ""
        place = str(tmp_path)
        for part in inside.split("/") if inside not in ("", ".") else ():
            names = os.listdir(place) if os.path.isdir(place) else []
            place = os.path.join(place, next((name for name in names if name.lower() == part.lower()), part))
        return place if inside else text

    real = {"lexists": os.path.lexists, "samefile": os.path.samefile}
    stat = os.stat
    monkeypatch.setattr(os.path, "lexists", lambda path: real["lexists"](on_disk(path)))
    monkeypatch.setattr(os.path, "samefile", lambda a, b: real["samefile"](on_disk(a), on_disk(b)))
    monkeypatch.setattr(os, "stat", lambda path, **more: stat(on_disk(path) if isinstance(path, str) else path, **more))
    index.ingest(tmp_path / "pHOTOS")
    assert rows_of(index) == sorted(str(file) for file in folder.iterdir())
    assert index.path(str(tmp_path / "PHOTOS" / "1.JPG")) == str(folder / "1.jpg")
    assert index.duplicates(distance=24, within=str(tmp_path / "photos")).rows == 4


def test_a_name_is_not_looked_for_where_an_id_or_an_address_is_given(tmp_path: Path, index: ImageIndex):
    index.ingest(photos_in(tmp_path / "a"))
    for text in ("0" * 32, "https://example.com/1.jpg", str(tmp_path / "a" / "none.jpg")):
        with pytest.raises(NotIndexedError, match="is neither the id nor the path of an image"):
            index.row(text)


def test_states_of_files(tmp_path: Path):
    file = tmp_path / "a" / "x.jpg"
    file.parent.mkdir()
    file.write_bytes(b"12")
    size, time = file.stat().st_size, file.stat().st_mtime_ns
    disks = Disks()
    assert disks.state(str(file), size, time) == "here"
    assert disks.state(str(file), 3, time) == "changed"
    assert disks.state(str(tmp_path / "a" / "none.jpg")) == "gone"
    assert disks.state(str(file.parent)) == "gone"
    assert disks.state("https://example.com/x.jpg") == "url"
    assert disks.identity(str(file)) == (file.stat().st_dev, file.stat().st_ino)
    assert disks.identity(str(tmp_path / "none")) == (0, 0)
