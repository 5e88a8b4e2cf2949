"""Which pictures of a shard are encoded already, and which of its rows are out of date."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.errors import CodeFileError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from mg_milvus.images.discover import Found

_ROW = np.dtype([("high", np.uint64), ("low", np.uint64), ("size", np.int64), ("mtime_ns", np.int64)])
_CHUNK = 65_536


def superseded(ids: Iterable[str]) -> NDArray[np.bool_]:
    """Whether a later row has the same id: (n,) in the order of the rows. 24 bytes of memory a row.

    Raises:
        CodeFileError: what is no id.
    """
    chunks = [np.empty((0, 2), np.uint64)]
    rest = iter(ids)
    while some := list(islice(rest, _CHUNK)):
        chunks.append(np.array([_halves(key) for key in some], np.uint64))
    table = np.concatenate(chunks)
    order = np.lexsort((table[:, 1], table[:, 0]))  # stable: those of one id stay in order
    found = np.zeros(len(table), np.bool_)
    found[order[:-1]] = (table[order[1:]] == table[order[:-1]]).all(axis=1)
    return found


def _halves(key: str) -> tuple[int, int]:
    try:
        return int(key[:16], 16), int(key[16:], 16)
    except ValueError as error:
        raise CodeFileError(f"{key!r} is not the id of a picture: expected 32 hexadecimal digits") from error


class Finished:
    """The pictures that the parts of one shard have: 32 bytes of memory a picture."""

    def __init__(self, stamps: Iterable[tuple[str, int, int]]) -> None:
        """Read id, size and mtime_ns of each row, in the order of the parts; of several of one id the last counts."""
        chunks, rows = [], []
        for key, size, mtime_ns in stamps:
            rows.append((*_halves(key), size, mtime_ns))
            if len(rows) == _CHUNK:
                chunks.append(np.array(rows, _ROW))
                rows = []
        table = np.concatenate([*chunks, np.array(rows, _ROW)])
        self._table = table[np.lexsort((table["low"], table["high"]))]  # stable: those of one id stay in order

    def __len__(self) -> int:
        return len(self._table)

    def has(self, key: str, found: Found) -> bool:
        """Whether a picture is there as it is now: of the same size, where that is known, and the same time."""
        high, low = np.uint64(int(key[:16], 16)), np.uint64(int(key[16:], 16))
        end = int(np.searchsorted(self._table["high"], high, side="right"))
        while end and self._table["high"][end - 1] == high:
            row = self._table[end - 1]
            if row["low"] == low:
                return bool(found.size in (-1, row["size"]) and found.mtime_ns == row["mtime_ns"])
            end -= 1
        return False
