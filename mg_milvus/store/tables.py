"""Collections as Milvus sees them: made, indexed, loaded, described. Used for the pictures and for their encoders."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from pymilvus import DataType, MilvusClient
from pymilvus.client.types import LoadState

from mg_milvus.display import one_line
from mg_milvus.errors import CollectionNotFoundError, StoreError
from mg_milvus.store.index_lists import MOST_LISTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.schema import Granularity, StorageSettings
    from mg_milvus.store.connection import Connection
    from mg_milvus.store.layout import Column

_LOAD_TIMEOUT = 120.0
"""Seconds: a server with many pictures loads them from its object storage first."""

_TYPES = {
    "string": DataType.VARCHAR,
    "int": DataType.INT64,
    "float": DataType.DOUBLE,
    "bool": DataType.BOOL,
    "json": DataType.JSON,
}


def described(connection: Connection, name: str) -> str | None:
    """The description of a collection; None when there is no such collection."""
    try:
        found = connection.border.call(lambda: connection.client.describe_collection(name, timeout=connection.timeout))
    except CollectionNotFoundError:
        return None
    with connection.border.reading():
        return str(found["description"])


def counted(connection: Connection, name: str, where: str = "") -> int:
    """Rows of a collection, which is loaded, or those that match: for a border to run.

    Raises:
        ValueError: the answer is no number of rows.
    """
    rows = connection.client.query(
        name, filter=where, output_fields=["count(*)"], consistency_level="Strong", timeout=connection.timeout
    )
    if type(count := rows[0]["count(*)"]) is not int or count < 0:
        raise ValueError(f"there are {count!r} rows")
    return count


def went_on(connection: Connection, last: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The id that an iterator goes on from after these records.

    Raises:
        StoreError: it is not behind ``last``, the one before: the iterator would repeat itself without an end.
    """
    with connection.border.reading():
        if not last < (now := records[-1]["id"]):
            raise ValueError(f"the rows after {last!r} end with {now!r}, which is not behind it")
    return str(now)


def create(
    connection: Connection,
    name: str,
    description: str,
    columns: Sequence[Column],
    granularities: Sequence[Granularity],
    storage: StorageSettings,
) -> None:
    """Make a collection; no error when another client made it in the meantime.

    Raises:
        StoreError: Milvus refused, and there is no such collection.
    """
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    for column in columns:
        options: dict[str, Any] = {"max_length": column.max_bytes} if column.type == "string" else {}
        if column.name == storage.partition_key:
            options["is_partition_key"] = True
        schema.add_field(column.name, _TYPES[column.type], is_primary=column.name == "id", **options)
    for granularity in granularities:
        options = {} if granularity.mmap is None else {"mmap_enabled": granularity.mmap}
        schema.add_field(
            granularity.name,
            DataType.BINARY_VECTOR,
            dim=granularity.bits,
            **({} if connection.engine.lite else options),
        )
    make = connection.client.create_collection
    try:
        connection.border.write(
            lambda: make(
                name,
                schema=schema,
                num_shards=storage.shards,
                consistency_level=storage.consistency,
                timeout=connection.timeout,
            )
        )
    except StoreError:
        if described(connection, name) is None:
            raise


def fields(
    connection: Connection, name: str, columns: Sequence[Column], vectors: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The columns of a collection as Milvus describes them: each has a ``name`` and a ``type``.

    Args:
        connection: to ask.
        name: of the collection.
        columns: that its description promises.
        vectors: field of codes -> bytes of a code, likewise.

    Raises:
        StoreError: one is missing, or of another type.
    """
    found = connection.border.call(lambda: connection.client.describe_collection(name, timeout=connection.timeout))
    with connection.border.reading():
        own = list(found["fields"])
        there = {field["name"]: (field["type"], field["params"].get("dim")) for field in own}
    wanted: dict[str, tuple[DataType, int | None]] = {column.name: (_TYPES[column.type], None) for column in columns}
    wanted |= {vector: (DataType.BINARY_VECTOR, 8 * size) for vector, size in vectors.items()}
    for column, kind in wanted.items():
        if there.get(column) != kind:
            raise StoreError(
                f"collection '{name}' has no column '{column}' as its description says, or one of another type: "
                "something else has made it, choose another collection"
            )
    return own


def upsert(
    connection: Connection, name: str, own: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]
) -> Callable[[], Any]:
    """What writes records, for a border to run; they have just the columns of the collection (its ``fields``).

    They go to pymilvus as columns, the way of its ORM: ``MilvusClient.upsert`` takes rows and packs them value by
    value, which takes more time than all the rest together (benchmarks/store_overhead.py).
    """
    for field in own:
        if field["name"] not in records[0]:
            raise StoreError(
                f"collection '{name}' has a column {one_line(repr(field['name']), 80)}, which is none of its schema's: "
                "another program has added it, remove it"
            )
    columns = [
        {"name": field["name"], "type": field["type"], "values": [record[field["name"]] for record in records]}
        for field in own
    ]
    client = connection.client
    return lambda: client._get_connection().upsert(
        name, columns, timeout=connection.timeout, context=client._generate_call_context(), schema={"fields": own}
    )


def prepare(
    connection: Connection, name: str, vectors: Sequence[str], index: tuple[str, Mapping[str, Any]], replicas: int
) -> None:
    """Index and load a collection, where not done yet. Doing it twice, or by two clients at once, is harmless."""
    client, border = connection.client, connection.border
    indexed = border.call(lambda: client.list_indexes(name, timeout=_LOAD_TIMEOUT))
    missing = [vector for vector in vectors if vector not in indexed]
    if missing:
        kind, parameters = index
        params = client.prepare_index_params()
        for vector in missing:
            params.add_index(
                vector, index_type=kind, index_name=vector, metric_type="HAMMING", params=dict(parameters)
            )  # fmt: skip
        # sync=False: loading waits for the indexes anyway, while pymilvus would sleep half a second for each.
        border.write(lambda: client.create_index(name, params, sync=False, timeout=_LOAD_TIMEOUT))
    state = border.call(lambda: client.get_load_state(name, timeout=_LOAD_TIMEOUT))["state"]
    if missing or state != LoadState.Loaded:
        border.call(lambda: client.load_collection(name, replica_number=replicas, timeout=_LOAD_TIMEOUT))


def lists(connection: Connection, name: str, vectors: Sequence[str]) -> dict[str, int]:
    """Field -> clusters of its index, where that is BIN_IVF_FLAT, which Milvus Lite has not."""
    if connection.engine.lite:
        return {}
    found = {}
    for vector in vectors:
        told = connection.border.call(
            partial(connection.client.describe_index, name, vector, timeout=connection.timeout)
        )
        with connection.border.reading():
            if told and told.get("index_type") == "BIN_IVF_FLAT" and "nlist" in told:
                found[vector] = _nlist(str(told["nlist"]))
    return found


def _nlist(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= MOST_LISTS:
        raise ValueError(f"nlist is {one_line(text, 40)}, expected 1 to {MOST_LISTS}")
    return int(text)


def records(result: Any) -> list[dict[str, Any]]:
    """The rows of a query with their codes as bytes.

    pymilvus cuts codes out of the answer one by one as rows are read, which takes twice as long as the query itself
    (300 rows, 3 codes: 20 of 30 ms). Here each field is cut at once; should pymilvus keep them elsewhere one day, its
    own way serves.
    """
    packed = getattr(result, "_lazy_field_data", None)
    if packed is None:
        return list(result)
    rows = list(list.__iter__(result))
    for field in packed:
        name, data, width = field.field_name, field.vectors.binary_vector, field.vectors.dim // 8
        for number, row in enumerate(rows):
            row[name] = data[number * width : (number + 1) * width]
    return rows
