"""What is asked of the search for near-duplicates, checked."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.duplicates.calibration import FINE, SAMPLE, Calibration, calibrated, largest_distance
from mg_milvus.duplicates.pairs import Forest, as_words, distances_of, groups, pairs_within
from mg_milvus.duplicates.report import KEEP, DuplicateReport, grouped
from mg_milvus.errors import QueryError
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import image_id, is_under, path_text, text_path
from mg_milvus.records import Progress
from mg_milvus.store.base import Row
from mg_milvus.store.rows import MAX_DEPTH

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.duplicates.pairs import Pairs
    from mg_milvus.duplicates.report import DuplicateGroup
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Store

    Report = Callable[[Progress], None]
    from mg_milvus.encoder.base import Encoder


PRECISION = 0.99
"""Unless told otherwise, one of a hundred pairs found may be near by chance."""
MOST_EACH = 100
"""Near pairs for each image, on average, up to which the largest distance is looked for."""


@dataclass(frozen=True, slots=True)
class DuplicateQuery:
    """Checked options.

    Attributes:
        distance: of near pairs on ``fine``; None: chosen by the precision.
        precision: share of the pairs found that should not be near by chance.
        keep: a key of ``KEEP``.
    """

    distance: int | None
    precision: float
    keep: str

    @classmethod
    def of(cls, schema: Schema, *, distance: int | None, precision: float | None, keep: str) -> DuplicateQuery:
        """Check options against a schema.

        Raises:
            QueryError: the schema has no ``fine``, or an option is out of range.
        """
        bits = schema.bits
        if FINE not in bits:
            raise QueryError(
                f"near-duplicates are found by the granularity '{FINE}', '{schema.collection}' has {', '.join(bits)}; "
                f"ingest into a collection whose schema has '{FINE}'"
            )
        if distance is not None and precision is not None:
            raise QueryError("distance and precision were both given; the distance follows from the precision")
        if distance is not None and not 0 <= distance <= bits[FINE]:
            raise QueryError(f"distance is {distance}, expected a number of bits from 0 to {bits[FINE]}")
        if precision is not None and not 0 < precision < 1:
            raise QueryError(f"precision is {precision:g}, expected a number between 0 and 1, such as {PRECISION}")
        if keep not in KEEP:
            near = get_close_matches(keep, KEEP, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise QueryError(f"keep is '{keep}'{hint}, expected {', '.join(KEEP)}")
        return cls(distance, PRECISION if precision is None else precision, keep)

    def radius(self, calibration: Calibration, compared: int, images: int) -> int:
        """The largest distance that near pairs may turn out to have.

        Raises:
            QueryError: there are too few images to tell.
        """
        if self.distance is not None:
            return self.distance
        if calibration.tail is None:
            raise QueryError(
                "it cannot be told here how near unrelated images are: there are too few, or nearly all have "
                "duplicates; give a distance in bits, such as 8 (0 finds equal codes)"
            )
        allowed = (1 - self.precision) * MOST_EACH * images
        return max(0, int(np.searchsorted(calibration.tail.rates * compared, allowed, side="right")) - 1)

    def chosen(self, calibration: Calibration, compared: int, found: NDArray[np.int64]) -> int | None:
        """The distance of near pairs, given the number of checked pairs found at each distance up to the radius."""
        if self.distance is not None or calibration.tail is None:
            return self.distance
        return largest_distance(calibration.tail.rates[: len(found)] * compared, np.cumsum(found), self.precision)


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
    query: DuplicateQuery,
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
            f"there {'is one image' if count else 'is no image'} in {place}, expected two or more to compare; add "
            "some with mgm ingest"
        )
    if not scanned.new:
        return DuplicateReport(
            count, 0, query.distance, {}, query.precision if query.distance is None else None, 0, None,
            query.keep, (), time.perf_counter() - started,
        )  # fmt: skip
    calibration = calibrated(_sample(scanned), schema.bits)
    radius = query.radius(calibration, compared, scanned.new)
    edges, found = _near(scanned, radius, calibration.limits, progress)
    distance = query.chosen(calibration, compared, found)
    near = -1 if distance is None else distance
    ends = ((a, b) for a, b, d in zip(*(part.tolist() for part in edges), strict=True) if d <= near)
    members = [[scanned.ids[row] for row in group] for group in groups(ends)]
    made = _groups(store, schema, members, near, calibration.limits, query.keep)
    return DuplicateReport(
        count, compared, distance, calibration.limits, query.precision if query.distance is None else None,
        int(found[: near + 1].sum()), _expected(calibration, compared, distance), query.keep, made,
        time.perf_counter() - started,
    )  # fmt: skip


def _scan(
    store: Store, schema: Schema, within: str | os.PathLike[str] | None, newer_than_ns: int | None, progress: Report
) -> _Scanned:
    folders = [] if within is None else [path_text(within)]
    total, seen = store.count(), 0
    ids: list[str] = []
    old: list[bool] = []
    chunks: dict[str, list[bytes]] = defaultdict(list)
    for rows in store.scan(None, tuple(schema.bits)):
        seen += len(rows)
        chosen = [row for row in rows if not folders or is_under(row.path, folders)]
        ids += [row.id for row in chosen]
        old += [newer_than_ns is not None and row.mtime_ns <= newer_than_ns for row in chosen]
        for name in schema.bits:
            chunks[name].append(b"".join(row.codes[name] for row in chosen))
        progress(Progress("reading codes", seen, max(total, seen), 0))
    order = np.lexsort((np.array(ids), np.array(old, bool)))
    words = {
        name: as_words(np.frombuffer(b"".join(chunks.pop(name, [])), np.uint8).reshape(len(ids), bits // 8)[order])
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
    """Groups of ids as groups of images; rows that were deleted meanwhile are left out."""
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


_FIRST_DEPTH = 128


def find_duplicates_of(
    store: Store, schema: Schema, encoder: Encoder, image: str | os.PathLike[str], query: DuplicateQuery
) -> DuplicateReport:
    """Find the rows that are near to an image file; see ``ImageIndex.duplicates``.

    Reads a sample of the rows, and the image's neighbours by Milvus' own search: exact on Milvus Lite, as exact as
    the schema's ``nprobe`` or ``ef`` on servers, and 16,384 rows at most.
    """
    started = time.perf_counter()
    own = _row_of(encoder, image)
    indexed = own.id in store.fetch([own.id])
    count = store.count() - indexed
    if count < 1:
        raise QueryError(
            f"there is no {'other ' if indexed else ''}image in '{schema.collection}' to compare "
            f"{own.path} with; add some with mgm ingest"
        )
    calibration = _calibrated(store, schema, count)
    radius = query.radius(calibration, count, 1)
    rows = [row for row in _neighbours(store, schema, own, radius) if _passes(own, row, calibration)]
    distances = np.array([_distance(own, row, FINE) for row in rows], np.int64)
    distance = query.chosen(calibration, count, np.bincount(distances, minlength=radius + 1))
    near = [] if distance is None else [row for row, d in zip(rows, distances, strict=True) if d <= distance]
    groups = () if distance is None or not near else (
        grouped([own, *near], distance, calibration.limits, query.keep),
    )  # fmt: skip
    expected = None if calibration.tail is None or distance is None else float(calibration.tail.rates[distance] * count)
    return DuplicateReport(
        count, count, distance, calibration.limits, query.precision if query.distance is None else None,
        len(near), expected, query.keep, groups, time.perf_counter() - started,
    )  # fmt: skip


def _row_of(encoder: Encoder, image: str | os.PathLike[str]) -> Row:
    """The row that the file would have."""
    path = path_text(image)
    file = text_path(path)
    with opening(file, least=encoder.side) as decoded:
        pixels, width, height = encoder.prepare(decoded.image), decoded.width, decoded.height
    status = file.stat()
    codes = encoder.encode([pixels])
    return Row(
        image_id(path), path, status.st_size, status.st_mtime_ns, width, height, "",
        {name: values[0].tobytes() for name, values in codes.items()},
    )  # fmt: skip


def _calibrated(store: Store, schema: Schema, count: int) -> Calibration:
    """Ids are hashes, so those below a bound are a random sample."""
    bound = round(SAMPLE / count * 16**8)
    where = f'id < "{bound:08x}"' if bound < 16**8 else None
    rows = [row for rows in store.scan(where, tuple(schema.bits)) for row in rows]
    words = {
        name: as_words(np.frombuffer(b"".join(row.codes[name] for row in rows), np.uint8).reshape(len(rows), bits // 8))
        for name, bits in schema.bits.items()
    }
    return calibrated(words, schema.bits)


def _neighbours(store: Store, schema: Schema, own: Row, radius: int) -> list[Row]:
    """The other rows within the radius on ``fine``, with their codes."""
    code = np.frombuffer(own.codes[FINE], np.uint8)[None]
    depth = _FIRST_DEPTH
    while True:
        found = store.nearest(FINE, code, depth)[0]
        if len(found.ids) < depth or found.distances[-1] > radius or depth == MAX_DEPTH:
            break
        depth = min(8 * depth, MAX_DEPTH)
    ids = [i for i, d in zip(found.ids, found.distances, strict=True) if d <= radius and i != own.id]
    return list(store.fetch(ids, tuple(schema.bits)).values())


def _distance(left: Row, right: Row, granularity: str) -> int:
    codes = [np.frombuffer(row.codes[granularity], np.uint8)[None] for row in (left, right)]
    return int(hamming(*codes)[0, 0])


def _passes(own: Row, row: Row, calibration: Calibration) -> bool:
    return all(_distance(own, row, name) <= limit for name, limit in calibration.limits.items())
