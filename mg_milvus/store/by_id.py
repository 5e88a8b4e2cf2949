"""Rows by their ids, as Milvus reads them fastest.

Milvus Lite walks through all its keys until it has met those that are asked for: among a million rows a query for 10
ids takes 280 ms, one for 300 takes 330. A search that is limited to these ids looks at their rows only (4 and 7 ms),
and the copy of the codes comes with it, as the codes themselves cannot.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mg_milvus.store import tables
from mg_milvus.store.filters import among
from mg_milvus.store.layout import COPY, could_be_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mg_milvus.store import Row
    from mg_milvus.store.connection import Connection
    from mg_milvus.store.layout import Layout

_ROWS_A_CALL = 1000
_CODES_A_CALL = 5000


class ById:
    """The rows of one collection, which is loaded. Unknown ids are left out everywhere."""

    def __init__(
        self, connection: Connection, collection: str, layout: Layout, fields: Sequence[Mapping[str, Any]],
        call: Callable[[Callable[[], Any]], Any],
    ) -> None:  # fmt: skip
        """Args: the connection; what to read; the columns that Milvus says it has; and what runs a call of pymilvus."""
        self._connection, self._collection, self._layout, self._call = connection, collection, layout, call
        self._reading = connection.border.reading
        self.copied = any(field["name"] == COPY for field in fields)
        """Whether rows hold their codes once more as text: not on servers, nor in files of earlier versions."""

    def rows(self, ids: Sequence[str], granularities: Sequence[str]) -> Iterator[Row]:
        """Rows with the codes of these granularities, in no stated order."""
        columns = self._layout.output_fields(() if self.copied else granularities)
        if self.copied and granularities:
            columns.append(COPY)
        for record in self._records(ids, columns, _ROWS_A_CALL):
            with self._reading():
                row = self._row(record, granularities)
            yield row

    def codes(self, ids: Sequence[str], granularities: Sequence[str]) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        """Ids and codes, in no stated order."""
        for record in self._records(ids, [COPY] if self.copied else ["id", *granularities], _CODES_A_CALL):
            with self._reading():
                copy = self._layout.codes_of_copy(record[COPY]) if self.copied else None
                codes = self._layout.codes(record, granularities) if copy is None else copy
                one = record["id"], {name: codes[name] for name in granularities}
            yield one

    def there(self, ids: Sequence[str]) -> Iterator[list[str]]:
        """Those of the ids that have a row, some at a time."""
        for some in _chunks(ids, _ROWS_A_CALL):
            with self._reading():
                known = {record["id"] for record in self._records(some, ["id"], _ROWS_A_CALL)}
            if there := [i for i in some if i in known]:
                yield there

    def with_a_search(self) -> list[str]:
        """What to ask a search for, that it gives whole rows; nothing where it cannot give the codes."""
        if not self._connection.engine.lite:
            return self._layout.output_fields(tuple(self._layout.bytes))
        return [*self._layout.output_fields(()), COPY] if self.copied else []

    def row(self, hit: Mapping[str, Any]) -> Row:
        """The row that a search has given, which was asked for ``with_a_search``.

        Raises:
            ValueError, KeyError: it is no row, or that of another hit.
        """
        row = self._row(hit["entity"], tuple(self._layout.bytes))
        if row.id != hit["id"]:
            raise ValueError(f"{hit['id']!r} came with the row {row.id!r}")
        return row

    def _row(self, record: Mapping[str, Any], granularities: Sequence[str]) -> Row:
        if not self.copied or not granularities:
            return self._layout.row(record, granularities)
        codes = self._layout.codes_of_copy(record[COPY])
        if len(granularities) < len(codes):
            codes = {name: codes[name] for name in granularities}
        return self._layout.row_with(record, codes)

    def _records(self, ids: Sequence[str], columns: list[str], size: int) -> Iterator[Mapping[str, Any]]:
        client, timeout = self._connection.client, self._connection.timeout
        for some in _chunks(ids, size):
            if not self.copied:
                found = self._call(
                    partial(
                        client.query, self._collection, filter=among(some), output_fields=columns,
                        consistency_level="Strong", timeout=timeout,
                    )
                )  # fmt: skip
                with self._reading():
                    records = tables.records(found)
                yield from records
                continue
            shortest = min(self._layout.bytes, key=self._layout.bytes.__getitem__)
            found = self._call(
                partial(
                    client.search, self._collection, [bytes(self._layout.bytes[shortest])], filter=among(some),
                    limit=len(some), output_fields=columns, anns_field=shortest, timeout=timeout,
                    search_params={"metric_type": "HAMMING", "params": {}},
                )
            )  # fmt: skip
            with self._reading():
                (hits,) = found
                records = [hit["entity"] | {"id": hit["id"]} for hit in hits]
            yield from records


def _chunks(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    known = [i for i in dict.fromkeys(ids) if could_be_id(i)]
    return (known[start : start + size] for start in range(0, len(known), size))
