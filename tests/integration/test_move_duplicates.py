"""Copies moved out of the way and put back: nothing is deleted, overwritten or forgotten, whatever happens between."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from mg_milvus.duplicates import move
from mg_milvus.duplicates.move import IGNORE, JOURNAL, can_undo
from mg_milvus.errors import QueryError
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from tests.conftest import make_photos
from tests.in_process import mgm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGIONS = "version: 1\nregions: {bits: 64, scales: [{size: 0.7, grid: 2}]}"


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[tuple[ImageIndex, Path]]:
    """Six images, and a copy of two of them, in memory, with regions and a tag."""
    photos = make_photos(tmp_path / "photos", 2)
    for name in ("disc/00", "blocks/01"):
        shutil.copy(photos / f"{name}.jpg", photos / f"{name}~copy.jpg")
    with ImageIndex.open("memory:", schema=Schema.from_yaml(REGIONS)) as index:
        index.ingest(photos)
        index.tag([photos / "disc" / "00~copy.jpg"], ["keep me"])
        yield index, photos


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def contents(index: ImageIndex) -> dict:
    store, bits = index.session.store, tuple(index.schema.bits)
    rows = {row.id: row for some in store.scan(None, bits) for row in some}
    return {i: (row, store.regions.codes([i])) for i, row in rows.items()}


def test_copies_go_and_come_back_whole(copies: tuple[ImageIndex, Path], tmp_path: Path) -> None:
    index, photos = copies
    files, rows, aside = tree(photos), contents(index), tmp_path / "aside"
    report = index.duplicates(distance=2, keep="first")
    ids = [member.id for group in report.groups for member in group.members if member.path.endswith("~copy.jpg")]
    moved = index.move_duplicates(report, ids, aside)
    assert sorted(moved.files) == [str(photos / "blocks/01~copy.jpg"), str(photos / "disc/00~copy.jpg")]
    assert moved.failures == ()
    assert tree(aside / moved.batch) == {name: data for name, data in files.items() if "~copy" in name}
    assert tree(photos) == {name: data for name, data in files.items() if "~copy" not in name}
    assert index.count() == 6
    assert index.ingest(tmp_path).added == 0  # it passes over the folder
    # Another process, with the journal only.
    assert can_undo(aside)
    back = index.undo_move(aside)
    assert (sorted(back.files), back.failures) == (sorted(moved.files), ())
    assert tree(photos) == files
    assert contents(index) == rows
    assert not can_undo(aside)
    assert index.undo_move(aside).files == ()
    assert sorted(path.name for path in aside.iterdir()) == [IGNORE, JOURNAL]


def test_nothing_is_overwritten_on_the_way_back(copies: tuple[ImageIndex, Path], tmp_path: Path) -> None:
    index, photos = copies
    report = index.duplicates(distance=2, keep="first")
    copy = photos / "disc" / "00~copy.jpg"
    (own,) = (member.id for member in report.removable if member.path == str(copy))
    moved = index.move_duplicates(report, [own], tmp_path / "aside")
    data = (tmp_path / "aside" / moved.batch / "00~copy.jpg").read_bytes()
    copy.write_bytes(b"something new")
    back = index.undo_move(tmp_path / "aside")
    assert (back.files, [failure.path for failure in back.failures]) == ((), [str(copy)])
    assert "there is another file at" in back.failures[0].reason
    assert copy.read_bytes() == b"something new"
    assert (tmp_path / "aside" / moved.batch / "00~copy.jpg").read_bytes() == data
    copy.unlink()  # now there is room
    assert index.undo_move(tmp_path / "aside").files == (str(copy),)
    assert copy.read_bytes() == data


def test_one_of_a_group_stays(copies: tuple[ImageIndex, Path], tmp_path: Path) -> None:
    index, photos = copies
    before, report = tree(photos), index.duplicates(distance=2)
    every = [member.id for member in report.groups[0].members]
    with pytest.raises(QueryError, match="would go: keep one of them"):
        index.move_duplicates(report, every, tmp_path / "aside")
    with pytest.raises(QueryError, match="is in no group of this search"):
        index.move_duplicates(report, ["0" * 32], tmp_path / "aside")
    with pytest.raises(QueryError, match="nothing to move"):
        index.move_duplicates(report, [], tmp_path / "aside")
    kept, copy = report.groups[0].members
    os.utime(kept.path, (1, 1))  # the one that stays is not what it was
    with pytest.raises(QueryError, match="would go: keep one of them"):
        index.move_duplicates(report, [copy.id], tmp_path / "aside")
    with pytest.raises(QueryError, match="was changed since its ingest"):
        index.move_duplicates(report, [kept.id], tmp_path / "aside")
    (tmp_path / "file").write_text("")
    with pytest.raises(QueryError, match="cannot be written"):
        index.move_duplicates(report, [report.groups[1].members[1].id], tmp_path / "file")
    assert tree(photos) == before
    assert index.count() == 8


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_crash_loses_nothing(
    copies: tuple[ImageIndex, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    index, photos = copies
    files, rows = tree(photos), contents(index)
    report = index.duplicates(distance=2, keep="first")
    real = move._move

    def crash(source: Path, target: Path) -> None:
        if step == "after":
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(move, "_move", crash)
    with pytest.raises(KeyboardInterrupt):
        index.move_duplicates(report, [member.id for member in report.removable], tmp_path / "aside")
    monkeypatch.setattr(move, "_move", real)
    with open(tmp_path / "aside" / JOURNAL, "a") as journal:
        journal.write('{"batch": "cut')
    assert tree(photos) == files
    assert index.undo_move(tmp_path / "aside").failures == ()
    assert tree(photos) == files
    assert contents(index) == rows


def test_another_disk_gets_a_checked_copy(
    copies: tuple[ImageIndex, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    index, photos = copies
    files, times = tree(photos), {path: path.stat().st_mtime_ns for path in photos.rglob("*.jpg")}
    report = index.duplicates(distance=2)
    monkeypatch.setattr(os, "link", refuse)
    index.move_duplicates(report, [member.id for member in report.removable], tmp_path / "aside")
    assert len(tree(photos)) == 6
    assert index.undo_move(tmp_path / "aside").failures == ()
    assert tree(photos) == files
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*.jpg")} == times


def test_the_command_moves_and_puts_back(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 1)
    shutil.copy(photos / "disc/00.jpg", photos / "disc/copy.jpg")
    before = tree(photos)
    assert mgm("ingest", "photos", "--uri", "own.db", cwd=tmp_path).returncode == 0
    done = mgm(
        "duplicates", "--distance", "2", "--keep", "first", "--move-to", "aside", "--uri", "own.db", cwd=tmp_path
    )
    assert "1 file moved to" in done.stderr, done
    assert list(tree(photos)) == ["blocks/00.jpg", "disc/00.jpg", "stripes/00.jpg"]
    assert json.loads((tmp_path / "aside" / JOURNAL).read_text().splitlines()[0])["from"] == str(
        photos / "disc/copy.jpg"
    )
    undone = mgm("duplicates", "--undo", "aside", "--uri", "own.db", cwd=tmp_path)
    assert "1 file put back" in undone.stderr
    assert tree(photos) == before
    assert mgm("duplicates", "--move-to", "aside", "--uri", "own.db", cwd=tmp_path).returncode == 2
