"""Search for near-duplicates: of all rows, or of one image."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.duplicates.calibration import FINE, SAMPLE, Calibration, calibrate, largest_distance
from mg_milvus.duplicates.pairs import ConnectedComponents, as_words, connected_components, distances_of, pairs_within
from mg_milvus.duplicates.report import KEEP, DuplicateReport, Files, make_group
from mg_milvus.errors import QueryError
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import image_id, text_path
from mg_milvus.images.paths import Disks, Folders, stored_path
from mg_milvus.records import Progress
from mg_milvus.store.base import Row
from mg_milvus.store.rows import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.duplicates.pairs import Pairs
    from mg_milvus.duplicates.report import DuplicateGroup
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.images.paths import State
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Store

    Report = Callable[[Progress], None]


PRECISION = 0.99
"""Default precision: at most one of a hundred pairs is expected to be near by chance."""
MAX_PAIRS_PER_IMAGE = 100
"""Mean number of near pairs of an image that bounds the search for the largest distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateQuery:
    """Options of a search for near-duplicates.

    Attributes:
        distance: largest distance of near pairs on ``fine``, in bits; None: chosen by the precision.
        precision: least expected share of the pairs that are not near by chance; None: ``PRECISION``.
        keep: a key of ``KEEP``.
        within: compare only rows under this folder.
        newer_than_ns: only pairs of which at least one file was modified later, in nanoseconds since the epoch.
    """

    distance: int | None = None
    precision: float | None = None
    keep: str = "best"
    within: str | os.PathLike[str] | None = None
    newer_than_ns: int | None = None

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


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows to compare, those newer than ``newer_than_ns`` first, otherwise in the order of their ids.

    Attributes:
        ids: of the rows.
        words: granularity -> (words, n), see ``as_words``.
        new: number of newer rows, which are compared with all.
        files: what is known of their files; a file with several names has one row here.
    """

    ids: Sequence[str]
    words: Mapping[str, NDArray[np.uint64]]
    new: int
    files: Files

    @property
    def compared(self) -> int:
        """Number of pairs of which at least one row is new."""
        return self.new * (len(self.ids) - self.new) + self.new * (self.new - 1) // 2


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
    rows = _read_rows(store, schema, query, progress)
    count, compared = len(rows.ids), rows.compared
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
    radius = query.radius(calibration, compared, rows.new)
    edges, counts = _near_pairs(rows, radius, calibration.limits, progress)
    distance = query.choose_distance(calibration, compared, counts)
    near = -1 if distance is None else distance
    ends = ((a, b) for a, b, d in zip(*(column.tolist() for column in edges), strict=True) if d <= near)
    members = [[rows.ids[row] for row in group] for group in connected_components(ends)]
    group = partial(make_group, distance=near, limits=calibration.limits, rule=query.keep, files=rows.files)
    return DuplicateReport(
        rows=count, compared=compared, distance=distance, limits=calibration.limits,
        precision=query.required_precision, pairs=int(counts[: near + 1].sum()),
        expected_false=_expected(calibration, compared, distance), keep=query.keep,
        groups=_fetch_groups(store, schema, members, group), seconds=time.perf_counter() - started,
        **_counts(rows.files),
    )  # fmt: skip


def _read_rows(store: Store, schema: Schema, query: DuplicateQuery, progress: Report) -> _Rows:
    disks = Disks()
    folders = None if query.within is None else Folders([query.within], disks)
    total, seen = store.count(), 0
    ids: list[str] = []
    old: list[bool] = []
    states: dict[str, State] = {}
    identities: list[tuple[int, int]] = []
    chunks: dict[str, list[bytes]] = defaultdict(list)
    for rows in store.scan(None, tuple(schema.bits)):
        seen += len(rows)
        chosen = [row for row in rows if folders is None or folders.holds(row.path)]
        ids += [row.id for row in chosen]
        old += [query.newer_than_ns is not None and row.mtime_ns <= query.newer_than_ns for row in chosen]
        for row in chosen:
            state = disks.state(row.path, row.size, row.mtime_ns)
            identities.append(disks.identity(row.path) if state in {"here", "changed"} else (0, 0))
            if state != "here":
                states[row.id] = state
        for name in schema.bits:
            chunks[name].append(b"".join(row.codes[name] for row in chosen))
        progress(Progress("reading codes", seen, max(total, seen), 0))
    names = _names(store, ids, identities)
    aliases = {i for some in names.values() for i, _ in some}
    order = np.lexsort((np.array(ids), np.array(old, bool)))
    order = order[[ids[row] not in aliases for row in order]]
    words = {
        name: as_words(np.frombuffer(b"".join(chunks.pop(name, [])), np.uint8).reshape(len(ids), bits // 8)[order])
        for name, bits in schema.bits.items()
    }
    files = Files(
        {i: state for i, state in states.items() if i not in aliases},
        {i: tuple(path for _, path in some) for i, some in names.items()},
    )
    return _Rows([ids[row] for row in order], words, sum(not old[row] for row in order), files)


def _names(store: Store, ids: Sequence[str], identities: Sequence[tuple[int, int]]) -> dict[str, list[tuple[str, str]]]:
    """Of files with several rows, the id of the row to compare -> ids and paths of the others.

    The row whose path leads to the file without links is taken, then the first by path.
    """
    places: dict[tuple[int, int], list[str]] = defaultdict(list)
    for i, identity in zip(ids, identities, strict=True):
        if identity != (0, 0):
            places[identity].append(i)
    several = [some for some in places.values() if len(some) > 1]
    rows = store.fetch([i for some in several for i in some]) if several else {}
    names: dict[str, list[tuple[str, str]]] = {}
    for some in several:
        paths = sorted((rows[i].path for i in some if i in rows), key=lambda path: (_is_link(path), path))
        names[image_id(paths[0])] = [(image_id(path), path) for path in paths[1:]]
    return names


def _is_link(path: str) -> bool:
    """Whether a link leads to a file, at its name or at a folder on the way."""
    file = os.fspath(text_path(path))
    return os.path.realpath(file) != file


def _counts(files: Files) -> dict[str, int]:
    states = list(files.states.values())
    return {"missing": states.count("gone"), "away": states.count("away"), "changed": states.count("changed")}


def _sample(rows: _Rows) -> dict[str, NDArray[np.uint64]]:
    """The codes of a random sample of the rows, with a fixed seed."""
    count = len(rows.ids)
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:SAMPLE])
    return {name: words[:, chosen] for name, words in rows.words.items()}


def _near_pairs(
    rows: _Rows, radius: int, limits: Mapping[str, int], progress: Report
) -> tuple[Pairs, NDArray[np.int64]]:
    """The minimum spanning forest of the near pairs, and their number at each distance up to the radius."""
    components = ConnectedComponents(len(rows.ids))
    counts = np.zeros(radius + 1, np.int64)

    def report(done: int) -> None:
        progress(Progress("comparing", done, rows.new, 0))

    for pairs in pairs_within(rows.words[FINE], radius, rows.new, report):
        near = np.ones(len(pairs.left), bool)
        for name, limit in limits.items():
            near &= distances_of(rows.words[name], pairs.left, pairs.right) <= limit
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
    store: Store, schema: Schema, encoder: Encoder, image: str | os.PathLike[str], query: DuplicateQuery
) -> DuplicateReport:
    """Find the rows that are near to an image file; see ``ImageIndex.duplicates``.

    Reads a sample of the rows, and the image's neighbours by a Milvus search: exact on Milvus Lite, approximate on
    servers (``nprobe`` or ``ef`` of the schema), and at most 16,384 rows.

    Raises:
        QueryError: an option is out of range or does not apply to one image, or there are too few rows.
        ImageError: the image cannot be read.
    """
    started = time.perf_counter()
    query.check(schema)
    if query.within is not None or query.newer_than_ns is not None:
        raise QueryError("of compares one image with the whole index; omit within and newer_than")
    own, disks = _row_of(encoder, image), Disks()
    indexed = own.id in store.fetch([own.id])
    count = store.count() - indexed
    if count < 1:
        raise QueryError(
            f"there is no {'other ' if indexed else ''}image in '{schema.collection}' to compare "
            f"{own.path} with; add some with mgm ingest"
        )
    calibration = _calibrate_on_sample(store, schema, count)
    radius = query.radius(calibration, count, 1)
    rows = [row for row in _neighbours(store, schema, own, radius) if _passes(own, row, calibration)]
    itself = disks.identity(own.path)
    names = tuple(sorted(row.path for row in rows if disks.identity(row.path) == itself))
    rows = [row for row in rows if row.path not in names]
    files = Files({row.id: disks.state(row.path, row.size, row.mtime_ns) for row in rows}, {own.id: names})
    distances = np.array([_distance(own, row, FINE) for row in rows], np.int64)
    distance = query.choose_distance(calibration, count, np.bincount(distances, minlength=radius + 1))
    near = [] if distance is None else [row for row, d in zip(rows, distances, strict=True) if d <= distance]
    groups: tuple[DuplicateGroup, ...] = ()
    if distance is not None and near:
        groups = (make_group([own, *near], distance, calibration.limits, query.keep, files),)
    return DuplicateReport(
        rows=count, compared=count, distance=distance, limits=calibration.limits, precision=query.required_precision,
        pairs=len(near), expected_false=_expected(calibration, count, distance), keep=query.keep, groups=groups,
        seconds=time.perf_counter() - started, **_counts(files),
    )  # fmt: skip


def _row_of(encoder: Encoder, image: str | os.PathLike[str]) -> Row:
    """The row that the image file would have."""
    path = stored_path(image)
    file = text_path(path)
    with opening(file, least=encoder.side) as decoded:
        pixels, width, height = encoder.prepare(decoded.image), decoded.width, decoded.height
    status = file.stat()
    codes = encoder.encode([pixels])
    return Row(
        image_id(path), path, status.st_size, status.st_mtime_ns, width, height, "",
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


def _neighbours(store: Store, schema: Schema, own: Row, radius: int) -> list[Row]:
    """The other rows within the radius on ``fine``, with their codes."""
    code = np.frombuffer(own.codes[FINE], np.uint8)[None]
    depth = _FIRST_DEPTH
    while True:
        nearest = store.nearest(FINE, code, depth)[0]
        if len(nearest.ids) < depth or nearest.distances[-1] > radius or depth == MAX_DEPTH:
            break
        depth = min(8 * depth, MAX_DEPTH)
    ids = [i for i, d in zip(nearest.ids, nearest.distances, strict=True) if d <= radius and i != own.id]
    return list(store.fetch(ids, tuple(schema.bits)).values())


def _distance(left: Row, right: Row, granularity: str) -> int:
    codes = [np.frombuffer(row.codes[granularity], np.uint8)[None] for row in (left, right)]
    return int(hamming(*codes)[0, 0])


def _passes(own: Row, row: Row, calibration: Calibration) -> bool:
    return all(_distance(own, row, name) <= limit for name, limit in calibration.limits.items())
