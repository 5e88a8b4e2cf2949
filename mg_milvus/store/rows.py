"""Rows and records: the columns of a schema, checks shared by every store, and reading rows by id."""

from __future__ import annotations

import json
import re
from binascii import a2b_base64, b2a_base64
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import QueryError, StoreError
from mg_milvus.files import one_line
from mg_milvus.schema.tags import TAG_COLUMN, from_column, to_column
from mg_milvus.store.base import Neighbours, Row
from mg_milvus.store.collections import Column
from mg_milvus.store.filter_language import LEAST_FLOAT, LEAST_INT, FilterColumn
from mg_milvus.store.filters import among
from mg_milvus.store.lite_workarounds import META, query_records

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.client import Connection


MAX_DEPTH = 16_384
"""Most results of one search, in Milvus and in Milvus Lite."""

Record = dict[str, Any]


def check_collection_name(name: str) -> str:
    """The name itself, when Milvus can hold a collection (and its companion) under it.

    Raises:
        StoreError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name):
        raise StoreError(
            f"'{name}' is not a collection name: use up to 200 letters, digits and '_', with no digit first"
        )
    return name


_FIXED = (
    Column("id", "string", 64),
    Column("path", "string", 16_384),
    Column("size", "int"),
    Column("mtime_ns", "int"),
    Column("taken", "int"),
    Column("width", "int"),
    Column("height", "int"),
    Column("content_hash", "string", 64),
)
_TIMES = frozenset({"mtime_ns", "taken"})
_TAGS = Column(TAG_COLUMN, "int")
MOST_META = 65_536
"""Most bytes of a JSON value on servers."""
COPY = "_codes"
"""Column of Milvus Lite, which cannot return vectors with a search: all codes of the row once more, as text. Reading it
there costs a tenth of fetching the codes by id afterwards."""
MISSING: dict[str, Any] = {"string": "", "int": LEAST_INT - 1, "float": -1.7976931348623157e308, "bool": -1}
"""What a column of the schema's own holds where an image has no value: Milvus Lite has no nulls."""
_ACCEPTED: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int, np.integer),
    "float": (float, int, np.floating, np.integer),
    "bool": (bool, np.bool_),
}
_PYTHON: dict[str, type] = {"string": str, "int": int, "float": float, "bool": bool}
_STORED: dict[str, type] = _PYTHON | {"bool": int}


class Layout:
    """The columns and granularities of a schema, and rows to records (one dictionary each) and back.

    Columns that were added after the collection was created are in its dynamic field: their values are under ``META``
    of a record, beside ``true`` under the name and ``?``, by which Milvus Lite finds rows that lack one.
    """

    def __init__(self, schema: Schema, added: Collection[str] = ()) -> None:
        self.schema = schema
        self.extras = tuple(Column(f.name, f.type, f.max_length, f.default) for f in schema.fields)
        self._own = tuple(column for column in self.extras if column.name not in added)
        self._added = tuple(column for column in self.extras if column.name in added)
        self.columns = (*_FIXED, _TAGS, *self._own)
        self.bytes = {name: bits // 8 for name, bits in schema.bits.items()}
        ends = list(accumulate(self.bytes.values()))
        self._places = tuple(
            (name, slice(end - width, end)) for (name, width), end in zip(self.bytes.items(), ends, strict=True)
        )
        self._code_bytes = sum(self.bytes.values())
        self._values_in_order = itemgetter(*(column.name for column in self.columns))
        self._types_in_order = tuple(_STORED[column.type] for column in self.columns)
        self._texts = tuple((place, c.name, c.max_bytes) for place, c in enumerate(self.columns) if c.type == "string")
        self.copy = Column(COPY, "string", len(b2a_base64(bytes(self._code_bytes), newline=False)))

    @property
    def rows_a_call(self) -> int:
        """Rows of the longest possible texts and codes that stay well below the 64 MB of a server's message."""
        longest = sum(column.max_bytes or 8 for column in (*self.columns, self.copy)) + self._code_bytes
        longest += MOST_META if self._added else 0
        return max(1, min(5000, (48 << 20) // longest))

    @property
    def filterable(self) -> dict[str, FilterColumn]:
        """The columns as filters see them."""
        columns = {column.name: FilterColumn(column.type, time=column.name in _TIMES) for column in _FIXED}
        columns[TAG_COLUMN] = FilterColumn("tags")
        columns |= {column.name: FilterColumn(column.type, "sparse") for column in self._own}
        return columns | {column.name: FilterColumn(column.type, "added") for column in self._added}

    def output_fields(self, granularities: Sequence[str]) -> list[str]:
        """Output fields of a request: every scalar column and the codes of these granularities.

        Raises:
            QueryError: an unknown granularity.
        """
        for name in granularities:
            self._check_granularity(name)
        return [*(column.name for column in (*self.columns, *self._added)), *granularities]

    def check_codes(self, granularity: str, codes: Codes) -> None:
        """Raise QueryError unless the codes are (n, bits / 8) uint8 of this granularity."""
        self._check_granularity(granularity)
        expected = self.bytes[granularity]
        if codes.ndim != 2 or codes.shape[1] != expected or codes.dtype != np.uint8:
            raise QueryError(
                f"codes for '{granularity}' are {codes.dtype} of shape {codes.shape}, expected uint8 of (n, {expected})"
            )

    def check_depth(self, depth: int) -> None:
        """Raise QueryError unless Milvus can return that many results."""
        if not 1 <= depth <= MAX_DEPTH:
            raise QueryError(f"depth is {depth}, expected 1 to {MAX_DEPTH}")

    def check_hybrid(self, codes: Mapping[str, Codes], weights: Mapping[str, float], k: int) -> list[str]:
        """The granularities to search, in the order of the schema: those with a weight above 0.

        Raises:
            QueryError: none is left, a weight is negative, codes are missing, or the numbers of queries differ.
        """
        for name, weight in weights.items():
            self._check_granularity(name)
            if not 0 <= weight < float("inf"):
                raise QueryError(f"the weight of '{name}' is {weight}, expected 0 or more")
        used = [name for name in self.bytes if weights.get(name, 0) > 0]
        if not used:
            raise QueryError(f"no granularity has a weight above 0, got {dict(weights)}")
        missing = [name for name in used if name not in codes]
        if missing:
            raise QueryError(f"codes for {', '.join(missing)} are missing, got {', '.join(codes) or 'none'}")
        for name in used:
            self.check_codes(name, codes[name])
        if len({len(codes[name]) for name in used}) > 1:
            raise QueryError(f"the numbers of queries differ: { {name: len(codes[name]) for name in used} }")
        self.check_depth(k)
        return used

    def records(self, rows: Sequence[Row]) -> list[Record]:
        """Rows as records; what a row's fields do not name has the default of its column, if there is one.

        Raises:
            StoreError: a value that the column cannot hold. Nothing is left to the server here: Milvus Lite
                stores texts and codes of any length, and dies of a missing value.
        """
        names = [column.name for column in self.extras]
        known = set(names)
        records = []
        for row in rows:
            record: Record = {
                "id": row.id, "path": row.path, "size": row.size, "mtime_ns": row.mtime_ns, "taken": row.taken,
                "width": row.width, "height": row.height, "content_hash": row.content_hash,
            }  # fmt: skip
            try:
                record[TAG_COLUMN] = to_column(row.tags)
            except ValueError as exc:
                raise StoreError(f"row {row.id}: {exc}") from exc
            if not known.issuperset(row.fields):
                unknown = ", ".join(sorted(set(row.fields) - known))
                raise StoreError(f"row {row.id}: unknown fields {unknown}, expected {', '.join(names) or 'none'}")
            if self.bytes.keys() != row.codes.keys():
                raise StoreError(
                    f"row {row.id}: codes for {', '.join(row.codes) or 'nothing'}, expected {', '.join(self.bytes)}"
                )
            for column in self.extras:
                record[column.name] = row.fields.get(column.name, column.default)
            record.update(row.codes)
            records.append(record)
        for column in _FIXED:
            _check_column(column, records)
        for column in self._own:
            _check_sparse_column(column, records)
        if self._added:
            self._pack_added(records)
        for name, expected in self.bytes.items():
            for record in records:
                code = record[name]
                if type(code) is not bytes or len(code) != expected:
                    raise StoreError(f"row {record['id']}: code {name} is {code!r}, expected {expected} bytes")
        return records

    def _pack_added(self, records: list[Record]) -> None:
        """Check the values of added columns, and put them under ``META``."""
        for column in self._added:
            _check_values(column, [record for record in records if record[column.name] is not None])
        for record in records:
            given = {c.name: value for c in self._added if (value := record.pop(c.name)) not in (None, "")}
            record[META] = given | {f"{name}?": True for name in given}
            if (size := len(json.dumps(record[META], ensure_ascii=False).encode())) > MOST_META:
                raise StoreError(
                    f"row {record['id']}: the columns {', '.join(given)} have {size:,} bytes, at most {MOST_META:,} "
                    "fit into all columns that were added later: shorten them"
                )

    def copied(self, record: Record) -> str:
        """The value of ``COPY``: a record's codes, concatenated in the order of the schema, in base64."""
        return b2a_base64(b"".join(record[name] for name in self.bytes), newline=False).decode()

    def row(self, record: Mapping[str, Any], granularities: Sequence[str]) -> Row:
        """A record as a row, with the codes of these granularities.

        Raises:
            ValueError, KeyError: the record is not what ``records`` makes.
        """
        return self.row_with(record, self.codes(record, granularities))

    def codes(self, record: Mapping[str, Any], granularities: Sequence[str]) -> dict[str, bytes]:
        """The codes in a record. Milvus gives each as a list of one.

        Raises:
            ValueError, KeyError: a code is missing, or has another length than the schema's.
        """
        codes = {}
        for name in granularities:
            code = record[name]
            codes[name] = code = code if type(code) is bytes else code[0]
            if type(code) is not bytes or len(code) != self.bytes[name]:
                raise ValueError(f"row {record['id']!r} has no code '{name}' of {self.bytes[name]} bytes")
        return codes

    def row_with(self, record: Mapping[str, Any], codes: Mapping[str, bytes]) -> Row:
        """A record as a row with these codes.

        Raises:
            ValueError, KeyError: a value is missing, or is none that ``records`` takes.
        """
        values = self._values_in_order(record)
        if tuple(map(type, values)) != self._types_in_order:
            self._refuse_types(values)
        for place, name, most in self._texts:
            if len(values[place]) > most:
                raise ValueError(f"{name} of row {values[0]!r} is longer than {most} bytes")
        row_id, path, size, mtime_ns, taken, width, height, content_hash, tags, *own = values
        if not could_be_id(row_id):
            raise ValueError(f"{row_id!r} is not an id")
        if size < 0 or width < 0 or height < 0:
            raise ValueError(f"row {row_id!r} is of {width} x {height} pixels and {size} bytes")
        fields = {column.name: value_of(column, value) for column, value in zip(self._own, own, strict=True)}
        for column in self._added:
            fields[column.name] = _added_value(column, record.get(column.name), row_id)
        return Row(
            row_id, path, size, mtime_ns, width, height, content_hash, codes, fields, b"", from_column(tags), taken
        )  # fmt: skip

    def values(self, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Some columns of records, a tuple for each record; None where a value is missing.

        Raises:
            ValueError, KeyError: a value is missing, or is none that ``records`` takes.
        """
        return list(zip(*(self._values(records, name) for name in names), strict=True))

    def _values(self, records: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
        if name in (column.name for column in self._added):
            (column,) = (column for column in self._added if column.name == name)
            return [_added_value(column, record.get(name), record["id"]) for record in records]
        (column,) = (column for column in self.columns if column.name == name)
        values = [record[name] for record in records]
        expected = _STORED[column.type]
        if not {expected}.issuperset(map(type, values)):
            raise ValueError(f"{name} of a row is {next(v for v in values if type(v) is not expected)!r}")
        if column.type == "string" and max(map(len, values), default=0) > column.max_bytes:
            raise ValueError(f"{name} of a row is longer than {column.max_bytes} bytes")
        if name == "id" and not all(map(could_be_id, values)):
            raise ValueError("an id of a row is none")
        if column in self._own:
            return [value_of(column, value) for value in values]
        return list(map(from_column, values)) if column == _TAGS else values

    def codes_of_copy(self, text: str) -> dict[str, bytes]:
        """The codes in a value of ``COPY``.

        Raises:
            ValueError: ``copied`` has not written it.
        """
        packed = a2b_base64(text)
        if len(packed) != self._code_bytes:
            raise ValueError(f"{COPY} holds {len(packed)} bytes of codes, expected {self._code_bytes}")
        return {name: packed[place] for name, place in self._places}

    def _refuse_types(self, values: Sequence[object]) -> None:
        for column, value, expected in zip(self.columns, values, self._types_in_order, strict=True):
            if type(value) is not expected:
                raise ValueError(f"{column.name} of row {values[0]!r} is {value!r}, expected a {column.type}")

    def _check_granularity(self, name: str) -> None:
        if name not in self.bytes:
            raise QueryError(f"there is no granularity '{name}', expected one of {', '.join(self.bytes)}")


def hits_of(hits: Any, bits: int, depth: int) -> list[tuple[float, str]]:
    """The hits of one query as pairs (distance, id), in the order of the response.

    Args:
        hits: has ``distances`` and ``ids``.
        bits: of the codes: the longest distance.
        depth: hits in the request.

    Raises:
        ValueError: there are more hits, or one is impossible.
    """
    pairs = list(zip(hits.distances, hits.ids, strict=True))
    if len(pairs) > depth:
        raise ValueError(f"{len(pairs)} hits, expected at most {depth}")
    possible = set(range(bits + 1))  # a whole number as float is in it, too
    for distance, row_id in pairs:
        if distance not in possible:
            raise ValueError(f"{row_id!r} is at a distance of {distance}, expected 0 to {bits} bits")
        if type(row_id) is not str or not could_be_id(row_id):
            check_hit_id(row_id)
    return pairs


def check_hit_id(row_id: object) -> None:
    """Raise ValueError unless a row can have this id."""
    if not isinstance(row_id, str) or not could_be_id(row_id):
        raise ValueError(f"{one_line(repr(row_id))} is not an id")


def neighbours(found: Iterable[tuple[float, str]], depth: int | None = None) -> Neighbours:
    """Pairs (distance, id) as ``Neighbours``, ordered by distance, ties by id.

    A duplicate id, as after an import into existing rows, counts once, where it is nearest.
    """
    ordered = sorted(found)
    if len({i for _, i in ordered}) < len(ordered):
        nearest: dict[str, float] = {}
        for distance, row_id in ordered:
            nearest.setdefault(row_id, distance)
        ordered = [(distance, row_id) for row_id, distance in nearest.items()]
    ordered = ordered[:depth]
    return Neighbours([i for _, i in ordered], np.array([d for d, _ in ordered], np.int32))


_USUAL = 32
"""Characters of an id, unless another program has made it."""


def could_be_id(text: str) -> bool:
    """Whether a row can have this id: 1 to 64 bytes of text in one line."""
    if len(text) == _USUAL and text.isascii() and text.isalnum():
        return True
    try:
        return 0 < len(text.encode()) <= 64 and "\n" not in text and "\r" not in text
    except UnicodeEncodeError:
        return False


def _check_column(column: Column, records: list[Record]) -> None:
    """Check one column of all records, and turn numpy's scalars into Python's."""
    name, plain, accepted = column.name, _PYTHON[column.type], _ACCEPTED[column.type]
    for record in records:
        value = record[name]
        if type(value) is not plain:
            if not isinstance(value, accepted) or (isinstance(value, bool) and plain is not bool):
                raise StoreError(f"row {record['id']}: {name} is {value!r}, expected a value of type {column.type}")
            value = record[name] = plain(value)
        if plain is str:
            if len(value) > column.max_bytes or not value.isascii():
                _check_text(column, record["id"], value)
        elif plain is int and not -(2**63) <= value < 2**63:
            raise StoreError(f"row {record['id']}: {name} is {value}, expected a 64-bit integer")
    if name == "id":
        for record in records:
            if not could_be_id(record["id"]):
                raise StoreError(f"'{record['id']!r}' is not an id, expected 32 hexadecimal digits")


def value_of(column: Column, stored: Any) -> Any:
    """The value that a column of the schema's own holds; None where it is missing."""
    match column.type:
        case "string":
            return stored or None
        case "int":
            return stored if stored >= LEAST_INT else None
        case "float":
            return stored if stored >= LEAST_FLOAT else None
    return bool(stored) if stored >= 0 else None


def _added_value(column: Column, stored: Any, row_id: str) -> Any:
    """The value that a column added later holds; None where it is missing.

    Raises:
        ValueError: it is none that ``Layout.records`` takes.
    """
    if stored is None:
        return None
    if column.type == "float" and type(stored) is int:
        stored = float(stored)  # as JSON has it
    fits = type(stored) is _PYTHON[column.type] and stored != ""
    if column.type == "string":
        fits = fits and len(stored) <= column.max_bytes
    elif column.type == "float":
        fits = fits and LEAST_FLOAT <= stored <= -LEAST_FLOAT
    elif column.type == "int":
        fits = fits and LEAST_INT <= stored < 2**63
    if not fits:
        raise ValueError(f"{column.name} of row {row_id!r} is {one_line(repr(stored), 60)}, expected a {column.type}")
    return stored


def _check_sparse_column(column: Column, records: list[Record]) -> None:
    """Check one column of the schema's own, and turn its values into what is stored."""
    name, missing = column.name, MISSING[column.type]
    _check_values(column, [record for record in records if record[name] is not None])
    for record in records:
        if record[name] is None:
            record[name] = missing
        elif column.type == "bool":
            record[name] = int(record[name])


def _check_values(column: Column, records: list[Record]) -> None:
    """Check the values that a column of the schema's own has, within the numbers that are values."""
    _check_column(column, records)
    name = column.name
    for record in records:
        value = record[name]
        if column.type == "float" and not LEAST_FLOAT <= value <= -LEAST_FLOAT:
            raise StoreError(f"row {record['id']}: {name} is {value}, expected a number within {-LEAST_FLOAT:g}")
        if column.type == "int" and value < LEAST_INT:
            raise StoreError(f"row {record['id']}: {name} is {value}, expected {LEAST_INT} or more")


def _check_text(column: Column, row_id: str, value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as exc:
        raise StoreError(
            f"row {row_id!a}: {column.name} is {value!a}, which is not valid Unicode: escape what is not text"
        ) from exc
    if size > column.max_bytes:
        raise StoreError(f"row {row_id}: {column.name} has {size} bytes, at most {column.max_bytes} fit: shorten it")


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
        self._reading = connection.reading
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

    def columns_of_codes(self) -> list[str]:
        """What to ask a search for, that it returns the codes of its hits; nothing where it cannot.

        Whole rows would take twice as long in Milvus Lite, and the rows of all but the best candidates are not needed.
        """
        if not self._connection.engine.lite:
            return [*self._layout.bytes]
        return [COPY] if self.copied else []

    def codes_of_hits(self, hits: Any, known: Container[str]) -> dict[str, Mapping[str, bytes]]:
        """Id -> codes of the hits of one query that was asked for ``columns_of_codes``, but for ids that are known.

        Raises:
            ValueError, KeyError: there are no codes of these lengths.
        """
        fresh = [(row_id, hit["entity"]) for row_id, hit in zip(hits.ids, hits, strict=True) if row_id not in known]
        if self.copied:
            return {row_id: self._layout.codes_of_copy(entity[COPY]) for row_id, entity in fresh}
        names = tuple(self._layout.bytes)
        return {row_id: self._layout.codes({"id": row_id, **entity}, names) for row_id, entity in fresh}

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
                    records = query_records(found)
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
