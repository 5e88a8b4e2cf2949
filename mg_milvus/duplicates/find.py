"""Search for near-duplicates: of all rows, or of one image."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.duplicates.calibration import FINE, SAMPLE, Calibration, calibrate, largest_distance
from mg_milvus.duplicates.ignored import Ignored, file_content, read_ignored
from mg_milvus.duplicates.pairs import (
    ConnectedComponents,
    Pairs,
    as_words,
    connected_components,
    distances_of,
    nearest_pairs,
    pairs_within,
)
from mg_milvus.duplicates.report import KEEP, SAFE, Choice, DuplicateReport, Files, make_group
from mg_milvus.duplicates.rows import Rows, Scope, read_rows
from mg_milvus.duplicates.verdicts import Verdicts
from mg_milvus.duplicates.verify import COPIES, SEEN, Verdict
from mg_milvus.errors import QueryError
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import image_id, text_path
from mg_milvus.images.paths import Disks, Folders, stored_path
from mg_milvus.images.shots import Shots
from mg_milvus.records import Progress
from mg_milvus.store.base import Row
from mg_milvus.store.rows import MAX_DEPTH

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.duplicates.report import DuplicateGroup, Relate
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Store

    Report = Callable[[Progress], None]


PRECISION = 0.99
"""Default precision: at most one of a hundred pairs is expected to be near by chance."""
CANDIDATES, NEAREST = 0.2, 5
"""Images to look at: those within this share of the bits of ``fine``, and the nearest of each image however far."""
MAX_PAIRS_PER_IMAGE = 100
"""Mean number of near pairs of an image that bounds the search for the largest distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateQuery:
    """Options of a search for near-duplicates.

    Attributes:
        distance: look only at pairs within so many bits on ``fine``; None: at those near by chance, too.
        precision: instead, the least expected share of the pairs that are not near by chance.
        keep: a key of ``KEEP``.
        edited: offer edited copies for removal, too.
        reference: folders whose images are never offered.
        keep_folder: folders whose images are kept rather than others.
        ignore: a file of pairs that are no duplicates.
        within: compare only rows under this folder.
        newer_than_ns: only pairs of which at least one file was modified later, in nanoseconds since the epoch.
    """

    distance: int | None = None
    precision: float | None = None
    keep: str = "best"
    within: str | os.PathLike[str] | None = None
    newer_than_ns: int | None = None
    edited: bool = False
    reference: Sequence[str | os.PathLike[str]] = ()
    keep_folder: Sequence[str | os.PathLike[str]] = ()
    ignore: str | os.PathLike[str] | None = None

    @property
    def ignored(self) -> Ignored:
        """The pairs that are left out.

        Raises:
            QueryError: their file cannot be read.
        """
        return Ignored() if self.ignore is None else read_ignored(self.ignore)

    @property
    def choice(self) -> Choice:
        """Which images of a group stay."""
        disks = Disks()
        reference, keep_folder = (
            Folders(folders, disks) if folders else None for folders in (self.reference, self.keep_folder)
        )
        return Choice(self.keep, SAFE | {Verdict.EDITED} if self.edited else SAFE, reference, keep_folder)

    @property
    def required_precision(self) -> float | None:
        """The precision that the distance is chosen by; None when the distance is given."""
        if self.distance is not None:
            return None
        return PRECISION if self.precision is None else self.precision

    def check(self, schema: Schema) -> None:
        """Check the options against a schema.

        Raises:
            QueryError: the schema has no ``fine``, or an option is out of range.
        """
        distance, precision, keep = self.distance, self.precision, self.keep
        bits = schema.bits
        if FINE not in bits:
            raise QueryError(
                f"near-duplicates need the granularity '{FINE}', '{schema.collection}' has {', '.join(bits)}; ingest "
                f"into a collection whose schema has '{FINE}'"
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

    def radius(self, calibration: Calibration, compared: int, images: int) -> int:
        """An upper bound of the distance of near pairs, in bits.

        Raises:
            QueryError: there are too few images to estimate it.
        """
        precision = self.required_precision
        if precision is None:
            return self.distance or 0
        if calibration.chance is None:
            raise QueryError(
                "the distances of unrelated images cannot be estimated: there are too few, or nearly all have "
                "duplicates; give a distance in bits, such as 8 (0 finds equal codes)"
            )
        allowed = (1 - precision) * MAX_PAIRS_PER_IMAGE * images
        return max(0, int(np.searchsorted(calibration.chance.rates * compared, allowed, side="right")) - 1)

    def choose_distance(self, calibration: Calibration, compared: int, counts: NDArray[np.int64]) -> int | None:
        """The largest distance of near pairs, from the number of pairs found at each distance up to the radius."""
        precision = self.required_precision
        if precision is None or calibration.chance is None:
            return self.distance
        return largest_distance(calibration.chance.rates[: len(counts)] * compared, np.cumsum(counts), precision)


_FETCH_ROWS = 10_000
"""Approximate number of rows of groups to fetch in one call."""


def find_duplicates(
    store: Store, schema: Schema, query: DuplicateQuery, progress: Report = lambda _: None
) -> DuplicateReport:
    """Find groups of near rows; see ``ImageIndex.duplicates``.

    Memory: the codes and ids of the rows, and a bounded number of pairs.

    Raises:
        QueryError: an option is out of range, or there are too few rows.
    """
    started = time.perf_counter()
    query.check(schema)
    scope = Scope(query.within, query.newer_than_ns, query.ignored)
    rows = read_rows(store, schema, scope, progress)
    count = len(rows.ids)
    if count < 2:
        place = f"'{schema.collection}'" + (f" under {stored_path(query.within)}" if query.within is not None else "")
        raise QueryError(
            f"there {'is one image' if count else 'is no image'} in {place}, expected two or more to compare; add "
            "some with mgm ingest"
        )
    if not rows.new:
        return DuplicateReport(
            rows=count, compared=0, distance=query.distance, limits={}, precision=query.required_precision, pairs=0,
            expected_false=None, keep=query.keep, groups=(), seconds=time.perf_counter() - started,
            **_counts(rows.files),
        )  # fmt: skip
    calibration = calibrate(_sample(rows), schema.bits)
    distance, counts, edges = _near_by_codes(rows, query, calibration, progress)
    unseen_pairs = rows.compared - _pairs_among(rows.seen, rows.new)
    with Verdicts() as eyes:
        copies = _Copies(store, rows, eyes, progress, scope.ignored)
        copies.look(_candidates(rows, query, distance, calibration.limits, progress))
        ends = [(a, b) for a, b, d in zip(*(column.tolist() for column in edges), strict=True) if d <= (distance or 0)]
        members = [[rows.ids[row] for row in group] for group in copies.groups(ends)]
        relate = copies.relation(-1 if distance is None else distance, calibration.limits)
        group = partial(make_group, relate=relate, choice=query.choice, files=copies.files)
        groups = _fetch_groups(store, schema, members, group)
    near = 0 if distance is None else int(counts[: distance + 1].sum())
    return DuplicateReport(
        rows=count, compared=rows.compared, distance=distance, limits=calibration.limits,
        precision=query.required_precision, pairs=near + copies.pairs,
        expected_false=_expected(calibration, unseen_pairs, distance) if unseen_pairs else None, keep=query.keep,
        groups=groups, seconds=time.perf_counter() - started, verdicts=copies.verdicts, unseen_pairs=unseen_pairs,
        near_pairs=near, ignored=rows.left_out, **_counts(copies.files),
    )  # fmt: skip


def _near_by_codes(
    rows: Rows, query: DuplicateQuery, calibration: Calibration, progress: Report
) -> tuple[int | None, NDArray[np.int64], Pairs]:
    """The distance of near codes, and the near pairs of which a file cannot be seen: their numbers and forest.

    Raises:
        QueryError: no file can be seen, and there are too few images to estimate a distance.
    """
    none = np.empty(0, np.int64)
    nothing = none, Pairs(none, none, np.empty(0, np.int32))
    distance = query.distance
    if query.precision is not None:
        radius = query.radius(calibration, rows.compared, rows.new)
        _, counts = _near_pairs(rows, radius, calibration.limits, progress)
        distance = query.choose_distance(calibration, rows.compared, counts)
    if not rows.unseen or (query.precision is not None and distance is None):
        return distance, *nothing
    compared = rows.compared - _pairs_among(rows.seen, rows.new)
    if distance is None and calibration.chance is None and rows.seen.any():
        distance = 0
    radius = query.radius(calibration, compared, rows.new) if distance is None else distance
    edges, counts = _near_pairs(rows, radius, calibration.limits, progress, rows.seen)
    if distance is None:
        distance = query.choose_distance(calibration, compared, counts)
    return distance, counts, edges


def _pairs_among(chosen: NDArray[np.bool_], new: int) -> int:
    """Number of pairs of chosen rows of which at least one is among the first ``new``."""
    fresh, old = int(chosen[:new].sum()), int(chosen[new:].sum())
    return fresh * old + fresh * (fresh - 1) // 2


def _candidates(
    rows: Rows, query: DuplicateQuery, distance: int | None, limits: Mapping[str, int], progress: Report
) -> Iterator[tuple[int, int]]:
    """Pairs of rows to look at: those near by their codes, and the nearest of each.

    Of files with the same content the first row stands for all. The limits of the other granularities belong to the
    distance that keeps a precision; one that is given is of ``fine`` alone.
    """
    chosen = np.array(rows.representatives, np.int64)
    explicit = query.distance is not None or query.precision is not None
    if explicit and distance is None:
        return
    bounds = {} if query.precision is None else limits
    words = rows.words[FINE][:, chosen]
    radius = distance if explicit and distance is not None else int(CANDIDATES * 64 * len(words))
    pairs = nearest_pairs(
        words, int((chosen < rows.new).sum()), radius, 0 if explicit else NEAREST,
        lambda done: progress(Progress("comparing", done, len(chosen), 0)),
    )  # fmt: skip
    pairs = pairs.where(~rows.is_ignored(chosen[pairs.left], chosen[pairs.right]))
    for left, right in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True):
        a, b = int(chosen[left]), int(chosen[right])
        ends = np.array([a]), np.array([b])
        if all(distances_of(rows.words[name], *ends)[0] <= bound for name, bound in bounds.items()):
            yield a, b


class _Copies:
    """The pairs of rows that are copies, by what is to be seen.

    Attributes:
        files: of the rows, with those that cannot be read.
        verdicts: verdict -> number of pairs.
        pairs: number of pairs of copies.
    """

    def __init__(self, store: Store, rows: Rows, eyes: Verdicts, progress: Report, ignored: Ignored) -> None:
        self.files, self.verdicts, self.pairs = rows.files, dict.fromkeys((v.value for v in SEEN), 0), 0
        self._ignored = ignored
        self._store, self._rows, self._eyes, self._progress = store, rows, eyes, progress
        self._known: dict[tuple[str, str], Verdict | None] = {}
        self._edges: list[tuple[int, int]] = []

    def look(self, candidates: Iterable[tuple[int, int]]) -> None:
        """Look at candidates; files with the same content are copies without a look."""
        for same in self._rows.classes:
            fresh = sum(row < self._rows.new for row in same)
            number = fresh * (len(same) - fresh) + fresh * (fresh - 1) // 2
            self.pairs += number
            self.verdicts[Verdict.IDENTICAL] += number
            if fresh:
                self._edges += [(same[0], row) for row in same[1:]]
        wanted = list(candidates)
        places = {self._rows.ids[row]: row for pair in wanted for row in pair}
        rows = _without_codes(self._store, list(places))
        pairs = [
            (rows[self._rows.ids[a]], rows[self._rows.ids[b]])
            for a, b in wanted
            if self._rows.ids[a] in rows and self._rows.ids[b] in rows
        ]
        for (left, right), verdict in self.verdicts_of(pairs, "looking at pairs"):
            if verdict in COPIES:
                self.pairs += 1
                self._edges.append((places[left.id], places[right.id]))

    def verdicts_of(
        self, pairs: Sequence[tuple[Row, Row]], stage: str = ""
    ) -> Iterator[tuple[tuple[Row, Row], Verdict | None]]:
        """Look at pairs, and remember what is seen."""
        trusted = [tuple(self.files.trusted(row) for row in pair) for pair in pairs]

        def told(done: int) -> None:
            self._progress(Progress(stage or "looking at groups", done, len(pairs), 0))

        for (left, right), verdict in self._eyes.of([(a, b) for a, b in trusted], told):
            self._known[_pair(left, right)] = verdict
            if verdict is not None:
                self.verdicts[verdict] += 1
            yield (left, right), verdict
        unreadable = {row.id for pair in pairs for row in pair if row.path in self._eyes.unreadable}
        self.files = replace(self.files, states={**self.files.states, **dict.fromkeys(unreadable, "away")})

    def groups(self, near: Iterable[tuple[int, int]]) -> list[list[int]]:
        """The connected components of the copies and of further pairs, with all rows of the same content."""
        classes = {same[0]: same for same in self._rows.classes}
        found = connected_components([*self._edges, *near])
        return [sorted({other for row in group for other in classes.get(row, [row])}) for group in found]

    def relation(self, distance: int, limits: Mapping[str, int]) -> Relate:
        """The verdicts on rows: by their pixels, or where a file cannot be seen, by codes within a distance."""

        def relate(row: Row, others: Sequence[Row]) -> list[Verdict | None]:
            kept_apart = [self._ignored.holds(self.files.trusted(row), self.files.trusted(other)) for other in others]
            visible = [o for o, apart in zip(others, kept_apart, strict=True) if not apart and self.files.is_visible(o)]
            for _ in self.verdicts_of([(row, other) for other in visible if self._verdict(row, other) is None]):
                pass
            return [
                None if apart else self._verdict(row, other) if other in visible else by_codes(row, other)
                for other, apart in zip(others, kept_apart, strict=True)
            ]

        def by_codes(row: Row, other: Row) -> Verdict | None:
            bounds = {FINE: distance, **limits}
            near = all(_distance(row, other, name) <= bound for name, bound in bounds.items())
            return Verdict.UNSEEN if near else None

        return relate

    def _verdict(self, left: Row, right: Row) -> Verdict | None:
        contents = {self.files.trusted(row).content_hash for row in (left, right)}
        if len(contents) == 1 and "" not in contents:
            return Verdict.IDENTICAL
        return self._known.get(_pair(left, right))


def _pair(left: Row, right: Row) -> tuple[str, str]:
    return min(left.id, right.id), max(left.id, right.id)


def _without_codes(store: Store, ids: Sequence[str]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for start in range(0, len(ids), _FETCH_ROWS):
        rows |= store.fetch(ids[start : start + _FETCH_ROWS])
    return rows


def _counts(files: Files) -> dict[str, Any]:
    states = list(files.states.values())
    return {"missing": states.count("gone"), "away": states.count("away"), "changed": states.count("changed")}


def _sample(rows: Rows) -> dict[str, NDArray[np.uint64]]:
    """The codes of a random sample of the rows, with a fixed seed."""
    count = len(rows.ids)
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:SAMPLE])
    return {name: words[:, chosen] for name, words in rows.words.items()}


def _near_pairs(
    rows: Rows, radius: int, limits: Mapping[str, int], progress: Report, seen: NDArray[np.bool_] | None = None
) -> tuple[Pairs, NDArray[np.int64]]:
    """The minimum spanning forest of the near pairs, and their number at each distance up to the radius.

    Pairs of rows that are both ``seen`` are left out.
    """
    components = ConnectedComponents(len(rows.ids))
    counts = np.zeros(radius + 1, np.int64)

    def report(done: int) -> None:
        progress(Progress("comparing", done, rows.new, 0))

    for pairs in pairs_within(rows.words[FINE], radius, rows.new, report):
        near = ~rows.is_ignored(pairs.left, pairs.right)
        for name, limit in limits.items():
            near &= distances_of(rows.words[name], pairs.left, pairs.right) <= limit
        if seen is not None:
            near &= ~(seen[pairs.left] & seen[pairs.right])
        kept = pairs.where(near)
        counts += np.bincount(kept.distances, minlength=radius + 1)
        components.add(kept)
    return components.edges(), counts


def _fetch_groups(
    store: Store, schema: Schema, members: Sequence[Sequence[str]], group: Callable[[list[Row]], DuplicateGroup]
) -> tuple[DuplicateGroup, ...]:
    """Fetch the rows of groups of ids, some groups at a time; rows deleted meanwhile are left out."""
    groups: list[DuplicateGroup] = []
    waiting: list[Sequence[str]] = []
    size = 0
    for place, ids in enumerate(members, 1):
        waiting.append(ids)
        size += len(ids)
        if size >= _FETCH_ROWS or place == len(members):
            rows = store.fetch([i for some in waiting for i in some], tuple(schema.bits))
            existing = [[rows[i] for i in some if i in rows] for some in waiting]
            groups += [group(some) for some in existing if len(some) > 1]
            waiting, size = [], 0
    groups.sort(key=lambda group: (-len(group.members), group.diameter, group.members[0].path))
    return tuple(groups)


def _expected(calibration: Calibration, compared: int, distance: int | None) -> float | None:
    """Number of pairs expected to be near by chance; None when it cannot be estimated."""
    if calibration.chance is None or distance is None:
        return None
    return float(calibration.chance.rates[distance] * compared)


_FIRST_DEPTH = 128


def find_duplicates_of(
    index: tuple[Store, Schema, Encoder], image: str | os.PathLike[str], query: DuplicateQuery,
    progress: Report = lambda _: None,
) -> DuplicateReport:  # fmt: skip
    """Find the rows that are near to an image file; see ``ImageIndex.duplicates``.

    Reads a sample of the rows, and the image's neighbours by a Milvus search: exact on Milvus Lite, approximate on
    servers (``nprobe`` or ``ef`` of the schema), and at most 16,384 rows.

    Raises:
        QueryError: an option is out of range or does not apply to one image, or there are too few rows.
        ImageError: the image cannot be read.
    """
    started = time.perf_counter()
    store, schema, encoder = index
    query.check(schema)
    if query.within is not None or query.newer_than_ns is not None:
        raise QueryError("of compares one image with the whole index; omit within and newer_than")
    ignored = query.ignored
    own, disks = _row_of(encoder, image), Disks()
    indexed = own.id in store.fetch([own.id])
    count = store.count() - indexed
    if count < 1:
        raise QueryError(
            f"there is no {'other ' if indexed else ''}image in '{schema.collection}' to compare "
            f"{own.path} with; add some with mgm ingest"
        )
    calibration = _calibrate_on_sample(store, schema, count)
    explicit = query.distance is not None or query.precision is not None
    radius = int(CANDIDATES * schema.bits[FINE])
    if explicit or calibration.chance is not None:
        near = query.radius(calibration, count, 1)
        radius = near if explicit else max(radius, near)
    rows = _neighbours(store, schema, own, radius, 0 if explicit else NEAREST)
    itself = disks.identity(own.path)
    names = tuple(sorted(row.path for row in rows if disks.identity(row.path) == itself))
    rows = [row for row in rows if row.path not in names and (not explicit or _passes(own, row, calibration))]
    rows = _one_a_shot(own, rows, disks)
    left_out = sum(ignored.holds(own, row) for row in rows)
    rows = [row for row in rows if not ignored.holds(own, row)]
    files = Files({row.id: disks.state(row.path, row.size, row.mtime_ns) for row in rows}, {own.id: names})
    unseen = [row for row in rows if not files.is_visible(row)]
    counts = np.bincount([_distance(own, row, FINE) for row in (rows if explicit else unseen)], minlength=radius + 1)
    distance = query.choose_distance(calibration, count, counts)
    within = -1 if distance is None else distance
    looked = [row for row in rows if files.is_visible(row) and (not explicit or _distance(own, row, FINE) <= within)]
    near_unseen = [row for row in unseen if _distance(own, row, FINE) <= within and _passes(own, row, calibration)]
    groups: tuple[DuplicateGroup, ...] = ()
    with Verdicts() as eyes:
        nothing = Rows([], {}, 0, files, np.zeros(0, bool), (), np.empty(0, np.int64))
        copies = _Copies(store, nothing, eyes, progress, ignored)
        found = [
            right for (_, right), verdict in copies.verdicts_of([(own, row) for row in looked]) if verdict in COPIES
        ]
        by_id = {row.id: row for row in rows}
        members = [by_id[row.id] for row in found] + near_unseen
        if members:
            relate = copies.relation(within, calibration.limits)
            groups = (make_group([own, *members], relate, query.choice, copies.files),)
    return DuplicateReport(
        rows=count, compared=count, distance=distance, limits=calibration.limits, precision=query.required_precision,
        pairs=len(members), expected_false=_expected(calibration, count, distance) if unseen else None,
        keep=query.keep, groups=groups, seconds=time.perf_counter() - started, verdicts=copies.verdicts,
        unseen_pairs=count if unseen else 0, near_pairs=len(near_unseen), ignored=left_out, **_counts(copies.files),
    )  # fmt: skip


def _one_a_shot(own: Row, rows: Sequence[Row], disks: Disks) -> list[Row]:
    """The rows without those of the shot of ``own``, and one row of each other shot."""
    here = [row.path for row in rows if disks.state(row.path) == "here"]
    shots = Shots()
    parts = {path for group in shots.together(here) for path in group[1:]} | set(shots.parts(own.path))
    return [row for row in rows if row.path not in parts]


def _row_of(encoder: Encoder, image: str | os.PathLike[str]) -> Row:
    """The row that the image file would have."""
    path = stored_path(image)
    file = text_path(path)
    with opening(file, least=encoder.side) as decoded:
        pixels, width, height = encoder.prepare(decoded.image), decoded.width, decoded.height
    status = file.stat()
    codes = encoder.encode([pixels])
    return Row(
        image_id(path), path, status.st_size, status.st_mtime_ns, width, height, file_content(file),
        {name: values[0].tobytes() for name, values in codes.items()},
    )  # fmt: skip


def _calibrate_on_sample(store: Store, schema: Schema, count: int) -> Calibration:
    """Calibrate on the rows whose ids are below a bound: ids are hashes, so these are a random sample."""
    bound = round(SAMPLE / count * 16**8)
    where = f'id < "{bound:08x}"' if bound < 16**8 else None
    rows = [row for rows in store.scan(where, tuple(schema.bits)) for row in rows]
    words = {
        name: as_words(np.frombuffer(b"".join(row.codes[name] for row in rows), np.uint8).reshape(len(rows), bits // 8))
        for name, bits in schema.bits.items()
    }
    return calibrate(words, schema.bits)


def _neighbours(store: Store, schema: Schema, own: Row, radius: int, least: int) -> list[Row]:
    """The other rows within the radius on ``fine``, and ``least`` of them however far, with their codes."""
    code = np.frombuffer(own.codes[FINE], np.uint8)[None]
    depth = _FIRST_DEPTH
    while True:
        nearest = store.nearest(FINE, code, depth)[0]
        if len(nearest.ids) < depth or nearest.distances[-1] > radius or depth == MAX_DEPTH:
            break
        depth = min(8 * depth, MAX_DEPTH)
    others = [(i, d) for i, d in zip(nearest.ids, nearest.distances, strict=True) if i != own.id]
    ids = [i for place, (i, d) in enumerate(others) if d <= radius or place < least]
    return list(store.fetch(ids, tuple(schema.bits)).values())


def _distance(left: Row, right: Row, granularity: str) -> int:
    codes = [np.frombuffer(row.codes[granularity], np.uint8)[None] for row in (left, right)]
    return int(hamming(*codes)[0, 0])


def _passes(own: Row, row: Row, calibration: Calibration) -> bool:
    return all(_distance(own, row, name) <= limit for name, limit in calibration.limits.items())
