"""Codes of regions: their records, checks shared by every store, and ``RegionTable``, their companion collection."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import ForeignCollectionError, QueryError, StoreError
from mg_milvus.files import one_line
from mg_milvus.schema.models import Granularity, region_id, scale_of
from mg_milvus.store import collections
from mg_milvus.store.collections import Column, NewCollection, encode_regions, own_description
from mg_milvus.store.filters import among
from mg_milvus.store.lite_workarounds import query_records
from mg_milvus.store.rows import MAX_DEPTH, hits_of, neighbours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.schema.models import RegionSettings
    from mg_milvus.store.base import Description, Neighbours, Row
    from mg_milvus.store.client import Connection
from mg_milvus.store.rows import Record

CODE = "code"
NO_REGIONS = "this collection has no codes of regions; ingest with a schema that has a section 'regions'"


def region_records(rows: Sequence[Row], settings: RegionSettings) -> list[Record]:
    """The records of the regions of images; rows without region codes give none.

    Raises:
        StoreError: a row's codes have another length than the schema's.
    """
    size, scales = settings.bits // 8, scale_of(settings.windows).tolist()
    records = []
    for row in rows:
        if not row.region_codes:
            continue
        if len(row.region_codes) != settings.bytes_per_image:
            raise StoreError(
                f"row {row.id}: {len(row.region_codes)} bytes of region codes, expected {settings.count} times {size}"
            )
        records += [
            {
                "id": region_id(row.id, number),
                "scale": scale,
                CODE: row.region_codes[number * size : (number + 1) * size],
            }
            for number, scale in enumerate(scales)
        ]
    return records


def check_region_id(text: str, regions: int) -> None:
    """Raise ValueError unless it is the id of one of this number of regions of an image."""
    image, _, number = text.rpartition(":")
    if not image or not re.fullmatch("[0-9]{1,6}", number) or int(number) >= regions:
        raise ValueError(f"{text!r} is not the id of a region")


def codes_of_regions(images: Sequence[str], stored: Mapping[str, bytes], regions: int) -> dict[str, bytes]:
    """Image id -> the codes of all its regions, one behind the other; images that lack some are left out.

    Args:
        images: their ids.
        stored: region id -> code.
        regions: of an image.
    """
    whole = {}
    for image in images:
        codes = [stored.get(region_id(image, number)) for number in range(regions)]
        there = [code for code in codes if code is not None]
        if len(there) == regions:
            whole[image] = b"".join(there)
    return whole


def check_details(settings: RegionSettings, scale: int, codes: Codes, depth: int) -> None:
    """Raise QueryError unless the regions of this scale can be searched for these codes."""
    if not 0 <= scale < len(settings.scales):
        raise QueryError(f"there is no scale {scale}, expected 0 to {len(settings.scales) - 1}")
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != settings.bits // 8:
        raise QueryError(
            f"codes of regions are {codes.dtype} of shape {codes.shape}, expected uint8 of (n, {settings.bits // 8})"
        )
    if not 1 <= depth <= MAX_DEPTH:
        raise QueryError(f"depth is {depth}, expected 1 to {MAX_DEPTH}")


_COLUMNS = (Column("id", "string", 64), Column("scale", "int"))
_ROWS_A_CALL = 5000


class RegionTable:
    """``Regions`` in Milvus."""

    def __init__(
        self, connection: Connection, collection: str, created_as: str, described: Callable[[], Description]
    ) -> None:
        self.name = f"{collection}_regions"
        self._connection, self._collection, self._created_as = connection.about(self.name), collection, created_as
        self._timeout, self._described = connection.timeout, described
        self._loaded: str | None = None
        self._nlist: int | None = None
        self._fields: list[dict[str, Any]] = []

    def check(self) -> str | None:
        """The JSON that describes the collection of regions; None if there is none.

        Raises:
            ForeignCollectionError: a collection of this name is something else.
        """
        text = collections.description_of(self._connection, self.name)
        if text is not None and not self._is_own(text):
            raise ForeignCollectionError(
                f"collection '{self.name}' is in the way of the regions of '{self._collection}': choose another name"
            )
        return text

    def create(self, description: Description) -> None:
        """Create it for a collection with regions, or use the existing one.

        Raises:
            ForeignCollectionError: a collection of this name is something else.
        """
        settings, wanted = description.schema.regions, encode_regions(self._created_as, description)
        if settings is None:
            return
        text = self.check()
        if text is not None and text != wanted:
            self.drop()  # left by a collection that another program dropped
            text = None
        if text is None:
            codes, storage = [Granularity(name=CODE, bits=settings.bits)], description.schema.storage
            collections.create(self._connection, NewCollection(self.name, wanted, _COLUMNS, codes, storage))
        self._load(description, settings)

    def load(self) -> None:
        """Load it, unless it is."""
        self._settings()

    def forget(self) -> None:
        """Describe the collection again before the next query."""
        self._loaded = None

    def drop(self) -> None:
        """Remove it, if it exists and is this collection's."""
        self._loaded = None
        text = collections.description_of(self._connection, self.name)
        if text is not None and self._is_own(text):
            client = self._connection.client
            self._connection.write(lambda: client.drop_collection(self.name, timeout=self._timeout))

    def upsert(self, rows: Sequence[Row]) -> None:
        """Write the regions of these images, if they have codes of regions."""
        if not any(row.region_codes for row in rows):
            return
        settings = self._settings()
        for start in range(0, len(rows), size := max(1, _ROWS_A_CALL // settings.count)):
            if records := region_records(rows[start : start + size], settings):
                self._connection.write(collections.upsert(self._connection, self.name, self._fields, records))

    def nearest(self, scale: int, codes: Codes, depth: int, images: Sequence[str] | None = None) -> list[Neighbours]:
        """See ``Regions``."""
        settings = self._settings()
        check_details(settings, scale, codes, depth)
        if images is None:
            return [neighbours(own) for own in self._search(codes, depth, f"scale == {scale}")]
        numbers = np.flatnonzero(scale_of(settings.windows) == scale).tolist()
        candidates: list[list[tuple[float, str]]] = [[] for _ in codes]
        size = max(1, MAX_DEPTH // len(numbers))
        for start in range(0, len(images), size):
            ids = [region_id(image, number) for image in images[start : start + size] for number in numbers]
            for own, more in zip(candidates, self._search(codes, len(ids), among(ids)), strict=True):
                own += more
        return [neighbours(own, depth) for own in candidates]

    def count(self) -> int:
        """See ``Regions``."""
        self._settings()
        return int(self._call(partial(collections.count_rows, self._connection, self.name)))

    def scan(self) -> Iterator[list[str]]:
        """See ``Regions``."""
        settings = self._settings()
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
                last = collections.check_progress(self._connection, last, records)
                with self._connection.reading():
                    ids = [str(record["id"]) for record in records]
                    for region in ids:
                        check_region_id(region, settings.count)
                yield ids
        finally:
            iterator.close()

    def codes(self, images: Sequence[str]) -> dict[str, bytes]:
        """See ``Regions``."""
        count = self._settings().count
        stored = self.codes_by_id([region_id(image, number) for image in images for number in range(count)])
        return codes_of_regions(images, stored, count)

    def codes_by_id(self, regions: Sequence[str]) -> dict[str, bytes]:
        """See ``Regions``. Milvus Lite looks ids up, while an iterator reads every row each time."""
        settings, client = self._settings(), self._connection.client
        stored: dict[str, bytes] = {}
        for start in range(0, len(regions), _ROWS_A_CALL):
            response = self._call(
                partial(
                    client.query, self.name, filter=among(regions[start : start + _ROWS_A_CALL]),
                    output_fields=["id", CODE], consistency_level="Strong", timeout=self._timeout,
                )
            )  # fmt: skip
            with self._connection.reading():
                for record in query_records(response):
                    stored[record["id"]] = code = record[CODE]
                    if type(code) is not bytes or len(code) != settings.bits // 8:
                        raise ValueError(f"region {record['id']!r} has no code of {settings.bits // 8} bytes")
        return stored

    def delete(self, images: Sequence[str]) -> None:
        """See ``Regions``."""
        settings, client = self._settings(), self._connection.client
        size = max(1, _ROWS_A_CALL // settings.count)
        for start in range(0, len(images), size):
            ids = [region_id(image, n) for image in images[start : start + size] for n in range(settings.count)]
            self._connection.write(partial(client.delete, self.name, filter=among(ids), timeout=self._timeout))

    def _search(self, codes: Codes, depth: int, where: str) -> list[list[tuple[float, str]]]:
        client = self._connection.client
        parameters = self._connection.engine.search(self._described().schema, depth, self._nlist)
        bits, regions = 8 * codes.shape[1], self._settings().count
        results = self._call(
            lambda: client.search(
                self.name, [code.tobytes() for code in codes], filter=where, limit=depth, search_params=parameters,
                anns_field=CODE, timeout=self._timeout,
            )
        )  # fmt: skip
        with self._connection.reading():
            found = [hits_of(hits, bits, depth) for _, hits in zip(codes, results, strict=True)]
            for _, region in (hit for own in found for hit in own):
                check_region_id(region, regions)
        return found

    def _settings(self) -> RegionSettings:
        """The collection's settings of regions; their table is loaded now."""
        description = self._described()
        if description.schema.regions is None:
            raise QueryError(NO_REGIONS)
        self._load(description, description.schema.regions)
        return description.schema.regions

    def _load(self, description: Description, settings: RegionSettings) -> None:
        wanted = encode_regions(self._created_as, description)
        if self._loaded == wanted:
            return
        text = collections.description_of(self._connection, self.name)
        remedy = "ingest the images again, or ask without regions"
        if text is None:
            raise StoreError(f"collection '{self.name}', which holds the codes of regions, is missing: {remedy}")
        if text != wanted:
            filled_by = one_line(str((own_description(text) or {}).get("fingerprint", "something else")), 40)
            raise StoreError(
                f"collection '{self.name}' holds regions of the encoder {filled_by}, but '{self._collection}' was "
                f"filled by {description.fingerprint}: {remedy}"
            )
        index = self._connection.engine.index(description.schema)
        replicas = description.schema.storage.replicas
        collections.index_and_load(self._connection, self.name, {CODE: None}, index, replicas)
        self._nlist = collections.index_nlists(self._connection, self.name, [CODE]).get(CODE)
        self._fields = collections.describe_fields(self._connection, self.name, _COLUMNS, {CODE: settings.bits // 8})
        self._loaded = wanted

    def _is_own(self, text: str) -> bool:
        return (own_description(text) or {}).get("regions_of") == self._created_as

    def _call(self, operation: Callable[[], Any]) -> Any:
        return self._connection.call(operation)
