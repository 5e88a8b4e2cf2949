"""What is kept of an image whose file or row was deleted: nothing is shown of it, and it can be forgotten."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient

from mg_milvus import session
from mg_milvus.duplicates.verdicts import Verdicts, cache_file
from mg_milvus.index import ImageIndex
from mg_milvus.web import media
from mg_milvus.web.app import create_app
from mg_milvus.web.media import Thumbnails
from mg_milvus.web.security import WebSettings
from tests.conftest import kind_of_image
from tests.in_process import mgm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Page:
    """A page over one image, whose thumbnail is kept."""

    def __init__(self, client: TestClient, index: ImageIndex, file: Path, folder: Path) -> None:
        self.client, self.index, self.file, self.folder = client, index, file, folder
        self.id = index.query(file, k=1)[0].id
        assert self.status() == 200
        assert len(self.kept()) == 1

    def status(self, **headers: str) -> int:
        answer = self.client.get(f"/api/images/{self.id}/thumbnail?side=240", headers=headers)
        return answer.status_code

    def kept(self) -> list[Path]:
        return sorted(self.folder.rglob("*.jpg"))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    (tmp_path / "photos").mkdir()
    file = tmp_path / "photos" / "a.png"
    kind_of_image("disc", 1, (600, 400)).save(file)
    with ImageIndex.open("memory:") as index:
        index.ingest(file)
        app = create_app(index, WebSettings(thumbnail_folder=tmp_path / "thumbnails"))
        with TestClient(app, base_url="http://127.0.0.1:8000") as client:
            yield Page(client, index, file, tmp_path / "thumbnails")


def test_a_thumbnail_is_not_served_and_removed_when_its_file_is_gone(page: Page) -> None:
    page.file.unlink()
    assert page.status() == 422
    assert page.kept() == []


def test_a_browser_is_not_told_that_its_copy_is_still_good(page: Page) -> None:
    answer = page.client.get(f"/api/images/{page.id}/thumbnail?side=240")
    assert answer.headers["cache-control"] == "private, no-cache"
    assert page.status(**{"if-none-match": answer.headers["etag"]}) == 304
    page.file.unlink()
    assert page.status(**{"if-none-match": answer.headers["etag"]}) == 422


def test_a_thumbnail_is_not_served_when_its_row_is_gone(page: Page) -> None:
    page.index.delete([page.id])
    assert page.status() == 404


def test_a_thumbnail_is_not_served_when_its_file_has_another_content(page: Page) -> None:
    kind_of_image("stripes", 2).save(page.file)
    assert page.status() == 422
    page.index.ingest(page.file)
    assert page.status() == 200
    assert len(page.kept()) == 2  # the old one goes when it was not used for 30 days


def test_a_file_with_the_same_content_and_another_time_keeps_its_thumbnail(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(page.file, (1, 1))
    monkeypatch.setattr(Thumbnails, "_render", lambda *_: pytest.fail("it is kept already"))
    assert page.status() == 200


def test_a_copy_of_the_file_keeps_its_own_thumbnail(page: Page) -> None:
    """They share one, by their content; when the first file goes it is made again for the second."""
    copy = page.file.with_name("copy.png")
    copy.write_bytes(page.file.read_bytes())
    page.index.ingest(copy)
    page.file.unlink()
    assert page.status() == 422
    other = next(hit.id for hit in page.index.query(copy, k=2) if hit.path == str(copy))
    assert page.client.get(f"/api/images/{other}/thumbnail?side=240").status_code == 200


def test_what_was_not_used_for_thirty_days_goes_when_the_page_starts(page: Page) -> None:
    days = {"29": 29, "31": 31}
    for name, age in days.items():
        file = page.folder / "ab" / f"{name}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
        os.utime(file, (time.time() - 86_400 * age,) * 2)
    Thumbnails(page.folder, 0).trim()
    assert "29" in {file.stem for file in page.kept()}
    assert "31" not in {file.stem for file in page.kept()}


def test_the_cache_is_shown_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(session, "WHOLE_FILE_LIMIT", 2_000_000)
    at = tmp_path / "cache" / "mg-milvus"
    empty = mgm("cache", cwd=tmp_path)
    assert [line.split(maxsplit=5) for line in empty.stdout.splitlines()] == [
        ["thumbnails", "0", "files", "0.0", "MB", str(at / "thumbnails")],
        ["encoders", "0", "files", "0.0", "MB", str(at / "encoders")],
        ["verdicts", "0", "pairs", "0.0", "MB", str(at / "verdicts" / "pairs.sqlite")],
    ]
    (media.default_folder() / "ab").mkdir(parents=True)
    (media.default_folder() / "ab" / "x.jpg").write_bytes(bytes(1_500_000))
    session.cache_folder().mkdir(parents=True)
    small, large = (session.cache_folder() / f"{name}.safetensors" for name in ("small", "large"))
    small.write_bytes(bytes(1_000_000))
    large.write_bytes(bytes(3_000_000))
    (at / "other").write_text("not ours")
    with Verdicts():  # makes the file
        pass
    with closing(sqlite3.connect(cache_file())) as kept, kept:
        kept.executemany("insert into pairs values (?, ?, 'similar')", [(bytes([n]), b"x") for n in range(3)])
    full = mgm("cache", cwd=tmp_path)
    assert [line.split()[:4] for line in full.stdout.splitlines()] == [
        ["thumbnails", "1", "file", "1.5"], ["encoders", "2", "files", "4.0"], ["verdicts", "3", "pairs", "0.0"],
    ]  # fmt: skip
    cleared = mgm("cache", "--clear", cwd=tmp_path)
    assert cleared.returncode == 0
    assert cleared.stdout.splitlines()[0].startswith(f"kept {large}: no collection has a complete copy of this encoder")
    assert [line.split()[:4] for line in cleared.stdout.splitlines()[1:]] == [
        ["thumbnails", "0", "files", "0.0"], ["encoders", "1", "file", "3.0"], ["verdicts", "0", "pairs", "0.0"],
    ]  # fmt: skip
    assert sorted(path.name for path in at.rglob("*") if path.is_file()) == ["large.safetensors", "other"]
