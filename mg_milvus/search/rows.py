"""Rows without a query image: listed in order, sampled at random, and the values of their fields."""

from __future__ import annotations

import heapq
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mg_milvus.errors import QueryError
from mg_milvus.schema.errors import format_value
from mg_milvus.schema.tags import USER_TAGS, readable, split_tags
from mg_milvus.search.query import MAX_DEPTH, nearest_name
from mg_milvus.store.filter_language import both

if TYPE_CHECKING:
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Row, Store


MAX_SAMPLE = 1000
MAX_FACET_VALUES = 100
"""A string field with more different values in the sample than this has no list of values to choose from."""
_ID_BITS = 128
_COLUMNS = ("id", "path", "size", "mtime_ns", "width", "height", "content_hash")
"""Columns of every row, besides the schema's own fields."""


class Page(NamedTuple):
    """Which rows of an order to list."""

    order_by: str = "id"
    limit: int = 100
    offset: int = 0


def list_rows(store: Store, schema: Schema, where: str | None, page: Page) -> list[Row]:
    """The rows of one page, without codes: see ``ImageIndex.images``.

    Raises:
        QueryError: the order names no field, or limit or offset is out of range.
        FilterError: the filter cannot be read as a whole, or names no column.
    """
    for name, number, least in (("limit", page.limit, 1), ("offset", page.offset, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise QueryError(f"{name} is {format_value(number)}, expected a whole number from {least} on")
    falling = page.order_by.startswith("-") if isinstance(page.order_by, str) else False
    field = _check_field(schema, page.order_by[1:] if falling else page.order_by)

    def key(row: Row) -> tuple[bool, Any, str]:
        value = _value(row, field)
        return (value is not None) == falling, value, row.id

    every = (row for rows in store.scan(where) for row in rows)
    choose = heapq.nlargest if falling else heapq.nsmallest
    return choose(page.offset + page.limit, every, key=key)[page.offset :]


def count_values(store: Store, schema: Schema, field: str, where: str | None) -> dict[Any, int]:
    """How many rows have each value of a field: see ``ImageIndex.facets``.

    Raises:
        QueryError: there is no such field.
        FilterError: the filter cannot be read as a whole, or names no column.
    """
    field = _check_field(schema, field)
    counted = Counter(_value(row, field) for rows in store.scan(where) for row in rows)
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0] is None, str(pair[0]))))


def count_tags(store: Store, where: str | None) -> dict[str, int]:
    """How many rows have each tag: see ``ImageIndex.tags``.

    Raises:
        FilterError: the filter cannot be read as a whole, or names no column.
    """
    every = (row for rows in store.scan(where) for row in rows)
    counted = Counter(tag for row in every for tag in {*readable(row.tags), *split_tags(row.fields.get(USER_TAGS))})
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


def _check_field(schema: Schema, name: object) -> str:
    known = [*_COLUMNS, *(field.name for field in schema.fields)]
    if not isinstance(name, str) or name not in known:
        raise QueryError(f"unknown field {format_value(name)}{nearest_name(name, known)}, expected {', '.join(known)}")
    return name


def _value(row: Row, field: str) -> Any:
    """A row's value of a field; None where it is missing."""
    value = getattr(row, field) if field in _COLUMNS else row.fields.get(field)
    return None if value == "" else value


def sample_rows(store: Store, schema: Schema, count: int, where: str | None = None) -> list[Row]:
    """A random sample of at most ``count`` rows, without codes.

    Ids are hashes, so the rows whose ids follow a random id are a random sample.

    Raises:
        QueryError: ``count`` is not from 1 to ``MAX_SAMPLE``.
        FilterError: the filter cannot be read as a whole, or names no column.
    """
    if not 1 <= count <= MAX_SAMPLE:
        raise QueryError(f"count is {count}, expected a whole number from 1 to {MAX_SAMPLE}")
    return list(store.fetch(random_ids(store, schema, count, where)).values())


def random_ids(store: Store, schema: Schema, count: int, where: str | None = None) -> list[str]:
    """Ids of a random sample of at most ``count`` rows, or of those that match."""
    ids = _ids_from(secrets.randbits(_ID_BITS), store, schema, count, where)
    return [ids[i] for i in np.random.default_rng().permutation(len(ids))[:count]]


def choices(store: Store, schema: Schema) -> dict[str, Any]:
    """Values of the schema's own fields in up to ``MAX_SAMPLE`` rows: see ``ImageIndex.choices``."""
    if not schema.fields:
        return {}
    rows = store.fetch(_ids_from(0, store, schema, MAX_SAMPLE, None)[:MAX_SAMPLE]).values()
    found: dict[str, Any] = {}
    for field in schema.fields:
        values = {row.fields[field.name] for row in rows if row.fields.get(field.name) not in (None, "")}
        if field.name == USER_TAGS:
            values = {tag for value in values for tag in split_tags(value)}
        if field.type == "string":
            found[field.name] = sorted(values) if len(values) <= MAX_FACET_VALUES else []
        elif field.type != "bool" and values:
            found[field.name] = [min(values), max(values)]
    return found


def _ids_from(first: int, store: Store, schema: Schema, count: int, where: str | None) -> list[str]:
    """Ids from ``first`` on: ``count`` or a few times more that match, or all where there are fewer.

    They come from a search, which compares with every row but returns few; listing rows is slower in Milvus Lite.
    """
    shortest = min(schema.bits, key=schema.bits.__getitem__)
    code = np.zeros((1, schema.bits[shortest] // 8), np.uint8)
    share = 4 * count / max(1, store.size())
    while True:
        condition = both(where, _id_range(first, share))
        (result,) = store.nearest(shortest, code, min(16 * count, MAX_DEPTH), condition or None)
        if len(result.ids) >= count or share >= 1:
            return result.ids
        share *= 16


def _id_range(first: int, share: float) -> str:
    """The condition for a share of all possible ids, from ``first`` on and round the end; empty for all."""
    if share >= 1:
        return ""
    last = first + int(share * 2**_ID_BITS)
    start, end = (f'"{number % 2**_ID_BITS:0{_ID_BITS // 4}x}"' for number in (first, last))
    return f"id >= {start} {'or' if last >= 2**_ID_BITS else 'and'} id < {end}"
