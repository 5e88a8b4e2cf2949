from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_milvus.errors import ImageError
from mg_milvus.images.discover import Found, discover, image_id, path_text, text_path
from mg_milvus.records import Failure
from tests.images import make_hostile_folder


def touch(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 7)


def walk(*sources: str | Path) -> tuple[list[Found], list[Failure]]:
    failures: list[Failure] = []
    return list(discover(sources, failures.append)), failures


def names_below(folder: Path, *sources: str | Path) -> list[str]:
    found, failures = walk(*sources)
    assert failures == []
    return [os.path.relpath(text_path(each.path), folder) for each in found]


def test_order_suffixes_and_hidden(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.JPG",
        "a.png",
        "notes.txt",
        "noending",
        "d/z.webp",
        "d/.hidden.jpg",
        ".git/x.jpg",
        "c/deep/er/1.tiff",
    )
    assert names_below(tmp_path, tmp_path) == ["a.png", "b.JPG", "c/deep/er/1.tiff", "d/z.webp"]


def test_found_says_size_and_time(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(5, 1_600_000_000_123_456_789))
    assert walk(tmp_path)[0] == [Found(str(tmp_path / "a.jpg"), 7, 1_600_000_000_123_456_789)]


def test_relative_sources_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert [each.path for each in walk("in")[0]] == [str(tmp_path / "in" / "a.jpg")]
    assert [each.path for each in walk("in/../in/a.jpg")[0]] == [str(tmp_path / "in" / "a.jpg")]


def test_empty_folder(tmp_path: Path) -> None:
    assert walk(tmp_path) == ([], [])


def test_explicit_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden", "scan.dat")
    assert names_below(tmp_path, tmp_path / "scan.dat", tmp_path / ".hidden") == ["scan.dat", ".hidden"]


def test_missing_source_is_refused_before_any_work(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(ImageError, match=r"nowhere' does not exist: expected a folder or an image file"):
        discover([tmp_path, tmp_path / "nowhere"], lambda failure: None)  # not iterated


def test_source_that_no_file_system_can_hold(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nul\\x00.jpg' cannot be read: "):
        discover([f"{tmp_path}/nul\0.jpg"], lambda failure: None)


def test_source_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="is neither a folder nor a file"):
        discover([tmp_path / "pipe.jpg"], lambda failure: None)
    assert walk(tmp_path) == ([], [Failure(str(tmp_path / "pipe.jpg"), "is not a regular file")])


@pytest.mark.parametrize(
    "sources",
    [
        ["a", "a"],
        ["a", "a/b"],
        ["a/b", "a"],
        ["a", "a/b/2.jpg"],
        ["a/b/2.jpg", "a"],
        ["a/b/2.jpg", "a/b/../b/2.jpg", "a"],
    ],
)
def test_every_file_comes_once(tmp_path: Path, sources: list[str]) -> None:
    touch(tmp_path, "a/1.jpg", "a/b/2.jpg", "a/c/3.jpg")
    found = names_below(tmp_path, *(f"{tmp_path}/{source}" for source in sources))
    assert sorted(found) == ["a/1.jpg", "a/b/2.jpg", "a/c/3.jpg"]


def test_file_given_through_a_linked_folder_comes_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert names_below(tmp_path, tmp_path / "link" / "1.jpg", tmp_path / "a") == ["link/1.jpg"]


def test_links_to_folders_loops_and_own_paths_first(tmp_path: Path) -> None:
    touch(tmp_path, "top/m/1.jpg", "elsewhere/2.jpg", "elsewhere/sub/3.jpg")
    (tmp_path / "top/a-link-to-m").symlink_to(tmp_path / "top/m")  # sorts before m, and yet m/1.jpg is its name
    (tmp_path / "top/loop").symlink_to(tmp_path / "top")
    (tmp_path / "top/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/sub/back").symlink_to(tmp_path / "top")
    expected = ["top/m/1.jpg", "top/out/2.jpg", "top/out/sub/3.jpg"]
    assert names_below(tmp_path, tmp_path / "top") == expected


def test_links_to_files_are_followed_and_dangling_ones_reported(tmp_path: Path) -> None:
    touch(tmp_path, "in/1.jpg", "real.jpg")
    (tmp_path / "in/0.jpg").symlink_to(tmp_path / "real.jpg")
    (tmp_path / "in/2.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "in/3.jpg").symlink_to(tmp_path / "in/3.jpg")
    found, failures = walk(tmp_path / "in")
    assert [(Path(each.path).name, each.size) for each in found] == [("0.jpg", 7), ("1.jpg", 7)]
    assert failures == [Failure(str(tmp_path / "in" / name), "is a link to nothing") for name in ("2.jpg", "3.jpg")]


def test_unreadable_folder_is_reported_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "locked/2.jpg", "z/3.jpg")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # a test may run as root, whom permissions do not stop
    found, failures = walk(tmp_path)
    assert [Path(each.path).name for each in found] == ["1.jpg", "3.jpg"]
    assert failures == [Failure(str(tmp_path / "locked"), "the folder cannot be read: Permission denied")]


def test_files_and_folders_that_vanish_during_the_walk(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4/5.jpg", "named.dat")
    failures: list[Failure] = []
    walking = discover([tmp_path, tmp_path / "named.dat"], failures.append)
    assert next(walking).path.endswith("1.jpg")
    (tmp_path / "2.jpg").unlink()
    (tmp_path / "4/5.jpg").unlink()
    (tmp_path / "4").rmdir()
    (tmp_path / "named.dat").unlink()
    assert [Path(each.path).name for each in walking] == ["3.jpg"]
    gone = "No such file or directory"
    assert failures == [
        Failure(str(tmp_path / "2.jpg"), f"cannot be read: {gone}"),
        Failure(str(tmp_path / "4"), f"the folder cannot be read: {gone}"),
        Failure(str(tmp_path / "named.dat"), f"cannot be read: {gone}"),
    ]


def test_folders_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    depths = [f"{tmp_path}/{'d/' * depth}" for depth in range(1, 1201)]
    try:
        for folder in depths:
            os.mkdir(folder)
        Path(depths[-1], "1.jpg").write_bytes(b"x")
        found, failures = walk(tmp_path)
    finally:  # pytest's own clean-up recurses
        Path(depths[-1], "1.jpg").unlink()
        for folder in reversed(depths):
            os.rmdir(folder)
    assert failures == []
    assert [each.path for each in found] == [f"{depths[-1]}1.jpg"]


def test_strange_names_are_found_and_open(tmp_path: Path) -> None:
    expected = make_hostile_folder(tmp_path)
    found, failures = walk(tmp_path)
    names = [os.path.basename(text_path(each.path)) for each in found]
    assert sorted(names) == sorted(expected.keys() - {"dangling.jpg"})
    assert [Path(failure.path).name for failure in failures] == ["dangling.jpg"]
    for each in found:
        each.path.encode("utf-8")
        assert len(text_path(each.path).read_bytes()) == each.size


def test_path_text_of_utf8_and_of_other_bytes() -> None:
    assert path_text("/a b/é'\n🦜.jpg") == "/a b/é'\n🦜.jpg"
    assert path_text(os.fsdecode(b"/a b/caf\xe9%.jpg")) == "file:///a%20b/caf%E9%25.jpg"
    assert os.fsencode(text_path("file:///a%20b/caf%E9%25.jpg")) == b"/a b/caf\xe9%.jpg"


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_path_text_is_utf8_and_reversible(name: bytes) -> None:
    path = os.path.abspath(os.fsdecode(b"/" + name))
    text = path_text(path)
    text.encode("utf-8")
    assert os.fspath(text_path(text)) == os.fspath(Path(path))


def test_path_text_does_not_resolve_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert path_text(tmp_path / "link" / "a.jpg") == f"{tmp_path}/link/a.jpg"


def test_image_id_is_blake2b_128() -> None:
    # printf '%s' /photos/é.jpg | b2sum --length=128
    assert image_id("/photos/é.jpg") == "cf08c886852fd6478d20cf3cab670ac0"
