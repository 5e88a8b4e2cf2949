"""The page in a real browser: searching with several images, selecting, tagging, removing, reviewing copies."""

from __future__ import annotations

import base64
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")

from mg_milvus.search.query import QueryTerm
from tests.web.test_browser import (
    browser,
    drop,
    folder,
    home,
    ids,
    index,
    page,
    pytestmark,
    shown,
    wait_for_results,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Page

    from mg_milvus.index import ImageIndex

__all__ = ["browser", "folder", "home", "index", "page", "pytestmark"]


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
    assert page.eval_on_selector_all("#terms img", "all => all.map(one => one.alt)") == ["like 02.jpg", "like 03.jpg"]
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
    page.click(".card:nth-child(3) .refine.like")
    page.wait_for_selector("#heading:text-is('Nearest to these 2 images')")
    terms = [QueryTerm(image), QueryTerm(like=first[2])]
    assert shown(page) == ids(index.query_together(terms, k=100))[: len(shown(page))]
    unwanted = shown(page)[1]
    page.focus(f".card[data-id='{unwanted}'] .tile")
    with answered(page):
        page.keyboard.press("-")
    page.wait_for_selector("#terms .unlike")
    terms.append(QueryTerm(like=unwanted, weight=-1.0))
    assert shown(page) == ids(index.query_together(terms, k=100))[: len(shown(page))]
    page.click("#terms li:nth-child(2) button")
    page.wait_for_selector("#terms li:nth-child(3)", state="detached")
    page.click("#terms .unlike button")
    wait_for_results(page)
    page.wait_for_selector("#terms", state="hidden")
    assert shown(page) == first
