"""The page in a real browser: searching with several images, selecting, tagging, removing, reviewing copies."""

from __future__ import annotations

import base64
import shutil
import subprocess
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")

from mg_milvus.index import ImageIndex
from mg_milvus.search.query import QueryTerm
from mg_milvus.web.security import WebSettings
from tests.conftest import kind_of_image, make_photos
from tests.web.test_browser import (
    LAST_QUARTER,
    drag,
    drawn_boxes,
    drop,
    folder,
    home,
    ids,
    index,
    page,
    pytestmark,
    served,
    shown,
    violations,
    visit,
    wait_for_results,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

__all__ = ["folder", "home", "index", "page", "pytestmark"]


def drop_all(page: Page, files: list[Path]) -> None:
    """Drop several files on the page at once."""
    data = [[base64.b64encode(file.read_bytes()).decode(), file.name] for file in files]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [data, name] of files) {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            }
            return transfer;
        }""",
        data,
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": transfer})


@contextmanager
def answered(page: Page, path: str = "/api/query") -> Iterator[None]:
    """Wait until the request that the block causes is answered, and shown."""
    with page.expect_response(lambda response: path in response.url):
        yield
    page.wait_for_selector("#grid:not([aria-busy])")


def test_several_images_are_searched_with_together(page: Page, index: ImageIndex, folder: Path) -> None:
    files = [folder / "disc" / "02.jpg", folder / "stripes" / "03.jpg"]
    drop_all(page, files)
    page.wait_for_selector("#several[open]")
    assert page.inner_text("#several-title") == "2 images"
    assert page.is_visible("#several >> text=Add them to the index")
    page.click("#several >> text=Search with all of them")
    page.wait_for_selector("#heading:text-is('Nearest to these 2 images')")
    hits = index.query(files, k=100)
    assert shown(page) == ids(hits)[: len(shown(page))]
    assert page.inner_text(".card .score") == f"{hits[0].score:.4f}"
    assert page.eval_on_selector_all("#terms img", "all => all.map(one => one.alt)") == ["Like 02.jpg", "Like 03.jpg"]
    # Weights count for them, too, and the address alone gives the same answer.
    with answered(page):
        page.click("text=category")
    expected = ids(index.query(files, k=100, profile="category"))
    assert shown(page) == expected[: len(shown(page))]
    page.reload()
    page.wait_for_selector("#heading:text-is('Nearest to these 2 images')")
    assert shown(page) == expected[: len(shown(page))]


def test_hits_refine_the_query_and_can_be_taken_back(page: Page, index: ImageIndex, folder: Path) -> None:
    image = folder / "blocks" / "05.jpg"
    drop(page, image)
    first = shown(page)
    page.hover(".card:nth-child(3)")
    page.click(".card:nth-child(3) .refine.more")
    page.wait_for_selector("#heading:text-is('Nearest to these 2 images')")
    terms = [QueryTerm(image), QueryTerm(like=first[2])]
    assert shown(page) == ids(index.query_together(terms, k=100))[: len(shown(page))]
    unwanted = shown(page)[1]
    page.focus(f".card[data-id='{unwanted}'] .tile")
    with answered(page):
        page.keyboard.press("-")
    page.wait_for_selector("#terms .unwanted")
    terms.append(QueryTerm(like=unwanted, weight=-1.0))
    assert shown(page) == ids(index.query_together(terms, k=100))[: len(shown(page))]
    page.click("#terms li:nth-child(2) button")
    page.wait_for_selector("#terms li:nth-child(3)", state="detached")
    page.click("#terms .unwanted button")
    wait_for_results(page)
    page.wait_for_selector("#terms", state="hidden")
    assert shown(page) == first


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[str, ImageIndex, Path]]:
    """A page over six images of the test's own, which may be changed."""
    photos = make_photos(tmp_path / "photos", 2)
    with ImageIndex.open("memory:") as opened:
        opened.ingest(photos)
        with served(opened, WebSettings(upload_folder=tmp_path / "uploads", thumbnail_folder=tmp_path / "t")) as url:
            yield url, opened, photos


def selected(page: Page) -> list[str]:
    return page.eval_on_selector_all("#grid .card.selected", "all => all.map(card => card.dataset.id)")


def test_images_are_selected_and_acted_on(browser: Browser, own: tuple[str, ImageIndex, Path]) -> None:
    url, opened, _ = own
    with visit(browser, url, accept_downloads=True) as page:
        order = shown(page)
        page.hover(".card:nth-child(1)")
        page.click(".card:nth-child(1) .check")
        page.hover(".card:nth-child(3)")
        page.click(".card:nth-child(3) .check", modifiers=["Shift"])
        assert selected(page) == order[:3]
        page.focus(f".card[data-id='{order[2]}'] .tile")
        page.keyboard.press("x")
        assert selected(page) == order[:2]
        page.keyboard.press("x")
        page.keyboard.press("Shift+ArrowRight")
        page.wait_for_selector(f".card.selected[data-id='{order[3]}']")
        assert page.inner_text("#selection [role=status]") == "4 selected"
        paths = [opened.path(i) for i in order[:4]]
        with page.expect_download() as got:
            page.click("#selection >> text='Paths'")
        assert Path(got.value.path()).read_text() == "".join(f"{path}\n" for path in paths)
        with page.expect_download() as got:
            page.click("#selection >> text='Files'")
        with zipfile.ZipFile(got.value.path()) as archive:
            assert [archive.read(name) for name in archive.namelist()] == [Path(path).read_bytes() for path in paths]
        page.click("#selection >> text='Tag'")
        page.fill("#tag-name", "beach")
        page.keyboard.press("Enter")
        page.wait_for_selector("#selection >> text='4 images tagged beach'")
        assert {row.id for row in opened.images(filter='user_tags == "beach"')} == set(order[:4])
        page.click("#selection >> text='Remove'")
        assert page.inner_text("#selected-title") == "Remove these 4 images from the index?"
        page.keyboard.press("Enter")  # the focus is on Cancel
        assert opened.count() == 6
        page.click("#selection >> text='Remove'")
        page.click("#selected >> text=Remove from the index >> visible=true")
        page.wait_for_selector(".card:nth-child(3)", state="detached")
        assert opened.count() == 2
        assert all(Path(path).is_file() for path in paths)
        assert page.is_hidden("#selection")


def test_a_long_press_selects(browser: Browser, home: str) -> None:
    phone = {"viewport": {"width": 390, "height": 800}, "is_mobile": True, "has_touch": True}
    with visit(browser, home, **phone) as page:
        order = shown(page)
        place = page.locator(f".card[data-id='{order[0]}'] .tile").bounding_box()
        spot = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] * 0.7}
        session = page.context.new_cdp_session(page)
        session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [spot]})
        page.wait_for_selector(f".card.selected[data-id='{order[0]}']")
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.tap(f".card[data-id='{order[1]}'] .tile")
        assert selected(page) == order[:2]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.click("#selection >> text=Clear")
        assert selected(page) == []


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[tuple[str, ImageIndex, Path]]:
    """A page over ten images: one with an edited and a small copy, one with an identical one. They may be moved."""
    photos = make_photos(tmp_path / "it's" / "photos", 2)
    shutil.copy(photos / "blocks" / "01.jpg", photos / "blocks" / "01~copy.jpg")
    large = kind_of_image("stripes", 5, (480, 320))
    large.save(photos / "stripes" / "05.jpg", quality=95)
    large.save(photos / "stripes" / "05~edit.jpg", quality=85)
    large.resize((300, 200)).save(photos / "stripes" / "05~small.jpg")
    settings = WebSettings(
        move_folder=tmp_path / "aside", ignore_file=tmp_path / "pairs.jsonl", thumbnail_folder=tmp_path / "t"
    )
    with ImageIndex.open("memory:") as opened:
        opened.ingest(photos)
        with served(opened, settings) as url:
            yield url, opened, photos


@contextmanager
def reviewing(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    with visit(browser, url, "duplicates?distance=30&keep=first", **options) as page:
        page.wait_for_selector("#progress", state="hidden")
        page.click("#ticks >> text=Review")
        yield page


def title(page: Page) -> str:
    return page.inner_text("#review-title").partition(":")[0]


def test_copies_are_reviewed_by_keys_and_moved(browser: Browser, copies: tuple[str, ImageIndex, Path]) -> None:
    url, opened, photos = copies
    with reviewing(browser, url, accept_downloads=True) as page:
        assert title(page) == "Pair 1 of 3"
        page.keyboard.press("v")
        page.fill(".stage .swipe", "80")
        style = "getComputedStyle(document.querySelector('.stage .over'))"
        assert page.evaluate(f"{style}.clipPath") == "inset(0px 0px 0px 80%)"
        page.keyboard.press("v")
        assert page.evaluate(f"{style}.mixBlendMode") == "difference"
        page.keyboard.press("2")  # the first of its group goes instead of its copy
        assert title(page) == "Pair 2 of 3"
        page.keyboard.press(" ")
        page.wait_for_selector("#review-title:has-text('of 2')")
        page.keyboard.press("Escape")
        page.wait_for_selector("#review", state="hidden")
        report = opened.duplicates(distance=30, keep="first", ignore=photos.parent.parent / "pairs.jsonl")
        assert report.ignored == 1
        ticked = page.eval_on_selector_all(".card.goes", "all => all.map((card) => card.dataset.id)")
        paths = sorted(opened.path(i) for i in ticked)
        assert len(paths) == 2
        with page.expect_download() as got:
            page.click("#ticks >> text=List")
        assert sorted(Path(got.value.path()).read_text().splitlines()) == paths
        with page.expect_download() as got:
            page.click("#ticks >> text=Script")
        aside = photos.parent.parent / "by-script"
        subprocess.run(["sh", got.value.path(), str(aside)], check=True)
        assert [Path(f"{aside}{path}").is_file() and not Path(path).exists() for path in paths] == [True, True]
        for path in paths:
            shutil.move(f"{aside}{path}", path)
        page.click("#ticks >> text=Move them")
        page.wait_for_selector("#ticks >> text=2 files moved to")
        assert [Path(path).exists() for path in paths] == [False, False]
        page.click("#ticks >> text=Put the last back")
        page.wait_for_selector("#ticks >> text=2 files put back")
        assert [Path(path).exists() for path in paths] == [True, True]
        assert opened.count() == 10


def test_a_group_keeps_one_and_a_phone_can_review(browser: Browser, copies: tuple[str, ImageIndex, Path]) -> None:
    url, _, _ = copies
    phone = {"viewport": {"width": 390, "height": 800}, "is_mobile": True, "has_touch": True}
    with reviewing(browser, url, **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".stage img").nth(1).bounding_box()["height"] > 200
        page.tap("text=1 · Left stays")
        assert title(page) == "Pair 2 of 3"
        page.tap("#review >> text=Close")
        free = page.locator(".group:first-of-type .tick input:not(:checked)")
        assert free.count() == 1
        free.first.click()
        assert page.inner_text("#ticks .hint") == "One image of a group stays."
        assert page.locator(".group:first-of-type .tick input:not(:checked)").count() == 1


def test_filters_apply_while_typing(page: Page, index: ImageIndex, folder: Path) -> None:
    image = folder / "disc" / "02.jpg"
    drop(page, image)
    page.click("#filter-panel summary")
    page.type("#filter-path", "sTrIpEs/1")  # the case does not count
    page.wait_for_url(lambda url: unquote(url).endswith("where.path=sTrIpEs/1"))
    where = 'path like "%stripes/1%"'
    assert shown(page) == ids(index.query(image, k=60, filter=where))
    assert len(shown(page)) == 10
    page.focus(".dual .least")
    page.keyboard.press("End")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.wait_for_url(lambda url: "where.number=16.." in unquote(url))
    assert page.input_value("[name='number.least']") == "16"
    assert shown(page) == ids(index.query(image, k=60, filter=f"number >= 16 and {where}"))
    assert "Columns: id, path, size" in page.inner_text("#filter-columns")
    page.click("#filters >> text=Clear")
    page.wait_for_url(lambda url: "where" not in url)
    assert shown(page) == ids(index.query(image, k=len(shown(page))))
    assert page.input_value(".dual .least") == "0"


def test_words_and_values_are_completed(browser: Browser, own: tuple[str, ImageIndex, Path]) -> None:
    url, opened, _ = own
    rows = opened.images()
    opened.tag([row.id for row in rows[:3]], ["Beach"])
    opened.tag([rows[0].id], ["beaver dam"])
    with visit(browser, url) as page:
        with page.expect_response(lambda response: "/api/tags" in response.url):
            page.type("#text", "bea")
        page.wait_for_selector("#text-values option", state="attached")
        offered = page.eval_on_selector_all("#text-values option", "all => all.map((one) => [one.value, one.label])")
        assert [one for one in offered if one[0] in {"Beach", "beaver dam"}] == [
            ["Beach", "Beach (3)"], ["beaver dam", "beaver dam (1)"],
        ]  # fmt: skip
        page.click("#filter-panel summary")
        with answered(page, "/api/sample"):
            page.select_option("#filter-user_tags", "Beach")
        assert set(shown(page)) == {row.id for row in rows[:3]}


@pytest.fixture(scope="module")
def sharing(collage_index: ImageIndex, collages: Path) -> Iterator[str]:
    """A page over an index with regions, which keeps what is shared."""
    settings = WebSettings(
        thumbnail_folder=collages.with_name("shared-thumbnails"), share_folder=collages.with_name("shares")
    )
    with served(collage_index, settings) as url:
        yield url


def test_a_shared_link_gives_the_same_answer_with_its_image(
    browser: Browser, sharing: str, collage_index: ImageIndex, collages: Path
) -> None:
    image = collages / "07.png"
    with visit(browser, sharing, permissions=["clipboard-read", "clipboard-write"]) as page:
        drop(page, image)
        drag(page, "#frame", LAST_QUARTER)
        order, boxes = shown(page), drawn_boxes(page)
        page.click("#share")
        page.wait_for_selector("#share:has-text('Copied')")
        link = page.evaluate("navigator.clipboard.readText()")
        assert "codes=share." in link
    with visit(browser, sharing, link.removeprefix(sharing)) as other:
        wait_for_results(other)
        assert (shown(other), drawn_boxes(other)) == (order, boxes)
        assert other.inner_text("#query-name") == "07.png"
        assert other.evaluate("document.querySelector('#query').naturalWidth") == 240
        assert other.is_enabled("#weight-regions")


def test_recent_queries_are_a_click_away(page: Page, folder: Path) -> None:
    assert page.is_hidden("#history-panel")
    drop(page, folder / "disc" / "02.jpg")
    first = shown(page)
    page.click(".card:nth-child(4) .seek")
    page.wait_for_url("**/?id=*")
    wait_for_results(page)
    page.click("#history-panel summary")
    assert page.eval_on_selector_all("#history-panel img", "all => all.map((one) => one.alt)")[1] == "02.jpg"
    page.click("#history-panel li:nth-child(2) a")
    page.wait_for_selector(f".card:first-child[data-id='{first[0]}']")
    assert shown(page) == first
    assert page.inner_text("#query-name") == "02.jpg"
    page.click("#history-panel >> text=Clear")
    assert page.is_hidden("#history-panel")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_here(
    browser: Browser, home: str, copies: tuple[str, ImageIndex, Path], folder: Path, scheme: str
) -> None:
    options = {"color_scheme": scheme, "bypass_csp": True}
    with visit(browser, home, "?where.number=..2", **options) as page:
        drop_all(page, [folder / "disc" / "02.jpg", folder / "stripes" / "03.jpg"])
        page.wait_for_selector("#several[open]")
        assert violations(page, scheme) == []
        page.click("#several >> text=Search with all of them")
        page.wait_for_selector("#terms li")
        page.click("#filter-panel summary")
        page.click("#history-panel summary")
        page.focus(".card .tile")
        page.keyboard.press("x")
        assert violations(page, scheme) == []
        page.click("#selection >> text='Tag'")
        assert violations(page, scheme) == []
    with reviewing(browser, copies[0], **options) as page:
        for _ in range(3):
            assert violations(page, scheme) == []
            page.keyboard.press("v")


def test_a_server_that_is_gone_is_tried_again(browser: Browser, home: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(15_000)
    try:
        page.goto(home)
        page.wait_for_selector(".card img")
        tried: list[str] = []

        def answer(route: Any) -> None:
            tried.append(route.request.url)
            if len(tried) > 1:
                route.continue_()
            else:
                route.abort("connectionrefused")

        page.route("**/api/sample*", answer)
        page.click("#random")
        page.wait_for_selector("#problem:has-text('The server does not respond: trying again in 1 s.')")
        page.wait_for_selector("#problem", state="hidden")
        assert len(tried) == 2
        assert page.locator(".card img").count() > 0
    finally:
        page.close()


def test_new_images_are_shown_and_counted_once(browser: Browser, own: tuple[str, ImageIndex, Path]) -> None:
    url, opened, photos = own
    kind_of_image("disc", 7).save(photos.parent / "Straße 1.jpg")
    (photos.parent / "broken.jpg").write_bytes(b"no image")
    with visit(browser, url) as page:
        page.click("#add")
        page.set_input_files("#add-files", [photos.parent / "Straße 1.jpg"])
        page.wait_for_selector("#adding >> text=1 added, 0 updated, 0 unchanged, 0 failed")
        page.click("#adding >> text=Close")
        page.wait_for_url("**where.expression*")
        page.wait_for_selector(".card:nth-child(1) img")
        (row,) = opened.images(filter='path like "%uploads%"')
        assert shown(page) == [row.id]
        assert Path(row.path).name.startswith("Straße-1-")
    page = browser.new_page()
    try:
        page.goto(url)
        page.click("#add")
        page.set_input_files("#add-files", [photos.parent / "Straße 1.jpg", photos.parent / "broken.jpg"])
        page.wait_for_selector("#adding >> text=0 added, 0 updated, 1 unchanged, 1 failed")
    finally:
        page.close()
