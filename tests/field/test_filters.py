"""Filters as people type them, on a real Milvus Lite: read whole or refused, and what they match by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mg_milvus import errors
from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import ExtraField, Granularity, Schema
from mg_milvus.store.base import Description, Row, Store
from mg_milvus.store.milvus import open_store

SCHEMA = Schema(
    granularities=(Granularity(name="coarse", bits=8),),
    fields=(
        ExtraField(name="price", type="float"),
        ExtraField(name="sold", type="bool"),
        ExtraField(name="label", type="string"),
    ),
)
LABELS = ("shoe", "100%", "a_b", "back\\slash", "été", "x.jpg")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_store(MilvusConfig(str(tmp_path_factory.mktemp("f") / "f.db"), collection="images", timeout=60))
    opened.create(Description(SCHEMA, "0" * 16))
    opened.upsert(
        [
            Row(f"{n:032x}", f"/p/{n}.jpg", n, 1, 10 * n, 20, "0" * 32, {"coarse": b"\0"},
                {"price": n / 2, "sold": n % 2 == 0, "label": label})
            for n, label in enumerate(LABELS)
        ]
    )  # fmt: skip
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "where",
    [
        'width > 5) and path like "%img.jpg"',
        "width > 5 limit 1",
        "width > 5, size > 1",
        "where width > 5",
        "width",
        "path like abc",
        'path like "%\\.jpg"',
        "width = 5",
        "width > 5 and",
        "(width > 5",
        "label == 5",
        "width == 'a'",
        "sold > true",
        "1 == 1",
        "size == " + "+".join("1" * 4_999),
        "true",
        "width > 5; size > 1",
        "width + price == 3",
        "array_contains(label, 'a')",
        "1 < width > 0",
        "label == 'a",
        'label == "a\\n"',
        "'a' == label == 'b'",
        "label not like '%.jpg'",
        "label like '_%'",
    ],
)
def test_what_is_not_read_whole_is_refused(store: Store, where: str) -> None:
    with pytest.raises(errors.FilterError) as caught:
        store.count(where)
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)
    assert store.count() == len(LABELS), "the engine lives"


def test_the_place_is_marked_and_the_nearest_column_comes_first(store: Store) -> None:
    with pytest.raises(errors.FilterError, match=r"character 11: .*: width > 5 --> limit 1"):
        store.count("width > 5 limit 1")
    with pytest.raises(errors.FilterError, match=r"no column 'prise', the columns are price, .*id"):
        store.count("prise < 3")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("size < 2.5", [0, 1, 2]),
        ("size == 2.5", []),
        ("size != 2.5", [0, 1, 2, 3, 4, 5]),
        ("1 < size <= 3", [2, 3]),
        ("4 > size >= 3", [3]),
        ("not size < 4", [4, 5]),
        ("! (size < 4 || size == 5)", [4]),
        ("size in [1, 9]", [1]),
        ("size not in [1, 2, 3]", [0, 4, 5]),
        ("size in []", []),
        ("size not in []", [0, 1, 2, 3, 4, 5]),
        ("price in [1, 2.5]", [2, 5]),
        ("price < 1", [0, 1]),
        ("sold == true", [0, 2, 4]),
        ("sold in [false]", [1, 3, 5]),
        ("size + 1 < 3", [0, 1]),
        ("size * 2 > 7", [4, 5]),
        ("size % 2 == 1", [1, 3, 5]),
        ("size > -1", [0, 1, 2, 3, 4, 5]),
        ("width > height", [3, 4, 5]),
        ("size < 99999999999999999999", [0, 1, 2, 3, 4, 5]),
        ("size > 1e30", []),
        ("label like '100\\%%'", [1]),
        ("label like '%\\%'", [1]),
        ("label like '%\\_%'", [2]),
        ("label like 'a%'", [2]),
        ("label like '%\\\\%'", [3]),
        ("label like 'été'", [4]),
        ("label like '%.jpg'", [5]),
        ("label like '%'", [0, 1, 2, 3, 4, 5]),
        ("not label like 'a%'", [0, 1, 3, 4, 5]),
        ("label like 's%e'", [0]),
        ("label is null", []),
        ("price is not null AND sold is not null", [0, 1, 2, 3, 4, 5]),
        ("label == 'back\\\\slash'", [3]),
        ("size == 1 and size == 2 or size == 3", [3]),
        ("size == 1 and (size == 2 or size == 3)", []),
    ],
)
def test_what_is_read_matches_by_its_meaning(store: Store, where: str, expected: list[int]) -> None:
    assert sorted(row.size for rows in store.scan(where) for row in rows) == expected
