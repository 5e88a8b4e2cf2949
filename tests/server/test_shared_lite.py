"""One Milvus Lite for several programs: they ingest and ask at once, through the installed command."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mg_milvus.images.discover import text_path
from mg_milvus.index import ImageIndex
from mg_milvus.store import lite_server
from tests.conftest import make_photos
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

MGM = Path(sysconfig.get_path("scripts")) / "mgm"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A data file that ``mgm up`` serves."""
    file = tmp_path / "shared.db"
    subprocess.run([MGM, "up", "--data", file, "--port", "0"], check=True, stdout=subprocess.DEVNULL)
    yield file
    lite_server.down(file)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen([MGM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ingests_and_queries_of_several_programs_at_once(file: Path, tmp_path: Path) -> None:
    """Two ingest folders of their own, a third both of them; the others ask for what was there before."""
    both = tmp_path / "both"
    make_photos(both / "one", per_kind=16)
    for kind in ("disc", "stripes", "blocks"):
        (both / "two" / kind).mkdir(parents=True)
        for number in range(8, 16):
            (both / "one" / kind / f"{number:02}.jpg").rename(both / "two" / kind / f"{number:02}.jpg")
    first = sorted((both / "one" / "disc").glob("*.jpg"))[:4]
    files = {str(path) for path in both.rglob("*.jpg")}
    running = lite_server.served(file)
    assert running is not None
    with ImageIndex.open(running.uri) as index:
        index.ingest(*first)
        fingerprint = index.info().fingerprint

        ingests = [start("ingest", both / part, "--uri", running.uri, "--batch-size", "8") for part in ("one", "two")]
        ingests.append(
            start("ingest", both, "--uri", file, "--batch-size", "8")
        )  # by the file: it is led to the server
        queries = [start("query", first[0], "--uri", where, "--json", "-k", "5") for where in (running.uri, file)]
        programs = ingests + queries
        asked, sizes = 0, set()
        while any(program.poll() is None for program in programs):
            path = first[asked % len(first)]
            hits = index.query(path, k=10)
            assert (hits[0].path, set(hits[0].distances.values())) == (str(path), {0})
            assert len({hit.id for hit in hits}) == len(hits)
            assert {hit.path for hit in hits} <= files
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            sizes.add(index.count())
            asked += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                ingests[-1].wait(0.3)
        told = [program.communicate(timeout=PATIENCE) for program in programs]
        sizes.add(index.count())
        assert [program.returncode for program in programs] == [0] * len(programs), told
        answer = [json.loads(line) for line in told[-1][0].splitlines()]
        assert (answer[0]["path"], set(answer[0]["distances"].values())) == (str(first[0]), {0})
        assert 4 <= len(answer) <= 5
        assert {hit["path"] for hit in answer} <= files
        assert asked > 5
        assert {len(first), len(files)} <= sizes  # what was seen between is a matter of luck
        assert sorted(sizes)[0] >= len(first)

        assert index.info().fingerprint == fingerprint
        rows = [row for batch in index.session.store.scan() for row in batch]
        assert sorted(row.path for row in rows) == sorted(files)
        hits = index.query_many([text_path(row.path) for row in rows], k=1)
        assert [sum(hit[0].distances.values()) for hit in hits] == [0] * len(rows)  # as a fresh encoding has it
