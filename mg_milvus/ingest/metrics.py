"""Numbers for those who watch: the text format of Prometheus, which the page serves and an ingest writes to a file."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from mg_milvus.errors import QueryError
from mg_milvus.records import Failure, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Step = Literal["decode", "encode", "upsert"]


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds in seconds for what takes from milliseconds to seconds."""


class Histogram:
    """How many observations were at most so large. Guarded by its owner's lock."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one observation."""
        self._counts[next((i for i, bound in enumerate(self._bounds) if value <= bound), len(self._bounds))] += 1
        self._sum += value

    def samples(self, name: str, labels: Mapping[str, str] | None = None) -> Iterator[str]:
        """The lines of the text format; buckets count everything up to their bound."""
        own = dict(labels or {})
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield sample(f"{name}_bucket", total, own | {"le": str(bound)})
        yield sample(f"{name}_sum", round(self._sum, 6), own)
        yield sample(f"{name}_count", total, own)


def header(name: str, kind: str, told: str) -> list[str]:
    """The two lines before the samples of a metric: what it is, and of which kind (counter, gauge, histogram)."""
    escaped = told.replace("\\", "\\\\").replace("\n", "\\n")
    return [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"]


def sample(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    """One line: a name, its labels, a number."""
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in (labels or {}).items())
    return f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@dataclass(slots=True)
class Tally:
    """What has been done so far; a row counts once the store has acknowledged it."""

    total: int = 0
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)

    def progress(self, stage: str) -> Progress:
        """The state for a progress callback."""
        done = self.added + self.updated + self.unchanged + len(self.failures)
        return Progress(stage, done, max(self.total, done), len(self.failures), self.failures)


WRITE_SECONDS = 5.0
"""How often the file is written while the ingest runs."""

_LATENCIES = (*SECONDS, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: a batch takes long on an old processor, or on a server that is busy."""

_COUNTS = {
    "encoded": "Images that went through the encoder.",
    "added": "Images whose new row Milvus has acknowledged.",
    "updated": "Images whose changed row Milvus has acknowledged.",
    "unchanged": "Images whose row was right already.",
    "failed": "Images that could not be ingested.",
    "removed": "Images whose row was deleted because their file is gone.",
}
_QUEUES = {"decode": "files", "encode": "images", "upsert": "rows"}
"""Step of the pipeline -> what waits for it or is in it."""


class IngestMeters:
    """Counts of one ingest. Safe to use from several threads.

    Attributes:
        tally: what the ingest itself counts; read when the text is made.
    """

    def __init__(self) -> None:
        self.tally: Tally | None = None
        self._lock = threading.Lock()
        self._encoded = self._removed = self._rows = 0
        self._queues = dict.fromkeys(_QUEUES, 0)
        self._latencies = {step: Histogram(_LATENCIES) for step in _QUEUES}
        self._started, self._ended = time.time(), 0.0
        self._success = False

    @contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Measure one decoded image, one batch through the encoder, or one batch of rows into the store."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self._latencies[step].add(seconds)

    def queued(self, step: Step, change: int) -> None:
        """That many more, or with a negative number fewer, wait for a step or are in it."""
        with self._lock:
            self._queues[step] += change

    def emptied(self) -> None:
        """Nothing is on its way any more: the images that were are dropped."""
        with self._lock:
            self._queues["decode"] = self._queues["encode"] = 0

    def encoded(self, images: int) -> None:
        """Count images that went through the encoder."""
        with self._lock:
            self._encoded += images

    def written(self, rows: int) -> None:
        """Count rows that the store has acknowledged."""
        with self._lock:
            self._rows += rows

    def removed(self, rows: int) -> None:
        """Count rows that were deleted."""
        with self._lock:
            self._removed += rows

    def end(self, *, success: bool) -> None:
        """The ingest is over; only the first call counts."""
        with self._lock:
            if not self._ended:
                self._ended, self._success = time.time(), success

    def text(self) -> str:
        """All of it in the text format of Prometheus. While the ingest runs there is neither an end nor a success."""
        with self._lock:
            tally = self.tally
            counts = {
                "encoded": self._encoded,
                "added": tally.added if tally else 0,
                "updated": tally.updated if tally else 0,
                "unchanged": tally.unchanged if tally else 0,
                "failed": len(tally.failures) if tally else 0,
                "removed": self._removed,
            }
            lines = header("mgm_ingest_seen_images", "gauge", "Image files found; 0 until they are counted.")
            lines.append(sample("mgm_ingest_seen_images", tally.total if tally else 0))
            for name, told in _COUNTS.items():
                metric = f"mgm_ingest_{name}_images_total"
                lines += [*header(metric, "counter", told), sample(metric, counts[name])]
            lines += header("mgm_ingest_rows_written_total", "counter", "Rows that Milvus has acknowledged.")
            lines.append(sample("mgm_ingest_rows_written_total", self._rows))
            told = "What waits for a step of the pipeline or is in it: " + ", ".join(
                f"{what} to {step}" for step, what in _QUEUES.items()
            )
            lines += header("mgm_ingest_queue", "gauge", f"{told}.")
            lines += [sample("mgm_ingest_queue", depth, {"step": step}) for step, depth in self._queues.items()]
            lines += header(
                "mgm_ingest_step_seconds", "histogram",
                "How long a step took: decode of one image, encode and upsert of one batch.",
            )  # fmt: skip
            for step, latency in self._latencies.items():
                lines += latency.samples("mgm_ingest_step_seconds", {"step": step})
            times = {"start": (self._started, "began"), "end": (self._ended, "ended")}
            for name, (moment, verb) in times.items():
                if moment:
                    metric = f"mgm_ingest_{name}_time_seconds"
                    lines += header(metric, "gauge", f"When the ingest {verb}, in seconds since 1970.")
                    lines.append(sample(metric, round(moment, 3)))
            lines += header("mgm_ingest_running", "gauge", "1 while the ingest runs.")
            lines.append(sample("mgm_ingest_running", int(not self._ended)))
            if self._ended:
                lines += header("mgm_ingest_success", "gauge", "1 when the ingest came to its end, 0 when it did not.")
                lines.append(sample("mgm_ingest_success", int(self._success)))
        return "\n".join([*lines, ""])


class MetricsFile:
    """Keeps a file with the meters' text up to date, for node_exporter's textfile collector. A context manager.

    Every version of the file is whole: it is written beside and renamed. While the ingest runs, a version that cannot
    be written is passed over. Leaving it counts as the end of an ingest that has not told its own: a failure.
    """

    def __init__(self, file: str | os.PathLike[str], meters: IngestMeters, every: float = WRITE_SECONDS) -> None:
        self._file, self._meters, self._every = Path(file), meters, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="mgm-metrics", daemon=True)

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
            QueryError: the file cannot be written; what is being raised already goes before it.
        """
        self._over.set()
        self._thread.join()
        self._meters.end(success=False)
        try:
            self._write()
        except QueryError:
            if kind is None:
                raise

    def _keep(self) -> None:
        while not self._over.wait(self._every):
            with suppress(QueryError):
                self._write()

    def _write(self) -> None:
        # node_exporter reads *.prom, so it never sees this one.
        beside = self._file.with_name(f".{self._file.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(self._meters.text(), encoding="utf-8")
            beside.replace(self._file)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            raise QueryError(
                f"the metrics file {self._file} cannot be written: {error.strerror}; name a file in a folder that "
                "exists and may be written to"
            ) from error
