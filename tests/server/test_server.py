"""A real Milvus server, 2.3.5: its index, its tokens, its segments, its consistency, and its death in an ingest.

It holds one granularity for each collection. Skipped where the server cannot be had; ``tests/real_milvus.py`` says what
that takes.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pymilvus import MilvusClient
from typer.testing import CliRunner

from mg_milvus.cli.app import app
from mg_milvus.config import MilvusConfig
from mg_milvus.errors import PrivilegeError, StoreError
from mg_milvus.images.discover import text_path
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Granularity, Schema, StorageSettings
from mg_milvus.schema.tags import ANY_TAG, LEVELS, condition, vocabulary
from mg_milvus.store.base import Description, Row, Store
from mg_milvus.store.milvus import open_store
from tests.conftest import make_photos
from tests.real_milvus import TOKEN, NotHereError, RealMilvus
from tests.server import rights
from tests.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mg_milvus.store.milvus import MilvusStore

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("milvus-server")]

MGM = Path(sysconfig.get_path("scripts")) / "mgm"
SCHEMA = """
version: 1
encoder: {heads: fixed}
granularities: [{name: fine, bits: 256}]
storage: {index: BIN_IVF_FLAT, nlist: 16, nprobe: 16}
"""
_names = (f"server_{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def only_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMilvus]:
    try:
        server = RealMilvus(request.config.cache.mkdir("milvus-2.3.5"), tmp_path_factory.mktemp("milvus"))
    except NotHereError as reason:
        pytest.skip(f"no Milvus server here: {reason}")
    yield server
    server.kill()


@pytest.fixture
def server(only_server: RealMilvus) -> RealMilvus:
    """The server, which runs, whatever the test before did to it."""
    if not only_server.running:
        only_server.start()
    return only_server


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "schema.yaml"
    file.write_text(SCHEMA)
    return file


def mgm(server: RealMilvus, *arguments: str | Path, token: str = TOKEN) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    where = ["--uri", server.uri, "--token", token, "--timeout", str(PATIENCE)]
    result = CliRunner().invoke(app, [*map(str, arguments), *where])
    return result.exit_code, result.stdout, result.stderr


def open_rows(server: RealMilvus, storage: StorageSettings) -> Store:
    """A store with an empty collection of 64-bit codes."""
    store = open_store(MilvusConfig(server.uri, collection=next(_names), token=TOKEN, timeout=PATIENCE))
    store.create(Description(Schema(granularities=(Granularity(name="fine", bits=64),), storage=storage), "0" * 16))
    return store


def answers(store: Store) -> bool:
    try:
        store.count()
    except StoreError:
        return False
    return True


def make_rows(codes: np.ndarray, start: int = 0) -> list[Row]:
    return [
        Row(f"{n:032x}", f"/{n}.jpg", n, n, 1, 1, "", {"fine": code.tobytes()}) for n, code in enumerate(codes, start)
    ]


def test_conformance(server: RealMilvus) -> None:
    code, out, errors = mgm(server, "doctor", "--conformance", "--json")
    report = json.loads(out)
    refused = {each["name"] for each in report["features"] if each["outcome"] == "refused"}
    assert (code, report["ok"], report["server"]) == (0, True, "Milvus 2.3.5-lite"), errors
    assert refused == {
        "several granularities", "server fusion, equal weights", "server fusion, other weights", "index HNSW",
        "codes mapped from disk",
    }  # fmt: skip
    client = MilvusClient(server.uri, token=TOKEN)
    assert [name for name in client.list_collections() if name.startswith("mgm_conformance")] == []
    client.close()


def test_reader_writer_and_owner_have_the_rights_of_the_page(server: RealMilvus) -> None:
    schema = Schema(granularities=rights.SCHEMA.granularities[:1], regions=rights.REGIONS)
    with closing(MilvusClient(server.uri, token=TOKEN)) as admin:
        # 2.3 asks for Load where later versions ask for GetLoadState.
        grants = {
            role: {("Load" if privilege == "GetLoadState" else privilege, name) for privilege, name in own}
            for role, own in rights.documented().items()
        }
        rights.add_users(admin, grants, second=False)

    def may(role: str, store: Any) -> bool:
        try:
            rights.do(role, store, schema)
        except PrivilegeError:
            return False
        return True

    for role in ("owner", "writer", "reader"):
        with closing(open_store(MilvusConfig(server.uri, f"{role}:Passw0rd!", "photos", PATIENCE))) as store:
            # The proxy learns of new rights a moment later.
            wait_until(partial(may, role, store), f"the {role} has the rights of the page", patience=60, pause=1)
            if role == "reader":
                with pytest.raises(PrivilegeError, match="who lacks the privilege Delete for 'photos'"):
                    store.delete([rights.rows(schema)[0].id])
    with closing(open_store(MilvusConfig(server.uri, TOKEN, "photos"))) as store:
        store.drop()


def test_a_renamed_collection(server: RealMilvus) -> None:
    schema = Schema(granularities=rights.SCHEMA.granularities[:1])
    place = MilvusConfig(server.uri, TOKEN, next(_names), PATIENCE)
    old, new = str(place.collection), f"renamed_{place.collection}"
    with closing(open_store(place)) as store:
        store.create(Description(schema, "f" * 16))
        store.put_encoder("f" * 16, b"an encoder")
        store.upsert([replace(row, region_codes=b"") for row in rights.rows(schema)])
    with closing(MilvusClient(server.uri, token=TOKEN)) as admin:
        admin.rename_collection(old, new)
        with closing(open_store(replace(place, collection=new))) as store:
            with pytest.raises(StoreError, match=f"'{new}' was renamed from '{old}', .* '{old}_encoder'"):
                store.count()
            admin.rename_collection(f"{old}_encoder", f"{new}_encoder")
            assert (store.count(), store.get_encoder("f" * 16)) == (3, b"an encoder")
            store.drop()


def test_one_granularity_through_the_command(server: RealMilvus, schema: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=5)
    asked = photos / "disc" / "03.jpg"
    name = next(_names)
    place = ("--collection", name)
    code, out, errors = mgm(server, "ingest", photos, "--schema", schema, *place)
    assert (code, out.splitlines()[0].split(" (")[0]) == (
        0, "15 seen: 15 added, 0 updated, 0 unchanged, 0 removed, 0 failed",
    ), errors  # fmt: skip
    assert "15 unchanged" in mgm(server, "ingest", photos, *place)[1]

    client = MilvusClient(server.uri, token=TOKEN)
    index = client.describe_index(name, "fine")
    client.close()
    assert (index["index_type"], index["metric_type"], int(index["nlist"])) == ("BIN_IVF_FLAT", "HAMMING", 16)

    hits = [json.loads(line) for line in mgm(server, "query", asked, "--json", "-k", "15", *place)[1].splitlines()]
    with closing(open_store(MilvusConfig(server.uri, collection=name, token=TOKEN))) as store:
        rows = [row for batch in store.scan(granularities=["fine"]) for row in batch]
    mine = int.from_bytes(next(row.codes["fine"] for row in rows if row.path == str(asked)))
    true = sorted((int.from_bytes(row.codes["fine"]) ^ mine).bit_count() for row in rows)
    assert sorted(hit["distances"]["fine"] for hit in hits) == true
    assert {hit["path"] for hit in hits} == {str(path) for path in photos.rglob("*.jpg")}
    assert hits[0]["path"] == str(asked)

    counts = json.loads(mgm(server, "tags", "--json", *place)[1])
    (tag, images), *_ = counts.items()
    tagged = {hit["path"] for hit in hits if tag in hit["tags"]}
    assert len(tagged) == images
    with closing(open_store(MilvusConfig(server.uri, collection=name, token=TOKEN))) as store:
        of_filters = [
            {row.path for batch in store.scan(f'tags {sign} "{tag}"') for row in batch} for sign in ("==", "!=")
        ]
    assert of_filters == [tagged, {row.path for row in rows} - tagged]
    for options in (("--text", tag), ("--like", asked, "--filter", f'tags == "{tag}"')):
        lines = mgm(server, "query", *options, "--json", "-k", "15", *place)[1].splitlines()
        assert {json.loads(line)["path"] for line in lines if tag in json.loads(line)["tags"]} | {str(asked)} == (
            tagged | {str(asked)}
        )

    assert mgm(server, "export", tmp_path / "codes", *place)[0] == 0
    moved = ("--collection", next(_names))
    assert mgm(server, "load", tmp_path / "codes", *moved)[0] == 0
    assert mgm(server, "delete", asked, *moved)[1] == "1 row deleted\n"
    told = [json.loads(mgm(server, "info", "--json", *each)[1]) for each in (place, moved)]
    assert [each["rows"] for each in told] == [15, 14]
    assert told[0]["fingerprint"] == told[1]["fingerprint"]
    assert told[0]["server"].startswith("Milvus 2.3.5")
    code, out, _ = mgm(server, "doctor", "--recall", *place)
    assert (code, "finds: fine 1.000" in out) == (0, True)
    code, _, errors = mgm(server, "query", asked, "--fusion", "server", *place)
    assert (code, "came with Milvus 2.4" in errors) == (1, True)


def test_three_granularities_are_refused(server: RealMilvus, tmp_path: Path) -> None:
    code, _, errors = mgm(server, "ingest", make_photos(tmp_path / "p", per_kind=1), "--collection", next(_names))
    assert (code, len(errors.splitlines()[-1:])) == (1, 1)
    assert "Milvus 2.3.5-lite holds one granularity per collection, the schema has 3" in errors


def test_tokens(server: RealMilvus, tmp_path: Path) -> None:
    secret = "a-wrong-Pa55word"
    everything = (("info",), ("query", "x.jpg"), ("ingest", tmp_path), ("doctor",))
    for token, commands in (
        (f"root:{secret}", everything),
        (f"nobody:{secret}", everything[:1]),
        (secret, everything[:1]),
    ):
        for command in commands:
            code, out, errors = mgm(server, *command, token=token)
            assert code == 1, command
            assert secret not in out + errors
            if command != ("doctor",):
                assert (out, len(errors.splitlines())) == ("", 1), command
                assert "refused the token" in errors
                assert "MGM_TOKEN" in errors
    root = MilvusClient(server.uri, token=TOKEN)
    root.create_user("anna", "Good-Pa55word")
    try:
        code, out, errors = mgm(server, "info", token="anna:Good-Pa55word")  # known, and allowed nothing
        assert (code, out, len(errors.splitlines())) == (1, "", 1)
        assert "Pa55word" not in errors
        root.grant_role("anna", "admin")
        with closing(open_rows(server, StorageSettings())) as store:
            store.upsert(make_rows(np.zeros((3, 8), np.uint8)))
            with closing(open_store(MilvusConfig(server.uri, "anna:Good-Pa55word", store.collection))) as hers:
                wait_until(partial(counts, hers, 3), "the rights of her role have reached every part of the server")
    finally:
        root.drop_user("anna")
        root.close()


def counts(store: MilvusStore, rows: int) -> bool:
    """Whether a store has so many rows; False while the user may not look."""
    try:
        return store.count() == rows
    except PrivilegeError:
        return False


def test_growing_and_sealed_segments_give_the_same_answers(server: RealMilvus) -> None:
    """All lists of the index are looked into, so both are exact; 64 bits tie a lot, so only distances are sure.

    Row n has the name n % 1000 at the level n % 30, and a group.
    """
    tabby = vocabulary().tags.index("tabby")  # 281, of the levels 11, 21 and 1
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (3000, 8), dtype=np.uint8)
    queries = random.integers(0, 256, (5, 8), dtype=np.uint8)
    store = open_rows(server, StorageSettings(index="BIN_IVF_FLAT", nlist=16, nprobe=16))

    def distances(of: np.ndarray) -> list[list[int]]:
        return [sorted(np.bitwise_count(of ^ query).sum(1).tolist())[:100] for query in queries]

    def found() -> list[list[int]]:
        return [one.distances.tolist() for one in store.nearest("fine", queries, 100)]

    def tagged() -> list[int]:
        filters = ('tags == "tabby"', 'tags != "tabby"', condition([tabby]), condition([tabby], 12), f"not ({ANY_TAG})")
        return [store.count(where) for where in filters]

    with closing(store), closing(MilvusClient(server.uri, token=TOKEN)) as client:
        name = store.collection
        store.upsert([
            replace(row, tags=[n % 1000 * LEVELS + n % LEVELS, 1000 * LEVELS]) for n, row in enumerate(make_rows(codes))
        ])  # fmt: skip
        assert tagged() == [2, 2998, 3, 1, 0]
        assert client.list_persistent_segments(name) == []
        assert found() == distances(codes)

        client.flush(name)
        wait_until(lambda: client.describe_index(name, "fine")["indexed_rows"] == 3000, "all rows are indexed")
        client.release_collection(name)
        client.load_collection(name)  # now, and not a minute later, what was sealed is searched by the index
        (segment,) = client.list_loaded_segments(name)
        assert (segment.state.name, segment.num_rows, segment.index_name) == ("Sealed", 3000, "fine")
        one_list = {"metric_type": "HAMMING", "params": {"nprobe": 1}}
        assert len(client.search(name, [queries[0].tobytes()], limit=3000, search_params=one_list)[0]) < 1000
        assert found() == distances(codes)
        assert tagged() == [2, 2998, 3, 1, 0]

        # Sealed rows are replaced and deleted: the new ones are in a segment that grows.
        changed = codes.copy()
        changed[:50] ^= 0xFF
        store.upsert(make_rows(changed[:50]))
        assert store.delete([row.id for row in make_rows(codes)[2950:]]) == 50
        assert found() == distances(changed[:2950])
        client.flush(name)
        assert found() == distances(changed[:2950])
        assert store.count() == 2950


def test_consistency_levels(server: RealMilvus) -> None:
    """Counting, fetching and scanning always see the last write; searches as fresh as was asked for."""
    levels = ("Strong", "Session", "Bounded", "Eventually")
    with ThreadPoolExecutor(len(levels)) as pool:  # all of it is waiting
        list(pool.map(lambda level: check_consistency(server, level), levels))


def check_consistency(server: RealMilvus, level: str) -> None:
    with closing(open_rows(server, StorageSettings(consistency=level))) as store:
        for number in range(3):
            code = np.full((1, 8), 17 * number, np.uint8)
            (row,) = make_rows(code, number)
            store.upsert([row])
            assert store.count() == number + 1, level
            assert list(store.fetch([row.id])) == [row.id], level

            def sees(row: Row = row, code: np.ndarray = code) -> bool:
                (nearest,) = store.nearest("fine", code, 1)
                return nearest.ids == [row.id]

            if level in ("Strong", "Session"):
                assert sees(), level
            else:
                wait_until(sees, f"a search with consistency {level} sees the row")


def test_a_restart(server: RealMilvus) -> None:
    """Nothing is lost, an error says what is the matter, and a client that was there before goes on."""
    codes = np.arange(80, dtype=np.uint8).reshape(10, 8)
    with closing(open_rows(server, StorageSettings(nlist=4, nprobe=4))) as store:
        store.upsert(make_rows(codes))
        server.stop()
        result = CliRunner().invoke(app, ["info", "--uri", server.uri, "--timeout", "1"])
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert "does not answer" in result.stderr
        server.start()
        wait_until(
            lambda: answers(store), "the server answers again"
        )  # it loads what was loaded before, in its own time
        assert store.count() == 10
        (nearest,) = store.nearest("fine", codes[4:5], 1)
        assert (nearest.ids, nearest.distances.tolist()) == ([make_rows(codes)[4].id], [0])
        store.upsert(make_rows(codes, 10))
        assert store.count() == 20


def test_kill_9_in_the_middle_of_an_ingest(server: RealMilvus, schema: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=40)
    files = sorted(str(path) for path in photos.rglob("*.jpg"))
    name = next(_names)
    command = [MGM, "ingest", photos, "--schema", schema, "--uri", server.uri, "--collection", name]
    command += ["--batch-size", "1", "--timeout", "5"]
    environment = os.environ | {"MGM_TOKEN": TOKEN}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ingest:
        store = open_store(MilvusConfig(server.uri, TOKEN, name, PATIENCE))
        wait_until(
            lambda: ingest.poll() is not None or (store.describe() is not None and store.count() >= 10),
            "10 rows are stored",
        )
        acknowledged = store.count()
        server.kill()
        out, errors = ingest.communicate(timeout=PATIENCE)
    assert 10 <= acknowledged < len(files)
    assert (ingest.returncode, out) == (1, ""), errors
    assert errors.splitlines()[-1].startswith(f"mgm: Milvus at {server.uri} does not answer")
    assert "Traceback" not in errors
    assert TOKEN not in errors

    server.start()
    wait_until(lambda: answers(store), "the server answers again")
    assert store.count() >= acknowledged
    code, out, errors = mgm(server, "ingest", photos, "--collection", name)
    assert code == 0, errors
    assert store.count() == len(files)
    rows = [row for batch in store.scan() for row in batch]
    store.close()
    assert sorted(row.path for row in rows) == files
    with ImageIndex.open(server.uri, collection=name, token=TOKEN, timeout=PATIENCE) as index:
        hits = index.query_many([text_path(file) for file in files], k=1)
    assert [hit[0].distances for hit in hits] == [{"fine": 0}] * len(files)  # as a fresh encoding has it
