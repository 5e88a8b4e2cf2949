"""The user's own columns: a table beside the pictures (CSV, JSON lines, Parquet) -> the schema's extra fields."""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg_milvus.errors import SchemaError
from mg_milvus.metadata.tables import listed, read_table, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.schema import ExtraField

    Value = str | int | float | bool

PATH_COLUMNS = ("path", "file", "filename", "file_name")
"""The column that says which picture a row is about: the first of these that is there."""


class Metadata:
    """What a metadata file says about the pictures. Made by ``read_metadata``; safe to ask from several threads."""

    def __init__(
        self, rows: dict[str, tuple[Value, ...]], defaults: Mapping[str, Value], folders: Sequence[str]
    ) -> None:
        self._rows = rows
        self._defaults = defaults
        self._prefixes = [folder.rstrip("/") + "/" for folder in folders]
        self._asked: set[str] = set()

    def values(self, path: str) -> dict[str, Value]:
        """All fields of the schema for the picture at ``path`` (absolute); those without a value have their default."""
        relative = [path.removeprefix(prefix) for prefix in self._prefixes if path.startswith(prefix)]
        for key in (path, *relative):
            if key in self._rows:
                self._asked.add(key)
                return dict(zip(self._defaults, self._rows[key], strict=True))
        return dict(self._defaults)

    @property
    def unmatched(self) -> list[str]:
        """Paths in the file, in its order, that none of the pictures asked about so far has."""
        return [key for key in self._rows if key not in self._asked]


def read_metadata(file: str | os.PathLike[str], fields: Sequence[ExtraField], roots: Sequence[str]) -> Metadata:
    """Read a table with one row a picture. It is held in memory: the paths, and the columns that the schema names.

    The column ``path`` (or ``file``, ``filename``, ``file_name``) holds paths that are absolute, or relative to the
    file's own folder, to an ingest root, or to a root's parent; the first that fits is taken. Columns that the schema
    does not name are ignored. Empty cells, nulls and pictures without a row get the field's default, else "", 0, 0.0
    or False.

    Args:
        file: ``.csv`` or ``.tsv`` (UTF-8, a header, separated by commas, semicolons or tabs), ``.jsonl`` or ``.ndjson``
            (an object a line), ``.parquet``.
        fields: the schema's extra fields.
        roots: what is ingested: absolute folders and files.

    Raises:
        SchemaError: the file cannot be read, a field has no column, or a value does not fit its field; the message
            says the line (in Parquet the row, from 1), the column, the value and what was expected.
        MissingPackageError: Parquet without pyarrow.
    """
    name = os.fspath(file)
    table = read_table(name, {*PATH_COLUMNS, *(field.name for field in fields)})
    key_column = _check_columns(name, table.columns, fields)
    folder = os.path.dirname(os.path.abspath(name))
    tops = [root if _is_uri(root) else os.path.abspath(root) for root in roots]
    defaults = default_values(fields)
    rows: dict[str, tuple[Value, ...]] = {}
    for number, record in table.rows:
        place = f"{name!r}, {table.unit} {number}"
        key = _key(record.get(key_column), folder, f"{place}, column {key_column!r}")
        if key in rows:
            raise SchemaError(f"{place}: {shown(key)} has a row already; expected one row a picture")
        rows[key] = tuple(
            _convert(value, field, f"{place}, column {field.name!r}")
            if (value := record.get(field.name)) is not None
            else defaults[field.name]
            for field in fields
        )
    return Metadata(rows, defaults, list(dict.fromkeys([folder, *tops, *map(os.path.dirname, tops)])))


def _check_columns(name: str, columns: Sequence[str], fields: Sequence[ExtraField]) -> str:
    """The name of the path column; refuses a table that cannot fill the fields."""
    names = listed(columns)
    if not fields:
        raise SchemaError(f"the schema has no fields for the columns of {name!r} ({names}): name some under 'fields'")
    for field in fields:
        if field.name not in columns:
            near = difflib.get_close_matches(field.name, columns, n=1)
            hint = f"did you mean {shown(near[0])}?" if near else f"its columns: {names}"
            raise SchemaError(f"{name!r} has no column for the schema's field {field.name!r}; {hint}")
    for column in PATH_COLUMNS:
        if column in columns:
            return column
    raise SchemaError(f"{name!r} has no column of paths: expected one of {', '.join(PATH_COLUMNS)}; found {names}")


def _key(cell: object, folder: str, place: str) -> str:
    if not isinstance(cell, str) or not cell:
        raise SchemaError(f"{place}: {shown(cell)} is not the path of a picture")
    if _is_uri(cell):
        return cell
    key = os.path.normpath(cell)
    return os.path.normpath(os.path.join(folder, key)) if key.split("/")[0] == ".." else key


def _is_uri(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def default_values(fields: Sequence[ExtraField]) -> dict[str, Value]:
    """What a picture has that no metadata names: the field's default, else "", 0, 0.0 or False."""
    return {field.name: _default(field) for field in fields}


def _default(field: ExtraField) -> Value:
    kind = _KINDS[field.type]
    return kind.zero if field.default is None else _convert(field.default, field, f"default of field {field.name!r}")


def _convert(value: object, field: ExtraField, place: str) -> Value:
    kind = _KINDS[field.type]
    try:
        converted = kind.convert(value)
        length = len(converted.encode()) if isinstance(converted, str) else 0
    except (ValueError, TypeError, OverflowError):
        raise SchemaError(f"{place}: {shown(value)} is not {kind.expected}") from None
    if length > field.max_length:
        raise SchemaError(f"{place}: {shown(value)} has {length} bytes, more than max_length={field.max_length}")
    return converted


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _int(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,19}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise TypeError
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or "_" in str(value):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _bool(value: object) -> bool:
    known: dict[object, bool] = {"true": True, "1": True, "false": False, "0": False}
    text = str(value).strip().lower()
    if not isinstance(value, str | int) or text not in known:
        raise TypeError
    return known[text]


@dataclass(frozen=True, slots=True)
class _Kind:
    zero: Value
    convert: Callable[[object], Value]
    expected: str


_KINDS: dict[str, _Kind] = {
    "string": _Kind("", _string, "a string"),
    "int": _Kind(0, _int, "a whole number of 64 bits (int)"),
    "float": _Kind(0.0, _float, "a finite number (float)"),
    "bool": _Kind(False, _bool, "true, false, 0 or 1 (bool)"),
}
