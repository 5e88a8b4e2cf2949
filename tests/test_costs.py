"""What things cost that can be counted exactly: calls of Milvus, bytes over the wire and on disk, instructions.

Seconds are no matter of tests: machines are noisy, see ``make bench``. Calls and bytes are counted where they go over
the wire, between the program and Milvus Lite; instructions are counted by callgrind.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mg_milvus import session
from mg_milvus.config import MilvusConfig
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import open_store
from tests.conftest import make_photos
from tests.counted_instructions import FEW, MANY, work
from tests.counting import Relay, relay
from tests.servers import lite_server
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

CALLS = {
    "opening and counting": {
        "Connect": 1, "DescribeCollection": 8, "DescribeIndex": 1, "GetLoadState": 1, "Query": 1,
    },
    "the first query after a write": {"Search": 4},
    "a query": {"Search": 4},
    "five queries at once": {"Search": 4},
    "a query with a filter": {"Search": 4},
    "a query of one granularity": {"Search": 2},
    "a query that Milvus fuses": {"HybridSearch": 1, "Search": 1},
    "more like an image of the index": {"Search": 5},
    "two batches of new images": {
        "Upsert": 2, "Search": 1, "Query": 5, "DescribeCollection": 5, "DescribeIndex": 1, "GetLoadState": 1,
    },
    "images that are there": {
        "Search": 1, "Query": 1, "DescribeCollection": 4, "DescribeIndex": 1, "GetLoadState": 1,
    },
    "five images deleted": {"Delete": 1, "Search": 2},
    "the first detail": {"Search": 4, "Query": 1, "DescribeCollection": 1},
    "a detail": {"Search": 4, "Query": 1},
    "two batches of new images with regions": {
        "Upsert": 4, "Search": 1, "Query": 7, "DescribeCollection": 10, "DescribeIndex": 2, "GetLoadState": 2,
    },
    "five images with regions deleted": {"Delete": 2, "Search": 2},
}  # fmt: skip
"""How often Milvus is called; an ingest first reads which columns there are, and at its end how many images there were
when their random pairs were compared, and how many there are now, to say when heads should be fitted again. Whoever
changes a number here says why: each call takes a millisecond or more. The last search of a query looks up the rows of
its hits; rows of all candidates with the other searches take Milvus Lite longer than that."""

ANSWER_BYTES = 300
"""Most bytes that come back for one row that a granularity of a query finds: id, distance, columns, codes."""
FILE_BYTES = 690
"""Most bytes of an image in Milvus Lite's file: 271 of values; the names of all eleven columns and of the field for
columns that are added later, and 14 bytes for each, which Milvus Lite writes with every row (260); its key once more
and what SQLite notes of a row (106); what is left of a full page."""

INSTRUCTIONS = {
    "fusion of few": ("plain fusion of few", 0.4),
    "packing of few": ("bare packing of few", 1.05),
    "distances to few": ("bare distances to few", 1.0),
}
"""Work -> other work that does the same in the plainest way, and the most instructions as a share of it. Both are
counted in one run, so neither the machine nor the version of numpy matters much."""
FUSION_INSTRUCTIONS = 6000
"""Most instructions a candidate of three granularities (5,170 with numpy 2.4.6 on x86-64)."""

REGIONS = Schema.from_yaml("version: 1\nregions: {bits: 128, scales: [{size: 0.7, grid: 2}, {size: 0.5, grid: 3}]}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("costs") / "photos", 20)


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Relay, Path]]:
    """URI of a relay to a Milvus Lite, the relay, and the file."""
    file = tmp_path_factory.mktemp("wire") / "costs.db"
    with lite_server(file) as server, relay(server.uri) as (uri, counter):
        yield uri, counter, file


def calls_of(index: ImageIndex, photos: Path) -> dict[str, Callable[[], Any]]:
    """What ``CALLS`` names, but opening, in an order that leaves each its work to do."""
    disc = [photos / "disc" / f"{number:02}.jpg" for number in range(20)]
    if index.schema.regions:
        return {
            "two batches of new images with regions": lambda: index.ingest(photos / "stripes", batch_size=10),
            "the first detail": lambda: index.query(disc[0], regions="contains"),
            "a detail": lambda: index.query(disc[0], regions="contains"),
            "five images with regions deleted": lambda: index.delete(disc[:5]),
        }
    return {
        "two batches of new images": lambda: index.ingest(photos / "stripes", batch_size=10),
        "images that are there": lambda: index.ingest(photos / "stripes", batch_size=10),
        "the first query after a write": lambda: index.query(disc[0]),
        "a query": lambda: index.query(disc[0]),
        "five queries at once": lambda: index.query_many(disc[:5]),
        "a query with a filter": lambda: index.query(disc[0], filter="width > 5"),
        "a query of one granularity": lambda: index.query(disc[0], weights={"fine": 1}),
        "a query that Milvus fuses": lambda: index.query(disc[0], fusion="server", profile="balanced"),
        "more like an image of the index": lambda: index.like(disc[0]),
        "five images deleted": lambda: index.delete(disc[:5]),
    }


def test_how_often_milvus_is_called(
    wire: tuple[str, Relay, Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_CHECKED_FOR", math.inf)  # beside these calls, one a second
    uri, counter, _ = wire
    counted = {}
    for name, schema in {"whole": Schema(), "regions": REGIONS}.items():
        with ImageIndex.open(uri, schema=schema, collection=name) as index:
            index.ingest(photos / "disc")
            for what, action in calls_of(index, photos).items():
                with counter.watched() as traffic:
                    action()
                counted[what] = traffic.counted()
    with counter.watched() as traffic, ImageIndex.open(uri, collection="whole") as index:
        assert index.count() == 35
    counted["opening and counting"] = traffic.counted()
    assert counted == CALLS


def rows(first: int, count: int) -> list[Row]:
    random = np.random.default_rng(first)
    bits = Schema().bits
    return [
        Row(f"{n:032x}", f"/home/somebody/images/2024/holiday/IMG_{n:08}.jpg", 2_000_000, 1_700_000_000_000_000_000,
            4000, 3000, random.bytes(16).hex(), {name: random.bytes(length // 8) for name, length in bits.items()})
        for n in range(first, first + count)
    ]  # fmt: skip


def test_bytes_of_an_image(wire: tuple[str, Relay, Path]) -> None:
    uri, counter, file = wire
    store = open_store(MilvusConfig(uri, collection="bytes"))
    store.create(Description(Schema(), "0" * 16))
    sent = {}
    for count in (1000, 2000):
        with counter.watched() as traffic:
            store.upsert(rows(10_000 * count, count))
        sent[count] = traffic.sent("Upsert")
    # A text has a tag and its length before it. Numbers have seven bits a byte, least first: 2,000,000 has 21 bits,
    # both times 61, pixels 12, tags 0 or 49.
    texts = (2 + 32) + (2 + 51) + (2 + 32)
    numbers = 3 + 2 * 9 + 2 + 2 + 1
    codes = (64 + 128 + 256) // 8
    copied = 2 + 4 * math.ceil(codes / 3)  # once more as text, which a search of Milvus Lite can return
    row = texts + numbers + codes + copied
    assert row <= (sent[2000] - sent[1000]) / 1000 < row + 1  # beside that, only lengths of the columns

    before = file.stat().st_size
    store.upsert(rows(0, 4000))
    grown = (file.stat().st_size - before) / 4000
    print(f"{row} bytes sent, {grown:.1f} in the file")
    assert row < grown < FILE_BYTES

    with counter.watched() as traffic, ImageIndex.open(uri, collection="bytes") as index:
        hits = index.query_codes(rows(0, 4)[3].codes, depth=100)
        assert hits[0].path.endswith("IMG_00000003.jpg")
        found = 300
        print(f"{traffic.received() / found:.1f} bytes received a row found")
        assert traffic.received() < ANSWER_BYTES * found
    store.close()


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed (apt-get install valgrind)")
def test_instructions(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    subprocess.run(
        ["valgrind", "-q", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={counts}",
         sys.executable, "-m", "tests.counted_instructions"],
        cwd=Path(__file__).parent.parent, check=True, timeout=PATIENCE,
        env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    counted = {
        name: int(next(
            line for line in Path(f"{counts}.{2 * place}").read_text().splitlines() if line.startswith("totals:")
        ).split()[1])
        for place, name in enumerate(work(), 1)
    }  # fmt: skip
    print(counted)
    for name, (other, share) in INSTRUCTIONS.items():
        assert counted[name] <= share * counted[other], counted
    assert counted["fusion of few"] <= FUSION_INSTRUCTIONS * FEW, counted
    for name in ("fusion", "packing", "distances to"):
        few = f"{name} few" if name.endswith("to") else f"{name} of few"
        many = few.replace("few", "many")
        assert counted[many] <= 1.1 * MANY / FEW * counted[few], counted
