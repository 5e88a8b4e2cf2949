"""Rows without a query image: listed in order, sampled at random, and the values of their fields."""

from __future__ import annotations

import heapq
import re
import secrets
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize

import numpy as np

from mg_milvus.errors import QueryError
from mg_milvus.schema.errors import format_value
from mg_milvus.schema.tags import TAG_COLUMN, USER_TAGS, readable, split_tags
from mg_milvus.search.query import MAX_DEPTH, nearest_name
from mg_milvus.store.filter_language import both

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Row, Store


MAX_SAMPLE = 1000
MAX_FACET_VALUES = 100
"""A string field with more different values in the sample than this has no list of values to choose from."""
MAX_SPELLINGS = 64
"""Ways to write a text that one filter looks for."""
_ID_BITS = 128
_NUMBER = re.compile("[0-9]+")
_COLUMNS = ("id", "path", "size", "mtime_ns", "taken", "width", "height", "content_hash")
"""Columns of every row, besides the schema's own fields."""
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
    field = _field(schema, page.order_by[1:] if falling else page.order_by)

    def key(row: Row) -> _SortKey:
        stored = row.fields[field.column] if field.column in row.fields else getattr(row, field.column)
        return _sort_key(field, stored, row.id, falling)

    every = (row for rows in store.scan(where) for row in rows)
    choose = heapq.nlargest if falling else heapq.nsmallest
    return choose(page.offset + page.limit, every, key=key)[page.offset :]


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
    name = order_by.removeprefix("-")
    field = _field(schema, name)
    kinds = {own.name: own.type for own in schema.fields}
    grouped = kinds[name] == "string" if name in kinds else name in ("folder", "date", "tag")
    keyed = [
        (_sort_key(field, stored, row_id, falling), (field.value(stored) or "") if grouped else "")
        for rows in store.values(("id", field.column), where)
        for row_id, stored in rows
    ]
    keyed.sort(key=itemgetter(0), reverse=falling)
    ids = [key[-1] for key, _ in keyed]
    starts = [i for i, (_, name) in enumerate(keyed) if i == 0 or name != keyed[i - 1][1]] if grouped else []
    return Listing(ids, [(keyed[i][1], i) for i in starts] if len(starts) <= MOST_SECTIONS else ())


_SortKey = tuple[bool, Any, str]


def _sort_key(field: _Field, stored: Any, row_id: str, falling: bool) -> _SortKey:
    """Missing values last, names as people order them, times exactly, equal ones by id."""
    value = field.value(stored)
    return (value is not None) == falling, None if value is None else field.key(stored), row_id


@lru_cache(4096)
def _natural(text: str) -> str:
    """A key that orders a9 before a10, and A beside a: numbers by length, then digits, below all letters."""
    return _NUMBER.sub(_number_key, text.casefold())


def _number_key(found: re.Match[str]) -> str:
    digits = found[0].lstrip("0")
    return f"\0{chr(len(digits) + 1)}{digits}"


def _month(nanoseconds: int) -> str:
    """The month of a time; empty where the time is none of a calendar."""
    try:
        return f"{datetime.fromtimestamp(nanoseconds / 1e9, UTC):%Y-%m}"
    except (ValueError, OverflowError, OSError):
        return ""


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _most_probable(tags: Sequence[int]) -> str | None:
    return next(iter(readable(tags)), None)


def _present(value: Any) -> Any:
    return None if value == "" else value


class _Field(NamedTuple):
    """What rows are ordered and counted by.

    Attributes:
        column: where it is stored.
        value: of what is stored there; None where it is missing.
        key: by which values that are there are ordered, of what is stored.
    """

    column: str
    value: Callable[[Any], Any] = _present
    key: Callable[[Any], Any] = _present


_DERIVED = {
    "folder": _Field(
        "path", lambda path: _folder(path) or None, lambda path: (_natural(_folder(path)), _natural(_file_name(path)))
    ),
    "name": _Field("path", _file_name, lambda path: _natural(_file_name(path))),
    "date": _Field("taken", lambda taken: _month(taken) or None),
    "tag": _Field(TAG_COLUMN, _most_probable, _most_probable),
}
"""What rows can be listed by besides, where the schema has no field of that name: the folder of the file, its name, the
month in which it was taken, and the most probable tag."""


def count_values(store: Store, schema: Schema, field: str, where: str | None) -> dict[Any, int]:
    """How many rows have each value of a field: see ``ImageIndex.facets``.

    Raises:
        QueryError: there is no such field.
        FilterError: the filter cannot be read as a whole, or names no column.
    """
    wanted = _field(schema, field)
    counted = Counter(wanted.value(stored) for rows in store.values((wanted.column,), where) for (stored,) in rows)
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


def _field(schema: Schema, name: object) -> _Field:
    own = [field.name for field in schema.fields]
    known = list(dict.fromkeys([*_COLUMNS, *own, *_DERIVED]))
    if not isinstance(name, str) or name not in known:
        raise QueryError(f"unknown field {format_value(name)}{nearest_name(name, known)}, expected {', '.join(known)}")
    return _Field(name) if name in _COLUMNS or name in own else _DERIVED[name]


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
