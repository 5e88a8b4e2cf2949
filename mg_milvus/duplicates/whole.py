"""Near-duplicates among the rows of an index: all pairs, or those with a new picture."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates import DuplicateReport
from mg_milvus.duplicates.calibration import FINE, SAMPLE, calibrated
from mg_milvus.duplicates.forest import Forest, groups
from mg_milvus.duplicates.grouping import grouped
from mg_milvus.duplicates.pairs import as_words, distances_of, pairs_within
from mg_milvus.errors import QueryError
from mg_milvus.hits import Progress
from mg_milvus.images.discover import is_under, path_text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.duplicates import DuplicateGroup
    from mg_milvus.duplicates.calibration import Calibration
    from mg_milvus.duplicates.pairs import Pairs
    from mg_milvus.duplicates.question import Question
    from mg_milvus.schema import Schema
    from mg_milvus.store import Store

    Report = Callable[[Progress], None]

_FETCHED = 10_000
"""Rows of groups that are read back at a time, about."""


@dataclass(frozen=True, slots=True)
class _Scanned:
    """The rows that are looked at; the new ones first, each part in the order of the ids.

    Attributes:
        ids: of the rows.
        words: granularity -> (words, n), see ``as_words``.
        new: number of the first rows that are compared with all.
    """

    ids: Sequence[str]
    words: Mapping[str, NDArray[np.uint64]]
    new: int

    @property
    def compared(self) -> int:
        """Pairs of which at least one is new."""
        return self.new * (len(self.ids) - self.new) + self.new * (self.new - 1) // 2


def find_duplicates(
    store: Store,
    schema: Schema,
    question: Question,
    *,
    within: str | os.PathLike[str] | None = None,
    newer_than_ns: int | None = None,
    progress: Report = lambda _: None,
) -> DuplicateReport:
    """Find groups of near rows; see ``ImageIndex.duplicates``.

    Memory: the codes and ids of the rows, and a bounded number of pairs.
    """
    started = time.perf_counter()
    scanned = _scan(store, schema, within, newer_than_ns, progress)
    count, compared = len(scanned.ids), scanned.compared
    if count < 2:
        place = f"'{schema.collection}'" + (f" under {path_text(within)}" if within is not None else "")
        raise QueryError(
            f"there {'is one picture' if count else 'is no picture'} in {place}, expected two or more to compare; add "
            "some with mgm ingest"
        )
    if not scanned.new:
        return DuplicateReport(
            count, 0, question.distance, {}, question.precision if question.distance is None else None, 0, None,
            question.keep, (), time.perf_counter() - started,
        )  # fmt: skip
    calibration = calibrated(_sample(scanned), schema.bits)
    radius = question.radius(calibration, compared, scanned.new)
    edges, found = _near(scanned, radius, calibration.limits, progress)
    distance = question.chosen(calibration, compared, found)
    near = -1 if distance is None else distance
    ends = ((a, b) for a, b, d in zip(*(part.tolist() for part in edges), strict=True) if d <= near)
    members = [[scanned.ids[row] for row in group] for group in groups(ends)]
    made = _groups(store, schema, members, near, calibration.limits, question.keep)
    return DuplicateReport(
        count, compared, distance, calibration.limits, question.precision if question.distance is None else None,
        int(found[: near + 1].sum()), _expected(calibration, compared, distance), question.keep, made,
        time.perf_counter() - started,
    )  # fmt: skip


def _scan(
    store: Store, schema: Schema, within: str | os.PathLike[str] | None, newer_than_ns: int | None, progress: Report
) -> _Scanned:
    folders = [] if within is None else [path_text(within)]
    total, seen = store.count(), 0
    ids: list[str] = []
    old: list[bool] = []
    parts: dict[str, list[bytes]] = defaultdict(list)
    for rows in store.scan(None, tuple(schema.bits)):
        seen += len(rows)
        chosen = [row for row in rows if not folders or is_under(row.path, folders)]
        ids += [row.id for row in chosen]
        old += [newer_than_ns is not None and row.mtime_ns <= newer_than_ns for row in chosen]
        for name in schema.bits:
            parts[name].append(b"".join(row.codes[name] for row in chosen))
        progress(Progress("reading codes", seen, max(total, seen), 0))
    order = np.lexsort((np.array(ids), np.array(old, bool)))
    words = {
        name: as_words(np.frombuffer(b"".join(parts.pop(name, [])), np.uint8).reshape(len(ids), bits // 8)[order])
        for name, bits in schema.bits.items()
    }
    return _Scanned([ids[row] for row in order], words, len(old) - sum(old))


def _sample(scanned: _Scanned) -> dict[str, NDArray[np.uint64]]:
    """The codes of some rows, always the same of the same rows."""
    count = len(scanned.ids)
    rows = np.sort(np.random.default_rng(0).permutation(count)[:SAMPLE])
    return {name: words[:, rows] for name, words in scanned.words.items()}


def _near(
    scanned: _Scanned, radius: int, limits: Mapping[str, int], progress: Report
) -> tuple[Pairs, NDArray[np.int64]]:
    """The forest of the near pairs, and their number at each distance up to the radius."""
    forest = Forest(len(scanned.ids))
    found = np.zeros(radius + 1, np.int64)

    def tell(done: int) -> None:
        progress(Progress("comparing", done, scanned.new, 0))

    for pairs in pairs_within(scanned.words[FINE], radius, scanned.new, tell):
        checked = np.ones(len(pairs.left), bool)
        for name, limit in limits.items():
            checked &= distances_of(scanned.words[name], pairs.left, pairs.right) <= limit
        kept = pairs.where(checked)
        found += np.bincount(kept.distances, minlength=radius + 1)
        forest.add(kept)
    return forest.edges(), found


def _groups(
    store: Store, schema: Schema, members: Sequence[Sequence[str]], distance: int, limits: Mapping[str, int], keep: str
) -> tuple[DuplicateGroup, ...]:
    """Groups of ids as groups of pictures; rows that were deleted meanwhile are left out."""
    made: list[DuplicateGroup] = []
    waiting: list[Sequence[str]] = []
    size = 0
    for place, ids in enumerate(members, 1):
        waiting.append(ids)
        size += len(ids)
        if size >= _FETCHED or place == len(members):
            rows = store.fetch([i for group in waiting for i in group], tuple(schema.bits))
            there = [[rows[i] for i in group if i in rows] for group in waiting]
            made += [grouped(group, distance, limits, keep) for group in there if len(group) > 1]
            waiting, size = [], 0
    made.sort(key=lambda group: (-len(group.members), group.spread, group.members[0].path))
    return tuple(made)


def _expected(calibration: Calibration, compared: int, distance: int | None) -> float | None:
    """Pairs expected to be near by chance."""
    if calibration.tail is None or distance is None:
        return None
    return float(calibration.tail.rates[distance] * compared)
