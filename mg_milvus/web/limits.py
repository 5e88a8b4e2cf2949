"""Limits of concurrent work: bodies in memory, streams, long searches, uploads; further requests get 503 or 507."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import anyio

from mg_milvus.errors import FilterError
from mg_milvus.store.filters import blank_literals, patterns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mg_milvus.store.base import Row

T = TypeVar("T")
RETRY_SECONDS = 5
MAX_BODIES = 256
MAX_BODIES_OF_LARGEST_SIZE = 4
"""All bodies in memory together may have this many times the bytes of the largest accepted image."""

MAX_UPLOADS = 100_000
MAX_UPLOADED_BYTES = 50_000_000_000
MIN_FREE_BYTES = 200_000_000
RECOUNT_SECONDS = 60.0
"""Seconds after which the folder of uploads is counted again: others may change it."""

FILTERS_AT_ONCE = 2
FILTERS_WAITING = 32
FILTER_SECONDS = 30.0

COUNTED_SECONDS = 60.0
MAX_REPORTS = 4
MAX_LISTS = 64
LIST_SECONDS = 600.0
"""Seconds for which a list can be fetched."""
Form = Literal["txt", "csv", "json", "zip"]

MAX_FILTER_LENGTH = 4000
MAX_LISTED_VALUES = 500
MAX_PATTERNS = 10
MAX_PATTERN_LENGTH = 200
"""Characters of all patterns together."""


class BusyError(Exception):
    """A limit is reached; the message says which."""


class Slots:
    """A fixed number of slots. Belongs to one event loop."""

    def __init__(self, most: int, what: str) -> None:
        """At most ``most`` slots are taken at once; ``what`` names them in messages."""
        self._most, self._what, self._taken = most, what, 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a slot for the block.

        Raises:
            BusyError: no slot is free.
        """
        if self._taken >= self._most:
            raise BusyError(f"{self._taken} {self._what} are under way already: try again in a few seconds")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class BodyBudget:
    """Limits the number and the bytes of the bodies in memory. Belongs to one event loop."""

    def __init__(self, largest: int) -> None:
        """``largest``: bytes of the largest accepted body."""
        self._slots = Slots(MAX_BODIES, "uploads")
        self._most, self._bytes = MAX_BODIES_OF_LARGEST_SIZE * largest, 0

    @contextmanager
    def body(self) -> Iterator[Body]:
        """Count a body until the end of the block.

        Raises:
            BusyError: there are too many.
        """
        with self._slots.take():
            body = Body(self)
            try:
                yield body
            finally:
                self._bytes -= body.size

    def add(self, count: int) -> None:
        """Count received bytes.

        Raises:
            BusyError: there are too many; these are not counted.
        """
        if self._bytes + count > self._most:
            raise BusyError(
                f"uploads of {self._bytes:,} bytes are under way already, at most {self._most:,} are accepted at once: "
                "try again in a few seconds"
            )
        self._bytes += count


class Body:
    """One of the bodies in memory."""

    def __init__(self, intake: BodyBudget) -> None:
        self._intake, self.size = intake, 0

    def add(self, count: int) -> None:
        """Count received bytes; see ``BodyBudget.add``."""
        self._intake.add(count)
        self.size += count


class FilterQueue:
    """Runs queries with a filter, a few at a time and with a time limit. Belongs to one event loop."""

    def __init__(self, seconds: float = FILTER_SECONDS) -> None:
        self._seconds = seconds
        self._slots = Slots(FILTERS_WAITING, "queries with a filter")
        self._free = asyncio.Semaphore(FILTERS_AT_ONCE)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in a thread. One that exceeds the time limit runs on, and keeps its slot until it ends.

        Raises:
            BusyError: it exceeded the time limit, or too many are waiting.
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

        with self._slots.take():
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
                    f"the filter took longer than {self._seconds:.0f} seconds: use a simpler one"
                ) from error


@dataclass(frozen=True, slots=True)
class PreparedList:
    """A list that waits to be fetched."""

    rows: Sequence[Row]
    form: Form
    until: float


class Lists:
    """Lists that were prepared and wait to be fetched: a few, for some minutes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lists: OrderedDict[str, PreparedList] = OrderedDict()

    def add(self, rows: Sequence[Row], form: Form) -> str:
        """Keep a list; its name, which cannot be guessed."""
        name = secrets.token_urlsafe(16)
        self._lists[name] = PreparedList(rows, form, time.monotonic() + LIST_SECONDS)
        while len(self._lists) > MAX_LISTS:
            self._lists.popitem(last=False)
        return name

    def get(self, name: str) -> PreparedList | None:
        """The list of a name; None where there is none, or none any more."""
        found = self._lists.get(name)
        return None if found is None or found.until < time.monotonic() else found


class CountCache:
    """Counts of values that took a pass over all rows, reused for a minute. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[float, Mapping[Any, int]]] = {}

    def get(self, name: str, count: Callable[[], Mapping[Any, int]]) -> Mapping[Any, int]:
        """The counts of a name, counted anew where they are older."""
        known = self._counts.get(name)
        if known is None or time.monotonic() - known[0] > COUNTED_SECONDS:
            known = time.monotonic(), count()
            with self._lock:
                self._counts[name] = known
        return known[1]

    def clear(self) -> None:
        """Forget them: the rows have changed."""
        with self._lock:
            self._counts.clear()


class Reports(Generic[T]):
    """The reports of the last searches for near-duplicates, by name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: OrderedDict[str, T] = OrderedDict()

    def add(self, report: T) -> str:
        """Keep a report; its name, which cannot be guessed."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._reports[name] = report
            while len(self._reports) > MAX_REPORTS:
                self._reports.popitem(last=False)
        return name

    def get(self, name: str) -> T | None:
        """The report of a name; None where there is none, or none any more."""
        return self._reports.get(name)


class UploadsFullError(Exception):
    """The folder of uploads is full; the message says why."""


class UploadQuota:
    """Limits the folder of uploads. Safe to use from several threads."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._looked, self._files, self._bytes = -math.inf, 0, 0

    def check(self) -> None:
        """Refuse an upload before it is read.

        Raises:
            UploadsFullError: too many files, too many bytes, or too little free disk space.
        """
        if self._folder is None or not self._folder.is_dir():
            return
        with self._lock:
            if time.monotonic() - self._looked > RECOUNT_SECONDS:
                with os.scandir(self._folder) as entries:
                    sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
                self._looked, self._files, self._bytes = time.monotonic(), len(sizes), sum(sizes)
            files, size = self._files, self._bytes
        if files >= MAX_UPLOADS or size >= MAX_UPLOADED_BYTES:
            raise UploadsFullError(
                f"the folder of uploads holds {files:,} files of {size:,} bytes, at most {MAX_UPLOADS:,} of "
                f"{MAX_UPLOADED_BYTES:,} are kept: start mgm serve with --upload-to ANOTHER_FOLDER"
            )
        if shutil.disk_usage(self._folder).free < MIN_FREE_BYTES:
            raise UploadsFullError(
                f"the disk of the folder of uploads has less than {MIN_FREE_BYTES:,} bytes left: free some"
            )

    def add(self, size: int) -> None:
        """Count an upload that was kept."""
        with self._lock:
            self._files += 1
            self._bytes += size


def check_filter(where: str | None) -> None:
    """Refuse filters that would keep Milvus busy: users of the page need not be trusted with the server.

    Raises:
        FilterError: it is too long, or lists or matches too much.
    """
    if where is None:
        return
    if len(where) > MAX_FILTER_LENGTH:
        raise FilterError(f"the filter has {len(where):,} characters, the page takes {MAX_FILTER_LENGTH:,}: shorten it")
    listed, matched = blank_literals(where).count(","), patterns(where)
    if listed >= MAX_LISTED_VALUES:
        raise FilterError(f"the filter lists {listed + 1} values, the page takes {MAX_LISTED_VALUES}: ask for fewer")
    if len(matched) > MAX_PATTERNS:
        raise FilterError(f"the filter says 'like' {len(matched)} times, the page takes {MAX_PATTERNS}: ask for fewer")
    if sum(map(len, matched)) > MAX_PATTERN_LENGTH:
        raise FilterError(f"the patterns of the filter have more than {MAX_PATTERN_LENGTH} characters: shorten them")
    for pattern in matched:
        if "%" in pattern.strip("%"):
            # Milvus tries all ways to divide a text among several %: seconds per pattern for long texts.
            raise FilterError(
                f"the pattern '{pattern[:100]}' has a % between other characters, the page takes some at the beginning "
                "and the end: ask for the parts one by one, joined by `and`"
            )
