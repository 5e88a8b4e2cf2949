"""Connections to Milvus: every request goes through ``Connection``, which retries and maps exceptions."""

from __future__ import annotations

import copy
import logging
import random
import re
import shlex
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import grpc
from pymilvus import Function, FunctionType, MilvusClient, RRFRanker
from pymilvus import exceptions as vendor

from mg_milvus.config import Tls, hide, is_loopback, proxy_note
from mg_milvus.errors import (
    AuthenticationError,
    CollectionNotFoundError,
    FilterError,
    MgMilvusError,
    PrivilegeError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedError,
)
from mg_milvus.files import expand_home, limits_note, one_line
from mg_milvus.schema.models import RESERVED_FIELDS
from mg_milvus.store import lite_server
from mg_milvus.store.base import nprobe_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mg_milvus.config import MilvusConfig
    from mg_milvus.schema.models import Schema


T = TypeVar("T")

VENDOR_ERRORS = (vendor.MilvusException, grpc.RpcError, grpc.FutureTimeoutError)
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a response can raise, in pymilvus and here, if a server sends what no server should."""
ATTEMPTS = 6
_MAX_MESSAGE = 2_000
"""Characters of a server's message that patterns are matched against; some patterns take quadratic time."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0

_BY_CODE: dict[object, type[StoreError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PrivilegeError,
    grpc.StatusCode.UNAVAILABLE: StoreUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: StoreUnavailableError,
    grpc.StatusCode.CANCELLED: StoreUnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    vendor.ErrorCode.COLLECTION_NOT_FOUND: CollectionNotFoundError,
    1800: AuthenticationError,  # a wrong password, as the server numbers it
    2: StoreUnavailableError,  # pymilvus' Status.CONNECT_FAILED
}
_BY_CLASS: dict[type[Exception], type[StoreError]] = {
    vendor.CollectionNotExistException: CollectionNotFoundError,
    vendor.MilvusUnavailableException: StoreUnavailableError,
    vendor.ConnectError: StoreUnavailableError,
    vendor.ConnectionNotExistException: StoreUnavailableError,
    vendor.ConnectionConfigException: UnsupportedError,
    vendor.ServerVersionIncompatibleException: UnsupportedError,
    grpc.FutureTimeoutError: StoreUnavailableError,
}
_BY_TEXT: tuple[tuple[re.Pattern[str], type[StoreError]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), error)
    for pattern, error in (
        (r"auth(entication)? check fail|unauthenticated|auth fail", AuthenticationError),
        (r"permission ?den(y|ied)|privilege", PrivilegeError),
        (r"can't find collection|collection not (found|exist)", CollectionNotFoundError),
        (r"invalid expr|cannot parse expr|parse expression|create query plan|expr proto|expr type", FilterError),
        (r"FilterBitsNode|cannot find field with field_id: 0", FilterError),
        (r"maximum vector field|vector field.* limit|multiple vector fields", UnsupportedError),
        (r"invalid index type|index type .*(not match|support)|not support|unsupported", UnsupportedError),
        (r"retry (timeout|run out)|timed? ?out|connection (refused|reset)|closed channel", StoreUnavailableError),
        (r"channel.* (closed|not found|not available)|not ready|unavailable|no available", StoreUnavailableError),
    )
)
_BUSY = re.compile(
    r"rate limit|request is rejected|quota|not (fully )?loaded|channel.* (closed|not)|not ready"
    r"|manager has not been init",  # Milvus Lite says so for a moment while it starts
    re.I,
)

_NOT_LOADED = 101
_SOURCE_PLACE = re.compile(r" at /\S{1,300}?\.(?:cpp|cc|h|go):\d+")
"""Where in the engine's source an error arose, on the machine that compiled it."""

_inside: ContextVar[bool] = ContextVar("mg_milvus_store_call", default=False)
_reloading: ContextVar[bool] = ContextVar("mg_milvus_store_reload", default=False)


class _OnlyOtherRequests(logging.Filter):
    """Drops pymilvus' log records about this package's requests, whose errors are raised; others still log."""

    def filter(self, _record: logging.LogRecord) -> bool:
        return not _inside.get()


def _silence() -> None:
    for name in ("pymilvus", "pymilvus.milvus_client", "pymilvus.bulk_writer"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_OnlyOtherRequests())


_silence()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and its causes: pymilvus hides the real reason of a refused connection in one of them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # pymilvus raises some errors from themselves
        seen.add(id(error))
        yield error
        error = error.__cause__


def _code(error: BaseException) -> object:
    if isinstance(error, grpc.RpcError):
        return error.code() if hasattr(error, "code") else None
    return error.code if isinstance(error, vendor.MilvusException) else None


def _text(error: BaseException) -> str:
    if isinstance(error, grpc.RpcError):
        return str(error.details() if hasattr(error, "details") else error)
    return str(error.message if isinstance(error, vendor.MilvusException) else error)


def kind_of(error: BaseException) -> type[StoreError]:
    """Return the error class for an exception of pymilvus or grpc; ``StoreError`` if nothing more is known."""
    kinds = [_BY_CODE[code] for e in _chain(error) if (code := _code(e)) in _BY_CODE]
    refused = next((kind for kind in kinds if issubclass(kind, AuthenticationError)), None)
    if kinds:
        return refused or kinds[0]
    for vendors, ours in _BY_CLASS.items():
        if isinstance(error, vendors):
            return ours
    text = _text(error)[:_MAX_MESSAGE]
    return next((ours for pattern, ours in _BY_TEXT if pattern.search(text)), StoreError)


def translate(error: BaseException, config: MilvusConfig) -> StoreError:
    """Return the error for an exception of pymilvus or grpc, with the remedy; the caller raises it ``from`` that one.

    Servers, and proxies before them, may repeat the token; it is hidden here.
    """
    kind, where, collection = kind_of(error), config.uri, config.collection
    # For a refused token pymilvus reports an unavailable server; the server's own message is a cause of that.
    inner = (e for e in _chain(error) if issubclass(kind, AuthenticationError) and _BY_CODE.get(_code(e)) is kind)
    text = _SOURCE_PLACE.sub("", hide(_text(next(inner, error)), config.token)[:_MAX_MESSAGE])
    message = one_line(text, 500) or type(error).__name__
    messages = {
        AuthenticationError: f"{where} refused the token ({message}): give --token USER:PASSWORD or MGM_TOKEN",
        PrivilegeError: f"{where} refused this to the user, who lacks {_privilege(message, collection)}: have it "
        "granted to a role of theirs (docs/server.md, 'Users and rights')",
        CollectionNotFoundError: f"there is no collection '{collection}' at {where}: ingest first, or check the name",
        StoreUnavailableError: f"Milvus at {where} does not answer ({message}): check the URI and that it is running"
        + (limits_note() if config.is_file else proxy_note(where)),
        FilterError: f"Milvus cannot use the filter ({message}): check the names of columns, quotes and parentheses",
        UnsupportedError: f"{where} cannot do this ({message}): change the storage settings, or the server",
        StoreError: f"Milvus request to {where} failed: {message}",
    }
    return kind(messages[kind])


def _privilege(message: str, collection: str | None) -> str:
    """The privilege that a server's message says is missing, and what it is for; "a privilege" if it does not say."""
    named = re.search(r"\bPrivilege([A-Z]\w+)", message)
    if named is None:
        return f"a privilege for '{collection}' ({message})"
    # These are granted for all collections, '*', only.
    everywhere = re.search("(Create|Drop|Describe|Rename)Collection$|Alias|ResourceGroup", named[1])
    return f"the privilege {named[1]} for " + ("all collections, '*'" if everywhere else f"'{collection}'")


def _exceeded(error: BaseException) -> bool:
    """Whether a request exceeded its deadline."""
    return any(_code(e) is grpc.StatusCode.DEADLINE_EXCEEDED for e in _chain(error))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if _code(error) is grpc.StatusCode.DEADLINE_EXCEEDED:
        return False  # the caller's time is already spent
    return (
        kind_of(error) is StoreUnavailableError
        or _code(error) == vendor.ErrorCode.RATE_LIMIT
        or bool(_BUSY.search(_text(error)[:_MAX_MESSAGE]))
    )


_CONNECT_ATTEMPTS = 3
_LITE_BUSY_TIMEOUT = 180.0
"""Seconds: a slow machine reads three million rows in this time. A dead engine is reported at once."""
_BUSY_LIMITS = 4
"""Time limits of one request during which a busy engine is waited for over the network."""
_MAX_BYTES = 512 << 20
"""Largest response accepted, which is the servers' default limit; pymilvus accepts any."""
Version = tuple[int, int, int]

RESERVED_SINCE: dict[str, Version] = {
    "st_contains": (2, 5, 0), "st_equals": (2, 5, 0), "st_intersects": (2, 5, 0), "st_within": (2, 5, 0),
    "minimum_should_match": (2, 6, 0), "interval": (2, 6, 3), "iso": (2, 6, 3), "element_filter": (3, 0, 0),
    "match_all": (3, 0, 0), "match_any": (3, 0, 0), "match_exact": (3, 0, 0), "match_least": (3, 0, 0),
    "match_most": (3, 0, 0), "text_match_fuzzy": (3, 0, 0), "threshold": (3, 0, 0),
}  # fmt: skip
"""Words of the filter language (internal/parser/planparserv2/Plan.g4) that no field can have as its name -> since."""
MOST_QUERIES = 16_384
"""Queries in one request (quotaAndLimits.limits.nq)."""
_MOST_CONSTANT = 16_383
"""Of reciprocal rank fusion."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What responds: Milvus Lite or a server, and its version; None if that cannot be read."""

    lite: bool
    version: Version | None
    label: str

    def older_than(self, *version: int) -> bool:
        """Whether it is a server known to be older."""
        return not self.lite and self.version is not None and self.version < version

    def since(self, *version: int) -> bool:
        """Whether it is a server known to be of this version or newer."""
        return not self.lite and self.version is not None and self.version >= version

    def check(self, schema: Schema) -> None:
        """Refuse a schema with settings that this Milvus does not support.

        ``auto`` adapts the index; Milvus Lite is always strongly consistent, which satisfies every consistency level.
        All other settings are applied as they are, or refused here.

        Raises:
            UnsupportedError: with what to change.
        """
        storage = schema.storage
        mapped = [g.name for g in schema.granularities if g.mmap]
        settings = {
            f"index {storage.index}": (storage.index in {"BIN_IVF_FLAT", "HNSW"}, "index: auto"),
            f"{storage.shards} shards": (storage.shards > 1, "shards: 1"),
            f"{storage.replicas} replicas": (storage.replicas > 1, "replicas: 1"),
            f"partition_key {storage.partition_key}": (storage.partition_key is not None, "no partition_key"),
            f"mmap for {', '.join(mapped)}": (bool(mapped), "no mmap"),
        }
        for what, (is_set, remedy) in settings.items():
            if self.lite and is_set:
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
        self._check_fields(schema)

    def _check_fields(self, schema: Schema) -> None:
        """Refuse names and numbers of fields that this version refuses as it is set up when nobody changes that."""
        names = [*schema.bits, *(each.name for each in schema.fields)]
        self.check_names(names)
        if self.lite or self.version is None:
            return
        vectors, most_vectors = len(schema.bits), 10 if self.since(2, 6, 17) else 4
        if vectors > most_vectors:
            raise UnsupportedError(
                f"{self.label} holds {most_vectors} granularities in a collection, the schema has {vectors}: "
                "use fewer, or Milvus 2.6.17 or later"
            )
        count, most = len(RESERVED_FIELDS - {"_codes"}) + len(names), 256 if self.since(3, 0, 0) else 64
        if count > most:
            raise UnsupportedError(
                f"{self.label} holds {most} fields in a collection, the schema has {count} with those that every image "
                "has: use fewer, or Milvus 3.0 or later"
            )

    def check_names(self, names: Iterable[str]) -> None:
        """Raise UnsupportedError for a name of a field that is a word of this version's filters."""
        for name in names:
            since = RESERVED_SINCE.get(name.lower())
            if since is not None and self.since(*since):
                raise UnsupportedError(f"'{name}' is a word of the filters of {self.label}: choose another name")

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
        """Milvus' own reciprocal rank fusion, and the factor that its scores lack: that of the largest weight.

        Raises:
            UnsupportedError: this Milvus has no hybrid_search, ``rrf_k`` is too large for it, or the weights differ and
                it is not known to have weights (servers since 3.0.1).
        """
        if self.older_than(2, 4, 0):
            raise UnsupportedError(f"{self.label} has no hybrid_search, which came with Milvus 2.4: use --fusion rank")
        if rrf_k > _MOST_CONSTANT:
            raise UnsupportedError(
                f"rrf_k is {rrf_k}, {self.label} fuses with at most {_MOST_CONSTANT}: use a smaller one, or "
                "--fusion rank"
            )
        if len(set(weights)) == 1:
            return RRFRanker(rrf_k), weights[0]
        if not self.since(3, 0, 1):
            raise UnsupportedError(
                f"{self.label} fuses with equal weights only, got {list(weights)}: use --fusion rank, or equal weights"
            )
        largest = max(weights)  # weights have to lie between 0 and 1
        settings = {"reranker": "rrf", "k": rrf_k, "weights": [weight / largest for weight in weights]}
        return Function("weighted_rrf", FunctionType.RERANK, input_field_names=[], params=settings), largest


class Connection:
    """A connection to Milvus: runs requests, retries transient failures, and raises only this package's errors.

    Retries wait 0.1 s, then twice as long each time, up to 2 s, shortened by a random half, at most ``ATTEMPTS``
    times and no longer than ``timeout`` seconds in all.

    Attributes:
        config: how Milvus is reached; with a collection.
        client: of pymilvus.
        engine: what responds.
        reload: loads the collections again; called when one was released, by another client or by a restart.
        served: the server of a file that ``mgm up`` shares.
        revive: starts an engine of this process again that has ended; see ``lite.revive``.
        busy_timeout: seconds during which a request that exceeds its deadline is repeated, since the server may be
            busy. For Milvus Lite, which responds to nobody while it reads a collection from its file (a million rows:
            many seconds). Every request can be repeated.
    """

    client: MilvusClient
    engine: Engine

    def __init__(self, config: MilvusConfig, check_room: Callable[[], None] = lambda: None) -> None:
        """``check_room`` raises ``StoreError`` where a write would not be stored."""
        self.config, self.busy_timeout = config, 0.0
        self.reload: Callable[[], object] | None = None
        self.revive: Callable[[], tuple[int, str]] = lambda: (0, "")
        self.served: lite_server.Server | None = None
        self._check_room = check_room
        self._random = random.Random()  # noqa: S311  (jitter, not cryptography)
        self._closed = threading.Event()
        self._on_close = ExitStack()

    def about(self, collection: str) -> Connection:
        """The same connection, whose errors name another collection."""
        other = copy.copy(self)
        other.config = replace(self.config, collection=collection)
        return other

    @property
    def timeout(self) -> float:
        """Seconds for each request."""
        return self.config.timeout

    def open(self, address: str, tls: Mapping[str, Any] | None = None) -> None:
        """Connect the client to an address, which may differ from the URI."""
        # A connection of its own: pymilvus never closes those that it shares between clients.
        grpc_options: dict[str, int] = {"grpc.max_receive_message_length": _MAX_BYTES}
        if is_loopback(address):
            grpc_options["grpc.enable_http_proxy"] = 0  # no proxy leads back to this machine
            # A server that was started again is reached at once, where gRPC would wait for a second.
            grpc_options |= {"grpc.initial_reconnect_backoff_ms": 100, "grpc.min_reconnect_backoff_ms": 100}
        options = {"grpc_options": grpc_options, "dedicated": True, **(tls or {})}
        self.client = self.call(
            lambda: MilvusClient(address, token=self.config.token or "", timeout=self.timeout, **options),
            _CONNECT_ATTEMPTS,
        )
        self._on_close.callback(self.client.close)

    def on_close(self, operation: Callable[[], None]) -> None:
        """Run an operation when the connection is closed, after those registered later."""
        self._on_close.callback(operation)

    def close(self) -> None:
        """Close the connection and refuse later requests; idempotent."""
        self._closed.set()
        self._on_close.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around code that reads a response.

        Raises:
            StoreError: the response is not one that Milvus gives.
        """
        try:
            yield
        except MgMilvusError:
            raise
        except VENDOR_ERRORS as exc:
            raise translate(exc, self.config) from exc
        except UNREADABLE as exc:
            raise self._unreadable(exc) from exc

    def _unreadable(self, error: BaseException) -> StoreError:
        config = self.config
        reason = f"{type(error).__name__}: {one_line(hide(str(error), config.token))}".removesuffix(": ")
        return StoreError(
            f"the response of Milvus at {config.uri} about '{config.collection}' cannot be read ({reason}): check that "
            "it is a Milvus server, and that no other program has written into the collection"
        )

    def _reload(self) -> None:
        token = _reloading.set(True)
        try:
            if self.reload is not None:
                self.reload()
        finally:
            _reloading.reset(token)

    def write(self, operation: Callable[[], T]) -> T:
        """``call`` for a request that writes. It succeeds only if the disk has room before and after.

        Milvus Lite acknowledges writes that did not fit on its disk.
        """
        self._check_room()
        try:
            return self.call(operation)
        finally:
            self._check_room()

    def call(self, operation: Callable[[], T], attempts: int = ATTEMPTS) -> T:
        """Run a request; its result.

        Raises:
            StoreError: or one of its children, from the vendor's exception; or the response cannot be read.
        """
        if self._closed.is_set():
            raise StoreError(f"the connection to {self.config.uri} was closed: open it again")
        deadline = time.monotonic() + self.timeout
        busy_until = time.monotonic() + self.busy_timeout
        deaths, _ = self.revive()
        delay, repeated = _FIRST_DELAY, False
        while True:
            attempts -= 1
            token = _inside.set(True)
            try:
                return operation()
            except VENDOR_ERRORS as exc:
                if _exceeded(exc) and time.monotonic() < busy_until:
                    attempts += 1
                    continue
                if _code(exc) == _NOT_LOADED and self.reload is not None and not _reloading.get():
                    self._reload()
                    continue
                more = self._deaths_during(exc, deaths)
                if more and not repeated:
                    repeated, attempts = True, ATTEMPTS
                    continue
                wait = delay * (0.5 + self._random.random() / 2)
                if attempts <= 0 or time.monotonic() + wait > deadline or not is_transient(exc):
                    raise self._translate(exc) from exc
            except MgMilvusError:
                raise
            except UNREADABLE as exc:
                raise self._unreadable(exc) from exc
            finally:
                _inside.reset(token)
            time.sleep(wait)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _translate(self, error: BaseException) -> StoreError:
        served, away = self.served, kind_of(error) is StoreUnavailableError
        if served is not None and away and lite_server.server_of(Path(served.file)) is None:
            return StoreUnavailableError(
                f"the server of {served.file} has ended, and {served.log} says how: start it again with mgm up "
                f"--data {shlex.quote(served.file)}"
            )
        return translate(error, self.config)

    def _deaths_during(self, error: BaseException, before: int) -> int:
        """How often the engine has ended during a request that failed; it runs again.

        Raises:
            StoreError: more than once, so the request may be the reason.
        """
        from mg_milvus.store import lite

        deaths, end = self.revive() if kind_of(error) is StoreUnavailableError else (before, "")
        if deaths - before > 1:
            raise StoreError(
                f"Milvus Lite's engine for {self.config.uri} ended {end} during a request, and again when the request "
                f"was repeated: {lite.ENDED_REMEDY}"
            ) from error
        return deaths - before


def connect(config: MilvusConfig) -> Connection:
    """Connect to a Milvus Lite file or a server.

    A file that ``mgm up`` serves is reached through its server. If a URI without a token is that of a server which this
    user's ``mgm up`` started, its engine is reached directly, as by the file's name.

    Raises:
        StoreUnavailableError, AuthenticationError, StoreLockedError, UnsupportedError: see ``errors``.
        StoreError: the file cannot be opened.
    """
    uri = config.uri
    if re.match(r"(https?|tcp)://[^/]", uri, re.IGNORECASE) and not uri.endswith(".db"):
        return _connect_server(Connection(config))
    if not config.is_file or not uri.endswith(".db"):
        raise UnsupportedError(
            f"'{uri}' is not a place for images: give a file ending in .db for Milvus Lite, or the "
            "http://, https:// or tcp:// URI of a Milvus server"
        )
    if sys.platform == "win32":
        raise UnsupportedError("there is no Milvus Lite for Windows: give the URI of a Milvus server")
    return _connect_file(replace(config, token=None, tls=None))  # files need neither


def _connect_file(config: MilvusConfig) -> Connection:
    from mg_milvus.store import lite

    file = lite.data_path(expand_home(config.uri))
    connection = Connection(config, partial(lite.check_room, file))
    connection.busy_timeout = _LITE_BUSY_TIMEOUT
    label = f"Milvus Lite {lite.version()}"
    served = lite_server.server_of(file)
    if served is None:
        try:
            address = lite.start(file)
            connection.on_close(partial(lite.stop, file))
            connection.revive = partial(lite.revive, file)
        except StoreLockedError:
            served = lite_server.server_of(file)  # it may have been started a moment ago
            if served is None:
                raise
    if served is not None:
        address, label = f"unix:{served.socket}", f"{label}, shared at {served.uri}"
        connection.served = served
    try:
        connection.open(address)
    except StoreError:
        connection.close()
        raise
    connection.engine = Engine(True, _parse_version(lite.version()), label)
    return connection


def _connect_server(connection: Connection) -> Connection:
    uri, token, tls = connection.config.uri, connection.config.token, connection.config.tls
    try:
        _ = urlsplit(uri).port
    except ValueError as exc:
        raise UnsupportedError(f"'{uri}' is not the URI of a server ({exc}): expected http://host:19530") from exc
    if tls is None and uri.lower().startswith("https://"):
        tls = Tls()
    if tls is None:
        served = lite_server.server_at(uri) if token is None else None
        connection.open(uri if served is None else f"unix:{served.socket}")
        connection.served = served
    else:
        tls.check()
        try:
            connection.open(uri, tls.options())
        except StoreUnavailableError as exc:
            trouble = tls.trouble(uri)
            if trouble is None:
                raise
            raise StoreUnavailableError(f"no TLS with Milvus at {uri}: {trouble}") from exc
    connection.engine = _server_engine(connection)
    if connection.engine.lite:
        # A silent network looks the same as a busy engine, so the user's limit decides how long either is waited for.
        connection.busy_timeout = min(_LITE_BUSY_TIMEOUT, _BUSY_LIMITS * connection.timeout)
    return connection


def _server_engine(connection: Connection) -> Engine:
    def server_version() -> str | None:
        try:
            return str(connection.client.get_server_version(timeout=connection.timeout))
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None  # Milvus Lite over TCP does not state its version; every server does
            raise

    version = connection.call(server_version)
    if version is None:
        return Engine(True, None, "Milvus Lite")
    return Engine(False, _parse_version(version), f"Milvus {one_line(version.lstrip('v'), 60)}")


def _parse_version(text: str) -> Version | None:
    match = re.match(r"v?([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None
