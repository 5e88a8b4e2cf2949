"""``Store`` in Milvus: every operation on one collection, its regions and its indexes."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pymilvus import AnnSearchRequest

from mg_milvus.errors import (
    AuthenticationError,
    CollectionNotFoundError,
    ForeignCollectionError,
    StoreError,
    StoreUnavailableError,
    UnsupportedError,
)
from mg_milvus.files import one_line
from mg_milvus.schema.models import COMPANION_ENDINGS, Schema
from mg_milvus.store import collections
from mg_milvus.store.base import Description, HybridSearch, IndexLists, Neighbours, Row, Store, typical_rows
from mg_milvus.store.client import MOST_QUERIES, connect
from mg_milvus.store.collections import (
    Identity,
    NewCollection,
    decode_description,
    encode_description,
    extended,
    tuned,
)
from mg_milvus.store.companions import CLUSTERS, STATISTICS, AddedColumns, Companion, TunedRecord
from mg_milvus.store.filter_language import render
from mg_milvus.store.filters import among
from mg_milvus.store.regions import CODE, RegionTable
from mg_milvus.store.rows import (
    COPY,
    ById,
    Layout,
    check_collection_name,
    check_hit_id,
    hits_of,
    neighbours,
)
from mg_milvus.store.succession import Succession, base_name, companion_of, holder, names_for_people, refit_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.config import MilvusConfig
    from mg_milvus.schema.models import ExtraField, FusionSettings
    from mg_milvus.store.client import Connection


class MilvusIndexes:
    """``Indexes`` in Milvus."""

    def __init__(
        self, connection: Connection, collection: str, timeout: float, ready: Callable[[], Schema],
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        """``ready`` loads the collection and returns its schema; ``changed`` is called after an index was rebuilt."""
        self._connection, self._collection, self._timeout = connection, collection, timeout
        self._ready, self._changed = ready, changed

    def lists(self) -> list[IndexLists]:
        """See ``Indexes``."""
        lists = []
        for name, vectors in self._vectors(self._ready()).items():
            if nlists := collections.index_nlists(self._connection, name, list(vectors)):
                client = self._connection.client
                segments = self._connection.call(partial(client.list_persistent_segments, name, timeout=self._timeout))
                rows = typical_rows([segment.num_rows for segment in segments])
                lists.append(IndexLists(name, min(nlists.values()), rows))
        return lists

    def rebuild(self, collection: str, nlist: int) -> None:
        """See ``Indexes``. After a crash the next connection creates and loads what is missing."""
        schema = self._ready()
        vectors = self._vectors(schema)[collection]
        connection = self._connection.about(collection)
        client, call = connection.client, connection.call
        call(partial(client.release_collection, collection, timeout=self._timeout))
        for vector in vectors:
            call(partial(client.drop_index, collection, vector, timeout=self._timeout))
        index = ("BIN_IVF_FLAT", {"nlist": nlist})
        collections.index_and_load(connection, collection, vectors, index, schema.storage.replicas)
        self._changed()

    def refresh(self) -> None:
        """See ``Indexes``."""
        for name in self._vectors(self._ready()):
            self._connection.call(partial(self._connection.client.refresh_load, name, timeout=self._timeout))

    def _vectors(self, schema: Schema) -> dict[str, dict[str, bool | None]]:
        """Collection -> its fields of codes -> whether they are mapped into memory."""
        of_regions: dict[str, dict[str, bool | None]] = {f"{self._collection}_regions": {CODE: None}}
        return {
            self._collection: {each.name: each.mmap for each in schema.granularities},
            **(of_regions if schema.regions else {}),
        }


T = TypeVar("T")
_log = logging.getLogger(__name__)

_ROWS_A_CALL = 1000
_RESULTS_A_CALL = 250_000
_SCANNED_A_CALL = 16_384
"""Milvus Lite reads all keys for each call, and returns at most this number of rows."""
_COUNTED_FOR = 60.0
"""Seconds for which a row count is reused."""


class MilvusStore:
    """``Store`` in Milvus.

    Housekeeping (``fetch``, ``scan``, ``count``, ``delete``) always reads with Strong consistency. ``nearest`` and
    ``hybrid`` read with the schema's: Strong, unless its author traded fresh results for speed.

    Explicit settings are applied, or refused with ``UnsupportedError``; ``index: auto`` is BIN_FLAT on Milvus Lite and
    BIN_IVF_FLAT on servers. Milvus Lite is always strongly consistent.

    Milvus decides which of several rows at the same distance are the last within ``depth``.
    """

    def __init__(self, config: MilvusConfig) -> None:
        """Connect. Without a collection in ``config``, the default schema's is meant."""
        self.uri, self._timeout = config.uri, config.timeout
        self._given = check_collection_name(Schema().collection if config.collection is None else config.collection)
        self._connection = connect(replace(config, collection=self._given))
        self._client = self._connection.client
        self._lock = threading.RLock()
        self._layout: Layout | None = None
        self._lists: dict[str, int] = {}
        self._fields: list[dict[str, Any]] = []
        self._counted: tuple[float, int] | None = None
        self._description: Description | None = None
        self._closed = False
        # Companions are named after the collection itself, which an alias stands for; Milvus Lite has no aliases.
        self.succession = Succession(self._connection, self._given)
        self._identity, there = (None, ()) if self._connection.engine.lite else self._find()
        self._connection.reload = self._load_again
        self._bind(self._identity, there)

    def _bind(self, identity: Identity | None, there: Collection[str] = ()) -> None:
        """Use the companions of a collection; None: there is none yet of the given name.

        Args:
            identity: the collection.
            there: the names of all collections, for a refit that may be being renamed.
        """
        connection, collection = self._connection, self._given if identity is None else identity.name
        created_as = None if identity is None else collections.name_at_creation(identity.text)
        self.collection, self._created_as = collection, base_name(collection) if created_as is None else created_as
        encoder, regions, tuned_to, columns = (companion_of(collection, end, there) for end in COMPANION_ENDINGS)
        self._companion = Companion(connection, encoder, self._created_as)
        self._tuned = TunedRecord(connection, tuned_to, self._created_as)
        self._added = AddedColumns(connection, columns, self._created_as)
        self.regions = RegionTable(connection, regions, self._created_as, self._described)
        self.indexes = MilvusIndexes(
            connection, collection, self._timeout, lambda: self._described().schema, self._forget
        )
        self.succession = Succession(connection, collection)

    def identity(self) -> Identity | None:
        """See ``Store``."""
        identity, there = self._find()
        if identity != self._identity:
            self._identity = identity
            self._bind(identity, there)
            self._forget()
        return identity

    def _find(self) -> tuple[Identity | None, Collection[str]]:
        """What has the given name; and the names of all collections if that is a refit, or nothing."""
        identity = collections.identity_of(self._connection, self._given)
        if identity is not None and base_name(identity.name) == identity.name:
            return identity, ()
        there = self.succession.there()
        if identity is None and (name := holder(self._given, there)) is not None:
            identity = collections.identity_of(self._connection, name)
        return identity, there

    @property
    def refit_name(self) -> str:
        """See ``Store``."""
        return refit_name(self.collection)

    def begin_refit(self) -> None:
        """See ``Store``."""
        self.succession.begin()

    def take_over(self) -> bool:
        """See ``Store``."""
        self.identity()
        taken = self.succession.take()
        if taken:
            self._forget()
        return taken

    def _load_again(self) -> None:
        """Load again what another client has released."""
        self._forget()
        self._ready()
        if self._described().schema.regions:
            self.regions.load()

    def describe(self) -> Description | None:
        """See ``Store``."""
        text = collections.description_of(self._connection, self.collection)
        if text is None:
            identity = self.identity()  # a refit may have taken its place
            if identity is None:
                return None
            text = identity.text
        description = decode_description(text, self.collection)
        if self._created_as != base_name(self.collection):
            self._check_renamed()
        description = self._added.applied(self._tuned.applied(description))
        if self._layout is not None and description != self._description:
            self._forget()  # another client has tuned it, or added columns
        return description

    def _check_renamed(self) -> None:
        """Raise StoreError if this collection was renamed, and a companion was not."""
        old, new = self._created_as, self.collection
        there = set(self._call(lambda: self._client.list_collections(timeout=self._timeout)))
        left = [end for end in COMPANION_ENDINGS if old + end in there and new + end not in there]
        if left:
            names = " and ".join(f"'{old}{end}'" for end in left)
            raise StoreError(
                f"collection '{new}' was renamed from '{old}', and what is stored beside it was not: rename {names} to "
                f"{' and '.join(repr(new + end) for end in left)} as well (rename_collection of pymilvus), or rename "
                f"'{new}' back and give '{old}' the alias '{new}'"
            )

    def _check_not_left_by_a_rename(self) -> None:
        """Raise StoreError if companions of this name, without a collection, are those of one that was renamed."""
        there = self._call(lambda: self._client.list_collections(timeout=self._timeout))
        left = [f"{self.collection}{end}" for end in COMPANION_ENDINGS if f"{self.collection}{end}" in there]
        for name in self.collections() if left else ():
            text = collections.description_of(self._connection, name) or ""
            if name != self.collection and collections.name_at_creation(text) == self.collection:
                raise StoreError(
                    f"collection '{name}' was renamed from '{self.collection}', whose name is wanted now, and "
                    f"{' and '.join(map(repr, left))} still belong to it: rename these as well, '{self.collection}' to "
                    f"'{name}' (rename_collection of pymilvus), or use another name here"
                )

    def check(self, schema: Schema) -> None:
        """See ``Store``."""
        self._connection.engine.check(schema)
        encode_description(Description(schema, "0" * 16))
        if not self._connection.engine.lite:  # which renames nothing
            self._check_not_left_by_a_rename()
        if schema.storage.replicas > 1:
            self._check_replicas(schema.storage.replicas)
        if schema.regions is not None:
            self.regions.check()

    def _check_replicas(self, replicas: int) -> None:
        """Refuse more replicas than there are query nodes, where the server says how many."""
        group = "__default_resource_group"
        try:
            nodes = self._call(lambda: self._client.describe_resource_group(group, timeout=self._timeout))
            there = int(nodes.num_available_node)
        except (StoreError, AttributeError, ValueError):
            return  # not every user may ask, and not every version answers: loading will say it
        if replicas > there:
            raise UnsupportedError(
                f"{replicas} replicas need {replicas} query nodes, Milvus at {self.uri} has {there}: set replicas: "
                f"{max(1, there)}, or add query nodes"
            )

    def create(self, description: Description) -> Description:
        """See ``Store``."""
        recorded = self.describe()
        if recorded is None:
            self.check(description.schema)
            self._tuned.drop()  # left by a collection that another program dropped
            self._added.drop()
            recorded = self._create(description)
        self.regions.create(recorded)
        self._open(recorded)
        return recorded

    def _create(self, description: Description) -> Description:
        """Create the collection itself; without it, its companions go as well. The description that it has now."""
        schema = description.schema.model_copy(update={"collection": base_name(self.collection)})
        layout, description = Layout(schema, description.added), replace(description, schema=schema)
        columns = (*layout.columns, layout.copy) if self._connection.engine.lite else layout.columns
        text = encode_description(description)
        new = NewCollection(self.collection, text, columns, schema.granularities, schema.storage, dynamic=True)
        try:
            collections.create(self._connection, new)
        except StoreError:
            with suppress(StoreError):
                self.drop()
            raise
        if (recorded := self.describe()) is None:
            raise StoreUnavailableError(f"collection '{self.collection}' was removed while it was created: try again")
        return recorded

    def retune(self, weights: Mapping[str, float], fusion: FusionSettings) -> Description:
        """See ``Store``."""
        self._ready()
        description = self.describe()
        if description is None:
            raise StoreUnavailableError(f"collection '{self.collection}' was removed while it was tuned: try again")
        changed = tuned(description, weights, fusion)
        self._tuned.write(changed)
        return changed

    def add_columns(self, fields: Sequence[ExtraField]) -> Description:
        """See ``Store``."""
        self._ready()
        description = self.describe()
        if description is None:
            raise StoreUnavailableError(f"collection '{self.collection}' was removed meanwhile: try again")
        changed = extended(description, fields)
        if new := [field for field in changed.schema.fields if field.name in changed.added[len(description.added) :]]:
            self._connection.engine.check_names(field.name for field in new)
            self._added.write(new, description)
            changed = self.describe() or changed
        return changed

    def drop(self) -> None:
        """See ``Store``."""
        if self.describe() is not None:
            self._connection.write(lambda: self._client.drop_collection(self.collection, timeout=self._timeout))
        elif not self._connection.engine.lite:
            self._check_not_left_by_a_rename()
        if self._companion.exists():
            self._connection.write(lambda: self._client.drop_collection(self._companion.name, timeout=self._timeout))
        self._tuned.drop()
        self._added.drop()
        self.regions.drop()
        self.succession.drop_later()
        self._layout = self._counted = None
        self._bind(None)

    def upsert(self, rows: Sequence[Row]) -> None:
        """See ``Store``."""
        layout = self._ready()
        records = layout.records(rows)
        self._counted = None
        if self._by_id.copied:
            for record in records:
                record[COPY] = layout.copied(record)
        self.regions.upsert(rows)
        for some in _chunks(records, layout.rows_a_call):
            self._call(collections.upsert(self._connection, self.collection, self._fields, some), writes=True)

    def nearest(
        self,
        granularity: str,
        codes: Codes,
        depth: int,
        where: str | None = None,
        *,
        known: dict[str, Mapping[str, bytes]] | None = None,
    ) -> list[Neighbours]:
        """See ``Store``."""
        layout = self._ready()
        layout.check_codes(granularity, codes)
        layout.check_depth(depth)
        chosen = render(where, layout.filterable, lite=self._connection.engine.lite)
        parameters = self._connection.engine.search(layout.schema, depth, self._lists.get(granularity))
        output = [] if known is None else self._by_id.columns_of_codes()
        all_neighbours: list[Neighbours] = []
        for some in _chunks(codes, _queries_a_call(depth)):
            queries = [code.tobytes() for code in some]
            results = self._call(
                partial(
                    self._client.search,
                    self.collection,
                    queries,
                    filter=chosen,
                    limit=depth,
                    search_params=parameters,
                    anns_field=granularity,
                    output_fields=output,
                    timeout=self._timeout,
                )
            )
            with self._connection.reading():
                for _, hits in zip(queries, results, strict=True):
                    all_neighbours.append(neighbours(hits_of(hits, 8 * layout.bytes[granularity], depth)))
                    if output and known is not None:
                        known |= self._by_id.codes_of_hits(hits, known)
        return all_neighbours

    def hybrid(self, codes: Mapping[str, Codes], search: HybridSearch) -> list[list[tuple[str, float]]]:
        """See ``Store``."""
        layout, engine, k, depth = self._ready(), self._connection.engine, search.k, search.depth
        used = layout.check_hybrid(codes, search.weights, k)
        layout.check_depth(depth)
        where = render(search.where, layout.filterable, lite=engine.lite)
        ranker, scale = engine.ranker([search.weights[name] for name in used], search.rrf_k)
        parameters = {name: engine.search(layout.schema, depth, self._lists.get(name)) for name in used}
        fused: list[list[tuple[str, float]]] = []
        # Milvus before 2.6 and Milvus Lite count the ranks of a second query on from the first's: one query a call.
        size = _queries_a_call(max(k, depth)) if engine.since(2, 6, 0) else 1
        for some in _chunks(range(len(codes[used[0]])), size):
            requests = [
                AnnSearchRequest(
                    [codes[name][i].tobytes() for i in some], name, parameters[name], depth, expr=where or None
                )
                for name in used
            ]
            results = self._call(
                partial(self._client.hybrid_search, self.collection, requests, ranker, limit=k, timeout=self._timeout)
            )
            with self._connection.reading():
                for _, hits in zip(some, results, strict=True):
                    pairs = [(i, scale * score) for i, score in zip(hits.ids, hits.distances, strict=True)]
                    _check_fused(pairs, k)
                    fused.append(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
        return fused

    def fetch(self, ids: Sequence[str], granularities: Sequence[str] = ()) -> dict[str, Row]:
        """See ``Store``."""
        layout = self._ready()
        layout.output_fields(granularities)
        rows = {row.id: row for row in self._by_id.rows(ids, granularities)}
        return {i: rows[i] for i in ids if i in rows}

    def fetch_codes(self, ids: Sequence[str], granularities: Sequence[str]) -> dict[str, Mapping[str, bytes]]:
        """See ``Store``."""
        self._ready().output_fields(granularities)
        return dict(self._by_id.codes(ids, granularities))

    def scan(self, where: str | None = None, granularities: Sequence[str] = ()) -> Iterator[list[Row]]:
        """See ``Store``."""
        layout = self._ready()
        for records in self._iterate(layout, layout.output_fields(granularities), where):
            with self._connection.reading():
                rows = [layout.row(record, granularities) for record in records]
            yield rows

    def values(self, columns: Sequence[str], where: str | None = None) -> Iterator[list[tuple[Any, ...]]]:
        """See ``Store``."""
        layout = self._ready()
        for records in self._iterate(layout, list(dict.fromkeys(["id", *columns])), where):
            with self._connection.reading():
                rows = layout.values(records, columns)
            yield rows

    def _iterate(self, layout: Layout, columns: list[str], where: str | None) -> Iterator[Sequence[dict[str, Any]]]:
        """Records of all rows that match, ``_ROWS_A_CALL`` at most at a time."""
        lite = self._connection.engine.lite
        chosen = render(where, layout.filterable, lite=lite)
        iterator = self._call(
            lambda: self._client.query_iterator(
                self.collection,
                batch_size=_SCANNED_A_CALL if lite else layout.rows_a_call,
                filter=chosen,
                output_fields=columns,
                timeout=self._timeout,
                consistency_level="Strong",
            )
        )
        last = ""
        try:
            while records := self._call(iterator.next):
                last = collections.check_progress(self._connection, last, records)
                yield from _chunks(records, _ROWS_A_CALL)
        finally:
            iterator.close()

    def count(self, where: str | None = None) -> int:
        """See ``Store``."""
        layout = self._ready()
        chosen = render(where, layout.filterable, lite=self._connection.engine.lite)
        return self._call(partial(collections.count_rows, self._connection, self.collection, chosen))

    def size(self) -> int:
        """See ``Store``."""
        counted, now = self._counted, time.monotonic()
        if counted is None or now - counted[0] > _COUNTED_FOR:
            counted = self._counted = (now, self.count())
        return counted[1]

    def delete(self, ids: Sequence[str]) -> int:
        """See ``Store``."""
        self._ready()
        self._counted = None
        deleted = 0
        # Servers return the number of ids in the request, not of rows deleted.
        for there in self._by_id.there(ids):
            self._call(
                partial(self._client.delete, self.collection, filter=among(there), timeout=self._timeout), writes=True
            )
            if self._described().schema.regions:
                self.regions.delete(there)
            deleted += len(there)
        return deleted

    def put_encoder(self, fingerprint: str, data: bytes) -> None:
        """See ``Store``."""
        self._companion.put(fingerprint, data)

    def get_encoder(self, fingerprint: str) -> bytes | None:
        """See ``Store``."""
        return self._companion.get(fingerprint)

    def drop_encoder(self, fingerprint: str) -> None:
        """See ``Store``."""
        self._companion.drop(fingerprint)

    def put_statistics(self, data: bytes) -> None:
        """See ``Store``."""
        self._companion.put(STATISTICS, data)

    def get_statistics(self) -> bytes | None:
        """See ``Store``."""
        return self._companion.get(STATISTICS)

    def put_clusters(self, data: bytes) -> None:
        """See ``Store``."""
        self._companion.put(CLUSTERS, data)

    def get_clusters(self) -> bytes | None:
        """See ``Store``."""
        return self._companion.get(CLUSTERS)

    def collections(self) -> list[str]:
        """See ``Store``."""
        there = self.succession.there()
        return sorted(names_for_people(filter(self._is_usable, there), there))

    def server(self) -> str:
        """See ``Store``."""
        return self._connection.engine.label

    def close(self) -> None:
        """See ``Store``."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._connection.close()

    def _call(self, operation: Callable[[], T], *, writes: bool = False) -> T:
        try:
            return self._connection.write(operation) if writes else self._connection.call(operation)
        except CollectionNotFoundError:
            self._layout = None  # another client dropped it, and may create another
            raise

    def _is_usable(self, name: str) -> bool:
        """Whether it is a collection of images; False for one that cannot be read."""
        try:
            check_collection_name(name)
            decode_description(collections.description_of(self._connection, name) or "", name)
        except ForeignCollectionError:
            return False
        except (StoreUnavailableError, AuthenticationError):
            raise
        except StoreError as exc:
            _log.warning("a collection is skipped: %s", one_line(str(exc), 500))
            return False
        return True

    def _open(self, description: Description) -> Layout:
        schema = description.schema
        layout = Layout(schema, description.added)
        index = self._connection.engine.index(schema)
        mapped = {each.name: each.mmap for each in schema.granularities}
        collections.index_and_load(self._connection, self.collection, mapped, index, schema.storage.replicas)
        self._lists = collections.index_nlists(self._connection, self.collection, list(layout.bytes))
        self._fields = collections.describe_fields(self._connection, self.collection, layout.columns, layout.bytes)
        self._by_id = ById(self._connection, self.collection, layout, self._fields, self._call)
        self._description, self._layout = description, layout
        return layout

    def _forget(self) -> None:
        """Describe the collection again before the next query."""
        self._layout = self._counted = None
        self.regions.forget()

    def _described(self) -> Description:
        """The description of the collection, which is loaded now."""
        self._ready()
        assert self._description is not None  # noqa: S101 - set by _open
        return self._description

    def _ready(self) -> Layout:
        """The layout of the collection, which is loaded now.

        Raises:
            CollectionNotFoundError: there is none.
        """
        layout = self._layout
        if layout is not None:
            return layout
        with self._lock:
            if self._layout is not None:
                return self._layout
            description = self.describe()
            if description is None:
                others = ", ".join(self.collections())
                remedy = f"choose one of {others}, or ingest images first" if others else "ingest images first"
                raise CollectionNotFoundError(f"there is no collection '{self.collection}' at {self.uri}: {remedy}")
            return self._open(description)


def _check_fused(pairs: Sequence[tuple[object, float]], k: int) -> None:
    """Raise ValueError unless these can be the first ``k`` of a fusion: pairs (id, score)."""
    if len(pairs) > k or len({row_id for row_id, _ in pairs}) < len(pairs):
        raise ValueError(f"{len(pairs)} hits, expected at most {k} different ones")
    for row_id, score in pairs:
        check_hit_id(row_id)
        if not math.isfinite(score):
            raise ValueError(f"{row_id!r} has the score {score}")


def _queries_a_call(depth: int) -> int:
    return min(MOST_QUERIES, max(1, _RESULTS_A_CALL // depth))


def _chunks(items: Any, size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))


def open_store(config: MilvusConfig) -> Store:
    """Connect to a Milvus Lite file (``*.db``) or a Milvus server (``http://``, ``https://``, ``tcp://``).

    A server at ``https://`` is reached with TLS even if ``config.tls`` is None.

    Raises:
        StoreUnavailableError, AuthenticationError, StoreLockedError, UnsupportedError: see ``errors``.
    """
    return MilvusStore(config)
