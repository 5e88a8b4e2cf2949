"""Codes of regions: the collection ``<collection>_parts``, a row a region.

A row is the region's id (the picture's id and the window's number), the place of its scale in the schema, and the code.
The box follows from the window and the picture's size, so it is not written a second time: on Milvus Lite rows of three
columns are written twice as fast as rows that also hold the box.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.display import one_line
from mg_milvus.errors import ForeignCollectionError, QueryError, StoreError
from mg_milvus.regions import region_id, scale_of
from mg_milvus.schema import Granularity
from mg_milvus.store import tables
from mg_milvus.store.description import encode_regions, own_description
from mg_milvus.store.filters import among
from mg_milvus.store.layout import MAX_DEPTH, Column, hits_of, neighbours
from mg_milvus.store.region_layout import CODE, NO_REGIONS, check_details, check_region_id, parts_of, region_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.schema_parts import PartsSettings
    from mg_milvus.store import Description, Neighbours, Row
    from mg_milvus.store.connection import Connection

_COLUMNS = (Column("id", "string", 64), Column("scale", "int"))
_ROWS_A_CALL = 5000


class RegionTable:
    """``Regions`` in Milvus."""

    def __init__(
        self, connection: Connection, collection: str, timeout: float, described: Callable[[], Description]
    ) -> None:
        self._connection, self._collection, self._timeout = connection, collection, timeout
        self._described = described
        self.name = f"{collection}_parts"
        self._loaded: str | None = None
        self._nlist: int | None = None
        self._fields: list[dict[str, Any]] = []

    def create(self, description: Description) -> None:
        """Make it for a collection that has regions, or go on with the one that is there.

        Raises:
            ForeignCollectionError: a collection of this name is something else.
        """
        parts, wanted = description.schema.parts, encode_regions(self._collection, description)
        if parts is None:
            return
        text = tables.described(self._connection, self.name)
        if text is not None and not self._is_own(text):
            raise ForeignCollectionError(
                f"collection '{self.name}' is in the way of the regions of '{self._collection}': choose another name"
            )
        if text is not None and text != wanted:
            self.drop()  # left behind by a collection that was dropped in another way
            text = None
        if text is None:
            tables.create(
                self._connection, self.name, wanted, _COLUMNS, [Granularity(name=CODE, bits=parts.bits)],
                description.schema.storage,
            )  # fmt: skip
        self._load(description, parts)

    def forget(self) -> None:
        """Look at the collection anew before the next question."""
        self._loaded = None

    def drop(self) -> None:
        """Remove it. No error when there is none, or another's."""
        self._loaded = None
        text = tables.described(self._connection, self.name)
        if text is not None and self._is_own(text):
            client = self._connection.client
            self._connection.border.write(lambda: client.drop_collection(self.name, timeout=self._timeout))

    def upsert(self, rows: Sequence[Row]) -> None:
        """Write the regions of these pictures, where they bring some."""
        if not any(row.parts for row in rows):
            return
        parts = self._parts()
        for start in range(0, len(rows), size := max(1, _ROWS_A_CALL // parts.regions)):
            if records := region_records(rows[start : start + size], parts):
                self._connection.border.write(tables.upsert(self._connection, self.name, self._fields, records))

    def nearest(self, scale: int, codes: Codes, depth: int, pictures: Sequence[str] | None = None) -> list[Neighbours]:
        """See ``Regions``."""
        parts = self._parts()
        check_details(parts, scale, codes, depth)
        if pictures is None:
            return [neighbours(own) for own in self._search(codes, depth, f"scale == {scale}")]
        numbers = np.flatnonzero(scale_of(parts.windows) == scale).tolist()
        found: list[list[tuple[float, str]]] = [[] for _ in codes]
        size = max(1, MAX_DEPTH // len(numbers))
        for start in range(0, len(pictures), size):
            ids = [region_id(picture, number) for picture in pictures[start : start + size] for number in numbers]
            for own, more in zip(found, self._search(codes, len(ids), among(ids)), strict=True):
                own += more
        return [neighbours(own, depth) for own in found]

    def count(self) -> int:
        """See ``Regions``."""
        self._parts()
        return int(self._call(partial(tables.counted, self._connection, self.name)))

    def scan(self) -> Iterator[list[str]]:
        """See ``Regions``."""
        parts = self._parts()
        client = self._connection.client
        iterator = self._call(
            lambda: client.query_iterator(
                self.name, batch_size=_ROWS_A_CALL, filter="", output_fields=["id"], timeout=self._timeout,
                consistency_level="Strong",
            )
        )  # fmt: skip
        last = ""
        try:
            while records := self._call(iterator.next):
                last = tables.went_on(self._connection, last, records)
                with self._connection.border.reading():
                    ids = [str(record["id"]) for record in records]
                    for region in ids:
                        check_region_id(region, parts.regions)
                yield ids
        finally:
            iterator.close()

    def codes(self, pictures: Sequence[str]) -> dict[str, bytes]:
        """See ``Regions``. By ids, which Milvus Lite finds at once, where an iterator looks at every row each time."""
        parts, client = self._parts(), self._connection.client
        found: dict[str, bytes] = {}
        size = max(1, _ROWS_A_CALL // parts.regions)
        for start in range(0, len(pictures), size):
            ids = [region_id(picture, n) for picture in pictures[start : start + size] for n in range(parts.regions)]
            answer = self._call(
                partial(
                    client.query, self.name, filter=among(ids), output_fields=["id", CODE],
                    consistency_level="Strong", timeout=self._timeout,
                )
            )  # fmt: skip
            with self._connection.border.reading():
                for record in tables.records(answer):
                    found[record["id"]] = code = record[CODE]
                    if type(code) is not bytes or len(code) != parts.bits // 8:
                        raise ValueError(f"region {record['id']!r} has no code of {parts.bits // 8} bytes")
        return parts_of(pictures, found, parts.regions)

    def delete(self, pictures: Sequence[str]) -> None:
        """See ``Regions``."""
        parts, client = self._parts(), self._connection.client
        size = max(1, _ROWS_A_CALL // parts.regions)
        for start in range(0, len(pictures), size):
            ids = [region_id(picture, n) for picture in pictures[start : start + size] for n in range(parts.regions)]
            self._connection.border.write(partial(client.delete, self.name, filter=among(ids), timeout=self._timeout))

    def _search(self, codes: Codes, depth: int, where: str) -> list[list[tuple[float, str]]]:
        client = self._connection.client
        parameters = self._connection.engine.search(self._described().schema, depth, self._nlist)
        bits, regions = 8 * codes.shape[1], self._parts().regions
        results = self._call(
            lambda: client.search(
                self.name, [code.tobytes() for code in codes], filter=where, limit=depth, search_params=parameters,
                anns_field=CODE, timeout=self._timeout,
            )
        )  # fmt: skip
        with self._connection.border.reading():
            found = [hits_of(hits, bits, depth) for _, hits in zip(codes, results, strict=True)]
            for _, region in (hit for own in found for hit in own):
                check_region_id(region, regions)
        return found

    def _parts(self) -> PartsSettings:
        """The regions that the collection has; their table is loaded now."""
        description = self._described()
        if description.schema.parts is None:
            raise QueryError(NO_REGIONS)
        self._load(description, description.schema.parts)
        return description.schema.parts

    def _load(self, description: Description, parts: PartsSettings) -> None:
        wanted = encode_regions(self._collection, description)
        if self._loaded == wanted:
            return
        text = tables.described(self._connection, self.name)
        remedy = "ingest the pictures again, or ask without parts"
        if text is None:
            raise StoreError(f"collection '{self.name}', which holds the codes of regions, is missing: {remedy}")
        if text != wanted:
            made = one_line(str((own_description(text) or {}).get("fingerprint", "something else")), 40)
            raise StoreError(
                f"collection '{self.name}' holds regions of the encoder {made}, but '{self._collection}' was filled "
                f"by {description.fingerprint}: {remedy}"
            )
        index = self._connection.engine.index(description.schema)
        tables.prepare(self._connection, self.name, [CODE], index, description.schema.storage.replicas)
        self._nlist = tables.lists(self._connection, self.name, [CODE]).get(CODE)
        self._fields = tables.fields(self._connection, self.name, _COLUMNS, {CODE: parts.bits // 8})
        self._loaded = wanted

    def _is_own(self, text: str) -> bool:
        return (own_description(text) or {}).get("regions_of") == self._collection

    def _call(self, operation: Callable[[], Any]) -> Any:
        return self._connection.border.call(operation)
