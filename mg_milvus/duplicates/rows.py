"""The rows that a search for near-duplicates compares: their codes, and what is known of their files."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates.pairs import as_words
from mg_milvus.duplicates.report import VISIBLE, Files
from mg_milvus.images.discover import image_id, text_path
from mg_milvus.images.paths import Disks, Folders
from mg_milvus.images.shots import Shots, shot_key
from mg_milvus.records import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.duplicates.ignored import Ignored
    from mg_milvus.images.paths import State
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Store


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows to compare, those newer than ``newer_than_ns`` first, otherwise in the order of their ids.

    Attributes:
        ids: of the rows.
        words: granularity -> (words, n), see ``as_words``.
        new: number of newer rows, which are compared with all.
        files: what is known of their files; a file with several names, and the files of one shot, have one row here.
        seen: (n,) whether a row's file is there to be looked at.
        classes: rows whose files are known to have the same content, two or more.
        ignored: pairs that are no duplicates, as left * n + right, sorted.
    """

    ids: Sequence[str]
    words: Mapping[str, NDArray[np.uint64]]
    new: int
    files: Files
    seen: NDArray[np.bool_]
    classes: Sequence[Sequence[int]]
    ignored: NDArray[np.int64]

    @property
    def unseen(self) -> bool:
        """Whether a file is not there to be looked at."""
        return not self.seen.all()

    @property
    def representatives(self) -> list[int]:
        """The rows to look at, one of each content."""
        others = {row for same in self.classes for row in same[1:]}
        return [row for row in np.flatnonzero(self.seen).tolist() if row not in others]

    @property
    def compared(self) -> int:
        """Number of pairs of which at least one row is new."""
        return self.new * (len(self.ids) - self.new) + self.new * (self.new - 1) // 2

    @property
    def left_out(self) -> int:
        """Number of pairs that would be compared and are ignored."""
        return int((self.ignored // max(1, len(self.ids)) < self.new).sum())

    def is_ignored(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether pairs of rows, (n,) and (n,), are no duplicates whatever is seen; (n,)."""
        return np.isin(np.minimum(left, right) * len(self.ids) + np.maximum(left, right), self.ignored)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows, and which pairs of them.

    Attributes:
        within: compare only rows under this folder.
        newer_than_ns: only pairs of which at least one file was modified later, in nanoseconds since the epoch.
        ignored: pairs that are left out.
    """

    within: str | os.PathLike[str] | None
    newer_than_ns: int | None
    ignored: Ignored


def read_rows(store: Store, schema: Schema, scope: Scope, progress: Callable[[Progress], None]) -> Rows:
    """Read the rows of a search for near-duplicates."""
    disks = Disks()
    folders = None if scope.within is None else Folders([scope.within], disks)
    total, seen = store.count(), 0
    ids: list[str] = []
    old: list[bool] = []
    states: dict[str, State] = {}
    identities: list[tuple[int, int]] = []
    shots: list[int] = []
    contents: list[str] = []
    chunks: dict[str, list[bytes]] = defaultdict(list)
    for rows in store.scan(None, tuple(schema.bits)):
        seen += len(rows)
        chosen = [row for row in rows if folders is None or folders.holds(row.path)]
        ids += [row.id for row in chosen]
        old += [scope.newer_than_ns is not None and row.mtime_ns <= scope.newer_than_ns for row in chosen]
        for row in chosen:
            state = disks.state(row.path, row.size, row.mtime_ns)
            identities.append(disks.identity(row.path) if state in VISIBLE else (0, 0))
            shots.append(hash(shot_key(row.path)) if state in VISIBLE else 0)
            contents.append("" if state == "changed" else row.content_hash)
            if state != "here":
                states[row.id] = state
        for name in schema.bits:
            chunks[name].append(b"".join(row.codes[name] for row in chosen))
        progress(Progress("reading codes", seen, max(total, seen), 0))
    names = _names(_several(store, ids, identities))
    aliases = {i for some in names.values() for i, _ in some}
    mates = _mates(_several(store, [i for i in ids if i not in aliases], [
        shot for i, shot in zip(ids, shots, strict=True) if i not in aliases
    ]))  # fmt: skip
    fresh = {i for i, is_old in zip(ids, old, strict=True) if not is_old}
    fresh |= {first for first, others in mates.items() if not fresh.isdisjoint(others)}
    left_out = aliases | {i for others in mates.values() for i in others}
    order = np.lexsort((np.array(ids), np.array([i not in fresh for i in ids], bool)))
    order = order[[ids[row] not in left_out for row in order]]
    words = {
        name: as_words(np.frombuffer(b"".join(chunks.pop(name, [])), np.uint8).reshape(len(ids), bits // 8)[order])
        for name, bits in schema.bits.items()
    }
    files = Files(
        {i: state for i, state in states.items() if i not in left_out},
        {i: tuple(path for _, path in some) for i, some in names.items() if i not in left_out},
    )
    ordered, known = [ids[row] for row in order], [contents[row] for row in order]
    same: dict[str, list[int]] = defaultdict(list)
    for place, (i, content) in enumerate(zip(ordered, known, strict=True)):
        if i not in states:  # the file is what its row says
            same[content].append(place)
    return Rows(
        ordered, words, sum(i in fresh for i in ordered), files,
        np.array([states.get(i, "here") in VISIBLE for i in ordered], bool),
        [places for places in same.values() if len(places) > 1], scope.ignored.places(known),
    )  # fmt: skip


def _several(store: Store, ids: Sequence[str], keys: Sequence[Hashable]) -> list[list[str]]:
    """The paths of the rows that share a key with another row, by key; a key that is empty is shared by none."""
    places: dict[Hashable, list[str]] = defaultdict(list)
    for i, key in zip(ids, keys, strict=True):
        if key not in {0, (0, 0)}:
            places[key].append(i)
    several = [some for some in places.values() if len(some) > 1]
    rows = store.fetch([i for some in several for i in some]) if several else {}
    return [[rows[i].path for i in some if i in rows] for some in several]


def _names(several: Sequence[Sequence[str]]) -> dict[str, list[tuple[str, str]]]:
    """Of paths of one file each, the id of the row to compare -> ids and paths of the others.

    The row whose path leads to the file without links is taken, then the first by path.
    """
    names: dict[str, list[tuple[str, str]]] = {}
    for some in several:
        first, *others = sorted(some, key=lambda path: (_is_link(path), path))
        names[image_id(first)] = [(image_id(path), path) for path in others]
    return names


def _is_link(path: str) -> bool:
    """Whether a link leads to a file, at its name or at a folder on the way."""
    file = os.fspath(text_path(path))
    return os.path.realpath(file) != file


def _mates(several: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Of paths that may be of one shot, the id of the row to compare -> ids of the others of its shot."""
    shots = Shots()
    groups = [group for some in several for group in shots.together(some)]
    return {image_id(group[0]): [image_id(path) for path in group[1:]] for group in groups}
