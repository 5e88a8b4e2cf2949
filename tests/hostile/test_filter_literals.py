"""Paths and values full of quotes, backslashes and filter syntax, in Milvus Lite: they cannot alter a filter."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mg_milvus import errors
from mg_milvus.config import MilvusConfig
from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import ExtraField, Granularity, Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.filters import literal
from mg_milvus.store.milvus import open_store
from tests.memory_filters import compile_filter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mg_milvus.store.base import Store

PIECES = (
    '"',
    "'", "\\", "\\\\", '\\"', "\\'", '" or 1 == 1 or "" == "', "' or id like '%", '"] or id in ["', ") or (size >= 0",
    "%", "_", "a", "é", "🦜", "\u2028", "\u2029", "\u0085", "\0", "\t", "\x1b[31m", "\u202e", "{x}", "${x}", "\\u0022",
    "\\x22", "--", "/*", "#", ";", " and ", "not ", "true", "//", "", " ",
)  # fmt: skip
NASTY = st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | st.text(max_size=12).filter(
    lambda text: text.isprintable()
)
SCHEMA = Schema(
    granularities=(Granularity(name="coarse", bits=8),), fields=(ExtraField(name="label", type="string", default=""),)
)
LABELS = sorted({first + second for first in PIECES for second in PIECES[:14]})


def row(number: int, path: str, label: str) -> Row:
    return Row(image_id(path), path, number, 1, 1, 1, f"{number:032x}", {"coarse": b"\0"}, {"label": label})


def rows() -> list[Row]:
    made = [row(number, os.path.normpath(f"/p/{label}/{number}.png"), label) for number, label in enumerate(LABELS)]
    return [*made, row(len(made), "/p/new\nline.png", "new\nline"), row(len(made) + 1, "/p/'; drop.png", "\r")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "h.db"


@pytest.fixture(scope="module")
def store(file: Path) -> Iterator[Store]:
    opened = open_store(MilvusConfig(str(file), collection=SCHEMA.collection, timeout=60))
    opened.create(Description(SCHEMA, "0" * 16))
    opened.upsert(rows())
    yield opened
    opened.close()


def found(store: Store, where: str) -> list[str]:
    return sorted(each.id for batch in store.scan(where) for each in batch)


slow = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow
@given(text=NASTY | st.sampled_from(LABELS), other=NASTY)
def test_a_literal_matches_exactly_its_text(store: Store, text: str, other: str) -> None:
    """Also the twin in memory parses it so."""
    try:
        where = {
            f"label == {literal(text)}": lambda label: label == text,
            f"label != {literal(text)}": lambda label: label not in {text, ""},  # an empty text is a missing value
            f"label in [{literal(other)}, {literal(text)}]": lambda label: label in {other, text},
            f"label != {literal(text)} and size < 50": None,
        }
    except errors.FilterError:
        assert set(text + other) & {"\n", "\r"}
        return
    for expression, matches in where.items():
        expected = sorted(
            each.id
            for each in rows()
            if (matches(each.fields["label"]) if matches else each.fields["label"] not in {text, ""} and each.size < 50)
        )
        assert found(store, expression) == expected, expression
        twin = compile_filter(expression, {"label": "string", "size": "int"})
        assert (
            sorted(each.id for each in rows() if twin({"label": each.fields["label"] or None, "size": each.size}))
            == expected
        )


@slow
@given(path=NASTY)
def test_what_is_no_id_finds_and_deletes_nothing(store: Store, path: str) -> None:
    assert store.fetch([path]) == {}
    assert store.delete([path]) == 0
    assert store.count() == len(rows())


@slow
@given(expression=NASTY)
def test_a_filter_that_is_no_filter_is_an_error_of_ours(store: Store, expression: str) -> None:
    with suppress(errors.StoreError):
        store.count(expression)
    with suppress(errors.FilterError):
        compile_filter(expression, {"label": "string", "size": "int"})


def test_a_hostile_path_deletes_exactly_its_row(tmp_path: Path) -> None:
    file, left = tmp_path / "d.db", {each.path for each in rows()}
    opened = open_store(MilvusConfig(str(file), collection=SCHEMA.collection, timeout=60))
    opened.create(Description(SCHEMA, "0" * 16))
    opened.upsert(rows())
    opened.close()
    with ImageIndex.open(file, timeout=60) as index:
        for each in rows()[:: len(rows()) // 25]:
            assert index.delete([each.path]) == 1
            left.remove(each.path)
            assert {kept.path for batch in index.session.store.scan() for kept in batch} == left
            with pytest.raises(errors.NotIndexedError):
                index.delete([each.path])
        label = LABELS[30]
        expected = {each.path for each in rows() if each.fields["label"] == label} & left
        assert index.delete_where(f"label == {literal(label)}") == len(expected)
        assert {kept.path for batch in index.session.store.scan() for kept in batch} == left - expected


@pytest.mark.parametrize(
    "expression",
    ["size / 0 == 1", "size % 0 == 1", "size == 1/(1-1)", "1 /  -0 == size", "size in [1 % 00]", "size / 0x0 == 1",
     "size / 0.0 == 1", "label == '/ 2' and size / size == 1"],
)  # fmt: skip
def test_a_division_that_would_end_milvus_lite_is_refused(store: Store, expression: str) -> None:
    with pytest.raises(errors.FilterError, match="divides by numbers above 0 only"):
        store.count(expression)
    assert store.count("size % 2 == 0 or size / 03 == 1") > 0


@pytest.mark.parametrize("expression", ["size == {x}", "{", "label == 'a' and size > }"])
def test_a_template_is_refused_at_once(store: Store, expression: str) -> None:
    with pytest.raises(errors.FilterError, match=r"takes no \{template\}"):
        store.count(expression)
    assert store.count("label == '{x}a' or label == '{\\'/0'") == 1, "in quotes they are text"
