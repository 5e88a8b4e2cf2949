"""Codes in Parquet files, and folders of such files, on this machine or in a bucket.

A file is one part of a shard: one column a field, a code as ``list<uint8>``, as the bulk import of Milvus expects. All
codes of an image's regions are one more column, so that an image and its regions are written together. Import jobs
need one file for each collection, which ``images_file`` and ``regions_file`` make from the rows.

The metadata of a file holds, under ``mg_milvus``, the description of the collection: schema, fingerprint, backbone, and
the version of the format.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.bulk.remote import bucket
from mg_milvus.errors import (
    CodeFileError,
    ForeignCollectionError,
    MissingPackageError,
    QueryError,
    StoreError,
    UnsupportedError,
)
from mg_milvus.files import open_plain, write_whole
from mg_milvus.images.discover import image_id, is_url
from mg_milvus.ingest.metadata import rows_at_once
from mg_milvus.schema.tags import TAG_COLUMN, from_column
from mg_milvus.store.base import Row
from mg_milvus.store.collections import decode_description, encode_description
from mg_milvus.store.regions import CODE, region_records
from mg_milvus.store.rows import Layout, value_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from mg_milvus.schema.models import RegionSettings, Schema
    from mg_milvus.store.base import Description
    from mg_milvus.store.rows import Record


_KEY = b"mg_milvus"
_REGIONS = "$regions"
"""Column of the codes of all regions; no field and no granularity can have this name."""
GROUP_ROWS = 5_000
"""Rows of a row group, which are read and loaded together."""
ROWS_PER_FILE = 100_000
BYTES_PER_FILE = 64 << 20
"""Most rows, and bytes of codes, of a file of an export or an import job."""
_MAX_MARK_BYTES = 32 << 20
"""Size of the largest mark that is read; that of a shard of a billion images has half of it."""
_MAX_ENCODER_BYTES = 4 << 30
"""Size of the largest encoder that is read."""


def arrow() -> Any:
    """The package pyarrow, with its module parquet.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            "files of codes are Parquet, which needs pyarrow: pip install 'mg-milvus[parquet]'"
        ) from error
    return pyarrow


def rows_per_file(schema: Schema) -> int:
    """Rows of one file of an export or an import job."""
    return min(ROWS_PER_FILE, max(1, BYTES_PER_FILE // schema.bytes_per_image))


def to_parquet(rows: Sequence[Row], description: Description) -> bytes:
    """The content of a file of codes.

    Args:
        rows: with all codes, those of their regions included, and fields.
        description: of the collection that the rows are for.

    Raises:
        StoreError: a value does not fit into its column.
    """
    schema, widths = description.schema, _widths(description.schema)
    records = Layout(schema).records(rows)
    if _REGIONS in widths:
        for record, row in zip(records, rows, strict=True):
            if len(row.region_codes) != widths[_REGIONS]:
                raise StoreError(
                    f"row {row.id}: {len(row.region_codes)} bytes of region codes, expected {widths[_REGIONS]}"
                )
            record[_REGIONS] = row.region_codes
    chunks = (records[start : start + GROUP_ROWS] for start in range(0, max(len(records), 1), GROUP_ROWS))
    own = encode_description(replace(description, added=()))
    return _write(chunks, _columns(schema, widths), widths, _texts(schema), {_KEY: own})


def images_file(rows: Sequence[Row], schema: Schema) -> bytes:
    """A file for an import job, with exactly the columns of the collection of images."""
    layout = Layout(schema)
    chunks = (layout.records(rows[start : start + GROUP_ROWS]) for start in range(0, len(rows), GROUP_ROWS))
    return _write(chunks, _columns(schema, layout.bytes), layout.bytes, _texts(schema))


def regions_file(rows: Sequence[Row], settings: RegionSettings) -> bytes:
    """A file for an import job, with exactly the columns of the collection of regions: one row a region of the rows."""
    pa = arrow()
    columns = pa.schema([("id", pa.string()), ("scale", pa.int64()), (CODE, pa.list_(pa.uint8()))])
    size = max(1, GROUP_ROWS // settings.count)
    chunks = (region_records(rows[start : start + size], settings) for start in range(0, len(rows), size))
    return _write(chunks, columns, {CODE: settings.bits // 8}, ())


def _write(
    chunks: Iterable[Sequence[Record]], columns: Any, widths: Mapping[str, int], texts: Sequence[str],
    metadata: Mapping[bytes, str] | None = None,
) -> bytes:  # fmt: skip
    """A Parquet file of records.

    Args:
        chunks: the records of one row group each.
        columns: names and types, as a pyarrow schema.
        widths: column of codes -> bytes of a code.
        texts: columns of text that may repeat.
        metadata: of the file.
    """
    pa = arrow()
    sink = pa.BufferOutputStream()
    # Parquet stores uint8 in four bytes, as indices of a dictionary in one.
    repeated = [*(f"{name}.list.element" for name in widths), *texts]
    with pa.parquet.ParquetWriter(
        sink, columns.with_metadata(metadata), compression="zstd", write_page_checksum=True, use_dictionary=repeated
    ) as writer:
        for records in chunks:
            arrays = [
                _code_array([record[field.name] for record in records], widths[field.name])
                if field.name in widths
                else pa.array([record[field.name] for record in records], field.type)
                for field in columns
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=columns))
    return bytes(sink.getvalue())


class CodeFile:
    """An open file of codes.

    Attributes:
        name: its name in errors.
        description: schema and encoder of its codes.
        rows: their number.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        """Read the metadata of ``file``, which is open and seekable.

        Raises:
            CodeFileError: it is damaged, cut off, or no file of codes.
            UnsupportedError: a newer version of mg-milvus wrote it.
        """
        self.name = name
        self._file = self._guarded(lambda: arrow().parquet.ParquetFile(file, page_checksum_verification=True))
        metadata = (self._file.metadata.metadata or {}).get(_KEY, b"")
        try:
            self.description = decode_description(metadata.decode("utf-8", "replace"), name)
        except ForeignCollectionError as error:
            raise CodeFileError(f"{name} is Parquet, but not a file of codes made by mgm encode") from error
        except UnsupportedError as error:
            raise UnsupportedError(f"{name}: {error}") from error
        schema = self.description.schema
        if not self._file.schema_arrow.equals(_columns(schema, _widths(schema)), check_metadata=False):
            raise CodeFileError(f"{name} does not have the columns of its own schema: encode it again")
        lengths = dict.fromkeys(self._file.schema_arrow.names, 1) | _widths(schema)
        self._batch_rows = self._guarded(lambda: rows_at_once(self._file.metadata, lengths, GROUP_ROWS))
        self.rows = int(self._file.metadata.num_rows)

    def read(self) -> Iterator[list[Row]]:
        """The rows in order, in lists of at most ``GROUP_ROWS``.

        Raises:
            CodeFileError: the file is damaged, or a row has the id of another image.
        """
        widths = _widths(self.description.schema)
        extras = Layout(self.description.schema).extras
        for batch in self._batches(None):
            plain = {
                name: self._guarded(batch.column(name).to_pylist) for name in batch.schema.names if name not in widths
            }
            codes = {name: self._codes(batch.column(name), name, width) for name, width in widths.items()}
            for key, path in zip(plain["id"], plain["path"], strict=True):
                if key != image_id(path):  # the row would replace that of another image
                    raise CodeFileError(f"{self.name}: {key!r} is not the id of {path!r}: encode it again")
            yield [
                Row(
                    plain["id"][place], plain["path"][place], plain["size"][place], plain["mtime_ns"][place],
                    plain["width"][place], plain["height"][place], plain["content_hash"][place],
                    {name: values[place] for name, values in codes.items() if name != _REGIONS},
                    {column.name: value_of(column, plain[column.name][place]) for column in extras},
                    codes[_REGIONS][place] if _REGIONS in codes else b"",
                    self._tags(plain[TAG_COLUMN][place]),
                    plain["taken"][place],
                )
                for place in range(len(batch))
            ]  # fmt: skip

    def _tags(self, value: int) -> tuple[int, ...]:
        try:
            return from_column(value)
        except ValueError as error:
            raise CodeFileError(f"{self.name}: {error}: encode it again") from error

    def stamps(self) -> Iterator[tuple[str, int, int]]:
        """Id, size and mtime_ns of each row; only these columns are read."""
        for batch in self._batches(["id", "size", "mtime_ns"]):
            yield from zip(*(batch.column(name).to_pylist() for name in ("id", "size", "mtime_ns")), strict=True)

    def _batches(self, columns: list[str] | None) -> Iterator[Any]:
        batches = self._guarded(lambda: self._file.iter_batches(batch_size=self._batch_rows, columns=columns))
        while (batch := self._guarded(lambda: next(batches, None))) is not None:
            for column, field in zip(batch.columns, batch.schema, strict=True):
                if column.null_count:
                    raise CodeFileError(f"{self.name}: {field.name} has empty cells, expected a value in every row")
            yield batch

    def _codes(self, column: Any, name: str, width: int) -> list[bytes]:
        values = column.flatten()
        lengths = np.diff(column.offsets.to_numpy(zero_copy_only=False))
        if values.null_count or (lengths != width).any():
            raise CodeFileError(f"{self.name}: a code of {name} is not {width} bytes long: encode it again")
        data = values.to_numpy(zero_copy_only=False).tobytes()
        return [data[start : start + width] for start in range(0, len(data), width)]

    def _guarded(self, action: Callable[[], Any]) -> Any:
        pa = arrow()
        try:
            return action()
        except (pa.ArrowException, OSError, ValueError) as error:  # also text that is not UTF-8
            raise CodeFileError(
                f"{self.name} is damaged or was cut off ({' '.join(str(error).split())}): delete it and run its mgm "
                "encode --shard again"
            ) from error


def _columns(schema: Schema, widths: Mapping[str, int]) -> Any:
    pa = arrow()
    types = {
        "string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.int8(),
    }  # fmt: skip
    return pa.schema(
        [(column.name, types[column.type]) for column in Layout(schema).columns]
        + [(name, pa.list_(pa.uint8())) for name in widths]
    )


def _texts(schema: Schema) -> list[str]:
    """Columns of text that may repeat."""
    return [field.name for field in schema.fields if field.type == "string"]


def _widths(schema: Schema) -> dict[str, int]:
    """Column -> bytes of a code, or of the codes of all regions of an image."""
    return Layout(schema).bytes | ({_REGIONS: schema.regions.bytes_per_image} if schema.regions else {})


def _code_array(codes: Sequence[bytes], width: int) -> Any:
    pa = arrow()
    flat = np.frombuffer(b"".join(codes), np.uint8)
    return pa.ListArray.from_arrays(np.arange(len(codes) + 1, dtype=np.int32) * width, pa.array(flat))


_SHARD = r"shard-(\d{4,6})-of-(\d{4,6})"
_PART = re.compile(rf"({_SHARD})-(\d{{6,12}})-[0-9a-f]{{8}}\.parquet")
_ENCODER = re.compile(r"encoder-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` shares of the images; ``number`` counts from 1."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise QueryError(f"there is no shard {self.number}/{self.count}: expected a number from 1 to {self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/4`` -> the second of four.

        Raises:
            QueryError: another form.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None:
            raise QueryError(f"'{text}' is not a shard: expected NUMBER/COUNT, such as 2/4 for the second of four")
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        """Beginning of the names of its files."""
        return f"shard-{self.number:04}-of-{self.count:04}"

    def holds(self, path: str) -> bool:
        """Whether the image file, tar or table at this path belongs to the shard, by a hash of the path."""
        return int(image_id(path), 16) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class _LocalFolder:
    """The files of a folder of this machine. ``write`` makes the folder and writes a file whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        return sorted(path.name for path in self._path.iterdir()) if self._path.exists() else []

    def open(self, name: str) -> BinaryIO:
        return open_plain(self._path / name)

    def write(self, name: str, data: bytes) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        write_whole(self._path / name, data)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class BucketFolder:
    """The files of a folder in a bucket, where a file appears once it is whole."""

    def __init__(self, url: str, subfolder: str = "") -> None:
        """Open the file system of a URL.

        Raises:
            ImageError: it is not the URL of a bucket.
        """
        self._system, path = bucket(url)
        self.path = f"{path.rstrip('/')}/{subfolder}".rstrip("/")

    def names(self) -> list[str]:
        """Names of the files, sorted; none where there is no such folder."""
        self._system.invalidate_cache()
        try:
            entries = self._system.ls(self.path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def open(self, name: str) -> BinaryIO:
        """A file, open for reading at any position."""
        # In memory: files are small, and Parquet is read in many small steps.
        return io.BytesIO(self._system.cat_file(f"{self.path}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        self._system.pipe_file(f"{self.path}/{name}", data)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._system.rm_file(f"{self.path}/{name}")

    def remove_all(self) -> None:
        """Remove the folder, if there is one."""
        if self._system.exists(self.path):
            self._system.rm(self.path, recursive=True)


@contextmanager
def folder_errors(folder: str, action: str) -> Iterator[None]:
    """Turn the errors of file systems into CodeFileError: "``folder`` cannot be ``action``"."""
    try:
        yield
    except Exception as error:  # each protocol's library has its own exceptions
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise CodeFileError(f"{folder} cannot be {action}: {reason}") from error


class CodeFolder:
    """A folder of files of codes, with the mark of each finished shard and the encoder.

    Methods raise CodeFileError when the folder cannot be read or written.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = str(name)
        self._folder = BucketFolder(self.name) if is_url(self.name) else _LocalFolder(Path(self.name))

    def files(self, shard: Shard | None = None) -> list[str]:
        """Names of the parts of one shard, or of all shard by shard, in the order they were written."""
        parts = [(match[1], name) for name in self._names() if (match := _PART.fullmatch(name))]
        return [name for owner, name in parts if shard is None or owner == shard.name]

    def shards(self) -> set[Shard]:
        """The shards with parts or marks."""
        pattern = re.compile(rf"{_SHARD}(-.*\.parquet|\.json)")
        matches = [match for name in self._names() if (match := pattern.fullmatch(name))]
        try:
            return {Shard(int(match[1]), int(match[2])) for match in matches}
        except QueryError as error:
            raise CodeFileError(f"{self.name}: {error}, but a file is named so: remove it") from error

    @contextmanager
    def part(self, name: str) -> Iterator[CodeFile]:
        """Open a part."""
        with folder_errors(self.name, "read"):
            file = self._folder.open(name)
        with file:
            yield CodeFile(f"{self.name.rstrip('/')}/{name}", file)

    def add_part(self, shard: Shard, data: bytes) -> str:
        """Write another part of a shard; returns its name."""
        matches = [_PART.fullmatch(name) for name in self.files(shard)]
        number = 1 + max((int(match[4]) for match in matches if match), default=-1)
        name = f"{shard.name}-{number:06}-{hashlib.blake2b(data, digest_size=4).hexdigest()}.parquet"
        self._write(name, data)
        return name

    def finish(self, shard: Shard, rows: Mapping[str, int]) -> None:
        """Mark a shard as finished; ``rows`` holds part -> rows."""
        text = json.dumps({"mg_milvus": 1, "shard": str(shard), "files": dict(rows)}, indent=1)
        self._write(f"{shard.name}.json", text.encode())

    def finished(self, shard: Shard) -> dict[str, int] | None:
        """Part -> rows of a finished shard; None when it is not finished."""
        name = f"{shard.name}.json"
        if name not in self._names():
            return None
        try:
            data = self._read(name, _MAX_MARK_BYTES)
            mark: Any = json.loads(data) if data is not None else None
            files: dict[str, int] = mark["files"]
            if not all(type(rows) is int and rows >= 0 for rows in files.values()):
                raise TypeError
            return files
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            if isinstance(error, CodeFileError):
                raise
            raise CodeFileError(f"{self.name}/{name} is damaged: run mgm encode --shard {shard} again") from error

    def encoders(self) -> list[str]:
        """Fingerprints of the encoders in the folder."""
        return [match[1] for name in self._names() if (match := _ENCODER.fullmatch(name))]

    def encoder(self, fingerprint: str) -> bytes:
        """The file of an encoder.

        Raises:
            CodeFileError: it is not in the folder.
        """
        name = f"encoder-{fingerprint}.safetensors"
        if name not in self._names():
            raise CodeFileError(f"{self.name} has codes of the encoder {fingerprint}, but no {name}: put it there")
        data = self._read(name, _MAX_ENCODER_BYTES)
        if data is None:
            raise CodeFileError(f"{self.name}/{name} has more than {_MAX_ENCODER_BYTES:,} bytes, which no encoder has")
        return data

    def add_encoder(self, fingerprint: str, data: bytes) -> None:
        """Write the file of an encoder."""
        self._write(f"encoder-{fingerprint}.safetensors", data)

    def clean(self, shard: Shard) -> None:
        """Remove the incomplete files of a killed run of this shard."""
        with folder_errors(self.name, "written"):
            for name in self._names():
                if name.startswith(f".{shard.name}"):
                    self._folder.remove(name)

    def _names(self) -> list[str]:
        with folder_errors(self.name, "read"):
            return self._folder.names()

    def _read(self, name: str, most: int) -> bytes | None:
        """The content of a file; None when it has more than ``most`` bytes."""
        with folder_errors(self.name, "read"), self._folder.open(name) as file:
            data = file.read(most + 1)
        return data if len(data) <= most else None

    def _write(self, name: str, data: bytes) -> None:
        with folder_errors(self.name, "written"):
            self._folder.write(name, data)
