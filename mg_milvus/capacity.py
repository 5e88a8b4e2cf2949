"""``mgm plan``: bytes of a collection on Milvus Lite, on a server and in files of codes, and hours of encoding.

Each constant states its source; ``benchmarks/capacity.py`` fills Milvus Lite with up to a million rows and compares
the predictions with measurements.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mg_milvus.encoder.file import BUILTIN
from mg_milvus.errors import QueryError
from mg_milvus.schema.models import REGIONS, Schema
from mg_milvus.schema.tags import TAG_COLUMN
from mg_milvus.store.base import fits, nlist_for, nprobe_for, rows_a_segment
from mg_milvus.store.lite_workarounds import LARGE
from mg_milvus.store.rows import COPY, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mg_milvus.schema.models import RegionSettings, StorageSettings


# Milvus Lite 2.5.1 keeps a row as a protobuf message with the names of its columns, in pages of SQLite.
_LITE_COLUMN = 14
"""Bytes of a column beside its name and value (counted in a file)."""
_LITE_INT, _LITE_TAGS, _LITE_LONG = 3, 7, 9
"""Bytes of numbers there, without their leading zeros: of sizes; of tags; of times in nanoseconds, and of any."""
_LITE_ROW = 62 + 12
"""Bytes of a row beside its columns and a second copy of its key: RowID, Timestamp, and SQLite's own (counted)."""
_LITE_PAGE = 4096
_LITE_KEY, _LITE_KEYS_FULL = 9, 0.75
"""Overhead in bytes of a key in the index over the keys, and the fill factor of its pages: keys are unordered."""
_LITE_MEMORY_ROW, _LITE_MEMORY_TEXT, _LITE_MEMORY_COLUMN, _LITE_MEMORY_BYTE = 34, 76, 25, 2.5
"""Bytes of memory of a row, of each fixed text (id, path, hash), of each column, and of each byte in them, while a file
is opened (fitted to five schemas with 20,000 and 60,000 rows, and to 290,000 regions). Half of it is the rows, the
other half the buffers they are read through."""

# A Milvus server.
_IVF_ID = 8
"""Bytes of a row's number in a list of BIN_IVF_FLAT (counted: a FAISS index, serialised)."""
_SERVER_ROW, _SERVER_TEXT = 92, 33
"""Bytes of a row in memory beside its values, by the types that Milvus keeps them in: 16 for times and numbers, 72 for
the place of a key, 4 for the filter of keys; and of each text as an object. Predictions were within 30 % of Milvus
2.3.5 with 200,000 and with a million rows of one code; its memory for loading hides the rest."""

_PARQUET_ROW = 50
"""Bytes of the columns that every image has but the path, compressed: two random hashes of 16 bytes, size, time."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        name: its name.
        size: bytes of its value, before any overhead.
        kind: "text", "number" or "code".
        lite: bytes of its value in Milvus Lite's file.
        mapped: whether a server maps it from its disk.
    """

    name: str
    size: float
    kind: str
    lite: float
    mapped: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One row of a collection.

    Attributes:
        columns: the first is the key.
        listed: bytes of a row's number in the index of each code.
        copy: additional columns in Milvus Lite.
    """

    columns: tuple[Column, ...]
    listed: int
    copy: tuple[Column, ...] = ()

    @property
    def raw(self) -> float:
        """Bytes of all values."""
        return sum(column.size for column in self.columns)

    @property
    def lite(self) -> float:
        """In Milvus Lite's file: whole rows in a page of SQLite, as long as at least one fits."""
        held = (*self.columns, *self.copy)
        row = _LITE_ROW + self.columns[0].lite + sum(_LITE_COLUMN + len(c.name) + c.lite for c in held)
        in_page = (_LITE_PAGE - 8) // row
        return _LITE_PAGE / in_page if in_page else math.ceil(row / _LITE_PAGE) * _LITE_PAGE

    @property
    def lite_key(self) -> float:
        """In the index over the keys of a large collection in Milvus Lite's file."""
        return (self.columns[0].lite + _LITE_KEY) / _LITE_KEYS_FULL

    @property
    def lite_memory(self) -> float:
        """In the memory of the process that serves the file, while it is opened; half of it stays."""
        held = (*self.columns, *self.copy)
        texts = sum(column.name in {"id", "path", "content_hash", COPY} for column in held)
        row = _LITE_MEMORY_ROW + _LITE_MEMORY_TEXT * texts
        return row + _LITE_MEMORY_COLUMN * len(held) + _LITE_MEMORY_BYTE * sum(column.size for column in held)

    @property
    def memory(self) -> float:
        """In the memory of a server."""
        values = sum(column.size for column in self.columns if column.kind != "code")
        texts = sum(column.kind == "text" for column in self.columns)
        held = sum(self.index(column) for column in self.columns if column.kind == "code" and not column.mapped)
        return _SERVER_ROW + _SERVER_TEXT * texts + values + held

    @property
    def mapped(self) -> float:
        """Mapped by a server from its disk."""
        return sum(self.index(column) for column in self.columns if column.mapped)

    def index(self, column: Column) -> float:
        """One code in the index of a server."""
        return column.size + self.listed

    def rows_a_segment(self, rows: int) -> int:
        """Rows of a sealed segment of a server, when there are so many."""
        return rows_a_segment(rows, self.raw)


def images_table(schema: Schema, path_bytes: float, text_bytes: float) -> Table:
    """The row of an image, with paths and texts of these lengths."""
    own = {
        "string": lambda name: Column(name, text_bytes, "text", text_bytes),
        "int": lambda name: Column(name, 8, "number", _LITE_LONG),
        "float": lambda name: Column(name, 8, "number", _LITE_LONG),
        "bool": lambda name: Column(name, 1, "number", _LITE_INT),  # INT8, a byte in Milvus' memory and its estimates
    }
    copied = Layout(schema).copy.max_bytes
    return Table(
        (
            Column("id", 32, "text", 32),
            Column("path", path_bytes, "text", path_bytes),
            Column("size", 8, "number", _LITE_INT),
            Column("mtime_ns", 8, "number", _LITE_LONG),
            Column("taken", 8, "number", _LITE_LONG),
            Column("width", 8, "number", _LITE_INT),
            Column("height", 8, "number", _LITE_INT),
            Column("content_hash", 32, "text", 32),
            Column(TAG_COLUMN, 8, "number", _LITE_TAGS),
            *(own[field.type](field.name) for field in schema.fields),
            *(Column(g.name, g.bits // 8, "code", g.bits // 8, bool(g.mmap)) for g in schema.granularities),
        ),
        _listed(schema),
        (Column(COPY, copied, "text", copied),),
    )


def regions_table(schema: Schema, settings: RegionSettings) -> Table:
    """The row of a region, in the companion collection: its id is the image's and its number."""
    key = 33 + sum(len(str(number)) for number in range(settings.count)) / settings.count
    code = settings.bits // 8
    return Table(
        (Column("id", key, "text", key), Column("scale", 8, "number", 1), Column("code", code, "code", code)),
        _listed(schema),
    )


def parquet_row(schema: Schema, images: Table) -> float:
    """An image in files of codes: what is random does not get smaller, paths and texts to about a half."""
    fixed = {"id", "size", "mtime_ns", "taken", "width", "height", "content_hash", TAG_COLUMN}
    own = sum(c.size / 2 if c.kind == "text" else c.size for c in images.columns if c.name not in fixed)
    return _PARQUET_ROW + own + (schema.regions.bytes_per_image if schema.regions else 0)


def _listed(schema: Schema) -> int:
    return _IVF_ID if schema.storage.index in {"auto", "BIN_IVF_FLAT"} else 0


IMAGES_PER_SECOND = {"builtin": 81.0, "large": 48.0}
"""Encoder -> images that two cores encode a second, without 8-bit instructions (VNNI), photographs of 384 x 256:
2 over the seconds of processor time an image (benchmarks/results/encode_cost.json)."""

REGIONS_RATE = 0.92
"""Share of that rate where regions get codes too (there)."""

_LITE_MEMORY = 10e6
"""Bytes of private memory of the process that serves an empty file of Milvus Lite."""
_LITE_MEMORY_READING = 100e6
"""Most bytes of the buffers that rows are read through (measured with 200,000 and with a million rows)."""
_SERVER = 0.7e9
"""Bytes of memory of a nearly empty server (Milvus 2.3.5: 0.4 to 0.8 GB, depending on its recent work)."""
_HEADROOM = 1.3
"""Memory of a query node relative to its data: results, growing segments, compaction."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the schema that reduces a server's memory.

    Attributes:
        what: the change, in words.
        memory: bytes of memory that the server then needs.
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
    """What a collection takes; in bytes, for all images with their regions, unless stated otherwise.

    Attributes:
        images: their number.
        collections: of the images; and of their regions, where the schema has some.
        codes_folder: of ``mgm encode`` or ``mgm export``, without the encoder.
        lite_file: Milvus Lite's file, without the encoder.
        lite_memory: of the process that serves it, its own libraries aside.
        server_memory: of all query nodes together, all replicas, with headroom.
        server_disk: of codes that are mapped into memory from the nodes' own disks, all replicas.
        index: granularity -> bytes of its index on a server, one replica.
        images_per_second: encoded by one machine.
        encode_hours: wall time of all machines together.
        changes: changes that reduce the memory; empty if the plan fits into the given memory.
        notes: further advice, in sentences.
    """

    images: int
    collections: tuple[Collection, ...]
    codes_folder: float
    lite_file: float
    lite_memory: float
    server_memory: float
    server_disk: float
    index: Mapping[str, float]
    images_per_second: float
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
            "images_per_second": round(self.images_per_second, 1),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a plan assumes about the images and the machines.

    Attributes:
        path_bytes: length of a typical path.
        text_bytes: length of a typical value of a string field of the schema's own.
        images_per_second: images that one machine encodes; None: as measured.
        machines: that encode at the same time.
        memory: bytes of memory of the server's query nodes together; None: not known.
    """

    path_bytes: int = 60
    text_bytes: int = 32
    images_per_second: float | None = None
    machines: int = 1
    memory: float | None = None

    def check(self) -> None:
        """Raise QueryError unless all numbers are above 0 (``text_bytes``: not below)."""
        for name, value in asdict(self).items():
            if value is not None and value <= 0 and (name, value) != ("text_bytes", 0):
                raise QueryError(f"{name} is {value}, expected a number above 0")


def plan(images: int, schema: Schema | None = None, assumptions: Assumptions | None = None) -> Plan:
    """Compute what a collection of so many images takes; ``schema`` defaults to the default schema.

    Raises:
        QueryError: a number that is not above 0.
    """
    schema, assumptions = schema or Schema(), assumptions or Assumptions()
    if images <= 0:
        raise QueryError(f"images is {images}, expected a number above 0")
    assumptions.check()
    memory = assumptions.memory
    sizes = _Sizes(schema, images, assumptions.path_bytes, assumptions.text_bytes)
    collections = tuple(_collection(table, rows) for table, rows in sizes.filled)
    rate = assumptions.images_per_second or _rate(schema)
    draft = Plan(
        images, collections, images * parquet_row(schema, sizes.table), sizes.lite_file,
        sizes.lite_memory, sizes.memory, sizes.disk, sizes.index, rate, images / rate / assumptions.machines / 3600,
    )  # fmt: skip
    changes: tuple[Change, ...] = ()
    if memory is not None and draft.server_memory > memory:
        changes = tuple(change for change in _changes(sizes) if change.memory < draft.server_memory)
    notes = [*_notes(draft, schema, memory), *([] if assumptions.images_per_second else [_note_of_rate(schema)])]
    return replace(draft, changes=changes, notes=tuple(notes))


def _rate(schema: Schema) -> float:
    """Images that two cores encode a second; an encoder that was not measured counts as the default."""
    rate = IMAGES_PER_SECOND.get(schema.encoder.name, IMAGES_PER_SECOND[BUILTIN])
    return rate * (REGIONS_RATE if schema.regions else 1)


def _note_of_rate(schema: Schema) -> str:
    measured = schema.encoder.name if schema.encoder.name in IMAGES_PER_SECOND else BUILTIN
    return (
        f"the rate is that of the encoder '{measured}' on two cores without VNNI, photographs of 384 x 256; give "
        "--images-per-second as mgm encode reports it on your machine"
    )


def _collection(table: Table, rows: int) -> Collection:
    a_segment = table.rows_a_segment(rows)
    sizes = {column.name: column.size for column in table.columns}
    return Collection(rows, sizes, math.ceil(rows / a_segment), nlist_for(a_segment))


class _Sizes:
    """Bytes of so many images with their regions."""

    def __init__(self, schema: Schema, images: int, path_bytes: float, text_bytes: float) -> None:
        self.schema, self.images, self._path, self._text = schema, images, path_bytes, text_bytes
        self.table = images_table(schema, path_bytes, text_bytes)
        self.regions = regions_table(schema, schema.regions) if schema.regions else None
        self.filled = [(self.table, images)]
        if schema.regions and self.regions:
            self.filled.append((self.regions, images * schema.regions.count))

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
        found = {c.name: self.images * self.table.index(c) for c in self.table.columns if c.kind == "code"}
        if self.regions:
            found[REGIONS] = self.filled[1][1] * self.regions.index(self.regions.columns[-1])
        return found

    def changed(self, schema: Schema) -> _Sizes:
        """The same with another schema."""
        return _Sizes(schema, self.images, self._path, self._text)


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
    if schema.regions is not None:
        yield change("no regions: no search for details", schema.model_copy(update={"regions": None}))
    compact = Schema.load("compact").granularities
    if sum(g.bits for g in compact) < sum(g.bits for g in schema.granularities):
        yield change(
            "the granularities of the preset compact (encode again)",
            schema.model_copy(update={"granularities": compact}),
        )


def _notes(draft: Plan, schema: Schema, memory: float | None) -> Iterator[str]:
    if memory is not None:
        if draft.server_memory > memory:
            nodes = math.ceil(draft.server_memory / memory)
            yield f"or {nodes} query nodes with that memory each; Milvus spreads the segments over them"
            yield (
                "most of it are keys and columns, not codes: since Milvus 2.4 queryNode.mmap.scalarField: true in the "
                "server's own configuration keeps columns on disk (not measured here)"
            )
        else:
            yield "it fits into the memory of the server"
        if draft.lite_memory > memory:
            yield "Milvus Lite does not fit into that memory"
    yield "server values are calculated; Milvus 2.3.5 was within 30 % of them at a million rows of one code"
    if draft.images > 2_000_000:
        yield "Milvus Lite compares a query with every row: beyond some millions of images take a server"
    if schema.storage.index in {"auto", "BIN_IVF_FLAT"}:
        yield from _notes_of_lists(draft, schema.storage)


def _notes_of_lists(draft: Plan, storage: StorageSettings) -> Iterator[str]:
    """What ``nlist`` should be, where the schema says something else."""
    for collection, which in zip(draft.collections, ("storage.nlist", "for regions storage.nlist"), strict=False):
        rows = collection.rows // collection.segments
        if not fits(storage.nlist, rows):
            share = nprobe_for(collection.nlist, storage.nlist, storage.nprobe)
            yield (
                f"{which} is {storage.nlist}; the {rows:,} rows of a segment ask for about {collection.nlist}, of "
                f"which a query then looks into {share}: mgm doctor --repair builds it again once the rows are there"
            )
