"""Codes in Parquet files, as Milvus' bulk import wants them: one column a field, a code as ``list<uint8>``.

A file is one part of a shard. The codes of a picture's regions are one more column, all of them one behind the other:
so a picture and its regions are written whole or not at all, are never out of step, and take no ids. Import jobs want
rows of the companion collection in files of their own, and the newest row of each picture only; both are made from
these files when they are needed (``bulk.imports``).

A file's metadata holds, under ``mg_milvus``, the description that a collection keeps of itself: schema, fingerprint,
backbone, and the number of its format, so that what a later version adds to the rows is never passed over in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import CodeFileError, ForeignCollectionError, MissingPackageError, StoreError, UnsupportedError
from mg_milvus.images.discover import picture_id
from mg_milvus.metadata.bombs import rows_at_once
from mg_milvus.store import Row
from mg_milvus.store.description import decode_description, encode_description
from mg_milvus.store.layout import Layout
from mg_milvus.store.region_layout import CODE, region_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from mg_milvus.schema import Schema
    from mg_milvus.schema_parts import PartsSettings
    from mg_milvus.store import Description
    from mg_milvus.store.layout import Record

_KEY = b"mg_milvus"
_REGIONS = "$parts"
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
            if len(row.parts) != widths[_REGIONS]:
                raise StoreError(f"row {row.id}: {len(row.parts)} bytes of region codes, expected {widths[_REGIONS]}")
            record[_REGIONS] = row.parts
    chunks = (records[start : start + GROUP_ROWS] for start in range(0, max(len(records), 1), GROUP_ROWS))
    return _written(chunks, _columns(schema, widths), widths, _texts(schema), {_KEY: encode_description(description)})


def pictures_file(rows: Sequence[Row], schema: Schema) -> bytes:
    """A file for an import job: exactly the columns of the collection of pictures."""
    layout = Layout(schema)
    chunks = (layout.records(rows[start : start + GROUP_ROWS]) for start in range(0, len(rows), GROUP_ROWS))
    return _written(chunks, _columns(schema, layout.bytes), layout.bytes, _texts(schema))


def regions_file(rows: Sequence[Row], parts: PartsSettings) -> bytes:
    """A file for an import job: exactly the columns of the collection of regions, a row a region of these pictures."""
    pa = arrow()
    columns = pa.schema([("id", pa.string()), ("scale", pa.int64()), (CODE, pa.list_(pa.uint8()))])
    size = max(1, GROUP_ROWS // parts.regions)
    chunks = (region_records(rows[start : start + size], parts) for start in range(0, len(rows), size))
    return _written(chunks, columns, {CODE: parts.bits // 8}, ())


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
            CodeFileError: it is damaged, or a row has the id of another picture.
        """
        widths = _widths(self.description.schema)
        extras = [field.name for field in self.description.schema.fields]
        for batch in self._batches(None):
            plain = {
                name: self._guarded(batch.column(name).to_pylist) for name in batch.schema.names if name not in widths
            }
            codes = {name: self._codes(batch.column(name), name, width) for name, width in widths.items()}
            for key, path in zip(plain["id"], plain["path"], strict=True):
                if key != picture_id(path):  # it would take the place of another picture's row
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
    """Column -> bytes of each code, or of all codes of a picture's regions."""
    return Layout(schema).bytes | ({_REGIONS: schema.parts.bytes_per_picture} if schema.parts else {})


def _code_array(codes: Sequence[bytes], width: int) -> Any:
    pa = arrow()
    flat = np.frombuffer(b"".join(codes), np.uint8)
    return pa.ListArray.from_arrays(np.arange(len(codes) + 1, dtype=np.int32) * width, pa.array(flat))
