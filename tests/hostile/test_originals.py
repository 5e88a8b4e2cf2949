"""The file behind a row is exchanged while the page sends it: only what was ingested is ever sent."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient

from mg_milvus.html.pages import QueryResult, QuerySettings, result_page
from mg_milvus.images import decode
from mg_milvus.images.discover import content_hash
from mg_milvus.images.thumbnails import thumbnail
from mg_milvus.index import ImageIndex
from mg_milvus.web import media
from mg_milvus.web.app import create_app
from mg_milvus.web.security import WebSettings
from tests.conftest import kind_of_image
from tests.images import encoded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUESTS = 1500
SECRET = b"root:x:0:0: a secret of another file\n" * 50


class Row:
    """An image that is indexed, its page, and another file that is none of the page's business."""

    def __init__(self, client: TestClient, index: ImageIndex, file: Path) -> None:
        self.client, self.index, self.file = client, index, file
        self.hit = index.query(file, k=1)[0]
        self.at = f"/api/images/{self.hit.id}"
        self.data = file.read_bytes()
        self.aside = file.with_suffix(".aside")
        os.link(file, self.aside)

    def become(self, target: Path | str) -> None:
        """The file is exchanged for a link, in one step."""
        link = self.file.with_suffix(".link")
        link.symlink_to(target)
        link.rename(self.file)

    def return_(self) -> None:
        """The file is again what was ingested."""
        again = self.file.with_suffix(".again")
        os.link(self.aside, again)
        again.rename(self.file)


@pytest.fixture
def row(tmp_path: Path) -> Iterator[Row]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        kind_of_image("disc", number).save(folder / f"{number}.jpg")
    (tmp_path / "secret").write_bytes(SECRET)
    with ImageIndex.open("memory:") as index:
        index.ingest(folder)
        app = create_app(index, WebSettings(thumbnail_folder=tmp_path / "thumbnails"))
        with TestClient(app, base_url="http://127.0.0.1:8000") as client:
            yield Row(client, index, folder / "0.jpg")


@contextmanager
def flipping(row: Row, target: Path) -> Iterator[None]:
    """Meanwhile the file is now what was ingested, now a link to the target, as fast as can be."""
    end = threading.Event()

    def flip() -> None:
        while not end.is_set():
            row.become(target)
            row.return_()

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_no_flip_makes_the_page_send_another_file(row: Row, tmp_path: Path) -> None:
    statuses = []
    with flipping(row, tmp_path / "secret"):
        for _ in range(REQUESTS):
            answer = row.client.get(f"{row.at}/original")
            statuses.append(answer.status_code)
            assert (answer.status_code, answer.content == row.data) in {(200, True), (422, False)}
            assert b"secret" not in answer.content
    assert len(statuses) == REQUESTS
    assert row.client.get(f"{row.at}/original").content == row.data


def test_what_is_sent_is_the_file_that_was_checked(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange between the check and the sending, which a thread hits only by chance."""
    real = decode.check_header

    def exchanged(data: bytes) -> None:
        real(data)
        row.become(tmp_path / "secret")

    monkeypatch.setattr(media, "check_header", exchanged)
    answer = row.client.get(f"{row.at}/original")
    assert (answer.status_code, answer.content) == (200, row.data)
    monkeypatch.undo()
    assert row.client.get(f"{row.at}/original").status_code == 422


def test_another_image_is_not_sent_either(row: Row, tmp_path: Path) -> None:
    private = tmp_path / "private.jpg"
    kind_of_image("stripes", 7).save(private)
    row.become(private)
    for what in ("original", "thumbnail"):
        answer = row.client.get(f"{row.at}/{what}")
        assert (answer.status_code, "was changed since it was ingested" in answer.json()["error"]) == (422, True)


def test_a_link_that_was_ingested_is_sent(row: Row, tmp_path: Path) -> None:
    kind_of_image("blocks", 1).save(tmp_path / "elsewhere.png")
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    row.index.ingest(tmp_path / "photos")
    hit = row.index.query(tmp_path / "elsewhere.png", k=1)[0]
    answer = row.client.get(f"/api/images/{hit.id}/original")
    assert (answer.content, answer.headers["content-type"]) == ((tmp_path / "elsewhere.png").read_bytes(), "image/png")


def test_two_letters_are_no_image(row: Row) -> None:
    """A row that claims the content of a file which begins as a bitmap does: its header is read as a whole."""
    store = row.index.session.store
    for data in (b"BM, said the letter, and was a secret", b"P3 is a secret plan", b"\xff\xd8\xff secret"):
        row.file.unlink()
        row.file.write_bytes(data)
        known = store.fetch([row.hit.id], tuple(row.index.schema.bits))[row.hit.id]
        store.upsert([replace(known, content_hash=content_hash(data))])
        for what in ("original", "thumbnail"):
            answer = row.client.get(f"{row.at}/{what}")
            assert (answer.status_code, b"secret" in answer.content) == (422, False)


def test_thumbnails_and_pages_show_nothing_of_another_file(row: Row, tmp_path: Path) -> None:
    known = {thumbnail(row.file, 480).uri, ""}
    made = row.client.get(f"{row.at}/thumbnail?side=240").content
    for file in (tmp_path / "thumbnails").rglob("*.jpg"):
        file.unlink()
    with flipping(row, tmp_path / "secret"):
        for _ in range(150):
            assert thumbnail(row.file, 480).uri in known
            answer = row.client.get(f"{row.at}/thumbnail?side=240")
            assert (answer.status_code, answer.content) == (200, made) or answer.status_code == 422
            page = result_page(
                [QueryResult("x", row.file, [row.hit])], QuerySettings("x", row.index.schema.code_bits, {}, "rank")
            )  # fmt: skip
            assert "secret of" not in page
    for file in (tmp_path / "thumbnails").rglob("*.jpg"):
        assert file.read_bytes() == made


def test_ranges_and_what_the_browser_knows(row: Row) -> None:
    size = len(row.data)

    def got(**headers: str) -> tuple[int, bytes, str | None]:
        answer = row.client.get(
            f"{row.at}/original", headers={name.replace("_", "-"): headers[name] for name in headers}
        )
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert got() == (200, row.data, None)
    assert got(range="bytes=0-9") == (206, row.data[:10], f"bytes 0-9/{size}")
    assert got(range="bytes=10-") == (206, row.data[10:], f"bytes 10-{size - 1}/{size}")
    assert got(range="bytes=-10") == (206, row.data[-10:], f"bytes {size - 10}-{size - 1}/{size}")
    assert got(range=f"bytes=5-{size + 99}") == (206, row.data[5:], f"bytes 5-{size - 1}/{size}")
    assert got(range=f"bytes={size}-") == (416, b"", f"bytes */{size}")
    assert got(range="bytes=-0") == (416, b"", f"bytes */{size}")
    for none in ("bytes=-", "bytes=9-3", "letters=0-1", "bytes=0-1,5-6"):
        assert got(range=none) == (200, row.data, None)
    etag = row.client.get(f"{row.at}/original").headers["etag"]
    assert got(if_none_match=etag)[:2] == (304, b"")
    assert got(if_none_match='"other"')[0] == 200
    assert got(range="bytes=0-9", if_range=etag)[0] == 206
    assert got(range="bytes=0-9", if_range='"other"')[0] == 200
    row.file.unlink()
    assert got(if_none_match=etag)[0] == 422  # what is gone is not said to be unchanged


def test_no_descriptor_is_left_open(row: Row) -> None:
    row.client.get(f"{row.at}/original")
    before = len(os.listdir("/dev/fd"))
    for headers in ({}, {"range": "bytes=0-9"}, {"range": "bytes=999999-"}, {"if-none-match": "*"}):
        for _ in range(5):
            row.client.get(f"{row.at}/original", headers=headers)
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_cut_short_while_it_is_sent_breaks_off(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than that something else fills up the length that was stated."""
    monkeypatch.setattr(media, "_BLOCK", 100)
    real, calls = os.pread, []

    def shortened(descriptor: int, count: int, start: int) -> bytes:
        calls.append(start)
        if len(calls) == 2:
            os.truncate(row.aside, 100)
        return real(descriptor, count, start)

    monkeypatch.setattr(media.os, "pread", shortened)
    with pytest.raises(OSError, match="became shorter while it was sent"):
        row.client.get(f"{row.at}/original")


def test_what_was_ingested_may_be_of_any_kind(row: Row, tmp_path: Path) -> None:
    for name, form, media_type in (
        ("a.png", "PNG", "image/png"), ("a.gif", "GIF", "image/gif"), ("a.bmp", "BMP", "image/bmp"),
        ("a.tif", "TIFF", "image/tiff"), ("a.webp", "WEBP", "image/webp"), ("a.ppm", "PPM", "image/x-portable-anymap"),
        ("a.avif", "AVIF", "image/avif"),
    ):  # fmt: skip
        file = tmp_path / "photos" / name
        file.write_bytes(encoded(kind_of_image("stripes", 3), form))
        row.index.ingest(file)
        hit = next(hit for hit in row.index.query(file, k=20) if hit.path == str(file))
        answer = row.client.get(f"/api/images/{hit.id}/original")
        assert (answer.content, answer.headers["content-type"]) == (file.read_bytes(), media_type)
