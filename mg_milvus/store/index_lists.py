"""How many clusters (lists) a BIN_IVF_FLAT index should have, and how many a query looks into. Pure arithmetic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FEWEST_ROWS = 1_024
"""Rows of a segment from which on Milvus builds an index at all."""
FEW_ROWS = 65_536
"""Rows of a segment up to which any number of clusters does: comparing with all of them takes about a millisecond."""
MOST_LISTS = 65_536
"""The most that Milvus takes."""
_SEGMENT = 1 << 30
"""Bytes of rows in a sealed segment (dataCoord.segment.maxSize); each has an index of its own."""


def nlist_for(rows: int) -> int:
    """Clusters for the rows of one segment: 4 times their root, as Milvus and FAISS advise; 1 to 65,536."""
    return min(MOST_LISTS, max(1, round(4 * math.sqrt(rows))))


def fits(nlist: int, rows: int) -> bool:
    """Whether so many clusters are within a factor of two of what the rows of a segment ask for, or these are few.

    Nearer is no better: recall and time change slowly with it, while an index that is built again is hours of work.
    """
    return rows <= FEW_ROWS or nlist_for(rows) / 2 <= nlist <= nlist_for(rows) * 2


def rows_a_segment(rows: int, row_bytes: float) -> int:
    """Rows of a sealed segment when there are so many of this size."""
    return min(rows, max(1, int(_SEGMENT / row_bytes)))


def typical_rows(segments: Sequence[int]) -> int:
    """Rows of the segment that a row drawn at random lies in, on average; small ones are not indexed and not counted.

    Args:
        segments: rows of each.

    Returns:
        0 when none is large enough for an index.
    """
    indexed = [rows for rows in segments if rows >= FEWEST_ROWS]
    return round(sum(rows * rows for rows in indexed) / sum(indexed)) if indexed else 0


def nprobe_for(nlist: int, wanted_nlist: int, wanted_nprobe: int) -> int:
    """Clusters to look into: the share of them that the schema asks for, whatever their number has become."""
    return min(nlist, max(1, round(nlist * wanted_nprobe / wanted_nlist)))
