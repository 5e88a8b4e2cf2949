"""Looking at images in a real browser: the lightbox, the cards, the theme."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")

from mg_milvus.web.security import WebSettings
from tests.web.test_browser import CHROMIUM, drop, ids, served, shown, visit, wait_for_results

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from mg_milvus.index import ImageIndex

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: see test_browser")


@pytest.fixture(scope="module")
def home(labelled_index: ImageIndex, labelled_photos: Path) -> Iterator[str]:
    settings = WebSettings(
        thumbnail_folder=labelled_photos.with_name("look"), title="Shapes <b>", show=("kind", "number")
    )
    with served(labelled_index, settings) as url:
        yield url


@pytest.fixture
def page(browser: Browser, home: str) -> Iterator[Page]:
    with visit(browser, home) as opened:
        yield opened


def transform(page: Page) -> list[float]:
    """Shift in x and y, and scale, of the image in the lightbox."""
    return page.evaluate(
        """() => {
            const { a, e, f } = new DOMMatrix(getComputedStyle(document.querySelector("#lightbox img")).transform);
            return [e, f, a];
        }"""
    )


def named(page: Page, place: int) -> str:
    return page.get_attribute(f".card:nth-child({place}) img", "alt") or ""


def test_a_click_shows_an_image_large(page: Page, labelled_index: ImageIndex, labelled_photos: Path) -> None:
    drop(page, labelled_photos / "disc" / "04.jpg")
    order = shown(page)
    page.click(".card:nth-child(3) .tile")
    page.wait_for_selector("#lightbox[open]")
    row = labelled_index.row(order[2])
    assert page.text_content("#lightbox-title") == row.path.rsplit("/", 1)[1]
    assert page.inner_text("#lightbox .position") == "3 of 60"
    assert page.inner_text("#lightbox .verdict") == page.text_content(".card:nth-child(3) .verdict")
    page.wait_for_selector("#lightbox img[src$='1600']")
    assert page.evaluate("document.querySelector('#lightbox img').naturalWidth") == 96
    page.keyboard.press("i")
    facts = page.inner_text("#about-image")
    assert row.path in facts
    assert f"{row.width} × {row.height} px" in facts
    assert row.fields["kind"] in facts
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#lightbox .position:text-is('4 of 60')")
    page.click("#lightbox .next")
    page.wait_for_selector("#lightbox .position:text-is('5 of 60')")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#lightbox footer a", "href") == f"api/images/{order[3]}/original"
    page.keyboard.press("Escape")
    assert page.is_hidden("#lightbox")
    # The focus is on the image that was shown last.
    assert page.evaluate("document.activeElement.closest('.card').dataset.id") == order[3]
    page.keyboard.press("Enter")
    page.wait_for_selector("#lightbox .position:text-is('4 of 60')")
    page.keyboard.press("s")
    page.wait_for_url(f"**/?id={order[3]}")
    wait_for_results(page)
    assert shown(page) == ids(labelled_index.like(order[3], k=len(shown(page))))


def test_it_zooms_pans_and_keeps_the_focus(page: Page) -> None:
    page.click(".card:nth-child(2) .tile")
    page.wait_for_selector("#lightbox img[src$='1600']")
    place = page.locator(".stage").bounding_box()
    assert place is not None
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.keyboard.press("+")
    assert transform(page) == pytest.approx([0, 0, 1.4])
    page.keyboard.press("-")
    assert transform(page) == pytest.approx([0, 0, 1])
    page.mouse.move(x + 100, y)
    page.mouse.wheel(0, -1500)  # e ** 2.4 = 11.02 times, around a place that stays where it is: 100 - 100 * 11.02
    assert transform(page)[2] == pytest.approx(11.02, abs=0.01)
    page.keyboard.press("0")
    page.dblclick(".stage", position={"x": place["width"] / 2, "y": place["height"] / 2})
    assert transform(page) == pytest.approx([0, 0, 3])
    before = transform(page)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y - 0)
    page.mouse.up()
    width = page.evaluate("document.querySelector('#lightbox img').offsetWidth")
    most = max(0.0, (3 * width - place["width"]) / 2)
    assert transform(page)[0] == pytest.approx(min(before[0] + 30, most))
    inside = "document.activeElement.matches('#lightbox *, body')"  # from the last button it goes to the browser's own
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(inside)


def test_a_swipe_shows_the_next_image(browser: Browser, home: str) -> None:
    with visit(browser, home, viewport={"width": 390, "height": 780}, is_mobile=True, has_touch=True) as page:
        page.tap(".card:nth-child(1) .tile")
        page.wait_for_selector("#lightbox .position:text-is('1 of 60')")
        touch = """([type, id, x, y]) => document.querySelector(".stage").dispatchEvent(new PointerEvent(type, {
            pointerId: id, pointerType: "touch", clientX: x, clientY: y, bubbles: true }))"""
        page.evaluate("Element.prototype.setPointerCapture = () => {}")  # made-up fingers cannot be captured
        for event in (["pointerdown", 1, 300, 300], ["pointermove", 1, 200, 300], ["pointerup", 1, 200, 300]):
            page.evaluate(touch, event)
        page.wait_for_selector("#lightbox .position:text-is('2 of 60')")
        # Two fingers that go from 100 to 200 pixels apart.
        for event in (["pointerdown", 1, 150, 300], ["pointerdown", 2, 250, 300], ["pointermove", 2, 350, 300]):
            page.evaluate(touch, event)
        assert transform(page)[2] == pytest.approx(2)
        for event in (["pointerup", 2, 350, 300], ["pointerup", 1, 150, 300]):
            page.evaluate(touch, event)
        assert page.inner_text("#lightbox .position") == "2 of 60"
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_cards_show_what_was_chosen_and_scores_on_demand(page: Page, labelled_photos: Path) -> None:
    assert page.inner_text("h1") == "Shapes <b>"
    assert page.title() == "Shapes <b> · mg-milvus"
    drop(page, labelled_photos / "disc" / "04.jpg")
    assert page.locator(".card").first.locator("h3 span").all_inner_texts() == ["disc", "4"]
    assert page.is_hidden(".card .score")
    page.click("#scores")
    assert page.is_visible(".card .score")
    assert page.is_visible(".card .bars")
    assert page.get_attribute("#scores", "aria-pressed") == "true"
    box = page.locator(".card .tile").first.bounding_box()
    assert box is not None
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert page.evaluate("getComputedStyle(document.querySelector('.card img')).objectFit") == "contain"


def test_long_names_are_shortened_in_the_middle(
    browser: Browser, labelled_index: ImageIndex, labelled_photos: Path, tmp_path: Path
) -> None:
    name = "3f2504e0-4f89-11d3-9a0c-0305e82c3301-and-some-more-of-it.jpeg"
    shutil.copy(labelled_photos / "disc" / "04.jpg", tmp_path / name)
    settings = WebSettings(thumbnail_folder=tmp_path / "thumbnails")
    with served(labelled_index, settings) as url, visit(browser, url) as page:
        drop(page, tmp_path / name)
        assert page.text_content("#query-name") == name
        assert page.get_attribute("#query-name", "title") == name
        assert page.inner_text("#query-name .tail") == "f-it.jpeg"
        sidebar = page.locator(".sidebar").bounding_box()
        slider = page.locator("#weight-fine").bounding_box()
        assert sidebar is not None
        assert slider is not None
        assert slider["x"] + slider["width"] < sidebar["x"] + sidebar["width"]
        tail = page.locator("#query-name .tail").bounding_box()
        assert tail is not None
        assert tail["x"] + tail["width"] <= sidebar["x"] + sidebar["width"]


def test_the_theme_is_chosen_and_remembered(page: Page, home: str) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(246, 246, 244)", "rgb(19, 20, 22)"
    assert page.evaluate(colour) == light
    page.select_option("#theme", "dark")
    assert page.evaluate(colour) == dark
    page.goto(f"{home}?where.number=..2")
    page.wait_for_selector(".card img")
    assert page.evaluate(colour) == dark
    assert page.input_value("#theme") == "dark"
    page.emulate_media(color_scheme="dark")
    page.select_option("#theme", "light")
    assert page.evaluate(colour) == light
    page.select_option("#theme", "system")
    assert page.evaluate(colour) == dark


def test_results_go_on_where_the_candidates_end(page: Page, labelled_index: ImageIndex) -> None:
    first = shown(page)[0]
    page.goto(f"{page.url}?id={first}&depth=10")
    wait_for_results(page)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector("#status:has-text('59 candidates')")
    place = labelled_index.like(first, k=10, depth=10)
    page.evaluate("scrollTo(0, 0)")
    assert shown(page)[: len(place)] == ids(place)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(".card[data-id]:last-child")
    assert len(set(shown(page))) == len(shown(page))
