"""All images in a real browser: in order, by pages, and the overview of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from playwright.sync_api import sync_playwright

from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.web.security import WebSettings
from tests.web.test_browser import CHROMIUM, PIXEL, QUIET, ids, served, shown, visit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: see test_browser")
MANY = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def home(labelled_index: ImageIndex, labelled_photos: Path) -> Iterator[str]:
    with served(labelled_index, WebSettings(thumbnail_folder=labelled_photos.with_name("browse"))) as url:
        yield url


@pytest.fixture(scope="module")
def many() -> Iterator[ImageIndex]:
    """Rows without files, in 100 folders."""
    schema = Schema.from_yaml("version: 1\ngranularities: [{name: coarse, bits: 8}]")
    with ImageIndex.open("memory:", schema=schema) as index:
        index.session.store.create(Description(schema, "0123456789abcdef"))
        index.session.store.upsert([
            Row(f"{n * 7919 % MANY:032x}", f"/photos/{n // 200}/{n}.jpg", n, 0, 4, 3, f"{n:032x}", {"coarse": b"\0"})
            for n in range(MANY)
        ])  # fmt: skip
        yield index


def headings(page: Page) -> list[str]:
    return page.locator("#grid .section").all_inner_texts()


def test_all_images_are_listed_by_folder_date_and_field(
    browser: Browser, home: str, labelled_index: ImageIndex, labelled_photos: Path
) -> None:
    with visit(browser, home) as page:
        page.click("nav >> text=All images")
        page.wait_for_selector("#status:text-is('60 images')")
        assert headings(page) == [str(labelled_photos / kind) for kind in ("blocks", "disc", "stripes")]
        assert shown(page)[:20] == list(labelled_index.listing("folder").ids[:20])
        page.select_option("#by", "number")
        page.wait_for_url("**/browse?by=number")
        page.wait_for_selector("#grid:not([aria-busy]) .card img")
        assert headings(page) == []
        assert shown(page)[:9] == [row.id for row in labelled_index.images(order_by="number", limit=9)]
        page.click("#filter-panel summary")
        page.select_option("#filter-kind", "disc")
        page.wait_for_selector("#status:text-is('20 images')")
        assert shown(page) == list(labelled_index.listing("number", {"kind": "disc"}).ids)
        page.go_back()
        page.wait_for_selector("#status:text-is('60 images')")
        page.click(".card:nth-child(2) .tile")
        page.wait_for_selector("#lightbox .position:text-is('2 of 60')")
        page.keyboard.press("End")
        page.wait_for_selector("#lightbox .position:text-is('60 of 60')")
        page.keyboard.press("Escape")
        last = labelled_index.listing("number").ids[-1]
        assert page.evaluate("document.activeElement.closest('.card').dataset.id") == last
        page.keyboard.press("s")
        page.wait_for_url(f"{home}?id={last}")
        page.wait_for_selector("#grid:not([aria-busy]) .verdict")
        assert shown(page)[:9] == ids(labelled_index.like(last, k=9))


def test_twenty_thousand_are_scrolled_with_few_cards_and_pages(browser: Browser, many: ImageIndex) -> None:
    with served(many, WebSettings()) as url:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        try:
            page = context.new_page()
            page.set_default_timeout(30_000)
            page.route("**/thumbnail*", lambda route: route.fulfill(body=PIXEL, content_type="image/gif"))
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url) if "/api/images?" in request.url else None)
            page.goto(f"{url}browse?by=folder")
            page.wait_for_selector("#status:text-is('20,000 images')")
            expected = many.listing("folder").ids
            assert shown(page)[:40] == list(expected[:40])
            page.select_option("#jump", "57")
            page.wait_for_selector(f".card[data-id='{expected[57 * 200]}']", state="attached")
            page.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
            page.wait_for_selector(f".card[data-id='{expected[-1]}']", state="attached")
            assert len(shown(page)) < 400
            assert len(asked) <= 12  # of 100 pages
            # The lightbox goes to any place.
            page.click(".card >> nth=0")
            page.keyboard.press("End")
            page.wait_for_selector("#lightbox .position:text-is('20,000 of 20,000')")
            assert page.text_content("#lightbox-title") == f"{MANY - 1}.jpg"
        finally:
            context.close()
