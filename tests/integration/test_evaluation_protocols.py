"""Which images are asked and which are searched: sizes, labels of two folders, and what cannot be evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_milvus.errors import ImageError, LabelError, QueryError
from mg_milvus.evaluation.protocols import Split, SplitOptions, read_split
from mg_milvus.evaluation.scoring import graded, with_relevant_images


def make(folder: Path, sizes: dict[str, int]) -> Path:
    """``folder/LABEL/NN.png``, so many of each label; only their names are looked at here."""
    for label, count in sizes.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (2, 2)).save(folder / label / f"{number:03}.png")
    return folder


def names(split: Split, rows: np.ndarray) -> list[str]:
    return ["/".join(Path(split.images.images[row].path).parts[-2:]) for row in rows]


def test_leave_one_out_asks_everything_against_the_rest(tmp_path: Path) -> None:
    split = read_split(make(tmp_path / "all", {"a": 3, "b": 2, "c": 1}))
    assert split.queries.tolist() == split.database.tolist() == list(range(6))
    expected = [
        [255, 2, 2, 0, 0, 0], [2, 255, 2, 0, 0, 0], [2, 2, 255, 0, 0, 0], [0, 0, 0, 255, 2, 0], [0, 0, 0, 2, 255, 0],
        [0, 0, 0, 0, 0, 255],
    ]  # fmt: skip
    assert graded(split)(slice(0, 6)).tolist() == expected
    assert graded(split)(slice(3, 5)).tolist() == expected[3:5]
    kept, alone = with_relevant_images(split)
    assert (kept.queries.tolist(), kept.database.tolist(), alone) == ([0, 1, 2, 3, 4], list(range(6)), 1)
    assert graded(kept)(slice(0, 5)).tolist() == expected[:5]


def test_nested_folders_grade_by_class_and_group(tmp_path: Path) -> None:
    split = read_split(make(tmp_path / "all", {"x/a": 1, "x/b": 2, "y/c": 1}))
    assert graded(split)(slice(0, 4)).tolist() == [[255, 1, 1, 0], [1, 255, 2, 0], [1, 2, 255, 0], [0, 0, 0, 255]]


def test_a_split_takes_its_share_of_each_class_and_leaves_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "all", {"a": 20, "b": 3, "c": 1})
    split = read_split(folder, SplitOptions(protocol="split", share=0.25, seed=4))
    asked = [name[0] for name in names(split, split.queries)]
    assert (asked.count("a"), asked.count("b"), asked.count("c")) == (5, 1, 0)
    assert sorted([*split.queries, *split.database]) == list(range(24))
    again = read_split(folder, SplitOptions(protocol="split", share=0.25, seed=4))
    other = read_split(folder, SplitOptions(protocol="split", share=0.25, seed=5))
    assert again.queries.tolist() == split.queries.tolist() != other.queries.tolist()


def test_two_folders_share_names_of_labels_and_images(tmp_path: Path) -> None:
    database = make(tmp_path / "database", {"b": 2, "d": 2})
    queries = make(tmp_path / "queries", {"a": 1, "b": 1, "d": 1})
    split = read_split(database, SplitOptions(queries=queries))
    assert names(split, split.database) == ["b/000.png", "b/001.png", "d/000.png", "d/001.png"]
    assert names(split, split.queries) == ["a/000.png", "b/000.png", "d/000.png"]
    assert graded(split)(slice(0, 3)).tolist() == [[0, 0, 0, 0], [2, 2, 0, 0], [0, 0, 2, 2]]
    assert str(queries) in split.about


def test_queries_that_lie_in_the_database_are_no_candidates_for_themselves(tmp_path: Path) -> None:
    database = make(tmp_path / "database", {"b": 2, "d": 2})
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nb/000.png,b\nb/001.png,b|d\nd/000.png,d\nd/001.png,d\n")
    table = table.rename(database / "labels.csv")
    split = read_split(database, SplitOptions(queries=database / "b", labels=table))
    assert (len(split.images), split.queries.tolist()) == (4, [0, 1])
    assert graded(split)(slice(0, 2)).tolist() == [[255, 2, 0, 0], [2, 255, 2, 2]]


def test_cifar10_1_takes_a_hundred_of_six_thousand(tmp_path: Path) -> None:
    split = read_split(make(tmp_path / "all", {"cat": 120, "dog": 240, "eel": 4}), SplitOptions(protocol="cifar10-1"))
    asked = [name[:3] for name in names(split, split.queries)]
    assert (asked.count("cat"), asked.count("dog"), asked.count("eel")) == (2, 4, 1)
    assert len(split.database) == 364 - 7

    two = tmp_path / "two"
    make(two / "train", {"cat": 100, "dog": 100})
    make(two / "test", {"cat": 20, "dog": 20})
    pooled = read_split(two, SplitOptions(protocol="cifar10-1"))
    assert pooled.images.classes is not None
    assert pooled.images.classes.names == ("cat", "dog")
    assert (len(pooled.queries), len(pooled.database)) == (4, 236)


def test_cifar10_2_asks_the_test_part(tmp_path: Path) -> None:
    make(tmp_path / "train", {"cat": 3, "dog": 2})
    make(tmp_path / "test", {"cat": 1, "dog": 2})
    split = read_split(tmp_path, SplitOptions(protocol="cifar10-2"))
    assert (len(split.queries), len(split.database)) == (3, 5)
    assert graded(split)(slice(0, 3)).tolist() == [[2, 2, 2, 0, 0], [0, 0, 0, 2, 2], [0, 0, 0, 2, 2]]
    with pytest.raises(ImageError, match="has no folders train/ and test/"):
        read_split(tmp_path / "train", SplitOptions(protocol="cifar10-2"))


def test_broken_images_leave_both_sides(tmp_path: Path) -> None:
    split = read_split(make(tmp_path / "all", {"a": 4, "b": 4}), SplitOptions(protocol="split", share=0.5))
    broken = np.zeros(8, bool)
    broken[[split.queries[0], split.database[0]]] = True
    left = split.without(broken)
    assert names(left, left.queries) == names(split, split.queries)[1:]
    assert names(left, left.database) == names(split, split.database)[1:]
    with pytest.raises(ImageError, match="none of the queries"):
        split.without(np.isin(np.arange(8), split.queries))


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ({"a": 3}, {}, LabelError, "are of one class, 'a'; expected at least two"),
        ({".": 3}, {}, LabelError, "have no labels; put them into a folder for each class"),
        ({}, {}, ImageError, "has no images"),
        ({"a": 1, "b": 1}, {}, LabelError, "no query has another image of its class"),
        ({"a": 2, "b": 2}, {"protocol": "best"}, QueryError, "the protocol is 'best', expected leave-one-out, split"),
        ({"a": 2, "b": 2}, {"protocol": "split", "share": 1.5}, QueryError, "the share of queries is 1.5"),
        ({"a": 2, "b": 2}, {"protocol": "cifar10-1", "queries": "x"}, QueryError, "has queries of its own"),
        ({"a": 2, "b": 2}, {"queries": "nowhere"}, ImageError, "'nowhere' does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    tmp_path: Path, sizes: dict[str, int], options: dict[str, str], error: type[Exception], message: str
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for label, count in sizes.items():
        for number in range(count):
            (folder / label).mkdir(exist_ok=True)
            Image.new("RGB", (2, 2)).save(folder / label / f"{number}.png")
    with pytest.raises(error, match=message):
        with_relevant_images(read_split(folder, SplitOptions(**options)))  # type: ignore[arg-type]


def test_one_side_without_labels_is_named(tmp_path: Path) -> None:
    database = make(tmp_path / "database", {"b": 2, "d": 2})
    with pytest.raises(LabelError, match=r"bare.* have no labels, those of the other folder have"):
        read_split(database, SplitOptions(queries=make(tmp_path / "bare", {".": 2})))
