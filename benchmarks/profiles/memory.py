"""What holds the memory that Python knows of, numpy's arrays included, when it is most."""

from __future__ import annotations

import re
import tracemalloc

_PLACE = re.compile(r".*(?:site-packages/|lib/python[\d.]+/|/(?=mg_milvus/))")


class Held:
    """Takes note of what holds memory whenever a stage ends and it is more than before."""

    def __init__(self) -> None:
        self._most = 0.0
        self._snapshot: tracemalloc.Snapshot | None = None
        tracemalloc.start()

    def look(self, _: str = "") -> None:
        """Is it more than before?"""
        now = tracemalloc.get_traced_memory()[0]
        if now > 1.05 * self._most:
            self._most, self._snapshot = now, tracemalloc.take_snapshot()

    def table(self, rows: int = 10) -> dict[str, float]:
        """File -> megabytes, largest first, when it was most."""
        if self._snapshot is None:
            return {}
        largest = self._snapshot.statistics("filename")[:rows]
        return {_PLACE.sub("", entry.traceback[0].filename): entry.size / 1e6 for entry in largest}
