"""Filters that were made to be slow, to fill the memory, or to end a process: refused in one line, at once."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from mg_milvus import errors
from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import ExtraField, Granularity, Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.filters import validate
from mg_milvus.store.milvus import open_store
from tests.memory_filters import compile_filter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COLUMNS = {"label": "string", "size": "int"}

DEEP = {
    "brackets": "(" * 200 + "size == 1" + ")" * 200,
    "many brackets": "(" * 50_000 + "size == 1" + ")" * 50_000,
    "brackets that stay open": "(" * 200 + "size == 1",
    "not": "not (" * 200 + "size == 1" + ")" * 200,
    "not behind not": "not " * 200 + "(size == 1)",
    "the sign of not": "!" * 200 + "(size == 1)",
    "minus": "size == " + "- " * 200 + "1",
    "complements": "size == " + "~" * 200 + "1",
    "lists in lists": "size in " + "[" * 200 + "]" * 200,
    "or": " or ".join(f"size < {place}" for place in range(50_000)),
    "sums": "size == " + " + ".join(["1"] * 50_000),
}
LONG = {
    "a quote and escaped ones": '"' + '\\"' * 500_000,
    "a fraction that is none": "size / ." + "1" * 500_000 + "x",
    "zeros": "size / " + "0" * 500_000,
    "fractions": "size / 0." + "0" * 500_000,
    "slashes": "/" * 500_000,
    "spaces behind slashes": ("/" + " " * 700) * 700,
    "quotes": "'\"" * 250_001,
    "characters": "§" * 500_000,
    "a long word": "a" * 500_000,
    "a long number": "size == " + "9" * 500_000,
    "long": "size == 1" + " " * 2_000_000,
    "an open list": "size in [" + "1," * 250_000,
    "lists that stay open": "[" * 500_000,
}


def assert_taken_or_refused(read: Callable[[], object]) -> None:
    said = ""
    try:
        read()
    except errors.FilterError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1000


@pytest.mark.parametrize("kind", DEEP)
def test_a_filter_that_is_nested_deeply_reaches_no_parser(kind: str) -> None:
    """Measured: Milvus Lite's process, and with it the data file's other users, ends at 50,000 brackets."""
    for read in (lambda: validate(DEEP[kind], lite=True), lambda: compile_filter(DEEP[kind], COLUMNS)):
        with pytest.raises(errors.FilterError, match=r"at most (100 brackets|10,000 words)") as caught:
            read()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", LONG)
def test_a_long_filter_is_read_in_time_that_grows_with_its_length(kind: str) -> None:
    """Half a million characters: what takes the square of that takes hours, so the bound is no matter of a machine."""
    started = time.process_time()
    for read in (lambda: validate(LONG[kind], lite=True), lambda: compile_filter(LONG[kind], COLUMNS)):
        assert_taken_or_refused(read)
    assert time.process_time() - started < 20


def test_what_people_write_is_taken() -> None:
    listed = "size in [" + ", ".join(map(str, range(20_000))) + "]"
    nested = "(" * 99 + "size == 1" + ")" * 99
    joined = " or ".join(f"size == {place}" for place in range(2_000))
    for where in (listed, nested, joined, "not (size == 1)", "size != -1", "label like '%(((%'", "label == '[[['"):
        assert validate(where, lite=True) == where
        compile_filter(where, COLUMNS)({"label": "x", "size": 1})


@pytest.mark.parametrize("where", ["label == 'a", 'label == "a', "label == 'a\\'", "size / 0 == 1 or label == '"])
def test_a_quote_that_is_not_closed_is_said(where: str) -> None:
    with pytest.raises(errors.FilterError, match="a quote that is not closed"):
        validate(where, lite=True)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a%", "abc", True), ("%c", "abc", True), ("%b%", "abc", True), ("%", "", True), ("%%", "abc", True),
        ("_b_", "abc", True), ("_", "abc", False), ("a%c%", "abc", True), ("a%a", "a", False), ("a%a", "aa", True),
        ("ab%ba", "aba", False), ("%ab%ab%", "ab", False), ("%ab%ab%", "abab", True), ("%a_c%", "xxabcx", True),
        ("a.c", "abc", False), ("%\\\\%", "a\\b", True), ("a%", "a\nb", True), ("", "", True), ("", "a", False),
        ("%aa%a", "aaa", True), ("%aa%aa", "aaa", False), ("a", "a", True),
    ],
)  # fmt: skip
def test_like_is_what_it_was(pattern: str, text: str, expected: bool) -> None:
    assert compile_filter(f'label like "{pattern}"', COLUMNS)({"label": text}) is expected


def test_like_tries_nothing_twice() -> None:
    """As a regular expression of `.*` this takes years."""
    started = time.process_time()
    matches = compile_filter('label like "' + "%a" * 30 + '%b"', COLUMNS)
    assert not matches({"label": "a" * 5_000})
    assert time.process_time() - started < 20


def test_the_engine_lives_on(tmp_path: Path) -> None:
    schema = Schema(
        granularities=(Granularity(name="coarse", bits=8),),
        fields=(ExtraField(name="label", type="string", default=""),),
    )
    store = open_store(MilvusConfig(str(tmp_path / "it.db"), collection=schema.collection, timeout=60))
    store.create(Description(schema, "0" * 16))
    store.upsert([Row("0" * 32, "/a.png", 1, 1, 1, 1, "0" * 32, {"coarse": b"\0"}, {"label": ""})])
    for where in (
        *DEEP.values(),
        *LONG.values(),
        "(" * 99 + "size == 1" + ")" * 99,
        "size == " + "+".join("1" * 4_999),
    ):
        assert_taken_or_refused(partial(store.count, where))
    assert store.count() == 1
    store.close()
