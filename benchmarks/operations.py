"""What is asked of an index and of its store, by name, so that a benchmark can time each: on synthetic images."""

from __future__ import annotations

from functools import cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any

from synthetic import path_of, synthetic_codes, synthetic_rows

from mg_milvus.images.discover import image_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from mg_milvus.codes import Codes
    from mg_milvus.index import ImageIndex
    from mg_milvus.store.base import Row, Store

    Actions = dict[str, Callable[[], Any]]

K, DEPTH, QUERIES = 10, 100, 50
FILTER = "width < 150"
"""Half of the synthetic rows."""
SCAN = "scan"
"""The bare searches that a query makes."""


class Asked:
    """Codes to ask with, one after the other, again and again."""

    def __init__(self, index: ImageIndex) -> None:
        self._codes = synthetic_codes(QUERIES, index.schema, seed=0)
        self._number = count()

    def next(self) -> dict[str, Codes]:
        place = next(self._number) % QUERIES
        return {name: codes[place] for name, codes in self._codes.items()}


def queries(index: ImageIndex) -> Actions:
    """Every fusion, without and with a filter: ``query, FUSION[, filter]``."""
    asked, equal = Asked(index), dict.fromkeys(index.schema.bits, 1.0)
    ways: dict[str, dict[str, Any]] = {f"query, {way}": {"fusion": way} for way in ("rank", "score", "server")}

    def ask(how: dict[str, Any], where: str | None) -> None:
        if len(index.query_codes(asked.next(), k=K, filter=where, weights=equal, **how)) != K:
            raise RuntimeError(f"{how} did not find {K}")

    return {named(name, where): partial(ask, how, where) for name, how in ways.items() for where in (None, FILTER)}


def scans(index: ImageIndex) -> Actions:
    """The searches of these queries and nothing else, in bare calls of pymilvus."""
    store: Any = index.session.store
    asked = Asked(index)

    def search(where: str | None) -> None:
        for field, code in asked.next().items():
            store._client.search(
                store.collection, [code.tobytes()], filter=where or "", limit=DEPTH, anns_field=field,
                search_params={"metric_type": "HAMMING", "params": {}}, timeout=60,
            )  # fmt: skip

    return {named(SCAN, where): partial(search, where) for where in (None, FILTER)}


def others(index: ImageIndex, rows: int) -> Actions:
    """What needs no scan: rows from all over the collection are read, written, removed and put back."""
    store, number = index.session.store, count(1)
    names = tuple(index.schema.bits)

    def some(many: int) -> list[str]:
        return [image_id(path_of(place)) for place in spread(rows, many, next(number))]

    @cache
    def block(start: int) -> list[Row]:
        return synthetic_rows(start, 64, index.schema)

    return {
        "count": index.count,
        "info": index.info,
        "fetch 1": lambda: store.fetch(some(1), names),
        "fetch 300": lambda: store.fetch(some(300), names),
        "codes of 4,000": lambda: store.fetch_codes(some(4000), names),
        "look up 300 unknown": lambda: store.fetch([f"{next(number):032x}" for _ in range(300)]),
        "write 64 again": lambda: store.upsert(block(2000 * (next(number) % (rows // 2000)))),
        "delete 64, write again": lambda: _put_back(store, block(2000 * (next(number) % (rows // 2000)))),
        "a look at 24": lambda: index.sample(24),
    }


def spread(rows: int, many: int, turn: int) -> list[int]:
    """Different row numbers from all over; those of another turn are others."""
    step = max(1, rows // many)
    return [(7919 * turn + step * i) % rows for i in range(min(many, rows))]


def named(name: str, where: str | None) -> str:
    return f"{name}, filter" if where else name


def _put_back(store: Store, rows: list[Row]) -> None:
    if store.delete([row.id for row in rows]) != len(rows):
        raise RuntimeError("rows were missing")
    store.upsert(rows)
