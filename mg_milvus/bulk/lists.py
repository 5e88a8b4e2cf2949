"""Lists of images to take along: paths, tables of all fields, and archives of the files as they were ingested."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import ImageError, QueryError
from mg_milvus.images.discover import content_hash, is_url, text_path
from mg_milvus.images.files import held_for_reading, open_file, read_opened
from mg_milvus.records import Failure
from mg_milvus.schema.tags import readable, with_user_tags

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO

    from mg_milvus.store.base import Row

MISSING = "MISSING.txt"
"""Name in an archive of the list of images that are not in it."""
_COLUMNS = ("id", "path", "size", "mtime_ns", "taken", "width", "height", "content_hash")


def paths_of(rows: Sequence[Row], *, null: bool = False) -> bytes:
    """The paths, in the bytes that the disk has, each followed by a line end, or by a null byte.

    Raises:
        QueryError: a path holds a line break, and would be two lines.
    """
    paths = [_path_bytes(row.path) for row in rows]
    broken = [path for path in paths if not null and (b"\n" in path or b"\r" in path)]
    if broken:
        raise QueryError(
            f"the path {os.fsdecode(broken[0])!r} holds a line break: take the list as JSON, or with --print0"
        )
    return b"".join(path + (b"\0" if null else b"\n") for path in paths)


def _path_bytes(path: str) -> bytes:
    """The bytes of a path on the disk; an address as it is."""
    return path.encode() if is_url(path) and not path.startswith("file://") else os.fsencode(text_path(path))


def row_values(row: Row) -> dict[str, Any]:
    """All fields of a row, without codes: those that every row has, ``tags``, and the schema's own."""
    own = {name: getattr(row, name) for name in _COLUMNS}
    return own | {"tags": readable(row.tags), **with_user_tags(row.fields)}


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""How a text begins that spreadsheets take for a formula (OWASP, "CSV Injection"), and the apostrophe against it."""


def table_of(rows: Sequence[Row]) -> str:
    """The rows as CSV, with a header; tags are separated by semicolons, and a missing value is empty.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, and so does one that begins with an
    apostrophe: whoever drops the first apostrophe of a cell has the value as it was.
    """
    columns = dict.fromkeys(name for row in rows for name in row_values(row))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(_cell, columns or [*_COLUMNS, "tags"]))
    for row in rows:
        values = row_values(row)
        writer.writerow([_cell(values.get(name)) for name in columns])
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    cell = "; ".join(map(str, value)) if isinstance(value, list | dict) else value
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def json_of(rows: Sequence[Row]) -> str:
    """The rows as a JSON list of objects."""
    return json.dumps([row_values(row) for row in rows], indent=1)


@contextmanager
def ingested_content(row: Row) -> Iterator[tuple[FileIO, bytes]]:
    """The open file of a row and its content, if the content is what was ingested.

    The path may lead to another file by now; only the bytes that were ingested are returned. Links are followed, as at
    the ingest. The content counts against the memory limit of reads until the end of the block.

    Raises:
        ImageError: the file is gone, cannot be read, is not an image, or has another content.
    """
    with open_file(text_path(row.path)) as file, held_for_reading(file):
        data = read_opened(file)
        if content_hash(data) != row.content_hash:
            raise ImageError("has another content than when it was ingested")
        yield file, data


def archive_names(rows: Sequence[Row]) -> list[str]:
    """A name in an archive for each row: its path below the folder that all have in common; all are different."""
    paths = [os.fsdecode(_path_bytes(row.path)) for row in rows]
    folders = [os.path.dirname(path) for path in paths]
    try:
        top = os.path.commonpath(folders) if folders else ""
    except ValueError:  # addresses beside paths
        top = ""
    names: dict[str, None] = {}
    for path in paths:
        inside = path.removeprefix(top).lstrip("/")
        plain = os.fsencode(inside).decode("utf-8", "backslashreplace")
        stem, ending = os.path.splitext(plain)
        name, number = plain, 2
        while name in names or name == MISSING:
            name, number = f"{stem} ({number}){ending}", number + 1
        names[name] = None
    return list(names)


class _Buffer:
    """What ``zipfile`` has written since the last look; it cannot be moved in."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing is open."""

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def archive_chunks(rows: Sequence[Row], failures: list[Failure]) -> Iterator[bytes]:
    """The files of rows as a zip, uncompressed, one file in memory at a time.

    Only what was ingested goes in. What is gone, changed or cannot be read is added to ``failures``, and listed in
    the archive's ``MISSING.txt``.
    """
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for row, name in zip(rows, archive_names(rows), strict=True):
            try:
                with ingested_content(row) as (_, data):
                    archive.writestr(zipfile.ZipInfo(name), data)
            except ImageError as error:
                failures.append(Failure(row.path, str(error)))
            yield buffer.take()
        if failures:
            lines = "".join(f"{failure.path}: {failure.reason}\n" for failure in failures)
            archive.writestr(zipfile.ZipInfo(MISSING), lines)
    yield buffer.take()
