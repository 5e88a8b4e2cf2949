"""What is particular to Milvus: files and locks, servers that vanish, foreign collections, quiet, and faults."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import logging
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from pymilvus import DataType, Function, MilvusClient, RRFRanker, exceptions

from mg_milvus import errors
from mg_milvus.codes import signs
from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import ExtraField, FusionSettings, Granularity, Schema, StorageSettings
from mg_milvus.search.query import Query
from mg_milvus.search.searcher import Searcher
from mg_milvus.store.base import Description, Row
from mg_milvus.store.client import ATTEMPTS, Connection, Engine, kind_of, translate
from mg_milvus.store.collections import MARK, encode_description
from mg_milvus.store.filters import literal
from mg_milvus.store.milvus import MilvusStore, open_store
from mg_milvus.store.rows import Layout
from tests.memory_filters import compile_filter
from tests.servers import free_port, lite_server, refusing_server
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

DESCRIPTION = Description(Schema(granularities=(Granularity(name="coarse", bits=16),)), "0123456789abcdef")
LITE = Engine(True, (2, 5, 1), "Milvus Lite 2.5.1")


def rows(start: int, count: int) -> list[Row]:
    return [
        Row(f"{n:032x}", f"/{n}.jpg", n, n, 1, 1, "", {"coarse": n.to_bytes(2)}) for n in range(start, start + count)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "images.db"


@pytest.fixture
def raw(file: Path) -> MilvusStore:
    """An open store, for reaching the pymilvus client below it."""
    store = MilvusStore(MilvusConfig(str(file), collection="images"))
    yield store
    store.close()


def test_files_without_a_copy_of_the_codes_are_asked_and_filled_all_the_same(raw: MilvusStore) -> None:
    """Those that were made before Milvus Lite got the copy."""
    schema = DESCRIPTION.schema
    made = MilvusClient.create_schema()
    for column in Layout(schema).columns:
        if column.name == "id":
            made.add_field(
                "id", DataType.VARCHAR, is_primary=True, max_length=column.max_bytes,
                description=encode_description(DESCRIPTION),
            )  # fmt: skip
        elif column.type == "string":
            made.add_field(column.name, DataType.VARCHAR, max_length=column.max_bytes)
        else:
            made.add_field(column.name, DataType.INT64)
    made.add_field("coarse", DataType.BINARY_VECTOR, dim=16)
    raw._client.create_collection("images", schema=made)
    written = rows(0, 300)
    raw.upsert(written)
    code = np.array([[0, 5]], np.uint8)
    known: dict[str, Mapping[str, bytes]] = {}
    assert len(raw.nearest("coarse", code, 60, known=known)[0].ids) == 60
    assert known == {}
    (hits,) = Searcher(raw, schema).search({"coarse": signs(code)}, Query.of(schema, {"k": 4, "depth": 60}))
    distances = {row.id: (int.from_bytes(row.codes["coarse"]) ^ 5).bit_count() for row in written}
    assert [(hit.distances["coarse"], hit.id) for hit in hits] == sorted((d, i) for i, d in distances.items())[:4]


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_keeps_everything_and_is_released_on_close(file: Path) -> None:
    with_rows = open_store(MilvusConfig(str(file), collection="images"))
    with_rows.create(DESCRIPTION)
    with_rows.upsert(rows(0, 50))
    with_rows.close()
    script = f"""
        from mg_milvus.config import MilvusConfig
        from mg_milvus.store.milvus import open_store
        store = open_store(MilvusConfig({str(file)!r}, collection="images"))
        print(store.count(), store.describe().fingerprint, store.nearest.__self__ is store)
        store.close()
    """
    other = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert other.stdout.split() == ["50", "0123456789abcdef", "True"]
    again = open_store(MilvusConfig(str(file), collection="images"))
    assert [row.path for batch in again.scan("size == 7") for row in batch] == ["/7.jpg"]
    again.close()


def test_nothing_is_left_among_the_temporary_files(file: Path) -> None:
    path = repr(str(file))
    code = (
        "from mg_milvus.config import MilvusConfig; from mg_milvus.store.milvus import open_store; "
        f"s = open_store(MilvusConfig({path})); s.describe(); s.close()"
    )
    with tempfile.TemporaryDirectory() as temporary:  # its path is short enough for a socket
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"TMPDIR": temporary})
        assert os.listdir(temporary) == []


def test_one_process_may_open_a_file_twice(file: Path) -> None:
    first, second = (
        open_store(MilvusConfig(str(file), collection="images")),
        open_store(MilvusConfig(str(file), collection="images")),
    )
    first.create(DESCRIPTION)
    first.upsert(rows(0, 3))
    first.close()
    assert second.count() == 3
    second.close()


def test_a_file_in_use_by_another_process_is_named(file: Path) -> None:
    script = f"""
        import sys
        from mg_milvus.config import MilvusConfig
        from mg_milvus.store.milvus import open_store
        store = open_store(MilvusConfig({str(file)!r}, collection="images"))
        print("open", flush=True)
        sys.stdin.read()
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        start = time.monotonic()
        with pytest.raises(errors.StoreLockedError, match=r"images\.db is open in another process.*http"):
            open_store(MilvusConfig(str(file), collection="images"))
        assert 1.5 < time.monotonic() - start < 15
        waiting = ThreadPoolExecutor(1).submit(open_store, MilvusConfig(str(file)))
        time.sleep(0.3)
        holder.stdin.close()  # type: ignore[union-attr]
        waiting.result(timeout=PATIENCE).close()


def test_every_acknowledged_row_survives_sigkill(file: Path) -> None:
    script = f"""
        from mg_milvus.config import MilvusConfig
        from mg_milvus.store.milvus import open_store
        from tests.server.test_store_milvus import DESCRIPTION, rows
        store = open_store(MilvusConfig({str(file)!r}))
        store.create(DESCRIPTION)
        for start in range(0, 60_000, 100):
            store.upsert(rows(start, 100))
            print(start + 100, flush=True)
    """
    here = Path(__file__).parent
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=here)
    with writer:
        assert writer.stdout is not None
        acknowledged = 0
        while acknowledged < 1500:
            acknowledged = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    store = open_store(MilvusConfig(str(file), collection="images"))
    wanted = [row.id for row in rows(0, acknowledged)]
    assert len(store.fetch(wanted)) == acknowledged
    assert len(store.nearest("coarse", np.zeros((1, 2), np.uint8), 16_384)[0].ids) >= acknowledged
    store.close()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("with space.db", errors.UnsupportedError, "cannot be the name"),
        ("x" * 34 + ".db", errors.UnsupportedError, "up to 36"),
        ("missing/images.db", errors.StoreError, "does not exist: make it first"),
        ("folder.db", errors.StoreError, "is a folder"),
        ("garbage.db", errors.StoreError, "not a Milvus Lite file, or damaged"),
        ("other.db", errors.StoreError, "not a Milvus Lite file"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "garbage.db").write_bytes(b"garbage" * 1000)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE mine (a)")
    database.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(error, match=message):
        open_store(MilvusConfig(str(tmp_path / name), collection="images"))
    assert (tmp_path / "other.db").read_bytes() == before


@pytest.mark.parametrize("uri", ["foo", "ftp://host/x", "", "http://", "http://host/x.db", "file:///x.db", "x.sqlite"])
def test_uris_that_are_neither(uri: str) -> None:
    with pytest.raises(errors.UnsupportedError, match=r"\.db for Milvus Lite"):
        open_store(MilvusConfig(uri, collection="images"))


@pytest.mark.parametrize("name", ["", "a-b", 'x"; DROP TABLE', "1st", "x" * 201])
@pytest.mark.parametrize("uri", ["memory:", "never-opened.db"])
def test_collection_names(uri: str, name: str) -> None:
    with pytest.raises(errors.StoreError, match="not a collection name"):
        open_store(MilvusConfig(uri, collection=name))


def test_wrong_milvus_lite(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "3.1.0")
    with pytest.raises(errors.UnsupportedError, match=r"3\.1\.0.*no binary vectors.*<3"):
        open_store(MilvusConfig(str(file), collection="images"))

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(errors.UnsupportedError, match=r"Windows and Alpine.*http://"):
        open_store(MilvusConfig(str(file), collection="images"))
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(errors.UnsupportedError, match="Windows"):
        open_store(MilvusConfig(str(file), collection="images"))


# --- servers ---------------------------------------------------------------------------------------------------------


def test_two_clients_creating_at_once_end_with_one_description(tmp_path: Path) -> None:
    with lite_server(tmp_path / "race.db") as server:
        for attempt in range(4):
            stores = [MilvusStore(MilvusConfig(server.uri, collection=f"race{attempt}")) for _ in range(2)]
            start = threading.Barrier(2)

            def create(
                number: int, stores: list[MilvusStore] = stores, start: threading.Barrier = start
            ) -> Description:
                granularities = (Granularity(name="coarse", bits=16), Granularity(name=f"own{number}", bits=64))
                start.wait()
                return stores[number].create(Description(Schema(granularities=granularities), f"{number:016x}"))

            with ThreadPoolExecutor(2) as pool:
                one, two = pool.map(create, range(2))
            assert one == two
            assert stores[0].describe() == stores[1].describe() == one
            for store in stores:
                assert store.count() == 0
                assert store.nearest(one.schema.granularities[1].name, np.zeros((1, 8), np.uint8), 3)[0].ids == []
                store.close()


def test_a_server_that_restarts_is_waited_for(tmp_path: Path) -> None:
    with lite_server(tmp_path / "restart.db") as server:
        store = MilvusStore(MilvusConfig(server.uri, collection="images"))
        assert store.server() == "Milvus Lite"
        store.create(DESCRIPTION)
        store.upsert(rows(0, 10))
        server.kill()
        restart = threading.Timer(0.5, server.start)
        restart.start()
        assert store.count() == 10
        restart.join()
        server.kill()
        start = time.monotonic()
        with pytest.raises(errors.StoreUnavailableError, match=server.uri):
            store.count()
        assert time.monotonic() - start < 20
        store.close()


def test_nobody_there() -> None:
    start = time.monotonic()
    with pytest.raises(errors.StoreUnavailableError, match=r"does not answer.*check the URI"):
        open_store(MilvusConfig(f"http://127.0.0.1:{free_port()}", collection="images", timeout=3))
    assert time.monotonic() - start < 15


def test_somebody_there_who_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(errors.StoreUnavailableError) as caught:
            open_store(
                MilvusConfig(f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}", collection="images", timeout=1)
            )
        assert time.monotonic() - start < 10  # pymilvus alone takes minutes
        assert "secret" not in str(caught.value)


def test_a_wrong_token() -> None:
    with refusing_server() as uri, pytest.raises(errors.AuthenticationError, match="MGM_TOKEN"):
        open_store(MilvusConfig(uri, collection="images", token="me:wrong"))


# --- collections -----------------------------------------------------------------------------------------------------


def make_collection(store: MilvusStore, name: str, description: str) -> None:
    schema = MilvusClient.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True, description=description)
    schema.add_field("v", DataType.BINARY_VECTOR, dim=8)
    store._client.create_collection(name, schema=schema)


def test_collections_of_others_are_left_alone(raw: MilvusStore) -> None:
    make_collection(raw, "images", "somebody's")
    make_collection(raw, "images_encoder", '{"also": "theirs"}')
    for ask in (raw.describe, raw.count, raw.drop, lambda: raw.create(DESCRIPTION)):
        with pytest.raises(errors.ForeignCollectionError, match="'images' was not created by mg-milvus"):
            ask()
    for ask in (lambda: raw.put_encoder("f", b""), lambda: raw.get_encoder("f")):
        with pytest.raises(errors.ForeignCollectionError, match="'images_encoder'"):
            ask()
    assert raw.collections() == []
    assert sorted(raw._client.list_collections()) == ["images", "images_encoder"]


def test_a_newer_format_is_not_guessed_at(raw: MilvusStore) -> None:
    make_collection(raw, "images", '{"mg_milvus": 2, "anything": 1}')
    with pytest.raises(errors.UnsupportedError, match=r"format 2.*reads 1: upgrade"):
        raw.describe()
    raw._client.drop_collection("images")
    make_collection(raw, "images", '{"mg_milvus": 1, "schema": {"shape": 1}, "fingerprint": "", "adapted_on": 0}')
    with pytest.raises(errors.UnsupportedError, match=r"shape.*upgrade"):
        raw.describe()


def test_a_companion_is_no_collection_for_images(raw: MilvusStore, file: Path) -> None:
    raw.create(DESCRIPTION)
    raw.put_encoder("f", b"data")
    companion = MilvusStore(MilvusConfig(str(file), collection="images_encoder"))
    with pytest.raises(errors.ForeignCollectionError, match="keeps the encoders of 'images'"):
        companion.describe()
    companion.close()


def test_a_record_of_tuning_is_no_collection_for_images(raw: MilvusStore, file: Path) -> None:
    raw.create(DESCRIPTION)
    raw.retune(DESCRIPTION.schema.weights, FusionSettings(rrf_k=5))
    record = MilvusStore(MilvusConfig(str(file), collection="images_tuned"))
    with pytest.raises(errors.ForeignCollectionError, match="remembers the weights of 'images'"):
        record.describe()
    record.close()


def test_a_record_of_tuning_left_behind_means_nothing_to_the_next_collection(raw: MilvusStore) -> None:
    raw.create(DESCRIPTION)
    raw.retune(DESCRIPTION.schema.weights, FusionSettings(rrf_k=5))
    raw._client.drop_collection("images")
    assert raw.describe() is None
    assert raw.create(DESCRIPTION) == DESCRIPTION
    raw.retune(DESCRIPTION.schema.weights, FusionSettings(rrf_k=5))
    raw._client.drop_collection("images")
    make_collection(raw, "images", encode_description(replace(DESCRIPTION, fingerprint="a" * 16)))
    assert raw.describe() == replace(DESCRIPTION, fingerprint="a" * 16)


def test_a_collection_of_others_in_the_place_of_the_record_is_left_alone(raw: MilvusStore) -> None:
    raw.create(DESCRIPTION)
    for theirs in ("somebody's", '{"mg_milvus": 1, "tuned_of": "drawings"}'):
        make_collection(raw, "images_tuned", theirs)
        assert raw.describe() == DESCRIPTION
        with pytest.raises(errors.ForeignCollectionError, match="'images_tuned' is in the way"):
            raw.retune(DESCRIPTION.schema.weights, FusionSettings(rrf_k=5))
        raw.drop()
        assert raw._client.list_collections() == ["images_tuned"]
        raw._client.drop_collection("images_tuned")
        raw.create(DESCRIPTION)
    raw.drop()
    assert raw._client.list_collections() == []
    raw.create(DESCRIPTION)
    make_collection(raw, "images_tuned", '{"mg_milvus": 1, "tuned_of": "images", "fingerprint": 3}')
    assert raw.describe() == DESCRIPTION


def test_what_is_recorded(raw: MilvusStore) -> None:
    raw.create(DESCRIPTION)
    made = raw._client.describe_collection("images")
    assert made["description"] == MARK
    recorded = json.loads(made["fields"][0]["description"])
    assert recorded["mg_milvus"] == 1
    assert recorded["fingerprint"] == "0123456789abcdef"
    assert recorded["schema"]["granularities"] == [{"name": "coarse", "bits": 16, "weight": 1.0, "mmap": None}]
    assert recorded["schema"]["fusion"]["rrf_k"] == 60  # a default: later versions may have another
    assert made["enable_dynamic_field"]  # for columns that are added later
    assert raw._client.describe_index("images", "coarse")["index_type"] == "BIN_FLAT"


def test_an_encoder_with_a_missing_part_is_none(raw: MilvusStore) -> None:
    raw.put_encoder("f", bytes(200_000))
    assert raw.get_encoder("f") == bytes(200_000)
    raw._client.delete("images_encoder", filter='id == "f:2"')
    assert raw.get_encoder("f") is None
    raw.put_encoder("f", bytes(200_000))
    assert raw.get_encoder("f") == bytes(200_000)


def test_a_collection_half_made_is_finished(raw: MilvusStore) -> None:
    """A client that died between making a collection and its indexes leaves one that the next client completes."""
    raw.create(DESCRIPTION)
    raw._client.drop_index("images", "coarse")
    raw._layout = None
    raw.upsert(rows(0, 3))
    assert raw.nearest("coarse", np.zeros((1, 2), np.uint8), 1)[0].distances.tolist() == [0]


def test_another_client_drops_and_makes_the_collection_anew(raw: MilvusStore, file: Path) -> None:
    raw.create(DESCRIPTION)
    raw.upsert(rows(0, 3))
    other = MilvusStore(MilvusConfig(str(file), collection="images"))
    other.drop()
    with pytest.raises(errors.CollectionNotFoundError):
        raw.count()
    other.create(Description(Schema(granularities=(Granularity(name="other", bits=8),)), "f" * 16))
    with pytest.raises(errors.QueryError, match="expected one of other"):
        raw.nearest("coarse", np.zeros((1, 2), np.uint8), 1)
    other.close()


# --- what a Milvus can do --------------------------------------------------------------------------------------------


def with_storage(**settings: object) -> Schema:
    return Schema(storage=StorageSettings.model_validate(settings), fields=(ExtraField(name="city", type="string"),))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (with_storage(index="BIN_IVF_FLAT"), "no index BIN_IVF_FLAT: set index: auto"),
        (with_storage(index="HNSW"), "no index HNSW"),
        (with_storage(shards=2), "no 2 shards"),
        (with_storage(replicas=3), "no 3 replicas"),
        (with_storage(partition_key="city"), "no partition_key city"),
        (Schema(granularities=(Granularity(name="a", bits=8, mmap=True),)), "no mmap for a"),
    ],
)
def test_lite_refuses_what_it_would_ignore(raw: MilvusStore, schema: Schema, message: str) -> None:
    with pytest.raises(errors.UnsupportedError, match=message):
        raw.create(Description(schema, "f" * 16))
    assert raw.describe() is None


def test_old_servers_refuse_what_came_later() -> None:
    def server(*version: int) -> Engine:
        return Engine(False, version, "Milvus")  # type: ignore[arg-type]

    one = Schema(granularities=(Granularity(name="a", bits=8),))
    server(2, 3, 5).check(one)
    server(2, 4, 0).check(Schema())
    with pytest.raises(errors.UnsupportedError, match="one granularity per collection, the schema has 3"):
        server(2, 3, 5).check(Schema())
    with pytest.raises(errors.UnsupportedError, match=r"no hybrid_search.*--fusion rank"):
        server(2, 3, 5).ranker([1.0], 60)
    with pytest.raises(errors.UnsupportedError, match=r"since 2\.6\.4"):
        server(2, 6, 3).check(with_storage(index="HNSW"))
    server(2, 6, 4).check(with_storage(index="HNSW", shards=2, replicas=2, partition_key="city"))
    mapped = Schema(granularities=(Granularity(name="a", bits=8, mmap=True),))
    with pytest.raises(errors.UnsupportedError, match="mmap per field"):
        server(2, 4, 9).check(mapped)
    server(2, 4, 10).check(mapped)
    Engine(False, None, "Milvus of my own making").check(with_storage(index="HNSW"))


def test_index_and_search_parameters() -> None:
    server = Engine(False, (2, 6, 4), "Milvus 2.6.4")
    assert LITE.index(Schema()) == ("BIN_FLAT", {})
    assert server.index(Schema()) == ("BIN_IVF_FLAT", {"nlist": 1024})
    assert server.index(with_storage(index="BIN_FLAT")) == ("BIN_FLAT", {})
    assert server.index(with_storage(index="HNSW", m=8)) == ("HNSW", {"M": 8, "efConstruction": 200})
    assert LITE.search(Schema(), 10) == {"metric_type": "HAMMING", "params": {}}
    assert server.search(Schema(), 10)["params"] == {"nprobe": 32}
    assert server.search(with_storage(index="HNSW"), 500)["params"] == {"ef": 500}


def test_weights_in_the_server_fusion() -> None:
    ranker, scale = LITE.ranker([2.0, 2.0], 60)
    assert isinstance(ranker, RRFRanker)
    assert scale == 2.0
    for engine in (LITE, Engine(False, (3, 0, 0), "Milvus 3.0.0"), Engine(False, None, "Milvus ?")):
        with pytest.raises(errors.UnsupportedError, match="--fusion rank"):
            engine.ranker([1.0, 2.0], 60)
    ranker, scale = Engine(False, (3, 0, 1), "Milvus 3.0.1").ranker([1.0, 2.0], 60)
    assert isinstance(ranker, Function)
    assert ranker.params == {"reranker": "rrf", "k": 60, "weights": [0.5, 1.0]}
    assert scale == 2.0


# --- filters ---------------------------------------------------------------------------------------------------------


def test_literals_are_read_back_by_milvus_as_written(raw: MilvusStore) -> None:
    raw.create(DESCRIPTION)
    texts = ["it's", 'a "b"', "back\\", '\\" or size >= 0 or path == "', "tab\t", "é漢😀", "100%_x", "\\n"]
    made = [Row(f"{n}", text, n, 0, 1, 1, "", {"coarse": b"\0\0"}) for n, text in enumerate(texts)]
    raw.upsert(made)
    for row in made:
        assert [r.id for batch in raw.scan(f"path == {literal(row.path)}") for r in batch] == [row.id]
        matches = compile_filter(f"path == {literal(row.path)}", {"path": "string"})
        assert [matches({"path": text}) for text in texts].count(True) == 1
    with pytest.raises(errors.FilterError, match="line break"):
        literal("a\nb")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("not (n > 2)", [1, 2]),
        ("!(n > 2 and n < 4)", [1, 2, 4]),
        ("not not (n == 1)", [1]),
        ("n in []", []),
        ("n > 1.5", [2, 3, 4]),
    ],
)
def test_filters_that_not_every_milvus_knows(where: str, expected: list[int]) -> None:
    matches = compile_filter(where, {"n": "int"})
    assert [n for n in (1, 2, 3, 4) if matches({"n": n})] == expected


@pytest.mark.parametrize(
    "where",
    [
        "n == true",
        "n == 1)",
        "(n == 1",
        "n",
        "== 1",
        "n in [1",
        "n in 1",
        "n not 1",
        'n like "1%"',
        'n == "\\n"',
        "1 == 1",
    ],
)
def test_filters_outside_the_subset_are_refused(where: str) -> None:
    with pytest.raises(errors.FilterError, match=r"filter, character \d+: "):
        compile_filter(where, {"n": "int"})


# --- faults ----------------------------------------------------------------------------------------------------------

EXPECTED = {
    exceptions.CollectionNotExistException: errors.CollectionNotFoundError,
    exceptions.MilvusUnavailableException: errors.StoreUnavailableError,
    exceptions.ConnectError: errors.StoreUnavailableError,
    exceptions.ConnectionNotExistException: errors.StoreUnavailableError,
    exceptions.ConnectionConfigException: errors.UnsupportedError,
    exceptions.ServerVersionIncompatibleException: errors.UnsupportedError,
}


def test_every_exception_of_pymilvus_becomes_ours() -> None:
    found = [e for _, e in inspect.getmembers(exceptions, inspect.isclass) if issubclass(e, Exception)]
    assert len(found) > 25
    for vendor in found:
        ours = translate(vendor(message="something"), MilvusConfig("here", collection="images"))
        assert type(ours) is EXPECTED.get(vendor, errors.StoreError), vendor
        assert "\n" not in str(ours)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (100, "collection not found[database=default][collection=x]", errors.CollectionNotFoundError),
        (1, "can't find collection: x", errors.CollectionNotFoundError),
        (1100, "failed to create query plan: cannot parse expression: a <, error: line 1:3", errors.FilterError),
        (65535, "cannot parse expression: zzz < 3, error: field zzz not exist: invalid parameter", errors.FilterError),
        (1100, "Invalid expr: n <: invalid parameter", errors.FilterError),
        (1800, "auth check failure, please check username and password are correct", errors.AuthenticationError),
        (65535, "maximum vector field's number should be limited to 4", errors.UnsupportedError),
        (1100, "invalid parameter[expected=valid index][actual=invalid index type: HNSW]", errors.UnsupportedError),
        (2, "Fail connecting to server on localhost:19530", errors.StoreUnavailableError),
        (1, "Unexpected error, message=<Cannot invoke RPC on closed channel!>", errors.StoreUnavailableError),
        (grpc.StatusCode.UNAVAILABLE, "Retry run out of 75 retry times", errors.StoreUnavailableError),
        (1, "[search] Retry timeout: 10s", errors.StoreUnavailableError),
        (5, "something nobody foresaw", errors.StoreError),
    ],
)
def test_what_servers_say_becomes_ours(code: object, message: str, expected: type[Exception]) -> None:
    assert kind_of(exceptions.MilvusException(code, message)) is expected


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


BUSY = [
    exceptions.MilvusUnavailableException(message="x"),
    exceptions.MilvusException(8, "rate limit exceeded"),
    exceptions.MilvusException(1, "Mmap manager has not been init"),
    exceptions.MilvusException(101, "collection not loaded"),
    exceptions.MilvusException(2, "Fail connecting"),
]


@pytest.mark.parametrize("error", BUSY, ids=str)
def test_transient_failures_are_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(random.Random, "random", lambda _: 1.0)
    connection = Connection(MilvusConfig("here", collection="images", timeout=60))
    flaky = Flaky(ATTEMPTS - 1, error)
    assert connection.call(flaky) == "done"
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    flaky = Flaky(ATTEMPTS, error)
    with pytest.raises(errors.StoreError) as caught:
        connection.call(flaky)
    assert flaky.calls == ATTEMPTS
    assert caught.value.__cause__ is error


def test_retries_end_with_the_timeout() -> None:
    flaky = Flaky(100, exceptions.MilvusUnavailableException(message="x"))
    start = time.monotonic()
    with pytest.raises(errors.StoreUnavailableError):
        Connection(MilvusConfig("here", collection="images", timeout=0.5)).call(flaky)
    assert time.monotonic() - start < 2  # all attempts would take three seconds
    assert 1 < flaky.calls < ATTEMPTS


def test_other_failures_are_not_tried_again() -> None:
    flaky = Flaky(1, exceptions.ParamError(message="wrong"))
    with pytest.raises(errors.StoreError, match="wrong"):
        Connection(MilvusConfig("here", collection="images", timeout=5)).call(flaky)
    assert flaky.calls == 1
    ours = Flaky(1, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        Connection(MilvusConfig("here", collection="images", timeout=5)).call(ours)
    assert ours.calls == 1


def test_folders_for_temporary_files_that_cannot_be(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, message in ((tmp_path / "gone", r"No such file.*set TMPDIR"), (tmp_path / ("x" * 100), "shorter one")):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        if folder.name != "gone":
            folder.mkdir()
        with pytest.raises(errors.StoreError, match=message):
            open_store(MilvusConfig(str(file), collection="images"))
        assert folder.name == "gone" or list(folder.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", None)
    open_store(MilvusConfig(str(file), collection="images")).close()  # nobody holds its lock


def test_what_a_full_disk_may_not_have_taken_is_not_acknowledged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is full before a call, or becomes so during one; what can be read can still be read."""
    free = [10**9]
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0] if len(free) == 1 else free.pop(0))
    )
    store = MilvusStore(MilvusConfig(str(file), collection="images"))
    store.create(DESCRIPTION)
    store.upsert(rows(0, 10))
    for shrinking in ([31_999_999], [32_000_000, 5]):
        free[:] = shrinking
        with pytest.raises(errors.StoreError, match=r"images\.db is full: [\d,]+ bytes are free.*Make room, then"):
            store.upsert(rows(10, 10))
        assert store.count() == (10 if len(shrinking) == 1 else 20)
    with pytest.raises(errors.StoreError, match="is full"):
        store.delete([rows(0, 1)[0].id])
    free[:] = [32_000_000]
    store.upsert(rows(10, 10))
    assert store.count() == 20
    store.close()


# --- quiet -----------------------------------------------------------------------------------------------------------


def test_nothing_but_our_own_errors_reaches_the_terminal(tmp_path: Path) -> None:
    """In a process of its own, where nothing is imported yet; the last query fails inside gRPC's C core."""
    script = f"""
        import http.server, threading, warnings
        warnings.simplefilter("always")
        import numpy as np
        from mg_milvus.errors import StoreError
        from mg_milvus.schema.models import Granularity, Schema
        from mg_milvus.config import MilvusConfig
        from mg_milvus.store.base import Description, Row; from mg_milvus.store.milvus import open_store

        class Plain(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

        plain = http.server.HTTPServer(("127.0.0.1", 0), Plain)
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        store = open_store(MilvusConfig({str(tmp_path / "quiet.db")!r}))
        store.create(Description(Schema(granularities=(Granularity(name="coarse", bits=16),)), "f" * 16))
        store.upsert([Row("a", "/a", 1, 1, 1, 1, "", {{"coarse": b"12"}})])
        refused = 0
        for ask in (
            lambda: store.count("size <"),
            lambda: store.nearest("coarse", np.zeros((1, 2), np.uint8), 3, where="nothing == 1"),
            lambda: store._call(lambda: store._client.search("images", [b"1"], anns_field="coarse")),
            lambda: store._call(lambda: store._client.search("images", [b"12"], anns_field="no")),
            lambda: store._call(lambda: store._client.describe_collection("nope")),
            lambda: open_store(MilvusConfig("http://127.0.0.1:{free_port()}", timeout=1)),
            lambda: open_store(MilvusConfig(f"https://127.0.0.1:{{plain.server_port}}", timeout=1)),
        ):
            try:
                ask()
            except StoreError:
                refused += 1
        assert len(list(store.scan())) == 1
        store.close()
        plain.shutdown()
        plain.server_close()
        print(refused)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("7\n", "", 0)


def test_the_users_own_logging_still_works(raw: MilvusStore) -> None:
    heard: list[logging.LogRecord] = []
    (handler,) = logging.getLogger("pymilvus").handlers[:1]
    record = logging.LogRecord("pymilvus.x", logging.ERROR, "x", 1, "theirs", None, None)
    assert handler.filter(record)
    raw._call(lambda: heard.append(record) if handler.filter(record) else None)
    assert heard == []
