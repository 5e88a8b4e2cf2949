"""The result page: one file, nothing from outside, nothing hostile, images that are images."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from mg_milvus.files import escape_controls
from mg_milvus.html.pages import QueryResult, QuerySettings, result_page
from mg_milvus.records import Hit

if TYPE_CHECKING:
    from pathlib import Path

BITS = {"coarse": 64, "fine": 256}
VOID = {"meta", "img", "path", "br", "link"}


class Page(HTMLParser):
    """A page taken apart: elements with attributes, and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"

    def all(self, tag, cls=""):
        return (
            [attrs for name, attrs in self.elements if name == tag and cls in attrs.get("class", "").split(" ")]
            if (cls)
            else [attrs for name, attrs in self.elements if name == tag]
        )


def an_image(path: Path | str, size: tuple[int, int], color: str = "red") -> str:
    Image.new("RGB", size, color).save(path)
    return str(path)


def a_hit(rank: int, path: str, coarse: int = 16, fine: int = 32) -> Hit:
    return Hit(
        rank, f"{rank:032x}", path, 1 / (60 + rank), {"coarse": coarse, "fine": fine}, {"coarse": 1.5, "fine": 2}
    )


def page_of(*results: QueryResult, **options) -> str:
    settings = {"collection": "images", "bits": BITS, "weights": {"coarse": 1.0, "fine": 3.0}, "fusion": "rank"}
    return result_page(results, QuerySettings(**(settings | options)))


def embedded(uri: str) -> Image.Image:
    head, data = uri.split(",", 1)
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image


def test_images_are_embedded_as_small_jpegs_of_the_right_shape_and_colour(tmp_path):
    query = an_image(tmp_path / "query.png", (2000, 1000), "blue")
    hits = [
        a_hit(1, an_image(tmp_path / "a.jpg", (1000, 500), "red")),
        a_hit(2, an_image(tmp_path / "b.png", (40, 30))),
    ]
    images = [embedded(attrs["src"]) for attrs in Page(page_of(QueryResult(query, query, hits))).all("img")]
    assert [image.size for image in images] == [(720, 360), (480, 240), (40, 30)]
    assert images[0].getpixel((300, 100)) == pytest.approx((0, 0, 255), abs=3)
    assert images[1].getpixel((100, 100)) == pytest.approx((255, 0, 0), abs=3)


def test_nothing_comes_from_outside(tmp_path):
    image = an_image(tmp_path / "a.png", (50, 40))
    html = page_of(QueryResult(image, image, [a_hit(1, image)]))
    page = Page(html)
    assert not page.open
    for _, attrs in page.elements:
        for name in ("src", "srcset", "data", "action", "poster"):
            assert attrs.get(name, "data:").startswith("data:")
    assert not page.all("script")
    assert not page.all("link")
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>.png",
        '"><img src=x onerror=alert(1)>.png',
        "' onmouseover='alert(1).png",
        "{{ 7 * 7 }}.png",
        "javascript:alert(1).png",
        "two\nlines \u202e gnp.png",
    ],
)
def test_hostile_names_stay_text(tmp_path, name):
    path = f"{tmp_path}/{name}"
    page = Page(page_of(QueryResult(path, path, [a_hit(1, path), a_hit(2, name)])))
    assert not page.open
    assert not page.all("script")
    assert not page.all("img")  # neither is a file here, so both are placeholder tiles
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
    assert all(attrs["href"].startswith("file:///") for attrs in page.all("a"))
    assert [attrs["title"] for attrs in page.all("h3")] == [escape_controls(path), escape_controls(name)]
    assert "49" not in page.text.split("mg-milvus")[0]


def test_a_name_that_is_not_utf8_can_be_written_to_a_file(tmp_path):
    path = an_image(f"{tmp_path}/caf\udce9.png", (40, 30))
    html = page_of(QueryResult(path, path, [a_hit(1, f"file://{tmp_path}/caf%E9.png")]))
    assert [embedded(attrs["src"]).size for attrs in Page(html).all("img")] == [(40, 30), (40, 30)]
    assert rb"caf\xe9.png" in html.encode("utf-8")
    assert next(attrs["href"] for attrs in Page(html).all("a")).endswith("/caf%E9.png")


def test_missing_and_broken_files_become_placeholders(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    page = Page(page_of(QueryResult("the id", "the id", [a_hit(1, str(tmp_path / "gone.jpg")), a_hit(2, str(broken))])))
    labels = [attrs["aria-label"] for attrs in page.all("span", "missing")]
    assert labels == [
        "Query image the id: cannot be read",
        "Result 1: gone.jpg: cannot be read",
        "Result 2: broken.jpg: cannot be read",
    ]


def test_bars_show_the_share_of_equal_bits(tmp_path):
    path = an_image(tmp_path / "a.png", (10, 10))
    page = Page(page_of(QueryResult(path, path, [a_hit(1, path, coarse=16, fine=32)])))
    bars = [attrs["style"] for attrs in page.all("i") if "style" in attrs]
    assert bars == ["width:75.0%", "width:87.5%"]  # 1 - 16/64, 1 - 32/256
    titles = [attrs["title"] for attrs in page.all("li") if "title" in attrs]
    assert titles == ["coarse: 16 of 64 bits differ, rank 1.5", "fine: 32 of 256 bits differ, rank 2"]


def test_the_crop_is_drawn_where_it_was_on_the_whole_image(tmp_path):
    path = an_image(tmp_path / "big.jpg", (4000, 2000))
    page = Page(page_of(QueryResult(path, path, [], crop=(1000, 500, 2000, 250))))
    assert [attrs["style"] for attrs in page.all("span", "crop")] == ["left:25.0%;top:25.0%;width:50.0%;height:12.5%"]
    assert "crop of 2000 × 250 px at 1000, 500" in page.text
    assert "Nothing was found." in page.text


def test_every_image_has_an_alternative_text_and_the_header_says_how_it_was_asked(tmp_path):
    path = an_image(tmp_path / "cat & dog.png", (30, 20))
    page = Page(page_of(QueryResult(path, path, [a_hit(1, path)]), profile="instance", fusion="score"))
    assert [attrs["alt"] for attrs in page.all("img")] == ["Query image cat & dog.png", "Result 1: cat & dog.png"]
    words = page.text.split()
    for expected in (["profile", "instance"], ["fine", "3"], ["fusion", "score"], ["images"]):
        assert any(words[i : i + len(expected)] == expected for i in range(len(words)))


def test_several_queries_can_be_jumped_to(tmp_path):
    one, two = an_image(tmp_path / "one.png", (9, 9)), an_image(tmp_path / "two.png", (9, 9))
    page = Page(page_of(QueryResult(one, one, [a_hit(1, two)]), QueryResult(two, two, [a_hit(1, one)])))
    targets = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    jumps = [attrs["href"] for attrs in page.all("a") if attrs["href"].startswith("#")]
    assert jumps == ["#q1", "#q2"]
    assert {jump[1:] for jump in jumps} <= targets


def test_a_found_region_is_framed_in_its_place(tmp_path):
    path = an_image(tmp_path / "hit.png", (960, 640), "blue")
    hit = replace(a_hit(1, path), box=(200, 100, 400, 300))  # in pixels of the original, which is twice the thumbnail
    page = Page(page_of(QueryResult("query.png", an_image(tmp_path / "query.png", (64, 48)), [hit])))
    _, shown = page.all("img")
    assert shown["alt"] == "Result 1: hit.png, found at 200, 100, 400 × 300"
    thumbnail = embedded(shown["src"])
    assert thumbnail.size == (480, 320)
    inside, outside, frame = (thumbnail.getpixel(place) for place in ((200, 120), (50, 30), (103, 120)))
    assert inside[2] > 200 > 60 > inside[0]
    assert outside[2] > 200 > 60 > outside[0]
    assert frame[0] > 180  # orange on blue
