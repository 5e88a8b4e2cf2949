"""The overview of a collection: clusters of its first granularity, in these of its second, in these near-duplicates.

It is made from the codes that are stored, and kept beside the collection with the names that people give.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.encoder.weights import from_safetensors, to_safetensors
from mg_milvus.errors import QueryError, StoreError
from mg_milvus.html.pages import template
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import thumbnail
from mg_milvus.records import Progress
from mg_milvus.schema.models import FINE
from mg_milvus.schema.tags import readable
from mg_milvus.search.clusters import cluster_codes, count_for, k_majority, majority, near_groups, typical_places
from mg_milvus.search.verdicts import SURE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.schema.models import Schema
    from mg_milvus.session import Session
    from mg_milvus.store.base import Store


TYPICAL = 3
"""Images that stand for a cluster."""
MOST_LISTED = 20_000
"""Most images of a cluster that a query can be limited to: the ids stand in the filter."""
MOST_NAME = 80
_GROWN = 2
"""A collection that has become this many times larger, or smaller, is divided anew, not from the clusters it had."""
_SHARE = 0.15
"""Mean probability that an image of a cluster has the tag it is labelled with, at least."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClusterImage:
    """An image that stands for a cluster.

    Attributes:
        id: of its row.
        path: that it was ingested from.
    """

    id: str
    path: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Images that are alike on one granularity.

    Attributes:
        key: its number, behind those of the clusters that it lies in: ``3``, ``3.2``, ``3.2.1``.
        granularity: whose codes are alike; on ``fine`` they are near-duplicates.
        size: number of images.
        name: given by people; empty without.
        label: the tag that most tells it from the others; empty without.
        typical: the images nearest to the middle, at most ``TYPICAL``.
        parts: clusters of the next granularity, or groups of near-duplicates, which do not hold all of its images.
    """

    key: str
    granularity: str
    size: int
    name: str
    label: str
    typical: tuple[ClusterImage, ...]
    parts: tuple[Cluster, ...] = ()

    @property
    def title(self) -> str:
        """What to call it: its name, its label, or its number."""
        return self.name or self.label or f"cluster {self.key}"

    def as_dict(self, depth: int = 3) -> dict[str, Any]:
        """A dictionary, ready for JSON, with the parts of so many levels."""
        return {
            "key": self.key, "granularity": self.granularity, "size": self.size, "name": self.name,
            "label": self.label, "title": self.title,
            "typical": [{"id": one.id, "path": one.path} for one in self.typical],
            "parts": [part.as_dict(depth - 1) for part in self.parts] if depth > 0 else [],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clusters:
    """The clusters of a collection; see ``ImageIndex.clusters``.

    Attributes:
        rows: images of the collection when they were made.
        clusters: of the first granularity, neighbours beside each other.
    """

    rows: int
    clusters: tuple[Cluster, ...]
    _ids: NDArray[np.uint8] = field(repr=False)
    _places: NDArray[np.int32] = field(repr=False)

    def find(self, key_or_name: str) -> Cluster:
        """A cluster by its number, or by the name or label that it alone has, in any case.

        Raises:
            QueryError: there is none, or several.
        """
        every = list(_walk(self.clusters))
        wanted = key_or_name.casefold()
        for known in ("key", "name", "label"):
            found = [one for one in every if wanted and str(getattr(one, known)).casefold() == wanted]
            if len(found) == 1:
                return found[0]
            if found:
                keys = ", ".join(one.key for one in found[:10])
                raise QueryError(f"several clusters are called '{key_or_name}': give the number of one of them: {keys}")
        known_names = ", ".join(one.name or one.label or one.key for one in self.clusters[:20]) or "none"
        raise QueryError(
            f"there is no cluster '{key_or_name[:100]}', expected a number or a name such as {known_names}"
        )

    def ids(self, key_or_name: str) -> list[str]:
        """The ids of a cluster's images.

        Raises:
            QueryError: there is none of that name, or several.
        """
        key = [int(part) for part in self.find(key_or_name).key.split(".")]
        chosen = (self._places[:, : len(key)] == key).all(axis=1)
        return [own.tobytes().hex() for own in self._ids[chosen]]

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {"rows": self.rows, "clusters": [one.as_dict() for one in self.clusters]}


def _walk(clusters: Sequence[Cluster]) -> Iterator[Cluster]:
    for one in clusters:
        yield one
        yield from _walk(one.parts)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept beside the collection: the clusters, the middle of each, and whose codes they are made from."""

    fingerprint: str
    clusters: Clusters
    centres: Mapping[str, Codes]

    def to_bytes(self) -> bytes:
        about = {"fingerprint": self.fingerprint, **self.clusters.as_dict(),
                 "centres": {key: centre.tobytes().hex() for key, centre in self.centres.items()}}  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {"ids": self.clusters._ids, "places": self.clusters._places}
        return to_safetensors(arrays, {"about": json.dumps(about)})

    @classmethod
    def from_bytes(cls, data: bytes) -> _Kept:
        """What ``to_bytes`` has written.

        Raises:
            ValueError, KeyError, TypeError: it has not.
        """
        arrays, metadata = from_safetensors(data)
        about, ids, places = json.loads(metadata["about"]), arrays["ids"], arrays["places"]
        if ids.dtype != np.uint8 or places.dtype != np.int32 or ids.shape != (len(places), 16) or places.ndim != 2:
            raise ValueError("no ids and places of clusters")
        found = Clusters(int(about["rows"]), tuple(map(_from_dict, about["clusters"])), ids, places)
        centres = {key: np.frombuffer(bytes.fromhex(text), np.uint8) for key, text in about["centres"].items()}
        return cls(str(about["fingerprint"]), found, centres)


def _from_dict(values: Mapping[str, Any]) -> Cluster:
    return Cluster(
        str(values["key"]), str(values["granularity"]), int(values["size"]), str(values["name"]),
        str(values["label"]), tuple(ClusterImage(str(one["id"]), str(one["path"])) for one in values["typical"]),
        tuple(map(_from_dict, values["parts"])),
    )  # fmt: skip


class ClusterKeeper:
    """The clusters of the collection of a session, as they are kept beside it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: _Kept | None = None

    def clusters(self, progress: Callable[[Progress], None], *, refresh: bool = False) -> Clusters:
        """The clusters that are kept; made anew where there are none, or the collection has changed since."""
        session = self._session
        description, rows = session.existing(), session.store.count()
        kept, stale = self._kept, refresh
        if kept is None or kept.fingerprint != description.fingerprint:
            kept = self._read()
            stale = stale or (kept is not None and not self._are_there(kept.clusters))
        if kept is not None and kept.fingerprint != description.fingerprint:
            kept = None
        if kept is None or stale or kept.clusters.rows != rows:
            kept = make_clusters(session.store, description.schema, description.fingerprint, kept, progress)
            self._write(kept)
        self._kept = kept
        return kept.clusters

    def carry_over(self, new: Session) -> None:
        """Make clusters of other codes of the same images, which start from those that are kept and have their names.

        The middle of each cluster becomes that of its images' new codes. Nothing is done where none are kept.

        Args:
            new: the collection with the new codes.
        """
        kept, description = self._read(), new.existing()
        if kept is None or kept.fingerprint != self._session.existing().fingerprint:
            return
        granularities = {one.key: one.granularity for one in _walk(kept.clusters.clusters)}
        centres = {}
        for key in kept.centres:
            stored = new.store.fetch_codes(kept.clusters.ids(key), (granularities[key],))
            codes = [np.frombuffer(own[granularities[key]], np.uint8) for own in stored.values()]
            if codes:
                centres[key] = majority(np.stack(codes))[0]
        moved = replace(kept, fingerprint=description.fingerprint, centres=centres)
        made = make_clusters(new.store, description.schema, description.fingerprint, moved, lambda _: None)
        new.store.put_clusters(made.to_bytes())

    def rename(self, key_or_name: str, name: str) -> Cluster:
        """Give a cluster a name, or take it away with an empty one, and keep that.

        Raises:
            QueryError: there is no such cluster, or another one has that name, or it is too long or a number.
        """
        clusters = self.clusters(lambda _: None)
        own, name = clusters.find(key_or_name), " ".join(name.split())
        assert self._kept is not None  # noqa: S101 - clusters() has made it
        if own.key not in self._kept.centres:
            raise QueryError(f"{own.key} is a group of near-duplicates, expected a cluster: only these have names")
        if len(name) > MOST_NAME or (name and not name.strip(".0123456789")):
            raise QueryError(f"'{name[:100]}' is no name, expected at most {MOST_NAME} characters, not a number only")
        for other in _walk(clusters.clusters):
            if name and other.name.casefold() == name.casefold() and other.key != own.key:
                raise QueryError(f"cluster {other.key} is called '{name}' already: choose another name")
        renamed = tuple(_with_names(clusters.clusters, {one.key: one.name for one in _walk(clusters.clusters)}
                                    | {own.key: name}))  # fmt: skip
        changed = replace(self._kept, clusters=replace(clusters, clusters=renamed))
        self._session.store.put_clusters(changed.to_bytes())
        self._kept = changed
        return changed.clusters.find(own.key)

    def _read(self) -> _Kept | None:
        data = self._session.store.get_clusters()
        try:
            return None if data is None else _Kept.from_bytes(data)
        except (ValueError, KeyError, TypeError, OSError, RecursionError, AttributeError) as error:
            _log.warning("the clusters kept beside this collection are damaged (%s), so they are made anew", error)
            return None

    def _write(self, kept: _Kept) -> None:
        """Keep them; a failure of the store, as for a reader without the right to write, is logged."""
        try:
            self._session.store.put_clusters(kept.to_bytes())
        except StoreError as error:
            _log.warning("the clusters could not be kept, so they are made anew each time: %s", error)

    def _are_there(self, clusters: Clusters) -> bool:
        """Whether the images that stand for the clusters are in the collection: others may have as many rows."""
        ids = [one.id for own in clusters.clusters for one in own.typical]
        return len(self._session.store.fetch(ids)) == len(ids)


def make_clusters(
    store: Store, schema: Schema, fingerprint: str, kept: _Kept | None, progress: Callable[[Progress], None]
) -> _Kept:
    """Divide the images of a collection into clusters.

    Args:
        store: the collection.
        schema: its schema.
        fingerprint: of its encoder.
        kept: the clusters to start from, whose names stay; or None.
        progress: called now and then.
    """
    names = tuple(schema.bits)
    levels = [name for name in names if name != FINE][:2] or [FINE]
    read = _read_rows(store, schema, progress)
    if not len(read.ids):
        return _Kept(fingerprint, Clusters(0, (), read.ids, np.zeros((0, 3), np.int32)), {})
    similar = kept is not None and kept.clusters.rows / _GROWN < len(read.ids) < kept.clusters.rows * _GROWN
    before = kept.centres if kept is not None and similar else {}
    made = _Maker(read, levels, schema.bits, before)
    everything, done = np.arange(len(read.ids)), 0
    for number in made.divide(everything, 0, ""):
        done += number
        progress(Progress("clustering", done, len(read.ids), 0))
    tops = made.describe("", levels[0], everything)
    if kept is not None:
        tops = _with_names(tops, _matched_names(kept, made.centres))
    return _Kept(fingerprint, Clusters(len(read.ids), tuple(tops), read.ids, made.places), made.centres)


@dataclass(frozen=True, slots=True)
class _RowsRead:
    """Ids (n, 16), codes by granularity (n, bits / 8), paths, and the tags of all rows, ordered by id."""

    ids: NDArray[np.uint8]
    codes: Mapping[str, Codes]
    paths: Sequence[str]
    tags: Sequence[Mapping[str, float]]

    def shares(self, places: NDArray[np.int64]) -> dict[str, float]:
        """The mean probability of each tag in some rows."""
        sums: dict[str, float] = defaultdict(float)
        for place in places:
            for tag, probability in self.tags[place].items():
                sums[tag] += probability
        return {tag: own / len(places) for tag, own in sums.items()}


def _read_rows(store: Store, schema: Schema, progress: Callable[[Progress], None]) -> _RowsRead:
    ids, paths, tags = bytearray(), [], []
    codes: dict[str, bytearray] = defaultdict(bytearray)
    total = store.count()
    for rows in store.scan(None, tuple(schema.bits)):
        for row in rows:
            ids += bytes.fromhex(row.id)
            paths.append(row.path)
            tags.append(readable(row.tags))
        for name in schema.bits:
            codes[name] += b"".join(row.codes[name] for row in rows)
        progress(Progress("reading codes", len(paths), max(total, len(paths)), 0))
    array = np.frombuffer(bytes(ids), np.uint8).reshape(-1, 16)
    order = np.lexsort(array.T[::-1])
    return _RowsRead(
        array[order],
        {
            name: np.frombuffer(bytes(codes[name]), np.uint8).reshape(-1, bits // 8)[order]
            for name, bits in schema.bits.items()
        },
        [paths[i] for i in order],
        [tags[i] for i in order],
    )


class _Maker:
    """Divides rows level by level.

    Attributes:
        places: (n, 3) int32: the cluster of each row on each level, from 1; 0: none.
        centres: key of a cluster -> its middle (bits / 8,).
    """

    def __init__(
        self, rows: _RowsRead, levels: Sequence[str], bits: Mapping[str, int], before: Mapping[str, Codes]
    ) -> None:
        self._rows, self._levels, self._before = rows, levels, before
        self._radius = math.floor(SURE * bits[FINE]) if FINE in bits else -1
        self.places = np.zeros((len(rows.ids), 3), np.int32)
        self.centres: dict[str, Codes] = {}
        self._members: dict[str, NDArray[np.int64]] = {}

    def divide(self, members: NDArray[np.int64], level: int, key: str) -> Iterator[int]:
        """Divide rows of a cluster by the codes of a level; yields the number of rows of each part."""
        if level < len(self._levels) and (level == 0 or count_for(len(members)) > 1):
            codes = self._rows.codes[self._levels[level]][members]
            started = self._centres_before(key, codes.shape[1])
            if len(started):
                own, centres = k_majority(codes, started)
            else:
                own, centres = cluster_codes(codes, count_for(len(members)))
            self.places[members, level] = own + 1
            for number in range(len(centres)):
                inner = _join(key, number + 1)
                self.centres[inner] = centres[number]
                self._members[inner] = members[own == number]
                yield from self.divide(self._members[inner], level + 1, inner)
            return
        if self._radius >= 0:
            groups = near_groups(self._rows.codes[FINE][members], self._radius)
            self.places[members, level] = groups
            for number in range(1, int(groups.max(initial=0)) + 1):
                self._members[_join(key, number)] = members[groups == number]
        yield len(members)

    def _centres_before(self, key: str, length: int) -> Codes:
        """The middles of the parts that the cluster had; a cluster that lost all images before is a gap there."""
        start = f"{key}." if key else ""
        found = [
            centre
            for own, centre in self._before.items()
            if own.startswith(start) and own.count(".") == start.count(".") and len(centre) == length
        ]
        return np.stack(found) if found else np.zeros((0, length), np.uint8)

    def describe(self, key: str, granularity: str, whole: NDArray[np.int64]) -> list[Cluster]:
        """The parts of a cluster, groups of near-duplicates by their size; ``whole``: its rows."""
        found, number = [], 1
        around = self._rows.shares(whole)
        deeper = dict(zip(self._levels, self._levels[1:], strict=False)).get(granularity, FINE)
        while (inner := _join(key, number)) in self._members:
            members, is_group = self._members[inner], inner not in self.centres
            codes = self._rows.codes[FINE if is_group else granularity][members]
            centre = codes[0] if is_group else self.centres[inner]
            found.append(Cluster(
                inner, FINE if is_group else granularity, len(members), "",
                "" if is_group else _label(self._rows.shares(members), around),
                tuple(self._image(members[i]) for i in typical_places(codes, centre, TYPICAL)),
                () if is_group else tuple(self.describe(inner, deeper, members)),
            ))  # fmt: skip
            number += 1
        if found and found[0].key not in self.centres:
            found.sort(key=lambda one: -one.size)
        return found

    def _image(self, place: int) -> ClusterImage:
        return ClusterImage(self._rows.ids[place].tobytes().hex(), self._rows.paths[place])


def _join(key: str, number: int) -> str:
    return f"{key}.{number}" if key else str(number)


def _label(shares: Mapping[str, float], around: Mapping[str, float]) -> str:
    """The tag that is probable in a cluster, and less so in what it was divided from; empty without."""
    scored = [(own * math.log(own / around[tag]), tag) for tag, own in shares.items() if own >= _SHARE]
    score, tag = max(scored, default=(0.0, ""))
    return tag if score > 0 else ""


def _with_names(clusters: Sequence[Cluster], names: Mapping[str, str]) -> list[Cluster]:
    return [replace(one, name=names.get(one.key, ""), parts=tuple(_with_names(one.parts, names))) for one in clusters]


def _matched_names(kept: _Kept, centres: Mapping[str, Codes]) -> dict[str, str]:
    """The names that clusters had, for those of the same level that have the nearest middle now; each gets one."""
    names: dict[str, str] = {}
    for one in _walk(kept.clusters.clusters):
        centre = kept.centres.get(one.key)
        if not one.name or centre is None:
            continue
        free = [key for key, own in centres.items()
                if key not in names and key.count(".") == one.key.count(".") and len(own) == len(centre)]  # fmt: skip
        if not free:
            _log.warning("no cluster is left for the name '%s'", one.name)
            continue
        distances = hamming(centre[None], np.stack([centres[key] for key in free]))[0]
        names[free[int(distances.argmin())]] = one.name
    return names


_SIDES = 240, 120
"""Longest side in pixels of the images of a cluster, and of its parts, in a page."""


def clusters_page(clusters: Clusters, collection: str) -> str:
    """Clusters and their parts as one self-contained HTML page, with small JPEGs of their typical images.

    Args:
        clusters: see ``ImageIndex.clusters``.
        collection: its name.

    Returns:
        The HTML text, encodable as UTF-8.
    """

    def values(one: Cluster, side: int) -> dict[str, Any]:
        return {
            "title": one.title, "size": one.size, "groups": sum(part.granularity == FINE for part in one.parts),
            "typical": [{"name": os.path.basename(own.path), "thumbnail": thumbnail(text_path(own.path), side)}
                        for own in one.typical],
        }  # fmt: skip

    return template("clusters.html.jinja").render(
        collection=collection, rows=clusters.rows, made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        clusters=[values(one, _SIDES[0]) | {"parts": [values(part, _SIDES[1]) for part in one.parts]}
                  for one in clusters.clusters],
    )  # fmt: skip
