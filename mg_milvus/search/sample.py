"""Random samples of rows, and the values of a collection's own fields."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import QueryError
from mg_milvus.search.query import MAX_DEPTH
from mg_milvus.store.filter_language import both

if TYPE_CHECKING:
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Row, Store


MAX_SAMPLE = 1000
MAX_FACET_VALUES = 50
"""A string field with more different values in the sample than this has no list of values to choose from."""
_ID_BITS = 128


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


def facets(store: Store, schema: Schema) -> dict[str, Any]:
    """Values of the schema's own fields in up to ``MAX_SAMPLE`` rows: see ``ImageIndex.facets``."""
    if not schema.fields:
        return {}
    rows = store.fetch(_ids_from(0, store, schema, MAX_SAMPLE, None)[:MAX_SAMPLE]).values()
    found: dict[str, Any] = {}
    for field in schema.fields:
        values = {row.fields[field.name] for row in rows if row.fields.get(field.name) not in (None, "")}
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
