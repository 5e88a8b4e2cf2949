"""Hash heads of a collection: the same in any order of files, blind to copies, and aware of images of new kinds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mg_milvus.images.discover import Found
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.fit_heads import by_content, random_sample
from mg_milvus.ingest.pipeline import PreparedImage
from tests.conftest import kind_of_image


def paint(folder: Path, kind: str, numbers: range) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{kind}{number:03}.jpg" for number in numbers]
    for file, number in zip(files, numbers, strict=True):
        kind_of_image(kind, number).save(file, quality=92)
    return files


def codes(index: ImageIndex) -> dict[str, dict[str, bytes]]:
    """File name -> granularity -> code."""
    rows = [row for batch in index.session.store.scan(None, tuple(index.schema.bits)) for row in batch]
    return {Path(row.path).name: dict(row.codes) for row in rows}


def test_codes_do_not_depend_on_the_order_of_files_or_on_copies(tmp_path: Path) -> None:
    files = paint(tmp_path / "a", "disc", range(30)) + paint(tmp_path / "a", "blocks", range(30))
    with ImageIndex.open(tmp_path / "a.db") as index:
        assert index.ingest(*files, batch_size=16).adapted_on == 60
        expected, fingerprint = codes(index), index.info().fingerprint
    order = np.random.default_rng(5).permutation(60)
    mixed = [files[place] for place in order]
    for copy in range(40):
        mixed.insert(3, Path(shutil.copy(files[7], tmp_path / f"copy{copy}.jpg")))
    with ImageIndex.open(tmp_path / "b.db") as index:
        assert index.ingest(*mixed, batch_size=7).adapted_on == 60
        assert index.info().fingerprint == fingerprint
        found = codes(index)
    assert len(found) == 100
    assert {name: found[name] for name in expected} == expected
    assert found["copy3.jpg"] == expected[files[7].name]


def test_a_few_images_many_times_over_keep_the_shipped_heads(tmp_path: Path) -> None:
    files = paint(tmp_path / "a", "disc", range(4))
    files += [Path(shutil.copy(files[copy % 2], tmp_path / f"copy{copy}.jpg")) for copy in range(60)]
    with ImageIndex.open(tmp_path / "a.db") as index:
        assert index.ingest(*files).adapted_on == 0
        assert index.info().heads == "shipped"
        assert len({tuple(own.values()) for own in codes(index).values()}) == 4


def test_images_of_a_new_kind_are_noticed_and_advised_on(tmp_path: Path) -> None:
    known = paint(tmp_path / "a", "disc", range(80))
    with ImageIndex.open(tmp_path / "a.db") as index:
        first = index.ingest(*known[:60])
        assert (first.later, first.far, first.advice) == (0, 0, ())
        alike = index.ingest(*known[60:])
        assert alike.later == 20
        assert alike.far < 10
        assert not alike.advice
        new = index.ingest(*paint(tmp_path / "b", "blocks", range(70)))
        assert new.later == 70
        assert new.far > 60
        later, far = 90, alike.far + new.far
        assert new.advice == (
            f"{far} of {later} later images are unlike the 60 that the hash heads were fitted on and are found less "
            "well; mgm refit would fit them to all",
        )
        assert index.info().advice == new.advice
        heads = f"adapted on 60 images; {far} of {later} later ones ({far / later:.0%}) are unlike those"
        assert index.info().heads == heads
        index.refit("again")
    with ImageIndex.open(tmp_path / "a.db", collection="again") as again:
        assert again.info().advice == ()
        assert again.info().heads == "adapted on 150 images"


def found(name: str, size: int) -> Found:
    return Found(name, size, 0)


def test_a_sample_is_the_same_in_any_order_and_folder() -> None:
    files = [found(f"/a/{number}.jpg", number % 7) for number in range(300)]
    chosen, count = random_sample(iter(files), 40)
    assert (len(chosen), count) == (40, 300)
    assert chosen == sorted(chosen, key=files.index)
    assert set(random_sample(reversed(files), 40)[0]) == set(chosen)
    moved = [found(f"/b/{number}.jpg", number % 7) for number in range(300)]
    assert [f.path[3:] for f in random_sample(moved, 40)[0]] == [f.path[3:] for f in chosen]
    assert random_sample(files, 300)[0] == files
    # Uniform: of 100 draws of other names, each half has about half.
    halves = [sum(int(f.path) < 500 for f in random_sample((found(f"{n}", s) for n in range(1000)), 50)[0])
              for s in range(100)]  # fmt: skip
    assert np.mean(halves) == pytest.approx(25, abs=1.5)


def test_one_of_each_content_comes_first_in_the_order_of_hashes() -> None:
    images = [PreparedImage(found(str(place), 1), hashed) for place, hashed in enumerate("cabbac")]
    order, distinct = by_content(images)
    assert (order.tolist(), distinct) == ([1, 2, 0, 3, 4, 5], 3)
    assert by_content([])[1] == 0
