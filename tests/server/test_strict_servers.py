"""What servers refuse or do differently, against strict stand-ins of their versions."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pymilvus import MilvusClient

from mg_milvus import ImageIndex, errors, session
from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import ExtraField, Granularity, RegionSettings, Schema, StorageSettings
from mg_milvus.store import collections
from mg_milvus.store.base import Description, HybridSearch, Row
from mg_milvus.store.client import Connection
from mg_milvus.store.milvus import MilvusStore
from tests.server.strict_proxy import StrictProxy, strict_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRINT = "0123456789abcdef"
SMALL = Schema(granularities=(Granularity(name="coarse", bits=16), Granularity(name="fine", bits=64)))


@pytest.fixture(scope="module", params=["2.4.14", "2.5.27", "2.6.19", "3.0.0", "3.0.1"])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictProxy]:
    with strict_proxy(tmp_path_factory.mktemp("strict") / "strict.db", request.param) as server:
        yield server


@pytest.fixture
def admin(proxy: StrictProxy) -> Iterator[MilvusClient]:
    """A client of the server, which is emptied at the end."""
    client = MilvusClient(proxy.uri)
    yield client
    proxy.load_seconds, proxy.query_nodes = 0.0, 1
    for name in client.list_collections():
        for alias in client.list_aliases(name)["aliases"]:
            client.drop_alias(alias)
        client.drop_collection(name)
    client.close()


@contextmanager
def opened(proxy: StrictProxy, collection: str = "images") -> Iterator[MilvusStore]:
    store = MilvusStore(MilvusConfig(proxy.uri, collection=collection))
    try:
        yield store
    finally:
        store.close()


def rows(count: int, schema: Schema = SMALL) -> list[Row]:
    """Row n has codes whose last byte is n."""
    return [
        Row(
            f"{n:032x}", f"/a/{n}.jpg", 9, 9, 4, 3, "0" * 32,
            {name: n.to_bytes(bits // 8) for name, bits in schema.bits.items()}, {},
        )
        for n in range(count)
    ]  # fmt: skip


def zeros(schema: Schema = SMALL) -> dict[str, np.ndarray]:
    return {name: np.zeros((1, bits // 8), np.uint8) for name, bits in schema.bits.items()}


def test_a_large_schema_fits_or_is_refused_before_anything_is_made(proxy: StrictProxy, admin: MilvusClient) -> None:
    fields = tuple(ExtraField(name=f"a_column_with_a_long_name_{n}", type="string") for n in range(50))
    granularities = tuple(Granularity(name=f"level{n}", bits=32) for n in range(10))
    schema = Schema(granularities=granularities, fields=fields)
    with opened(proxy) as store:
        if proxy.version < (3, 0):
            wrong = "granularities" if proxy.version < (2, 6, 17) else "64 fields"
            with pytest.raises(errors.UnsupportedError, match=wrong):
                store.check(schema)
            with pytest.raises(errors.UnsupportedError, match=wrong):
                store.create(Description(schema, PRINT))
            assert admin.list_collections() == []
        else:
            store.check(schema)
        # The engine behind the stand-in holds 64 fields, whatever the version.
        fewer = 10 if proxy.version >= (2, 6, 17) else 4
        schema = Schema(granularities=granularities[:fewer], fields=fields[: 64 - 10 - fewer])
        assert store.create(Description(schema, PRINT)).schema == schema
        assert len(admin.describe_collection("images")["description"]) <= 1024
    with opened(proxy) as store:
        assert store.describe() == Description(schema, PRINT)


def test_what_the_server_refuses_leaves_nothing(
    proxy: StrictProxy, admin: MilvusClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(proxy) as store:
        store.put_encoder(PRINT, b"an encoder")
        monkeypatch.setattr(proxy, "_check_field", refuse)
        with pytest.raises(errors.StoreError, match="not today"):
            store.create(Description(SMALL, PRINT))
    assert admin.list_collections() == []


def refuse(_field: object) -> None:
    from tests.server.strict_proxy import INVALID, Refusal

    raise Refusal(INVALID, "not today")


@pytest.mark.parametrize(("word", "since"), [("iso", (2, 6, 3)), ("Interval", (2, 6, 3)), ("threshold", (3, 0))])
def test_words_that_a_version_reserves(
    proxy: StrictProxy, admin: MilvusClient, word: str, since: tuple[int, ...]
) -> None:
    schema = Schema(granularities=SMALL.granularities, fields=(ExtraField(name=word, type="int"),))
    with opened(proxy) as store:
        if proxy.version >= since:
            with pytest.raises(errors.UnsupportedError, match=f"'{word}' is a word of the filters of Milvus"):
                store.create(Description(schema, PRINT))
            assert admin.list_collections() == []
        else:
            store.create(Description(schema, PRINT))
            store.upsert([replace(row, fields={word: 3}) for row in rows(2)])
            assert store.count(f"{word} == 3") == 2


def test_more_replicas_than_query_nodes(proxy: StrictProxy, admin: MilvusClient) -> None:
    schema = Schema(granularities=SMALL.granularities, storage=StorageSettings(replicas=3))
    proxy.query_nodes = 2
    with opened(proxy) as store:
        with pytest.raises(errors.UnsupportedError, match=r"3 replicas need 3 query nodes, .* has 2: set replicas: 2"):
            store.create(Description(schema, PRINT))
        assert admin.list_collections() == []
        proxy.query_nodes = 3
        store.create(Description(schema, PRINT))


def test_mmap_is_where_the_codes_are(proxy: StrictProxy, admin: MilvusClient) -> None:
    mapped = Granularity(name="fine", bits=64, mmap=True)
    with opened(proxy) as store:
        store.create(Description(Schema(granularities=(SMALL.granularities[0], mapped)), PRINT))
    assert admin.describe_index("images", "fine")["mmap.enabled"] == "True"
    assert "mmap.enabled" not in admin.describe_index("images", "coarse")


def test_a_load_that_takes_its_time_is_waited_for(
    proxy: StrictProxy, admin: MilvusClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collections, "_SAY_EVERY", 0.2)
    proxy.load_seconds = 1.5
    store = MilvusStore(MilvusConfig(proxy.uri, collection="images", timeout=1))
    store.create(Description(SMALL, PRINT))
    assert "collection 'images' is being loaded: 50 %" in caplog.text
    proxy.load_seconds = 0.0
    store._connection.config = replace(store._connection.config, timeout=20)
    store.upsert(rows(3))
    assert store.count() == 3
    store.close()
    monkeypatch.setattr(collections, "_LOAD_TIMEOUT", 0.3)
    admin.release_collection("images")
    proxy.load_seconds = 60.0
    with opened(proxy) as store, pytest.raises(errors.StoreUnavailableError, match="stays at 50 % of its load"):
        store.count()


def test_a_released_collection_is_loaded_again(proxy: StrictProxy, admin: MilvusClient) -> None:
    regions = RegionSettings.model_validate({"bits": 64, "scales": [{"size": 0.5, "grid": 1}]})
    schema = Schema(granularities=SMALL.granularities, regions=regions)
    with opened(proxy) as store:
        store.create(Description(schema, PRINT))
        store.upsert([replace(row, region_codes=bytes(8)) for row in rows(5)])
        for name in ("images", "images_regions"):
            for ask in (store.count, lambda: store.nearest("coarse", zeros()["coarse"], 3), store.regions.count,
                        lambda: store.regions.nearest(0, np.zeros((1, 8), np.uint8), 3),
                        lambda: store.fetch([rows(1)[0].id]), lambda: store.delete(["f" * 32])):  # fmt: skip
                admin.release_collection(name)
                ask()
        assert store.count() == 5


def test_an_alias_stands_for_a_collection_and_its_companions(proxy: StrictProxy, admin: MilvusClient) -> None:
    for number, name in enumerate(("first", "second")):
        with opened(proxy, name) as store:
            store.create(Description(SMALL, f"{number}" * 16))
            store.put_encoder(f"{number}" * 16, name.encode())
            store.upsert(rows(3 + number))
    admin.create_alias("first", "photos")
    with opened(proxy, "photos") as store:
        before = store.identity()
        assert store.get_encoder("0" * 16) == b"first"
        store.retune({"coarse": 2.0, "fine": 1.0}, SMALL.fusion)
        assert (store.collection, store.count()) == ("first", 3)
        assert store.identity() == before
        admin.alter_alias("second", "photos")
        assert store.identity() != before
        assert store.get_encoder("1" * 16) == b"second"
        assert (store.collection, store.count()) == ("second", 4)
    assert sorted(admin.list_collections()) == ["first", "first_encoder", "first_tuned", "second", "second_encoder"]


def test_a_renamed_collection_says_what_else_to_rename_and_works_then(proxy: StrictProxy, admin: MilvusClient) -> None:
    regions = RegionSettings.model_validate({"bits": 64, "scales": [{"size": 0.5, "grid": 1}]})
    schema = Schema(granularities=SMALL.granularities, regions=regions)
    with opened(proxy) as store:
        store.create(Description(schema, PRINT))
        store.put_encoder(PRINT, b"an encoder")
        store.upsert([replace(row, region_codes=bytes(8)) for row in rows(5)])
        store.retune({"coarse": 2.0, "fine": 1.0}, SMALL.fusion)
    admin.rename_collection("images", "archive")
    with opened(proxy, "archive") as store:
        says = (
            "'archive' was renamed from 'images', .* rename 'images_encoder' and 'images_regions' and 'images_tuned' "
            "to 'archive_encoder' and 'archive_regions' and 'archive_tuned' as well"
        )
        for ask in (store.describe, store.count, store.drop):
            with pytest.raises(errors.StoreError, match=says):
                ask()
    with opened(proxy) as store:  # whose name is free again
        for ask in (lambda: store.create(Description(SMALL, "f" * 16)), store.drop):
            with pytest.raises(errors.StoreError, match=r"'archive' was renamed from 'images', .* still belong to it"):
                ask()
    for end in ("_encoder", "_regions", "_tuned"):
        admin.rename_collection(f"images{end}", f"archive{end}")
    with opened(proxy) as store:
        store.create(Description(SMALL, "f" * 16))
        store.put_encoder("f" * 16, b"of the new one")
        assert store.count() == 0
        store.drop()
    with opened(proxy, "archive") as store:
        described = store.describe()
        assert described is not None
        assert described.schema.weights == {"coarse": 2.0, "fine": 1.0}
        assert (store.count(), store.regions.count(), store.get_encoder(PRINT)) == (5, 5, b"an encoder")
        store.retune({"coarse": 1.0, "fine": 1.0}, SMALL.fusion)
        store.drop()
    assert admin.list_collections() == []


class Killed(BaseException):
    """As SIGKILL, nothing catches it."""


@pytest.mark.parametrize("proxy", ["2.4.14", "3.0.0"], indirect=True)
def test_a_refit_killed_at_any_write_of_the_swap(
    proxy: StrictProxy, admin: MilvusClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name and alias have one of both at any moment, whole; in the end the refit is renamed, with its companions."""
    regions = RegionSettings.model_validate({"bits": 64, "scales": [{"size": 0.5, "grid": 1}]})
    schema = Schema(granularities=SMALL.granularities, regions=regions)
    stored = [replace(row, region_codes=bytes(8)) for row in rows(5)]
    prints = {"images": "a" * 16, "images_refit2": "b" * 16}
    for name, print_ in prints.items():
        with opened(proxy, name) as store:
            store.create(Description(schema, print_))
            store.put_encoder(print_, name.encode())
            store.upsert(stored)
            if name == "images":
                store.retune({"coarse": 2.0, "fine": 1.0}, SMALL.fusion)
                admin.create_alias("images", "photos")
    write, written = Connection.write, []

    def one_write(self: Connection, operation: Any) -> Any:
        if written:
            raise Killed
        written.append(1)
        return write(self, operation)

    held, done = [], False
    while not done:
        written.clear()
        with monkeypatch.context() as patch, opened(proxy, "images_refit2") as new:
            patch.setattr(Connection, "write", one_write)
            with suppress(Killed):
                if held and held[-1] == "b" * 16:  # by its name, as a repeated refit finds it
                    with opened(proxy) as store:
                        done = not store.take_over()
                else:
                    new.take_over()
        seen = set()
        for name in ("images", "photos"):
            with opened(proxy, name) as store:
                described = store.describe()
                assert described is not None
                print_ = described.fingerprint
                assert store.get_encoder(print_) == next(own.encode() for own, p in prints.items() if p == print_)
                assert (store.count(), store.regions.count()) == (5, 5), held
                assert store.nearest("fine", zeros()["fine"], 5)[0].ids[0] == stored[0].id
                seen.add(print_)
        held.append(print_ if len(seen) == 1 else "both")
        with opened(proxy) as store:
            assert store.collections() == ["images"]
    # The mark; the alias; drops of the collection, its encoder, regions, tuned weights; three renames.
    assert held[:3] == ["a" * 16, "both", "b" * 16]
    assert set(held[2:]) == {"b" * 16}
    assert set(admin.list_collections()) - {"images_refit2_whole"} == {"images", "images_encoder", "images_regions"}
    with opened(proxy) as store:
        assert store.refit_name == "images_refit2"
    with opened(proxy, "images_refit2") as store:
        store.begin_refit()  # the mark of the last one says nothing of the next
    assert "images_refit2_whole" not in admin.list_collections()


def test_server_fusion_has_the_ranks_and_weights_of_ours(proxy: StrictProxy, admin: MilvusClient) -> None:
    """Row n is at distance popcount(n) from zero on both; three rows, so ranks 1, 2 and 3 by hand."""
    stored = [row for row in rows(8) if row.codes["fine"][-1] in {0, 1, 3}]
    with opened(proxy) as store:
        store.create(Description(SMALL, PRINT))
        store.upsert(stored)
        queries = {name: np.concatenate([code, code]) for name, code in zeros().items()}
        weights = {"coarse": 3.0, "fine": 1.0}
        search = HybridSearch(weights, k=3, depth=5, rrf_k=10)
        if proxy.version < (3, 0, 1):
            with pytest.raises(errors.UnsupportedError, match="--fusion rank"):
                store.hybrid(queries, search)
            search = HybridSearch({"coarse": 2.0, "fine": 2.0}, k=3, depth=5, rrf_k=10)
        for found in store.hybrid(queries, search):
            assert [row_id for row_id, _ in found] == [row.id for row in stored]
            assert [score for _, score in found] == pytest.approx([4 / 11, 4 / 12, 4 / 13])
        with pytest.raises(errors.UnsupportedError, match="rrf_k is 16384"):
            store.hybrid(queries, HybridSearch({"coarse": 1.0}, k=3, depth=5, rrf_k=16_384))
        many = np.zeros((16_390, 2), np.uint8)
        assert len(store.nearest("coarse", many, 1)) == len(many)


def test_another_collection_of_the_same_name_is_opened_again(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_CHECKED_FOR", -1.0)
    query = photos / "disc" / "00.jpg"
    with strict_proxy(tmp_path / "strict.db", "2.6.19") as proxy:
        client = MilvusClient(proxy.uri)
        with ImageIndex.open(proxy.uri, schema=SMALL) as index, ImageIndex.open(proxy.uri) as reader:
            index.ingest(photos)
            assert reader.query(query, k=1)[0].path == str(query)
            first = reader.fingerprint
            for name in client.list_collections():
                client.drop_collection(name)
            with pytest.raises(errors.CollectionNotFoundError):
                reader.query(query)
            with ImageIndex.open(proxy.uri, schema=SMALL) as again:
                again.ingest(photos / "disc", photos / "stripes")
            assert reader.query(query, k=1)[0].path == str(query)
            assert reader.fingerprint != first
        client.close()
