"""How much so many pictures take, on Milvus Lite and on a server, and what to change when it does not fit.

Pure arithmetic over a schema. Each constant says where it comes from; ``benchmarks/capacity.py`` fills Milvus Lite with
up to a million rows and holds the predictions against what is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import QueryError
from mg_milvus.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PICTURES_PER_SECOND = 195.0
"""Encoded by one machine: the encoder that ships, photographs of 384 x 256, two cores (benchmarks/ingest_rate.py)."""

_FIXED = {"id": 32, "size": 8, "mtime_ns": 8, "width": 8, "height": 8, "content_hash": 32}
"""Bytes of the columns that every row has, beside the path."""

# Milvus Lite 2.5.1 keeps a row as a protobuf message with the names of its columns, in pages of SQLite.
_LITE_COLUMN = 14
"""Bytes of a column beside its name and value (counted in a file)."""
_LITE_INT, _LITE_LONG = 3, 9
"""Bytes of numbers there: of sizes, which are written without their zeros; of times in nanoseconds, and of any."""
_LITE_ROW = 62 + 32 + 12
"""Bytes of a row beside its columns: RowID and Timestamp, the key once more, SQLite's own (counted in a file)."""
_LITE_PAGE = 4096
_LITE_MEMORY = 10e6
"""Bytes of private memory of the process that serves an empty file."""
_LITE_MEMORY_ROW, _LITE_MEMORY_COLUMN, _LITE_MEMORY_BYTE = 262, 25, 2.5
"""Bytes of a row, of each of its columns, and of each byte in them, while a file is opened (fitted to five schemas with
20,000 and 60,000 rows). Half of it are the rows; the other half is what they were read through."""
_LITE_MEMORY_READING = 100e6
"""Bytes that the other half has at most, whatever the number of rows (seen with 200,000 and with a million)."""

# A Milvus server.
_IVF_ID = 8
"""Bytes of a row's number in a list of BIN_IVF_FLAT (counted: a FAISS index, serialised)."""
_SEGMENT = 1 << 30
"""Bytes of rows in a sealed segment (dataCoord.segment.maxSize); each has an index of its own."""
_SERVER = 0.7e9
"""Bytes of memory of a server that holds next to nothing (Milvus 2.3.5: 0.4 to 0.8 GB, by what it last did)."""
_SERVER_ROW = 192
"""Bytes of a row in memory beside its values, by the types that Milvus keeps them in: 16 for times and numbers, 72 for
the place of a key, 100 for three texts as objects, 4 for the filter of keys. What comes of it was within 30 % of Milvus
2.3.5 with 200,000 and with a million rows of one code, whose own memory for loading hides the rest."""
_HEADROOM = 1.3
"""Memory that a query node should have over what it holds: answers, growing segments, compaction."""

_PARQUET_ROW = 50
"""Bytes of the columns that every row has but the path, compressed: two random hashes of 16 bytes, size and time."""


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
class Plan:
    """What a collection takes; bytes, of all pictures unless it says otherwise.

    Attributes:
        pictures: rows.
        fields: column -> bytes of one picture, before any overhead.
        codes_folder: of ``mgm encode`` or ``mgm export``, without the encoder.
        lite_file: Milvus Lite's file, without the encoder.
        lite_memory: of the process that serves it, its own libraries aside.
        server_memory: of all query nodes together, all replicas, with headroom.
        server_disk: of codes that are mapped into memory from the nodes' own disks, all replicas.
        index: granularity -> bytes of its index on a server, one replica.
        segments: of a server.
        nlist: clusters of BIN_IVF_FLAT that fit the rows of a segment.
        encode_hours: wall time of all machines together.
        changes: what would make it fit into the memory that was given; empty when it fits.
        notes: what else to set, in sentences.
    """

    pictures: int
    fields: Mapping[str, float]
    codes_folder: float
    lite_file: float
    lite_memory: float
    server_memory: float
    server_disk: float
    index: Mapping[str, float]
    segments: int
    nlist: int
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
        return rounded | {"changes": changes, "notes": list(self.notes), "encode_hours": round(self.encode_hours, 2)}


def plan(
    pictures: int,
    schema: Schema | None = None,
    *,
    path_bytes: int = 60,
    text_bytes: int = 32,
    pictures_per_second: float = PICTURES_PER_SECOND,
    machines: int = 1,
    memory: float | None = None,
) -> Plan:
    """What a collection of so many pictures takes.

    Args:
        pictures: rows.
        schema: what it holds; default: the default schema.
        path_bytes: of a typical path.
        text_bytes: of a typical value of a string field of one's own.
        pictures_per_second: that one machine encodes.
        machines: that encode at once.
        memory: bytes that there are, of one server's query nodes together.

    Raises:
        QueryError: a number that makes no sense.
    """
    schema = schema or Schema()
    if min(pictures, path_bytes, text_bytes + 1, pictures_per_second, machines) <= 0 or (memory or 1) <= 0:
        raise QueryError(
            f"pictures {pictures}, path_bytes {path_bytes}, text_bytes {text_bytes}, pictures_per_second "
            f"{pictures_per_second}, machines {machines}, memory {memory}: expected numbers above 0"
        )
    if schema.parts is not None:
        raise QueryError(
            f"a plan counts the codes of whole pictures, not those of {schema.parts.regions} regions a picture: they "
            f"are {pictures * schema.parts.regions:,} rows more; plan with a schema without parts"
        )
    sizes = _Sizes(schema, path_bytes, text_bytes)
    rows_a_segment = min(pictures, max(1, int(_SEGMENT / sizes.raw)))
    made = Plan(
        pictures, sizes.fields, pictures * sizes.parquet, pictures * sizes.lite,
        sizes.lite_memory(pictures), sizes.memory(pictures), sizes.disk(pictures),
        {g.name: pictures * sizes.index(g.bits // 8) for g in schema.granularities},
        math.ceil(pictures / rows_a_segment), nlist_for(rows_a_segment),
        pictures / pictures_per_second / machines / 3600,
    )  # fmt: skip
    changes: tuple[Change, ...] = ()
    if memory is not None and made.server_memory > memory:
        changes = tuple(change for change in _changes(pictures, sizes) if change.memory < made.server_memory)
    return replace(made, changes=changes, notes=tuple(_notes(made, schema, memory)))


def nlist_for(rows: int) -> int:
    """Clusters of BIN_IVF_FLAT for the rows of one segment: 4 times their root, as FAISS advises; 1 to 65,536."""
    return min(65_536, max(1, round(4 * math.sqrt(rows))))


class _Sizes:
    """Bytes of one row."""

    def __init__(self, schema: Schema, path_bytes: int, text_bytes: int) -> None:
        self.schema, self._path, self._text = schema, path_bytes, text_bytes
        widths: dict[str, float] = {"string": text_bytes, "int": 8, "float": 8, "bool": 1}
        own = {f.name: widths[f.type] for f in schema.fields}
        self.codes = {g.name: g.bits // 8 for g in schema.granularities}
        self.strings = {"id": 32, "path": path_bytes, "content_hash": 32} | {
            f.name: text_bytes for f in schema.fields if f.type == "string"
        }
        self.fields: dict[str, float] = {"path": path_bytes, **_FIXED, **own, **self.codes}
        self.raw = sum(self.fields.values())

    @property
    def parquet(self) -> float:
        """In files of codes: what is random does not get smaller, paths and texts to about a half."""
        texts = sum(size for name, size in self.strings.items() if name not in _FIXED)
        others = sum(size for name, size in self.fields.items() if name not in {*_FIXED, *self.strings, *self.codes})
        return _PARQUET_ROW + sum(self.codes.values()) + texts / 2 + others

    @property
    def lite(self) -> float:
        """In Milvus Lite's file: whole rows in a page of SQLite, as long as at least one fits."""
        row = _LITE_ROW + sum(_LITE_COLUMN + len(name) + self._in_lite(name) for name in self.fields)
        in_page = (_LITE_PAGE - 8) // row
        return _LITE_PAGE / in_page if in_page else math.ceil(row / _LITE_PAGE) * _LITE_PAGE

    def _in_lite(self, name: str) -> float:
        if name in self.strings or name in self.codes:
            return self.fields[name]
        is_long = name == "mtime_ns" or (name not in _FIXED and self.fields[name] == 8)
        return _LITE_LONG if is_long else _LITE_INT

    def lite_memory(self, pictures: int) -> float:
        """Of the process that serves Milvus Lite's file, when it has opened it."""
        row = _LITE_MEMORY_ROW + _LITE_MEMORY_COLUMN * len(self.fields) + _LITE_MEMORY_BYTE * self.raw
        half = pictures * row / 2
        return _LITE_MEMORY + half + min(half, _LITE_MEMORY_READING)

    def index(self, width: int) -> float:
        """One code in the index of a server."""
        return width + (_IVF_ID if self.schema.storage.index in {"auto", "BIN_IVF_FLAT"} else 0)

    def memory(self, pictures: int) -> float:
        """Of a server's query nodes together."""
        columns = sum(size for name, size in self.fields.items() if name not in self.codes)
        codes = sum(self.index(g.bits // 8) for g in self.schema.granularities if not g.mmap)
        rows = pictures * (_SERVER_ROW + columns + codes)
        return (_SERVER + rows * _HEADROOM) * self.schema.storage.replicas

    def disk(self, pictures: int) -> float:
        """Mapped by a server's query nodes from their own disks."""
        mapped = sum(self.index(g.bits // 8) for g in self.schema.granularities if g.mmap)
        return pictures * mapped * self.schema.storage.replicas

    def changed(self, schema: Schema) -> _Sizes:
        """The same with another schema."""
        return _Sizes(schema, self._path, self._text)


def _changes(pictures: int, sizes: _Sizes) -> Iterator[Change]:
    """Each change alone; more and more granularities mapped, the largest first."""
    schema = sizes.schema

    def change(what: str, other: Schema) -> Change:
        then = sizes.changed(other)
        return Change(what, then.memory(pictures), then.disk(pictures))

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
    if (
        schema.storage.index in {"auto", "BIN_IVF_FLAT"}
        and not made.nlist / 2 <= schema.storage.nlist <= made.nlist * 2
    ):
        yield (
            f"storage.nlist is {schema.storage.nlist}; for the {made.pictures // made.segments:,} rows of a segment "
            f"take about {made.nlist}, and nprobe about {max(1, made.nlist // 32)}"
        )
