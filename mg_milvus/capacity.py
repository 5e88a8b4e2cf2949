"""How much so many pictures take, on Milvus Lite and on a server, and what to change when it does not fit.

Pure arithmetic over a schema. ``benchmarks/capacity.py`` fills Milvus Lite with up to a million rows and holds the
predictions against what is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mg_milvus.capacity_tables import parquet_row, pictures_table, regions_table
from mg_milvus.errors import QueryError
from mg_milvus.schema import Schema
from mg_milvus.schema_parts import PARTS
from mg_milvus.store.index_lists import fits, nlist_for, nprobe_for
from mg_milvus.store.lite_keys import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mg_milvus.capacity_tables import Table
    from mg_milvus.schema import StorageSettings

PICTURES_PER_SECOND = 195.0
"""Encoded by one machine: the encoder that ships, photographs of 384 x 256, two cores (benchmarks/ingest_rate.py)."""

PARTS_RATE = 0.92
"""Share of that rate where regions get codes too: 24 ms of processor time a photograph become 26, with 29 regions."""

_LITE_MEMORY = 10e6
"""Bytes of private memory of the process that serves an empty file of Milvus Lite."""
_LITE_MEMORY_READING = 100e6
"""Bytes that what rows are read through takes there at most (seen with 200,000 and with a million)."""
_SERVER = 0.7e9
"""Bytes of memory of a server that holds next to nothing (Milvus 2.3.5: 0.4 to 0.8 GB, by what it last did)."""
_HEADROOM = 1.3
"""Memory that a query node should have over what it holds: answers, growing segments, compaction."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that makes a server need less memory.

    Attributes:
        what: a sentence.
        memory: bytes of memory that a server then needs.
        disk: bytes that it then maps from its local disk.
    """

    what: str
    memory: float
    disk: float


@dataclass(frozen=True, slots=True)
class Collection:
    """The rows of one collection.

    Attributes:
        rows: their number.
        fields: column -> bytes of one row, before any overhead.
        segments: of a server.
        nlist: clusters of BIN_IVF_FLAT that fit the rows of a segment.
    """

    rows: int
    fields: Mapping[str, float]
    segments: int
    nlist: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What pictures take; bytes, of all of them, with their regions, unless it says otherwise.

    Attributes:
        pictures: their number.
        collections: of the pictures; and of their regions, where the schema has some.
        codes_folder: of ``mgm encode`` or ``mgm export``, without the encoder.
        lite_file: Milvus Lite's file, without the encoder.
        lite_memory: of the process that serves it, its own libraries aside.
        server_memory: of all query nodes together, all replicas, with headroom.
        server_disk: of codes that are mapped into memory from the nodes' own disks, all replicas.
        index: granularity -> bytes of its index on a server, one replica.
        encode_hours: wall time of all machines together.
        changes: what would make it fit into the memory that was given; empty when it fits.
        notes: what else to set, in sentences.
    """

    pictures: int
    collections: tuple[Collection, ...]
    codes_folder: float
    lite_file: float
    lite_memory: float
    server_memory: float
    server_disk: float
    index: Mapping[str, float]
    encode_hours: float
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        own = {name: getattr(self, name) for name in self.__slots__}
        changes = [{"what": c.what, "memory": round(c.memory), "disk": round(c.disk)} for c in self.changes]
        rounded = {
            name: round(value) if name.startswith(("lite", "server", "codes")) else value for name, value in own.items()
        }
        return rounded | {
            "collections": [{name: getattr(c, name) for name in c.__slots__} for c in self.collections],
            "changes": changes, "notes": list(self.notes), "encode_hours": round(self.encode_hours, 2),
        }  # fmt: skip


def plan(
    pictures: int,
    schema: Schema | None = None,
    *,
    path_bytes: int = 60,
    text_bytes: int = 32,
    pictures_per_second: float | None = None,
    machines: int = 1,
    memory: float | None = None,
) -> Plan:
    """What a collection of so many pictures takes.

    Args:
        pictures: rows.
        schema: what it holds; default: the default schema.
        path_bytes: of a typical path.
        text_bytes: of a typical value of a string field of one's own.
        pictures_per_second: that one machine encodes; default: what was measured.
        machines: that encode at once.
        memory: bytes that there are, of one server's query nodes together.

    Raises:
        QueryError: a number that makes no sense.
    """
    schema = schema or Schema()
    numbers = (pictures, path_bytes, text_bytes + 1, machines)
    if min(*numbers, 1 if pictures_per_second is None else pictures_per_second, 1 if memory is None else memory) <= 0:
        raise QueryError(
            f"pictures {pictures}, path_bytes {path_bytes}, text_bytes {text_bytes}, pictures_per_second "
            f"{pictures_per_second}, machines {machines}, memory {memory}: expected numbers above 0"
        )
    sizes = _Sizes(schema, pictures, path_bytes, text_bytes)
    collections = tuple(_collection(table, rows) for table, rows in sizes.filled)
    rate = pictures_per_second or PICTURES_PER_SECOND * (PARTS_RATE if schema.parts else 1)
    made = Plan(
        pictures, collections, pictures * parquet_row(schema, sizes.table), sizes.lite_file,
        sizes.lite_memory, sizes.memory, sizes.disk, sizes.index, pictures / rate / machines / 3600,
    )  # fmt: skip
    changes: tuple[Change, ...] = ()
    if memory is not None and made.server_memory > memory:
        changes = tuple(change for change in _changes(sizes) if change.memory < made.server_memory)
    return replace(made, changes=changes, notes=tuple(_notes(made, schema, memory)))


def _collection(table: Table, rows: int) -> Collection:
    a_segment = table.rows_a_segment(rows)
    sizes = {column.name: column.size for column in table.columns}
    return Collection(rows, sizes, math.ceil(rows / a_segment), nlist_for(a_segment))


class _Sizes:
    """Bytes of so many pictures with their regions."""

    def __init__(self, schema: Schema, pictures: int, path_bytes: float, text_bytes: float) -> None:
        self.schema, self.pictures, self._path, self._text = schema, pictures, path_bytes, text_bytes
        self.table = pictures_table(schema, path_bytes, text_bytes)
        self.regions = regions_table(schema, schema.parts) if schema.parts else None
        self.filled = [(self.table, pictures)]
        if schema.parts and self.regions:
            self.filled.append((self.regions, pictures * schema.parts.regions))

    def total(self, size: Callable[[Table], float]) -> float:
        """Of all rows of both collections."""
        return sum(rows * size(table) for table, rows in self.filled)

    @property
    def lite_file(self) -> float:
        """Of Milvus Lite's file."""
        return sum(rows * (table.lite + (table.lite_key if rows >= LARGE else 0)) for table, rows in self.filled)

    @property
    def lite_memory(self) -> float:
        """Of the process that serves Milvus Lite's file, when it has opened it."""
        half = self.total(lambda table: table.lite_memory) / 2
        return _LITE_MEMORY + half + min(half, _LITE_MEMORY_READING)

    @property
    def memory(self) -> float:
        """Of a server's query nodes together."""
        return (_SERVER + self.total(lambda table: table.memory) * _HEADROOM) * self.schema.storage.replicas

    @property
    def disk(self) -> float:
        """Mapped by a server's query nodes from their own disks."""
        return self.total(lambda table: table.mapped) * self.schema.storage.replicas

    @property
    def index(self) -> dict[str, float]:
        """Granularity -> bytes of its index on a server."""
        found = {c.name: self.pictures * self.table.index(c) for c in self.table.columns if c.kind == "code"}
        if self.regions:
            found[PARTS] = self.filled[1][1] * self.regions.index(self.regions.columns[-1])
        return found

    def changed(self, schema: Schema) -> _Sizes:
        """The same with another schema."""
        return _Sizes(schema, self.pictures, self._path, self._text)


def _changes(sizes: _Sizes) -> Iterator[Change]:
    """Each change alone; more and more granularities mapped, the largest first."""
    schema = sizes.schema

    def change(what: str, other: Schema) -> Change:
        then = sizes.changed(other)
        return Change(what, then.memory, then.disk)

    mapped = schema
    for largest in sorted(schema.granularities, key=lambda g: -g.bits):
        if not largest.mmap:
            mapped = mapped.model_copy(
                update={
                    "granularities": tuple(
                        g.model_copy(update={"mmap": True}) if g.name == largest.name else g
                        for g in mapped.granularities
                    )
                }
            )
            names = ", ".join(g.name for g in mapped.granularities if g.mmap)
            yield change(f"mmap: true for {names}: codes on the nodes' disks, queries that miss the cache wait", mapped)
    if schema.storage.replicas > 1:
        one = schema.storage.model_copy(update={"replicas": 1})
        yield change(
            "replicas: 1: half the queries at once, or none while a node restarts",
            schema.model_copy(update={"storage": one}),
        )
    if schema.fields:
        yield change("no fields of your own", schema.model_copy(update={"fields": ()}))
    if schema.parts is not None:
        yield change("no parts: no search for details", schema.model_copy(update={"parts": None}))
    compact = Schema.load("compact").granularities
    if sum(g.bits for g in compact) < sum(g.bits for g in schema.granularities):
        yield change(
            "the granularities of the preset compact (encode again)",
            schema.model_copy(update={"granularities": compact}),
        )


def _notes(made: Plan, schema: Schema, memory: float | None) -> Iterator[str]:
    if memory is not None:
        if made.server_memory > memory:
            nodes = math.ceil(made.server_memory / memory)
            yield f"or {nodes} query nodes with that memory each; Milvus spreads the segments over them"
            yield (
                "most of it are keys and columns, not codes: since Milvus 2.4 queryNode.mmap.scalarField: true in the "
                "server's own configuration keeps columns on disk (not measured here)"
            )
        else:
            yield "it fits into the memory of the server"
        if made.lite_memory > memory:
            yield "Milvus Lite does not fit into that memory"
    yield "the figures of a server are calculated; Milvus 2.3.5 was within 30 % of them at a million rows of one code"
    if made.pictures > 2_000_000:
        yield "Milvus Lite compares a question with every row: beyond some millions of pictures take a server"
    if schema.storage.index in {"auto", "BIN_IVF_FLAT"}:
        yield from _notes_of_lists(made, schema.storage)


def _notes_of_lists(made: Plan, storage: StorageSettings) -> Iterator[str]:
    """What ``nlist`` should be, where the schema says something else."""
    for collection, which in zip(made.collections, ("storage.nlist", "for regions storage.nlist"), strict=False):
        rows = collection.rows // collection.segments
        if not fits(storage.nlist, rows):
            share = nprobe_for(collection.nlist, storage.nlist, storage.nprobe)
            yield (
                f"{which} is {storage.nlist}; the {rows:,} rows of a segment ask for about {collection.nlist}, of "
                f"which a query then looks into {share}: mgm doctor --repair builds it again once the rows are there"
            )
