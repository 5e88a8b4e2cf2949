"""Pictures inside of files: tars (WebDataset), and Parquet tables (img2dataset, Hugging Face).

A picture in ``shots.tar`` is ``/data/shots.tar#cat.jpg``, one in a table ``/data/shots.parquet#17``, rows from 0.
Nothing is unpacked into the file system, and no more than one picture a thread is in memory.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mg_milvus.bulk.parquet import arrow
from mg_milvus.bulk.remote import MAX_BYTES
from mg_milvus.errors import PictureError
from mg_milvus.hits import Failure
from mg_milvus.images.discover import SUFFIXES, Found
from mg_milvus.metadata.bombs import rows_at_once
from mg_milvus.metadata.tables import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_HEADER_BYTES = 1 << 20
"""Longest read for a tar's own headers: names that claim to be longer would fill the memory."""
_ROWS = 16
"""Rows of a table that are in memory together."""
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "picture")


class OpenFile:
    """A file of this machine, read at any position from any thread; closed when nobody needs it any more."""

    def __init__(self, file: BinaryIO) -> None:
        """Keep a descriptor of ``file`` of our own; it may be closed, and its name removed."""
        self._descriptor = os.dup(file.fileno())

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``; fewer where the file ends."""
        chunks = []
        while size > 0 and (chunk := os.pread(self._descriptor, size, start)):
            chunks.append(chunk)
            start, size = start + len(chunk), size - len(chunk)
        return b"".join(chunks)

    def __del__(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Member(Found):
    """A picture that lies at ``start`` in a file."""

    file: OpenFile
    start: int

    def read(self) -> bytes:
        """See ``Found``."""
        data = self.file.read(self.start, self.size)
        if len(data) < self.size:
            raise PictureError(f"is cut off after {len(data)} of {self.size} bytes")
        return data


def in_tar(container: Found, file: BinaryIO, on_failure: Callable[[Failure], None]) -> Iterator[Member]:
    """The pictures in a tar, in its order: the members with the suffix of a picture that are not hidden.

    Args:
        container: the tar.
        file: the same, open; may be closed when the walk is over.
        on_failure: told of members that are no plain files, or too long, and where the tar is damaged.
    """
    opened = OpenFile(file)
    count = 0
    try:
        with tarfile.open(fileobj=_Guarded(opened), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members = []  # or they would all stay in memory
                count += 1
                name = member.name.rpartition("/")[2]
                if os.path.splitext(name)[1].lower() not in SUFFIXES or name.startswith("."):
                    continue
                path = f"{container.path}#{_text(member.name)}"
                if not member.isreg() or member.issparse():
                    on_failure(Failure(path, "is a link, a device or a sparse file in the tar, expected a plain file"))
                elif not 0 <= member.size <= MAX_BYTES:
                    on_failure(Failure(path, f"has {member.size} bytes, at most {MAX_BYTES} are read"))
                else:
                    yield Member(path, member.size, _nanoseconds(member.mtime), opened, member.offset_data)
    except (tarfile.TarError, PictureError, ValueError, OverflowError, RecursionError) as error:
        # tarfile calls itself for each long name, or extended header, that stands before another one.
        reason = "headers of headers" if isinstance(error, RecursionError) else error
        on_failure(Failure(container.path, f"is not an uncompressed tar, or damaged after {count} members: {reason}"))


class _Guarded:
    """What tarfile reads headers from: never much at once, never backwards, so that no tar fills memory or loops."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._position = self._furthest = 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise PictureError(f"a header claims {size} bytes")
        data = self._file.read(self._position, size)
        self._position += len(data)
        return data

    def seek(self, position: int) -> int:
        # tarfile looks at the byte before the next header, to see whether the last member is whole.
        if position + 1 < self._furthest:
            raise PictureError("its headers lead backwards")
        self._position = position
        self._furthest = max(self._furthest, position)
        return position

    def tell(self) -> int:
        return self._position


def in_table(container: Found, file: BinaryIO, on_failure: Callable[[Failure], None]) -> Iterator[Member]:
    """The pictures in a Parquet table, one a row.

    They are in a binary column (img2dataset: ``jpg``), or in a struct's ``bytes`` (Hugging Face: ``image``); of several
    columns the first of ``image``, ``jpg``, ``jpeg``, ``png``, ``webp``, ``img`` and ``picture``, or the only one.

    Args:
        container: the table.
        file: the same, open.
        on_failure: told of empty cells, and where the table is damaged or has no pictures.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    pa = arrow()
    row = 0
    try:
        table = pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        column = _image_column(pa, table.schema_arrow)
        together = rows_at_once(table.metadata, {column: 1}, _ROWS)
        for batch in table.iter_batches(batch_size=together, columns=[column]):
            values = batch.column(column).to_pylist()
            pictures = [value.get("bytes") if isinstance(value, dict) else value for value in values]
            for place, held in enumerate(_spooled(container, row, pictures)):
                if held is None:
                    on_failure(Failure(f"{container.path}#{row + place}", f"has no bytes in the column {column!r}"))
                elif held.size > MAX_BYTES:
                    on_failure(Failure(held.path, f"has {held.size} bytes, at most {MAX_BYTES} are read"))
                else:
                    yield held
            row += len(pictures)
    except (pa.ArrowException, OSError, ValueError) as error:  # PictureError is one, too
        reason = " ".join(str(error).split())
        on_failure(Failure(container.path, reason if isinstance(error, PictureError) else f"is damaged: {reason}"))


def _image_column(pa: Any, schema: Any) -> str:
    """Which column holds the pictures."""

    def is_binary(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    possible = [
        field.name
        for field in schema
        if is_binary(field.type)
        or (pa.types.is_struct(field.type) and any(f.name == "bytes" and is_binary(f.type) for f in field.type))
    ]
    for name in _IMAGE_COLUMNS:
        if name in possible:
            return name
    if len(possible) == 1:
        return str(possible[0])
    raise PictureError(
        f"has {'several binary columns' if possible else 'no column of pictures'} ({listed(schema.names)}): "
        f"expected one of the name {', '.join(_IMAGE_COLUMNS)}, binary or a struct with 'bytes'"
    )


def _spooled(container: Found, first: int, pictures: list[bytes | None]) -> list[Member | None]:
    """Pictures put into a file without a name, from where the threads that decode read them one by one."""
    with tempfile.TemporaryFile() as spool:
        opened, start, members = OpenFile(spool), 0, list[Member | None]()
        for place, data in enumerate(pictures):
            if data is None:
                members.append(None)
                continue
            path = f"{container.path}#{first + place}"
            members.append(Member(path, len(data), container.mtime_ns, opened, start))
            spool.write(data)
            start += len(data)
        spool.flush()
    return members


def _text(name: str) -> str:
    """The name of a member as text that is valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(os.fsencode(name))
    return name


def _nanoseconds(seconds: float) -> int:
    """A member's time; 0 for what is no time."""
    return int(seconds * 1e9) if 0 <= seconds < 2**33 else 0
