"""Filters as people type them, on a real Milvus Lite: read whole or refused, and what they match by hand."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mg_milvus import errors
from mg_milvus.config import MilvusConfig
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import ExtraField, Granularity, Schema
from mg_milvus.store.base import Description, Row, Store
from mg_milvus.store.filter_language import both
from mg_milvus.store.filters import filter_text, literal
from mg_milvus.store.milvus import open_store
from tests.memory_filters import compile_filter

if TYPE_CHECKING:
    from pathlib import Path

    from mg_milvus.store.filters import Filter

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


def test_chains_of_hundreds_are_read(store: Store) -> None:
    """Milvus Lite refuses 49 conditions in one chain."""
    chain = " or ".join(f"width == {10 * n}" for n in range(1, 300, 2))
    assert store.count(chain) == 3
    assert store.count(f"not ({chain})") == 3
    assert store.count(f"size > 1 and ({chain})") == 2
    assert store.count(" and ".join(f"width != {10 * n}" for n in range(1, 300, 2))) == 3
    assert store.count('tags in ["terrier", "vehicle", "hound", "snake"]') == 0
    assert store.count('tags not in ["terrier", "vehicle", "hound", "snake"]') == 6


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"label": "shoe"}, [0]),
        ({"label": 'x" or size >= 0 or label == "', "size": 1}, []),
        ({"price": ("<", 1), "sold": True}, [0]),
        ({"size": ((">=", 2), ("<", 4))}, [2, 3]),
        ({"size": [1, 2]}, [1, 2]),
        ({"size": ("not in", {1, 2})}, [0, 3, 4, 5]),
        ({"size": ("!=", [1, 2]), "sold": ("!=", True)}, [3, 5]),
        ({"label": ("like", "a%")}, [2]),
        ({"label": None}, []),
        ({"label": ("!=", None), "price": np.float32(0.5)}, [1]),
        ("size == 4", [4]),
        (None, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_filters_of_values(store: Store, given: Filter | None, expected: list[int]) -> None:
    assert sorted(row.size for rows in store.scan(filter_text(given)) for row in rows) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size) or (size": 1}, "names of columns"),
        ({1: 1}, "names of columns"),
        ({"size": ("=>", 3)}, "size: expected a pair of one of == != <"),
        ({"size": ()}, "size: expected a pair"),
        ({"size": float("nan")}, "size: expected a text, a finite number"),
        ({"size": ("<", [1])}, "size: < compares with one value"),
        ({"size": ("in", 1)}, "size: in takes a list"),
        ({"size": object()}, "size: expected a text"),
        ({"or": 1}, "filter, character"),
        ({"prise": 1}, "there is no column 'prise', the columns are price"),
        (5, "text or a dictionary"),
    ],
)
def test_filters_of_values_that_mean_nothing(store: Store, given: Any, message: str) -> None:
    with pytest.raises(errors.FilterError, match=re.escape(message)):
        store.count(filter_text(given))


def test_another_condition_cannot_end_the_brackets_of_a_filter(store: Store) -> None:
    with pytest.raises(errors.FilterError, match=r"character 10: .*: size == 1 --> \) or \(size < 9"):
        both("size == 1) or (size < 9", "size == 2")
    assert store.count(both("size == 1 or size == 2", "size == 2")) == 1
    assert both("", "size == 2") == "size == 2"


def test_a_list_that_breaks_off_is_marked_where_it_does(store: Store) -> None:
    with pytest.raises(errors.FilterError, match=r"character 13: .*: size in \[1, --> x, 3\]"):
        store.count("size in [1, x, 3]")


def test_an_empty_filter_deletes_nothing(tmp_path: Path) -> None:
    with ImageIndex.open(tmp_path / "x.db") as index:
        for empty in ("", " ", {}):
            with pytest.raises(errors.FilterError, match="matches every row"):
                index.delete_where(empty)


# A condition as text and as a function of the columns: true, false or, beside a missing value, None.

Condition = tuple[str, Callable[[dict[str, Any]], bool | None]]
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
TEXTS = st.sampled_from(["a", "b", "ab", "a_b", "%", "b\\", '"', "é"])
VALUES = {
    "size": st.integers(-3, 7), "year": st.integers(-3, 7), "price": st.sampled_from([-1.5, 0.0, 0.5, 2.0, 1e30]),
    "sold": st.booleans(), "label": TEXTS,
}  # fmt: skip
RECORDS = [
    {"year": year, "price": price, "sold": sold, "label": label}
    for year, price, sold, label in [
        (1, 0.5, True, "a"), (None, None, None, None), (0, -1.5, False, "ab"), (-2, 2.0, None, "a_b"),
        (7, None, True, "b\\"), (None, 0.0, False, '"'), (3, 1e30, None, None), (5, 0.5, True, "é"),
    ]
]  # fmt: skip


def written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else literal(value) if isinstance(value, str) else repr(value)


def unknown(value: Any, condition: Callable[[Any], bool]) -> bool | None:
    return None if value is None else condition(value)


@st.composite
def comparisons(draw: st.DrawFn) -> Condition:
    name = draw(st.sampled_from(sorted(VALUES)))
    kind = draw(st.sampled_from(["sign", "mirrored", "in", "null"]))
    if kind == "null":
        negated = draw(st.booleans())
        return f"{name} is {'not ' * negated}null", lambda row: (row[name] is None) != negated
    if kind == "in":
        wanted, negated = draw(st.lists(VALUES[name], max_size=3)), draw(st.booleans())
        text = f"{name} {'not ' * negated}in [{', '.join(map(written, wanted))}]"
        return text, lambda row: unknown(row[name], lambda value: (value in wanted) != negated)
    value, sign = draw(VALUES[name]), draw(st.sampled_from(["==", "!="] if name == "sold" else sorted(SIGNS)))
    if kind == "mirrored":
        text = f"{written(value)} {sign} {name}"
        return text, lambda row: unknown(row[name], lambda own: SIGNS[sign](value, own))
    return f"{name}{sign}{written(value)}", lambda row: unknown(row[name], lambda own: SIGNS[sign](own, value))


@st.composite
def arithmetic(draw: st.DrawFn) -> Condition:
    name, number, value = draw(st.sampled_from(["size", "year"])), draw(st.integers(1, 4)), draw(st.integers(-3, 9))
    word, sign = draw(st.sampled_from(["+", "-", "*"])), draw(st.sampled_from(sorted(SIGNS)))
    compute = {"+": operator.add, "-": operator.sub, "*": operator.mul}[word]
    return f"{name} {word} {number} {sign} {value}", lambda row: unknown(
        row[name], lambda own: SIGNS[sign](compute(own, number), value)
    )


@st.composite
def patterns(draw: st.DrawFn) -> Condition:
    start, end = draw(st.sampled_from(["a", "b", "é"])), draw(st.booleans())
    text = f"label like '%{start}'" if end else f"label like '{start}%'"
    return text, lambda row: unknown(row["label"], lambda own: own.endswith(start) if end else own.startswith(start))


def negated(condition: Condition) -> Condition:
    text, holds = condition
    return f"not ({text})", lambda row: None if (found := holds(row)) is None else not found


def joined(word: str, first: Condition, second: Condition) -> Condition:
    decisive = word in {"or", "||"}

    def holds(row: dict[str, Any]) -> bool | None:
        found = first[1](row), second[1](row)
        return decisive if decisive in found else None if None in found else not decisive

    return f"({first[0]}) {word} ({second[0]})", holds


simple = comparisons() | arithmetic()
conditions = st.recursive(
    simple | simple.map(negated) | patterns(),
    lambda inner: st.builds(joined, st.sampled_from(["and", "or", "&&", "||", "AND"]), inner, inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Rows some of whose values are missing."""
    fields = (ExtraField(name="year", type="int"), *SCHEMA.fields)
    opened = open_store(MilvusConfig(str(tmp_path_factory.mktemp("s") / "s.db"), collection="images", timeout=60))
    opened.create(Description(SCHEMA.model_copy(update={"fields": fields}), "0" * 16))
    opened.upsert(
        [Row(f"{n:032x}", "/", n, 1, 1, 1, "0" * 32, {"coarse": b"\0"}, record) for n, record in enumerate(RECORDS)]
    )
    yield opened
    opened.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(condition=conditions)
def test_a_filter_finds_what_its_meaning_says_of_each_row(sparse: Store, condition: Condition) -> None:
    """Both in Milvus Lite and, beside it, in the store in memory."""
    where, holds = condition
    rows = [{"size": n, **record} for n, record in enumerate(RECORDS)]
    expected = [row["size"] for row in rows if holds(row)]
    assert sorted(row.size for batch in sparse.scan(where) for row in batch) == expected, where
    twin = compile_filter(
        where, {"id": "string", "size": "int", "year": "int", **{f.name: f.type for f in SCHEMA.fields}}
    )
    assert [row["size"] for row in rows if twin(row)] == expected, where


def test_missing_values_stay_missing(sparse: Store) -> None:
    found = {row.size: row.fields for rows in sparse.scan() for row in rows}
    assert [found[n] for n in range(len(RECORDS))] == RECORDS
    for where in (
        "year < 1995",
        "year != 3",
        "not (year > 1995)",
        "year % 2 == 0",
        "year not in [1]",
        "price <= 1e308",
    ):
        assert 1 not in {row.size for rows in sparse.scan(where) for row in rows}, where
