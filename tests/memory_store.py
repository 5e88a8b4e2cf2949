"""An exact store in memory that tests open as ``memory:``; ``install`` makes ``open_store`` know it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.errors import CollectionNotFoundError, QueryError, StoreError, UnsupportedError
from mg_milvus.schema.models import region_id, split_id
from mg_milvus.store import milvus
from mg_milvus.store.base import Description, HybridSearch, IndexLists, Neighbours, Row
from mg_milvus.store.collections import decode_description, encode_description, extended, tuned
from mg_milvus.store.regions import CODE, NO_REGIONS, check_details, codes_of_regions, region_records
from mg_milvus.store.rows import MISSING, Layout, Record, check_collection_name, neighbours, value_of
from tests.memory_filters import compile_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.config import MilvusConfig
    from mg_milvus.schema.models import ExtraField, FusionSettings, RegionSettings, Schema
    from mg_milvus.store.base import Store

_BATCH = 1000
_connect = milvus.open_store


def install() -> None:
    """Let ``open_store`` open ``memory:``; call it before other modules import ``open_store`` by name."""
    milvus.open_store = open_store


def open_store(config: MilvusConfig) -> Store:
    """Open a store in memory for ``memory:``, and what the package opens for other URIs."""
    return (
        MemoryStore("images" if config.collection is None else config.collection)
        if config.uri == "memory:"
        else _connect(config)
    )


class MemoryStore:
    """``Store`` in a dictionary. Each instance is a database of its own."""

    def __init__(self, collection: str) -> None:
        self.uri = "memory:"
        self.collection = check_collection_name(collection)
        self._lock = threading.RLock()
        self._description: str | None = None
        self._added: tuple[str, ...] = ()
        self._records: dict[str, Record] = {}
        self._sorted: tuple[dict[str, Record], list[Record]] = (self._records, [])
        self._encoders: dict[str, bytes] = {}
        self._statistics: bytes | None = None
        self._clusters: bytes | None = None
        self._closed = False
        self.regions = MemoryRegions(self._settings)
        self.indexes = NoIndexes()

    def describe(self) -> Description | None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            if self._description is None:
                return None
            return replace(decode_description(self._description, self.collection), added=self._added)

    def identity(self) -> object:
        """See ``Store``."""
        return self._description

    def check(self, schema: Schema) -> None:
        """See ``Store``."""

    def create(self, description: Description) -> Description:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            if self._description is None:
                self._description, self._added = encode_description(description), description.added
            return decode_description(self._description, self.collection)

    def retune(self, weights: Mapping[str, float], fusion: FusionSettings) -> Description:
        """See ``Store``."""
        with self._lock:
            changed = tuned(self._existing(), weights, fusion)
            self._description = encode_description(changed)
            return changed

    def add_columns(self, fields: Sequence[ExtraField]) -> Description:
        """See ``Store``. Added columns are kept as all others."""
        with self._lock:
            before = self._existing()
            changed = extended(before, fields)
            self._description, self._added = encode_description(changed), changed.added
            new = [field.name for field in changed.schema.fields[len(before.schema.fields) :]]
            missing = {
                column.name: MISSING[column.type] for column in Layout(changed.schema).extras if column.name in new
            }
            self._records = {row_id: record | missing for row_id, record in self._records.items()}
            return changed

    @property
    def refit_name(self) -> str:
        """See ``Store``. Each instance is a database of its own, so a refit cannot take the place of another one."""
        raise UnsupportedError("a store in memory holds one collection")

    def begin_refit(self) -> None:
        """See ``Store``."""

    def take_over(self) -> bool:
        """See ``Store``."""
        return False

    def drop(self) -> None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            self._description, self._added = None, ()
            self._records = {}
            self._encoders, self._statistics, self._clusters = {}, None, None
            self.regions.clear()

    def upsert(self, rows: Sequence[Row]) -> None:
        """See ``Store``."""
        records = self._layout().records(rows)
        with self._lock:
            if any(row.region_codes for row in rows):
                self.regions.add(rows)
            self._records = self._records | {record["id"]: record for record in records}

    def nearest(
        self,
        granularity: str,
        codes: Codes,
        depth: int,
        where: str | None = None,
        *,
        known: dict[str, Mapping[str, bytes]] | None = None,
    ) -> list[Neighbours]:
        """See ``Store``."""
        layout = self._layout()
        layout.check_codes(granularity, codes)
        layout.check_depth(depth)
        records = self._matching(layout, where)
        ids = [record["id"] for record in records]
        database = np.frombuffer(b"".join(record[granularity] for record in records), np.uint8)
        database = database.reshape(len(records), layout.bytes[granularity])
        found = []
        for code in codes:
            distances = hamming(code[None], database)[0]
            order = np.argsort(distances, kind="stable")[:depth]  # records are sorted by id: so are ties
            found.append(Neighbours([ids[i] for i in order], distances[order]))
            if known is not None:
                known |= {ids[i]: layout.codes(records[i], tuple(layout.bytes)) for i in order if ids[i] not in known}
        return found

    def hybrid(self, codes: Mapping[str, Codes], search: HybridSearch) -> list[list[tuple[str, float]]]:
        """See ``Store``."""
        layout, weights, k = self._layout(), search.weights, search.k
        used = layout.check_hybrid(codes, weights, k)
        scores: list[dict[str, float]] = [{} for _ in range(len(codes[used[0]]))]
        for name in used:
            for score, found in zip(scores, self.nearest(name, codes[name], search.depth, search.where), strict=True):
                for rank, row_id in enumerate(found.ids, 1):
                    score[row_id] = score.get(row_id, 0.0) + weights[name] / (search.rrf_k + rank)
        return [sorted(score.items(), key=lambda item: (-item[1], item[0]))[:k] for score in scores]

    def fetch(self, ids: Sequence[str], granularities: Sequence[str] = ()) -> dict[str, Row]:
        """See ``Store``."""
        layout = self._layout()
        layout.output_fields(granularities)
        records = self._records
        return {row_id: layout.row(records[row_id], granularities) for row_id in ids if row_id in records}

    def fetch_codes(self, ids: Sequence[str], granularities: Sequence[str]) -> dict[str, Mapping[str, bytes]]:
        """See ``Store``."""
        self._layout().output_fields(granularities)
        records = self._records
        return {i: {name: records[i][name] for name in granularities} for i in ids if i in records}

    def scan(self, where: str | None = None, granularities: Sequence[str] = ()) -> Iterator[list[Row]]:
        """See ``Store``."""
        layout = self._layout()
        layout.output_fields(granularities)
        records = self._matching(layout, where)
        for start in range(0, len(records), _BATCH):
            yield [layout.row(record, granularities) for record in records[start : start + _BATCH]]

    def values(self, columns: Sequence[str], where: str | None = None) -> Iterator[list[tuple[Any, ...]]]:
        """See ``Store``."""
        for rows in self.scan(where):
            yield [
                tuple(row.fields[name] if name in row.fields else getattr(row, name) for name in columns)
                for row in rows
            ]

    def count(self, where: str | None = None) -> int:
        """See ``Store``."""
        return len(self._matching(self._layout(), where))

    def size(self) -> int:
        """See ``Store``."""
        return self.count()

    def delete(self, ids: Sequence[str]) -> int:
        """See ``Store``."""
        self._layout()
        gone = set(ids)
        with self._lock:
            before = len(self._records)
            self._records = {row_id: record for row_id, record in self._records.items() if row_id not in gone}
            if self._existing().schema.regions:
                self.regions.delete(ids)
            return before - len(self._records)

    def put_encoder(self, fingerprint: str, data: bytes) -> None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            self._encoders[fingerprint] = data

    def get_encoder(self, fingerprint: str) -> bytes | None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            return self._encoders.get(fingerprint)

    def drop_encoder(self, fingerprint: str) -> None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            self._encoders.pop(fingerprint, None)

    def put_statistics(self, data: bytes) -> None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            self._statistics = data

    def get_statistics(self) -> bytes | None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            return self._statistics

    def put_clusters(self, data: bytes) -> None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            self._clusters = data

    def get_clusters(self) -> bytes | None:
        """See ``Store``."""
        with self._lock:
            self._check_open()
            return self._clusters

    def collections(self) -> list[str]:
        """See ``Store``."""
        return [] if self.describe() is None else [self.collection]

    def server(self) -> str:
        """See ``Store``."""
        return "memory"

    def close(self) -> None:
        """See ``Store``."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the connection to {self.uri} was closed: open it again")

    def _settings(self) -> RegionSettings:
        settings = self._existing().schema.regions
        if settings is None:
            raise QueryError(NO_REGIONS)
        return settings

    def _existing(self) -> Description:
        description = self.describe()
        if description is None:
            raise CollectionNotFoundError(f"there is no collection '{self.collection}' in memory: ingest first")
        return description

    def _layout(self) -> Layout:
        return Layout(self._existing().schema)

    def _matching(self, layout: Layout, where: str | None) -> list[Record]:
        """The records that match, sorted by id. Writers replace the dictionary, so readers need no lock."""
        known, records = self._sorted
        if known is not self._records:
            known = self._records
            records = [record for _, record in sorted(known.items())]
            self._sorted = known, records
        if not where:
            return records
        matches = compile_filter(where, Layout(layout.schema, self._added).filterable)
        return [
            record
            for record in records
            if matches(record | {column.name: value_of(column, record[column.name]) for column in layout.extras})
        ]


class NoIndexes:
    """``Indexes`` where every query is compared with every row."""

    def lists(self) -> list[IndexLists]:
        """See ``Indexes``."""
        return []

    def rebuild(self, collection: str, nlist: int) -> None:
        """See ``Indexes``."""

    def refresh(self) -> None:
        """See ``Indexes``."""


class MemoryRegions:
    """``Regions`` in a dictionary."""

    def __init__(self, settings: Callable[[], RegionSettings]) -> None:
        self._settings = settings
        self._records: dict[str, Record] = {}

    def add(self, rows: Sequence[Row]) -> None:
        """Write the regions of these images."""
        self._records = self._records | {r["id"]: r for r in region_records(rows, self._settings())}

    def clear(self) -> None:
        """Forget all."""
        self._records = {}

    def nearest(self, scale: int, codes: Codes, depth: int, images: Sequence[str] | None = None) -> list[Neighbours]:
        """See ``Regions``."""
        settings = self._settings()
        check_details(settings, scale, codes, depth)
        chosen = None if images is None else set(images)
        records = [
            record
            for record in self._records.values()
            if record["scale"] == scale and (chosen is None or split_id(record["id"])[0] in chosen)
        ]
        database = np.frombuffer(b"".join(record["code"] for record in records), np.uint8)
        distances = hamming(codes, database.reshape(len(records), settings.bits // 8))
        ids = [record["id"] for record in records]
        return [neighbours(zip(own.tolist(), ids, strict=True), depth) for own in distances]

    def count(self) -> int:
        """See ``Regions``."""
        self._settings()
        return len(self._records)

    def scan(self) -> Iterator[list[str]]:
        """See ``Regions``."""
        self._settings()
        yield list(self._records)

    def codes(self, images: Sequence[str]) -> dict[str, bytes]:
        """See ``Regions``."""
        count = self._settings().count
        stored = self.codes_by_id([region_id(image, number) for image in images for number in range(count)])
        return codes_of_regions(images, stored, count)

    def codes_by_id(self, regions: Sequence[str]) -> dict[str, bytes]:
        """See ``Regions``."""
        self._settings()
        return {i: self._records[i][CODE] for i in regions if i in self._records}

    def delete(self, images: Sequence[str]) -> None:
        """See ``Regions``."""
        self._settings()
        gone = set(images)
        self._records = {i: record for i, record in self._records.items() if split_id(i)[0] not in gone}
