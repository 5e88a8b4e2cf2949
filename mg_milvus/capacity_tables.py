"""Bytes of one row of a collection, on Milvus Lite, on a server, and in files of codes. Pure arithmetic.

Each constant says where it comes from; ``benchmarks/capacity.py`` fills Milvus Lite with up to a million rows and holds
what follows from them against what is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg_milvus.store.index_lists import rows_a_segment
from mg_milvus.store.layout import COPY, Layout

if TYPE_CHECKING:
    from mg_milvus.schema import Schema
    from mg_milvus.schema_parts import PartsSettings

# Milvus Lite 2.5.1 keeps a row as a protobuf message with the names of its columns, in pages of SQLite.
_LITE_COLUMN = 14
"""Bytes of a column beside its name and value (counted in a file)."""
_LITE_INT, _LITE_LONG = 3, 9
"""Bytes of numbers there: of sizes, which are written without their zeros; of times in nanoseconds, and of any."""
_LITE_ROW = 62 + 12
"""Bytes of a row beside its columns and its key, which comes once more: RowID and Timestamp, SQLite's own (counted)."""
_LITE_PAGE = 4096
_LITE_KEY, _LITE_KEYS_FULL = 9, 0.75
"""Bytes of a key beside itself in the index over the keys, and how full its pages are: keys come in no order."""
_LITE_MEMORY_ROW, _LITE_MEMORY_TEXT, _LITE_MEMORY_COLUMN, _LITE_MEMORY_BYTE = 34, 76, 25, 2.5
"""Bytes of memory of a row, of each text that is always there (id, path, hash), of each column, and of each byte in
them, while a file is opened (fitted to five schemas with 20,000 and 60,000 rows, and to 290,000 regions). Half of it is
the rows; the other half is what they were read through."""

# A Milvus server.
_IVF_ID = 8
"""Bytes of a row's number in a list of BIN_IVF_FLAT (counted: a FAISS index, serialised)."""
_SERVER_ROW, _SERVER_TEXT = 92, 33
"""Bytes of a row in memory beside its values, by the types that Milvus keeps them in: 16 for times and numbers, 72 for
the place of a key, 4 for the filter of keys; and of each text as an object. What comes of it was within 30 % of Milvus
2.3.5 with 200,000 and with a million rows of one code, whose own memory for loading hides the rest."""

_PARQUET_ROW = 50
"""Bytes of the columns that every picture has but the path, compressed: two random hashes of 16 bytes, size, time."""


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
        columns: what it holds; the first is the key.
        listed: bytes of a row's number in the index of each code.
        copy: what Milvus Lite holds besides.
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
        """In the index over the keys of a large collection in Milvus Lite's file; see ``store.lite_keys``."""
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


def pictures_table(schema: Schema, path_bytes: float, text_bytes: float) -> Table:
    """The row of a picture, with paths and texts of these lengths."""
    own = {
        "string": lambda name: Column(name, text_bytes, "text", text_bytes),
        "int": lambda name: Column(name, 8, "number", _LITE_LONG),
        "float": lambda name: Column(name, 8, "number", _LITE_LONG),
        "bool": lambda name: Column(name, 1, "number", _LITE_INT),
    }
    copied = Layout(schema).copy.max_bytes
    return Table(
        (
            Column("id", 32, "text", 32),
            Column("path", path_bytes, "text", path_bytes),
            Column("size", 8, "number", _LITE_INT),
            Column("mtime_ns", 8, "number", _LITE_LONG),
            Column("width", 8, "number", _LITE_INT),
            Column("height", 8, "number", _LITE_INT),
            Column("content_hash", 32, "text", 32),
            *(own[field.type](field.name) for field in schema.fields),
            *(Column(g.name, g.bits // 8, "code", g.bits // 8, bool(g.mmap)) for g in schema.granularities),
        ),
        _listed(schema),
        (Column(COPY, copied, "text", copied),),
    )


def regions_table(schema: Schema, parts: PartsSettings) -> Table:
    """The row of a region, in the companion collection: its id is the picture's and its number."""
    key = 33 + sum(len(str(number)) for number in range(parts.regions)) / parts.regions
    code = parts.bits // 8
    return Table(
        (Column("id", key, "text", key), Column("scale", 8, "number", 1), Column("code", code, "code", code)),
        _listed(schema),
    )


def parquet_row(schema: Schema, pictures: Table) -> float:
    """A picture in files of codes: what is random does not get smaller, paths and texts to about a half."""
    fixed = {"id", "size", "mtime_ns", "width", "height", "content_hash"}
    own = sum(c.size / 2 if c.kind == "text" else c.size for c in pictures.columns if c.name not in fixed)
    return _PARQUET_ROW + own + (schema.parts.bytes_per_picture if schema.parts else 0)


def _listed(schema: Schema) -> int:
    return _IVF_ID if schema.storage.index in {"auto", "BIN_IVF_FLAT"} else 0
