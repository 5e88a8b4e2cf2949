"""How an answer came about: what each granularity found, what that counted, and where the time went."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.schema.regions import REGIONS
from mg_milvus.search.query import MAX_DEPTH
from mg_milvus.search.regions import MOST_REGIONS, REGIONS_OF_MANY, REGIONS_PER_IMAGE, Found, find_regions
from mg_milvus.store.filters import among

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.records import Box
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.query import Plan, Query
    from mg_milvus.store.base import Row, Store


class Trace:
    """Notes taken while one query is asked. Taking them costs microseconds, so every query does.

    Attributes:
        plan: ``full``, ``cascade`` or ``server``; why.
        seconds: step -> seconds, in the order of the steps.
        answers: granularity -> how many it was asked for, and the ids of the first query's answer, nearest first. In a
            cascade: what it named of the candidates.
    """

    def __init__(self) -> None:
        self.plan = ("", "")
        self.seconds: dict[str, float] = {}
        self.answers: dict[str, tuple[int, Sequence[str]]] = {}
        self._started = time.perf_counter()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure a step; one that comes again adds up."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started

    def narrowed(self, name: str) -> None:
        """The plan goes on with what this granularity has answered."""
        asked, ids = self.answers.get(name, (0, ()))
        plan, reason = self.plan
        self.plan = plan, f"{reason}; {name} was asked for {asked:,} and named {len(ids):,}"

    def total(self) -> float:
        """Seconds since the notes were begun."""
        return time.perf_counter() - self._started


CASCADE_ROWS = 10_000_000
"""Images from which on ``auto`` is a cascade. Up to a million on Milvus Lite the full search is the faster one
(benchmarks/cascade.py); more were not measured."""

MOST_ROWS = 10_000
"""Rows that each search is asked to bring along, at most. Of many queries at once the answers overlap, and it is better
to fetch each row once."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What one query has to choose from.

    Attributes:
        rows: (n) rows, all different, with their codes.
        distances: granularity -> (n,) int32 Hamming distances in bits, for every granularity of the schema.
        found_by: (n) the granularities that named the row among their nearest.
        boxes: (n) where the details were found, in pixels of the upright original; None: nowhere, or none were asked.
    """

    rows: Sequence[Row]
    distances: Mapping[str, NDArray[np.int32]]
    found_by: Sequence[tuple[str, ...]]
    boxes: Sequence[Box | None]


def candidates(
    store: Store, schema: Schema, codes: Mapping[str, Codes], query: Query, without: Sequence[str] = (),
    trace: Trace | None = None,
) -> list[Candidates]:  # fmt: skip
    """What the granularities with a weight find, not ranked yet; one for each query. Arguments as for ``ask``."""
    trace = trace or Trace()
    fields = [name for name in schema.bits if name in query.weights]
    trace.plan = _plan(store, query, fields)
    cascade = trace.plan[0] == "cascade"
    if cascade:
        shortest = min(fields, key=lambda name: schema.bits[name])
        first, known = _nearest(store, codes, [shortest], query, query.first_depth + len(without), trace)
        trace.narrowed(shortest)
        with trace.timed(f"search {REGIONS}") if query.regions else nullcontext():
            regions = [_regions(store, schema, codes, query, place, list(own)) for place, own in enumerate(first)]
        with trace.timed("narrow"):
            found = [
                _named(store, schema, codes, query, place, list(own), known, reachable, trace)
                for place, (own, reachable) in enumerate(zip(first, regions, strict=True))
            ]
    else:
        found, known = _nearest(store, codes, fields, query, query.depth + len(without), trace)
        with trace.timed(f"search {REGIONS}") if query.regions else nullcontext():
            regions = [_regions(store, schema, codes, query, place) for place in range(_count(codes))]
            for own, reachable in zip(found, regions, strict=True):
                reached = _reached(store, reachable, query, own) if reachable else []
                if reachable:
                    trace.answers.setdefault(REGIONS, (query.depth, reached))
                for key in reached:
                    own.setdefault(key, []).append(REGIONS)
    with trace.timed("fetch"):
        missing = list(dict.fromkeys(key for own in found for key in own if key not in known))
        rows = {**known, **store.fetch(missing, tuple(schema.bits))} if missing else known
    left_out = set(without)
    results = []
    with trace.timed("distances"):
        for place, own in enumerate(found):
            # A row that was deleted between the search and the fetch is no candidate.
            there = [rows[key] for key in own if key in rows and key not in left_out]
            distances = exact_distances([row.codes for row in there], codes, schema.bits, place)
            boxes: list[Box | None] = [None] * len(there)
            if schema.regions and (reachable := regions[place]):
                distances[REGIONS] = reachable.distances([row.id for row in there])
                boxes = [reachable.box(row.id, schema.regions, row.width, row.height) for row in there]
            results.append(Candidates(there, distances, [tuple(own[row.id]) for row in there], boxes))
    return results


def _named(
    store: Store, schema: Schema, codes: Mapping[str, Codes], query: Query, place: int, ids: Sequence[str],
    rows: Mapping[str, Row], regions: Found | None, trace: Trace,
) -> dict[str, list[str]]:  # fmt: skip
    """What each granularity names of these rows, its ``pool`` nearest, as it would have done of all rows.

    Ranks depend on who else is ranked: were all these rows candidates, a cascade would not give the answer of the full
    search even if it began with everything. Ties are cut by id.
    """
    bits = {name: length for name, length in schema.bits.items() if name in query.weights}
    known = {key: rows[key].codes for key in ids if key in rows}
    if missing := [key for key in ids if key not in known]:
        known |= store.fetch_codes(missing, tuple(bits))
    distances = exact_distances(list(known.values()), codes, bits, place)
    if regions:
        distances[REGIONS] = regions.distances(list(known))
    keys = np.array(list(known), dtype=np.str_)
    found: dict[str, list[str]] = {}
    for name, values in distances.items():
        named = [str(keys[row]) for row in np.lexsort((keys, values))[: query.pool]]
        if place == 0:
            trace.answers[name] = (query.pool, named)
        for key in named:
            found.setdefault(key, []).append(name)
    return found


def exact_distances(
    known: Sequence[Mapping[str, bytes]], codes: Mapping[str, Codes], bits: Mapping[str, int], place: int
) -> dict[str, NDArray[np.int32]]:
    """Exact distances of one query to all its candidates: granularity -> (n,)."""
    return {
        name: hamming(
            codes[name][place : place + 1],
            np.frombuffer(b"".join(own[name] for own in known), np.uint8).reshape(len(known), bits[name] // 8),
        )[0]
        for name in bits
    }


def _plan(store: Store, query: Query, fields: Sequence[str]) -> tuple[Plan, str]:
    """``full`` or ``cascade``, and why; with one granularity in the query there is nothing to cascade."""
    asked = len(query.weights)
    if not fields or asked == 1:
        return "full", f"only {', '.join(query.weights)} is asked"
    if query.plan != "auto":
        return query.plan, "the query or the schema says so"
    if REGIONS in query.weights:
        return "full", f"with {REGIONS} in the query, auto asks everything"
    rows = store.size()
    if rows >= CASCADE_ROWS:
        return "cascade", f"auto: {rows:,} images, and from {CASCADE_ROWS:,} on a cascade is chosen"
    return "full", f"auto: {rows:,} images, fewer than the {CASCADE_ROWS:,} from which a cascade is chosen"


def _count(codes: Mapping[str, Codes]) -> int:
    return len(next(iter(codes.values())))


def _nearest(
    store: Store, codes: Mapping[str, Codes], names: Sequence[str], query: Query, depth: int, trace: Trace
) -> tuple[list[dict[str, list[str]]], dict[str, Row]]:
    """For each query, the ids that these granularities find, and which of them did; and rows that came along."""
    found: list[dict[str, list[str]]] = [{} for _ in range(_count(codes))]
    known: dict[str, Row] | None = {} if len(found) * depth <= MOST_ROWS else None
    for name in names:
        with trace.timed(f"search {name}"):
            answers = store.nearest(name, codes[name], min(depth, MAX_DEPTH), query.where, known=known)
        if answers:
            trace.answers[name] = (min(depth, MAX_DEPTH), answers[0].ids)
        for own, neighbours in zip(found, answers, strict=True):
            for key in neighbours.ids:
                own.setdefault(key, []).append(name)
    return found, known or {}


def _regions(
    store: Store, schema: Schema, codes: Mapping[str, Codes], query: Query, place: int,
    images: Sequence[str] | None = None,
) -> Found | None:  # fmt: skip
    """The regions near to one query's details, of all images that the filter lets through or of these."""
    if schema.regions is None or query.regions is None:
        return None
    if images is None and query.where is not None:
        few = MAX_DEPTH // schema.regions.count
        if store.count(query.where) <= few:
            images = [row.id for rows in store.scan(query.where) for row in rows]
    if images is not None and not images:
        details = len(codes[REGIONS][place])
        return Found([{}] * details, [schema.regions.bits] * details)
    wanted = REGIONS_OF_MANY if query.regions == "overlap" else REGIONS_PER_IMAGE * query.depth
    if query.regions == "contains" and (images is not None or query.where is not None):
        wanted = MOST_REGIONS  # every region of these images, or what a filter will take away asked for beforehand
    return find_regions(store, schema.regions, codes[REGIONS][place], wanted, images)


def _reached(store: Store, regions: Found, query: Query, known: Iterable[str]) -> list[str]:
    """The images that the regions name: ``depth`` at most, all of which pass the filter."""
    if query.where is None:
        return regions.nearest(query.depth)
    reached, passed = regions.nearest(MAX_DEPTH), set(known)
    for start in range(0, len(reached), 1000):
        some = [key for key in reached[start : start + 1000] if key not in passed]
        if some:
            where = f"({among(some)}) and ({query.where})"
            passed |= {row.id for rows in store.scan(where) for row in rows}
    return [key for key in reached if key in passed][: query.depth]
