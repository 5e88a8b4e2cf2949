"""Load a folder of codes into a collection, and export a collection into a folder of codes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mg_milvus.bulk.dataset import CodeFolder, Shard, rows_per_file, to_parquet
from mg_milvus.bulk.import_jobs import Importer, ImportPlace
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import (
    CodeFileError,
    EncoderMismatchError,
    SchemaMismatchError,
    StoreError,
    UnsupportedError,
    WeightsNotFoundError,
)
from mg_milvus.records import Progress
from mg_milvus.schema.diff import difference
from mg_milvus.session import keep_encoder
from mg_milvus.store.base import fits, nlist_for, rows_a_segment

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from mg_milvus.schema.models import Schema
    from mg_milvus.session import Session
    from mg_milvus.store.base import Description, Row, Store

    PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TransferReport:
    """Result of a load or an export.

    Attributes:
        collection: its name.
        rows: rows read and written; an image in two files counts twice.
        files: files read or written.
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
    session: Session, folder: PathLike, *, partial: bool = False, place: ImportPlace | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TransferReport:  # fmt: skip
    """Load a folder of codes into a collection; see ``ImageIndex.load``."""
    started = time.perf_counter()
    codes = CodeFolder(folder)
    files = complete_files(codes, partial=partial)
    description, total = _describe(codes, files)
    session.prefer(description.schema.collection)
    importer = None if place is None else Importer(session, place)
    _prepare_collection(session, codes, description, total)
    if importer is not None and session.existing().added:
        raise UnsupportedError(
            f"collection '{session.collection}' has columns that were added later, which no import job fills: load "
            "without --bucket, or into a new --collection"
        )
    done = 0 if importer is None else importer.load(codes, files, progress or (lambda _: None))
    for name in files if importer is None else ():
        with codes.part(name) as part:
            for rows in part.read():
                newest: dict[str, Row] = {row.id: row for row in rows}
                session.store.upsert(list(newest.values()))
                done += len(rows)
                if progress is not None:
                    progress(Progress("loading", done, total, 0))
    return TransferReport(
        session.collection, done, len(files), description.fingerprint, time.perf_counter() - started
    )  # fmt: skip


def export(session: Session, folder: PathLike, *, progress: Callable[[Progress], None] | None = None) -> TransferReport:
    """Export a collection into an empty folder of codes; see ``ImageIndex.export``."""
    started = time.perf_counter()
    description, store = session.existing(), session.store
    codes, shard = CodeFolder(folder), Shard()
    if codes.shards():
        raise CodeFileError(f"{codes.name} has files of codes already: choose an empty folder, or remove them first")
    data = store.get_encoder(description.fingerprint)
    codes.add_encoder(description.fingerprint, session.encoder.to_bytes() if data is None else data)
    total, done = store.count(), 0
    files: dict[str, int] = {}
    waiting: list[Row] = []

    def write() -> None:
        files[codes.add_part(shard, to_parquet(waiting, description))] = len(waiting)
        waiting.clear()

    enough = rows_per_file(description.schema)
    for rows in store.scan(granularities=tuple(description.schema.bits)):
        waiting += rows if description.schema.regions is None else _with_regions(store, rows)
        done += len(rows)
        if len(waiting) >= enough:
            write()
        if progress is not None:
            progress(Progress("exporting", done, total, 0))
    if waiting or not files:
        write()
    codes.finish(shard, files)
    return TransferReport(
        session.collection, done, len(files), description.fingerprint, time.perf_counter() - started
    )  # fmt: skip


ROW_BYTES, REGION_BYTES = 228, 59
"""Approximate bytes of a row on a server (mgm plan); the number of clusters grows only with their square root."""


def complete_files(codes: CodeFolder, *, partial: bool) -> list[str]:
    """The files of a folder, after a check that none is missing.

    Raises:
        CodeFileError: there are none; or, unless ``partial``, a shard is not finished or one of its parts is missing.
    """
    files = codes.files()
    if not files:
        raise CodeFileError(f"{codes.name} has no files of codes: expected a folder made by mgm encode or mgm export")
    shards = codes.shards()
    count = max(shard.count for shard in shards)
    if mixed := [shard for shard in shards if shard.count != count]:
        raise CodeFileError(f"{codes.name} has files of the shards {mixed[0]} and n/{count}: expected one count")
    if partial:
        return files
    finished = {shard.number: codes.finished(shard) for shard in sorted(shards, key=lambda shard: shard.number)}
    missing = [f"{number}/{count}" for number in range(1, count + 1) if finished.get(number) is None]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CodeFileError(
            f"{codes.name} is not finished, it lacks the shards {listed}: run mgm encode --shard for these, or load "
            "the existing files with --partial"
        )
    present = set(files)
    for number, parts in finished.items():
        for name in parts or {}:
            if name not in present:
                raise CodeFileError(
                    f"{codes.name} has lost {name}: restore it, or run mgm encode --shard {number}/{count} again; or "
                    "load the existing files with --partial"
                )
    return files


def _describe(codes: CodeFolder, files: list[str]) -> tuple[Description, int]:
    """The description that all files share, and the number of their rows.

    Raises:
        CodeFileError: the descriptions differ, or a file is damaged.
    """
    first: Description | None = None
    total = 0
    for name in files:
        with codes.part(name) as part:
            total += part.rows
            if first is None:
                first = part.description
            elif part.description.fingerprint != first.fingerprint:
                raise CodeFileError(
                    f"{part.name} has codes of the encoder {part.description.fingerprint}, {files[0]} of "
                    f"{first.fingerprint}, and these cannot be compared: give all shards the same --encoder"
                )
            elif changed := _fixed_differences(first.schema, part.description.schema):
                raise CodeFileError(f"{part.name} has another schema than {files[0]}: {changed[0]}")
    assert first is not None  # noqa: S101  (there is a part)
    return first, total


def _prepare_collection(session: Session, codes: CodeFolder, description: Description, rows: int) -> None:
    """Create the collection with its encoder, or check that the existing one accepts the codes.

    Raises:
        EncoderMismatchError, SchemaMismatchError: it does not.
    """
    recorded = session.description()
    is_new = recorded is None
    if recorded is None:
        schema = (session.given_schema or description.schema).model_copy(
            update={"collection": session.collection, "encoder": description.schema.encoder}
        )
        if changed := _fixed_differences(description.schema, schema):
            raise SchemaMismatchError(
                f"the codes in {codes.name} were made with another schema: {changed[0]}; omit the schema, or change "
                "weights, fusion and storage only"
            )
        _put_encoder(session, codes, description.fingerprint, schema)
        recorded = replace(description, schema=schema)
    # Also if it exists: a killed load may have created it without the collection of its regions.
    recorded = session.store.create(recorded)
    if is_new and recorded.schema.storage.index == "auto":
        fit_index(session.store, recorded.schema, rows)
    if recorded.fingerprint != description.fingerprint:
        raise EncoderMismatchError(
            f"the codes in {codes.name} are of the encoder {description.fingerprint}, collection "
            f"'{session.collection}' was filled by {recorded.fingerprint}, and these cannot be compared: load into "
            "another --collection, or encode with the encoder of the collection, which mgm export writes to a file"
        )
    known = {field.name for field in recorded.schema.fields}
    new = [field for field in description.schema.fields if field.name not in known]
    wider = recorded.schema.model_copy(update={"fields": (*recorded.schema.fields, *new)})
    if changed := _fixed_differences(wider, description.schema):
        raise SchemaMismatchError(
            f"the codes in {codes.name} do not fit into collection '{session.collection}': {changed[0]}; load into "
            "another --collection"
        )
    session.add_fields(new)


def fit_index(store: Store, schema: Schema, images: int) -> None:
    """Rebuild the indexes with clusters of an empty collection for the expected row count.

    Args:
        store: of the collection.
        schema: of the collection.
        images: expected number of images.
    """
    for index in store.indexes.lists():
        of_images = index.collection == store.collection
        rows = images * (1 if of_images or schema.regions is None else schema.regions.count)
        if not fits(index.nlist, expected := rows_a_segment(rows, ROW_BYTES if of_images else REGION_BYTES)):
            store.indexes.rebuild(index.collection, nlist_for(expected))


def _put_encoder(session: Session, codes: CodeFolder, fingerprint: str, schema: Schema) -> None:
    """Store the encoder of the codes, if it is the right one and the server can hold the schema."""
    data = codes.encoder(fingerprint)
    try:
        encoder = load_encoder(data, device=session.device)
    except WeightsNotFoundError:
        # Only hash heads, as collections store large encoders: queries need the weights, a load does not.
        session.store.check(schema)
        session.store.put_encoder(fingerprint, data)
        return
    if encoder.fingerprint != fingerprint:
        raise CodeFileError(
            f"{codes.name}/encoder-{fingerprint}.safetensors is the encoder {encoder.fingerprint}: put the right file "
            "there"
        )
    session.store.check(schema)
    keep_encoder(session.store, encoder)


def _fixed_differences(old: Schema, new: Schema) -> list[str]:
    """The differences between two schemas in the columns of a row, as text; weights, fusion and storage may differ."""
    return [
        f"{d.key} is {d.old} there, {d.new} here"
        for d in difference(old, new)
        if (d.consequence == "re-ingest" or d.old is None) and d.key.startswith(("granularities", "fields", "regions"))
    ]


def _with_regions(store: Store, rows: list[Row]) -> list[Row]:
    """The rows with the codes of their regions.

    Raises:
        StoreError: a row lacks some.
    """
    codes = store.regions.codes([row.id for row in rows])
    for row in rows:
        if row.id not in codes:
            raise StoreError(
                f"{row.path} lacks codes of its regions after a crash or a change by another program: mgm ingest of "
                "its folder encodes them again, mgm doctor counts them"
            )
    return [replace(row, region_codes=codes[row.id]) for row in rows]
