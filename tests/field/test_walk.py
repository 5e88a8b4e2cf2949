"""Folders as users have them: what an ingest does not take is counted by kind, with the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mg_milvus.images.discover import SUFFIXES, Tally, discover
from tests.images import save_image

if TYPE_CHECKING:
    from pathlib import Path


def test_content_decides_and_the_rest_is_counted(tmp_path: Path) -> None:
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
    found = list(discover([tmp_path], failures.append, SUFFIXES, None, passed))
    assert [own.path.rpartition("/")[2] for own in found] == ["a.HEIC", "b", "c.jpg"]
    assert failures == []
    counts = {record.kind: (record.count, record.remedy) for record in passed.records()}
    convert = "not read; convert to JPEG first"
    assert counts == {
        ".heic": (2, f"HEIC, {convert}"),
        ".cr2": (1, f"camera RAW, {convert}"),
        ".svg": (1, "a drawing (SVG), not read; export as PNG first"),
        ".txt": (1, ""),
        "folder @eaDir": (1, ""),
        "folder #recycle": (1, ""),
        "folder $RECYCLE.BIN": (1, ""),
        "folder __MACOSX": (1, ""),
        "folder .thumbnails": (1, ""),
        "folder lost+found": (1, ""),
    }
