"""Metrics of an ingest, read by Prometheus' own parser."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from mg_milvus.errors import QueryError, StoreError
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.metrics import IngestMetrics, MetricsFile
from mg_milvus.web.metrics import Metrics
from tests.cli.test_log import run
from tests.images import save_image
from tests.waiting import PATIENCE, wait_until


def values(text: str) -> dict[str, float]:
    """Name and labels -> value; every metric has a description and a known type."""
    found: dict[str, float] = {}
    for family in families(text):
        assert family.documentation
        assert family.type in {"counter", "gauge", "histogram"}
        for one in family.samples:
            key = "/".join([one.name, *(one.labels[name] for name in sorted(one.labels))])
            assert key not in found
            found[key] = one.value
    assert text.endswith("\n")
    return found


def test_the_page_uses_the_same_format() -> None:
    metrics = Metrics()
    metrics.request("GET", '/api/"x"', 200)
    metrics.query(0.02)
    found = values(metrics.text(7))
    assert found['mgm_requests_total/GET//api/"x"/200'] == 1
    assert (found["mgm_rows"], found["mgm_query_seconds_count"]) == (7, 1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(5):
        save_image(folder / f"{seed}.png", seed)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_what_was_done_is_counted(images: Path) -> None:
    before = time.time()
    with ImageIndex.open("memory:") as index:
        index.ingest(images, metrics=(first := IngestMetrics()), batch_size=2)
        (images / "0.png").unlink()
        save_image(images / "1.png", 99)
        index.ingest(images, metrics=(second := IngestMetrics()), prune=True)
    found = values(first.text())
    kinds = ("seen", "encoded", "added", "updated", "unchanged", "failed", "removed")

    def counts(found: dict[str, float]) -> list[float]:
        return [found.get(f"mgm_ingest_{k}_images_total", found.get(f"mgm_ingest_{k}_images")) for k in kinds]

    assert counts(found) == [6, 5, 5, 0, 0, 1, 0]
    assert found["mgm_ingest_rows_written_total"] == 5
    steps = {step: found[f"mgm_ingest_step_seconds_count/{step}"] for step in ("decode", "encode", "upsert")}
    assert steps["decode"] == 6
    assert 3 <= steps["encode"] == steps["upsert"] <= 4  # six files, one of them broken, in batches of two
    assert [found[f"mgm_ingest_queue/{step}"] for step in steps] == [0, 0, 0]
    assert (found["mgm_ingest_success"], found["mgm_ingest_running"]) == (1, 0)
    assert before - 1 <= found["mgm_ingest_start_time_seconds"] <= found["mgm_ingest_end_time_seconds"] <= time.time()
    found = values(second.text())
    assert counts(found) == [5, 1, 0, 1, 3, 1, 1]
    assert found["mgm_ingest_rows_written_total"] == 1


def test_queues_and_state_while_it_runs(images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The store is held up: what has been sent waits there, and the file tells so before the ingest ends."""
    metrics, file = IngestMetrics(), tmp_path / "mgm.prom"
    with ImageIndex.open("memory:") as index, MetricsFile(file, metrics, every=0.02):
        store = index.session.store
        upsert, free, reached = store.upsert, threading.Event(), threading.Event()

        def held(rows: object) -> None:
            reached.set()
            free.wait(PATIENCE)
            upsert(rows)

        monkeypatch.setattr(store, "upsert", held)
        work = threading.Thread(target=lambda: index.ingest(images, metrics=metrics, batch_size=2))
        work.start()
        try:
            assert reached.wait(PATIENCE)
            wait_until(lambda: values(file.read_text()).get("mgm_ingest_queue/upsert") == 2, "two batches wait")
            found = values(file.read_text())
            assert found["mgm_ingest_running"] == 1
            assert not {"mgm_ingest_success", "mgm_ingest_end_time_seconds"} & set(found)
            assert found["mgm_ingest_rows_written_total"] == 0
        finally:
            free.set()
            work.join()
    assert values(file.read_text())["mgm_ingest_rows_written_total"] == 5
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mgm.prom"]


def test_a_failure_is_told(images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mgm.prom"
    with ImageIndex.open("memory:") as index:

        def failing(_: object) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(index.session.store, "upsert", failing)
        metrics = IngestMetrics()
        with pytest.raises(StoreError, match="disk is full"), MetricsFile(file, metrics):
            index.ingest(images, metrics=metrics)
    found = values(file.read_text())
    for name in ("success", "running", "rows_written_total"):
        assert found[f"mgm_ingest_{name}"] == 0
    assert found["mgm_ingest_end_time_seconds"] >= found["mgm_ingest_start_time_seconds"]


def test_the_option(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "mgm.prom"
    done = run("ingest", images, "--uri", "memory:", "--metrics-file", file, "--json")
    report, found = json.loads(done.stdout), values(file.read_text())
    assert (done.exit_code, report["added"], report["failed"]) == (3, 5, 1)
    assert (found["mgm_ingest_added_images_total"], found["mgm_ingest_failed_images_total"]) == (5, 1)
    assert found["mgm_ingest_success"] == 1
    assert run("ingest", tmp_path / "nowhere", "--uri", "memory:", "--metrics-file", file).exit_code == 1
    assert values(file.read_text())["mgm_ingest_success"] == 0


def test_what_cannot_be_is_refused(images: Path, tmp_path: Path) -> None:
    done = run("ingest", images, "--uri", "memory:", "--metrics-file", tmp_path / "no" / "mgm.prom")
    assert done.exit_code == 1
    assert "mgm.prom cannot be written: No such file or directory" in done.stderr
    assert "added" not in done.stdout
    done = run("ingest", images, "--uri", "memory:", "--metrics-file", tmp_path / "mgm.prom", "--dry-run")
    assert done.exit_code == 2
    with pytest.raises(QueryError, match="cannot be written: Is a directory"), MetricsFile(tmp_path, IngestMetrics()):
        pass
