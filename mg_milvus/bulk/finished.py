"""Which pictures of a shard are encoded already: 32 bytes of memory a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.errors import CodeFileError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mg_milvus.images.discover import Found

_ROW = np.dtype([("high", np.uint64), ("low", np.uint64), ("size", np.int64), ("mtime_ns", np.int64)])
_CHUNK = 65_536


class Finished:
    """The pictures that the parts of one shard have."""

    def __init__(self, stamps: Iterable[tuple[str, int, int]]) -> None:
        """Read id, size and mtime_ns of each row, in the order of the parts; of several of one id the last counts."""
        chunks, rows = [], []
        try:
            for key, size, mtime_ns in stamps:
                rows.append((int(key[:16], 16), int(key[16:], 16), size, mtime_ns))
                if len(rows) == _CHUNK:
                    chunks.append(np.array(rows, _ROW))
                    rows = []
        except ValueError as error:
            raise CodeFileError(f"{key!r} is not the id of a picture: expected 32 hexadecimal digits") from error
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
