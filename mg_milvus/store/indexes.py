"""The indexes of a collection on a server: whether BIN_IVF_FLAT has as many clusters as the rows ask for, and anew."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mg_milvus.store import IndexLists, tables
from mg_milvus.store.index_lists import typical_rows
from mg_milvus.store.region_layout import CODE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mg_milvus.schema import Schema
    from mg_milvus.store.connection import Connection


class MilvusIndexes:
    """``Indexes`` in Milvus."""

    def __init__(
        self, connection: Connection, collection: str, timeout: float, ready: Callable[[], Schema],
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        """``ready`` loads the collections and gives their schema; ``changed`` is told of a new index."""
        self._connection, self._collection, self._timeout = connection, collection, timeout
        self._ready, self._changed = ready, changed

    def lists(self) -> list[IndexLists]:
        """See ``Indexes``."""
        found = []
        for name, vectors in self._vectors(self._ready()).items():
            if lists := tables.lists(self._connection, name, vectors):
                client = self._connection.client
                segments = self._connection.border.call(
                    partial(client.list_persistent_segments, name, timeout=self._timeout)
                )
                rows = typical_rows([segment.num_rows for segment in segments])
                found.append(IndexLists(name, min(lists.values()), rows))
        return found

    def rebuild(self, collection: str, nlist: int) -> None:
        """See ``Indexes``. What a crash leaves undone, the next connection does: it makes and loads what is missing."""
        schema = self._ready()
        vectors = self._vectors(schema)[collection]
        client, call = self._connection.client, self._connection.border.call
        call(partial(client.release_collection, collection, timeout=self._timeout))
        for vector in vectors:
            call(partial(client.drop_index, collection, vector, timeout=self._timeout))
        index = ("BIN_IVF_FLAT", {"nlist": nlist})
        tables.prepare(self._connection, collection, vectors, index, schema.storage.replicas)
        self._changed()

    def refresh(self) -> None:
        """See ``Indexes``."""
        for name in self._vectors(self._ready()):
            self._connection.border.call(partial(self._connection.client.refresh_load, name, timeout=self._timeout))

    def _vectors(self, schema: Schema) -> dict[str, list[str]]:
        """Collection -> its fields of codes."""
        of_regions = {f"{self._collection}_parts": [CODE]} if schema.parts else {}
        return {self._collection: list(schema.bits), **of_regions}
