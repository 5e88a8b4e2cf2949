"""Whether a folder of codes is whole, and whether its codes fit into a collection; makes the collection."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mg_milvus.encoder import load_encoder
from mg_milvus.encoder_cache import keep_encoder
from mg_milvus.errors import CodeFileError, EncoderMismatchError, SchemaMismatchError, WeightsNotFoundError
from mg_milvus.schema_diff import difference
from mg_milvus.store.index_lists import fits, nlist_for, rows_a_segment

if TYPE_CHECKING:
    from mg_milvus.bulk.folder import CodeFolder
    from mg_milvus.connection import Connection
    from mg_milvus.schema import Schema
    from mg_milvus.store import Description, Store

ROW_BYTES, REGION_BYTES = 212, 59
"""Of a usual row on a server, as mgm plan counts them: the number of clusters goes with their root only."""


def checked_parts(codes: CodeFolder, *, partial: bool) -> list[str]:
    """The parts of a folder in which nothing is missing.

    Raises:
        CodeFileError: there are none; or, unless ``partial``, a shard is not finished or a part of it is gone.
    """
    parts = codes.parts()
    if not parts:
        raise CodeFileError(f"{codes.name} has no files of codes: expected a folder made by mgm encode or mgm export")
    shards = codes.shards()
    count = max(shard.count for shard in shards)
    mixed = [shard for shard in shards if shard.count != count]
    if mixed:
        raise CodeFileError(f"{codes.name} has files of the shards {mixed[0]} and n/{count}: expected one count")
    if partial:
        return parts
    finished = {shard.number: codes.finished(shard) for shard in sorted(shards, key=lambda shard: shard.number)}
    missing = [f"{number}/{count}" for number in range(1, count + 1) if finished.get(number) is None]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CodeFileError(
            f"{codes.name} is not finished, it lacks the shards {listed}: run mgm encode --shard (again) for these, or "
            "load what there is with --partial"
        )
    present = set(parts)
    for number, files in finished.items():
        for name in files or {}:
            if name not in present:
                raise CodeFileError(
                    f"{codes.name} has lost {name}: put it back, or run mgm encode --shard {number}/{count} again; or "
                    "load what there is with --partial"
                )
    return parts


def common(codes: CodeFolder, parts: list[str]) -> tuple[Description, int]:
    """What all parts say of themselves, and the number of their rows. Every part is opened.

    Raises:
        CodeFileError: they do not agree, or one is damaged.
    """
    first: Description | None = None
    total = 0
    for name in parts:
        with codes.part(name) as part:
            total += part.rows
            if first is None:
                first = part.description
            elif part.description.fingerprint != first.fingerprint:
                raise CodeFileError(
                    f"{part.name} has codes of the encoder {part.description.fingerprint}, {parts[0]} of "
                    f"{first.fingerprint}, and these cannot be compared: give all shards the same --encoder"
                )
            elif changed := _fixed_differences(first.schema, part.description.schema):
                raise CodeFileError(f"{part.name} has another schema than {parts[0]}: {changed[0]}")
    assert first is not None  # noqa: S101  (there is a part)
    return first, total


def settle(connection: Connection, codes: CodeFolder, description: Description, rows: int) -> None:
    """Make the collection with its encoder, or make sure that the one that is there can take the codes.

    Raises:
        EncoderMismatchError, SchemaMismatchError: it cannot.
    """
    recorded = connection.description()
    is_new = recorded is None
    if recorded is None:
        schema = (connection.given_schema or description.schema).model_copy(
            update={"collection": connection.collection, "encoder": description.schema.encoder}
        )
        if changed := _fixed_differences(description.schema, schema):
            raise SchemaMismatchError(
                f"the codes in {codes.name} were made with another schema: {changed[0]}; leave the schema out, or "
                "change weights, fusion and storage only"
            )
        _put_encoder(connection, codes, description.fingerprint)
        recorded = replace(description, schema=schema)
    # Again where it is there: a load that was killed may have made it without the collection of its regions.
    recorded = connection.store.create(recorded)
    if is_new and recorded.schema.storage.index == "auto":
        fit_index(connection.store, recorded.schema, rows)
    if recorded.fingerprint != description.fingerprint:
        raise EncoderMismatchError(
            f"the codes in {codes.name} are of the encoder {description.fingerprint}, collection "
            f"'{connection.collection}' was filled by {recorded.fingerprint}, and these cannot be compared: load into "
            "another --collection, or encode with the collection's own encoder, which mgm export writes into a file"
        )
    if changed := _fixed_differences(recorded.schema, description.schema):
        raise SchemaMismatchError(
            f"the codes in {codes.name} do not fit into collection '{connection.collection}': {changed[0]}; load into "
            "another --collection"
        )


def fit_index(store: Store, schema: Schema, pictures: int) -> None:
    """Give the indexes of an empty collection as many clusters as the rows to come ask for, where it has clusters.

    Args:
        store: has the collection.
        schema: the collection's.
        pictures: rows to come.
    """
    for index in store.indexes.lists():
        of_pictures = index.collection == store.collection
        rows = pictures * (1 if of_pictures or schema.parts is None else schema.parts.regions)
        if not fits(index.nlist, expected := rows_a_segment(rows, ROW_BYTES if of_pictures else REGION_BYTES)):
            store.indexes.rebuild(index.collection, nlist_for(expected))


def _put_encoder(connection: Connection, codes: CodeFolder, fingerprint: str) -> None:
    data = codes.encoder(fingerprint)
    try:
        encoder = load_encoder(data, device=connection.device)
    except WeightsNotFoundError:
        # Heads without their network, as a collection keeps large encoders: whoever asks needs the weights, not we.
        connection.store.put_encoder(fingerprint, data)
        return
    if encoder.fingerprint != fingerprint:
        raise CodeFileError(
            f"{codes.name}/encoder-{fingerprint}.safetensors is the encoder {encoder.fingerprint}: put the right file "
            "there"
        )
    keep_encoder(connection.store, encoder)


def _fixed_differences(old: Schema, new: Schema) -> list[str]:
    """What differs between two schemas in the columns of a row, as sentences; weights, fusion and storage may."""
    return [
        f"{d.key} is {d.old} there, {d.new} here"
        for d in difference(old, new)
        if d.consequence == "re-ingest" and d.key.startswith(("granularities", "fields", "parts"))
    ]
