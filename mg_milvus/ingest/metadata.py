"""Metadata tables (CSV, JSON lines, Parquet): reading them within limits, and matching their rows to images."""

from __future__ import annotations

import csv
import datetime
import difflib
import io
import json
import os
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import MissingPackageError, SchemaError
from mg_milvus.files import one_line, open_plain
from mg_milvus.records import TableMatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from mg_milvus.schema.models import ExtraField

    Value = str | int | float | bool


_SMALL = 16 << 20
"""Bytes that a column of a row group may always expand to."""
_RATIO = 200
"""Highest compression ratio beyond that; text has 5 to 30."""
_ROOM = 128 << 20
"""Memory for rows, in bytes."""


def rows_at_once(metadata: Any, lengths: Mapping[str, int], most: int) -> int:
    """Number of rows of a Parquet file to read together, so that they fit into memory.

    Args:
        metadata: pyarrow's metadata of the file.
        lengths: column to read -> values per cell; 1 for what is no list.
        most: upper bound.

    Raises:
        ValueError: a column expands to more than the limits.
    """
    largest = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        dictionaries = 0
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            if name not in lengths:
                continue
            if column.num_values > group.num_rows * lengths[name]:
                raise ValueError(f"the column {name!r} has {column.num_values:,} values in {group.num_rows:,} rows")
            compressed, expanded = column.total_compressed_size, column.total_uncompressed_size
            if expanded > max(_SMALL, _RATIO * compressed):
                raise ValueError(f"the column {name!r} would expand from {compressed:,} bytes to {expanded:,}")
            if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
                dictionaries += expanded  # every row may copy the whole dictionary
        largest = max(largest, dictionaries)
    return max(1, min(most, _ROOM // largest))


_ROWS = 1000
"""Most rows of a Parquet file to read together."""
_IN_A_CELL = 1000
"""Most values of a list in a cell, such as labels, on average."""
_ROW_CHARACTERS = 16 << 20
"""Most characters of a row of text; a longer one is a file without line ends, or a device."""
_NAMES_SHOWN = 20
"""Columns that a message lists, at most."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is being read.

    Attributes:
        columns: names of all its columns.
        rows: number and cells of each row, requested columns only; an empty CSV cell is None. To be read once, lazily
            where the format allows it: reading raises ``SchemaError`` as ``read_table`` does.
        unit: what the numbers, from 1, count: "line" or "row".
        nested: columns of lists, structures or bytes, where the format says so.
    """

    columns: list[str]
    rows: Iterable[tuple[int, dict[str, Any]]]
    unit: str
    nested: frozenset[str] = frozenset()


def read_table(name: str, requested: Collection[str]) -> Table:
    """Open a table; its format follows from the suffix.

    Raises:
        SchemaError: the file cannot be read, or is not what its name says.
        MissingPackageError: Parquet without pyarrow.
    """
    read = _READERS.get(os.path.splitext(name)[1].lower())
    if read is None:
        raise SchemaError(f"{name!r} is not a table: expected a name that ends in {', '.join(_READERS)}")
    try:
        return read(name, requested)
    except OSError as error:
        raise SchemaError(f"the table {name!r} cannot be read: {error.strerror or _line(error)}") from error


def shown(cell: object) -> str:
    """A cell for messages: on one line, cut."""
    text = ascii(cell) if isinstance(cell, str) and not cell.isprintable() else repr(cell)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(columns: Collection[str]) -> str:
    """The first names of columns for messages; ``none`` where there are none."""
    names = [shown(column) for column, _ in zip(columns, range(_NAMES_SHOWN), strict=False)]
    more = len(columns) - len(names)
    return (", ".join(names) or "none") + (f" and {more:,} more" if more else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_csv(name: str, requested: Collection[str]) -> Table:
    headers = {delimiter: next(_csv_rows(name, delimiter, strict=False), (0, [])) for delimiter in ",;\t"}
    delimiter = max(headers, key=lambda found: len(headers[found][1]))
    first, header = headers[delimiter]
    columns = [column.strip() for column in header]
    if len(set(columns)) < len(columns):
        raise SchemaError(f"{name!r}: a name comes twice in the header: {listed(columns)}")

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, cells in _csv_rows(name, delimiter, strict=True):
            if len(cells) != len(columns):
                raise SchemaError(
                    f"{name!r}, line {number}: {len(cells)} cells, expected {len(columns)} as the header has"
                )
            if number != first:
                row = zip(columns, cells, strict=True)
                yield number, {column: cell or None for column, cell in row if column in requested}

    return Table(columns, records(), "line")


def _csv_rows(name: str, delimiter: str, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        while line := file.readline(_ROW_CHARACTERS + 1 - taken):
            taken += len(line)  # a cell in quotes goes on in the next line
            if taken > _ROW_CHARACTERS:
                raise SchemaError(
                    f"{name!r}, line {reader.line_num + 1}: the row is longer than {_ROW_CHARACTERS:,} characters"
                )
            yield line

    with io.TextIOWrapper(open_plain(name), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(lines(), delimiter=delimiter, strict=strict)
        try:
            for cells in reader:
                taken = 0
                if cells:
                    yield reader.line_num, cells
        except UnicodeDecodeError as error:
            raise SchemaError(f"{name!r} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
        except csv.Error as error:
            raise SchemaError(f"{name!r}, line {reader.line_num}: not well-formed CSV: {error}") from error


def _read_json_lines(name: str, requested: Collection[str]) -> Table:
    # The columns are known only when every line has been seen.
    columns: dict[str, None] = {}
    rows: list[tuple[int, dict[str, Any]]] = []
    with open_plain(name) as file:
        for number, line in enumerate(iter(lambda: file.readline(_ROW_CHARACTERS + 1), b""), start=1):
            if len(line) > _ROW_CHARACTERS:
                raise SchemaError(f"{name!r}, line {number}: the row is longer than {_ROW_CHARACTERS:,} bytes")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SchemaError(f"{name!r}, line {number}: not JSON in UTF-8: {error}") from error
            if not isinstance(record, dict):
                raise SchemaError(f'{name!r}, line {number}: expected one JSON object per line, as {{"path": "a.jpg"}}')
            columns.update(dict.fromkeys(record))
            rows.append((number, {column: cell for column, cell in record.items() if column in requested}))
    return Table(list(columns), rows, "line")


def _read_parquet(name: str, requested: Collection[str]) -> Table:
    try:
        from pyarrow import ArrowException, types
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingPackageError(
            f"reading {name!r} needs pyarrow, which is not installed: pip install 'mg-milvus[parquet]'"
        ) from error

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        try:
            with open_plain(name) as opened, ParquetFile(opened) as file:
                chosen = [column for column in columns if column in requested]
                together = rows_at_once(file.metadata, dict.fromkeys(chosen, _IN_A_CELL), _ROWS)
                for batch in file.iter_batches(batch_size=together, columns=chosen):
                    for record in batch.to_pylist():
                        number += 1
                        yield number, record
        except (ArrowException, OSError, ValueError, OverflowError) as error:  # text and times that are none
            raise SchemaError(f"{name!r} is damaged after row {number}: {_line(error)}") from error

    try:
        with open_plain(name) as opened, ParquetFile(opened) as file:
            columns: list[str] = list(file.schema_arrow.names)
            nested = frozenset(
                each.name for each in file.schema_arrow if types.is_nested(each.type) or _is_bytes(types, each.type)
            )
    except (ArrowException, ValueError) as error:
        raise SchemaError(f"{name!r} is not a Parquet file: {_line(error)}") from error
    return Table(columns, records(), "row", nested)


def _is_bytes(types: Any, kind: Any) -> bool:
    return any((types.is_binary(kind), types.is_large_binary(kind), types.is_fixed_size_binary(kind)))


_READERS: dict[str, Callable[[str, Collection[str]], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}


PATH_COLUMNS = ("path", "file", "filename", "file_name")
"""Names of the path column; the first one present is used."""


class Metadata:
    """Field values of images from a metadata file, see ``read_metadata``. Safe to use from several threads."""

    def __init__(
        self,
        rows: Mapping[str, Mapping[str, Value | None]],
        defaults: Mapping[str, Value | None],
        folders: Sequence[str],
    ) -> None:
        self._rows = rows
        self._defaults = defaults
        self._prefixes = [folder.rstrip("/") + "/" for folder in folders]
        self._matched: set[str] = set()

    def values(self, path: str, before: Mapping[str, Any] | None = None) -> dict[str, Value | None]:
        """All fields of the schema for the image at ``path`` (absolute).

        Args:
            path: of the image.
            before: its values so far, kept where the table has no row for it, or no column; None: the defaults.
        """
        own = dict(self._defaults if before is None else before)
        key = self._key_of(path)
        if key is not None:
            self._matched.add(key)
            own |= self._rows[key]
        return own

    def match(self, paths: Iterable[str]) -> TableMatch:
        """Compare the table with the images of an ingest.

        Raises:
            SchemaError: it names none of them; the message shows its first path and the image with the nearest name.
        """
        if not self._rows:
            raise SchemaError("the table of metadata has no rows; expected one row per image")
        matched: set[str] = set()
        names: dict[str, str] = {}
        without, first = 0, ""
        for path in paths:
            if (key := self._key_of(path)) is not None:
                matched.add(key)
                continue
            without, first = without + 1, first or path
            if len(names) < _NAMES_COMPARED:
                names.setdefault(_name(path), path)
        unmatched = [key for key in self._rows if key not in matched]
        shown_first = tuple((key, _nearest(key, names)) for key in unmatched[:_UNMATCHED_SHOWN])
        if without and not matched:
            key, near = shown_first[0]
            hint = f"; the nearest image to it is {one_line(repr(near), 400)}" if near else ""
            raise SchemaError(
                f"the table names none of the {without:,} images, its first path is {shown(key)}{hint}: nothing was "
                "written; write paths as they are on disk, or relative to the table, the folder or its parent"
            )
        return TableMatch(len(self._rows), len(matched), without, shown_first, first)

    def _key_of(self, path: str) -> str | None:
        """The path of the table that means this image; None where it has no row."""
        relative = [path.removeprefix(prefix) for prefix in self._prefixes if path.startswith(prefix)]
        return next((key for key in (path, *relative) if key in self._rows), None)

    @property
    def unmatched(self) -> list[str]:
        """Paths of the file, in its order, that matched none of the images so far."""
        return [key for key in self._rows if key not in self._matched]


def read_metadata(
    file: str | os.PathLike[str],
    fields: Sequence[ExtraField],
    roots: Sequence[str],
    headers: Mapping[str, str] | None = None,
) -> Metadata:
    """Read a table with one row per image; paths and the schema's columns are held in memory.

    The column ``path`` (or ``file``, ``filename``, ``file_name``) holds paths that are absolute, or relative to the
    file's own folder, to an ingest root, or to a root's parent; the first match is used. Columns that the schema
    does not name are ignored. Empty cells, nulls, empty texts and images without a row get the field's default, else no
    value.

    Args:
        file: ``.csv`` or ``.tsv`` (UTF-8, a header, separated by commas, semicolons or tabs), ``.jsonl`` or ``.ndjson``
            (an object per line), ``.parquet``.
        fields: the schema's extra fields.
        roots: folders and files to ingest, absolute.
        headers: field -> the table's column for it; those of other fields are not read. None: every field has a column
            of its name.

    Raises:
        SchemaError: the file cannot be read, a field has no column, or a value does not fit its field; the message
            says the line (in Parquet the row, from 1), the column, the value and what was expected.
        MissingPackageError: Parquet without pyarrow.
    """
    name = os.fspath(file)
    headers = {field.name: field.name for field in fields} if headers is None else headers
    table = read_table(name, {*PATH_COLUMNS, *headers.values()})
    _check_columns(name, table.columns, headers.values())
    key_column = path_column(name, table.columns)
    folder = os.path.dirname(os.path.abspath(name))
    tops = [root if _is_uri(root) else os.path.abspath(root) for root in roots]
    defaults = default_values(fields)
    rows: dict[str, dict[str, Value | None]] = {}
    for number, record in table.rows:
        place = f"{name!r}, {table.unit} {number}"
        key = _key(record.get(key_column), folder, f"{place}, column {key_column!r}")
        if key in rows:
            raise SchemaError(f"{place}: {shown(key)} has a row already; expected one row per image")
        rows[key] = {
            field.name: _convert(value, field, f"{place}, column {headers[field.name]!r}")
            if not is_missing(value := record.get(headers[field.name]))
            else defaults[field.name]
            for field in fields
            if field.name in headers
        }
    return Metadata(rows, defaults, list(dict.fromkeys([folder, *tops, *map(os.path.dirname, tops)])))


_UNMATCHED_SHOWN = 3
_NAMES_COMPARED = 10_000


def _name(path: str) -> str:
    """The file name, in which upper and lower case are the same."""
    return path.replace("\\", "/").rsplit("/", 1)[-1].casefold()


def _nearest(key: str, names: Mapping[str, str]) -> str:
    """The image without a row whose name is nearest to a path of the table; empty where none is near."""
    name = _name(key)
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=1)
    return names[near[0]] if near else ""


def _check_columns(name: str, columns: Sequence[str], wanted: Collection[str]) -> None:
    """Raise SchemaError when a field has no column."""
    if not wanted:
        raise SchemaError(
            f"the schema has no fields for the columns of {name!r} ({listed(columns)}): name some under 'fields'"
        )
    for column in wanted:
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1)
            hint = f"did you mean {shown(near[0])}?" if near else f"its columns: {listed(columns)}"
            raise SchemaError(f"{name!r} has no column for the schema's field {column!r}; {hint}")


def path_column(name: str, columns: Sequence[str]) -> str:
    """The column of paths in a table; ``name`` is the file's.

    Raises:
        SchemaError: there is none.
    """
    for column in PATH_COLUMNS:
        if column in columns:
            return column
    raise SchemaError(
        f"{name!r} has no column of paths: expected one of {', '.join(PATH_COLUMNS)}; found {listed(columns)}"
    )


def is_missing(cell: object) -> bool:
    """Whether a cell holds no value: nothing, an empty text, or the NaN that programs write for it."""
    return cell is None or cell == "" or (isinstance(cell, float) and cell != cell)


def _key(cell: object, folder: str, place: str) -> str:
    if not isinstance(cell, str) or not cell:
        raise SchemaError(f"{place}: {shown(cell)} is not the path of an image")
    if _is_uri(cell):
        return cell
    key = os.path.normpath(cell)
    return os.path.normpath(os.path.join(folder, key)) if key.split("/")[0] == ".." else key


def _is_uri(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def default_values(fields: Sequence[ExtraField]) -> dict[str, Value | None]:
    """Values of an image without metadata: each field's default, else None."""
    return {field.name: _default(field) for field in fields}


def _default(field: ExtraField) -> Value | None:
    return None if field.default in (None, "") else _convert(field.default, field, f"default of field {field.name!r}")


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
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if not isinstance(value, str):
        raise TypeError
    return value


def _int(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,19}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) < value < 2**63:
        raise TypeError
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal) or "_" in str(value):
        raise TypeError
    number = float(value)
    if not abs(number) <= 1e308:
        raise ValueError
    return number


def _bool(value: object) -> bool:
    known: dict[object, bool] = {
        "true": True, "yes": True, "1": True, "false": False, "no": False, "0": False,
    }  # fmt: skip
    text = str(value).strip().lower()
    if not isinstance(value, str | int) or text not in known:
        raise TypeError
    return known[text]


@dataclass(frozen=True, slots=True)
class _Kind:
    convert: Callable[[object], Value]
    expected: str


_KINDS: dict[str, _Kind] = {
    "string": _Kind(_string, "a string"),
    "int": _Kind(_int, "a whole number of 64 bits (int)"),
    "float": _Kind(_float, "a finite number (float)"),
    "bool": _Kind(_bool, "true, false, yes, no, 0 or 1 (bool)"),
}
