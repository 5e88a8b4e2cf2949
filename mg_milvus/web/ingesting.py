"""Ingests from the page: one at a time, in a thread of its own, told about as they go."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import MgMilvusError, ServeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from mg_milvus.hits import Progress
    from mg_milvus.index import ImageIndex

LOOK_SECONDS = 0.2
QUIET_SECONDS = 15.0
"""After so long without news a comment keeps proxies from closing the stream."""


@dataclass(slots=True)
class Job:
    """One ingest.

    Attributes:
        id: to ask for it.
        state: ``running``, ``done`` or ``failed``.
        stage: what is being done, for people.
        done: pictures finished, failed ones included.
        total: pictures to do.
        failed: pictures that could not be read.
        report: what was done, as ``mgm ingest --json`` says it; None while it runs.
        error: why it failed.
    """

    id: str
    state: str = "running"
    stage: str = "looking for pictures"
    done: int = 0
    total: int = 0
    failed: int = 0
    report: dict[str, Any] | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return asdict(self)


class Ingesting:
    """Runs ingests into one index. Safe to use from several threads."""

    def __init__(self, index: ImageIndex, max_pixels: int) -> None:
        self._index, self._max_pixels = index, max_pixels
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.job: Job | None = None

    def start(self, sources: Sequence[Path], top: Path) -> Job:
        """Begin an ingest of folders and files; nothing is read that links lead to from below ``top`` out of it.

        Raises:
            ServeError: another one is running.
        """
        with self._lock:
            if self.job is not None and self.job.state == "running":
                raise ServeError("an ingest is running already; wait for its end, or stop it")
            job = self.job = Job(secrets.token_hex(8))
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, args=(job, sources, top), name="mgm-ingest", daemon=True)
            self._thread.start()
        return job

    def stop(self) -> None:
        """Ask the running ingest to end after its batch; what was written stays."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self, job: Job, sources: Sequence[Path], top: Path) -> None:
        def show(progress: Progress) -> None:
            job.stage, job.done, job.total = progress.stage, progress.done, progress.total
            job.failed = progress.failed
            if self._stop.is_set():
                raise KeyboardInterrupt  # what ends an ingest with a report of what was done

        try:
            report = self._index.ingest(*sources, max_pixels=self._max_pixels, progress=show, inside=top)
            job.report, job.state = report.as_dict(), "done"
        except MgMilvusError as error:
            job.error, job.state = str(error), "failed"
        except Exception as error:
            job.error, job.state = unexpected(error), "failed"
            raise


def unexpected(error: Exception) -> str:
    """What visitors are told of a bug; what the error says of itself may not be for them."""
    return f"unexpected {type(error).__name__}: a bug in mg-milvus, its log holds the traceback"


async def events(job: Job, ending: threading.Event) -> AsyncIterator[str]:
    """Server-sent events: the state now, then whenever it changes, until the end of the job or of the server."""
    told, quiet = None, 0.0
    while True:
        state = job.as_dict()
        if state != told:
            yield f"data: {json.dumps(state)}\n\n"
            told, quiet = state, 0.0
        elif quiet >= QUIET_SECONDS:
            yield ": still at it\n\n"
            quiet = 0.0
        if state["state"] != "running" or ending.is_set():
            return
        await asyncio.sleep(LOOK_SECONDS)
        quiet += LOOK_SECONDS
