"""Concurrent questions are encoded together: the network takes several pictures in little more time than one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
