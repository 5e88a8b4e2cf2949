"""A stand-in for Milvus servers that cannot be run here: their protocol, their strictness, and Lite to keep the data.

Milvus Lite's engine searches and stores; this proxy before it states a version, refuses what that version refuses, and
keeps what Lite has not: load states, index types and their parameters, aliases, databases, users. Each behaviour names
the place in Milvus' sources (github.com/milvus-io/milvus, tags v2.4.14, v2.5.27, v2.6.19, v3.0.0) that it was read in.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import message_factory
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from tests.server.strict_rights import Refusal, Rights
from tests.servers import free_port, lite_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.message import Message

VERSIONS = ("2.4.14", "2.5.27", "2.6.19", "3.0.0")
_SERVICE = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"]
_REPLIES = {method.name: message_factory.GetMessageClass(method.output_type) for method in _SERVICE.methods}
_REQUESTS = {method.name: message_factory.GetMessageClass(method.input_type) for method in _SERVICE.methods}

# pkg/util/merr/errors.go
RESOURCES, NOT_FOUND, NOT_LOADED, NOT_FULLY_LOADED = 12, 100, 101, 103
INDEX, DATABASE, INVALID, ALIAS = 701, 800, 1100, 1600

# pkg/util/paramtable: quotaAndLimits.limits.topK and nq, proxy.maxShardNum, proxy.grpc.serverMaxRecvSize
MOST_HITS = MOST_QUERIES = 16_384
MOST_SHARDS = 16
MOST_RECEIVED = 64 << 20
_BINARY = schema_pb2.BinaryVector
"""All types of vectors are numbered from it on."""

# internal/parser/planparserv2/Plan.g4: keywords that no product of this kind uses as such; since which version
RESERVED: dict[str, tuple[int, ...]] = {
    "st_equals": (2, 5), "st_within": (2, 5), "st_contains": (2, 5), "text_match": (2, 5), "phrase_match": (2, 5, 7),
    "random_sample": (2, 5, 6), "iso": (2, 6, 3), "interval": (2, 6, 3), "minimum_should_match": (2, 6),
    "threshold": (3, 0), "match_any": (3, 0), "match_all": (3, 0), "element_filter": (3, 0),
    "text_match_fuzzy": (3, 0),
}  # fmt: skip
_CLASSIC = {
    "and",
    "or",
    "not",
    "in",
    "like",
    "exists",
    "is",
    "null",
    "true",
    "false",
    "json_contains",
    "array_contains",
}


def _for_engine(text: str) -> str:
    """A filter whose `not exists name`, which servers read (planparserv2/Plan.g4), the engine can read, too."""
    return re.sub(r"\bnot exists (\w+)", r'$meta["\1?"] != true', text)


# knowhere's parameters of an index, as internal/util/indexparamcheck checks them: name -> least and most
_INDEXES: dict[str, dict[str, tuple[int, int]]] = {
    "BIN_FLAT": {},
    "BIN_IVF_FLAT": {"nlist": (1, 65_536)},
    "HNSW": {"M": (2, 2_048), "efConstruction": (1, 2**31 - 1)},
}


class StrictProxy(grpc.GenericRpcHandler):
    """A server of one version before an engine of Milvus Lite.

    Attributes:
        rights: users, roles and privileges; without users, nobody has to say who they are.
        query_nodes: how many replicas can be loaded.
        load_seconds: how long a collection is being loaded.
        delay: seconds before every response.
        drops: how many requests to refuse next, as a server does that goes away.
        calls: how often each method was called.
    """

    def __init__(self, engine: str, version: str) -> None:
        self.version = tuple(map(int, version.split(".")))
        self.label, self.engine = f"v{version}", engine
        self.rights = Rights()
        self.query_nodes, self.load_seconds, self.delay, self.drops = 1, 0.0, 0.0, 0
        self.calls: Counter[str] = Counter()
        self.databases = {"default"}
        self._aliases: dict[str, str] = {}
        self._renamed: dict[str, str] = {}
        self._loaded: dict[str, float] = {}
        self._indexes: dict[str, dict[str, dict[str, str]]] = {}
        self._schemas: dict[str, schema_pb2.CollectionSchema] = {}
        self._shards: dict[str, int] = {}
        self._flushed: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._created = 0
        self._lock = threading.Lock()
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        options = [("grpc.max_receive_message_length", MOST_RECEIVED), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=[self], options=options)
        assert self._server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
        lengths = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(self.engine, options=lengths)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def restart(self) -> None:
        """Stop and start again; a server loads again what was loaded (querycoordv2/server.go, recover)."""
        self.stop()
        self._loaded = {name: time.monotonic() + self.load_seconds for name in self._loaded}
        self.start()

    # The protocol.

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = details.method.rpartition("/")[2]
        if name not in _REQUESTS:
            return None
        metadata = dict(details.invocation_metadata)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._respond(name, request, context, metadata),
            request_deserializer=_REQUESTS[name].FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    def _respond(self, name: str, request: Any, context: grpc.ServicerContext, metadata: dict[str, str]) -> Message:
        with self._lock:
            self.calls[name] += 1
            dropped, self.drops = self.drops > 0, max(0, self.drops - 1)
        if dropped:
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset by peer")
        time.sleep(self.delay)
        self.rights.authorize(request, context, metadata)
        try:
            self._resolve(name, request)
            snake = re.sub("(?<!^)(?=[A-Z])", "_", name).lower()
            own = getattr(self, f"_{snake}", None) or getattr(self.rights, snake, None)
            response: Message = own(request) if own else self._forward(name, request)
        except Refusal as refusal:
            return _failed(name, refusal)
        except grpc.RpcError as error:  # the engine's
            context.abort(error.code(), error.details())
        return response

    def _forward(self, name: str, request: Message) -> Any:
        call = self._channel.unary_unary(
            f"/{_SERVICE.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_REPLIES[name].FromString,
        )
        return call(request, timeout=120)

    # Aliases and databases: the engine has neither, so a collection of another database gets a longer name.

    def _real(self, name: str) -> str:
        """The engine's name, which a collection keeps when it is renamed."""
        name = self._aliases.get(name, name)
        return self._renamed.get(name, f"{name}__gone" if name in self._renamed.values() else name)

    def _public(self, name: str) -> str:
        return next((new for new, old in self._renamed.items() if old == name), name)

    def _resolve(self, method: str, request: Any) -> None:
        """Aliases stand for the collection in every request but those that manage it (proxy/meta_cache.go)."""
        database = getattr(request, "db_name", "") or "default"
        if method not in {"CreateDatabase", "DescribeDatabase", "DropDatabase"} and database not in self.databases:
            raise Refusal(DATABASE, f"database not found[database={database}]")
        fields = request.DESCRIPTOR.fields_by_name
        if "collection_name" not in fields or fields["collection_name"].is_repeated:
            return
        name = request.collection_name
        if method == "CreateCollection" and name in self._renamed.values():
            self._renamed[name] = name = f"{name}__{self._created}"
        elif method not in {"CreateCollection", "CreateAlias", "AlterAlias"}:
            name = self._real(name)
        request.collection_name = name if database == "default" else f"{database}__{name}"
        if "db_name" in fields:
            request.db_name = ""
        for each in request.requests if method == "HybridSearch" else ():
            each.collection_name, each.db_name = request.collection_name, ""

    def _create_alias(self, request: Any) -> Message:
        self._known(self._real(request.collection_name))
        if request.alias in self._aliases:
            raise Refusal(1602, f"alias already exist[alias={request.alias}]")
        self._aliases[request.alias] = request.collection_name
        return _done()

    def _alter_alias(self, request: Any) -> Message:
        self._known(self._real(request.collection_name))
        self._aliases[request.alias] = request.collection_name
        return _done()

    def _drop_alias(self, request: Any) -> Message:
        self._aliases.pop(request.alias, None)
        return _done()

    def _describe_alias(self, request: Any) -> Message:
        if request.alias not in self._aliases:
            raise Refusal(ALIAS, f"alias not found[alias={request.alias}]")
        return milvus_pb2.DescribeAliasResponse(
            status=_done(), alias=request.alias, collection=self._aliases[request.alias]
        )

    def _list_aliases(self, request: Any) -> Message:
        aliases = [a for a, name in self._aliases.items() if self._public(request.collection_name) in {"", name}]
        return milvus_pb2.ListAliasesResponse(
            status=_done(), collection_name=request.collection_name, aliases=sorted(aliases)
        )

    def _rename_collection(self, request: Any) -> Message:
        """rootcoord/meta_table.go, RenameCollection: its id, aliases and load state stay."""
        engine = self._real(request.oldName)
        self._known(engine)
        if self._real(request.newName) in self._schemas:
            raise Refusal(65_535, f"duplicated new collection name default:{request.newName}")
        self._renamed.pop(request.oldName, None)
        self._renamed[request.newName] = engine
        for alias, name in self._aliases.items():
            if name == request.oldName:
                self._aliases[alias] = request.newName
        return _done()

    def _show_collections(self, request: Any) -> Message:
        response = self._forward("ShowCollections", request)
        names = [self._public(name) for name in response.collection_names]
        del response.collection_names[:]
        response.collection_names.extend(names)
        return response  # type: ignore[no-any-return]

    def _create_database(self, request: Any) -> Message:
        self.databases.add(request.db_name)
        return _done()

    def _drop_database(self, request: Any) -> Message:
        self.databases.discard(request.db_name)
        return _done()

    def _list_databases(self, _request: Any) -> Message:
        return milvus_pb2.ListDatabasesResponse(status=_done(), db_names=sorted(self.databases))

    def _describe_database(self, request: Any) -> Message:
        if request.db_name not in self.databases:
            raise Refusal(DATABASE, f"database not found[database={request.db_name}]")
        return milvus_pb2.DescribeDatabaseResponse(status=_done(), db_name=request.db_name)

    def _get_version(self, _request: Any) -> Message:
        return milvus_pb2.GetVersionResponse(status=_done(), version=self.label)

    def _connect(self, _request: Any) -> Message:
        server = common_pb2.ServerInfo(build_tags=self.label, deploy_mode="STANDALONE")
        return milvus_pb2.ConnectResponse(status=_done(), server_info=server, identifier=1)

    # Collections.

    def _known(self, name: str) -> None:
        if name not in self._schemas:
            raise Refusal(NOT_FOUND, f"can't find collection[database=default][collection={name}]")

    def _create_collection(self, request: Any) -> Message:
        """The checks of proxy/task.go (createCollectionTask.PreExecute) and proxy/util.go."""
        schema = schema_pb2.CollectionSchema.FromString(request.schema)
        vectors = sum(each.data_type >= _BINARY for each in schema.fields)
        most_fields = 256 if self.version >= (3,) else 64
        most_vectors = 10 if self.version > (2, 6, 16) else 4
        if self.version >= (2, 6, 19) and len(schema.description.encode()) > 1_024:
            raise Refusal(INVALID, "collection description exceeds max length 1024: invalid parameter")
        if request.shards_num > MOST_SHARDS:
            raise Refusal(INVALID, f"maximum shards's number should be limited to {MOST_SHARDS}")
        if len(schema.fields) > most_fields:
            raise Refusal(INVALID, f"maximum field's number should be limited to {most_fields}")
        if vectors > most_vectors:
            raise Refusal(INVALID, f"maximum vector field's number should be limited to {most_vectors}")
        for each in schema.fields:
            self._check_field(each)
        name = request.collection_name
        self._schemas[name] = schema_pb2.CollectionSchema.FromString(request.schema)
        for each in schema.fields:  # what the engine does not know, and a server keeps
            each.is_partition_key = False
            kept = [pair for pair in each.type_params if pair.key in {"dim", "max_length"}]
            del each.type_params[:]
            each.type_params.extend(kept)
        self._shards[name], request.shards_num = max(1, request.shards_num), 1
        schema.name = name
        self._created += 1
        self._numbers[name] = self._created
        request.schema = schema.SerializeToString()
        del request.properties[:]
        response = self._forward("CreateCollection", request)
        if response.code:
            self._schemas.pop(name, None)
        return response  # type: ignore[no-any-return]

    def _check_field(self, each: schema_pb2.FieldSchema) -> None:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,254}", each.name):
            raise Refusal(1701, f"field name invalid: {each.name}")
        if each.name.lower() in _CLASSIC:
            raise Refusal(1701, f"Invalid field name: {each.name} is keyword in milvus")
        parameters = {pair.key: pair.value for pair in each.type_params}
        if each.data_type == schema_pb2.VarChar and not 1 <= int(parameters["max_length"]) <= 65_535:
            raise Refusal(INVALID, f"the maximum length specified for the field({each.name}) should be in (0, 65535]")
        if each.data_type == _BINARY and int(parameters["dim"]) % 8:
            raise Refusal(INVALID, f"invalid dimension: {parameters['dim']} should be multiple of 8.")
        if "mmap.enabled" in parameters and self.version < (2, 4, 10):
            raise Refusal(INVALID, "mmap.enabled cannot be set for a field")

    def _describe_collection(self, request: Any) -> Message:
        response = self._forward("DescribeCollection", request)
        kept = self._schemas.get(request.collection_name)
        if kept is not None and not response.status.code:
            own = {each.name: each for each in kept.fields}
            for each in response.schema.fields:
                del each.type_params[:]
                each.type_params.extend(own[each.name].type_params)
                each.is_partition_key = own[each.name].is_partition_key
            response.shards_num = self._shards[request.collection_name]
            response.collectionID = self._numbers[request.collection_name]
            response.collection_name = response.schema.name = self._public(request.collection_name)
            response.aliases.extend(sorted(a for a, name in self._aliases.items() if name == response.collection_name))
        return response  # type: ignore[no-any-return]

    def _drop_collection(self, request: Any) -> Message:
        """rootcoord/drop_collection_task.go: not while an alias stands for it."""
        name = request.collection_name
        if self._public(name) in self._aliases.values():
            raise Refusal(INVALID, f"unable to drop the collection [{name}] because it has associated aliases")
        for kept in (self._loaded, self._indexes, self._schemas, self._shards, self._numbers, self._flushed):
            kept.pop(name, None)  # type: ignore[attr-defined]
        self._renamed.pop(self._public(name), None)
        return self._forward("DropCollection", request)  # type: ignore[no-any-return]

    # Indexes: checked and kept; the engine's own is always BIN_FLAT.

    def _create_index(self, request: Any) -> Message:
        """datacoord/index_service.go, internal/util/indexparamcheck."""
        pairs = {pair.key: pair.value for pair in request.extra_params}
        given = json.loads(pairs.pop("params", "{}"))
        parameters = {**pairs, **{key: str(value) for key, value in given.items()}}
        kind = parameters.get("index_type", "AUTOINDEX")
        if kind not in _INDEXES or (kind == "HNSW" and self.version < (2, 6, 4)):
            raise Refusal(INVALID, f"invalid parameter[expected=valid index][actual=invalid index type: {kind}]")
        for key, (least, most) in _INDEXES[kind].items():
            value = parameters.get(key, "")
            if not value.isdigit() or not least <= int(value) <= most:
                raise Refusal(INVALID, f"Out of range in json: param '{key}' ({value}) should be in [{least}, {most}]")
        unknown = parameters.keys() - _INDEXES[kind] - {"index_type", "metric_type", "mmap.enabled"}
        if unknown:
            raise Refusal(INVALID, f"invalid index params: {sorted(unknown)}")
        own = self._indexes.setdefault(request.collection_name, {})
        name = request.index_name or request.field_name
        if own.get(request.field_name, parameters) != parameters:
            raise Refusal(INDEX, "CreateIndex failed: at most one distinct index is allowed per field")
        own[request.field_name] = parameters
        del request.extra_params[:]
        plain = {"index_type": "BIN_FLAT", "metric_type": parameters["metric_type"], "params": "{}"}
        request.extra_params.extend(common_pb2.KeyValuePair(key=key, value=value) for key, value in plain.items())
        request.index_name = name
        return self._forward("CreateIndex", request)  # type: ignore[no-any-return]

    def _describe_index(self, request: Any) -> Message:
        response = self._forward("DescribeIndex", request)
        for each in response.index_descriptions:
            parameters = self._indexes.get(request.collection_name, {}).get(each.field_name)
            if parameters is not None:
                # Growing segments have no index: datacoord/index_service.go, completeIndexInfo.
                each.total_rows = each.indexed_rows = self._flushed.get(request.collection_name, 0)
                del each.params[:]
                each.params.extend(common_pb2.KeyValuePair(key=key, value=value) for key, value in parameters.items())
        return response  # type: ignore[no-any-return]

    def _drop_index(self, request: Any) -> Message:
        """Not while the collection is loaded: datacoord/index_service.go."""
        if request.collection_name in self._loaded:
            raise Refusal(INVALID, f"index cannot be dropped, collection is loaded: {request.collection_name}")
        names = {request.field_name, request.index_name}
        own = self._indexes.get(request.collection_name, {})
        self._indexes[request.collection_name] = {key: value for key, value in own.items() if key not in names}
        return self._forward("DropIndex", request)  # type: ignore[no-any-return]

    def _flush(self, request: Any) -> Message:
        """Seals segments, whose index is then built: datacoord/services.go."""
        for name in request.collection_names:
            self._known(name)
            query = milvus_pb2.QueryRequest(collection_name=name, output_fields=["count(*)"])
            self._flushed[name] = self._forward("Query", query).fields_data[0].scalars.long_data.data[0]
        return milvus_pb2.FlushResponse(status=_done())

    def _get_persistent_segment_info(self, request: Any) -> Message:
        """Of sealed segments: datacoord/services.go."""
        rows = self._flushed.get(request.collectionName, 0)
        infos = [milvus_pb2.PersistentSegmentInfo(segmentID=1, num_rows=rows)] if rows else []
        return milvus_pb2.GetPersistentSegmentInfoResponse(status=_done(), infos=infos)

    def _get_flush_state(self, _request: Any) -> Message:
        return milvus_pb2.GetFlushStateResponse(status=_done(), flushed=True)

    # Load states: querycoordv2/services.go.

    def _load_collection(self, request: Any) -> Message:
        name = request.collection_name
        self._known(name)
        vectors = [f.name for f in self._schemas[name].fields if f.data_type >= _BINARY]
        if missing := [vector for vector in vectors if vector not in self._indexes.get(name, {})]:
            raise Refusal(700, f"there is no vector index on field: {missing}, please create index firstly")
        if request.replica_number > self.query_nodes:
            raise Refusal(
                RESOURCES,
                f"service resource insufficient[currentNodeNum={self.query_nodes}]"
                f"[requiredNodeNum={request.replica_number}]",
            )
        self._loaded.setdefault(name, time.monotonic() + self.load_seconds)
        return self._forward("LoadCollection", request)  # type: ignore[no-any-return]

    def _release_collection(self, request: Any) -> Message:
        self._known(request.collection_name)
        self._loaded.pop(request.collection_name, None)
        return _done()

    def _get_load_state(self, request: Any) -> Message:
        states = common_pb2
        name = request.collection_name
        if name not in self._schemas:
            state = states.LoadStateNotExist
        elif name not in self._loaded:
            state = states.LoadStateNotLoad
        else:
            state = states.LoadStateLoaded if time.monotonic() >= self._loaded[name] else states.LoadStateLoading
        return milvus_pb2.GetLoadStateResponse(status=_done(), state=state)

    def _describe_resource_group(self, request: Any) -> Message:
        """querycoordv2/services.go: all query nodes are in the default group."""
        group = milvus_pb2.ResourceGroup(
            name=request.resource_group, capacity=self.query_nodes, num_available_node=self.query_nodes
        )
        return milvus_pb2.DescribeResourceGroupResponse(status=_done(), resource_group=group)

    def _get_loading_progress(self, request: Any) -> Message:
        self._check_known_and_loading(request.collection_name)
        ready = time.monotonic() >= self._loaded[request.collection_name]
        return milvus_pb2.GetLoadingProgressResponse(status=_done(), progress=100 if ready else 50)

    def _check_known_and_loading(self, name: str) -> None:
        self._known(name)
        if name not in self._loaded:
            raise Refusal(NOT_LOADED, f"collection not loaded[collection={name}]")

    def _check_loaded(self, name: str) -> None:
        self._check_known_and_loading(name)
        if time.monotonic() < self._loaded[name]:
            raise Refusal(NOT_FULLY_LOADED, f"collection not fully loaded[collection={name}]")

    # Requests for rows.

    def _check_filter(self, text: str) -> None:
        for word in re.findall(r"[A-Za-z_]\w*", re.sub(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", " ", text)):
            since = RESERVED.get(word.lower())
            if since is not None and self.version >= since:
                raise Refusal(INVALID, f"failed to create query plan: cannot parse expression: {text}, error: {word}")

    def _upsert(self, request: Any) -> Message:
        """Two rows of one key: proxy/task_upsert.go since 2.6.7."""
        self._known(request.collection_name)
        keys = [each.scalars for each in request.fields_data if each.field_name == "id"]
        values = [value for each in keys for value in (*each.string_data.data, *each.long_data.data)]
        if self.version >= (2, 6, 7) and len(set(values)) < len(values):
            raise Refusal(INVALID, "duplicate primary keys are not allowed in the same batch: invalid parameter")
        return self._forward("Upsert", request)  # type: ignore[no-any-return]

    def _delete(self, request: Any) -> Message:
        self._check_filter(request.expr)
        self._check_loaded(request.collection_name)  # a delete by filter looks rows up: proxy/task_delete.go
        return self._forward("Delete", request)  # type: ignore[no-any-return]

    def _query(self, request: Any) -> Message:
        self._check_filter(request.expr)
        self._check_loaded(request.collection_name)
        request.expr = _for_engine(request.expr)
        return self._forward("Query", request)  # type: ignore[no-any-return]

    def _search(self, request: Any) -> Message:
        """A search; codes that it is to bring along, which the engine cannot, are queried by key."""
        self._prepare(request)
        vectors = {f.name for f in self._schemas[request.collection_name].fields if f.data_type == _BINARY}
        asked = [name for name in request.output_fields if name in vectors]
        plain = [name for name in request.output_fields if name not in vectors]
        del request.output_fields[:]
        request.output_fields.extend(plain)
        response = self._forward("Search", request)
        keys = list(response.results.ids.str_id.data)
        if asked and keys:
            query = milvus_pb2.QueryRequest(
                collection_name=request.collection_name,
                expr=f"id in {json.dumps(sorted(set(keys)))}",
                output_fields=["id", *asked],
            )
            columns = {each.field_name: each for each in self._forward("Query", query).fields_data}
            place = {key: row for row, key in enumerate(columns["id"].scalars.string_data.data)}
            for name in asked:
                size, codes = columns[name].vectors.dim // 8, columns[name].vectors.binary_vector
                rows = [place[key] * size for key in keys]
                columns[name].vectors.binary_vector = b"".join(codes[row : row + size] for row in rows)
                response.results.fields_data.append(columns[name])
        return response  # type: ignore[no-any-return]

    def _prepare(self, request: Any) -> None:
        """Check a search (proxy/task_search.go, validate_util.go), and leave what the engine's BIN_FLAT knows."""
        self._check_filter(request.dsl)
        self._check_loaded(request.collection_name)
        request.dsl = _for_engine(request.dsl)
        pairs = {pair.key: pair for pair in request.search_params}
        if not 1 <= request.nq <= MOST_QUERIES:
            raise Refusal(
                INVALID,
                f"nq (number of search vector per search request) should be in range [1, 16384], got {request.nq}",
            )
        hits = int(pairs["topk"].value) if "topk" in pairs else 1
        if not 1 <= hits <= MOST_HITS:
            raise Refusal(INVALID, f"topk [{hits}] is invalid, it should be in range [1, 16384]")
        own = self._indexes.get(request.collection_name, {}).get(pairs["anns_field"].value, {})
        given = json.loads(pairs["params"].value) if "params" in pairs else {}
        if own.get("index_type") == "HNSW" and not hits <= int(given.get("ef", hits)) <= 2**31 - 1:
            raise Refusal(INVALID, f"ef({given['ef']}) should be larger than k({hits})")
        if own.get("index_type") == "BIN_IVF_FLAT" and not 1 <= int(given.get("nprobe", 8)) <= 65_536:
            raise Refusal(INVALID, f"Out of range in json: param 'nprobe' ({given['nprobe']}) should be in [1, 65536]")
        if "params" in pairs:
            pairs["params"].value = json.dumps({k: v for k, v in given.items() if k not in {"nprobe", "ef"}})

    def _hybrid_search(self, request: Any) -> Message:
        """Ranks count on from query to query before 2.6.0: proxy/search_reduce_util.go."""
        for each in request.requests:
            self._prepare(each)
        pairs = {pair.key: pair.value for pair in request.rank_params}
        given = json.loads(pairs.get("params", "{}"))
        if any(not 0 <= weight <= 1 for weight in given.get("weights", ())):
            raise Refusal(INVALID, f"rank param weight should be in range [0, 1]: {given['weights']}")
        if pairs.get("strategy", "rrf") == "rrf" and not 0 < given.get("k", 60) < MOST_HITS:
            raise Refusal(INVALID, f"The rank params k should be in range (0, 16384), got {given['k']}")
        if request.function_score.functions:
            return self._fuse(request)
        queries = request.requests[0].nq
        if self.version < (2, 6) or queries == 1:
            return self._forward("HybridSearch", request)  # type: ignore[no-any-return]  # the engine counts on as well
        merged = self._forward("HybridSearch", _only(request, 0))
        for number in range(1, queries):
            merged.results.MergeFrom(self._forward("HybridSearch", _only(request, number)).results)
        merged.results.num_queries = queries
        return merged  # type: ignore[no-any-return]

    def _fuse(self, request: Any) -> Message:
        """Weighted reciprocal rank fusion, since 3.0.1: internal/util/function/rerank/rrf_function.go."""
        pairs = {pair.key: pair.value for pair in request.function_score.functions[0].params}
        weights, constant = json.loads(pairs["weights"]), float(pairs["k"])
        if self.version < (3, 0, 1) or pairs["reranker"] != "rrf":
            raise Refusal(INVALID, f"unsupported rerank function: {pairs}")
        if any(not 0 <= weight <= 1 for weight in weights):
            raise Refusal(INVALID, f"rank param weight should be in range [0, 1]: {weights}")
        limit = next(int(pair.value) for pair in request.rank_params if pair.key == "limit")
        scores: list[dict[str, float]] = [{} for _ in range(request.requests[0].nq)]
        for weight, each in zip(weights, request.requests, strict=True):
            found = self._forward("Search", each).results
            keys = iter(found.ids.str_id.data)
            for own, count in zip(scores, found.topks, strict=True):
                for rank in range(1, count + 1):
                    key = next(keys)
                    own[key] = own.get(key, 0.0) + weight / (constant + rank)
        best = [sorted(own.items(), key=lambda item: (-item[1], item[0]))[:limit] for own in scores]
        results = schema_pb2.SearchResultData(num_queries=len(best), top_k=limit, topks=map(len, best))
        results.ids.str_id.data.extend(key for own in best for key, _ in own)
        results.scores.extend(score for own in best for _, score in own)
        return milvus_pb2.SearchResults(status=_done(), results=results)


def _only(request: Any, number: int) -> Any:
    """A hybrid search for one of its queries."""
    single = milvus_pb2.HybridSearchRequest.FromString(request.SerializeToString())
    for each in single.requests:
        group = common_pb2.PlaceholderGroup.FromString(each.placeholder_group)
        for placeholder in group.placeholders:
            placeholder.values[:] = [placeholder.values[number]]
        each.placeholder_group, each.nq = group.SerializeToString(), 1
    return single


def _done() -> common_pb2.Status:
    return common_pb2.Status()


def _failed(method: str, refusal: Refusal) -> Message:
    """The refusal as servers send it: with the code of today and, for clients of 2.2, the one of then."""
    status = common_pb2.Status(
        code=refusal.code, reason=refusal.reason, detail=refusal.reason, error_code=common_pb2.UnexpectedError
    )
    reply = _REPLIES[method]
    return status if reply is common_pb2.Status else reply(status=status)


@contextmanager
def strict_proxy(file: Path, version: str) -> Iterator[StrictProxy]:
    """A server of a version; its engine keeps the data in a file."""
    with lite_server(file) as engine:
        proxy = StrictProxy(engine.uri.removeprefix("http://"), version)
        try:
            yield proxy
        finally:
            proxy.stop()
