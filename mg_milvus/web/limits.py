"""How much the page does at once: bodies in memory, streams, and what takes long. The rest is told to come again."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import anyio

from mg_milvus.errors import FilterError
from mg_milvus.store.filters import blank_literals, patterns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")
RETRY_SECONDS = 5
MOST_BODIES = 256
BODIES_OF_LARGEST = 4
"""Bodies in memory may have so many times the bytes of the largest image that is taken, together."""

MOST_UPLOADS = 100_000
MOST_UPLOADED_BYTES = 50_000_000_000
LEAST_FREE_BYTES = 200_000_000
LOOK_AGAIN_SECONDS = 60.0
"""After so long the folder of uploads is counted anew: others may add to it and take from it."""

FILTERS_AT_ONCE = 2
FILTERS_WAITING = 32
FILTER_SECONDS = 30.0

LONGEST_FILTER = 4000
MOST_LISTED = 500
MOST_PATTERNS = 10
LONGEST_PATTERNS = 200
"""Characters of all patterns together."""


class BusyError(Exception):
    """Too much is being done already; the message says what."""


class Places:
    """A number of places that are taken and given back. Belongs to one event loop."""

    def __init__(self, most: int, what: str) -> None:
        """``what`` is under way ``most`` times at most."""
        self._most, self._what, self._taken = most, what, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            BusyError: none is free.
        """
        if self._taken >= self._most:
            raise BusyError(f"{self._taken} {self._what} are under way already: try again in a few seconds")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class Intake:
    """The bodies that are in memory. Belongs to one event loop."""

    def __init__(self, largest: int) -> None:
        """``largest`` bytes has the largest body that is taken."""
        self._places = Places(MOST_BODIES, "uploads")
        self._most, self._bytes = BODIES_OF_LARGEST * largest, 0

    @contextmanager
    def body(self) -> Iterator[Body]:
        """A body that is in memory until the end of the block.

        Raises:
            BusyError: there are too many.
        """
        with self._places.one():
            body = Body(self)
            try:
                yield body
            finally:
                self._bytes -= body.size

    def add(self, count: int) -> None:
        """Count bytes that have come.

        Raises:
            BusyError: there are too many; these were not counted.
        """
        if self._bytes + count > self._most:
            raise BusyError(
                f"uploads of {self._bytes:,} bytes are under way already, at most {self._most:,} are taken at once: "
                "try again in a few seconds"
            )
        self._bytes += count


class Body:
    """One of the bodies in memory."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self.size = intake, 0

    def add(self, count: int) -> None:
        """Count bytes that have come; see ``Intake.add``."""
        self._intake.add(count)
        self.size += count


class Filtering:
    """Runs what asks Milvus with a filter, a few at a time and not for ever. Belongs to one event loop."""

    def __init__(self, seconds: float = FILTER_SECONDS) -> None:
        self._seconds = seconds
        self._places = Places(FILTERS_WAITING, "queries with a filter")
        self._free = asyncio.Semaphore(FILTERS_AT_ONCE)

    async def run(self, function: Callable[[], T]) -> T:
        """The function's answer, from a thread. One that takes too long goes on, and keeps its place until its end.

        Raises:
            BusyError: it took too long, or too many wait.
        """
        loop, began = asyncio.get_running_loop(), False

        def work() -> T:
            nonlocal began
            began = True
            try:
                return function()
            finally:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._free.release)

        with self._places.one():
            try:
                async with asyncio.timeout(self._seconds):
                    await self._free.acquire()
                    try:
                        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
                    finally:
                        if not began:
                            self._free.release()
            except TimeoutError as error:
                raise BusyError(
                    f"the filter took longer than {self._seconds:.0f} seconds: ask with one that is simpler"
                ) from error


class FullError(Exception):
    """The folder of uploads takes no more; the message says why."""


class Room:
    """What the folder of uploads may still take. Safe to use from several threads."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._looked, self._files, self._bytes = -math.inf, 0, 0

    def check(self) -> None:
        """Refuse an upload before it is read.

        Raises:
            FullError: too many files, too many bytes, or too little is left of the disk.
        """
        if self._folder is None or not self._folder.is_dir():
            return
        with self._lock:
            if time.monotonic() - self._looked > LOOK_AGAIN_SECONDS:
                with os.scandir(self._folder) as entries:
                    sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
                self._looked, self._files, self._bytes = time.monotonic(), len(sizes), sum(sizes)
            files, size = self._files, self._bytes
        if files >= MOST_UPLOADS or size >= MOST_UPLOADED_BYTES:
            raise FullError(
                f"the folder of uploads holds {files:,} files of {size:,} bytes, at most {MOST_UPLOADS:,} of "
                f"{MOST_UPLOADED_BYTES:,} are kept: start mgm serve with --upload-to ANOTHER_FOLDER"
            )
        if shutil.disk_usage(self._folder).free < LEAST_FREE_BYTES:
            raise FullError(
                f"the disk of the folder of uploads has less than {LEAST_FREE_BYTES:,} bytes left: free some"
            )

    def add(self, size: int) -> None:
        """Count an upload that was kept."""
        with self._lock:
            self._files += 1
            self._bytes += size


def check_filter(where: str | None) -> None:
    """Refuse filters that would keep Milvus busy: whoever may ask the page has not to be who runs the server.

    Raises:
        FilterError: it is too long, or lists or matches too much.
    """
    if where is None:
        return
    if len(where) > LONGEST_FILTER:
        raise FilterError(f"the filter has {len(where):,} characters, the page takes {LONGEST_FILTER:,}: shorten it")
    listed, matched = blank_literals(where).count(","), patterns(where)
    if listed >= MOST_LISTED:
        raise FilterError(f"the filter lists {listed + 1} values, the page takes {MOST_LISTED}: ask for fewer")
    if len(matched) > MOST_PATTERNS:
        raise FilterError(f"the filter says 'like' {len(matched)} times, the page takes {MOST_PATTERNS}: ask for fewer")
    if sum(map(len, matched)) > LONGEST_PATTERNS:
        raise FilterError(f"the patterns of the filter have more than {LONGEST_PATTERNS} characters: shorten them")
    for pattern in matched:
        if "%" in pattern.strip("%"):
            # Milvus tries all ways to divide a text among several %: seconds for each where texts are long.
            raise FilterError(
                f"the pattern '{pattern[:100]}' has a % between other characters, the page takes some at the beginning "
                "and the end: ask for the parts one by one, joined by `and`"
            )
