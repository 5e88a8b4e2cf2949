"""The ten minutes of docs/web-page.md in a real browser: a word that the page does not have any more fails here."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")

from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.web.security import WebSettings
from tests.conftest import make_photos
from tests.web.test_browser import CHROMIUM, LAST_QUARTER, drag, drop, served, visit, wait_for_results
from tests.web.test_browser_act import drop_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: see test_browser")
DOCUMENT = Path(__file__).parents[2] / "docs" / "web-page.md"
PER_KIND = 17  # verdicts need 50 images
MONTH = 31 * 86_400
FIELDS = "[{name: kind, type: string}, {name: price, type: float}, {name: sku, type: string}]"


class Script:
    """The numbered steps below a heading of the document, and the words in italics of each."""

    def __init__(self, heading: str) -> None:
        section = DOCUMENT.read_text(encoding="utf-8").split(f"### {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
        steps = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
        self._words = [{" ".join(word.split()) for word in re.findall(r"\*([^*]+)\*", step)} for step in steps]
        self.done = 0

    @contextmanager
    def step(self) -> Iterator[Callable[[str], str]]:
        """The next step; it gives words that are written in it, and ends when all of them were used."""
        words, used = self._words[self.done], set()

        def word(text: str) -> str:
            assert text in words
            used.add(text)
            return text

        yield word
        assert used == words
        self.done += 1

    def end(self) -> None:
        assert self.done == len(self._words)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """51 images and a copy of one, with a table."""
    folder = make_photos(tmp_path_factory.mktemp("ten") / "photos", PER_KIND)
    shutil.copy(folder / "disc" / "00.jpg", folder / "disc" / "00-copy.jpg")
    for place, path in enumerate(sorted(folder.rglob("*.jpg"))):
        os.utime(path, (1.7e9 + MONTH * place,) * 2)
    rows = [
        f"{path},{path.parent.name},{5 + 2 * place},SK-{place:04}"
        for place, path in enumerate(sorted(folder.rglob("*.jpg")))
    ]
    folder.with_name("products.csv").write_text("\n".join(["path,kind,price,sku", *rows]))
    return folder


@pytest.fixture(scope="module")
def home(photos: Path) -> Iterator[str]:
    settings = WebSettings(
        thumbnail_folder=photos.with_name("thumbnails"), upload_folder=photos.with_name("uploads"),
        share_folder=photos.with_name("shares"), move_folder=photos.with_name("aside"),
        title="Summer shoes", show=("price", "sku"),
    )  # fmt: skip
    parts = "{bits: 128, scales: [{size: 0.6, grid: 2}]}"
    schema = Schema.from_yaml(f"version: 1\nfields: {FIELDS}\nregions: {parts}")
    with ImageIndex.open("memory:", schema=schema) as index:
        index.ingest(photos, metadata=photos.with_name("products.csv"))
        with served(index, settings) as url:
            yield url


def button(page: Page, name: str, inside: str = "body") -> None:
    page.locator(inside).get_by_role("button", name=name, exact=True).click()


def link(page: Page, name: str) -> None:
    page.get_by_role("link", name=re.compile(f"^{name}( [0-9]+)?$")).click()


def test_ones_own_photographs(browser: Browser, home: str, photos: Path) -> None:
    script = Script("Your own photographs")
    with visit(browser, home, accept_downloads=True, permissions=["clipboard-read", "clipboard-write"]) as page:
        with script.step() as word:
            assert page.inner_text("#heading") == word("Random images")
            page.click(".card .tile")
            for key in ("ArrowRight", "+", "i"):
                page.keyboard.press(key)
            assert "photos/" in page.inner_text("#about-image")
            page.keyboard.press("Escape")
        with script.step() as word:
            link(page, word("All images"))
            page.locator("label", has_text=word("By")).locator("#by").select_option(label=word("date, newest first"))
            page.locator("label", has_text=word("Go to")).wait_for()
            page.wait_for_selector(".section")
        with script.step() as word:
            link(page, word("Overview"))
            page.click(".cluster a")
            page.wait_for_selector("#naming:visible")
            page.click(".cluster a")
            page.wait_for_url("**in=*.*")
            page.fill("#name", "holidays")
            button(page, word("Save name"))
            page.wait_for_selector("#heading:text-is('holidays')")
            link(page, word("Search in it"))
            page.wait_for_selector("#in-cluster:visible")
        with script.step() as word:
            link(page, word("Search"))
            page.wait_for_url(home)
            page.wait_for_selector(".card img")
            drop(page, photos / "stripes" / "03.jpg")
            assert word("same kind") in page.evaluate(
                "Object.values(JSON.parse(document.querySelector('#strings').textContent))"
            )
            assert page.text_content(".card .verdict") != ""
            drag(page, "#frame", LAST_QUARTER)
            button(page, word("Whole image"))
            page.wait_for_selector("#whole", state="hidden")
            wait_for_results(page)
        with script.step() as word:
            page.hover(".card:nth-child(3)")
            page.locator(".card").nth(2).get_by_title(word("More like this")).click()
            page.wait_for_selector("#terms li:nth-child(2)")
            page.hover(".card:nth-child(4)")
            page.locator(".card").nth(3).get_by_title(word("Less like this")).click()
            page.wait_for_selector("#terms .unwanted")
            page.locator("#terms button", has_text="×").last.click()
            page.wait_for_selector("#terms .unwanted", state="detached")
        with script.step() as word:
            page.fill("#text", word("beach"))
            page.keyboard.press("Enter")
            page.wait_for_url("**text=beach*")
        page.goto(home)
        page.wait_for_selector(".card img")
        with script.step() as word:
            page.click(".card:nth-child(1) .check")
            page.hover(".card:nth-child(4)")
            page.click(".card:nth-child(4) .check", modifiers=["Shift"])
            button(page, word("Tag"), "#selection")
            page.fill("#tag-name", word("album"))
            button(page, word("Add"), "#selected")
            page.wait_for_selector("#selection >> text=4 images tagged album")
            with page.expect_download() as got:
                button(page, word("Files"), "#selection")
            assert got.value.suggested_filename.endswith(".zip")
            button(page, word("Clear"), "#selection")
        with script.step() as word:
            link(page, word("Near-duplicates"))
            page.wait_for_selector(".group img")
            button(page, word("Review"))
            page.keyboard.press("v")
            page.keyboard.press("1")
            page.locator("#review").get_by_role("button", name=word("Close"), exact=True).click()
            button(page, word("Move them"))
            page.wait_for_selector("#ticks >> text=1 file moved to")
            assert len(list(photos.rglob("*.jpg"))) == 3 * PER_KIND
            button(page, word("Put the last back"))
            page.wait_for_selector("#ticks >> text=1 file put back")
            assert len(list(photos.rglob("*.jpg"))) == 3 * PER_KIND + 1
        with script.step() as word:
            page.goto(home)
            page.wait_for_selector(".card img")
            drop(page, photos / "disc" / "02.jpg")
            button(page, word("Copy link"))
            page.wait_for_selector("#share:text-is('Copied')")
            assert "codes=share." in page.evaluate("navigator.clipboard.readText()")
    script.end()


def test_product_photographs(browser: Browser, home: str, photos: Path, tmp_path: Path) -> None:
    script = Script("Product photographs")
    new = make_photos(tmp_path / "new", PER_KIND + 2)
    with visit(browser, home, accept_downloads=True, permissions=["clipboard-read", "clipboard-write"]) as page:
        with script.step():
            assert page.inner_text("h1") == "Summer shoes"
            drop(page, photos / "blocks" / "01.jpg")  # the second row of the table
            assert page.locator(".card").first.locator("h3 span").all_inner_texts() == ["7", "SK-0001"]
            assert page.text_content(".card .verdict") != ""
        with script.step() as word:
            page.locator("summary", has_text=word("Filter")).click()
            page.focus("#filter-panel .least")
            page.keyboard.press("ArrowRight")
            page.wait_for_url("**where.price=*")
            page.select_option("#filter-kind", "disc")
            page.wait_for_url("**where.kind=disc*")
            page.get_by_label(word("path holds")).fill("DiSc")
            page.wait_for_url("**where.path=DiSc*")
            page.wait_for_function("() => document.querySelectorAll('#grid .card').length === 18")
            button(page, word("Clear"), "#filters")
            page.wait_for_url(lambda url: "where" not in url)
            page.wait_for_function("() => document.querySelectorAll('#grid .card').length > 18")
        with script.step() as word:
            assert page.is_visible(f"#weights-panel summary:has-text('{word('Weights')}')")
            button(page, word("category"))
            button(page, word("instance"))
            button(page, word("Scores"))
            assert page.is_visible(".card .bars")
        with script.step() as word:
            page.locator(".card .why", has_text=word("Why this?")).nth(1).click()
            page.wait_for_selector("#why table")
            drag(page, "#why figure:last-child .frame", LAST_QUARTER)
        with script.step() as word:
            drop_all(page, [photos / "disc" / f"{number:02}.jpg" for number in range(3)])
            button(page, word("Search with all of them"))
            page.wait_for_selector("#terms li:nth-child(3)")
        with script.step() as word:
            for place in (2, 3):
                page.hover(f".card:nth-child({place})")
                page.click(f".card:nth-child({place}) .check")
            with page.expect_download() as got:
                button(page, word("CSV"), "#selection")
            assert "SK-" in Path(got.value.path()).read_text()
            button(page, word("Copy paths"), "#selection")
            page.wait_for_selector("#selection >> text=copied")
        with script.step() as word:
            button(page, word("Add images"))
            page.locator("#adding").get_by_text(word("Choose images"), exact=True).wait_for()
            page.set_input_files("#add-files", [new / "disc" / "17.jpg", new / "stripes" / "18.jpg"])
            page.wait_for_selector("#adding >> text=2 added")
            page.locator("#adding").get_by_role("button", name="Close").click()
            page.wait_for_function("() => document.querySelectorAll('#grid .card').length === 2")
        with script.step() as word:
            for name, code in (("Deutsch", "de"), ("简体中文", "zh-Hans"), ("English", "en")):
                page.select_option("#language", label=word(name))
                page.wait_for_selector(f"html[lang={code}] .card img")
            page.select_option("#theme", label=word("Dark"))
            page.wait_for_function("() => document.documentElement.style.colorScheme === 'dark'")
    script.end()
