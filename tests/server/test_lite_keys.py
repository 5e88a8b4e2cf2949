"""Milvus Lite's file gets an index over its keys once a collection is large, and everything goes on working with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import Granularity, Schema
from mg_milvus.store import lite_server
from mg_milvus.store.base import Description, Row
from mg_milvus.store.lite_workarounds import LARGE, index_keys
from mg_milvus.store.milvus import open_store

if TYPE_CHECKING:
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
