"""When photographs were taken: read at the ingest, ordered, grouped and filtered by, carried along."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from mg_milvus.bulk.dataset import CodeFile
from mg_milvus.errors import FilterError
from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from tests.images import jpeg_with_broken_exif
from tests.in_process import mgm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 86_400 * 10**9
CHANGED = 1_609_459_200 * 10**9  # 2021-01-01
TAKEN = {"old.jpg": "2019:07:14 09:00:00", "new.jpg": "2024:05:01 18:30:07", "bad.jpg": "2024:13:01 00:00:00"}


def nanoseconds(*day: int) -> int:
    return int(datetime(*day, tzinfo=UTC).timestamp()) * 10**9


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs with a time, a drawing without, and one whose EXIF is broken; all files are of 2021."""
    folder = tmp_path_factory.mktemp("taken") / "photos"
    folder.mkdir()
    for number, (name, time) in enumerate(TAKEN.items()):
        exif = Image.Exif()
        exif[0x8769] = {0x9003: time}
        Image.new("RGB", (64, 48), (60 * number, 80, 120)).save(folder / name, exif=exif)
    Image.new("RGB", (64, 48), (10, 200, 30)).save(folder / "drawn.png")
    (folder / "broken.jpg").write_bytes(jpeg_with_broken_exif(Image.new("RGB", (64, 48), (200, 10, 30))))
    for place, file in enumerate(sorted(folder.iterdir())):
        os.utime(file, ns=(0, CHANGED + place * DAY))
    return folder


@pytest.fixture(scope="module")
def index(photos: Path) -> Iterator[ImageIndex]:
    with ImageIndex.open(photos.with_name("index.db")) as opened:
        report = opened.ingest(photos)
        assert (report.added, report.failed) == (5, 0)
        yield opened


def names(index: ImageIndex, **options: object) -> list[str]:
    return [row.path.rpartition("/")[2] for row in index.images(**options)]


def test_rows_have_the_time_of_the_camera_else_that_of_the_file(index: ImageIndex) -> None:
    taken = {row.path.rpartition("/")[2]: row.taken for row in index.images()}
    assert taken == {
        "old.jpg": nanoseconds(2019, 7, 14, 9), "new.jpg": nanoseconds(2024, 5, 1, 18, 30, 7),
        "bad.jpg": CHANGED, "broken.jpg": CHANGED + DAY, "drawn.png": CHANGED + 2 * DAY,
    }  # fmt: skip


def test_images_are_ordered_and_grouped_by_it(index: ImageIndex) -> None:
    order = ["old.jpg", "bad.jpg", "broken.jpg", "drawn.png", "new.jpg"]
    assert names(index, order_by="taken") == names(index, order_by="date") == order
    assert names(index, order_by="-taken") == order[::-1]
    assert list(index.listing("date").sections) == [("2019-07", 0), ("2021-01", 1), ("2024-05", 4)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ('taken > "2024-01-01"', {"new.jpg"}),
        ('"2020-01-01" <= taken < "2021-01-02"', {"bad.jpg"}),
        ("taken >= '2024-05-01T18:30:07' or taken < '2019-07-14 09:00:01'", {"old.jpg", "new.jpg"}),
        ('taken == "2024-05-01T20:30:07+02:00"', {"new.jpg"}),
        (f'taken in [{CHANGED}, "2021-01-02"]', {"bad.jpg", "broken.jpg"}),
        ('not (mtime_ns < "2021-01-03")', {"drawn.png", "new.jpg", "old.jpg"}),
    ],
)
def test_filters_take_dates(index: ImageIndex, where: str, expected: set[str]) -> None:
    assert set(names(index, filter=where)) == expected


def test_what_is_no_date_is_refused(index: ImageIndex) -> None:
    with pytest.raises(FilterError, match=r"'last year' is no date, expected one such as 2026-01-31"):
        index.count('taken > "last year"')
    with pytest.raises(FilterError, match="column width holds a int"):
        index.count('width > "2024-01-01"')


def test_a_touched_file_keeps_the_time_of_its_camera(photos: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("new.jpg", "drawn.png"):
        (copies / name).write_bytes((photos / name).read_bytes())
    with ImageIndex.open(tmp_path / "own.db") as own:
        own.ingest(copies)
        for name in ("new.jpg", "drawn.png"):
            os.utime(copies / name, ns=(0, CHANGED))
        assert own.ingest(copies).unchanged == 2
        taken = {row.path.rpartition("/")[2]: row.taken for row in own.images()}
        assert taken == {"new.jpg": nanoseconds(2024, 5, 1, 18, 30, 7), "drawn.png": CHANGED}


def test_files_of_codes_hold_it(photos: Path, tmp_path: Path) -> None:
    assert mgm("encode", photos, "--encoder", "builtin", "--out", "codes", cwd=tmp_path).returncode == 0
    (file,) = (tmp_path / "codes").glob("*.parquet")
    with file.open("rb") as opened:
        (rows,) = CodeFile(file.name, opened).read()
    taken = {row.id: row.taken for row in rows}
    assert taken[image_id(str(photos / "new.jpg"))] == nanoseconds(2024, 5, 1, 18, 30, 7)
    assert taken[image_id(str(photos / "drawn.png"))] == CHANGED + 2 * DAY
