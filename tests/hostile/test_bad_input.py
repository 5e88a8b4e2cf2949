"""Everything people have in their folders, through a whole ingest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mg_milvus.images import discover
from mg_milvus.images.discover import path_text, text_path
from mg_milvus.index import ImageIndex
from tests.conftest import kind_of_image, make_photos
from tests.images import make_hostile_folder, save_image


def test_one_bad_file_of_every_kind_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    expected = make_hostile_folder(folder)
    good = {path_text(folder / name) for name, readable in expected.items() if readable}
    bad = {path_text(folder / name) for name, readable in expected.items() if not readable}
    with ImageIndex.open(tmp_path / "h.db") as index:
        report = index.ingest(folder)
        assert (report.added, {failure.path for failure in report.failures}) == (len(good), bad)
        assert all(failure.reason for failure in report.failures)
        for path in good:
            same = [hit.path for hit in index.query(text_path(path), k=3) if not sum(hit.distances.values())]
            assert path in same
        again = index.ingest(folder, folder, folder / "loop")
        assert (again.unchanged, again.added, again.updated) == (len(good), 0, 0)
        assert index.ingest(folder, prune=True).removed == 0


def test_a_turned_image_has_the_size_people_see(tmp_path: Path) -> None:
    make_hostile_folder(tmp_path / "hostile")
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path / "hostile" / "turned.jpg")
        fields = index.query(tmp_path / "hostile" / "turned.jpg")[0].fields
        assert (fields["width"], fields["height"]) == (48, 64)


def test_broken_files_in_the_sample_are_reported_once_and_the_rest_is_fitted(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    for number in range(15):
        (photos / f"broken {number}.jpg").write_bytes(b"\xff\xd8 nothing")
    with ImageIndex.open("memory:") as index:
        report = index.ingest(photos)
        assert (report.added, report.failed, report.adapted_on, report.seen) == (60, 15, 60, 75)
        assert index.ingest(photos).failed == 15


def test_a_sample_that_is_mostly_broken_keeps_the_shipped_heads(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=5)
    for number in range(45):
        (photos / f"broken {number}.jpg").write_bytes(b"\xff\xd8 nothing")
    with ImageIndex.open("memory:") as index:
        report = index.ingest(photos)
        assert (report.added, report.failed, report.adapted_on) == (15, 45, 0)


def test_an_empty_folder_makes_no_collection(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with ImageIndex.open(tmp_path / "e.db") as index:
        report = index.ingest(tmp_path / "empty")
        assert (report.seen, report.added, report.failed) == (0, 0, 0)
    assert not (tmp_path / "e.db").exists()


def test_a_file_that_breaks_keeps_its_row(tmp_path: Path) -> None:
    file = save_image(tmp_path / "one.png", 1)
    with ImageIndex.open("memory:") as index:
        index.ingest(file)
        before = index.query(file, k=1)[0]
        file.write_bytes(b"overwritten by an accident")
        report = index.ingest(file)
        assert (report.failed, index.count()) == (1, 1)
        assert index.like(before.id) == []


def test_files_that_vanish_during_the_run_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=2)
    gone = photos / "disc" / "01.jpg"
    read = discover.text_path

    def vanishing(text: str) -> Path:
        if text.endswith("disc/00.jpg"):
            gone.unlink(missing_ok=True)
        return read(text)

    monkeypatch.setattr(discover, "text_path", vanishing)
    with ImageIndex.open("memory:") as index:
        report = index.ingest(photos, workers=1)
        assert [(f.path, f.reason) for f in report.failures] == [(str(gone), "does not exist")]
        assert report.added == 5


def test_a_file_that_changes_while_it_is_read_is_read_again_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_image(tmp_path / "one.png", 1)
    read = discover.text_path

    def changing(text: str) -> Path:
        save_image(file, 2, (80, 80))
        os.utime(file, ns=(5, 5))
        return read(text)

    with ImageIndex.open("memory:") as index:
        monkeypatch.setattr(discover, "text_path", changing)
        index.ingest(file)
        monkeypatch.undo()
        save_image(file, 3)
        assert index.ingest(file).updated == 1
        assert index.query(file, k=1)[0].distances == {"coarse": 0, "mid": 0, "fine": 0}


def test_a_row_that_another_client_deletes_meanwhile_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, deleted = (save_image(tmp_path / f"{name}.png", seed) for seed, name in enumerate(("kept", "deleted")))
    read = discover.text_path
    with ImageIndex.open("memory:") as index:
        index.ingest(kept, deleted)
        for file in (kept, deleted):
            os.utime(file, ns=(1, 1))
        store, gone = index.session.store, index.query(deleted, k=1)[0].id

        def deleting(text: str) -> Path:
            store.delete([gone])
            return read(text)

        monkeypatch.setattr(discover, "text_path", deleting)
        report = index.ingest(kept, deleted, workers=1)
        assert (report.unchanged, [f.path for f in report.failures]) == (1, [str(deleted)])
        assert "ingest again" in report.failures[0].reason
        monkeypatch.undo()
        assert index.ingest(kept, deleted).added == 1


def test_a_clock_that_goes_back_is_a_change_like_any_other(tmp_path: Path) -> None:
    file = save_image(tmp_path / "one.png", 1)
    with ImageIndex.open("memory:") as index:
        index.ingest(file)
        kind_of_image("disc", 1, (64, 48)).save(file)
        os.utime(file, ns=(1, 1))
        assert index.ingest(file).updated == 1
