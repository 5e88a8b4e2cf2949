"""The page in a real browser: what people do with it, and what they see then."""

from __future__ import annotations

import base64
import os
import random
import re
import shutil
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
import uvicorn

from mg_milvus.images.discover import content_hash, image_id
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.schema.tags import encode_tag, vocabulary
from mg_milvus.store.base import Description, Row
from mg_milvus.web.app import address, bind, create_app
from mg_milvus.web.security import WebSettings
from tests.conftest import kind_of_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: apt-get install chromium, or say where it is with CHROMIUM=PATH"
)
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
SLIDER_KEYS = 12
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")


@contextmanager
def served(index: ImageIndex, settings: WebSettings) -> Iterator[str]:
    """The address of a page over the index."""
    taken = bind("127.0.0.1", 0, None)
    server = uvicorn.Server(uvicorn.Config(create_app(index, settings), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    try:
        yield address("127.0.0.1", taken)
    finally:
        server.should_exit = True
        thread.join()
        taken.close()


@pytest.fixture(scope="module")
def folder(labelled_photos: Path) -> Path:
    return labelled_photos


@pytest.fixture(scope="module")
def index(labelled_index: ImageIndex) -> ImageIndex:
    return labelled_index


@pytest.fixture(scope="module")
def home(index: ImageIndex, folder: Path) -> Iterator[str]:
    settings = WebSettings(thumbnail_folder=folder.with_name("thumbnails"), upload_folder=folder.with_name("uploads"))
    with served(index, settings) as url:
        yield url


def violations(page: Page, scheme: str) -> list[str]:
    """What axe finds on a page; in the dark of colours only, as the rest is the same in both."""
    base = pytest.importorskip("axe_playwright_python.base", reason="needs axe: pip install -e '.[dev]'")
    rules = {} if scheme == "light" else {"runOnly": ["color-contrast"]}
    page.wait_for_timeout(350)  # colours that are still fading in would be measured half-way
    if not page.evaluate("'axe' in window"):
        page.evaluate(base.AXE_FILE_PATH.read_text())
    found = page.evaluate("(rules) => axe.run(rules).then((result) => result.violations)", rules)
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


@contextmanager
def visit(browser: Browser, home: str, path: str = "", **options: Any) -> Iterator[Page]:
    """A page that must neither complain nor ask anyone but its own server."""
    context: BrowserContext = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    page = context.new_page()
    page.set_default_timeout(15_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(home + path)
        page.wait_for_selector(".card img")
        yield page
        assert complaints == []
        assert [url for url in asked if not url.startswith((home, "blob:", "data:"))] == []
    finally:
        context.close()


@pytest.fixture
def page(browser: Browser, home: str) -> Iterator[Page]:
    with visit(browser, home) as opened:
        yield opened


def shown(page: Page) -> list[str]:
    """Ids of the results, in the order shown."""
    return page.eval_on_selector_all("#grid .card", "cards => cards.map(card => card.dataset.id)")


def wait_for_results(page: Page) -> None:
    page.wait_for_selector("#grid:not([aria-busy]) .card .rank", state="attached")
    page.wait_for_function(  # the first block comes with the answer, the others after that frame
        "() => [...document.querySelectorAll('#grid .hits')]"
        ".every((block) => block.childElementCount || block.getBoundingClientRect().top > innerHeight + 1000)"
    )


def drop(page: Page, file: Path) -> None:
    """Drop a file on the page, as a hand would."""
    data = base64.b64encode(file.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([data, name]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            return transfer;
        }""",
        [data, file.name],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": transfer})
    wait_for_results(page)


def ids(hits: list) -> list[str]:
    return [hit.id for hit in hits]


def test_a_dropped_image_is_answered_as_by_the_library(page: Page, index: ImageIndex, folder: Path) -> None:
    assert page.inner_text("nav small") == str(index.count())
    drop(page, folder / "disc" / "04.jpg")
    expected = index.query(folder / "disc" / "04.jpg", k=len(shown(page)))
    assert shown(page) == ids(expected)
    assert page.text_content(".card .score") == f"{expected[0].score:.4f}"
    assert page.inner_text("#query-name") == "04.jpg"
    assert page.evaluate("document.querySelector('#query').naturalWidth") == 96


def test_what_fits_the_window_is_there_first(page: Page, index: ImageIndex, folder: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 500})
    page.evaluate("""() => {
        const grid = document.querySelector("#grid");
        new MutationObserver(() => {
            if (!grid.hasAttribute("aria-busy")) window.first ??= grid.querySelectorAll(".rank").length;
        }).observe(grid, { attributes: true });
    }""")
    drop(page, folder / "disc" / "04.jpg")
    first = page.evaluate("window.first")
    assert first == 8  # two rows of four cards
    page.wait_for_function("(first) => document.querySelectorAll('#grid .rank').length > first", arg=first)
    assert shown(page) == ids(index.query(folder / "disc" / "04.jpg", k=len(shown(page))))


def test_the_first_results_are_verified(page: Page, index: ImageIndex, folder: Path) -> None:
    image = folder / "disc" / "03.jpg"
    drop(page, image)
    page.check("#verify")
    page.wait_for_selector("#grid .card:first-child .verdict:has-text('identical file')")
    said = page.eval_on_selector_all("#grid .verdict", "all => all.map(own => own.textContent)")
    expected = index.query(image, k=12, verify=True)
    words = [hit.verified.verdict if hit.verified else hit.words for hit in expected]
    assert said[:12] == [word.replace(" %", "%") for word in words]
    assert said[0] == "identical file"
    assert page.locator("#grid .card").first.locator(".region").count() == 1


def test_moving_a_slider_ranks_anew_and_asks_nobody(page: Page, index: ImageIndex, folder: Path) -> None:
    image = folder / "blocks" / "11.jpg"
    drop(page, image)
    page.wait_for_load_state("networkidle")
    before, queries = shown(page), []
    page.on("request", lambda request: queries.append(request.url) if "/api/query" in request.url else None)
    page.focus("#weight-coarse")
    for _ in range(SLIDER_KEYS):
        page.keyboard.press("ArrowRight")
    page.focus("#weight-fine")
    page.keyboard.press("Home")
    page.wait_for_url(lambda url: "fine:0" in url)
    weights = {"coarse": 3.7, "mid": 1.0, "fine": 0.0}  # 2.5, and 12 keys of 0.1
    assert page.inner_text("output[for=weight-coarse]") == "3.7"
    expected = index.query(image, k=len(before), weights=weights)
    assert shown(page) == ids(expected)
    assert shown(page) != before
    page.click("text=instance")
    assert shown(page) == ids(index.query(image, k=len(before), profile="instance", views=False))
    assert page.get_attribute(".segment:text('instance')", "aria-pressed") == "true"
    page.select_option("#fusion", "score")
    assert shown(page) == ids(index.query(image, k=len(before), profile="instance", fusion="score", views=False))
    assert queries == []


def test_the_page_ranks_as_the_library_does(page: Page, index: ImageIndex, folder: Path) -> None:
    random_ = random.Random(5)
    for kind in ("disc", "stripes", "blocks"):
        image = folder / kind / "13.jpg"
        for method in ("rank", "score", "chance"):
            drawn = {name: random_.choice([0, 0.5, 1, 2.7, 3]) for name in ("coarse", "mid", "fine")}
            weights = drawn if any(drawn.values()) else {"mid": 1}
            depth = random_.choice([10, 30])
            ranked = page.evaluate(
                """async ([codes, bits, weights, method, depth]) => {
                    const { fuse } = await import("/static/fusion.js");
                    const path = `/api/query?candidates=true&depth=${depth}&codes=${codes}`;
                    const { candidates } = await (await fetch(path)).json();
                    return fuse(candidates, { bits, weights, method, rrfK: 60 });
                }""",
                [codes_of(page, image), index.schema.bits, weights, method, depth],
            )
            hits = index.query(image, k=depth, depth=depth, weights=weights, fusion=method)
            assert [entry["row"]["id"] for entry in ranked[:depth]] == ids(hits)
            assert [entry["score"] for entry in ranked[:depth]] == pytest.approx([hit.score for hit in hits], abs=1e-12)
            assert [entry["ranks"] for entry in ranked[:depth]] == [hit.ranks for hit in hits]


def test_what_stands_out_comes_first_on_the_page_too(page: Page, index: ImageIndex, folder: Path) -> None:
    image = folder / "stripes" / "13.jpg"
    ranked = page.evaluate(
        """async ([codes, bits, weights]) => {
            const { fuse, contributions } = await import("/static/fusion.js");
            const { candidates } = await (await fetch(`/api/query?candidates=true&codes=${codes}`)).json();
            const settings = { bits, weights, method: "rank", rrfK: 60, lead: true };
            const entries = fuse(candidates, settings);
            return entries.map((entry) => [entry.row.id, entry.score, contributions(entry, settings)]);
        }""",
        [codes_of(page, image), index.schema.bits, index.schema.weights],
    )
    hits = index.query(image, k=len(ranked))
    assert hits[0].lead == "fine"
    assert [key for key, _, _ in ranked] == ids(hits)
    assert [score for _, score, _ in ranked] == pytest.approx([hit.score for hit in hits], abs=1e-12)
    assert [sum(parts.values()) for _, _, parts in ranked] == pytest.approx([hit.score for hit in hits], abs=1e-12)


def codes_of(page: Page, image: Path) -> str:
    """The codes of an image, as an answer tells them."""
    return page.request.post(f"{page.url}api/query", data=image.read_bytes()).json()["query"]["codes"]


def test_a_box_asks_for_a_part(page: Page, index: ImageIndex, folder: Path) -> None:
    image = folder / "stripes" / "09.jpg"
    drop(page, image)
    frame = page.locator("#frame").bounding_box()
    page.mouse.move(frame["x"] + frame["width"] * 0.25, frame["y"] + frame["height"] * 0.25)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] * 0.75, frame["y"] + frame["height"] * 0.75, steps=3)
    page.mouse.up()
    page.wait_for_selector("#whole:visible")
    crop = tuple(int(part) for part in page.evaluate("new URLSearchParams(location.search).get('crop')").split(","))
    assert crop == pytest.approx((24, 16, 48, 32), abs=1)
    assert shown(page) == ids(index.query(image, k=len(shown(page)), crop=crop))
    page.click("#whole")
    page.wait_for_selector("#whole", state="hidden")
    assert shown(page) == ids(index.query(image, k=len(shown(page))))


@pytest.fixture(scope="module")
def regions_home(collage_index: ImageIndex, collages: Path) -> Iterator[str]:
    """A page over an index with regions."""
    with served(collage_index, WebSettings(thumbnail_folder=collages.with_name("collage-thumbnails"))) as url:
        yield url


@pytest.fixture
def regions_page(browser: Browser, regions_home: str) -> Iterator[Page]:
    with visit(browser, regions_home) as opened:
        yield opened


def drag(page: Page, frame: str, box: tuple[float, float, float, float]) -> None:
    """Drag a box, given as shares of its sides, on an image."""
    x, y, width, height = box
    page.wait_for_function("frame => document.querySelector(`${frame} img`).naturalWidth > 0", arg=frame)
    place = page.locator(frame).bounding_box()
    page.mouse.move(place["x"] + place["width"] * x, place["y"] + place["height"] * y)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * (x + width), place["y"] + place["height"] * (y + height), steps=3)
    page.mouse.up()
    page.wait_for_selector("#whole:visible")
    wait_for_results(page)


def crop_of(page: Page) -> tuple[int, ...]:
    return tuple(int(part) for part in page.evaluate("new URLSearchParams(location.search).get('crop')").split(","))


def drawn_boxes(page: Page) -> list[list[int] | None]:
    """The region on each card."""
    return page.eval_on_selector_all(
        "#grid .card",
        """cards => cards.map(card => card.querySelector(".region rect")).map(rect => rect &&
            ["x", "y", "width", "height"].map(name => Number(rect.getAttribute(name))))""",
    )


def weights_shown(page: Page) -> dict[str, float]:
    return page.eval_on_selector_all(
        "#sliders output", "all => Object.fromEntries(all.map(one => [one.htmlFor[0].slice(7), Number(one.value)]))"
    )


LAST_QUARTER = (0.5, 0.5, 0.49, 0.49)


def test_a_box_asks_the_regions_and_shows_them(regions_page: Page, collage_index: ImageIndex, collages: Path) -> None:
    page, image = regions_page, collages / "07.png"
    drop(page, image)
    page.click("text=instance")
    whole = shown(page)
    drag(page, "#frame", LAST_QUARTER)
    crop = crop_of(page)
    assert crop == pytest.approx((120, 80, 118, 78), abs=2)
    hits = collage_index.query(image, k=60, crop=crop)
    assert shown(page) == ids(hits)[: len(shown(page))]
    assert len(shown(page)) >= 20
    assert hits[0].path == str(image)
    assert drawn_boxes(page) == [list(hit.box) if hit.box else None for hit in hits][: len(shown(page))]
    assert weights_shown(page) == {"coarse": 0, "mid": 0, "fine": 0, "regions": 1}
    assert "the others see the whole image" in page.inner_text("#regions-hint")
    page.click(".card:nth-child(2) .why")
    assert page.get_attribute("#why figure:last-child .region rect", "x") == str(hits[1].box[0])
    assert page.get_attribute("#why figure:first-child .region rect", "x") == str(crop[0])
    assert f"{hits[1].distances['regions']} of 128" in page.inner_text("#why table")
    page.click("#why >> text=Close")
    page.click("#whole")
    page.wait_for_selector("#whole", state="hidden")
    assert page.get_attribute(".segment:text('instance')", "aria-pressed") == "true"
    assert shown(page) == whole == ids(collage_index.query(image, k=60, profile="instance", views=False))[: len(whole)]
    assert drawn_boxes(page) == [None] * len(whole)


def test_regions_are_mixed_in_without_a_request(regions_page: Page, collage_index: ImageIndex, collages: Path) -> None:
    page, image = regions_page, collages / "31.png"
    drop(page, image)
    drag(page, "#frame", LAST_QUARTER)
    crop, queries = crop_of(page), []
    page.on("request", lambda request: queries.append(request.url) if "/api/query" in request.url else None)
    page.focus("#weight-mid")
    for _ in range(SLIDER_KEYS):
        page.keyboard.press("ArrowRight")
    page.wait_for_url(lambda url: "mid:1.2" in url)
    count, weights = len(shown(page)), {"mid": 1.2, "regions": 1}
    assert shown(page) == ids(collage_index.query(image, k=count, crop=crop, weights=weights))
    page.select_option("#fusion", "score")
    scored = collage_index.query(image, k=count, crop=crop, weights=weights, fusion="score")
    assert shown(page) == ids(scored)
    assert page.text_content(".card .score") == f"{scored[0].score:.4f}"
    page.focus("#weight-regions")
    page.keyboard.press("Home")  # without regions, the others see the whole image
    page.wait_for_url(lambda url: "regions:0" in url)
    assert shown(page) == ids(collage_index.query(image, k=count, granularity="mid", fusion="score"))
    assert queries == []


def test_regions_are_asked_when_they_first_count(regions_page: Page, collage_index: ImageIndex, collages: Path) -> None:
    page, image = regions_page, collages / "12.png"
    drop(page, image)
    page.click("#scores")
    assert page.locator(".card .bars .label:text('mid')").count() > 0
    assert page.locator(".card .bars .label:text('regions')").count() == 0
    page.focus("#weight-regions")
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(".card .bars .label:text('regions')", state="attached")
    page.wait_for_load_state("networkidle")
    weights = weights_shown(page)
    assert weights == {**collage_index.schema.weights, "regions": 1.5}
    assert shown(page) == ids(collage_index.query(image, k=len(shown(page)), weights=weights))


def test_a_part_of_a_result_is_looked_for(regions_page: Page, collage_index: ImageIndex, collages: Path) -> None:
    page = regions_page
    drop(page, collages / "07.png")
    asked = shown(page)[2]
    page.click(".card:nth-child(3) .why")
    drag(page, "#why figure:last-child .frame", LAST_QUARTER)
    page.wait_for_url(f"**/?id={asked}*")
    hits = collage_index.query(collage_index.path(asked), k=60, crop=crop_of(page))
    rest = [hit for hit in hits if hit.id != asked]
    assert shown(page) == ids(rest)[: len(shown(page))]
    assert drawn_boxes(page)[0] == list(rest[0].box)


def test_a_shared_detail_says_what_is_missing(
    regions_page: Page, regions_home: str, browser: Browser, collage_index: ImageIndex, collages: Path
) -> None:
    drop(regions_page, collages / "07.png")
    drag(regions_page, "#frame", LAST_QUARTER)
    with visit(browser, regions_home, regions_page.url.removeprefix(regions_home)) as other:
        wait_for_results(other)
        assert "only its codes" in other.inner_text("#regions-hint")
        assert other.is_disabled("#weight-regions")
        assert other.inner_text("#heading") == "Nearest images"
        assert shown(other) == ids(collage_index.query(collages / "07.png", k=len(shown(other))))


def test_the_page_ranks_regions_as_the_library_does(
    regions_page: Page, collage_index: ImageIndex, collages: Path
) -> None:
    random_ = random.Random(3)
    for seed, method in ((7, "rank"), (8, "score"), (9, "rank"), (10, "score")):
        image, crop = collages / f"{seed:02}.png", (0, 80, 120, 80)
        weights = {name: random_.choice([0.5, 1, 2.7, 3]) for name in ("coarse", "fine", "regions")}
        url = f"{regions_page.url}api/query?candidates=true&regions=contains&depth=15&crop={','.join(map(str, crop))}"
        answer = regions_page.request.post(url, data=image.read_bytes()).json()
        ranked = regions_page.evaluate(
            """async ([candidates, bits, weights, method]) => {
                const { fuse } = await import("/static/fusion.js");
                return fuse(candidates, { bits, weights, method, rrfK: 60 });
            }""",
            [answer["candidates"], answer["bits"], weights, method],
        )
        hits = collage_index.query(image, k=15, depth=15, weights=weights, crop=crop, fusion=method)
        assert [entry["row"]["id"] for entry in ranked[:15]] == ids(hits)
        assert [entry["score"] for entry in ranked[:15]] == pytest.approx([hit.score for hit in hits], abs=1e-12)
        assert [entry["ranks"] for entry in ranked[:15]] == [hit.ranks for hit in hits]


def test_a_result_is_asked_with_and_back_leads_back(page: Page, index: ImageIndex, folder: Path) -> None:
    drop(page, folder / "disc" / "02.jpg")
    first, address_of_first = shown(page), page.url
    page.click(".card:nth-child(4) .seek")
    page.wait_for_url("**/?id=*")
    wait_for_results(page)
    assert shown(page) == ids(index.like(first[3], k=len(shown(page))))
    page.go_back()
    page.wait_for_url(address_of_first)
    page.wait_for_selector(f".card:first-child[data-id='{first[0]}']")
    assert shown(page) == first
    page.go_back()
    page.wait_for_selector("#drop:visible")
    page.go_forward()
    page.wait_for_selector("#query-image:visible")


def test_the_address_can_be_shared(page: Page, browser: Browser, home: str, folder: Path) -> None:
    drop(page, folder / "blocks" / "05.jpg")
    page.click("text=category")
    page.click("#filter-panel summary")
    page.select_option("#filter-kind", "disc")
    page.wait_for_url(lambda url: "where.kind=disc" in url)
    wait_for_results(page)
    order = shown(page)
    with visit(browser, home, page.url.removeprefix(home)) as other:
        wait_for_results(other)
        assert shown(other) == order
        assert other.get_attribute(".segment:text('category')", "aria-pressed") == "true"
        assert other.input_value("#filter-kind") == "disc"
        assert other.inner_text("#query-name") == "An image that was not shared"


def test_filters_are_those_of_the_schema(page: Page, index: ImageIndex, folder: Path) -> None:
    image = folder / "disc" / "02.jpg"
    drop(page, image)
    page.click("#filter-panel summary")
    assert page.eval_on_selector_all("#filter-kind option", "all => all.map(one => one.textContent)") == [
        "any", "blocks", "disc", "stripes",
    ]  # fmt: skip
    page.select_option("#filter-kind", "stripes")
    page.focus("[name='number.least']")
    page.keyboard.type("5")
    wait_for_results(page)  # to the query before; it must not take away what is being typed
    assert page.input_value("[name='number.least']") == "5"
    page.fill("#filter-path", "1")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "where.path=1" in url)
    wait_for_results(page)
    where = 'kind == "stripes" and number >= 5 and path like "%1%"'
    assert shown(page) == ids(index.query(image, k=60, filter=where))
    assert page.inner_text("#filter-count") == "3"


def test_why_this_tells_distances_ranks_and_shares(page: Page, index: ImageIndex, folder: Path) -> None:
    image = folder / "disc" / "02.jpg"
    drop(page, image)
    page.click(".card:nth-child(3) .why")
    hit = index.query(image, k=3)[2]
    text = page.inner_text("#why table")
    for name, bits in index.schema.bits.items():
        assert f"{hit.distances[name]} of {bits}" in text
        weight = index.schema.weights[name]
        assert f"{weight:g} / (60 + {hit.ranks[name]:g}) = {weight / (60 + hit.ranks[name]):.4f}" in text
    assert f"{hit.score:.4f}" in text
    assert hit.path in page.inner_text("#why .details")
    page.keyboard.press("Escape")
    assert page.is_hidden("#why")
    assert page.evaluate("document.activeElement.className") == "why"


def test_the_keyboard_is_enough(page: Page, index: ImageIndex) -> None:
    page.keyboard.press("Tab")
    assert page.inner_text(":focus") == "Skip to the results"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    asked = shown(page)[5]
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.closest('.card').dataset.id") == asked
    page.keyboard.press("s")
    wait_for_results(page)
    assert shown(page) == ids(index.like(asked, k=len(shown(page))))
    page.focus("#draw-crop")
    page.keyboard.press("Enter")
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("#whole:visible")
    crop = page.evaluate("new URLSearchParams(location.search).get('crop')")
    assert crop == "27,18,51,32"  # of 96 x 64: a quarter and 3 % in, half of it and 3 % wide


def test_images_are_added_with_progress(browser: Browser, tmp_path: Path) -> None:
    for number in range(3):
        kind_of_image("disc", number).save(tmp_path / f"{number}.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with (
        ImageIndex.open("memory:") as empty,
        served(empty, WebSettings(upload_folder=tmp_path / "uploads")) as home,
    ):
        page = browser.new_page()
        try:
            page.goto(home)
            page.wait_for_selector("text=There are no images yet")
            page.click("#add")
            page.set_input_files("#add-files", sorted(tmp_path.glob("*.jpg")))
            page.wait_for_selector("#adding >> text=3 added", timeout=60_000)
            assert "broken.jpg is not an image" in page.inner_text(".failures")
            page.click("#adding >> text=Close")
            page.wait_for_selector(".card img")
            assert len(shown(page)) == empty.count() == 3
        finally:
            page.close()


@pytest.fixture(scope="module")
def copies_home(copied_index: ImageIndex, folder: Path) -> Iterator[str]:
    """A page over an index in which two images are there twice."""
    with served(copied_index, WebSettings(thumbnail_folder=folder.with_name("copies-thumbnails"))) as url:
        yield url


def test_near_duplicates_are_shown_side_by_side(browser: Browser, copies_home: str, copied_index: ImageIndex) -> None:
    with visit(browser, copies_home) as page:
        page.click("text=Near-duplicates")
        page.wait_for_selector("#progress", state="hidden")
        page.fill("#distance", "10")
        page.keyboard.press("Enter")
        page.wait_for_selector(".group img")
        report = copied_index.duplicates(distance=10)
        expected = [[member.id for member in group.members] for group in report.groups]
        cards = "groups => groups.map(group => [...group.querySelectorAll('.card')].map(card => card.dataset.id))"
        assert page.eval_on_selector_all(".group", cards) == expected
        assert len(expected) == 2
        kept = [member.id for group in report.groups for member in group.members if member.keep]
        assert page.eval_on_selector_all(".kept", "all => all.map(card => card.dataset.id)") == kept
        assert f"{len(report.removable)} removable" in page.inner_text("#summary")
        member = report.removable[0]
        assert str(member.distances["fine"]) in page.inner_text(f".card[data-id='{member.id}'] .h2 .number")
        page.select_option("#keep", "newest")
        page.wait_for_url("**/duplicates?distance=10&keep=newest")
        page.wait_for_selector(".group img")
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.click(f".card[data-id='{member.id}'] .tile")
        page.wait_for_url(f"**/?id={member.id}")
        wait_for_results(page)


def test_a_phone_shows_it_all(browser: Browser, home: str, folder: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    with visit(browser, home, **phone) as page:
        page.set_input_files("#photograph", folder / "disc" / "01.jpg")
        wait_for_results(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.get_attribute("#photograph", "capture") == "environment"
        page.tap("#weights-panel summary")
        page.tap("text=instance")
        page.tap(".card:nth-child(2) .why")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.tap("#why >> text=Close")


@pytest.fixture(scope="module")
def tagged_home(folder: Path) -> Iterator[str]:
    """Four of the images as if they showed dogs and a car, by columns and a code of 8 bits."""
    shown_on = [{"beagle": 0.9, "dog": 0.95}, {"beagle": 0.5, "dog": 0.9}, {"sports car": 0.8, "car": 0.9}, {}]
    place = {name: number for number, name in enumerate(vocabulary().tags)}
    files = sorted(folder.rglob("*.jpg"))[:4]
    schema = Schema.from_yaml("version: 1\ngranularities: [{name: coarse, bits: 8}]")
    with ImageIndex.open("memory:", schema=schema) as tagged:
        tagged.session.store.create(Description(schema, "0123456789abcdef"))
        tagged.session.store.upsert([
            Row(image_id(str(file)), str(file), file.stat().st_size, file.stat().st_mtime_ns, 96, 64,
                content_hash(file.read_bytes()), {"coarse": bytes([(1 << n) - 1])},
                tags=[encode_tag(place[name], value) for name, value in tags.items()])
            for n, (file, tags) in enumerate(zip(files, shown_on, strict=True))
        ])  # fmt: skip
        with served(tagged, WebSettings(thumbnail_folder=folder.with_name("tagged"))) as url:
            yield url


def test_words_find_images_alone_and_beside_one(browser: Browser, tagged_home: str, folder: Path) -> None:
    ids = [image_id(str(file)) for file in sorted(folder.rglob("*.jpg"))[:4]]
    with visit(browser, tagged_home) as page:
        page.fill("#text", "beagle")
        page.press("#text", "Enter")
        page.wait_for_selector("#heading:text-is('Images of beagle')")
        assert shown(page) == ids[:2]
        assert page.url.endswith("?text=beagle")
        assert page.title().startswith("beagle · ")
        # Another image beside the words: the car is nearer to the second dog's code than the first dog is, but no dog.
        page.click(f".card[data-id='{ids[1]}'] .seek")
        page.wait_for_selector("#query-image:not([hidden])")
        assert page.input_value("#text") == "beagle"
        assert shown(page)[0] == ids[0]
        page.fill("#text", "")
        page.press("#text", "Enter")
        page.wait_for_url(lambda url: "text" not in url)
        # The address alone gives the same answer.
        page.goto(f"{tagged_home}?text=beagle")
        page.wait_for_selector("#heading:text-is('Images of beagle')")
        assert shown(page) == ids[:2]
        page.click("#random")
        page.wait_for_selector("#heading:text-is('Random images')")


def test_a_long_list_holds_few_cards(page: Page) -> None:
    page.route("**/thumbnail*", lambda route: route.fulfill(body=PIXEL, content_type="image/gif"))
    columns = page.evaluate(
        """async () => {
            const { Grid } = await import("/static/grid.js");
            const box = document.querySelector("#grid");
            box.replaceChildren();
            const ask = () => {};
            const grid = new Grid(box, { link: () => "/", ask, why: ask });
            const row = (i) => ({ id: String(i), path: `/${i}.jpg`, width: 4, height: 3, distances: { fine: i % 8 } });
            grid.show(Array.from({ length: 10000 }, (_, i) => (
                { row: row(i), rank: i + 1, score: 1 / (i + 1), ranks: { fine: i + 1 } }
            )), { fine: 8 });
            return grid.columns;
        }"""
    )
    most = 0
    for part in (0.1, 0.35, 0.6, 0.85, 1, 1):
        page.evaluate(f"scrollTo(0, {part} * document.body.scrollHeight)")
        page.wait_for_timeout(150)
        most = max(most, len(shown(page)))
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(".card[data-id='9999']")
    assert most <= 8 * columns * 6  # eight rows a block, and as many blocks as reach into three windows


def test_signing_in_and_out(browser: Browser, index: ImageIndex, folder: Path) -> None:
    settings = WebSettings(token="kYe3-Zp8w_Qx51uB", upload_folder=folder.with_name("uploads"))
    with served(index, settings) as url:
        context = browser.new_context(viewport={"width": 360, "height": 700})
        page = context.new_page()
        page.set_default_timeout(15_000)
        try:
            page.goto(f"{url}?where.number=..2")
            page.fill("#token", "wrong")
            page.click("text=Sign in >> visible=true")
            assert page.inner_text(".problem") == "That is not the token of this page."
            page.fill("#token", settings.token)
            page.press("#token", "Enter")
            page.wait_for_selector(".card img")
            assert page.url == f"{url}?where.number=..2"
            assert page.evaluate("document.documentElement.scrollWidth") == 360  # the button has a place on a phone
            (cookie,) = context.cookies()
            assert (cookie["httpOnly"], cookie["sameSite"], cookie["expires"]) == (True, "Lax", -1)
            assert page.evaluate("document.cookie") == ""
            page.click("text=Sign out")
            page.wait_for_selector("#token")
            assert context.cookies() == []
            context.add_cookies([cookie])  # as who has copied it
            page.goto(url)
            assert page.is_visible("#token")
            page.go_back()
            assert page.is_visible("#token")
            by_link = context.new_page()
            by_link.goto(f"{url}?token={settings.token}&where.number=..2")
            by_link.wait_for_selector(".card img")
            assert by_link.url == f"{url}?where.number=..2"
            assert by_link.evaluate("history.length") <= 2  # the empty page and this one, not the link with the token
            assert settings.token not in by_link.content() + by_link.evaluate("document.referrer")
        finally:
            context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    browser: Browser, home: str, regions_home: str, copies_home: str, folder: Path, collages: Path, scheme: str
) -> None:
    few = "?where.number=..2"  # it looks at every element
    with visit(browser, home, few, color_scheme=scheme, bypass_csp=True) as page:
        assert violations(page, scheme) == []
        drop(page, folder / "disc" / "01.jpg")
        assert violations(page, scheme) == []
        page.click(".card:nth-child(2) .why")
        assert violations(page, scheme) == []
        page.click("#why >> text=Close")
        page.click("#add")
        assert violations(page, scheme) == []
        page.goto(f"{home}docs")
        assert violations(page, scheme) == []
    with visit(browser, regions_home, "?where.path=07.png", color_scheme=scheme, bypass_csp=True) as page:
        drop(page, collages / "07.png")
        drag(page, "#frame", LAST_QUARTER)
        assert violations(page, scheme) == []
        page.click(".card .why")
        assert violations(page, scheme) == []
        page.goto(page.url.replace("codes=", "weights=coarse:1,regions:1&codes="))
        page.evaluate("sessionStorage.clear()")
        page.reload()
        page.wait_for_selector("#weight-regions:disabled")
        assert violations(page, scheme) == []
    with visit(browser, copies_home, "duplicates?distance=10", color_scheme=scheme, bypass_csp=True) as page:
        assert violations(page, scheme) == []


SPEAKERS = {
    "de-DE": {
        "lang": "de", "search": "Suche", "weights": "Gewichte", "heading": "Alle Bilder", "rank": "Rang 1",
        "score": r"0,\d{4}", "facts": "Pfad",
    },
    "zh-CN": {
        "lang": "zh-Hans", "search": "搜索", "weights": "权重", "heading": "全部图像", "rank": "排名 1",
        "score": r"0\.\d{4}", "facts": "路径",
    },
}  # fmt: skip
PHONE = {"viewport": {"width": 390, "height": 800}}
OVERFLOWING = """() => [...document.querySelectorAll("main *, footer *, dialog[open] *, h1 *")].filter((element) => {
  const { right, left, width } = element.getBoundingClientRect();
  return width && (right > innerWidth + 1 || left < -1) && !element.closest(".unseen, .skip, .scroll, .trail");
}).map((element) => element.outerHTML.slice(0, 150))"""


@pytest.mark.parametrize("locale", SPEAKERS)
def test_the_page_speaks_the_language_of_the_browser(browser: Browser, home: str, folder: Path, locale: str) -> None:
    words = SPEAKERS[locale]
    with visit(browser, home, "?where.number=..2", locale=locale, bypass_csp=True, **PHONE) as page:
        assert page.get_attribute("html", "lang") == words["lang"]
        assert page.inner_text("nav [aria-current]") == words["search"]
        assert page.inner_text("#weights-panel h2") == words["weights"]
        drop(page, folder / "disc" / "01.jpg")
        assert page.text_content(".card .rank") == words["rank"]
        assert re.fullmatch(words["score"], page.text_content(".card .score") or "")
        page.click("#weights-panel summary")
        page.click("#filter-panel summary")
        assert (violations(page, "light"), page.evaluate(OVERFLOWING)) == ([], [])
        page.click("#scores")
        page.click(".card:nth-child(2) .why")
        assert words["facts"] in page.inner_text("#why dl")
        assert (violations(page, "light"), page.evaluate(OVERFLOWING)) == ([], [])
        for name in ("browse", "overview"):
            page.goto(home + name)
            page.wait_for_selector("#grid:not([aria-busy]) .card img, .cluster img")
            assert (violations(page, "light"), page.evaluate(OVERFLOWING)) == ([], [])
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.goto(home + "browse")
        assert page.inner_text("#heading") == words["heading"]


def test_a_reason_begins_in_the_language_of_the_page(browser: Browser, home: str) -> None:
    with visit(browser, home, locale="de-DE") as page:
        reasons = page.evaluate(
            """async (errors) => {
                const { sample } = await import("/static/api.js");
                const said = [];
                for (const error of errors) {
                    window.fetch = async () => new Response(JSON.stringify({ error }), { status: 422 });
                    said.push(await sample("").catch(({ message }) => message));
                }
                return said;
            }""",
            ["the image that was sent is no image", "filter, character 3: what", "other"],
        )
    assert reasons == [
        "das Bild kann nicht gelesen werden: the image that was sent is no image",
        "der Filter ist nicht lesbar: filter, character 3: what",
        "other",
    ]


def test_the_language_is_chosen_on_the_page_and_remembered(browser: Browser, home: str) -> None:
    with visit(browser, home, locale="de-DE") as page:
        page.select_option("#language", "en")
        page.wait_for_selector("html[lang=en] .card img")
        page.goto(home + "browse")
        page.wait_for_selector(".card img")
        assert (page.inner_text("#heading"), page.input_value("#language")) == ("All images", "en")
