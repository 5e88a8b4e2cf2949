"""Background work: dynamic batching of concurrent queries, ingests, and their progress as server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mg_milvus.errors import MgMilvusError, ServeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from mg_milvus.index import ImageIndex
    from mg_milvus.records import Progress


In = TypeVar("In")
Out = TypeVar("Out")


class DynamicBatcher(Generic[In, Out]):
    """Dynamic batching: calls a function with all items that arrived while its last call ran.

    The encoder takes several images in little more time than one. A single item never waits for others. Belongs to one
    event loop.
    """

    def __init__(
        self, function: Callable[[Sequence[In]], Sequence[Out]], largest: int, observe: Callable[[int], None]
    ) -> None:
        """``function`` runs in its own thread with at most ``largest`` items; ``observe`` gets each batch size."""
        self._function, self._largest, self._observe = function, largest, observe
        self._waiting: list[tuple[In, asyncio.Future[Out]]] = []
        self._thread = ThreadPoolExecutor(1, "mgm-encode")
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: In) -> Out:
        """The function's result for one item; an error is raised for every item of the batch."""
        result: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await result

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
            self._observe(len(batch))
            try:
                results = await loop.run_in_executor(self._thread, self._function, [item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - raised where the items wait
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():  # cancelled: the client is gone
                    future.set_result(result)


POLL_SECONDS = 0.2
KEEPALIVE_SECONDS = 15.0
"""Seconds without a change after which a comment keeps proxies from closing the stream."""


@dataclass(slots=True)
class Job:
    """One ingest or search for near-duplicates.

    Attributes:
        id: of the job.
        state: ``running``, ``done`` or ``failed``.
        stage: the current step, in words.
        done: images finished, failed ones included.
        total: images to do.
        failed: images that could not be read.
        report: the result, as ``mgm ingest --json`` prints it; None while it runs.
        error: the reason for a failure.
    """

    id: str
    state: str = "running"
    stage: str = "looking for images"
    done: int = 0
    total: int = 0
    failed: int = 0
    report: dict[str, Any] | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return asdict(self)


class IngestRunner:
    """Runs ingests into one index. Safe to use from several threads."""

    def __init__(self, index: ImageIndex, max_pixels: int) -> None:
        self._index, self._max_pixels = index, max_pixels
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.job: Job | None = None

    def start(self, sources: Sequence[Path], top: Path) -> Job:
        """Start an ingest of folders and files; links that lead out of ``top`` are not followed.

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
        """Stop the running ingest after its batch; what was written stays."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self, job: Job, sources: Sequence[Path], top: Path) -> None:
        def report_progress(progress: Progress) -> None:
            job.stage, job.done, job.total = progress.stage, progress.done, progress.total
            job.failed = progress.failed
            if self._stop.is_set():
                raise KeyboardInterrupt  # ends the ingest with a report

        try:
            report = self._index.ingest(*sources, max_pixels=self._max_pixels, progress=report_progress, inside=top)
            job.report, job.state = report.as_dict(), "done"
        except MgMilvusError as error:
            job.error, job.state = str(error), "failed"
        except Exception as error:
            job.error, job.state = bug_message(error), "failed"
            raise


def bug_message(error: Exception) -> str:
    """The message of an unexpected error; the error's own text may hold what is not for clients."""
    return f"unexpected {type(error).__name__}: a bug in mg-milvus, its log holds the traceback"


async def events(job: Job, shutdown: threading.Event) -> AsyncIterator[str]:
    """Server-sent events: the state, now and at each change, until the job or the server ends."""
    last, quiet = None, 0.0
    while True:
        state = job.as_dict()
        if state != last:
            yield f"data: {json.dumps(state)}\n\n"
            last, quiet = state, 0.0
        elif quiet >= KEEPALIVE_SECONDS:
            yield ": running\n\n"
            quiet = 0.0
        if state["state"] != "running" or shutdown.is_set():
            return
        await asyncio.sleep(POLL_SECONDS)
        quiet += POLL_SECONDS
