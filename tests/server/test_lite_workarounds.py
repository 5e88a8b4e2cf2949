"""Uses of internals of pymilvus and Milvus Lite, and the documented ways that other versions of them get."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pymilvus import MilvusClient

from mg_milvus.config import MilvusConfig
from mg_milvus.errors import StoreLockedError
from mg_milvus.schema.models import ExtraField, Granularity, RegionSettings, Schema
from mg_milvus.store import collections, lite_server, lite_workarounds
from mg_milvus.store.base import Description, Row
from mg_milvus.store.lite_workarounds import LARGE, index_keys
from mg_milvus.store.milvus import open_store
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DESCRIPTION = Description(Schema(granularities=(Granularity(name="coarse", bits=16),)), "0123456789abcdef")


def rows(numbers: range, width: int = 1) -> list[Row]:
    return [Row(f"{n:032x}", f"/{n}.jpg", n, n, width, 1, "", {"coarse": n.to_bytes(2)}) for n in numbers]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file with two collections of 20 rows; the numbers of one of them say that it has had many more."""
    file = tmp_path / "large.db"
    for name in ("large", "small"):
        store = open_store(MilvusConfig(str(file), collection=name))
        store.create(DESCRIPTION)
        store.upsert(rows(range(20)))
        store.close()
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        last = max(id_ for (id_,) in database.execute("SELECT id FROM large"))
        database.execute("UPDATE large SET id = ? WHERE id = ?", (LARGE, last))
    return file


def plan(file: Path, table: str) -> str:
    """How SQLite finds rows by their keys."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute(f"EXPLAIN QUERY PLAN DELETE FROM {table} WHERE milvus_id IN ('a', 'b')").fetchall()
    return " ".join(str(row[-1]) for row in found)


def test_a_large_collection_is_searched_by_its_index_once_the_file_was_opened_again(large: Path) -> None:
    assert plan(large, "large") == "SCAN large"
    open_store(MilvusConfig(str(large), collection="large")).close()
    assert "INDEX mgm_large_keys" in plan(large, "large")
    assert plan(large, "small") == "SCAN small"


def test_mgm_up_makes_it_too(large: Path) -> None:
    try:
        lite_server.up(large, 0)
    finally:
        lite_server.down(large)
    assert "mgm_large_keys" in plan(large, "large")


def test_rows_are_replaced_removed_and_kept_as_before(large: Path) -> None:
    store = open_store(MilvusConfig(str(large), collection="large"))
    store.upsert(rows(range(10, 30), width=7))  # half of them are there
    assert store.delete([f"{n:032x}" for n in (0, 15, 29, 99)]) == 3
    store.close()
    store = open_store(MilvusConfig(str(large), collection="large"))
    try:
        kept = {row.path: row.width for batch in store.scan() for row in batch}
        assert kept == {f"/{n}.jpg": 7 if n >= 10 else 1 for n in range(30) if n not in (0, 15, 29)}
        store.drop()
        store.create(DESCRIPTION)
        store.upsert(rows(range(3)))
        assert store.count() == 3
    finally:
        store.close()
    assert plan(large, "large") == "SCAN large"  # the index went with its table


def test_a_file_that_cannot_be_written_is_left_alone(large: Path, tmp_path: Path) -> None:
    index_keys(tmp_path / "nothing.db")
    assert not (tmp_path / "nothing.db").exists()
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database, but long enough to look like one" * 100)
    index_keys(other)
    with closing(sqlite3.connect(large, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        index_keys(large)
    assert plan(large, "large") == "SCAN large"


REGIONAL = Schema(
    granularities=(Granularity(name="coarse", bits=16), Granularity(name="fine", bits=32)),
    fields=(ExtraField(name="label", type="string"),),
    regions=RegionSettings(),
)
"""A schema whose rows have codes of both kinds and a field of its own."""


def test_a_long_load_of_a_file_is_said_while_it_lasts(
    large: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The load waits for the message here."""
    said = threading.Event()
    monkeypatch.setattr(collections, "_SAY_LOAD_AFTER", 0.0)
    warn = collections._log.warning
    monkeypatch.setattr(collections._log, "warning", lambda *text: (warn(*text), said.set()))
    store = open_store(MilvusConfig(str(large), collection="large"))
    load = store._client.load_collection
    monkeypatch.setattr(store._client, "load_collection", lambda *a, **o: (said.wait(PATIENCE), load(*a, **o)))
    assert store.count() == 20
    store.close()
    assert f"Milvus Lite reads all rows of {large} (0 MB) before its first answer; 'mgm up' does so once" in caplog.text


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Let a package have another version than the installed one."""
    versions: dict[str, str] = {}
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))

    def pretend(package: str, version: str) -> None:
        versions[package] = version
        lite_workarounds.is_known.cache_clear()

    yield pretend
    lite_workarounds.is_known.cache_clear()


def test_the_installed_versions_are_known() -> None:
    assert [package for package in lite_workarounds.KNOWN if not lite_workarounds.is_known(package)] == []


@pytest.mark.parametrize("version", ["3.0.2", "3.1.0"])
def test_rows_written_and_read_with_another_pymilvus_are_the_same(
    tmp_path: Path, version: str, pretend: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("pymilvus", version)
    public: list[str] = []
    upsert = MilvusClient.upsert
    monkeypatch.setattr(MilvusClient, "upsert", lambda *args, **more: (public.append(args[1]), upsert(*args, **more)))
    assert REGIONAL.regions is not None
    regions = bytes(range(256)) * (REGIONAL.regions.bytes_per_image // 256 + 1)
    written = [
        Row(
            f"{n:032x}", f"/{n}.jpg", n, n, 1, 1, "", {"coarse": bytes([n, 1]), "fine": bytes([n, 0, 255, 7])},
            {"label": f"t{n}"}, regions[n : n + REGIONAL.regions.bytes_per_image],
        )
        for n in range(3)
    ]  # fmt: skip
    store = open_store(MilvusConfig(str(tmp_path / "a.db")))
    try:
        store.create(Description(REGIONAL, "0123456789abcdef"))
        store.upsert(written)
        assert public == ([] if version == "3.0.2" else ["images_regions", "images"])
        ids = [row.id for row in written]
        without = {row.id: replace(row, region_codes=b"") for row in written}
        assert store.fetch(ids, ("coarse", "fine")) == without
        assert store.fetch_codes(ids, ("coarse", "fine")) == {row.id: row.codes for row in written}
        assert {row.id: row for batch in store.scan(granularities=("coarse", "fine")) for row in batch} == without
        assert store.regions.codes(ids) == {row.id: row.region_codes for row in written}
        assert store.nearest("coarse", np.array([[1, 1]], np.uint8), 1)[0].ids == [ids[1]]
        store.add_columns([ExtraField(name="stars", type="int")])
        starred = {
            row.id: replace(row, fields={**row.fields, "stars": n or None}, region_codes=b"")
            for n, row in enumerate(written)
        }
        store.upsert(list(starred.values()))
        assert store.fetch(ids, ("coarse", "fine")) == starred
        assert {row.id: row for batch in store.scan("stars > 0", ("coarse",)) for row in batch}.keys() == set(ids[1:])
    finally:
        store.close()


ANOTHER_LITE = """
import importlib.metadata, sys, warnings
real = importlib.metadata.version
importlib.metadata.version = lambda name: "2.6.0" if name == "milvus-lite" else real(name)
from mg_milvus.config import MilvusConfig
from mg_milvus.errors import StoreLockedError, UnsupportedError
from mg_milvus.store import lite, lite_server, lite_workarounds
from mg_milvus.store.milvus import open_store
from tests.server.test_lite_workarounds import DESCRIPTION, rows

file = sys.argv[1]
first, second = open_store(MilvusConfig(file)), open_store(MilvusConfig(file))
assert not lite._engines, "the package starts its engine by itself"
first.create(DESCRIPTION)
first.upsert(rows(range(3)))
assert (second.count(), first.server()) == (3, "Milvus Lite 2.6.0")
first.close()
assert second.count() == 3
try:
    lite_server.up(lite_server.data_file(file + "2.db"), 0)
except UnsupportedError as error:
    assert "milvus-lite 2.5, and 2.6.0 is installed" in str(error), error
else:
    raise AssertionError("mgm up has no engine to start")
print("open", flush=True)
sys.stdin.read()
"""


def test_another_milvus_lite_starts_its_engine_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with subprocess.Popen(
        [sys.executable, "-c", ANOTHER_LITE, file],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        line = holder.stdout.readline()
        if line == "open\n":
            with pytest.raises(StoreLockedError, match="open in another process"):
                open_store(MilvusConfig(str(file)))
        _, said = holder.communicate()
        assert (line, said, holder.returncode) == ("open\n", "", 0)
    store = open_store(MilvusConfig(str(file)))
    assert store.count() == 3
    store.close()


def test_another_milvus_lite_gets_no_index_and_decides_what_its_files_are(
    large: Path, tmp_path: Path, pretend: Callable[[str, str], None]
) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE cats (name)")
    assert not lite_workarounds.could_be_lite(other)
    pretend("milvus-lite", "2.6.0")
    index_keys(large)
    assert plan(large, "large") == "SCAN large"
    assert lite_workarounds.could_be_lite(other)
    assert lite_workarounds.engine_program() is None


@pytest.mark.parametrize(("version", "skipped"), [("3.0.2", True), ("3.1.0", False)])
def test_scipy_is_skipped_for_a_known_pymilvus_only(
    version: str, skipped: bool, pretend: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("pymilvus", version)
    monkeypatch.setattr(sys, "modules", {name: module for name, module in sys.modules.items() if name != "scipy"})
    lite_workarounds.skip_scipy()
    assert ("scipy" in sys.modules) is skipped


LOADED = """
import sys
from mg_milvus.store.lite_workarounds import skip_pandas

finders = list(sys.meta_path)
skip_pandas()
import pymilvus
from pymilvus.client import global_topology
from pymilvus.orm import schema, types

assert sys.meta_path == finders
assert not {"pandas", "requests", "pyarrow"} & sys.modules.keys()
assert schema.is_valid_insert_data([]) and not schema.is_valid_insert_data(())
assert [schema.is_scalar(value) for value in ("a", 1, 0.5, True)] == [True] * 4
assert "pandas" not in sys.modules

assert [schema.is_scalar(value) for value in (None, b"a", [1], {})] == [True, True, False, False]
assert schema.is_list_like((1, 2)) and not schema.is_list_like("a")
import pandas, pandas.api.types, requests

frame = pandas.DataFrame({"a": [1]})
assert schema.is_valid_insert_data(frame) and schema.check_is_row_based(frame) is False
for value in ([1.5], 1.5, "a", frame["a"]):
    for name in ("is_array_like", "is_float", "is_list_like", "is_scalar"):
        assert getattr(types, name)(value) == getattr(pandas.api.types, name)(value), (name, value)
assert types.infer_dtype([1, 2.5]) == "mixed-integer-float"
assert global_topology.requests.exceptions.RequestException is requests.exceptions.RequestException
"""


def test_pymilvus_is_imported_without_pandas_and_gets_the_real_one_when_it_needs_it() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_pymilvus_gets_pandas(pretend: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("pymilvus", "3.1.0")
    absent = {name: each for name, each in sys.modules.items() if name not in ("pymilvus", "pandas", "requests")}
    monkeypatch.setattr(sys, "modules", absent)
    finders = list(sys.meta_path)
    lite_workarounds.skip_pandas()
    assert sys.meta_path == finders
