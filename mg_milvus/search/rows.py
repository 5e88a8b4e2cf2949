"""Rows without a query image: listed in order, sampled at random, and the values of their fields."""

from __future__ import annotations

import heapq
import re
import secrets
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize

import numpy as np

from mg_milvus.errors import QueryError
from mg_milvus.schema.errors import format_value
from mg_milvus.schema.tags import USER_TAGS, readable, split_tags
from mg_milvus.search.query import MAX_DEPTH, nearest_name
from mg_milvus.store.filter_language import both

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Row, Store


MAX_SAMPLE = 1000
MAX_FACET_VALUES = 100
"""A string field with more different values in the sample than this has no list of values to choose from."""
MAX_SPELLINGS = 64
"""Ways to write a text that one filter looks for."""
_ID_BITS = 128
_COLUMNS = ("id", "path", "size", "mtime_ns", "taken", "width", "height", "content_hash")
"""Columns of every row, besides the schema's own fields."""
_DERIVED = ("folder", "name", "date", "tag")
"""What rows can be listed by besides, where the schema has no field of that name: the folder of the file, its name, the
month in which it was taken, and the most probable tag."""
MOST_SECTIONS = 5_000
"""A listing of more folders, months or values than this has no sections."""


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

    every = (row for rows in store.scan(where) for row in rows)
    choose = heapq.nlargest if falling else heapq.nsmallest
    return choose(page.offset + page.limit, every, key=lambda row: _sort_key(row, field, falling))[page.offset :]


@dataclass(frozen=True, slots=True)
class Listing:
    """All rows that match, in order.

    Attributes:
        ids: of the rows.
        sections: name and first place of the folders, months, tags or texts that the order groups by, in order; empty
            for other orders, and for more than ``MOST_SECTIONS``.
    """

    ids: Sequence[str]
    sections: Sequence[tuple[str, int]] = ()

    def among(self, ids: frozenset[str]) -> Listing:
        """The listing of those rows of it that are among some ids."""
        chosen = [own in ids for own in self.ids]
        before = [0, *accumulate(chosen)]
        ends = [first for _, first in self.sections[1:]] + [len(self.ids)]
        sections = [
            (name, before[first])
            for (name, first), end in zip(self.sections, ends, strict=False)
            if before[end] > before[first]
        ]
        return Listing([own for own in self.ids if own in ids], sections)


def order_rows(store: Store, schema: Schema, where: str | None, order_by: str) -> Listing:
    """All rows in order: see ``ImageIndex.listing``.

    Raises:
        QueryError: the order names no field.
        FilterError: the filter cannot be read as a whole, or names no column.
    """
    falling = order_by.startswith("-")
    field = _check_field(schema, order_by.removeprefix("-"))
    texts = {own.name for own in schema.fields if own.type == "string"}
    grouped = field in texts or (field in ("folder", "date", "tag") and not _is_own(field, schema))
    keyed = [
        (_sort_key(row, field, falling), (_value(row, field) or "") if grouped else "")
        for rows in store.scan(where, tags=field == "tag")
        for row in rows
    ]
    keyed.sort(key=lambda pair: pair[0], reverse=falling)
    ids = [key[-1] for key, _ in keyed]
    starts = [i for i, (_, name) in enumerate(keyed) if i == 0 or name != keyed[i - 1][1]] if grouped else []
    return Listing(ids, [(keyed[i][1], i) for i in starts] if len(starts) <= MOST_SECTIONS else ())


def _is_own(field: str, schema: Schema) -> bool:
    return any(own.name == field for own in schema.fields)


def _sort_key(row: Row, field: str, falling: bool) -> tuple[bool, Any, str]:
    """Missing values last, names as people order them, times exactly, equal ones by id."""
    value = _value(row, field)
    missing = (value is not None) == falling
    if field in row.fields or field in _COLUMNS or value is None:
        return missing, value, row.id
    match field:
        case "folder":
            value = (_natural(value), _natural(_file_name(row)))
        case "name":
            value = _natural(value)
        case "date":
            value = row.taken
    return missing, value, row.id


def _natural(text: str) -> list[Any]:
    """A key that orders a9 before a10, and A beside a: texts and numbers by turns, numbers by length and digits."""
    parts: list[Any] = re.split(r"([0-9]+)", text.casefold())
    parts[1::2] = [(len(digits), digits) for digits in (part.lstrip("0") for part in parts[1::2])]
    return parts


def _month(nanoseconds: int) -> str:
    """The month of a time; empty where the time is none of a calendar."""
    try:
        return f"{datetime.fromtimestamp(nanoseconds / 1e9, UTC):%Y-%m}"
    except (ValueError, OverflowError, OSError):
        return ""


def _file_name(row: Row) -> str:
    return row.path.rpartition("/")[2]


def count_values(store: Store, schema: Schema, field: str, where: str | None) -> dict[Any, int]:
    """How many rows have each value of a field: see ``ImageIndex.facets``.

    Raises:
        QueryError: there is no such field.
        FilterError: the filter cannot be read as a whole, or names no column.
    """
    field = _check_field(schema, field)
    counted = Counter(_value(row, field) for rows in store.scan(where, tags=field == "tag") for row in rows)
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0] is None, str(pair[0]))))


def count_tags(store: Store, where: str | None) -> dict[str, int]:
    """How many rows have each tag: see ``ImageIndex.tags``.

    Raises:
        FilterError: the filter cannot be read as a whole, or names no column.
    """
    every = (row for rows in store.scan(where) for row in rows)
    counted = Counter(tag for row in every for tag in {*readable(row.tags), *split_tags(row.fields.get(USER_TAGS))})
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


def spellings(values: Iterable[object], text: str) -> list[str]:
    """How a text is written where values hold it, whatever the case: sorted, each once.

    Letters with a mark count as the same, composed (NFC) or with the mark behind (NFD), as some disks name files.

    Args:
        values: texts; others are passed over.
        text: what to look for.

    Raises:
        QueryError: there are more than ``MAX_SPELLINGS``.
    """
    forms = dict.fromkeys(normalize(form, text) for form in ("NFC", "NFD"))
    pattern = re.compile("|".join(map(re.escape, forms)), re.IGNORECASE)
    found = {match for value in values if isinstance(value, str) for match in pattern.findall(value) if match}
    if len(found) > MAX_SPELLINGS:
        raise QueryError(
            f"{format_value(text)} is written in {len(found)} ways, with capitals here and there, expected at most "
            f"{MAX_SPELLINGS}: look for a shorter part of it"
        )
    return sorted(found)


def _check_field(schema: Schema, name: object) -> str:
    known = list(dict.fromkeys([*_COLUMNS, *(field.name for field in schema.fields), *_DERIVED]))
    if not isinstance(name, str) or name not in known:
        raise QueryError(f"unknown field {format_value(name)}{nearest_name(name, known)}, expected {', '.join(known)}")
    return name


def _value(row: Row, field: str) -> Any:
    """A row's value of a field; None where it is missing."""
    if field in _COLUMNS:
        value: Any = getattr(row, field)
    elif field in row.fields or field not in _DERIVED:
        value = row.fields.get(field)
    elif field == "tag":
        value = next(iter(readable(row.tags)), None)
    elif field == "date":
        value = _month(row.taken)
    else:
        value = _file_name(row) if field == "name" else row.path.rpartition("/")[0]
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
