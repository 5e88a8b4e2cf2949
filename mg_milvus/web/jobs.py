"""Concurrent queries are encoded together: the network takes several images in little more time than one."""

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


class Batcher(Generic[In, Out]):
    """Calls a function of many items with whatever waits while the last call runs; nobody waits for company.

    Belongs to one event loop.
    """

    def __init__(
        self, function: Callable[[Sequence[In]], Sequence[Out]], largest: int, observe: Callable[[int], None]
    ) -> None:
        """``function`` runs in a thread of its own, with up to ``largest`` items; ``observe`` is told each size."""
        self._function, self._largest, self._observe = function, largest, observe
        self._waiting: list[tuple[In, asyncio.Future[Out]]] = []
        self._thread = ThreadPoolExecutor(1, "mgm-encode")
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: In) -> Out:
        """The function's answer for one item; what it raises is raised for every item of the batch."""
        answer: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

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
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), result in zip(batch, results, strict=True):
                if not answer.done():  # whoever asked may have gone
                    answer.set_result(result)


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
        done: images finished, failed ones included.
        total: images to do.
        failed: images that could not be read.
        report: what was done, as ``mgm ingest --json`` says it; None while it runs.
        error: why it failed.
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
