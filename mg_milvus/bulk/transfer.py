"""``mgm load`` and ``mgm export``: folders of codes into Milvus, and collections back into folders of codes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mg_milvus.bulk.folder import CodeFolder, Shard
from mg_milvus.bulk.imports import Importer
from mg_milvus.bulk.parquet import to_parquet
from mg_milvus.bulk.settle import checked_parts, common, settle
from mg_milvus.errors import CodeFileError, StoreError
from mg_milvus.hits import Progress

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from mg_milvus.connection import Connection
    from mg_milvus.store import Row, Store

    PathLike = str | os.PathLike[str]

ROWS_A_FILE = 100_000
BYTES_A_FILE = 64 << 20
"""Rows, and bytes of codes, of one file of an export, at most."""


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What a load or an export did.

    Attributes:
        collection: its name.
        rows: read and written; a picture that two files have counts twice.
        files: parts read or written.
        fingerprint: of the encoder.
        seconds: wall time.
    """

    collection: str
    rows: int
    files: int
    fingerprint: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {"seconds": round(self.seconds, 3)}


def load(
    connection: Connection, folder: PathLike, *, partial: bool = False, bucket: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TransferReport:  # fmt: skip
    """Put a folder of codes into a collection; see ``ImageIndex.load``."""
    started = time.perf_counter()
    codes = CodeFolder(folder)
    parts = checked_parts(codes, partial=partial)
    description, total = common(codes, parts)
    connection.prefer(description.schema.collection)
    importer = None if bucket is None else Importer(connection, bucket)
    settle(connection, codes, description, total)
    done = 0 if importer is None else importer.load(codes, parts, progress or (lambda _: None))
    for name in parts if importer is None else ():
        with codes.part(name) as part:
            for rows in part.read():
                newest: dict[str, Row] = {row.id: row for row in rows}
                connection.store.upsert(list(newest.values()))
                done += len(rows)
                if progress is not None:
                    progress(Progress("loading", done, total, 0))
    return TransferReport(
        connection.collection, done, len(parts), description.fingerprint, time.perf_counter() - started
    )  # fmt: skip


def export(
    connection: Connection, folder: PathLike, *, progress: Callable[[Progress], None] | None = None
) -> TransferReport:
    """Write a collection into an empty folder of codes; see ``ImageIndex.export``."""
    started = time.perf_counter()
    description, store = connection.existing(), connection.store
    codes, shard = CodeFolder(folder), Shard()
    if codes.shards():
        raise CodeFileError(f"{codes.name} has files of codes already: choose an empty folder, or remove them first")
    data = store.get_encoder(description.fingerprint)
    codes.keep_encoder(description.fingerprint, connection.encoder.to_bytes() if data is None else data)
    total, done = store.count(), 0
    parts: dict[str, int] = {}
    waiting: list[Row] = []

    def write() -> None:
        parts[codes.add_part(shard, to_parquet(waiting, description))] = len(waiting)
        waiting.clear()

    enough = min(ROWS_A_FILE, max(1, BYTES_A_FILE // description.schema.bytes_per_picture))
    for rows in store.scan(granularities=tuple(description.schema.bits)):
        waiting += rows if description.schema.parts is None else _with_regions(store, rows)
        done += len(rows)
        if len(waiting) >= enough:
            write()
        if progress is not None:
            progress(Progress("exporting", done, total, 0))
    if waiting or not parts:
        write()
    codes.finish(shard, parts)
    return TransferReport(
        connection.collection, done, len(parts), description.fingerprint, time.perf_counter() - started
    )  # fmt: skip


def _with_regions(store: Store, rows: list[Row]) -> list[Row]:
    """The rows with the codes of their regions.

    Raises:
        StoreError: a row lacks some.
    """
    codes = store.regions.codes([row.id for row in rows])
    for row in rows:
        if row.id not in codes:
            raise StoreError(
                f"{row.path} lacks codes of its regions, which a crash or another program left behind: mgm ingest of "
                "its folder encodes them again, mgm doctor says how many there are"
            )
    return [replace(row, parts=codes[row.id]) for row in rows]
