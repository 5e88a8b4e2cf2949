"""All rows in an order of one's choice, with its sections, and pages of them."""

from __future__ import annotations

import calendar
from itertools import product
from typing import TYPE_CHECKING

import pytest

from mg_milvus.errors import QueryError
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.schema.tags import encode_tag, vocabulary
from mg_milvus.search.rows import MAX_SPELLINGS, spellings
from mg_milvus.store.base import Description, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS = "fields: [{name: shop, type: string, default: ''}, {name: price, type: float}]"
SCHEMA = Schema.from_yaml(f"version: 1\ngranularities: [{{name: coarse, bits: 8}}]\n{FIELDS}")
# path, bytes, month, shop, price, tag
ROWS = [
    ("/b/a10.jpg", 30, (2024, 1), "north", 2.0, "beagle"),
    ("/b/A9.jpg", 20, (2023, 12), "", None, "car"),
    ("/a/x.jpg", 20, (2024, 1), "south", 1.0, "beagle"),
    ("/b2/y.jpg", 10, (2024, 2), "north", 3.0, None),
    ("/b10/z.jpg", 40, (2024, 2), "north", 3.0, None),
]


@pytest.fixture(scope="module")
def index() -> Iterator[ImageIndex]:
    place = {name: number for number, name in enumerate(vocabulary().tags)}
    with ImageIndex.open("memory:", schema=SCHEMA) as opened:
        opened.session.store.create(Description(SCHEMA, "0123456789abcdef"))
        opened.session.store.upsert([
            Row(f"{n:032x}", path, size, calendar.timegm((*month, 15, 0, 0, 0)) * 10**9, 4, 3, f"{n:032x}",
                {"coarse": bytes([n])}, {"shop": shop, "price": price},
                tags=[] if tag is None else [encode_tag(place[tag], 0.9)])
            for n, (path, size, month, shop, price, tag) in enumerate(ROWS)
        ])  # fmt: skip
        yield opened


def places(ids: list[str]) -> list[int]:
    return [int(own, 16) for own in ids]


@pytest.mark.parametrize(
    ("order_by", "order", "sections"),
    [
        ("folder", [2, 1, 0, 3, 4], [("/a", 0), ("/b", 1), ("/b2", 3), ("/b10", 4)]),
        ("name", [1, 0, 2, 3, 4], []),
        ("-date", [4, 3, 2, 0, 1], [("2024-02", 0), ("2024-01", 2), ("2023-12", 4)]),
        ("date", [1, 0, 2, 3, 4], [("2023-12", 0), ("2024-01", 1), ("2024-02", 3)]),
        ("size", [3, 1, 2, 0, 4], []),
        ("-size", [4, 0, 2, 1, 3], []),
        ("tag", [0, 2, 1, 3, 4], [("beagle", 0), ("car", 2), ("", 3)]),
        ("shop", [0, 3, 4, 2, 1], [("north", 0), ("south", 3), ("", 4)]),
        ("price", [2, 0, 3, 4, 1], []),
        ("-price", [4, 3, 0, 2, 1], []),
    ],
)
def test_rows_are_listed_in_order_with_sections(
    index: ImageIndex, order_by: str, order: list[int], sections: list[tuple[str, int]]
) -> None:
    listing = index.listing(order_by)
    assert places(listing.ids) == order
    assert list(listing.sections) == sections
    assert places([row.id for row in index.images(order_by=order_by, limit=3, offset=1)]) == order[1:4]


def test_a_listing_can_be_filtered_and_read_in_pages(index: ImageIndex) -> None:
    listing = index.listing("folder", {"shop": "north"})
    assert places(listing.ids) == [0, 3, 4]
    assert [row.path for row in index.page([*listing.ids[1:], "f" * 32])] == ["/b2/y.jpg", "/b10/z.jpg"]
    assert index.facets("folder") == {"/b": 2, "/a": 1, "/b10": 1, "/b2": 1}
    assert index.facets("date") == {"2024-01": 2, "2024-02": 2, "2023-12": 1}


def test_an_order_that_is_none_is_refused(index: ImageIndex) -> None:
    with pytest.raises(QueryError, match=r"unknown field 'prize'; did you mean price|unknown field 'prize'"):
        index.listing("prize")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("strange", ["STRANGE", "sTrAnGe", "strange"]),
        ("STRANGE", ["STRANGE", "sTrAnGe", "strange"]),
        ("über", ["U\u0308BER", "u\u0308ber", "Über", "über"]),  # composed, and as macOS names files
        ("u\u0308BER", ["U\u0308BER", "u\u0308ber", "Über", "über"]),
        ("ÄRGER", ["ärger"]),
        ("100%_", ["100%_"]),
        ("(a|b)", []),
        ("", []),
    ],
)
def test_spellings_of_a_text(text: str, written: list[str]) -> None:
    values = [
        "/a/sTrAnGe.jpg", "/strange/STRANGE.png", "Über", "über das", "u\u0308ber", "U\u0308BER", "ein ärger", "100%_",
        None, 5,
    ]  # fmt: skip
    assert spellings(values, text) == written


def test_too_many_spellings_are_refused() -> None:
    values = ["".join(pair) for pair in product(*("aA", "bB", "cC", "dD", "eE", "fF", "gG"))]
    assert len(spellings(values[:MAX_SPELLINGS], "abcdefg")) == MAX_SPELLINGS
    with pytest.raises(QueryError, match=r"'abcdefg' is written in 128 ways, .*: look for a shorter part of it"):
        spellings(values, "abcdefg")


def test_spellings_in_a_field(index: ImageIndex) -> None:
    assert index.spellings("path", "A") == ["A", "a"]
    assert index.spellings("shop", "OUT") == ["out"]
    with pytest.raises(QueryError, match="unknown field 'nose'"):
        index.spellings("nose", "a")
