"""Companions of a collection in Milvus: its encoders, the weights it was tuned to, the columns added later.

Encoder files are in ``<collection>_encoder``, each in chunks of text, and beside them what was measured of the
collection and its clusters, under the names ``STATISTICS`` and ``CLUSTERS`` in the place of a fingerprint.

The chunks are base64 in a JSON column. Measured on Milvus Lite with 14 MB: written in 0.10 s and read in 0.06 s. In
VARCHAR, whose characters pymilvus checks one by one, the same takes 0.6 s to write; binary vectors take 12 s to read.
"""

from __future__ import annotations

import base64
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import ForeignCollectionError, SchemaError, StoreError
from mg_milvus.schema.models import ExtraField, Granularity
from mg_milvus.store import collections
from mg_milvus.store.collections import (
    Column,
    NewCollection,
    decode_tuned,
    encode_columns,
    encode_companion,
    encode_tuned,
    extended,
    own_description,
)
from mg_milvus.store.filters import literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.store.base import Description
    from mg_milvus.store.client import Connection


STATISTICS = "statistics"
CLUSTERS = "clusters"
_PART = 48_000
"""Bytes of the file in one row: 64,000 of base64, where a JSON value may have 65,536."""
_KEY = "base64"  # servers take objects only
_PARTS_A_CALL = 64
MOST_BYTES = 256_000_000
"""Largest encoder file that is stored and read: eight times the limit for files with their backbone."""
_COLUMNS = (
    Column("id", "string", 64),
    Column("chunks", "int"),
    Column("size", "int"),
    Column("data", "json"),
)
_FIELDS = ["id", "chunks", "size", "data"]
_VECTOR = Granularity(name="unused", bits=8)  # Milvus requires a vector field in every collection


class Companion:
    """The encoders stored beside one collection."""

    def __init__(self, connection: Connection, collection: str, created_as: str) -> None:
        self.name = f"{collection}_encoder"
        self._connection, self._timeout = connection.about(self.name), connection.timeout
        self._description = encode_companion(created_as)

    def exists(self) -> bool:
        """Whether the companion collection exists.

        Raises:
            ForeignCollectionError: a collection of this name is something else.
        """
        description = collections.description_of(self._connection, self.name)
        if description not in {None, self._description}:
            raise ForeignCollectionError(
                f"collection '{self.name}' was not created by mg-milvus to store encoders: choose another name"
            )
        return description is not None

    def put(self, fingerprint: str, data: bytes) -> None:
        """Write all chunks of a file; existing ones are replaced.

        Raises:
            StoreError: the file is larger than ``MOST_BYTES``.
        """
        if len(data) > MOST_BYTES:
            raise StoreError(
                f"the encoder {fingerprint} has {len(data):,} bytes, at most {MOST_BYTES:,} are stored in Milvus: use "
                "smaller heads"
            )
        if not self.exists():
            collections.create(self._connection, NewCollection(self.name, self._description, _COLUMNS, [_VECTOR]))
        self._load()
        starts = range(0, max(len(data), 1), _PART)
        rows = [
            {
                "id": f"{fingerprint}:{number}",
                "chunks": len(starts),
                "size": len(data),
                "data": {_KEY: base64.b64encode(data[start : start + _PART]).decode("ascii")},
                _VECTOR.name: b"\0",
            }
            for number, start in enumerate(starts)
        ]
        client = self._connection.client
        for first in range(0, len(rows), _PARTS_A_CALL):
            some = rows[first : first + _PARTS_A_CALL]
            self._connection.write(partial(client.upsert, self.name, some, timeout=self._timeout))

    def get(self, fingerprint: str) -> bytes | None:
        """The file; None if it, or a part of it, is missing.

        Raises:
            StoreError: the rows are not as ``put`` writes them.
        """
        if not self.exists():
            return None
        self._load()
        parts = self._read(fingerprint, 0, 1)
        if 0 not in parts:
            return None
        count, size, _ = parts[0]
        with self._connection.reading():
            if not 0 <= size <= MOST_BYTES or count != max(1, math.ceil(size / _PART)):
                raise ValueError(f"an encoder of {size:,} bytes in {count:,} parts, expected at most {MOST_BYTES:,}")
        for first in range(1, count, _PARTS_A_CALL):
            parts |= self._read(fingerprint, first, min(first + _PARTS_A_CALL, count))
        if len(parts) != count or any(part[:2] != (count, size) for part in parts.values()):
            return None
        data = b"".join(parts[number][2] for number in range(count))
        return data if len(data) == size else None

    def drop(self, fingerprint: str) -> None:
        """Remove all chunks of one file."""
        if self.exists():
            self._load()
            chosen = f"id like {literal(fingerprint + ':%')}"
            client = self._connection.client
            self._connection.write(lambda: client.delete(self.name, filter=chosen, timeout=self._timeout))

    def _read(self, fingerprint: str, first: int, end: int) -> dict[int, tuple[int, int, bytes]]:
        numbers = {f"{fingerprint}:{number}": number for number in range(first, end)}
        ids = ",".join(map(literal, numbers))
        rows = self._connection.call(
            lambda: self._connection.client.query(
                self.name,
                filter=f"id in [{ids}]",
                output_fields=_FIELDS,
                consistency_level="Strong",
                timeout=self._timeout,
            )
        )
        with self._connection.reading():
            return {numbers[row["id"]]: _part(row) for row in rows}

    def _load(self) -> None:
        collections.index_and_load(self._connection, self.name, {_VECTOR.name: None}, ("BIN_FLAT", {}), replicas=1)


def _part(row: Mapping[str, Any]) -> tuple[int, int, bytes]:
    """The number of parts, the size of the file, and the bytes of this part.

    Raises:
        ValueError, KeyError, TypeError: ``put`` has not written this row.
    """
    parts, size, text = row["chunks"], row["size"], row["data"][_KEY]
    if type(parts) is not int or type(size) is not int or type(text) is not str:
        raise ValueError(f"a part of the encoder is of the types {type(parts)}, {type(size)}, {type(text)}")
    if len(text) > _PART * 4 // 3:
        raise ValueError(f"a part of the encoder has {len(text):,} characters, expected {_PART * 4 // 3:,} at most")
    return parts, size, base64.b64decode(text, validate=True)


_TUNED_COLUMNS = (Column("id", "string", 64),)


class TunedRecord:
    """The tuned weights and fusion of one collection, if it was tuned. Reading takes one request."""

    def __init__(self, connection: Connection, collection: str, created_as: str) -> None:
        self.name = f"{collection}_tuned"
        self._connection, self._collection, self._created_as = connection.about(self.name), collection, created_as
        self._timeout = connection.timeout

    def applied(self, description: Description) -> Description:
        """The collection's description with its tuned weights and fusion."""
        text = collections.description_of(self._connection, self.name)
        return decode_tuned(text, description) if text is not None and self._is_own(text) else description

    def write(self, description: Description) -> None:
        """Record the weights and fusion of a description. A failure half-way restores those of the creation.

        Raises:
            ForeignCollectionError: a collection of this name is something else.
        """
        text = collections.description_of(self._connection, self.name)
        if text is not None and not self._is_own(text):
            raise ForeignCollectionError(
                f"collection '{self.name}' is in the way of the record of how '{self._collection}' was tuned: give it "
                "another name, or give the weights with each query"
            )
        self.drop()
        text = encode_tuned(self._created_as, description)
        collections.create(self._connection, NewCollection(self.name, text, _TUNED_COLUMNS, [_VECTOR]))

    def drop(self) -> None:
        """Remove the record, if there is one."""
        text = collections.description_of(self._connection, self.name)
        if text is not None and self._is_own(text):
            client = self._connection.client
            self._connection.write(lambda: client.drop_collection(self.name, timeout=self._timeout))

    def _is_own(self, text: str) -> bool:
        return (own_description(text) or {}).get("tuned_of") == self._created_as


_ADDED_COLUMNS = (Column("id", "string", 256), Column("data", "json"))
_MOST_ADDED = 50


class AddedColumns:
    """The columns of one collection that were added after it was created: a row each, in ``<collection>_columns``.

    Rows are written whole: a program that is killed loses none of the columns that were there. Those of another
    encoder, left by an earlier collection of the same name, are ignored.
    """

    def __init__(self, connection: Connection, collection: str, created_as: str) -> None:
        self.name = f"{collection}_columns"
        self._connection, self._timeout = connection.about(self.name), connection.timeout
        self._description = encode_columns(created_as)

    def applied(self, description: Description) -> Description:
        """The collection's description with these columns.

        Raises:
            StoreError: a row is not as ``write`` writes it.
        """
        if collections.description_of(self._connection, self.name) != self._description:
            return description
        self._load()
        client = self._connection.client
        rows = self._connection.call(
            lambda: client.query(
                self.name, filter='id != ""', output_fields=["id", "data"], limit=_MOST_ADDED,
                consistency_level="Strong", timeout=self._timeout,
            )
        )  # fmt: skip
        with self._connection.reading():
            fields = [
                ExtraField(**row["data"]["field"])
                for row in sorted(rows, key=lambda row: str(row["id"]))
                if row["data"]["fingerprint"] == description.fingerprint
            ]
            try:
                return extended(description, fields)
            except SchemaError as exc:
                raise ValueError(str(exc)) from exc

    def write(self, fields: Sequence[ExtraField], description: Description) -> None:
        """Record columns of the collection with this description.

        Raises:
            ForeignCollectionError: a collection of this name is something else.
        """
        text = collections.description_of(self._connection, self.name)
        if text not in {None, self._description}:
            raise ForeignCollectionError(
                f"collection '{self.name}' is in the way of the list of added columns: give it another name"
            )
        if text is None:
            new = NewCollection(self.name, self._description, _ADDED_COLUMNS, [_VECTOR])
            collections.create(self._connection, new)
        self._load()
        rows = [
            {
                "id": field.name,
                "data": {"fingerprint": description.fingerprint, "field": field.model_dump(mode="json")},
                _VECTOR.name: b"\0",
            }
            for field in fields
        ]
        client = self._connection.client
        self._connection.write(lambda: client.upsert(self.name, rows, timeout=self._timeout))

    def drop(self) -> None:
        """Remove the list, if there is one."""
        if collections.description_of(self._connection, self.name) == self._description:
            client = self._connection.client
            self._connection.write(lambda: client.drop_collection(self.name, timeout=self._timeout))

    def _load(self) -> None:
        collections.index_and_load(self._connection, self.name, {_VECTOR.name: None}, ("BIN_FLAT", {}), replicas=1)
