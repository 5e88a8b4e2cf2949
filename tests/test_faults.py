"""Ingests that are killed, and ingests that race: nothing is lost, nothing is twice, one encoder rules."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from conftest import make_photos
from pymilvus import MilvusClient
from servers import LiteServer

from mg_milvus import ImageIndex
from mg_milvus.images.discover import text_path

MGM = Path(sysconfig.get_path("scripts")) / "mgm"


def check_whole(uri: str, photos: Path) -> None:
    """Every file has one row, with the code that a fresh encoding gives."""
    files = {str(file) for file in photos.rglob("*.jpg")}
    with ImageIndex.open(uri) as index:
        rows = [row for batch in index._connection.store.scan() for row in batch]
        assert sorted(row.path for row in rows) == sorted(files)
        for batch in (rows[i : i + 64] for i in range(0, len(rows), 64)):
            hits = index.query_many([text_path(row.path) for row in batch], k=1)
            assert [sum(hit[0].distances.values()) for hit in hits] == [0] * len(batch)


def test_after_sigkill_a_rerun_completes(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=100)
    uri = str(tmp_path / "k.db")
    command = [MGM, "ingest", photos, "--uri", uri, "--batch-size", "8"]
    moments = random.Random(4)
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(2.0, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stderr
    check_whole(uri, photos)


def test_two_first_ingests_at_once_end_with_one_encoder(tmp_path: Path) -> None:
    """Different pictures, so that each would fit other heads."""
    server = LiteServer(tmp_path / "s.db")
    both = tmp_path / "both"
    make_photos(both / "one", per_kind=20)
    make_photos(both / "two", per_kind=25)
    try:
        processes = [
            subprocess.Popen(
                [MGM, "ingest", both / part, "--uri", server.uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for part in ("one", "two")
        ]
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        check_whole(server.uri, both)
        with ImageIndex.open(server.uri) as index:
            fingerprint = index.info().fingerprint
        client = MilvusClient(server.uri)
        kept = client.query("pictures_encoder", filter='id like "%:0"', output_fields=["id"])
        client.close()
        assert [row["id"] for row in kept] == [f"{fingerprint}:0"]
    finally:
        server.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    """Peak memory of ingests of 200 and of 1,200 pictures, both with shipped heads."""
    photos = make_photos(tmp_path / "photos", per_kind=400)
    few = sorted(photos.rglob("*.jpg"))[:200]
    code = (
        "import sys, resource; from mg_milvus import ImageIndex, Schema;"
        "s = Schema.from_yaml('encoder: {heads: fixed}'); i = ImageIndex.open('memory:', s);"
        "i._connection.store.upsert = lambda rows: None;"
        "r = i.ingest(*sys.argv[1:], batch_size=32); assert r.added in (200, 1200), r;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, *map(str, sources)], capture_output=True, check=True).stdout)
        for sources in (few, [photos])
    ]
    assert peaks[1] - peaks[0] < 20_000, "kilobytes"
