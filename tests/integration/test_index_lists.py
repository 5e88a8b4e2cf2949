"""Clusters of BIN_IVF_FLAT from the rows of a segment: the arithmetic by hand, and what the doctor makes of it.

Against a real server (2.3.5, 80,000 rows, nlist 64) the doctor asked for 1131, and --repair built it.
"""

from __future__ import annotations

import pytest

from mg_milvus import doctor
from mg_milvus.bulk.transfer import fit_index
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, IndexLists, fits, nlist_for, nprobe_for, typical_rows
from mg_milvus.store.client import Engine
from tests.memory_store import MemoryStore


@pytest.mark.parametrize(("rows", "expected"), [(1, 4), (100, 40), (80_000, 1131), (10**6, 4000), (10**9, 65_536)])
def test_four_times_the_root(rows, expected):
    assert nlist_for(rows) == expected


@pytest.mark.parametrize(
    ("nlist", "rows", "expected"),
    [
        (1024, 0, True),
        (65_536, 1_000, True),  # few rows: any number does
        (1024, 65_536, True),
        (1024, 262_144, True),  # 2048: twice as many
        (1024, 300_000, False),  # 2191
        (8000, 1_000_000, True),
        (8001, 1_000_000, False),
    ],
)
def test_within_a_factor_of_two(nlist, rows, expected):
    assert fits(nlist, rows) is expected


def test_typical_rows():
    # Small segments have no index. Of 4,000 rows, 3,000 lie among 3,000 and 1,000 are too few to count.
    assert typical_rows([3_000, 1_000]) == 3_000
    # A quarter of the rows lie in the small one: 1/4 * 2,000 + 3/4 * 6,000.
    assert typical_rows([2_000, 6_000]) == 5_000
    assert typical_rows([]) == typical_rows([1_023]) == 0


def test_the_share_of_clusters_stays():
    assert nprobe_for(1024, 1024, 32) == 32
    assert nprobe_for(4096, 1024, 32) == 128
    assert nprobe_for(10, 1024, 32) == 1
    server = Engine(False, (2, 5, 0), "Milvus 2.5.0")
    assert server.search(Schema(), 10, 8000)["params"] == {"nprobe": 250}
    assert server.search(Schema(), 10)["params"] == {"nprobe": 32}


class Indexed(MemoryStore):
    """A store whose indexes are as a test says."""

    def __init__(self, *found: IndexLists) -> None:
        super().__init__("images")
        self.create(Description(Schema(), "0" * 16))
        self.indexes = self
        self.found = list(found)

    def lists(self):
        return self.found

    def rebuild(self, collection, nlist):
        self.found = [
            IndexLists(i.collection, nlist if i.collection == collection else i.nlist, i.rows) for i in self.found
        ]


def test_the_doctor_asks_for_another_index_and_builds_it():
    store = Indexed(IndexLists("images", 1024, 5_000_000), IndexLists("images_regions", 1024, 90_000))
    first, second = doctor._indexes(store, repair=False)
    assert (first.ok, second.ok) == (False, True)
    assert first.message == "'images', nlist 1024, but segments of 5,000,000 rows need about 8944 (4 times the root)"
    assert first.remedy.startswith("mgm doctor --repair builds it again")
    assert [check.ok for check in doctor._indexes(store, repair=True)] == [True, True]
    assert [index.nlist for index in store.found] == [8944, 1024]
    assert [check.ok for check in doctor._indexes(store, repair=False)] == [True, True]


def test_a_load_makes_the_index_for_the_rows_to_come():
    store = Indexed(IndexLists("images", 1024, 0), IndexLists("images_regions", 1024, 0))
    schema = Schema.load("regions")
    fit_index(store, schema, 50_000)
    # Few images, but 29 regions of each: 4 times the root of 1,450,000.
    assert [index.nlist for index in store.found] == [1024, 4817]
    fit_index(store, schema, 10**9)
    # Segments of 1 GiB: 4,709,393 images of 228 bytes, 18,199,014 regions of 59.
    assert [index.nlist for index in store.found] == [8680, 17064]


def test_where_there_is_no_such_index_nothing_is_said():
    assert list(doctor._indexes(MemoryStore("images"), repair=True)) == []
    assert list(doctor._indexes(Indexed(), repair=True)) == []
