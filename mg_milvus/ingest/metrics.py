"""Metrics of an ingest, and the file in the Prometheus text format that they are written to."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mg_milvus.errors import QueryError
from mg_milvus.files import write_whole
from mg_milvus.records import Failure, Note, Progress

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from prometheus_client import Metric

    Step = Literal["decode", "encode", "upsert"]


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds in seconds for what takes from milliseconds to seconds."""


def exposition(registry: CollectorRegistry) -> str:
    """All metrics of a registry in the Prometheus text format."""
    return generate_latest(registry).decode("utf-8")


@dataclass(slots=True)
class Tally:
    """Counts of an ingest so far; a row counts once the store has acknowledged it."""

    total: int = 0
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    moved: int = 0
    failures: list[Failure] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    later: int = 0
    """Images encoded by heads that were fitted to others of the collection."""
    far: int = 0
    """Of these, images unlike those that the heads were fitted on."""

    def progress(self, stage: str) -> Progress:
        """The state for a progress callback."""
        done = self.added + self.updated + self.unchanged + self.moved + len(self.failures)
        return Progress(stage, done, max(self.total, done), len(self.failures), self.failures)


WRITE_SECONDS = 5.0
"""Seconds between two versions of the file while the ingest runs."""

_LATENCIES = (*SECONDS, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: a batch takes long on an old processor or a busy server."""

_STEPS: tuple[Step, ...] = ("decode", "encode", "upsert")


class IngestMetrics:
    """Metrics of one ingest, in a registry of its own. Safe to use from several threads.

    Attributes:
        tally: the counts that the ingest itself keeps; read when the text is made.
    """

    def __init__(self) -> None:
        self.tally: Tally | None = None
        self._registry = own = CollectorRegistry()
        self._seconds = Histogram(
            "mgm_ingest_step_seconds",
            "Duration of a step: decode of one image, encode and upsert of one batch.",
            ("step",),
            buckets=_LATENCIES,
            registry=own,
        )
        self._queue = Gauge("mgm_ingest_queue", "Items in or before a pipeline step.", ("step",), registry=own)
        for step in _STEPS:
            self._seconds.labels(step)
            self._queue.labels(step)
        self._encoded = Counter("mgm_ingest_encoded_images", "Images that went through the encoder.", registry=own)
        self._removed = Counter("mgm_ingest_removed_images", "Rows deleted because their file is gone.", registry=own)
        self._rows = Counter("mgm_ingest_rows_written", "Rows that Milvus has acknowledged.", registry=own)
        self._start, self._end, self._success = time.time(), 0.0, False
        own.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics whose values are kept elsewhere; the registry calls it for each text."""
        tally = self.tally or Tally()

        def counter(name: str, description: str, value: float) -> Metric:
            return CounterMetricFamily(f"mgm_ingest_{name}", description, value)

        def gauge(name: str, description: str, value: float) -> Metric:
            return GaugeMetricFamily(f"mgm_ingest_{name}", description, value)

        yield gauge("seen_images", "Image files found; 0 until they are counted.", tally.total)
        yield counter("added_images", "Images whose new row Milvus has acknowledged.", tally.added)
        yield counter("updated_images", "Images whose changed row Milvus has acknowledged.", tally.updated)
        yield counter("unchanged_images", "Images whose row was up to date.", tally.unchanged)
        yield counter("failed_images", "Images that could not be ingested.", len(tally.failures))
        yield gauge("start_time_seconds", "Start of the ingest, in seconds since 1970.", round(self._start, 3))
        yield gauge("running", "1 while the ingest runs.", int(not self._end))
        if self._end:
            yield gauge("end_time_seconds", "End of the ingest, in seconds since 1970.", round(self._end, 3))
            yield gauge("success", "1 after a complete ingest, 0 after a failed one.", int(self._success))

    @contextmanager
    def time(self, step: Step) -> Iterator[None]:
        """Measure one decoded image, one batch through the encoder, or one batch of rows into the store."""
        with self._seconds.labels(step).time():
            yield

    def queue(self, step: Step, change: int) -> None:
        """Change the number of items that wait for a step or are in it."""
        self._queue.labels(step).inc(change)

    def clear_queues(self) -> None:
        """Empty the queues before the encoder: decoding has ended, and what was decoded is dropped."""
        self._queue.labels("decode").set(0)
        self._queue.labels("encode").set(0)

    def count_encoded(self, images: int) -> None:
        """Count images that went through the encoder."""
        self._encoded.inc(images)

    def count_written(self, rows: int) -> None:
        """Count rows that the store has acknowledged."""
        self._rows.inc(rows)

    def count_removed(self, rows: int) -> None:
        """Count rows that were deleted."""
        self._removed.inc(rows)

    def end(self, *, success: bool) -> None:
        """Record the end of the ingest; only the first call counts."""
        if not self._end:
            self._success, self._end = success, time.time()

    def text(self) -> str:
        """All metrics in the Prometheus text format; the end and the success only once the ingest has ended."""
        return exposition(self._registry)


class MetricsFile:
    """Keep a file with the metrics up to date, for node_exporter's textfile collector. A context manager.

    Each version replaces the file atomically. A version that cannot be written while the ingest runs is skipped.
    Leaving the context ends an ingest that has not recorded its own end, as a failure.
    """

    def __init__(self, file: str | os.PathLike[str], metrics: IngestMetrics, every: float = WRITE_SECONDS) -> None:
        self._file, self._metrics, self._every = Path(file), metrics, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mgm-metrics", daemon=True)

    def __enter__(self) -> Self:
        """Write the first version.

        Raises:
            QueryError: the file cannot be written.
        """
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last version.

        Raises:
            QueryError: the file cannot be written, and no other exception is on its way.
        """
        self._stop.set()
        self._thread.join()
        self._metrics.end(success=False)
        try:
            self._write()
        except QueryError:
            if kind is None:
                raise

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            with suppress(QueryError):
                self._write()

    def _write(self) -> None:
        try:
            # node_exporter reads *.prom only, so it never sees the temporary file.
            write_whole(self._file, self._metrics.text().encode())
        except OSError as error:
            raise QueryError(
                f"the metrics file {self._file} cannot be written: {error.strerror}; name a file in a folder that "
                "exists and may be written to"
            ) from error
