"""Codes in Parquet files, as Milvus' bulk import wants them: one column a field, a code as ``list<uint8>``.

A file is one part of a shard. The codes of an image's regions are one more column, all of them one behind the other:
so an image and its regions are written whole or not at all, are never out of step, and take no ids. Import jobs want
rows of the companion collection in files of their own, and the newest row of each image only; both are made from
these files when they are needed (``bulk.imports``).

A file's metadata holds, under ``mg_milvus``, the description that a collection keeps of itself: schema, fingerprint,
backbone, and the number of its format, so that what a later version adds to the rows is never passed over in silence.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
from mg_milvus.store.base import Row
from mg_milvus.store.collections import decode_description, encode_description
from mg_milvus.store.regions import CODE, region_records
from mg_milvus.store.rows import Layout

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from mg_milvus.schema.models import RegionSettings, Schema
    from mg_milvus.store.base import Description
    from mg_milvus.store.rows import Record


_KEY = b"mg_milvus"
_REGIONS = "$regions"
"""The column of regions' codes; no field and no granularity can have this name."""
GROUP_ROWS = 5_000
"""Rows of one row group, which are read and loaded together."""


def arrow() -> Any:
    """The package pyarrow, with its Parquet part.

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


def to_parquet(rows: Sequence[Row], description: Description) -> bytes:
    """A whole file of codes.

    Args:
        rows: with all codes, also those of their regions, and fields.
        description: of the collection they are meant for.

    Raises:
        StoreError: a value that its column cannot hold.
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
    return _written(chunks, _columns(schema, widths), widths, _texts(schema), {_KEY: encode_description(description)})


def images_file(rows: Sequence[Row], schema: Schema) -> bytes:
    """A file for an import job: exactly the columns of the collection of images."""
    layout = Layout(schema)
    chunks = (layout.records(rows[start : start + GROUP_ROWS]) for start in range(0, len(rows), GROUP_ROWS))
    return _written(chunks, _columns(schema, layout.bytes), layout.bytes, _texts(schema))


def regions_file(rows: Sequence[Row], settings: RegionSettings) -> bytes:
    """A file for an import job: exactly the columns of the collection of regions, a row a region of these images."""
    pa = arrow()
    columns = pa.schema([("id", pa.string()), ("scale", pa.int64()), (CODE, pa.list_(pa.uint8()))])
    size = max(1, GROUP_ROWS // settings.count)
    chunks = (region_records(rows[start : start + size], settings) for start in range(0, len(rows), size))
    return _written(chunks, columns, {CODE: settings.bits // 8}, ())


def _written(
    chunks: Iterable[Sequence[Record]], columns: Any, widths: Mapping[str, int], texts: Sequence[str],
    metadata: Mapping[bytes, str] | None = None,
) -> bytes:  # fmt: skip
    """A Parquet file of records.

    Args:
        chunks: flat dictionaries, those of a row group together.
        columns: their names and types, as pyarrow's schema.
        widths: bytes of those columns that are codes.
        texts: columns of texts that come again and again.
        metadata: of the file.
    """
    pa = arrow()
    sink = pa.BufferOutputStream()
    # Parquet has no numbers of one byte: a code's would take four each, and do take one as places in a dictionary.
    repeated = [*(f"{name}.list.element" for name in widths), *texts]
    with pa.parquet.ParquetWriter(
        sink, columns.with_metadata(metadata), compression="zstd", write_page_checksum=True, use_dictionary=repeated
    ) as writer:
        for some in chunks:
            arrays = [
                _code_array([record[field.name] for record in some], widths[field.name])
                if field.name in widths
                else pa.array([record[field.name] for record in some], field.type)
                for field in columns
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=columns))
    return bytes(sink.getvalue())


class CodeFile:
    """An open file of codes.

    Attributes:
        name: what to call it in errors.
        description: schema and encoder of its codes.
        rows: their number.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        """Read what the file says of itself; ``file`` is open and seekable.

        Raises:
            CodeFileError: it is damaged, cut off, or no file of codes.
            UnsupportedError: a newer mg-milvus wrote it.
        """
        self.name = name
        self._file = self._guarded(lambda: arrow().parquet.ParquetFile(file, page_checksum_verification=True))
        kept = (self._file.metadata.metadata or {}).get(_KEY)
        try:
            self.description = decode_description((kept or b"").decode("utf-8", "replace"), name)
        except ForeignCollectionError as error:
            raise CodeFileError(f"{name} is Parquet, but no file of codes, as mgm encode makes them") from error
        except UnsupportedError as error:
            raise UnsupportedError(f"{name}: {error}") from error
        schema = self.description.schema
        if not self._file.schema_arrow.equals(_columns(schema, _widths(schema)), check_metadata=False):
            raise CodeFileError(f"{name} does not have the columns that its own schema names: make it again")
        lengths = dict.fromkeys(self._file.schema_arrow.names, 1) | _widths(schema)
        self._together = self._guarded(lambda: rows_at_once(self._file.metadata, lengths, GROUP_ROWS))
        self.rows = int(self._file.metadata.num_rows)

    def read(self) -> Iterator[list[Row]]:
        """Its rows, in order, in lists of at most ``GROUP_ROWS``.

        Raises:
            CodeFileError: it is damaged, or a row has the id of another image.
        """
        widths = _widths(self.description.schema)
        extras = [field.name for field in self.description.schema.fields]
        for batch in self._batches(None):
            plain = {
                name: self._guarded(batch.column(name).to_pylist) for name in batch.schema.names if name not in widths
            }
            codes = {name: self._codes(batch.column(name), name, width) for name, width in widths.items()}
            for key, path in zip(plain["id"], plain["path"], strict=True):
                if key != image_id(path):  # it would take the place of another image's row
                    raise CodeFileError(f"{self.name}: {key!r} is not the id of {path!r}: make the file again")
            yield [
                Row(
                    plain["id"][place], plain["path"][place], plain["size"][place], plain["mtime_ns"][place],
                    plain["width"][place], plain["height"][place], plain["content_hash"][place],
                    {name: values[place] for name, values in codes.items() if name != _REGIONS},
                    {name: plain[name][place] for name in extras},
                    codes[_REGIONS][place] if _REGIONS in codes else b"",
                )
                for place in range(len(batch))
            ]  # fmt: skip

    def stamps(self) -> Iterator[tuple[str, int, int]]:
        """Id, size and mtime_ns of each row; nothing else is read."""
        for batch in self._batches(["id", "size", "mtime_ns"]):
            yield from zip(*(batch.column(name).to_pylist() for name in ("id", "size", "mtime_ns")), strict=True)

    def _batches(self, columns: list[str] | None) -> Iterator[Any]:
        batches = self._guarded(lambda: self._file.iter_batches(batch_size=self._together, columns=columns))
        while (batch := self._guarded(lambda: next(batches, None))) is not None:
            for column, field in zip(batch.columns, batch.schema, strict=True):
                if column.null_count:
                    raise CodeFileError(f"{self.name}: {field.name} has empty cells, expected a value in every row")
            yield batch

    def _codes(self, column: Any, name: str, width: int) -> list[bytes]:
        values = column.flatten()
        lengths = np.diff(column.offsets.to_numpy(zero_copy_only=False))
        if values.null_count or (lengths != width).any():
            raise CodeFileError(f"{self.name}: a code of {name} is not {width} bytes long: make the file again")
        data = values.to_numpy(zero_copy_only=False).tobytes()
        return [data[start : start + width] for start in range(0, len(data), width)]

    def _guarded(self, action: Callable[[], Any]) -> Any:
        pa = arrow()
        try:
            return action()
        except (pa.ArrowException, OSError, ValueError) as error:  # also text that is not UTF-8
            raise CodeFileError(
                f"{self.name} is damaged or was cut off ({' '.join(str(error).split())}): delete it and run the mgm "
                "encode --shard that made it again, which makes up for it"
            ) from error


def _columns(schema: Schema, widths: Mapping[str, int]) -> Any:
    pa = arrow()
    types = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.schema(
        [(column.name, types[column.type]) for column in Layout(schema).columns]
        + [(name, pa.list_(pa.uint8())) for name in widths]
    )


def _texts(schema: Schema) -> list[str]:
    """Columns whose texts may come again and again."""
    return [field.name for field in schema.fields if field.type == "string"]


def _widths(schema: Schema) -> dict[str, int]:
    """Column -> bytes of each code, or of all codes of an image's regions."""
    return Layout(schema).bytes | ({_REGIONS: schema.regions.bytes_per_image} if schema.regions else {})


def _code_array(codes: Sequence[bytes], width: int) -> Any:
    pa = arrow()
    flat = np.frombuffer(b"".join(codes), np.uint8)
    return pa.ListArray.from_arrays(np.arange(len(codes) + 1, dtype=np.int32) * width, pa.array(flat))


_SHARD = r"shard-(\d{4,6})-of-(\d{4,6})"
_PART = re.compile(rf"({_SHARD})-(\d{{6,12}})-[0-9a-f]{{8}}\.parquet")
_MARK_BYTES = 32 << 20
"""Longest mark that is read; one of a shard of a billion images has half of it."""
_ENCODER_BYTES = 4 << 30
"""Longest encoder that is read."""
_ENCODER = re.compile(r"encoder-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True, slots=True)
class Shard:
    """One share of the images: number ``number``, from 1, of ``count``."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise QueryError(f"there is no shard {self.number}/{self.count}: expected NUMBER from 1 to COUNT")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/4`` -> the second of four.

        Raises:
            QueryError: it is written otherwise.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None:
            raise QueryError(f"'{text}' is not a shard: expected NUMBER/COUNT, such as 2/4 for the second of four")
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        """How its files begin."""
        return f"shard-{self.number:04}-of-{self.count:04}"

    def holds(self, path: str) -> bool:
        """Whether the image file, tar or table at this path is of this share. A hash of the path decides."""
        return int(image_id(path), 16) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Place(Protocol):
    """A folder that holds files, not folders."""

    def names(self) -> list[str]:
        """The names of its files, sorted; none where there is no such folder."""

    def open(self, name: str) -> BinaryIO:
        """A file, open for reading at any position."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all; makes the folder."""

    def remove(self, name: str) -> None:
        """Remove a file."""


class _Local:
    """A folder of this machine."""

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


class _Bucket:
    """A folder in a bucket, where a file appears when it is whole."""

    def __init__(self, url: str) -> None:
        self._system, path = bucket(url)
        self._path = path.rstrip("/")

    def names(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            entries = self._system.ls(self._path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def open(self, name: str) -> BinaryIO:
        # Parts are small, and reading one takes many small steps.
        return io.BytesIO(self._system.cat_file(f"{self._path}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        self._system.pipe_file(f"{self._path}/{name}", data)

    def remove(self, name: str) -> None:
        self._system.rm_file(f"{self._path}/{name}")


class CodeFolder:
    """The files of codes in one folder.

    Every method raises CodeFileError when the folder cannot be read or written.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = str(name)
        self._place: Place = _Bucket(self.name) if is_url(self.name) else _Local(Path(self.name))

    def files(self, shard: Shard | None = None) -> list[str]:
        """Names of the parts, of one shard or of all, in the order they were written; of all: shard after shard."""
        found = [(match, name) for name in self._names() if (match := _PART.fullmatch(name))]
        return [name for match, name in found if shard is None or match[1] == shard.name]

    def shards(self) -> set[Shard]:
        """The shards that there are parts or marks of."""
        pattern = re.compile(rf"{_SHARD}(-.*\.parquet|\.json)")
        matches = [match for name in self._names() if (match := pattern.fullmatch(name))]
        try:
            return {Shard(int(match[1]), int(match[2])) for match in matches}
        except QueryError as error:
            raise CodeFileError(f"{self.name}: {error}, but a file has such a name: remove it") from error

    @contextmanager
    def part(self, name: str) -> Iterator[CodeFile]:
        """One part, opened."""
        with self._guarded("read"):
            file = self._place.open(name)
        with file:
            yield CodeFile(f"{self.name.rstrip('/')}/{name}", file)

    def add_part(self, shard: Shard, data: bytes) -> str:
        """Write another part of a shard; its name."""
        mine = self.files(shard)
        number = 1 + max((int(match[4]) for name in mine if (match := _PART.fullmatch(name))), default=-1)
        name = f"{shard.name}-{number:06}-{hashlib.blake2b(data, digest_size=4).hexdigest()}.parquet"
        with self._guarded("written"):
            self._place.write(name, data)
        return name

    def finish(self, shard: Shard, rows: Mapping[str, int]) -> None:
        """Mark a shard as finished, with these parts and their rows."""
        text = json.dumps({"mg_milvus": 1, "shard": str(shard), "files": dict(rows)}, indent=1)
        with self._guarded("written"):
            self._place.write(f"{shard.name}.json", text.encode())

    def finished(self, shard: Shard) -> dict[str, int] | None:
        """Part -> rows of a shard that is finished; None when it is not."""
        name = f"{shard.name}.json"
        if name not in self._names():
            return None
        try:
            with self._guarded("read"), self._place.open(name) as file:
                text = file.read(_MARK_BYTES + 1)
            told: Any = json.loads(text) if len(text) <= _MARK_BYTES else None
            files: dict[str, int] = told["files"]
            if not all(type(rows) is int and rows >= 0 for rows in files.values()):
                raise TypeError
            return files
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CodeFileError(f"{self.name}/{name} is damaged: run mgm encode --shard {shard} again") from error

    def encoders(self) -> list[str]:
        """Fingerprints of the encoders that are kept in the folder."""
        return [match[1] for name in self._names() if (match := _ENCODER.fullmatch(name))]

    def encoder(self, fingerprint: str) -> bytes:
        """The file of an encoder.

        Raises:
            CodeFileError: it is not in the folder.
        """
        name = f"encoder-{fingerprint}.safetensors"
        if name not in self._names():
            raise CodeFileError(f"{self.name} has codes of the encoder {fingerprint}, but no {name}: put it there")
        with self._guarded("read"), self._place.open(name) as file:
            data = file.read(_ENCODER_BYTES + 1)
        if len(data) > _ENCODER_BYTES:
            raise CodeFileError(f"{self.name}/{name} has more than {_ENCODER_BYTES:,} bytes, which no encoder has")
        return data

    def keep_encoder(self, fingerprint: str, data: bytes) -> None:
        """Put the file of an encoder into the folder."""
        with self._guarded("written"):
            self._place.write(f"encoder-{fingerprint}.safetensors", data)

    def clean(self, shard: Shard) -> None:
        """Remove what a run of this shard left half-written when it was killed."""
        with self._guarded("written"):
            for name in self._names():
                if name.startswith(f".{shard.name}"):
                    self._place.remove(name)

    def _names(self) -> list[str]:
        with self._guarded("read"):
            return self._place.names()

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each protocol's library has exceptions of its own
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            raise CodeFileError(f"{self.name} cannot be {what}: {reason}") from error
