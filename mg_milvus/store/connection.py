"""From a URI to a connected client, and what the Milvus behind it can do."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
from pymilvus import Function, FunctionType, MilvusClient, RRFRanker

from mg_milvus.display import one_line
from mg_milvus.errors import StoreError, StoreLockedError, StoreUnavailableError, UnsupportedError
from mg_milvus.store import own_servers
from mg_milvus.store.access import Tls
from mg_milvus.store.faults import Border
from mg_milvus.store.index_lists import nprobe_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.schema import Schema

_CONNECT_ATTEMPTS = 3
_LITE_PATIENCE = 180.0
"""Seconds: a slow machine reads three million rows in this time. An engine that is dead, not busy, says so at once."""
_MOST_BYTES = 512 << 20
"""Longest answer that is taken: what servers send at most unless set otherwise. pymilvus takes any."""
Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Engine:
    """What answers: Milvus Lite or a server, and its version; None when it says none that can be read."""

    lite: bool
    version: Version | None
    label: str

    def older_than(self, *version: int) -> bool:
        """Whether it is a server known to be older."""
        return not self.lite and self.version is not None and self.version < version

    def check(self, schema: Schema) -> None:
        """Refuse a schema that asks for what this Milvus cannot do.

        ``auto`` adapts the index; Milvus Lite is always strongly consistent, which is at least what any
        consistency level asks. Everything else that was set by hand is done as set, or refused here.

        Raises:
            UnsupportedError: with what to change.
        """
        storage = schema.storage
        mapped = [g.name for g in schema.granularities if g.mmap]
        asked = {
            f"index {storage.index}": (storage.index in {"BIN_IVF_FLAT", "HNSW"}, "index: auto"),
            f"{storage.shards} shards": (storage.shards > 1, "shards: 1"),
            f"{storage.replicas} replicas": (storage.replicas > 1, "replicas: 1"),
            f"partition_key {storage.partition_key}": (storage.partition_key is not None, "no partition_key"),
            f"mmap for {', '.join(mapped)}": (bool(mapped), "no mmap"),
        }
        for what, (is_asked, remedy) in asked.items():
            if self.lite and is_asked:
                raise UnsupportedError(f"Milvus Lite has no {what}: set {remedy} in the schema, or use a Milvus server")
        if storage.index == "HNSW" and self.older_than(2, 6, 4):
            raise UnsupportedError(f"{self.label} has no HNSW for binary vectors (since 2.6.4): set index: auto")
        if len(schema.granularities) > 1 and self.older_than(2, 4, 0):
            raise UnsupportedError(
                f"{self.label} holds one granularity per collection, the schema has {len(schema.granularities)}: "
                "upgrade to Milvus 2.4 or later, or use one granularity"
            )
        if mapped and self.older_than(2, 4, 10):
            raise UnsupportedError(f"{self.label} has no mmap per field (since 2.4.10): remove mmap from the schema")

    def index(self, schema: Schema) -> tuple[str, dict[str, Any]]:
        """The index type of every granularity and its build parameters."""
        storage = schema.storage
        name = storage.index if storage.index != "auto" else "BIN_FLAT" if self.lite else "BIN_IVF_FLAT"
        parameters: dict[str, dict[str, Any]] = {
            "BIN_FLAT": {},
            "BIN_IVF_FLAT": {"nlist": storage.nlist},
            "HNSW": {"M": storage.m, "efConstruction": storage.ef_construction},
        }
        return name, parameters[name]

    def search(self, schema: Schema, depth: int, nlist: int | None = None) -> dict[str, Any]:
        """Search parameters for that index.

        ``ef`` grows to ``depth``, as Milvus demands. ``nprobe`` is the schema's share of the clusters: of ``nlist``,
        where the index was built with another number of them than the schema's.
        """
        storage = schema.storage
        nprobe = storage.nprobe if nlist is None else nprobe_for(nlist, storage.nlist, storage.nprobe)
        parameters: dict[str, dict[str, Any]] = {
            "BIN_FLAT": {},
            "BIN_IVF_FLAT": {"nprobe": nprobe},
            "HNSW": {"ef": max(storage.ef, depth)},
        }
        return {"metric_type": "HAMMING", "params": parameters[self.index(schema)[0]]}

    def ranker(self, weights: Sequence[float], rrf_k: int) -> tuple[RRFRanker | Function, float]:
        """Milvus' own reciprocal rank fusion, and the factor that its scores lack: equal weights are left out of it.

        Raises:
            UnsupportedError: this Milvus has no hybrid_search, or the weights differ and it is not known to have
                weights (servers since 3.0.1).
        """
        if self.older_than(2, 4, 0):
            raise UnsupportedError(f"{self.label} has no hybrid_search, which came with Milvus 2.4: use --fusion rank")
        if len(set(weights)) == 1:
            return RRFRanker(rrf_k), weights[0]
        if self.lite or self.version is None or self.older_than(3, 0, 1):
            raise UnsupportedError(
                f"{self.label} fuses with equal weights only, got {list(weights)}: use --fusion rank, or equal weights"
            )
        settings = {"reranker": "rrf", "k": rrf_k, "weights": list(weights)}
        return Function("weighted_rrf", FunctionType.RERANK, input_field_names=[], params=settings), 1.0


@dataclass(frozen=True, slots=True)
class Connection:
    """A connected client, its border, what it talks to, seconds for each request, and how to give it back."""

    client: MilvusClient
    border: Border
    engine: Engine
    timeout: float
    close: Callable[[], None]


def connect(uri: str, collection: str, token: str | None, timeout: float, tls: Tls | None = None) -> Connection:
    """Connect to a Milvus Lite file or a server, whose URI holds no password; see ``access.split_token``.

    A file that ``mgm up`` serves is reached through its server. Where a URI without a token is that of a server which
    this user's ``mgm up`` started, its engine is reached directly, as by the file's name.

    Raises:
        StoreUnavailableError, AuthenticationError, StoreLockedError, UnsupportedError: see ``errors``.
        StoreError: the file cannot be opened.
    """
    if re.match(r"(https?|tcp)://[^/]", uri, re.IGNORECASE) and not uri.endswith(".db"):
        border = Border(uri, collection, timeout, token)
        client = _server(border, uri, token, timeout, tls)
        engine = _ask_engine(border, client, timeout)
        border.be_patient(_LITE_PATIENCE if engine.lite else 0)
        return Connection(client, border, engine, timeout, client.close)
    if "://" in uri or not uri.endswith(".db"):
        raise UnsupportedError(
            f"'{uri}' is not a place for pictures: give a file ending in .db for Milvus Lite, or the "
            "http://, https:// or tcp:// URI of a Milvus server"
        )
    if sys.platform == "win32":
        raise UnsupportedError("there is no Milvus Lite for Windows: give the URI of a Milvus server")
    from mg_milvus.store import lite
    from mg_milvus.store.served import served

    file = Path(uri).expanduser()
    border = Border(uri, collection, timeout, check_room=partial(lite.check_room, file))
    border.be_patient(_LITE_PATIENCE)
    label = f"Milvus Lite {lite.version()}"
    shared = served(file)
    try:
        address = lite.start(file) if shared is None else f"unix:{shared.socket}"
    except StoreLockedError:
        shared = served(file)  # it may have been started a moment ago
        if shared is None:
            raise
        address = f"unix:{shared.socket}"

    def give_back() -> None:
        if shared is None:
            lite.stop(file)

    try:
        client = _client(border, address, None, timeout)
    except StoreError:
        give_back()
        raise

    def close() -> None:
        client.close()
        give_back()

    if shared is not None:
        label += f", shared at {shared.uri}"
    return Connection(client, border, Engine(True, _version(lite.version()), label), timeout, close)


def _server(border: Border, uri: str, token: str | None, timeout: float, tls: Tls | None) -> MilvusClient:
    try:
        _ = urlsplit(uri).port
    except ValueError as exc:
        raise UnsupportedError(f"'{uri}' is not the URI of a server ({exc}): expected http://host:19530") from exc
    if tls is None and uri.lower().startswith("https://"):
        tls = Tls()
    if tls is None:
        own = own_servers.find(uri) if token is None else None
        return _client(border, uri if own is None else f"unix:{own.socket}", token, timeout)
    tls.check()
    try:
        return _client(border, uri, token, timeout, tls.options())
    except StoreUnavailableError as exc:
        trouble = tls.trouble(uri)
        if trouble is None:
            raise
        raise StoreUnavailableError(f"no TLS with Milvus at {uri}: {trouble}") from exc


def _client(
    border: Border, address: str, token: str | None, timeout: float, more: Mapping[str, Any] | None = None
) -> MilvusClient:
    # A connection of its own: pymilvus never closes those that it shares between clients.
    options = {"grpc_options": {"grpc.max_receive_message_length": _MOST_BYTES}, **(more or {})}
    return border.call(
        lambda: MilvusClient(address, token=token or "", timeout=timeout, dedicated=True, **options),
        _CONNECT_ATTEMPTS,
    )


def _ask_engine(border: Border, client: MilvusClient, timeout: float) -> Engine:
    def ask() -> str | None:
        try:
            return str(client.get_server_version(timeout=timeout))
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None  # Milvus Lite over TCP cannot say its version; every server can
            raise

    told = border.call(ask)
    return (
        Engine(True, None, "Milvus Lite")
        if told is None
        else Engine(False, _version(told), f"Milvus {one_line(told.lstrip('v'), 60)}")
    )


def _version(told: str) -> Version | None:
    match = re.match(r"v?([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", told)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None
