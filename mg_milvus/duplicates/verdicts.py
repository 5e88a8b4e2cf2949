"""The verdicts on many pairs of images: in parallel, and kept on disk by the content of the files."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import quote

from mg_milvus.duplicates.looks import Detail, look, read_pixels
from mg_milvus.duplicates.verify import Verdict, verdict
from mg_milvus.errors import ImageError
from mg_milvus.files import cache_folder, make_folder
from mg_milvus.images.discover import text_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from mg_milvus.duplicates.looks import Array, Look
    from mg_milvus.store.base import Row

    Pair = tuple[Row, Row]

Key = TypeVar("Key")
Value = TypeVar("Value")

VERSION = 4
"""Of the rules in ``looks`` and ``verify``: verdicts of another version are forgotten."""
_MOST_KEPT = 2_000_000
"""Verdicts on disk, some 50 bytes each; when there are more, all are forgotten."""
_LOOKS, _DETAILS, _PIXELS = 10_000, 1024, 96
"""Looks (22 kB each), details (80 kB) and pixels (up to 1 MB) in memory."""


def cache_file() -> Path:
    """The file that keeps the verdicts."""
    return cache_folder("verdicts") / "pairs.sqlite"


def kept_verdicts() -> tuple[int, int]:
    """The number of verdicts kept, and the bytes of their file; no verdict is kept in one that is damaged."""
    file, size = cache_file(), 0
    try:
        size = file.stat().st_size
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as kept:
            return kept.execute("select count(*) from pairs").fetchone()[0], size
    except (OSError, sqlite3.Error):
        return 0, size


def clear_verdicts() -> None:
    """Forget all verdicts."""
    with suppress(OSError):
        cache_file().unlink()


class _Once(Generic[Key, Value]):
    """Values that are computed once, whichever thread asks first; the least recently used ones are forgotten."""

    def __init__(self, compute: Callable[[Key], Value], most: int) -> None:
        self._compute, self._most = compute, most
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Future[Value]] = OrderedDict()

    def get(self, key: Key) -> Value:
        with self._lock:
            future = self._values.get(key)
            own = future is None
            if future is None:
                future = self._values[key] = Future()
                if len(self._values) > self._most:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
        if own:
            try:
                future.set_result(self._compute(key))
            except BaseException as error:  # noqa: BLE001 - raised where the value is asked for
                future.set_exception(error)
        return future.result()


class Verdicts:
    """Looks at images and keeps what it saw; one for each search. Close it, or use it as a context manager."""

    def __init__(self) -> None:
        self.unreadable: set[str] = set()
        self._pixels: _Once[str, tuple[bytes, Array]] = _Once(lambda path: read_pixels(text_path(path)), _PIXELS)
        self._looks: _Once[str, Look] = _Once(lambda path: look(*self._pixels.get(path)), _LOOKS)
        self._details: _Once[str, Detail] = _Once(lambda path: Detail(lambda: self._pixels.get(path)[1]), _DETAILS)
        self._kept = _open()

    def __enter__(self) -> Verdicts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept is not None:
            self._kept.close()

    def of(
        self, pairs: Iterable[Pair], on_pair: Callable[[int], None] = lambda _: None
    ) -> Iterator[tuple[Pair, Verdict | None]]:
        """Yield each pair with its verdict, in order; None where one of the two cannot be read.

        Args:
            pairs: rows whose files are there; a row without a content hash is one whose file has changed since.
            on_pair: called with the number of pairs done.
        """
        cores = os.cpu_count() or 1
        waiting: deque[tuple[Pair, Verdict | Future[Verdict | None] | None]] = deque()
        done = 0
        pool = ThreadPoolExecutor(cores, "mgm-verify")
        try:
            for pair in pairs:
                known = self._known(*pair)
                waiting.append((pair, pool.submit(self._judge, *pair) if known is None else known))
                while len(waiting) > 8 * cores:
                    done += 1
                    yield self._finish(*waiting.popleft())
                    on_pair(done)
            for pair, found in waiting:
                done += 1
                yield self._finish(pair, found)
                on_pair(done)
        finally:
            pool.shutdown(cancel_futures=True)

    def _finish(self, pair: Pair, found: Verdict | Future[Verdict | None] | None) -> tuple[Pair, Verdict | None]:
        if not isinstance(found, Future):
            return pair, found
        result = found.result()
        keys = _keys(*pair)
        if result is not None and keys is not None and self._kept is not None:
            with suppress(sqlite3.Error):  # a cache that cannot be written is no reason to fail
                self._kept.execute("insert or replace into pairs values (?, ?, ?)", (*keys, result.value))
        return pair, result

    def _known(self, left: Row, right: Row) -> Verdict | None:
        keys = _keys(left, right)
        if keys is None:
            return None
        if keys[0] == keys[1]:
            return Verdict.IDENTICAL
        if self._kept is None:
            return None
        try:
            found = self._kept.execute("select verdict from pairs where a = ? and b = ?", keys).fetchone()
        except sqlite3.Error:
            return None
        return None if found is None else Verdict(found[0])

    def _judge(self, left: Row, right: Row) -> Verdict | None:
        seen = []
        for row in (left, right):
            try:
                seen.append((self._looks.get(row.path), row.path))
            except (ImageError, OSError):
                self.unreadable.add(row.path)
        if len(seen) < 2:
            return None
        (one, first), (two, second) = sorted(seen, key=lambda each: each[0].content)
        try:
            return verdict((one, two), lambda: (self._details.get(first), self._details.get(second)))
        except (ImageError, OSError):  # they were there a moment ago
            self.unreadable |= {first, second}
            return None


def _keys(left: Row, right: Row) -> tuple[bytes, bytes] | None:
    """The contents of two files in order; None where one is not known."""
    if not left.content_hash or not right.content_hash:
        return None
    a, b = sorted(bytes.fromhex(row.content_hash) for row in (left, right))
    return a, b


def _open() -> sqlite3.Connection | None:
    """The kept verdicts of this version; None where they cannot be opened."""
    file = cache_file()
    for _ in range(2):
        try:
            make_folder(file.parent)
            kept = sqlite3.connect(file, timeout=1, isolation_level=None)  # others write, too: no long transactions
            kept.execute("pragma synchronous = off")
            version = kept.execute("pragma user_version").fetchone()[0]
            kept.execute(
                "create table if not exists pairs (a blob, b blob, verdict text, primary key (a, b)) without rowid"
            )
            if version != VERSION or kept.execute("select count(*) from pairs").fetchone()[0] > _MOST_KEPT:
                kept.execute("delete from pairs")
                kept.execute(f"pragma user_version = {VERSION}")
        except (OSError, sqlite3.OperationalError):
            return None
        except sqlite3.DatabaseError:
            clear_verdicts()  # damaged: it can be computed again
        else:
            return kept
    return None
