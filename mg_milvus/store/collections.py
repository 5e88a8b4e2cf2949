"""Collections in Milvus: their descriptions as JSON, and how they are created, indexed, loaded and written."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError
from pymilvus import DataType, MilvusClient
from pymilvus.client.types import LoadState

from mg_milvus.errors import (
    CollectionNotFoundError,
    ForeignCollectionError,
    SchemaError,
    StoreError,
    StoreUnavailableError,
    UnsupportedError,
)
from mg_milvus.files import expand_home, one_line
from mg_milvus.schema.models import FusionSettings, Schema, StorageSettings
from mg_milvus.store import lite_workarounds
from mg_milvus.store.base import MOST_LISTS, Description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mg_milvus.schema.models import ExtraField, Granularity
    from mg_milvus.store.client import Connection


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name and type, most bytes of a string, value when missing.

    The types are "string", "int", "float", "bool" and "json".
    """

    name: str
    type: str
    max_bytes: int = 0
    default: Any = None


FORMAT = 1
MARK = "Image codes of mg-milvus; the description of the field 'id' says which"
"""The description of every collection, for people. Servers since 2.6.19 take at most 1,024 bytes there; the
description of a field has no such limit, and the JSON of ``encode_description`` and its kin is kept in that of the id.
"""
MOST_BYTES = 64 << 10
"""Of the JSON that describes a collection. It is ASCII."""
_MOST_DEPTH = 16
_MOST_ADAPTED = 2**53
_LONGEST_BACKBONE = 200
COMPANIONS = {
    "encoder_of": "keeps the encoders of",
    "tuned_of": "remembers the weights of",
    "regions_of": "holds the regions of",
    "columns_of": "lists the columns added to",
    "whole_of": "marks a refit as whole that has the name",
}
"""Key in the description of a companion collection -> its purpose for the collection that the value names.

The value is the name at creation, which a description keeps when collections are renamed.
"""


def encode_description(description: Description) -> str:
    """The JSON that describes a collection. All settings are written: later versions may have other defaults.

    Raises:
        UnsupportedError: it is longer than what is read again.
    """
    text = json.dumps(
        {
            "mg_milvus": FORMAT,
            "schema": description.schema.model_dump(mode="json"),
            "fingerprint": description.fingerprint,
            "adapted_on": description.adapted_on,
            "backbone": description.backbone,
            "added": list(description.added),
        },
        separators=(",", ":"),
    )
    if len(text) > MOST_BYTES:
        raise UnsupportedError(
            f"the schema takes {len(text):,} bytes in the collection's description, at most {MOST_BYTES:,} are stored: "
            "use fewer fields, or shorter defaults"
        )
    return text


def name_at_creation(text: str) -> str | None:
    """The name that a collection of images had when it was created, from its description; None for any other text."""
    schema = (own_description(text) or {}).get("schema")
    name = schema.get("collection") if isinstance(schema, dict) else None
    return name if isinstance(name, str) else None


def encode_companion(collection: str) -> str:
    """The description of the companion collection that stores encoders."""
    return json.dumps({"mg_milvus": FORMAT, "encoder_of": collection}, separators=(",", ":"))


def encode_regions(collection: str, description: Description) -> str:
    """The description of the companion collection that stores codes of regions."""
    settings = description.schema.regions
    return json.dumps(
        {
            "mg_milvus": FORMAT,
            "regions_of": collection,
            "fingerprint": description.fingerprint,
            "scales": [] if settings is None else [scale.model_dump(mode="json") for scale in settings.scales],
        },
        separators=(",", ":"),
    )


def encode_tuned(collection: str, description: Description) -> str:
    """The description of the companion collection that records tuned weights and fusion."""
    return json.dumps(
        {
            "mg_milvus": FORMAT,
            "tuned_of": collection,
            "fingerprint": description.fingerprint,
            "weights": description.schema.weights,
            "fusion": description.schema.fusion.model_dump(mode="json"),
        },
        separators=(",", ":"),
    )


def decode_tuned(text: str, description: Description) -> Description:
    """A collection's description with the weights and fusion that ``encode_tuned`` wrote.

    A record of another encoder or of other granularities, such as one left by an earlier collection of the same name,
    is ignored, and so is a malformed one.
    """
    parsed = own_description(text)
    if parsed is None or parsed.get("fingerprint") != description.fingerprint:
        return description
    try:
        return tuned(description, parsed["weights"], FusionSettings.model_validate(parsed["fusion"]))
    except (ValueError, KeyError, TypeError):
        return description


def tuned(description: Description, weights: Mapping[str, float], fusion: FusionSettings) -> Description:
    """The description with other weights and another fusion.

    Args:
        description: of the collection.
        weights: granularity -> weight, for every granularity.
        fusion: the new settings.

    Raises:
        ValueError: weights of other granularities, or outside the range of a schema.
    """
    if set(weights) != set(description.schema.bits):
        given = one_line(", ".join(map(str, weights)))
        raise ValueError(f"weights for {given}, expected one for each of {', '.join(description.schema.bits)}")
    plain = description.schema.model_dump()
    plain["granularities"] = [g | {"weight": weights[g["name"]]} for g in plain["granularities"]]
    plain["fusion"] = fusion.model_dump()
    return replace(description, schema=Schema.model_validate(plain))


def extended(description: Description, fields: Sequence[ExtraField]) -> Description:
    """The description with more fields, which were added after the collection was created.

    Args:
        description: of the collection.
        fields: the new ones; those that it has already, with the same type, are left out.

    Raises:
        SchemaError: a field is there with another type, or the schema cannot have it.
    """
    types = {f.name: f.type for f in description.schema.fields}
    for one in fields:
        if types.get(one.name, one.type) != one.type:
            raise SchemaError(
                f"the column {one.name!r} holds {types[one.name]} values, not {one.type}: rename the new one, or "
                "write its values as that type"
            )
    new = [one for one in fields if one.name not in types]
    try:
        schema = Schema(**description.schema.model_dump() | {"fields": (*description.schema.fields, *new)})
    except SchemaError as exc:
        raise SchemaError(
            f"the columns {', '.join(one.name for one in new)} cannot be added: {one_line(str(exc), 400)}"
        ) from exc
    return replace(description, schema=schema, added=(*description.added, *(one.name for one in new)))


def encode_columns(collection: str) -> str:
    """The description of the companion collection that lists the columns added later."""
    return json.dumps({"mg_milvus": FORMAT, "columns_of": collection}, separators=(",", ":"))


def own_description(text: str) -> dict[str, Any] | None:
    """The JSON object in a description that any mg-milvus has written; None for any other text.

    Every client of the server can write any text there: JSON that is longer or deeper than mg-milvus writes, or has
    NaN or infinite numbers, counts as other text.
    """
    if len(text) > MOST_BYTES:
        return None
    try:
        parsed = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    own = isinstance(parsed, dict) and type(parsed.get("mg_milvus")) is int and _depth(parsed) <= _MOST_DEPTH
    return parsed if own else None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _depth(value: object) -> int:
    """Depth of nested lists and objects."""
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def is_fingerprint(text: object) -> bool:
    """Whether it is 16 hexadecimal digits, as every fingerprint; it becomes part of a file name and of a filter."""
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{16}", text) is not None


def decode_description(text: str, collection: str) -> Description:
    """Read what ``encode_description`` wrote.

    Raises:
        ForeignCollectionError: the collection was not created by mg-milvus.
        UnsupportedError: a newer mg-milvus has created it.
    """
    parsed = own_description(text)
    if parsed is None:
        raise ForeignCollectionError(
            f"collection '{collection}' was not created by mg-milvus: choose another name for yours"
        )
    for key, what in COMPANIONS.items():
        if key in parsed:
            other = one_line(str(parsed[key]))
            raise ForeignCollectionError(f"collection '{collection}' {what} '{other}': choose another name")
    remedy = "upgrade mg-milvus here"
    if parsed["mg_milvus"] != FORMAT:
        version = one_line(str(parsed["mg_milvus"]), 20)
        raise UnsupportedError(
            f"collection '{collection}' has format {version}, this mg-milvus reads {FORMAT}: {remedy}"
        )
    try:
        description = Description(
            Schema.model_validate(parsed["schema"]), parsed["fingerprint"], parsed["adapted_on"], parsed["backbone"],
            tuple(parsed["added"]),
        )  # fmt: skip
        _check(description)
    except (ValidationError, KeyError, ValueError, TypeError) as exc:
        reason = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
        raise UnsupportedError(
            f"the description of collection '{collection}' cannot be read ({one_line(reason, 400)}): {remedy}, or "
            "choose another collection if something else has written it"
        ) from exc
    return description


def _check(description: Description) -> None:
    """Raise ValueError unless the values beside the schema are as ``encode_description`` writes them."""
    if not is_fingerprint(description.fingerprint):
        raise ValueError(f"the fingerprint is {_shown(description.fingerprint)}, expected 16 hexadecimal digits")
    if type(description.adapted_on) is not int or not 0 <= description.adapted_on <= _MOST_ADAPTED:
        raise ValueError(f"adapted_on is {_shown(description.adapted_on)}, expected a number of images")
    if type(description.backbone) is not str or len(description.backbone) > _LONGEST_BACKBONE:
        raise ValueError(f"the backbone is {_shown(description.backbone)}, expected a name")
    names = [field.name for field in description.schema.fields]
    if list(description.added) != names[len(names) - len(description.added) :]:
        raise ValueError(f"the added columns are {_shown(description.added)}, expected the last of {_shown(names)}")


def _shown(value: object) -> str:
    return one_line(repr(value), 60)


_log = logging.getLogger(__name__)
_LOAD_TIMEOUT = 120.0
"""Seconds: a server first loads the rows from its object storage; a load may take longer if it goes on."""
_SAY_EVERY = 10.0
_SAY_LOAD_AFTER = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5

_TYPES = {
    "string": DataType.VARCHAR,
    "int": DataType.INT64,
    "float": DataType.DOUBLE,
    "bool": DataType.INT8,  # -1 where the value is missing
    "json": DataType.JSON,
}


class Identity(NamedTuple):
    """Which collection it is.

    Attributes:
        name: its own, where it was asked for by an alias.
        number: the server's; Milvus Lite has none but 0.
        text: the JSON that describes it; "" for a collection of another program.
    """

    name: str
    number: int
    text: str


def identity_of(connection: Connection, name: str) -> Identity | None:
    """Which collection has a name or an alias; None if there is none."""
    try:
        response = connection.call(lambda: connection.client.describe_collection(name, timeout=connection.timeout))
    except CollectionNotFoundError:
        return None
    with connection.reading():
        text = next((str(each["description"]) for each in response["fields"] if each["name"] == "id"), "")
        return Identity(str(response["collection_name"]), int(response["collection_id"]), text)


def description_of(connection: Connection, name: str) -> str | None:
    """The JSON that describes a collection, "" for one of another program; None if there is no such collection."""
    identity = identity_of(connection, name)
    return None if identity is None else identity.text


def count_rows(connection: Connection, name: str, where: str = "") -> int:
    """Rows of a collection, which is loaded, or those that match; to be run by ``Connection.call``.

    Raises:
        ValueError: the response is no number of rows.
    """
    rows = connection.client.query(
        name, filter=where, output_fields=["count(*)"], consistency_level="Strong", timeout=connection.timeout
    )
    if type(count := rows[0]["count(*)"]) is not int or count < 0:
        raise ValueError(f"there are {count!r} rows")
    return count


def check_progress(connection: Connection, last: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The last id of an iterator's batch, from which the next batch continues.

    Raises:
        StoreError: it is not greater than ``last``, that of the batch before: the iteration would never end.
    """
    with connection.reading():
        if not last < (current := records[-1]["id"]):
            raise ValueError(f"the rows after {last!r} end with {current!r}, which is not greater")
    return str(current)


@dataclass(frozen=True, slots=True)
class NewCollection:
    """A collection to create: its name, JSON, columns with "id" first, fields of codes, how the server stores it.

    ``dynamic``: rows may have more columns than these.
    """

    name: str
    description: str
    columns: Sequence[Column]
    granularities: Sequence[Granularity]
    storage: StorageSettings = field(default_factory=StorageSettings)
    dynamic: bool = False


def create(connection: Connection, new: NewCollection) -> None:
    """Create a collection; no error when another client created it in the meantime.

    Raises:
        StoreError: Milvus refused, and there is no such collection.
    """
    storage = new.storage
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=new.dynamic, description=MARK)
    for column in new.columns:
        options: dict[str, Any] = {}
        if column.type == "string":
            options = {"max_length": column.max_bytes}
        if column.name == storage.partition_key:
            options["is_partition_key"] = True
        if column.name == "id":
            options["description"] = new.description
        schema.add_field(column.name, _TYPES[column.type], is_primary=column.name == "id", **options)
    for granularity in new.granularities:
        options = {} if granularity.mmap is None else {"mmap_enabled": granularity.mmap}
        schema.add_field(
            granularity.name,
            DataType.BINARY_VECTOR,
            dim=granularity.bits,
            **({} if connection.engine.lite else options),
        )
    try:
        connection.write(
            lambda: connection.client.create_collection(
                new.name,
                schema=schema,
                num_shards=storage.shards,
                consistency_level=storage.consistency,
                timeout=connection.timeout,
            )
        )
    except StoreError:
        if description_of(connection, new.name) is None:
            raise


def describe_fields(
    connection: Connection, name: str, columns: Sequence[Column], vectors: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The fields of a collection as Milvus describes them: each has a ``name`` and a ``type``.

    Args:
        connection: to Milvus.
        name: of the collection.
        columns: expected columns.
        vectors: expected fields of codes -> bytes of a code.

    Raises:
        StoreError: one is missing, or of another type.
    """
    response = connection.call(lambda: connection.client.describe_collection(name, timeout=connection.timeout))
    with connection.reading():
        own = list(response["fields"])
        types = {field["name"]: (field["type"], field["params"].get("dim")) for field in own}
    expected: dict[str, tuple[DataType, int | None]] = {column.name: (_TYPES[column.type], None) for column in columns}
    expected |= {vector: (DataType.BINARY_VECTOR, 8 * size) for vector, size in vectors.items()}
    for column, kind in expected.items():
        if types.get(column) != kind:
            raise StoreError(
                f"collection '{name}' has no column '{column}' as in its description, or one of another type: "
                "another program has created it, choose another collection"
            )
    return own


def upsert(
    connection: Connection, name: str, own: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]
) -> Callable[[], Any]:
    """The call that writes records; they have exactly the columns of the collection (its ``fields``)."""
    for column in own:
        if column["name"] not in records[0]:
            raise StoreError(
                f"collection '{name}' has a column {one_line(repr(column['name']), 80)}, which its schema lacks: "
                "another program has added it, remove it"
            )
    return partial(lite_workarounds.upsert, connection.client, name, own, records, connection.timeout)


def index_and_load(
    connection: Connection, name: str, vectors: Mapping[str, bool | None], index: tuple[str, Mapping[str, Any]],
    replicas: int,
) -> None:  # fmt: skip
    """Create the missing indexes of a collection, and load it; two clients may do so at once.

    Args:
        connection: to Milvus.
        name: of the collection.
        vectors: field of codes -> whether its index is mapped into memory; None: as the server is set.
        index: type and build parameters of the missing indexes.
        replicas: copies to load.
    """
    client = connection.client
    indexed = connection.call(lambda: client.list_indexes(name, timeout=_LOAD_TIMEOUT))
    missing = [vector for vector in vectors if vector not in indexed]
    if missing:
        kind, parameters = index
        params = client.prepare_index_params()
        for vector in missing:
            # Servers keep the codes in such an index, and no longer in the field, whose mmap then says nothing.
            mapped = {} if vectors[vector] is None or kind == "BIN_FLAT" else {"mmap.enabled": vectors[vector]}
            params.add_index(
                vector, index_type=kind, index_name=vector, metric_type="HAMMING", params={**parameters, **mapped}
            )  # fmt: skip
        # sync=False: loading waits for the indexes anyway, and pymilvus would sleep half a second for each.
        connection.write(lambda: client.create_index(name, params, sync=False, timeout=_LOAD_TIMEOUT))
    state = connection.call(lambda: client.get_load_state(name, timeout=_LOAD_TIMEOUT))["state"]
    if missing or state not in {LoadState.Loaded, LoadState.Loading}:  # who may only read waits for others' loads
        # Without waiting: pymilvus gives up after a time limit, however far the load has come.
        with _said_if_long(connection):
            connection.call(
                lambda: client.load_collection(name, replica_number=replicas, timeout=_LOAD_TIMEOUT, _async=True)
            )
    if missing or state != LoadState.Loaded:
        _wait_until_loaded(connection, name)


@contextmanager
def _said_if_long(connection: Connection) -> Iterator[None]:
    """Log what a load waits for if it takes long: Milvus Lite answers nothing until it has read all rows."""
    file = expand_home(connection.config.uri)
    if not connection.engine.lite or not file.is_file():
        yield  # servers say how far they are, see ``_wait_until_loaded``
        return
    said = threading.Timer(
        _SAY_LOAD_AFTER, _log.warning,
        ("Milvus Lite reads all rows of %s (%.0f MB) before its first answer; 'mgm up' does so once for all programs",
         file, file.stat().st_size / 1e6),
    )  # fmt: skip
    said.daemon = True
    said.start()
    try:
        yield
    finally:
        said.cancel()


def _wait_until_loaded(connection: Connection, name: str) -> None:
    """Wait for a load for as long as it goes on, and log how far it has come.

    Raises:
        StoreUnavailableError: it stands still, or the collection was released meanwhile.
    """
    progress, since, pause = -1, time.monotonic(), _FIRST_PAUSE
    said = since
    while True:
        state = connection.call(lambda: connection.client.get_load_state(name, timeout=_LOAD_TIMEOUT))
        if state["state"] == LoadState.Loaded:
            return
        now, reached = time.monotonic(), int(state.get("progress", 0))
        if reached > progress:
            progress, since = reached, now
        # A server may say for a moment that nothing is being loaded yet; for longer, another client has released it.
        patience = _LOAD_TIMEOUT if state["state"] == LoadState.Loading else min(_LOAD_TIMEOUT, _SAY_EVERY)
        if now - since > patience:
            raise StoreUnavailableError(
                f"collection '{name}' stays at {max(0, progress)} % of its load: check the memory of the query nodes, "
                "and that no other client releases it"
            )
        if now - said > _SAY_EVERY:
            _log.warning("collection '%s' is being loaded: %d %%", name, progress)
            said = now
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def index_nlists(connection: Connection, name: str, vectors: Sequence[str]) -> dict[str, int]:
    """Field -> clusters of its BIN_IVF_FLAT index; fields with another index are left out. Milvus Lite has none."""
    if connection.engine.lite:
        return {}
    nlists = {}
    for vector in vectors:
        index = connection.call(partial(connection.client.describe_index, name, vector, timeout=connection.timeout))
        with connection.reading():
            if index and index.get("index_type") == "BIN_IVF_FLAT" and "nlist" in index:
                nlists[vector] = _nlist(str(index["nlist"]))
    return nlists


def _nlist(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= MOST_LISTS:
        raise ValueError(f"nlist is {one_line(text, 40)}, expected 1 to {MOST_LISTS}")
    return int(text)
