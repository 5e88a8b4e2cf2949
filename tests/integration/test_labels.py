"""Labels from folders and from tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mg_milvus.errors import LabelError
from mg_milvus.evaluation.labels import read_labelled

if TYPE_CHECKING:
    from pathlib import Path

    from mg_milvus.records import Failure


def place(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def test_one_level_of_folders_is_both_levels(tmp_path: Path) -> None:
    found = read_labelled(place(tmp_path / "p", "cat/1.png", "cat/2.png", "dog/1.png"))
    assert found.classes is not None
    assert found.groups is found.classes
    assert found.classes.names == ("cat", "dog")
    assert found.classes.ids().tolist() == [0, 0, 1]
    assert found.classes.one_hot().tolist() == [[True, False], [True, False], [False, True]]


def test_nested_folders_are_a_hierarchy_and_classes_of_one_name_stay_apart(tmp_path: Path) -> None:
    found = read_labelled(place(tmp_path / "p", "animal/other/1.png", "vehicle/car/1.png", "vehicle/other/1.png"))
    assert found.classes is not None
    assert found.groups is not None
    assert found.classes.names == ("animal/other", "vehicle/car", "vehicle/other")
    assert found.groups.names == ("animal", "vehicle")
    assert found.groups.ids().tolist() == [0, 1, 1]


def test_images_beside_the_label_folders_are_reported(tmp_path: Path) -> None:
    failures: list[Failure] = []
    found = read_labelled(place(tmp_path / "p", "cat/1.png", "stray.png"), failed=failures.append)
    assert len(found) == 1
    assert [failure.path.rsplit("/")[-1] for failure in failures] == ["stray.png"]
    assert "no label" in failures[0].reason


def test_empty_label_folders_are_reported(tmp_path: Path) -> None:
    folder = place(tmp_path / "p", "cat/1.png", "dog/1.png")
    (folder / "mouse").mkdir()
    failures: list[Failure] = []
    found = read_labelled(folder, failed=failures.append)
    assert found.classes is not None
    assert found.classes.names == ("cat", "dog")
    assert [failure.path.rsplit("/")[-1] for failure in failures] == ["mouse"]
    assert "without an image" in failures[0].reason


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    found = read_labelled(place(tmp_path / "p", "1.png", "2.png"))
    assert found.classes is None
    assert found.groups is None
    assert len(found) == 2


def test_a_table_gives_several_labels(tmp_path: Path) -> None:
    folder = place(tmp_path / "p", "1.png", "2.png", "3.png")
    (tmp_path / "labels.csv").write_text("path,label\np/1.png,sea|beach\n2.png,sea\n")
    failures: list[Failure] = []
    found = read_labelled(folder, tmp_path / "labels.csv", failures.append)
    assert found.classes is not None
    assert found.classes.several
    assert found.classes.names == ("beach", "sea")
    assert found.classes.members == ((0, 1), (1,))
    assert [failure.path.rsplit("/")[-1] for failure in failures] == ["3.png"]


def test_a_parquet_table_holds_lists(tmp_path: Path) -> None:
    folder = place(tmp_path / "p", "1.png", "2.png")
    table = pa.table({"file_name": ["1.png", "2.png"], "labels": [["a/x", "b/y"], ["a/z"]]})
    parquet.write_table(table, tmp_path / "labels.parquet")
    found = read_labelled(folder, tmp_path / "labels.parquet")
    assert found.classes is not None
    assert found.groups is not None
    assert found.classes.names == ("a/x", "a/z", "b/y")
    assert found.groups.members == ((0, 1), (0,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\nelsewhere/9.png,cat\n", "no row of .* is about an image.*elsewhere/9.png"),
        ("path,kind\n1.png,cat\n", "has the columns 'path', 'kind'; expected one of paths"),
        ("label\ncat\n", "expected one of paths"),
        ("path,label\n1.png,a||b\n", "line 2: 'a||b' is not a label"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, text: str, said: str) -> None:
    folder = place(tmp_path / "p", "1.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(LabelError, match=said.replace("|", r"\|")):
        read_labelled(folder, tmp_path / "labels.csv")


def test_a_subset_keeps_the_names(tmp_path: Path) -> None:
    found = read_labelled(place(tmp_path / "p", "a/x/1.png", "b/y/1.png", "b/z/1.png")).subset([2, 0])
    assert found.classes is not None
    assert found.groups is not None
    assert found.classes.ids().tolist() == [2, 0]
    assert len(found.classes.names) == 3
    assert found.groups.ids().tolist() == [1, 0]
