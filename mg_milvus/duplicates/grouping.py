"""From near rows to a group: which to keep, which could go, how far apart they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.duplicates import DuplicateGroup, GroupMember
from mg_milvus.duplicates.calibration import FINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.store import Row

_AT_ONCE = 256


def _best(row: Row) -> tuple[Any, ...]:
    return -row.width * row.height, -row.size, row.mtime_ns, row.path


KEEP: dict[str, Callable[[Row], tuple[Any, ...]]] = {
    "best": _best,
    "largest": lambda row: (-row.size, *_best(row)),
    "oldest": lambda row: (row.mtime_ns, *_best(row)),
    "newest": lambda row: (-row.mtime_ns, *_best(row)),
    "first": lambda row: (row.path,),
}
"""Rule -> key of a row; the smallest is kept. best: most pixels, then most bytes, then the oldest, then by path."""


def grouped(rows: Sequence[Row], distance: int, limits: Mapping[str, int], rule: str) -> DuplicateGroup:
    """Make a group of rows, which hold all their codes.

    The best row is kept; what is near to it could go; of the rest the best is kept, and so on. So what could go is
    always near to one that is kept, not only through a chain; its ``like`` is the nearest on ``fine`` of those.

    Args:
        rows: two or more.
        distance: of near pairs on ``fine``, in bits.
        limits: of near pairs on the other granularities.
        rule: a key of ``KEEP``.
    """
    rows = sorted(rows, key=KEEP[rule])
    codes = {
        name: np.frombuffer(b"".join(row.codes[name] for row in rows), np.uint8).reshape(len(rows), -1)
        for name in (FINE, *limits)
    }
    kept: list[int] = []
    like = np.full(len(rows), -1)
    apart = {name: np.zeros(len(rows), np.int32) for name in codes}
    for place in range(len(rows)):
        if like[place] >= 0:
            continue
        kept.append(place)
        distances = {name: hamming(own[place : place + 1], own)[0] for name, own in codes.items()}
        nearer = (distances[FINE] <= distance) & ((like < 0) | (distances[FINE] < apart[FINE]))
        nearer[place] = False
        for name, limit in limits.items():
            nearer &= distances[name] <= limit
        like[nearer] = place
        for name, values in distances.items():
            apart[name][nearer] = values[nearer]
    members = [
        GroupMember(
            row.id, row.path, row.size, row.mtime_ns, row.width, row.height,
            None if near < 0 else rows[near].path, {name: int(values[place]) for name, values in apart.items()},
        )
        for place, (row, near) in enumerate(zip(rows, like, strict=True))
    ]  # fmt: skip
    gone = sorted((member for member in members if not member.keep), key=lambda member: member.path)
    return DuplicateGroup((*(members[place] for place in kept), *gone), _spread(codes[FINE]))


def _spread(codes: Codes) -> int:
    """The largest distance between two codes."""
    farthest: list[NDArray[np.int32]] = [
        hamming(codes[start : start + _AT_ONCE], codes[start:]).max() for start in range(0, len(codes), _AT_ONCE)
    ]
    return int(max(farthest))
