"""Rows whose file is at another place now: found by size, told by content, moved with their codes and fields."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from mg_milvus.images.discover import Found, image_id, text_path
from mg_milvus.images.paths import Disks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from mg_milvus.store.base import Row, Store


class Moves:
    """The rows that new files may be: same size, and a file that is no longer where the row says."""

    def __init__(self, store: Store, incomplete: AbstractSet[str] = frozenset()) -> None:
        self.taken: set[str] = set()
        self._store, self._incomplete, self._disks = store, incomplete, Disks()
        self._rows: dict[int, dict[str, list[Row]]] = {}

    def look_up(self, files: Sequence[Found]) -> None:
        """Read the rows of the sizes of new files, once for each size."""
        sizes = {file.size for file in files if file.size >= 0} - self._rows.keys()
        if not sizes:
            return
        self._rows |= {size: defaultdict(list) for size in sizes}
        for rows in self._store.scan(f"size in [{', '.join(map(str, sorted(sizes)))}]"):
            for row in rows:
                if row.id not in self._incomplete and self._disks.state(row.path) != "url":
                    self._rows[row.size][row.content_hash].append(row)

    def hashes(self, file: Found) -> frozenset[str]:
        """Content hashes of the rows that this new file may be."""
        known = self._rows.get(file.size, {})
        return frozenset(
            content
            for content, rows in known.items()
            if any(row.id not in self.taken and self._disks.moved(row.path, file.path) for row in rows)
        )

    def take(self, file: Found, content_hash: str) -> Row | None:
        """The row whose file this is now; of several the one whose path ends alike most, and each only once."""
        rows = self._rows.get(file.size, {}).get(content_hash, [])
        free = [row for row in rows if row.id not in self.taken and self._disks.moved(row.path, file.path)]
        if not free:
            return None
        chosen = min(free, key=lambda row: (-_alike(row.path, file.path), row.path))
        self.taken.add(chosen.id)
        return chosen


def moved_to(row: Row, path: str, region_codes: bytes = b"") -> Row:
    """The row at another path; size and time stay, so that the next ingest looks at the file."""
    return replace(row, id=image_id(path), path=path, region_codes=region_codes)


def regions_of(store: Store, rows: Mapping[str, Row], *, regions: bool) -> dict[str, bytes]:
    """Codes of the regions of rows, empty where the schema has none; rows that lack some are left out."""
    return store.regions.codes(list(rows)) if regions and rows else dict.fromkeys(rows, b"")


def _alike(left: str, right: str) -> int:
    ends = zip(reversed(text_path(left).parts), reversed(text_path(right).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
