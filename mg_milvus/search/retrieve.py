"""Retrieve the candidates of a query: the nearest images of every granularity, with their exact distances on all."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming, pack, weighted_hamming
from mg_milvus.schema.models import REGIONS, TEXT
from mg_milvus.search.explain import Trace
from mg_milvus.search.query import MAX_DEPTH
from mg_milvus.search.regions import (
    MAX_REGIONS,
    REGIONS_OF_MANY,
    REGIONS_PER_IMAGE,
    RegionMatches,
    search_regions,
)
from mg_milvus.store.filter_language import both
from mg_milvus.store.filters import among

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes, QueryCodes, RealCodes
    from mg_milvus.records import Box
    from mg_milvus.schema.models import RegionSettings, Schema
    from mg_milvus.search.query import Query
    from mg_milvus.store.base import Row, Store

    CodesOf = dict[str, Mapping[str, bytes]]
    """Image id -> granularity -> code."""
    RetrievedBy = dict[str, list[str]]
    """Image id -> the granularities whose search returned it."""


MAX_INLINE = 10_000
"""Most hits whose codes are returned inline with the search results. The results of many queries overlap, so beyond
this number it is faster to fetch the codes of each image once."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Codes of n query images, and how to search with them.

    Attributes:
        codes: see ``QueryCodes``, for every granularity of the schema; with regions, where the query has them.
        query: the checked options.
        exclude: ids to leave out of the results.
        trace: records the steps.
    """

    codes: QueryCodes
    query: Query
    exclude: Sequence[str] = ()
    trace: Trace = field(default_factory=Trace)

    @property
    def size(self) -> int:
        """Number of query images; 1 for words without an image."""
        return len(next(iter(self.codes.values()))) if self.codes else 1


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of one query image.

    Attributes:
        ids: (n) ids, all different.
        codes: (n) granularity -> code, for every granularity of the schema.
        distances: granularity -> (n,) float64 distances in bits, see ``weighted_hamming``, for every granularity of the
            schema; of regions (n,) float64, see ``search.regions``.
        differing: the same as Hamming distances, (n,) int32: they are shown and judged, ``distances`` rank; of regions
            and of words both are the same.
        retrieved_by: (n) the granularities whose search returned the row.
        regions: the schema's, and the stored ones that match; None where the query has no regions.
    """

    ids: Sequence[str]
    codes: Sequence[Mapping[str, bytes]]
    distances: Mapping[str, NDArray[Any]]
    differing: Mapping[str, NDArray[Any]]
    retrieved_by: Sequence[tuple[str, ...]]
    regions: tuple[RegionSettings, RegionMatches] | None

    def box(self, row: Row) -> Box | None:
        """The box of an image's best matching region, in pixels of the upright original; None: none was retrieved."""
        if self.regions is None:
            return None
        settings, matches = self.regions
        return matches.box(row.id, settings, row.width, row.height)


def retrieve(store: Store, schema: Schema, request: SearchRequest) -> list[Candidates]:
    """The candidates of each query image, not ranked yet: what the granularities with a weight retrieve."""
    return _Retrieval(store, schema, request).run()


def stacked(stored: Sequence[Mapping[str, bytes]], bits: Mapping[str, int]) -> dict[str, Codes]:
    """The codes of n stored images: granularity -> (n, bits / 8) uint8."""
    return {
        name: np.frombuffer(b"".join(own[name] for own in stored), np.uint8).reshape(len(stored), length // 8)
        for name, length in bits.items()
    }


def exact_distances(stored: Mapping[str, Codes], codes: QueryCodes, i: int) -> dict[str, NDArray[np.float64]]:
    """Distances of query image ``i`` to n stored images: granularity -> (n,) float64 bits, see ``weighted_hamming``.

    Of an image with views it is the distance of the nearest of them. A granularity without codes of the image is left
    out.
    """
    return {
        name: weighted_hamming(_views(codes[name][i]), own).min(axis=0) for name, own in stored.items() if name in codes
    }


def differing_bits(stored: Mapping[str, Codes], codes: QueryCodes, i: int) -> dict[str, NDArray[np.int32]]:
    """Hamming distances of query image ``i`` to n stored images: granularity -> (n,) int32; else as above."""
    return {
        name: hamming(pack(_views(codes[name][i])), own).min(axis=0) for name, own in stored.items() if name in codes
    }


def _views(code: RealCodes) -> RealCodes:
    """The codes (views, bits) of one query image; without views it has one."""
    return code.reshape(-1, code.shape[-1])


class _Retrieval:
    """One retrieval: its request, and where to search."""

    def __init__(self, store: Store, schema: Schema, request: SearchRequest) -> None:
        self._store, self._schema = store, schema
        self._codes, self._query = request.codes, request.query
        self._exclude, self._trace, self._size = request.exclude, request.trace, request.size

    def run(self) -> list[Candidates]:
        fields = [name for name in self._schema.bits if name in self._query.weights]
        retrieved, matches, codes = self._search_all(fields)
        if self._query.words is not None:
            with self._trace.timed(f"search {TEXT}"):
                depth = min(self._query.depth + len(self._exclude), MAX_DEPTH)
                ids = self._query.words.retrieve(self._store, depth, self._query.where)
            self._trace.results[TEXT] = (self._query.depth, ids)
            for own, key in itertools.product(retrieved, ids):
                own.setdefault(key, []).append(TEXT)
        with self._trace.timed("fetch"):
            missing = list(dict.fromkeys(key for own in retrieved for key in own if key not in codes))
            if missing:
                codes |= self._store.fetch_codes(missing, tuple(self._schema.bits))
            excluded = set(self._exclude)
            # An image that was deleted between the search and the fetch is no candidate.
            retrieved = [
                {key: names for key, names in own.items() if key in codes and key not in excluded} for own in retrieved
            ]
            said = self._words_of(dict.fromkeys(key for own in retrieved for key in own))
        with self._trace.timed("distances"):
            return [self._candidates(i, own, matches[i], (codes, said)) for i, own in enumerate(retrieved)]

    def _search_all(self, fields: Sequence[str]) -> tuple[list[RetrievedBy], list[RegionMatches | None], CodesOf]:
        """Search every field, and the regions, for the ``depth`` nearest."""
        query = self._query
        retrieved, codes = self._search(fields, query.depth + len(self._exclude))
        with self._timed_regions():
            matches = [self._search_regions(i) for i in range(self._size)]
            for own, found in zip(retrieved, matches, strict=True):
                if found is None:
                    continue
                images = self._filtered(found, own)
                self._trace.results.setdefault(REGIONS, (query.depth, images))
                for key in images:
                    own.setdefault(key, []).append(REGIONS)
        return retrieved, matches, codes

    def _search(self, fields: Sequence[str], depth: int) -> tuple[list[RetrievedBy], CodesOf]:
        """Search fields: for each query image the ids and the fields that returned them; and codes returned inline."""
        retrieved: list[RetrievedBy] = [{} for _ in range(self._size)]
        known: CodesOf | None = {} if self._size * depth <= MAX_INLINE else None
        for name in fields:
            with self._trace.timed(f"search {name}"):
                results = self._nearest(name, min(depth, MAX_DEPTH), known)
            if results:
                self._trace.results[name] = (min(depth, MAX_DEPTH), results[0])
            for own, ids in zip(retrieved, results, strict=True):
                for key in ids:
                    own.setdefault(key, []).append(name)
        return retrieved, known or {}

    def _nearest(self, name: str, depth: int, known: CodesOf | None) -> list[Sequence[str]]:
        """For each query image the ids of the ``depth`` nearest, ties by id; of one with views, to any of them."""
        codes = self._codes[name]
        every = pack(codes.reshape(-1, codes.shape[-1]))
        results = self._store.nearest(name, every, depth, self._query.where, known=known)
        if codes.ndim == 2:
            return [neighbours.ids for neighbours in results]
        nearest: list[Sequence[str]] = []
        for start in range(0, len(results), codes.shape[1]):
            distances: dict[str, int] = {}
            for neighbours in results[start : start + codes.shape[1]]:
                for key, distance in zip(neighbours.ids, neighbours.distances.tolist(), strict=True):
                    distances[key] = min(distance, distances.get(key, distance))
            nearest.append(sorted(distances, key=lambda key: (distances[key], key))[:depth])
        return nearest

    def _timed_regions(self) -> AbstractContextManager[None]:
        return self._trace.timed(f"search {REGIONS}") if self._query.regions else nullcontext()

    def _search_regions(self, i: int) -> RegionMatches | None:
        """The regions nearest to query image ``i``; None: the query has no regions."""
        query, settings = self._query, self._schema.regions
        if settings is None or query.regions is None:
            return None
        codes = self._codes[REGIONS][i]
        # A filter that few images pass is applied first.
        images = None
        if query.where is not None and self._store.count(query.where) <= MAX_DEPTH // settings.count:
            images = [row_id for rows in self._store.values(("id",), query.where) for (row_id,) in rows]
        if images is not None and not images:
            count = len(codes) if query.regions == "overlap" else 1
            return RegionMatches([{}] * count, [settings.bits] * count)
        depth = REGIONS_OF_MANY if query.regions == "overlap" else REGIONS_PER_IMAGE * query.depth
        if query.regions == "contains" and (images is not None or query.where is not None):
            depth = MAX_REGIONS  # every region of these images; or enough, as the filter removes some afterwards
        return search_regions(self._store, settings, (codes, query.regions), depth, images)

    def _filtered(self, matches: RegionMatches, passed: Iterable[str]) -> list[str]:
        """The ``depth`` nearest images by regions that pass the filter; ``passed`` are known to pass it."""
        depth, where = self._query.depth, self._query.where
        if where is None:
            return matches.nearest_images(depth)
        images, passing = matches.nearest_images(MAX_DEPTH), set(passed)
        for start in range(0, len(images), 1000):
            unknown = [key for key in images[start : start + 1000] if key not in passing]
            if unknown:
                matching = self._store.values(("id",), both(where, among(unknown)))
                passing |= {row_id for rows in matching for (row_id,) in rows}
        return [key for key in images if key in passing][:depth]

    def _words_of(self, ids: Iterable[str]) -> dict[str, tuple[float, float]]:
        """Image id -> its distances to the words of the query: that which ranks, and that which is shown."""
        if self._query.words is None:
            return {}
        rows = list(self._store.fetch(list(ids), tuple(self._schema.bits)).values())
        far, shown = self._query.words.distances(rows)
        return dict(zip((row.id for row in rows), zip(far.tolist(), shown.tolist(), strict=True), strict=True))

    def _candidates(
        self, i: int, retrieved: RetrievedBy, matches: RegionMatches | None,
        stored: tuple[CodesOf, Mapping[str, tuple[float, float]]],
    ) -> Candidates:  # fmt: skip
        codes_of, said = stored
        ids = [key for key in retrieved if self._query.words is None or key in said]
        codes = [codes_of[key] for key in ids]
        others: dict[str, NDArray[Any]] = {}
        shown: dict[str, NDArray[Any]] = {}
        if self._query.words is not None:
            others[TEXT], shown[TEXT] = np.array([said[key] for key in ids], np.float64).reshape(len(ids), 2).T
        regions = None
        if self._schema.regions and matches:
            regions = self._schema.regions, matches
            others[REGIONS] = matches.distances(ids)
        packed = stacked(codes, self._schema.bits)
        distances = {**exact_distances(packed, self._codes, i), **others}
        differing = {**differing_bits(packed, self._codes, i), **others, **shown}
        return Candidates(ids, codes, distances, differing, [tuple(retrieved[key]) for key in ids], regions)
