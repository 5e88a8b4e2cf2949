"""How a collection was tuned: the empty collection ``<collection>_tuned``, whose description says it.

A collection's own description is fixed when it is made: Milvus Lite, and servers before 2.5.12, cannot change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mg_milvus.errors import ForeignCollectionError
from mg_milvus.schema import Granularity, StorageSettings
from mg_milvus.store import tables
from mg_milvus.store.description import decode_tuned, encode_tuned, own_description
from mg_milvus.store.layout import Column

if TYPE_CHECKING:
    from mg_milvus.store import Description
    from mg_milvus.store.connection import Connection

_COLUMNS = (Column("id", "string", 64),)
_VECTOR = Granularity(name="unused", bits=8)  # Milvus wants a vector field in every collection


class TunedRecord:
    """The weights and the fusion that one collection was tuned to, if it was. A read is one call to Milvus."""

    def __init__(self, connection: Connection, collection: str, timeout: float) -> None:
        self._connection, self._collection, self._timeout = connection, collection, timeout
        self.name = f"{collection}_tuned"

    def applied(self, description: Description) -> Description:
        """The collection's description with what it was tuned to."""
        text = tables.described(self._connection, self.name)
        return decode_tuned(text, description) if text is not None and self._is_own(text) else description

    def write(self, description: Description) -> None:
        """Record the weights and the fusion of a description. A failure half-way leaves those of the making.

        Raises:
            ForeignCollectionError: a collection of this name is something else.
        """
        text = tables.described(self._connection, self.name)
        if text is not None and not self._is_own(text):
            raise ForeignCollectionError(
                f"collection '{self.name}' is in the way of the record of how '{self._collection}' was tuned: give it "
                "another name, or give the weights with each query"
            )
        self.drop()
        tables.create(
            self._connection, self.name, encode_tuned(self._collection, description), _COLUMNS, [_VECTOR],
            StorageSettings(),
        )  # fmt: skip

    def drop(self) -> None:
        """Forget. No error when there is nothing to forget."""
        text = tables.described(self._connection, self.name)
        if text is not None and self._is_own(text):
            client = self._connection.client
            self._connection.border.write(lambda: client.drop_collection(self.name, timeout=self._timeout))

    def _is_own(self, text: str) -> bool:
        return (own_description(text) or {}).get("tuned_of") == self._collection
