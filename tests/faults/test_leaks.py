"""Work that is done again and again leaves nothing open; the half hour of it is ``benchmarks/soak.py``."""

from __future__ import annotations

import gc
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from tests.conftest import make_photos
from tests.servers import lite_server
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux: counts in /proc/self")

SCHEMA = Schema.from_yaml("version: 1\nencoder: {heads: fixed}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("leaks") / "photos", per_kind=5)


@pytest.fixture(params=["file", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield str(tmp_path / "leaks.db")
    else:
        with lite_server(tmp_path / "leaks.db") as server:
            yield server.uri


def held() -> dict[str, int]:
    """Descriptors, threads and child processes of this process."""
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": len(children.read_text().split()) if children.exists() else 0,
    }


def more_than(before: dict[str, int]) -> dict[str, int]:
    """What is held beyond that; connections and threads may take a moment to end."""
    give_up = time.monotonic() + PATIENCE
    while True:
        now = held()
        more = {name: number - before[name] for name, number in now.items() if number > before[name]}
        if not more or time.monotonic() > give_up:
            return more
        time.sleep(0.05)


def ask(index: ImageIndex, image: Path, queries: int) -> None:
    for number in range(queries):
        fusion = ("rank", "score", "server")[number % 3]
        weights = dict.fromkeys(index.schema.bits, 1.0)
        assert len(index.like(image, k=3, fusion=fusion, weights=weights)) == 3


def work(uri: str, photos: Path) -> None:
    """Open, bring up to date, ask in every way, look, and remove an image, which the next one finds to be new."""
    image = photos / "disc" / "01.jpg"
    with ImageIndex.open(uri, SCHEMA) as index:
        report = index.ingest(photos, workers=1)
        assert (report.seen, report.failed) == (15, 0)
        first = index.query(image, k=1)[0]
        assert (first.path, set(first.distances.values())) == (str(image), {0})
        ask(index, image, 10)
        assert len(index.query(image, k=2, crop=(8, 8, 40, 40), filter="width > 10")) == 2
        assert sum(len(rows) for rows in index.session.store.scan()) == index.count() == 15
        assert index.delete([image]) == 1


def test_two_hundred_queries_and_twenty_openings_leave_nothing_open(uri: str, photos: Path) -> None:
    for _ in range(2):
        work(uri, photos)  # what is made once, such as the threads of torch and gRPC, is there
    before = held()
    with ImageIndex.open(uri) as index:
        assert index.count() == 14
        assert held()["descriptors"] > before["descriptors"]  # it would be seen
    for _ in range(3):
        work(uri, photos)
    for _ in range(17):
        with ImageIndex.open(uri) as index:
            ask(index, photos / "disc" / "02.jpg", 10)
    assert more_than(before) == {}


def test_sixteen_threads_get_the_answers_of_one(uri: str, photos: Path) -> None:
    queries = [
        {"k": 5, "fusion": fusion, "weights": {"coarse": 1, "mid": 1, "fine": 1}}
        for fusion in ("rank", "score", "server")
    ]
    random = np.random.default_rng(0)
    with ImageIndex.open(uri, SCHEMA) as index:
        index.ingest(photos)
        codes = [
            {name: random.integers(0, 256, bits // 8, dtype=np.uint8) for name, bits in index.schema.bits.items()}
            for _ in range(16)
        ]

        def ask(number: int) -> list[list[tuple[str, float]]]:
            return [[(hit.id, hit.score) for hit in index.query_codes(codes[number], **own)] for own in queries]

        alone = [ask(number) for number in range(16)]
        assert len({str(answer) for answer in alone}) > 8
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(ask, list(range(16)) * 3))
    assert together == alone * 3


def test_a_page_that_has_ended_is_freed_with_its_index() -> None:
    """Programs that mount the page, and tests, make many: each index has an encoder of tens of megabytes."""
    pytest.importorskip("fastapi", reason="the web page needs the extra web: pip install 'mg-milvus[web]'")
    from fastapi.testclient import TestClient

    from mg_milvus.web.app import create_app
    from mg_milvus.web.security import WebSettings

    def serve() -> tuple[weakref.ref[object], weakref.ref[object]]:
        with ImageIndex.open("memory:", SCHEMA) as index:
            app = create_app(index, WebSettings())
            with TestClient(app, base_url="http://127.0.0.1:8000") as client:
                for path in ("", "docs", "static/look.css", "browse", "overview", "duplicates", "api/openapi.json"):
                    assert client.get(f"/{path}").status_code == 200, path
            return weakref.ref(app), weakref.ref(index)

    app, index = serve()
    gc.collect()
    assert (app(), index()) == (None, None)
