"""The newer pages behind a proxy that takes the page's path away: everything they ask for stays under that path."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")

from mg_milvus.web.security import WebSettings
from tests.field.test_proxied_page import ROOT, ReverseProxy
from tests.web.test_browser import drop, pytestmark, served, shown, visit, wait_for_results  # noqa: F401 - a mark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from mg_milvus.index import ImageIndex


@pytest.fixture(scope="module")
def home(copied_index: ImageIndex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("behind")
    settings = WebSettings(
        root_path=ROOT, thumbnail_folder=folder / "thumbnails", share_folder=folder / "shares",
        ignore_file=folder / "pairs.jsonl",
    )  # fmt: skip
    with served(copied_index, settings) as url, ReverseProxy(int(url.rsplit(":")[-1].strip("/")), strips=True) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}{ROOT}/"
        proxy.shutdown()
        thread.join()


def test_lists_lightbox_and_zip(browser: Browser, home: str, copied_index: ImageIndex) -> None:
    with visit(browser, home, "browse?by=name") as page:
        page.click(".card:first-child .tile")
        page.locator("#lightbox img").evaluate("(image) => image.decode()")
        assert page.get_attribute("#lightbox footer a", "href").startswith("api/images/")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Escape")
        page.click(".card:nth-child(1) .check")
        page.click(".card:nth-child(2) .check")
        with page.expect_download() as got:
            page.click("#selection >> text=Files")
        with zipfile.ZipFile(got.value.path()) as archive:
            packed = [archive.read(name) for name in archive.namelist()]
        files = [Path(row.path).read_bytes() for row in copied_index.images(order_by="name", limit=2)]
        assert sorted(packed) == sorted(files)
        page.keyboard.press("Escape")
        page.click(".card:nth-child(3) .seek")
        page.wait_for_url(f"{home}?id=*")
        wait_for_results(page)


def test_the_overview_its_clusters_and_what_they_lead_to(browser: Browser, home: str) -> None:
    with visit(browser, home, "browse") as page:
        page.click("nav >> text=Overview")
        page.click(".cluster a")
        page.wait_for_url(f"{home}overview?in=*")
        page.wait_for_selector("#grid .card img")
        page.click("#browse-in")
        page.wait_for_url(f"{home}browse?cluster=*")
        page.wait_for_selector("#grid .card img")


def test_a_shared_link(browser: Browser, home: str, copied_index: ImageIndex) -> None:
    image = Path(copied_index.images(order_by="path", limit=1)[0].path)
    with visit(browser, home, permissions=["clipboard-read", "clipboard-write"]) as page:
        drop(page, image)
        order = shown(page)
        page.click("#share")
        page.wait_for_selector("#share:has-text('Copied')")
        link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{home}?codes=share.")
    with visit(browser, home, link.removeprefix(home)) as page:
        wait_for_results(page)
        assert shown(page) == order
        assert page.inner_text("#query-name") == image.name


def test_the_review_of_near_duplicates(browser: Browser, home: str) -> None:
    with visit(browser, home) as page:
        page.click("nav >> text=Near-duplicates")
        page.wait_for_selector(".group img")
        page.click("#ticks >> text=Review")
        page.locator("#review img").first.evaluate("(image) => image.decode()")
        page.keyboard.press("1")
        assert page.inner_text("#review-title") == "Pair 2 of 2: identical file"
        page.click("#review >> text=Close")
        page.click(".group .card .tile")
        page.wait_for_url(f"{home}?id=*")


def test_the_chosen_language_holds_on_every_page_under_the_path(browser: Browser, home: str) -> None:
    with visit(browser, home, "browse") as page:
        page.select_option("#language", "de")
        page.wait_for_selector("html[lang=de] .card img")
        (cookie,) = [one for one in page.context.cookies() if one["name"] == "mgm_language"]
        assert cookie["path"] == f"{ROOT}/"
        page.goto(home)
        assert page.get_attribute("html", "lang") == "de"
