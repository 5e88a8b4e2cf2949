"""All images in a real browser: in order, by pages, and the overview of clusters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
from fastapi.testclient import TestClient

from mg_milvus.images.discover import content_hash, image_id
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.web.app import _warm_up, create_app
from mg_milvus.web.security import WebSettings
from tests.web.test_browser import CHROMIUM, PIXEL, ids, served, shown, violations, visit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: see test_browser")
MANY = 20_000


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


def test_images_far_apart_are_selected(browser: Browser, many: ImageIndex) -> None:
    with served(many, WebSettings()) as url:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
        try:
            page = context.new_page()
            page.set_default_timeout(30_000)
            page.route("**/thumbnail*", lambda route: route.fulfill(body=PIXEL, content_type="image/gif"))
            page.goto(f"{url}browse?by=folder")
            page.wait_for_selector("#status:text-is('20,000 images')")
            expected = many.listing("folder").ids
            page.focus(f".card[data-id='{expected[1]}'] .tile")
            page.keyboard.press("x")
            page.select_option("#jump", "57")
            last = expected[57 * 200 + 2]
            page.click(f".card[data-id='{last}'] .check", modifiers=["Shift"])
            page.wait_for_selector("#selection [role=status]:text-is('11,402 selected')")
            with page.expect_download() as got:
                page.click("#selection >> text='Paths'")
            lines = Path(got.value.path()).read_text().splitlines()
            assert lines == [many.path(own) for own in (expected[1], *expected[2 : 57 * 200 + 3])]
        finally:
            context.close()


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


def test_the_first_order_is_read_at_the_start(many: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(many, WebSettings())
    monkeypatch.setattr("mg_milvus.web.app.WARM_PAUSE", 0)
    _warm_up(app.state.mgm)
    monkeypatch.delattr(ImageIndex, "listing")
    assert app.state.mgm.listings.of("folder", "", "", MANY).ids[0] == f"{0:032x}"


@pytest.fixture(scope="module")
def clustered(labelled_photos: Path) -> Iterator[tuple[str, ImageIndex]]:
    """A page over the labelled images with codes that say their kind, and on mid whether their number is even."""
    schema = Schema.from_yaml(
        "version: 1\ngranularities: [{name: coarse, bits: 64}, {name: mid, bits: 64}, {name: fine, bits: 64}]"
    )
    random = np.random.default_rng(3)
    codes = {(name, place): random.bytes(8) for name in schema.bits for place in range(60 if name == "fine" else 6)}
    rows = []
    for n, file in enumerate(sorted(labelled_photos.rglob("*.jpg"))):
        own = {"coarse": codes["coarse", n // 20], "mid": codes["mid", n % 2], "fine": codes["fine", max(2, n)]}
        size, time, content = file.stat().st_size, file.stat().st_mtime_ns, content_hash(file.read_bytes())
        rows.append(Row(image_id(str(file)), str(file), size, time, 96, 64, content, own))
    with ImageIndex.open("memory:", schema=schema) as index:
        index.session.store.create(Description(schema, "0123456789abcdef"))
        index.session.store.upsert(rows)
        with served(index, WebSettings(thumbnail_folder=labelled_photos.with_name("clustered"))) as url:
            yield url, index


def test_the_overview_opens_into_smaller_clusters(browser: Browser, clustered: tuple[str, ImageIndex]) -> None:
    home, index = clustered
    with visit(browser, home) as page:
        page.click("nav >> text=Overview")
        page.wait_for_selector("#status:text-is('60 images in 3 clusters')")
        found = index.clusters().clusters
        assert page.eval_on_selector_all(".cluster", "all => all.map(one => one.dataset.key)") == ["1", "2", "3"]
        assert page.locator(".cluster:first-child img").count() == 3
        blocks = next(one.key for one in found if "/blocks/" in one.typical[0].path)
        page.focus(f".cluster[data-key='{blocks}'] a")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/overview?in={blocks}")
        page.wait_for_selector("#status:text-is('20 images, number " + blocks + "')")
        parts = index.clusters().find(blocks).parts
        assert [part.size for part in parts] == [10, 10]
        assert page.locator(".cluster .line").all_inner_texts() == [f"cluster {part.key}\n10 images" for part in parts]
        page.wait_for_selector("#grid .card img")
        assert set(shown(page)) == set(index.clusters().ids(blocks))
        # Images 0 and 2 are the same on fine, and both are even.
        (inner,) = [part for part in parts if part.parts]
        page.click(f".cluster[data-key='{inner.key}'] a")
        page.wait_for_selector(".cluster >> text=near-duplicates")
        page.click(".cluster a")
        page.wait_for_selector("#heading:text-is('Near-duplicates')")
        trail = page.locator("#trail a").all_inner_texts()
        assert trail == ["Overview", f"cluster {blocks}", f"cluster {inner.key}"]
        page.wait_for_selector("#grid .card:nth-child(2) img")
        assert sorted(page.locator("#grid h3").all_inner_texts()) == ["00.jpg", "02.jpg"]
        page.click("#trail a:nth-child(2)")
        page.locator("#grid .card img").nth(19).wait_for()
        # A name stays, and limits a search.
        page.fill("#name", "Blocks of colour")
        page.press("#name", "Enter")
        page.wait_for_selector("#heading:text-is('Blocks of colour')")
        assert index.clusters().find("blocks of COLOUR").key == blocks
        page.click("#trail a")
        page.wait_for_selector(".cluster >> text=Blocks of colour")
        page.go_back()
        page.wait_for_selector("#heading:text-is('Blocks of colour')")
        page.click("#search-in")
        page.wait_for_selector(".card img")
        assert set(shown(page)) == set(index.clusters().ids(blocks))
        page.click(".card:nth-child(2) .seek")
        page.wait_for_selector("#grid:not([aria-busy]) .card .rank", state="attached")
        asked = page.evaluate("new URLSearchParams(location.search).get('id')")
        assert shown(page) == ids(index.like(asked, k=19, cluster=blocks))
        page.click("#in-cluster")
        page.wait_for_url(lambda url: "cluster" not in url)
        assert "59 candidates" in page.inner_text("#status")
        page.goto(f"{home}browse?cluster={blocks}&by=name")
        page.wait_for_selector("#heading:text-is('Images of Blocks of colour')")
        assert shown(page) == list(index.listing("name", cluster=blocks).ids)


def test_while_a_cluster_comes_nothing_acts_on_the_one_before(
    browser: Browser, clustered: tuple[str, ImageIndex]
) -> None:
    home, _ = clustered
    with visit(browser, home, "overview?in=1") as page:
        page.wait_for_selector("#naming:visible")
        asked = []
        page.route("**/api/clusters?within=*", lambda route: asked.append(route))
        page.click(".cluster a")
        page.wait_for_url("**in=1.1")
        for button in ("#naming", "#search-in", "#browse-in"):
            assert page.is_hidden(button)
        page.wait_for_function("() => document.querySelector('#clusters').ariaBusy === 'true'")
        asked[0].continue_()
        page.wait_for_selector("#naming:visible")
        assert page.get_attribute("#search-in", "href") == "./?cluster=1.1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_while_looking(browser: Browser, clustered: tuple[str, ImageIndex], scheme: str) -> None:
    with visit(browser, clustered[0], "?where.path=disc/0", color_scheme=scheme, bypass_csp=True) as page:
        page.click(".card:nth-child(2) .tile")
        page.keyboard.press("i")
        page.wait_for_selector("#lightbox img[src$='1600']")
        assert violations(page, scheme) == []
        page.keyboard.press("s")
        page.wait_for_selector("#grid:not([aria-busy]) .card .rank", state="attached")
        page.click("#scores")
        assert violations(page, scheme) == []
        page.goto(f"{clustered[0]}browse?where.path=disc/0")
        page.wait_for_selector("#grid:not([aria-busy]) .card img")
        assert violations(page, scheme) == []
        page.goto(f"{clustered[0]}overview?in=1.1")
        page.wait_for_selector("#grid .card img")
        assert violations(page, scheme) == []
        page.goto(f"{clustered[0]}overview")
        page.wait_for_selector(".cluster img")
        assert violations(page, scheme) == []


def test_signing_in_leads_to_the_page_that_was_asked_for(labelled_index: ImageIndex) -> None:
    settings = WebSettings(token="kYe3-Zp8w_Qx51uB")
    with TestClient(create_app(labelled_index, settings), base_url="http://127.0.0.1:8000") as client:
        asked = client.get("/overview?in=3")
        assert asked.status_code == 401
        assert 'name="page" value="overview"' in asked.text
        for page, place in (("overview", "./overview?in=3"), ("https://elsewhere", "./?in=3"), ("metrics", "./?in=3")):
            form = {"token": settings.token, "query": "in=3", "page": page}
            signed_in = client.post("/sign-in", data=form, follow_redirects=False)
            assert (signed_in.status_code, signed_in.headers["location"]) == (303, place)
