"""Split lists as papers publish them, the protocols that use them, and classes that nothing was learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_milvus.errors import ImageError, LabelError, QueryError
from mg_milvus.evaluation.protocols import PUBLISHED, Split, SplitOptions, read_split
from mg_milvus.evaluation.scoring import graded, with_relevant_images
from mg_milvus.records import Failure


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name)
    return folder


def names(split: Split, rows: np.ndarray | None) -> list[str]:
    assert rows is not None
    return [Path(split.images.images[row].path).name for row in rows]


def lists(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return [folder / f"{name}.txt" for name in texts]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return images(tmp_path / "coco", *(f"val2014/{letter}.png" for letter in "abcdef"))


def test_one_hot_lists_of_other_machines_make_three_parts(coco: Path, tmp_path: Path) -> None:
    train, database, test = lists(
        tmp_path,
        train="/home/author/data/coco/val2014/a.png 1 0 0\n",
        database="/home/author/data/coco/val2014/a.png 1 0 0\n/home/author/data/coco/val2014/b.png 0 1 1\n"
        "/home/author/data/coco/val2014/c.png 0 0 0\n/home/author/data/coco/val2014/a.png 1 0 0\n\n",
        test="/home/author/data/coco/val2014/f.png 1 0 1\r\n/home/author/data/coco/val2014/e.png 0 1 0\n"
        "/home/author/data/coco/val2014/d.png 0 0 0\n",
    )
    split = read_split(coco, SplitOptions(lists=[train, database, test]))
    assert names(split, split.training) == ["a.png"]
    assert names(split, split.database) == ["a.png", "b.png", "c.png"]
    assert names(split, split.queries) == ["d.png", "e.png", "f.png"]
    # Relevant where a label is shared; an image without one is relevant to nothing, and as a query counts nowhere.
    assert graded(split)(slice(0, 3)).tolist() == [[0, 0, 0], [0, 2, 0], [2, 2, 0]]
    kept, alone = with_relevant_images(split)
    assert (names(kept, kept.queries), alone) == (["e.png", "f.png"], 1)
    assert names(kept, kept.training) == ["a.png"], "the part to learn from stays"
    assert split.about == (
        "split: the images of test.txt query those of database.txt, heads are fitted on those of train.txt; 1 lines "
        "repeat an image"
    )
    broken = np.array([Path(image.path).name in {"a.png", "e.png"} for image in split.images.images])
    left = split.without(broken)
    assert (names(left, left.training), names(left, left.database), names(left, left.queries)) == (
        [], ["b.png", "c.png"], ["d.png", "f.png"],
    )  # fmt: skip


def test_a_label_a_line_and_paths_with_spaces(tmp_path: Path) -> None:
    folder = images(tmp_path / "all", "x/a 1.png", "x/b.png", "y/c.png", "d.png")
    database, test = lists(folder, database="x/a 1.png cat\ny/c.png 7\n", test="./x/b.png cat\nd.png 7\n")
    split = read_split(folder, SplitOptions(lists=[database, test]))
    assert split.images.classes is not None
    assert (split.images.classes.names, split.training) == (("7", "cat"), None)
    assert names(split, split.to_fit) == names(split, split.database) == ["a 1.png", "c.png"]
    assert graded(split)(slice(0, 2)).tolist() == [[0, 2], [2, 0]]


def test_the_longest_end_of_a_path_that_is_there_is_meant(tmp_path: Path) -> None:
    folder = images(tmp_path / "all", "a.png", "x/a.png", "b.png")
    beside = images(tmp_path / "lists", "only.png")
    database, test = lists(beside, database="/nas/x/a.png 0\n/nas/b.png 1\n", test="only.png 0\n/else/a.png 1\n")
    split = read_split(folder, SplitOptions(lists=[database, test]))
    found = [str(Path(image.path).relative_to(tmp_path)) for image in split.images.images]
    assert found == ["all/a.png", "all/b.png", "all/x/a.png", "lists/only.png"]


def test_images_that_are_not_there_are_failures(coco: Path, tmp_path: Path) -> None:
    files = lists(tmp_path, database="a.png 0\nnot.png 0\nb.png 1\n", test="nul\0.png 1\nc.png 1\n")
    failed: list[Failure] = []
    split = read_split(coco / "val2014", SplitOptions(lists=files), failed.append)
    assert [failure.path for failure in failed] == ["not.png", "nul\0.png"]
    assert all("no file in" in failure.reason for failure in failed)
    assert (len(split.database), len(split.queries)) == (2, 1)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ({"database": "a.png 0\n"}, QueryError, "there are 1 lists, expected database,test"),
        ({"database": "a.png 0 1\n", "test": "b.png 0 1 0\n"}, LabelError, "the lists have 2, 3 columns of labels"),
        ({"database": "a.png 0 1\n", "test": "b.png cat\n"}, LabelError, "the lists have 2, no columns of labels"),
        (
            {"database": "a.png 0 1\nb.png 2 1\n", "test": "c.png 0 1\n"},
            LabelError,
            "line 2: 'b.png 2 1' is not",
        ),
        (
            {"database": "a.png 0\nb.png\n", "test": "c.png 0\n"},
            LabelError,
            "'b.png' is not a path and a label",
        ),
        ({"database": "a.png 0\n", "test": "b.png 0\na.png 1\n"}, LabelError, r"line 2: the labels of 'a.png' differ"),
        ({"database": "a.png 0\n", "test": "\n"}, LabelError, "test.txt' is empty"),
        ({"database": "no.png 0\n", "test": "none.png 1\n"}, LabelError, "no image of the lists is in .* 'no.png'"),
        ({"database": "a.png 0\nb.png 0\n", "test": "c.png 0\n"}, LabelError, "are of one class, '0'"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    coco: Path, tmp_path: Path, texts: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_split(coco / "val2014", SplitOptions(lists=lists(tmp_path, **texts)))


def test_a_list_that_cannot_be_read_is_named(coco: Path, tmp_path: Path) -> None:
    (good,) = lists(tmp_path, good="a.png 0\n")
    with pytest.raises(QueryError, match=r"the list '.*none.txt' cannot be read"):
        read_split(coco, SplitOptions(lists=[good, tmp_path / "none.txt"]))
    (tmp_path / "bytes.txt").write_bytes(b"a.png \xff\n")
    with pytest.raises(LabelError, match="is not UTF-8 at byte 6"):
        read_split(coco, SplitOptions(lists=[good, tmp_path / "bytes.txt"]))


def test_a_published_data_set_has_its_lists_in_its_folder_or_two_folders(tmp_path: Path) -> None:
    folder = images(tmp_path / "coco", *(f"{letter}.png" for letter in "abcd"))
    lists(folder, database="a.png 1 0\nb.png 0 1\n", test="c.png 1 0\n")
    split = read_split(folder, SplitOptions(protocol="coco"))
    assert (names(split, split.queries), split.training) == (["c.png"], None)
    assert split.about == (
        "coco: the images of test.txt query those of database.txt; NOT the sizes of Cao et al., HashNet, ICCV 2017, "
        "which has 5,000 queries against 117,218 images, here 1 against 2"
    )
    lists(folder, train="b.png 0 1\n")
    split = read_split(folder, SplitOptions(protocol="coco"))
    assert names(split, split.training) == ["b.png"]
    with pytest.raises(QueryError, match="have the labels; leave --labels out"):
        read_split(folder, SplitOptions(protocol="coco", labels="labels.csv"))

    parts = images(tmp_path / "imagenet", "train/x/0.png", "train/y/0.png", "test/x/1.png")
    split = read_split(parts, SplitOptions(protocol="imagenet100"))
    assert (names(split, split.queries), len(split.database)) == (["1.png"], 2)
    with pytest.raises(ImageError, match=r"no folders train/ and test/ .* nor lists database.txt and test.txt"):
        read_split(parts / "train", SplitOptions(protocol="nus-wide-21"))


def test_the_sizes_of_the_papers_are_not_remarked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: own.map_at for name, own in PUBLISHED.items()} == {
        "cifar10-1": None, "cifar10-2": None, "imagenet100": 1000, "nus-wide-21": 5000, "coco": 5000,
    }  # fmt: skip
    parts = images(tmp_path, "train/x/0.png", "train/y/0.png", "test/x/1.png")
    monkeypatch.setitem(PUBLISHED, "cifar10-2", type(PUBLISHED["coco"])("a paper", 1, 2))
    split = read_split(parts, SplitOptions(protocol="cifar10-2"))
    assert split.about == "cifar10-2: test/ holds the queries, train/ the database"


def classes(folder: Path, count: int) -> Path:
    return images(folder, *(f"class{label}/{number}.png" for label in range(count) for number in range(4)))


def test_zero_shot_searches_classes_that_are_not_learned_from(tmp_path: Path) -> None:
    folder = classes(tmp_path, 8)
    split = read_split(folder, SplitOptions(protocol="zero-shot", share=0.25, seed=3))
    assert split.seen is not None
    assert split.training is not None
    assert split.images.classes is not None
    label = np.array(split.images.classes.names)[split.images.classes.ids()]
    assert len(split.seen) == 6, "three quarters"
    assert set(label[split.training]) == set(split.seen)
    unseen = set(label) - set(split.seen)
    assert set(label[split.queries]) == set(label[split.database]) == unseen
    assert (len(split.training), len(split.queries), len(split.database)) == (24, 2, 6)
    assert read_split(folder, SplitOptions(protocol="zero-shot", seed=4)).seen != split.seen

    seen = tmp_path / "seen.txt"
    seen.write_text("class1\nclass5\n\n")
    split = read_split(folder, SplitOptions(protocol="zero-shot", seen=seen))
    assert split.seen == ("class1", "class5")
    assert split.about == "zero-shot: heads are fitted on 2 classes, 10% of each of the other 6 query the rest of them"


def test_an_image_of_seen_and_unseen_classes_plays_no_part(tmp_path: Path) -> None:
    folder = images(tmp_path / "all", *(f"{number}.png" for number in range(8)))
    labels = ["a", "a", "b", "b", "c", "c", "a|b", "b|c"]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{i}.png,{own}\n" for i, own in enumerate(labels)))
    (tmp_path / "seen.txt").write_text("a\n")
    options = SplitOptions(protocol="zero-shot", seen=tmp_path / "seen.txt", labels=tmp_path / "labels.csv", share=0.5)
    split = read_split(folder, options)
    assert names(split, split.training) == ["0.png", "1.png"]
    assert sorted([*names(split, split.queries), *names(split, split.database)]) == [
        f"{number}.png" for number in (2, 3, 4, 5, 7)
    ]
    assert "; 1 images of both kinds of classes play no part" in split.about


@pytest.mark.parametrize(
    ("count", "options", "error", "message"),
    [
        (2, {}, LabelError, "there are 2 classes, expected at least three"),
        (4, {"seen": 1.5}, QueryError, "the share of seen classes is 1.5"),
        (4, {"seen": "nowhere.txt"}, QueryError, "the list of seen classes 'nowhere.txt' cannot be read"),
        (4, {"queries": "x"}, QueryError, "zero-shot has queries of its own"),
        (4, {"share": 0.0}, QueryError, "the share of queries is 0"),
        (0, {}, ImageError, "has no images"),
    ],
)
def test_zero_shot_says_what_it_cannot_do(
    tmp_path: Path, count: int, options: dict[str, object], error: type[Exception], message: str
) -> None:
    folder = classes(tmp_path / "all", count)
    folder.mkdir(exist_ok=True)
    with pytest.raises(error, match=message):
        read_split(folder, SplitOptions(protocol="zero-shot", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class9\n", "names 'class9', which is no class"),
        ("", "names 0 of 4 classes"),
        ("class0\nclass1\nclass2\n", "names 3 of 4 classes"),
    ],
)
def test_seen_classes_leave_two_to_search(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "seen.txt").write_text(text)
    with pytest.raises(LabelError, match=f"{message}; expected at least one, such as 'class0', and two"):
        read_split(classes(tmp_path / "all", 4), SplitOptions(protocol="zero-shot", seen=tmp_path / "seen.txt"))
