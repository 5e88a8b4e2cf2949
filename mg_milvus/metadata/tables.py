"""Which rows are in a table file: CSV, JSON lines or Parquet, read row by row."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import MissingPackageError, SchemaError
from mg_milvus.metadata.bombs import rows_at_once
from mg_milvus.plain_files import open_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator


_ROWS = 1000
"""Of a Parquet file that are in memory together, at most."""
_IN_A_CELL = 1000
"""Values of a list, such as labels, on average."""
_ROW_CHARACTERS = 16 << 20
"""Of one row of a table of text, with all its cells; a longer one is a file without line ends, or a device."""
_NAMES_SHOWN = 20
"""Columns that a message lists."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is being read.

    Attributes:
        columns: names of all its columns.
        rows: number and cells of each row, wanted columns only; an empty CSV cell is None. Read once, lazily where the
            format allows it: reading raises ``SchemaError`` as ``read_table`` does.
        unit: what the numbers count from 1: "line" or "row".
    """

    columns: list[str]
    rows: Iterable[tuple[int, dict[str, Any]]]
    unit: str


def read_table(name: str, wanted: Collection[str]) -> Table:
    """Open a table by the ending of its name.

    Raises:
        SchemaError: the file cannot be read, or is not what its name says.
        MissingPackageError: Parquet without pyarrow.
    """
    read = _READERS.get(os.path.splitext(name)[1].lower())
    if read is None:
        raise SchemaError(f"{name!r} is not a table: expected a name that ends in {', '.join(_READERS)}")
    try:
        return read(name, wanted)
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


def _read_csv(name: str, wanted: Collection[str]) -> Table:
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
                yield number, {column: cell or None for column, cell in row if column in wanted}

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


def _read_json_lines(name: str, wanted: Collection[str]) -> Table:
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
                raise SchemaError(f'{name!r}, line {number}: expected one JSON object a line, as {{"path": "a.jpg"}}')
            columns.update(dict.fromkeys(record))
            rows.append((number, {column: cell for column, cell in record.items() if column in wanted}))
    return Table(list(columns), rows, "line")


def _read_parquet(name: str, wanted: Collection[str]) -> Table:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingPackageError(
            f"reading {name!r} needs pyarrow, which is not installed: pip install 'mg-milvus[parquet]'"
        ) from error

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        try:
            with open_plain(name) as opened, ParquetFile(opened) as file:
                chosen = [column for column in columns if column in wanted]
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
    except (ArrowException, ValueError) as error:
        raise SchemaError(f"{name!r} is not a Parquet file: {_line(error)}") from error
    return Table(columns, records(), "row")


_READERS: dict[str, Callable[[str, Collection[str]], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
