"""The columns of a table of metadata as fields of a collection: their names, and the types that their cells have."""

from __future__ import annotations

import datetime
import decimal
import difflib
import math
import os
import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mg_milvus.errors import SchemaError
from mg_milvus.ingest.metadata import is_missing, listed, path_column, read_table, shown
from mg_milvus.records import TableColumn
from mg_milvus.schema.models import ExtraField, is_reserved
from mg_milvus.store.client import RESERVED_SINCE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any, Literal

    Kind = Literal["bool", "int", "float", "string"]

_KINDS: tuple[Kind, ...] = ("bool", "int", "float", "string")
"""The types of a field, the narrowest first."""
_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)?\.[0-9]+(?:[eE][+-]?[0-9]+)?|-?(?:0|[1-9][0-9]*)[eE][+-]?[0-9]+")
_SHORTEST, _LONGEST = 1024, 65_535
"""Bytes of a text field: at least, and at most."""


@dataclass(frozen=True, slots=True)
class TableColumns:
    """How the columns of a table and the fields of a collection fit.

    Attributes:
        headers: field -> the table's column, for those fields that the table has.
        new: fields that the collection lacks, with the types of their cells.
        passed_over: columns that are not taken, each with the reason.
        near: new field -> the field of the collection with nearly the same name, which the table lacks.
    """

    headers: Mapping[str, str]
    new: tuple[ExtraField, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()
    near: Mapping[str, str] = field(default_factory=dict)

    def records(self, fields: Sequence[ExtraField]) -> tuple[TableColumn, ...]:
        """The columns that are taken, for the report; ``fields`` are those of the collection."""
        types = {each.name: each.type for each in (*fields, *self.new)}
        new = {each.name for each in self.new}
        return tuple(
            TableColumn(name, types[name], header, name in new, self.near.get(name, ""))
            for name, header in self.headers.items()
        )


def find_columns(
    file: str | os.PathLike[str], fields: Sequence[ExtraField], required: Sequence[str] | None, taken: Collection[str]
) -> TableColumns:
    """Match the columns of a table with fields, and find the types of those that are no field yet.

    A column belongs to the field of its name, or of the name that ``field_name`` makes of it.

    Args:
        file: the table, see ``metadata.read_metadata``.
        fields: those of the collection.
        required: names of fields that a schema demands: no other columns are taken, beside those of ``fields``. None:
            no schema says which columns to take, so all are taken.
        taken: names that no field can have, beside those of ``field_name``: the granularities'.

    Raises:
        SchemaError: the table cannot be read, a required field has no column, or no column can be taken.
        MissingPackageError: Parquet without pyarrow.
    """
    name = os.fspath(file)
    table = read_table(name, ())
    paths = path_column(name, table.columns)
    known = {each.name for each in fields}
    headers: dict[str, str] = {column: column for column in table.columns if column in known and column != paths}
    passed: dict[str, str] = {}
    candidates: dict[str, str] = {}
    for column in table.columns:
        if column == paths or column in headers:
            continue
        own = field_name(column)
        own += "_" * (own in taken)
        if not own:
            passed[column] = "its name has no letter from a to z: rename it"
        elif own in headers or own in candidates:
            passed[column] = f"{shown(headers.get(own) or candidates[own])} is the column {own!r} already: rename it"
        elif own in known:
            headers[own] = column
        elif required is not None:
            passed[column] = "the schema has no such field"
        else:
            candidates[own] = column
    for each in required or ():
        if each not in headers:
            near = difflib.get_close_matches(each, table.columns, n=1)
            hint = f"did you mean {shown(near[0])}?" if near else f"its columns: {listed(table.columns)}"
            raise SchemaError(f"{name!r} has no column for the schema's field {each!r}; {hint}")
    new = _infer(name, candidates, passed)
    headers |= {each.name: candidates[each.name] for each in new}
    if not headers:
        reasons = "; ".join(f"{shown(column)}: {reason}" for column, reason in list(passed.items())[:3])
        raise SchemaError(
            f"{name!r} has no column to store beside its paths{f' ({reasons})' if reasons else ''}: expected one of "
            "text, numbers, or yes and no"
        )
    lacking = [each.name for each in fields if each.name not in headers]
    near_ones = {each.name: difflib.get_close_matches(each.name, lacking, n=1, cutoff=0.8) for each in new}
    return TableColumns(
        headers, new, tuple(passed.items()), {own: found[0] for own, found in near_ones.items() if found}
    )


def field_name(header: str) -> str:
    """The name of a field for a column: itself, or the nearest name that Milvus takes; empty where there is none.

    Accents go, other signs become ``_``, and a name that every row or Milvus has for itself gets one at its end.
    """
    plain = unicodedata.normalize("NFKD", header.replace("ß", "ss"))
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    name = header
    if not re.fullmatch(r"[A-Za-z_]\w*", header, re.ASCII):
        name = re.sub(r"\W+", "_", plain, flags=re.ASCII).strip("_")
    if not re.search("[A-Za-z]", name):
        return ""
    name = ("_" if name[0].isdigit() else "") + name[:190]
    return f"{name}_" if is_reserved(name) or name.lower() in RESERVED_SINCE else name


class _Column:
    """What the cells of one column, seen so far, have in common."""

    def __init__(self) -> None:
        self.kinds: set[str] = set(_KINDS)
        self.filled = self.longest = 0

    def see(self, cell: object) -> None:
        """Take one more cell into account."""
        if is_missing(cell):
            return
        self.filled += 1
        self.kinds &= _kinds_of(cell)
        if isinstance(cell, str):
            self.longest = max(self.longest, len(cell.encode(errors="replace")))

    def problem(self) -> str:
        """Why it cannot be a field; empty where it can."""
        if not self.filled:
            return "it has no values"
        if not self.kinds:
            return "its cells are not all text, all numbers, or all yes and no"
        return f"a text has more than {_LONGEST:,} bytes" if self.longest > _LONGEST else ""

    def field(self, name: str) -> ExtraField:
        """The field of the narrowest type."""
        kind = next(kind for kind in _KINDS if kind in self.kinds)
        length = _SHORTEST if kind != "string" else min(_LONGEST, max(_SHORTEST, 4 * self.longest))
        return ExtraField(name=name, type=kind, max_length=length)


def _infer(name: str, columns: Mapping[str, str], passed: dict[str, str]) -> tuple[ExtraField, ...]:
    """Fields for columns (field name -> column), by all their cells; what is none goes to ``passed``."""
    if not columns:
        return ()
    table = read_table(name, set(columns.values()))
    seen = {header: _Column() for header in columns.values() if header not in table.nested}
    for _, record in table.rows:
        for header, column in seen.items():
            column.see(record.get(header))
    fields = []
    for own, header in columns.items():
        problem = seen[header].problem() if header in seen else "its cells are lists, structures or bytes"
        if problem:
            passed[header] = problem
        else:
            fields.append(seen[header].field(own))
    return tuple(fields)


def _kinds_of(cell: Any) -> set[str]:
    """The types of a field that can hold a cell."""
    match cell:
        case bool():
            return {"bool"}
        case int():
            return {"int", "float"} if -(2**63) < cell < 2**63 else {"float"} if abs(cell) < 1e300 else set()
        case float() | decimal.Decimal():
            return {"float"} if math.isfinite(cell) and abs(float(cell)) <= 1e308 else set()
        case str():
            return _kinds_of_text(cell.strip())
        case datetime.date() | datetime.time():
            return {"string"}
    return set()


def _kinds_of_text(text: str) -> set[str]:
    """As ``_kinds_of``. Digits that a number would not keep, as in 007, +49 or 12345678901234567890, are text."""
    if text.lower() in {"true", "false", "yes", "no"}:
        return {"string", "bool"}
    if _INT.fullmatch(text):
        return {"string", "int", "float"} if abs(int(text)) < 2**63 else {"string"}
    return {"string", "float"} if _FLOAT.fullmatch(text) and abs(float(text)) <= 1e308 else {"string"}
