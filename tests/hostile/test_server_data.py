"""What a server says, or another of its clients has written there: bounded, checked, and told in one line."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import math
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymilvus import DataType, MilvusClient
from pymilvus import exceptions as vendor

from mg_milvus import errors, session
from mg_milvus.bulk import import_jobs
from mg_milvus.bulk.import_jobs import ImportApi
from mg_milvus.config import MilvusConfig
from mg_milvus.doctor import examine
from mg_milvus.schema.models import ExtraField, Granularity, RegionSettings, Schema
from mg_milvus.store import collections, companions
from mg_milvus.store.base import Description, HybridSearch, Row
from mg_milvus.store.client import Connection, Engine, _parse_version, _server_engine, translate
from mg_milvus.store.collections import (
    MOST_BYTES,
    decode_description,
    decode_tuned,
    encode_companion,
    encode_description,
    encode_regions,
    encode_tuned,
    is_fingerprint,
    own_description,
)
from mg_milvus.store.milvus import MilvusStore
from mg_milvus.store.rows import Layout
from tests.in_process import mgm
from tests.servers import lite_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SCHEMA = Schema(granularities=(Granularity(name="coarse", bits=16),), fields=(ExtraField(name="label", type="string"),))
MADE = Description(SCHEMA, "0123456789abcdef", 7, "a network")
GOOD = json.loads(encode_description(MADE))
ESCAPE = "\x1b]0;mine\x07\x1b[2J\u202e"
"""Sets the title of a terminal, clears it, and turns the direction of what follows around."""


def is_one_line(message: str, most: int = 1_500) -> bool:
    """Whether a message can be printed as it is."""
    return message.isprintable() and len(message) <= most


def outcome(ask: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns and nothing, or None and what its error says."""
    try:
        return ask(), ""
    except errors.StoreError as error:
        return None, str(error)


# --- descriptions ---------------------------------------------------------------------------------------------------

BROKEN = {
    "brackets": "[" * 100_000,
    "objects": '{"a":' * 100_000,
    "brackets in ours": '{"mg_milvus":1,"schema":' + "[" * 20_000 + "]" * 20_000 + "}",
    "depth that the parser takes": '{"mg_milvus":1,"schema":' + "[" * 500 + "]" * 500 + "}",
    "a hundred megabytes": '{"mg_milvus":1,"schema":"' + "x" * 100_000_000 + '"}',
    "digits": '{"mg_milvus":' + "9" * 60_000 + "}",
    "no number": '{"mg_milvus":1,"schema":NaN}',
    "an infinite one": '{"mg_milvus":1,"schema":-Infinity}',
    "true for a format": '{"mg_milvus":true}',
    "a list": '["mg_milvus"]',
    "a byte that is none": "\0",
    "half a character": '"\ud800"',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_descriptions_that_nobody_here_has_written_are_anothers(text: str) -> None:
    start = time.monotonic()
    assert own_description(text) is None
    with pytest.raises(errors.ForeignCollectionError, match="was not created by mg-milvus") as told:
        decode_description(text, "images")
    assert is_one_line(str(told.value))
    assert decode_tuned(text, MADE) is MADE
    assert time.monotonic() - start < 5


UNREADABLE = {
    "a way out of the cache": {"fingerprint": "../../x"},
    "a fingerprint with a newline": {"fingerprint": "0123456789abcdef\n"},
    "capitals": {"fingerprint": "0123456789ABCDEF"},
    "digits of another script": {"fingerprint": "٠" * 16},
    "a fingerprint that is a list": {"fingerprint": ["0123456789abcdef"]},
    "a fingerprint that ends a filter": {"fingerprint": '0" or id != "0'},
    "a long backbone": {"backbone": "x" * 10_000},
    "a backbone that is a number": {"backbone": 5},
    "fewer than none": {"adapted_on": -1},
    "half an image": {"adapted_on": 0.5},
    "many images": {"adapted_on": 10**300},
    "true": {"adapted_on": True},
    "text for a schema": {"schema": "compact"},
    "no schema": {"schema": None},
    "a key that steers a terminal": {"schema": GOOD["schema"] | {ESCAPE: 1}},
    "a thousand wrong keys": {"schema": GOOD["schema"] | {f"key{n}": n for n in range(1000)}},
    "codes of a gigabyte": {"schema": GOOD["schema"] | {"granularities": [{"name": "coarse", "bits": 8 << 30}]}},
    "a weight that is text": {"schema": GOOD["schema"] | {"granularities": [{"name": "a", "bits": 8, "weight": "9"}]}},
}  # fmt: skip


@pytest.mark.parametrize("changed", UNREADABLE.values(), ids=UNREADABLE)
def test_descriptions_that_pretend_to_be_ours_are_refused_in_one_line(changed: dict[str, object]) -> None:
    with pytest.raises(errors.UnsupportedError, match="the description of collection 'images' cannot be read") as told:
        decode_description(json.dumps(GOOD | changed), "images")
    assert is_one_line(str(told.value))


@pytest.mark.parametrize("missing", ["schema", "fingerprint", "adapted_on", "backbone"])
def test_descriptions_that_lack_something(missing: str) -> None:
    text = json.dumps({key: value for key, value in GOOD.items() if key != missing})
    with pytest.raises(errors.UnsupportedError, match=f"'{missing}' is missing"):
        decode_description(text, "images")


def test_what_others_wrote_does_not_steer_the_terminal_through_messages() -> None:
    for text in (json.dumps({"mg_milvus": 1, "encoder_of": ESCAPE * 500}), '{"mg_milvus":' + "7" * 4000 + "}"):
        with pytest.raises((errors.ForeignCollectionError, errors.UnsupportedError)) as told:
            decode_description(text, "images")
        assert is_one_line(str(told.value))


def test_a_schema_that_could_not_be_read_again_is_not_written() -> None:
    """By hand: 3 defaults of 30,000 characters are more than 65,536."""
    fields = tuple(
        ExtraField(name=f"f{n}", type="string", default="x" * 30_000, max_length=30_000) for n in range(3)
    )  # fmt: skip
    large = Description(SCHEMA.model_copy(update={"fields": fields}), MADE.fingerprint)
    with pytest.raises(errors.UnsupportedError, match="at most 65,536 are stored: use fewer fields"):
        encode_description(large)
    assert MOST_BYTES == 65_536


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(
    changed=st.dictionaries(st.sampled_from([*GOOD, "encoder_of", "weights", "fusion"]), JSON),
    in_schema=st.dictionaries(st.sampled_from([*GOOD["schema"], "other"]), JSON),
)
def test_any_json_gives_a_description_or_an_error_of_ours(changed: dict, in_schema: dict) -> None:
    text = json.dumps({**GOOD, "schema": GOOD["schema"] | in_schema, **changed})
    found, told = outcome(lambda: decode_description(text, "images"))
    assert is_one_line(told)
    assert told or is_fingerprint(found.fingerprint)
    tuned = decode_tuned(text, MADE)
    assert set(tuned.schema.bits) == {"coarse"}
    assert all(0 <= weight < math.inf for weight in tuned.schema.weights.values())


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=200))
def test_any_text_is_anothers_description_or_ours(text: str) -> None:
    assert own_description(text) is None or "mg_milvus" in text


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": ["coarse"]}, {"weights": "coarse"}, {"weights": {"coarse": -1}}, {"weights": {"coarse": "1"}},
        {"weights": {"coarse": 1e999}}, {"weights": None}, {"weights": {"coarse": 0}}, {"fusion": []},
        {"fusion": {"depth": 10**9}}, {"fusion": {"rrf_k": 0}}, {"fingerprint": []}, {"fingerprint": "f" * 16},
    ],
)  # fmt: skip
def test_what_a_collection_was_tuned_to_is_checked(changed: dict[str, object]) -> None:
    text = json.dumps(json.loads(encode_tuned("images", MADE)) | changed)
    assert decode_tuned(text, MADE) is MADE


# --- the copy of an encoder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fingerprint", ["../../x", "", "0" * 15, "0" * 17, "/etc/passwd", f"{'0' * 16}\n", ESCAPE])
def test_no_file_is_named_by_what_is_no_fingerprint(
    fingerprint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store: Any = SimpleNamespace(collection="images", get_encoder=lambda _: b"")
    with pytest.raises(errors.EncoderError, match="is not a fingerprint, expected 16 hexadecimal digits") as told:
        session.encoder_of(store, fingerprint, device="cpu")
    assert is_one_line(str(told.value))
    assert list(tmp_path.iterdir()) == []


# --- a server with other clients ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with lite_server(tmp_path_factory.mktemp("server") / "shared.db") as server:
        yield server.uri


@pytest.fixture
def stranger(uri: str) -> Iterator[MilvusClient]:
    """Another client of the server; what it has made is removed."""
    client = MilvusClient(uri, dedicated=True)
    yield client
    for name in client.list_collections():
        client.drop_collection(name)
    client.close()


@pytest.fixture
def store(uri: str, stranger: MilvusClient) -> Iterator[MilvusStore]:
    """Ours, with two images."""
    opened = MilvusStore(MilvusConfig(uri, collection="images"))
    opened.create(MADE)
    opened.upsert([image(0), image(1)])
    yield opened
    opened.close()


def image(number: int) -> Row:
    return Row(f"{number:032x}", f"/a/{number}.jpg", 9, 9, 4, 3, "0" * 32, {"coarse": bytes([0, number])}, {})


def add(client: MilvusClient, name: str, description: str, columns: dict[str, DataType] | None = None) -> None:
    """Make a collection as another program would."""
    schema = MilvusClient.create_schema()
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64, description=description)
    for column, kind in (columns or {}).items():
        schema.add_field(column, kind, **({"max_length": 60_000} if kind == DataType.VARCHAR else {}))
    schema.add_field("unused", DataType.BINARY_VECTOR, dim=8)
    client.create_collection(name, schema=schema)


def test_a_collection_that_cannot_be_read_keeps_nobody_from_the_others(
    store: MilvusStore, stranger: MilvusClient, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    add(stranger, "brackets", "[" * 100_000)
    add(stranger, "plain", "no JSON")
    add(stranger, "way_out", json.dumps(GOOD | {"fingerprint": f"../../x{ESCAPE}"}))
    add(stranger, "images_tuned", "[" * 100_000)
    with caplog.at_level(logging.WARNING, "mg_milvus"):
        assert store.collections() == ["images"]
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("mg_milvus")]
    assert told.startswith("a collection is skipped: the description of collection 'way_out' cannot be read")
    assert is_one_line(told)
    assert store.describe() == MADE
    assert store.count() == 2
    with MilvusStoreOf(uri, "way_out") as bad, pytest.raises(errors.UnsupportedError, match="16 hexadecimal digits"):
        bad.describe()
    (found,) = [check for check in examine(MilvusConfig(uri, collection="brackets")) if check.name == "collection"]
    assert not found.ok
    assert "was not created by mg-milvus" in found.message
    (found,) = [check for check in examine(MilvusConfig(uri, collection="nothing")) if check.name == "collection"]
    assert found.message.endswith("(there are images)")


@contextmanager
def MilvusStoreOf(uri: str, collection: str) -> Iterator[MilvusStore]:  # noqa: N802 - as the class
    opened = MilvusStore(MilvusConfig(uri, collection=collection))
    try:
        yield opened
    finally:
        opened.close()


def test_names_that_no_collection_has_are_passed_over(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store._client, "list_collections", lambda **_: [f"../{ESCAPE}", "", "images", "x" * 10**6])
    with caplog.at_level(logging.WARNING, "mg_milvus"):
        assert store.collections() == ["images"]
    told = [record.getMessage() for record in caplog.records if record.name.startswith("mg_milvus")]
    assert len(told) == 3
    assert all(is_one_line(line) for line in told)


def test_a_collection_of_other_columns_than_its_description_says(stranger: MilvusClient, uri: str) -> None:
    add(stranger, "odd", encode_description(MADE), {"path": DataType.INT64})
    with MilvusStoreOf(uri, "odd") as odd:
        stranger.create_index("odd", _index(stranger, "unused"))
        for ask in (odd.count, lambda: odd.fetch(["0" * 32]), lambda: odd.upsert([image(0)])):
            with pytest.raises(errors.StoreError) as told:
                ask()
            assert is_one_line(str(told.value))


def _index(client: MilvusClient, field: str) -> Any:
    params = client.prepare_index_params()
    params.add_index(field, index_type="BIN_FLAT", metric_type="HAMMING")
    return params


PART = 48_000
WHOLE = base64.b64encode(bytes(PART)).decode()
FALSE_PARTS = {
    "10^15 chunks": [(0, 10**15, 2**62, WHOLE)],
    "10^15 chunks of little": [(0, 10**15, 5, "AAAA")],
    "fewer than none": [(0, -5, 5, "AAAA")],
    "a negative size": [(0, 1, -5, "AAAA")],
    "no base64": [(0, 1, 5, "!!!!")],
    "a part that is too long": [(0, 1, PART, WHOLE + "AAAA")],
    "another size than the chunks hold": [(0, 1, 5, WHOLE)],
    "chunks that contradict each other": [(0, 2, PART + 3, WHOLE), (1, 3, PART + 3, "AAAA")],
    "a part that is missing": [(0, 2, PART + 3, WHOLE)],
}


@pytest.mark.parametrize("chunks", FALSE_PARTS.values(), ids=FALSE_PARTS)
def test_chunks_of_an_encoder_that_do_not_make_one(
    chunks: list[tuple[int, int, int, str]], store: MilvusStore, stranger: MilvusClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_encoder(MADE.fingerprint, b"right")
    stranger.upsert(
        "images_encoder",
        [
            {"id": f"{MADE.fingerprint}:{n}", "chunks": count, "size": size, "data": {"base64": text}, "unused": b"\0"}
            for n, count, size, text in chunks
        ],
    )
    calls = counted_calls(store, "query", monkeypatch)
    found, told = outcome(lambda: store.get_encoder(MADE.fingerprint))
    assert found is None
    assert is_one_line(told)
    assert len(calls) <= 2


def counted_calls(store: MilvusStore, name: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    calls: list[object] = []
    real = getattr(store._client, name)

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return real(*args, **more)

    monkeypatch.setattr(store._client, name, counted)
    return calls


def test_chunks_that_were_not_asked_for_or_hold_no_text(store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_encoder(MADE.fingerprint, b"right")
    assert store.get_encoder(MADE.fingerprint) == b"right"
    good = {"id": f"{MADE.fingerprint}:0", "chunks": 1, "size": 5, "data": {"base64": "AAAA"}}
    for wrong in ({"id": "other"}, {"id": 5}, {"data": []}, {"data": {"base64": 5}}, {"chunks": 1.5}, {"size": "5"}):
        monkeypatch.setattr(store._client, "query", lambda *_, wrong=wrong, **__: [good | wrong])
        with pytest.raises(errors.StoreError, match="cannot be read"):
            store.get_encoder(MADE.fingerprint)


def test_an_encoder_that_is_too_large_is_not_written(store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert companions.MOST_BYTES == 256_000_000
    monkeypatch.setattr(companions, "MOST_BYTES", 4)
    with pytest.raises(errors.StoreError, match="has 5 bytes, at most 4 are stored in Milvus"):
        store.put_encoder(MADE.fingerprint, b"right")


def test_regions_beside_that_are_something_else(uri: str, stranger: MilvusClient) -> None:
    schema = SCHEMA.model_copy(update={"regions": RegionSettings(bits=16)})
    made = Description(schema, MADE.fingerprint)
    with MilvusStoreOf(uri, "images") as ours:
        ours.create(made)
        stranger.drop_collection("images_regions")
        add(stranger, "images_regions", json.dumps({"mg_milvus": 1, "fingerprint": ESCAPE * 100}))
        ours.regions.forget()
        with pytest.raises(errors.StoreError, match="holds regions of the encoder") as told:
            ours.regions.count()
        assert is_one_line(str(told.value))
        stranger.drop_collection("images_regions")
        add(stranger, "images_regions", encode_regions("images", made))
        stranger.create_index("images_regions", _index(stranger, "unused"))
        with pytest.raises(errors.StoreError) as told:
            ours.regions.count()
        assert is_one_line(str(told.value))


@pytest.mark.parametrize("region", ["a", ":1", "a:", "a:-1", "a:x", "a:99", "a:²", "a:" + "9" * 50, 7])
def test_ids_that_no_region_has(
    region: object, uri: str, stranger: MilvusClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 2 x 2 + 3 x 3 + 4 x 4 regions are numbered 0 to 28."""
    assert stranger.list_collections() == []
    with MilvusStoreOf(uri, "images") as ours:
        ours.create(Description(SCHEMA.model_copy(update={"regions": RegionSettings(bits=16)}), MADE.fingerprint))
        monkeypatch.setattr(ours._client, "search", lambda *_, **__: [Hits([(0.0, region)])])
        monkeypatch.setattr(ours._client, "query_iterator", lambda *_, **__: Iterator_([{"id": region}]))
        for ask in (lambda: ours.regions.nearest(0, CODE, 5), lambda: list(ours.regions.scan())):
            with pytest.raises(errors.StoreError, match="cannot be read") as told:
                ask()
            assert is_one_line(str(told.value))


def test_the_commands_go_on_beside_hostile_collections(
    store: MilvusStore, stranger: MilvusClient, uri: str, tmp_path: Path
) -> None:
    assert store.count() == 2
    add(stranger, "brackets", "[" * 100_000)
    add(stranger, "way_out", json.dumps(GOOD | {"fingerprint": f"../../x{ESCAPE}"}))
    done = mgm("info", "--uri", uri, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rows               2" in done.stdout
    for name in ("brackets", "way_out"):
        done = mgm("info", "--uri", uri, "--collection", name, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("mgm: ")
        assert done.stderr.count("\n") == 1
        assert is_one_line(done.stderr.strip())


def test_the_encoders_beside_that_are_something_else(store: MilvusStore, stranger: MilvusClient) -> None:
    add(stranger, "images_encoder", encode_companion("images"))  # without the columns
    stranger.create_index("images_encoder", _index(stranger, "unused"))
    with pytest.raises(errors.StoreError) as told:
        store.get_encoder(MADE.fingerprint)
    assert is_one_line(str(told.value))


# --- answers that Milvus never gives ----------------------------------------------------------------------------------

ID = "0" * 32
COPY = base64.b64encode(bytes(2)).decode()
ENTITY = {
    "id": ID, "path": "/a/0.jpg", "size": 9, "mtime_ns": 9, "taken": 9, "width": 4, "height": 3,
    "content_hash": "0" * 32, "tags": 0, "label": "", "_codes": COPY,
}  # fmt: skip
CODE = np.zeros((1, 2), np.uint8)


class Hits(list):  # type: ignore[type-arg]
    """One query's hits, as pymilvus gives them."""

    def __init__(self, pairs: list[tuple[object, object]], entity: object = None) -> None:
        super().__init__({"id": i, "distance": d, "entity": entity or ENTITY | {"id": i}} for d, i in pairs)
        self.distances, self.ids = [d for d, _ in pairs], [i for _, i in pairs]


FALSE_HITS = {
    "not a number": [Hits([(math.nan, ID)])],
    "infinitely far": [Hits([(math.inf, ID)])],
    "nearer than near": [Hits([(-1.0, ID)])],
    "farther than all bits": [Hits([(17.0, ID)])],
    "half a bit": [Hits([(0.5, ID)])],
    "text": [Hits([("near", ID)])],
    "nothing": [Hits([(None, ID)])],
    "more than asked": [Hits([(0.0, f"{n:032x}") for n in range(6)])],
    "a number for an id": [Hits([(0.0, 7)])],
    "an id of megabytes": [Hits([(0.0, "x" * 2_000_000)])],
    "an id of two lines": [Hits([(0.0, "a\nb")])],
    "no answer": [],
    "two answers": [Hits([]), Hits([])],
    "no list": None,
    "no hits": [None],
}


@pytest.mark.parametrize("answer", FALSE_HITS.values(), ids=FALSE_HITS)
def test_hits_that_cannot_be(answer: object, store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.count()
    monkeypatch.setattr(store._client, "search", lambda *_, **__: answer)
    with pytest.raises(errors.StoreError, match=r"the response of Milvus at http.* cannot be read") as told:
        store.nearest("coarse", CODE, 5)
    assert is_one_line(str(told.value))


def test_a_hit_that_comes_twice_counts_once_where_it_is_nearest(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.count()
    monkeypatch.setattr(store._client, "search", lambda *_, **__: [Hits([(3.0, "b"), (2.0, "a"), (1.0, "b")])])
    (found,) = store.nearest("coarse", CODE, 5)
    assert (found.ids, found.distances.tolist()) == (["b", "a"], [1, 2])


@pytest.mark.parametrize(
    "pairs",
    [
        [(math.nan, ID)], [(math.inf, ID)], [("x", ID)], [(1.0, 7)], [(1.0, ID), (1.0, ID)],
        [(1.0, str(n)) for n in range(4)],
    ],
)  # fmt: skip
def test_fusions_that_cannot_be(
    pairs: list[tuple[object, object]], store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.count()
    monkeypatch.setattr(store._client, "hybrid_search", lambda *_, **__: [Hits(pairs)])
    with pytest.raises(errors.StoreError, match="cannot be read"):
        store.hybrid({"coarse": CODE}, HybridSearch({"coarse": 1.0}, k=3, depth=5, rrf_k=60))


FALSE_ROWS = {
    "a path that is a number": {"path": 5},
    "no path": {"path": None},
    "a path of megabytes": {"path": "x" * 2_000_000},
    "a label of megabytes": {"label": ESCAPE * 1_000_000},
    "no label": {"label": None},
    "a size that is text": {"size": "9"},
    "a size that is true": {"size": True},
    "a negative size": {"size": -1},
    "a negative width": {"width": -4},
    "a height that is a fraction": {"height": 0.5},
    "a time that is none": {"mtime_ns": math.nan},
    "codes that are too short": {"_codes": "AA=="},
    "codes that are too long": {"_codes": "A" * 400_000},
    "codes that are no text": {"_codes": 5},
    "codes that are no base64": {"_codes": "A"},
    "a hash that is a list": {"content_hash": []},
}


@pytest.mark.parametrize("wrong", FALSE_ROWS.values(), ids=FALSE_ROWS)
def test_rows_that_cannot_be(wrong: dict[str, object], store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.count()
    for entity in (ENTITY | wrong, {key: value for key, value in ENTITY.items() if key not in wrong}):
        monkeypatch.setattr(store._client, "search", lambda *_, e=entity, **__: [Hits([(0.0, ID)], e)])
        asks: list[Callable[[], object]] = [lambda: store.fetch([ID], ["coarse"])]
        if "_codes" in wrong:
            asks.append(lambda: store.nearest("coarse", CODE, 5, known={}))
        for ask in asks:
            with pytest.raises(errors.StoreError, match="cannot be read") as told:
                ask()
            assert is_one_line(str(told.value))


def test_ids_that_were_not_asked_for_are_not_deleted(store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.count()
    monkeypatch.setattr(store._client, "search", lambda *_, **__: [Hits([(0.0, image(1).id)])])
    assert store.delete([image(0).id]) == 0
    assert store.count() == 2


class Iterator_:  # noqa: N801 - pymilvus' in the test
    """Gives the same records again and again."""

    def __init__(self, records: list[dict[str, object]]) -> None:
        self.records, self.calls = records, 0

    def next(self) -> list[dict[str, object]]:
        self.calls += 1
        return self.records

    def close(self) -> None:
        """Nothing to give back."""


@pytest.mark.parametrize(
    "records", [[ENTITY], [ENTITY | {"id": "b"}, ENTITY | {"id": "a"}], [ENTITY | {"id": 5}], [{}], [None]]
)
def test_an_iterator_that_repeats_itself_ends(
    records: list[Any], store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.count()
    same = Iterator_(records)
    monkeypatch.setattr(store._client, "query_iterator", lambda *_, **__: same)
    for read in (store.scan, lambda: store.values(("id",))):
        same.calls = 0
        with pytest.raises(errors.StoreError, match="cannot be read"):
            for _ in read():
                pass
        assert same.calls <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": 5},
        {"path": None},
        {"path": "x" * 20_000},
        {"size": "7"},
        {"taken": 1.5},
        {"id": ""},
        {"tags": 3},
        {"tags": [0]},
        {"tags": 1.0},
        {"tags": -1},
    ],
)
def test_columns_with_values_that_cannot_be(
    wrong: dict[str, Any], store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.count()
    monkeypatch.setattr(store._client, "query_iterator", lambda *_, **__: Iterator_([ENTITY | wrong]))
    with pytest.raises(errors.StoreError, match="cannot be read"):
        list(store.values(tuple(wrong)))


@pytest.mark.parametrize("answer", [[], None, [{}], [{"count(*)": -1}], [{"count(*)": "7"}], [{"count(*)": math.nan}]])
def test_numbers_of_rows_that_cannot_be(answer: object, store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.count()
    monkeypatch.setattr(store._client, "query", lambda *_, **__: answer)
    with pytest.raises(errors.StoreError, match="cannot be read"):
        store.count()


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError(), OverflowError("x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x")]
)
def test_what_pymilvus_stumbles_over_is_no_bug_of_ours(error: Exception) -> None:
    def stumble() -> None:
        raise error

    with pytest.raises(errors.StoreError, match=f"cannot be read .{type(error).__name__}"):
        Connection(MilvusConfig("http://here", collection="images", timeout=5)).call(stumble)


@settings(deadline=None, max_examples=100)
@given(record=st.dictionaries(st.sampled_from([*ENTITY, "coarse"]), JSON | st.binary(max_size=4)))
def test_any_record_is_a_row_or_refused(record: dict[str, Any]) -> None:
    layout = Layout(SCHEMA)
    with (
        Connection(MilvusConfig("here", collection="images", timeout=5)).reading()
        if record
        else pytest.raises(KeyError)
    ):
        try:
            row = layout.row({**ENTITY, "coarse": [b"\0\0"], **record} if record else {}, ["coarse"])
        except (ValueError, TypeError, LookupError):
            if not record:
                raise
            return
        assert type(row.path) is str
        assert len(row.codes["coarse"]) == 2


# --- versions, indexes, messages --------------------------------------------------------------------------------------


def test_a_version_is_a_parse_version() -> None:
    assert _parse_version("v2.6.19-gpu") == (2, 6, 19)
    assert _parse_version("9" * 5000 + ".1.1") is None
    told = f"v2.6.1{ESCAPE}" + "x" * 2_000_000
    client: Any = SimpleNamespace(get_server_version=lambda **_: told)
    connection = Connection(MilvusConfig("http://here", collection="images", timeout=5))
    connection.client = client
    engine = _server_engine(connection)
    assert is_one_line(engine.label, 100)
    assert engine.label.startswith("Milvus 2.6.1\\x1b")


@pytest.mark.parametrize("nlist", ["0", "-1", "65537", "9" * 5000, "²", ESCAPE, None, [], 1e9])
def test_clusters_that_no_index_has(nlist: object) -> None:
    told = {"index_type": "BIN_IVF_FLAT", "nlist": nlist}
    connection = Connection(MilvusConfig("http://here"))
    connection.engine = Engine(False, None, "Milvus")
    client: Any = SimpleNamespace(describe_index=lambda *_, **__: told)
    connection.client = client
    with pytest.raises(errors.StoreError, match="expected 1 to 65536") as error:
        collections.index_nlists(connection, "images", ["coarse"])
    assert is_one_line(str(error.value))
    told["nlist"] = "128"
    assert collections.index_nlists(connection, "images", ["coarse"]) == {"coarse": 128}


@pytest.mark.parametrize("said", [ESCAPE, f"{ESCAPE}\n" * 300_000, "index type " * 300_000, "vector field" * 300_000])
def test_messages_of_a_server_are_short_and_steer_nothing(said: str) -> None:
    start = time.monotonic()
    error = translate(vendor.MilvusException(1, said), MilvusConfig("http://here", collection="images"))
    assert is_one_line(str(error), 800)
    assert time.monotonic() - start < 5


def test_a_token_that_a_server_repeats_is_hidden_also_where_its_message_is_cut() -> None:
    for before in range(480, 510):
        error = vendor.MilvusException(1, "x" * before + "root:hunter22")
        assert "hunter" not in str(translate(error, MilvusConfig("http://here", "root:hunter22")))


def test_answers_have_a_most(store: MilvusStore) -> None:
    options = dict(store._client._get_connection()._grpc_options)
    assert options["grpc.max_receive_message_length"] == 512 << 20


class _Endless(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self) -> str:
        return "Received message larger than max"


def test_an_answer_beyond_that_is_an_error_of_ours() -> None:
    def ask() -> None:
        raise _Endless

    with pytest.raises(errors.StoreError, match="Received message larger than max"):
        Connection(MilvusConfig("http://here", collection="images", timeout=5)).call(ask)


# --- import jobs ------------------------------------------------------------------------------------------------------


@contextmanager
def rest(answer: bytes, code: int = 200, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server on the loopback address that always says the same; its URI, and what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            asked.append(f"{self.command} {self.path} {self.headers['Authorization']}")
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(answer)
            except OSError:  # the client has read enough
                return

        do_POST = do_GET = _answer  # noqa: N815 - what http.server calls

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


FALSE_JOBS = {
    "brackets": b"[" * 100_000,
    "megabytes": b'{"code": 0, "data": "' + b"x" * (17 << 20) + b'"}',
    "a list": b"[]",
    "a number": b"7",
    "no data": b'{"code": 0}',
    "data that is a number": b'{"code": 0, "data": 7}',
    "jobs that are numbers": b'{"code": 0, "data": {"records": [1], "state": {}, "progress": "x"}}',
    "jobs that are none": b'{"code": 0, "data": {"records": 7, "progress": 1e999, "state": "Pending"}}',
    "an id that steers": json.dumps(
        {"code": 0, "data": {"jobId": ESCAPE, "records": [{"state": "Pending", "jobId": ESCAPE}]}}
    ).encode(),
    "a reason that steers": json.dumps({"code": ESCAPE * 99, "message": ESCAPE * 100_000}).encode(),
    "bytes": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("answer", FALSE_JOBS.values(), ids=FALSE_JOBS)
def test_answers_about_import_jobs_that_cannot_be(answer: bytes) -> None:
    with rest(answer) as (uri, _):
        api = ImportApi(MilvusConfig(uri, "root:hunter22", timeout=30))
        for ask in (lambda: api.running("images"), lambda: api.start("images", ["a"]), lambda: api.job("7")):
            found, told = outcome(ask)
            assert found is None
            assert told
            assert is_one_line(told)


def test_what_a_job_says_is_short_and_steers_nothing() -> None:
    told = {"state": ESCAPE * 99, "progress": 10**30, "reason": ESCAPE * 100_000}
    with rest(json.dumps({"code": 0, "data": told}).encode()) as (uri, _):
        job = ImportApi(MilvusConfig(uri, None, timeout=30)).job("7")
    assert (job.percent, job.is_running) == (100, False)
    assert is_one_line(job.state + job.reason)


def test_the_token_does_not_follow_a_redirect() -> None:
    with rest(b'{"code": 0, "data": {}}') as (elsewhere, asked):
        for code in (301, 302, 303, 307, 308):
            with (
                rest(b"", code, {"Location": f"{elsewhere}/mine"}) as (uri, _),
                pytest.raises(errors.UnsupportedError, match=f"answers {code}"),
            ):
                ImportApi(MilvusConfig(uri, "root:hunter22", timeout=30)).running("images")
        assert asked == []
    assert import_jobs._MAX_RESPONSE_BYTES == 16 << 20
