"""Folders as users have them: what an ingest does not take is counted by kind, with the remedy."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import pytest

from mg_milvus.errors import ImageError
from mg_milvus.images.discover import Rules, Tally, discover
from mg_milvus.index import ImageIndex
from tests.images import encoded, image, save_image
from tests.in_process import mgm


def test_content_decides_and_the_rest_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pi_heif", "rawpy"):
        monkeypatch.setitem(sys.modules, package, None)
    save_image(tmp_path / "a.jpg", 1).rename(tmp_path / "a.HEIC")
    save_image(tmp_path / "b.png", 2).rename(tmp_path / "b")
    save_image(tmp_path / "c.jpg", 3)
    for name in ("1.heic", "2.heic"):
        (tmp_path / name).write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic")
    (tmp_path / "x.cr2").write_bytes(b"II*\0\x10\0\0\0CR\2\0")
    (tmp_path / "x.svg").write_text('<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "notes.txt").write_text("P5 is no image here")
    for folder in ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".thumbnails", "lost+found"):
        (tmp_path / folder).mkdir()
        save_image(tmp_path / folder / "small.jpg", 4)
    passed, failures = Tally(), []
    found = list(discover([tmp_path], failures.append, None, passed))
    assert [own.path.rpartition("/")[2] for own in found] == ["a.HEIC", "b", "c.jpg"]
    assert failures == []
    counts = {record.kind: (record.count, record.remedy) for record in passed.records()}
    install = "pip install 'mg-milvus[formats]'"
    assert counts == {
        ".heic": (2, f"HEIC: {install}"),
        ".cr2": (1, f"camera RAW: {install}"),
        ".svg": (1, "a drawing (SVG), not read; export as PNG first"),
        ".txt": (1, ""),
        "folder @eaDir": (1, ""),
        "folder #recycle": (1, ""),
        "folder $RECYCLE.BIN": (1, ""),
        "folder __MACOSX": (1, ""),
        "folder .thumbnails": (1, ""),
        "folder lost+found": (1, ""),
    }


SUB = ("sub/g.png", "sub/h.jpg")


def make_tree(folder: Path) -> Path:
    """Photographs in folders, some of which nobody wants to find."""
    for name in (
        "a.jpg",
        "b.png",
        "raw/c.jpg",
        "raw/deep/d.jpg",
        "old/e.jpg",
        "sub/raw/f.jpg",
        "sub/g.png",
        "sub/h.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(folder / name, 1)
    return folder


def walked(folder: Path, *exclude: str, sources: tuple[str, ...] = ("",)) -> tuple[set[str], dict[str, int]]:
    """Names of the files found below a folder, and what is counted."""
    passed = Tally()
    found = discover([folder / source for source in sources], pytest.fail, Rules(exclude=exclude), passed)
    return {os.path.relpath(own.path, folder) for own in found}, {r.kind: r.count for r in passed.records()}


@pytest.mark.parametrize(
    ("patterns", "expected", "counts"),
    [
        (["*.png"], {"a.jpg", "raw/c.jpg", "raw/deep/d.jpg", "old/e.jpg", "sub/raw/f.jpg", "sub/h.jpg"},
         {"excluded files": 2}),
        (["raw/"], {"a.jpg", "b.png", "old/e.jpg", "sub/g.png", "sub/h.jpg"}, {"excluded folders": 2}),
        (["/raw", "!b.png", "*.jpg"], {"b.png", "sub/g.png"}, {"excluded folders": 1, "excluded files": 4}),
        (["*", "!*/", "!*.png"], {"b.png", "sub/g.png"}, {"excluded files": 6}),
        (["*", "!/sub/"], set(), {"excluded files": 5, "excluded folders": 2}),
        (["sub/**/*.jpg", "# no", ""], {"a.jpg", "b.png", "raw/c.jpg", "raw/deep/d.jpg", "old/e.jpg", "sub/g.png"},
         {"excluded files": 2}),
    ],
)  # fmt: skip
def test_patterns_are_those_of_gitignore(
    patterns: list[str], expected: set[str], counts: dict[str, int], tmp_path: Path
) -> None:
    make_tree(tmp_path)
    assert walked(tmp_path, *patterns) == (expected, counts)
    (tmp_path / ".mgmignore").write_text("\n".join(patterns))
    assert walked(tmp_path) == (expected, counts)


def test_the_file_of_the_innermost_folder_decides(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / ".mgmignore").write_bytes(b"\xef\xbb\xbf*.jpg\r\n")  # as Windows' Notepad writes it
    (tmp_path / "sub/.mgmignore").write_text("!h.jpg\n/g.png\n")
    assert walked(tmp_path)[0] == {"b.png", "sub/h.jpg"}
    assert walked(tmp_path, sources=("sub/h.jpg", "a.jpg"))[0] == {"sub/h.jpg", "a.jpg"}  # who names a file wants it
    assert walked(tmp_path, "h*", sources=("sub/h.jpg", "a.jpg"))[0] == {"a.jpg"}  # unless told not to


def test_a_pattern_that_is_none_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path)
    with pytest.raises(ImageError, match=r"^'!' is no pattern of gitignore, expected such as '\*.png' or 'old/'$"):
        walked(tmp_path, "*.png", "!")
    (tmp_path / ".mgmignore").write_text("!")
    failures = []
    assert len(list(discover([tmp_path], failures.append))) == 8
    assert [(Path(f.path).name, f.reason.partition(",")[0]) for f in failures] == [
        (".mgmignore", "is passed over: '!' is no pattern of gitignore")
    ]


def test_an_ingest_says_what_it_did_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    photos = make_tree(tmp_path / "photos")
    (photos / "cut.jpg").write_bytes(encoded(image(2), "JPEG")[:-2])
    (photos / "notes.txt").write_text("x")
    for number in range(12):
        (photos / f"{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (photos / "@eaDir").mkdir()
    heic = "HEIC: pip install 'mg-milvus[formats]'"
    words = ("ingest", "photos", "--exclude", "*.png", "--exclude", "raw/", "--uri", "memory:")
    done = mgm(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 seen: 4 added")
    assert (
        f"Passed over: 12 .heic ({heic}), 2 excluded files, 2 excluded folders, 1 .txt, 1 folder @eaDir" in done.stdout
    )
    assert f"Read all the same: {photos / 'cut.jpg'} lacks its last bytes" in done.stdout
    report = json.loads(mgm(*words, "--json", cwd=tmp_path).stdout)
    assert report["passed_over"][0] == {"kind": ".heic", "count": 12, "remedy": heic}
    assert [Path(note["path"]).name for note in report["notes"]] == ["cut.jpg"]
    assert mgm(*words, "--exclude", "!", cwd=tmp_path).stderr.startswith("mgm: '!' is no pattern of gitignore")


def test_files_that_only_claim_to_be_huge_cost_nothing(tmp_path: Path) -> None:
    save_image(tmp_path / "good.jpg", 1)
    for name in ("a.jpg", "b.jpg", "c.tif", "d"):
        (tmp_path / name).write_bytes(encoded(image(1), "JPEG") if name == "b.jpg" else b"")
        os.truncate(tmp_path / name, 3_000_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ImageIndex.open("memory:") as index:
        report = index.ingest(tmp_path)
    assert (report.added, report.failed) == (1, 3)
    assert [failure.reason.partition(":")[0] for failure in report.failures] == [
        "is not an image that can be read", "has 3000000000 bytes", "is not an image that can be read",
    ]  # fmt: skip
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 600_000_000  # the encoder is loaded meanwhile
