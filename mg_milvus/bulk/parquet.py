"""Codes in Parquet files, as Milvus' bulk import wants them: one column a field, a code as ``list<uint8>``.

A file is one part of a shard. Its metadata holds, under ``mg_milvus``, the description that a collection keeps of
itself: schema, fingerprint, backbone, and the number of its format, so that what a later version adds to the rows is
never passed over in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import CodeFileError, ForeignCollectionError, MissingPackageError, UnsupportedError
from mg_milvus.store import Row
from mg_milvus.store.description import decode_description, encode_description
from mg_milvus.store.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from mg_milvus.schema import Schema
    from mg_milvus.store import Description

_KEY = b"mg_milvus"
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


def refuse_regions(schema: Schema) -> None:
    """Raise UnsupportedError for a schema with regions: their codes have no place in these files."""
    if schema.parts is not None:
        raise UnsupportedError(
            f"files of codes hold those of whole pictures only, and '{schema.collection}' also has codes of "
            f"{schema.parts.regions} regions: ingest the pictures where they are wanted, or take a schema without parts"
        )


def to_parquet(rows: Sequence[Row], description: Description) -> bytes:
    """A whole file of codes.

    Args:
        rows: with all codes and fields.
        description: of the collection they are meant for.

    Raises:
        StoreError: a value that its column cannot hold.
    """
    pa = arrow()
    layout = Layout(description.schema)
    records = layout.records(rows)
    schema = _columns(description.schema)
    arrays = [
        _code_array([record[field.name] for record in records], layout.bytes[field.name])
        if field.name in layout.bytes
        else pa.array([record[field.name] for record in records], field.type)
        for field in schema
    ]
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({_KEY: encode_description(description)}))
    sink = pa.BufferOutputStream()
    # Parquet has no numbers of one byte: a code's would take four each, and do take one as places in a dictionary.
    coded = [f"{name}.list.element" for name in layout.bytes]
    pa.parquet.write_table(
        table, sink, row_group_size=GROUP_ROWS, compression="zstd", write_page_checksum=True,
        use_dictionary=[*coded, *(column.name for column in layout.extras if column.type == "string")],
    )  # fmt: skip
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
        if not self._file.schema_arrow.equals(_columns(self.description.schema), check_metadata=False):
            raise CodeFileError(f"{name} does not have the columns that its own schema names: make it again")
        self.rows = int(self._file.metadata.num_rows)

    def read(self) -> Iterator[list[Row]]:
        """Its rows, in order, in lists of at most ``GROUP_ROWS``.

        Raises:
            CodeFileError: it is damaged.
        """
        widths = Layout(self.description.schema).bytes
        extras = [field.name for field in self.description.schema.fields]
        for batch in self._batches(None):
            plain = {
                name: self._guarded(batch.column(name).to_pylist) for name in batch.schema.names if name not in widths
            }
            codes = {name: self._codes(batch.column(name), name, width) for name, width in widths.items()}
            yield [
                Row(
                    plain["id"][place], plain["path"][place], plain["size"][place], plain["mtime_ns"][place],
                    plain["width"][place], plain["height"][place], plain["content_hash"][place],
                    {name: values[place] for name, values in codes.items()},
                    {name: plain[name][place] for name in extras},
                )
                for place in range(len(batch))
            ]  # fmt: skip

    def stamps(self) -> Iterator[tuple[str, int, int]]:
        """Id, size and mtime_ns of each row; nothing else is read."""
        for batch in self._batches(["id", "size", "mtime_ns"]):
            yield from zip(*(batch.column(name).to_pylist() for name in ("id", "size", "mtime_ns")), strict=True)

    def _batches(self, columns: list[str] | None) -> Iterator[Any]:
        batches = self._guarded(lambda: self._file.iter_batches(batch_size=GROUP_ROWS, columns=columns))
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


def _columns(schema: Schema) -> Any:
    pa = arrow()
    types = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    layout = Layout(schema)
    return pa.schema(
        [(column.name, types[column.type]) for column in layout.columns]
        + [(name, pa.list_(pa.uint8())) for name in layout.bytes]
    )


def _code_array(codes: Sequence[bytes], width: int) -> Any:
    pa = arrow()
    flat = np.frombuffer(b"".join(codes), np.uint8)
    return pa.ListArray.from_arrays(np.arange(len(codes) + 1, dtype=np.int32) * width, pa.array(flat))
