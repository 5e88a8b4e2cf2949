"""Ask a store for candidates: every granularity for its nearest, or the shortest one for many (a cascade)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.explanation import Trace
from mg_milvus.part_search import MOST_REGIONS, REGIONS_A_PICTURE, REGIONS_OF_MANY, Found, find_parts
from mg_milvus.question import MAX_DEPTH
from mg_milvus.schema_parts import PARTS
from mg_milvus.store.filters import among

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.question import Plan, Question
    from mg_milvus.regions import Box
    from mg_milvus.schema import Schema
    from mg_milvus.store import Row, Store

CASCADE_ROWS = 10_000_000
"""Pictures from which on ``auto`` is a cascade. Up to a million on Milvus Lite the full search is the faster one
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
    store: Store, schema: Schema, codes: Mapping[str, Codes], question: Question, without: Sequence[str] = (),
    trace: Trace | None = None,
) -> list[Candidates]:  # fmt: skip
    """What the granularities with a weight find, not ranked yet; one for each query. Arguments as for ``ask``."""
    trace = trace or Trace()
    fields = [name for name in schema.bits if name in question.weights]
    trace.plan = _plan(store, question, fields)
    cascade = trace.plan[0] == "cascade"
    if cascade:
        shortest = min(fields, key=lambda name: schema.bits[name])
        first, known = _nearest(store, codes, [shortest], question, question.first_depth + len(without), trace)
        trace.narrowed(shortest)
        with trace.timed(f"search {PARTS}") if question.parts else nullcontext():
            parts = [_parts(store, schema, codes, question, place, list(own)) for place, own in enumerate(first)]
        with trace.timed("narrow"):
            found = [
                _named(store, schema, codes, question, place, list(own), known, regions, trace)
                for place, (own, regions) in enumerate(zip(first, parts, strict=True))
            ]
    else:
        found, known = _nearest(store, codes, fields, question, question.depth + len(without), trace)
        with trace.timed(f"search {PARTS}") if question.parts else nullcontext():
            parts = [_parts(store, schema, codes, question, place) for place in range(_count(codes))]
            for own, regions in zip(found, parts, strict=True):
                reached = _reached(store, regions, question, own) if regions else []
                if regions:
                    trace.answers.setdefault(PARTS, (question.depth, reached))
                for key in reached:
                    own.setdefault(key, []).append(PARTS)
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
            if schema.parts and (regions := parts[place]):
                distances[PARTS] = regions.distances([row.id for row in there])
                boxes = [regions.box(row.id, schema.parts, row.width, row.height) for row in there]
            results.append(Candidates(there, distances, [tuple(own[row.id]) for row in there], boxes))
    return results


def _named(
    store: Store, schema: Schema, codes: Mapping[str, Codes], question: Question, place: int, ids: Sequence[str],
    rows: Mapping[str, Row], regions: Found | None, trace: Trace,
) -> dict[str, list[str]]:  # fmt: skip
    """What each granularity names of these rows, its ``pool`` nearest, as it would have done of all rows.

    Ranks depend on who else is ranked: were all these rows candidates, a cascade would not give the answer of the full
    search even if it began with everything. Ties are cut by id.
    """
    bits = {name: length for name, length in schema.bits.items() if name in question.weights}
    known = {key: rows[key].codes for key in ids if key in rows}
    if missing := [key for key in ids if key not in known]:
        known |= store.fetch_codes(missing, tuple(bits))
    distances = exact_distances(list(known.values()), codes, bits, place)
    if regions:
        distances[PARTS] = regions.distances(list(known))
    keys = np.array(list(known), dtype=np.str_)
    found: dict[str, list[str]] = {}
    for name, values in distances.items():
        named = [str(keys[row]) for row in np.lexsort((keys, values))[: question.pool]]
        if place == 0:
            trace.answers[name] = (question.pool, named)
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


def _plan(store: Store, question: Question, fields: Sequence[str]) -> tuple[Plan, str]:
    """``full`` or ``cascade``, and why; with one granularity in the question there is nothing to cascade."""
    asked = len(question.weights)
    if not fields or asked == 1:
        return "full", f"only {', '.join(question.weights)} is asked"
    if question.plan != "auto":
        return question.plan, "the question or the schema says so"
    if PARTS in question.weights:
        return "full", f"with {PARTS} in the question, auto asks everything"
    rows = store.size()
    if rows >= CASCADE_ROWS:
        return "cascade", f"auto: {rows:,} pictures, and from {CASCADE_ROWS:,} on a cascade is chosen"
    return "full", f"auto: {rows:,} pictures, fewer than the {CASCADE_ROWS:,} from which a cascade is chosen"


def _count(codes: Mapping[str, Codes]) -> int:
    return len(next(iter(codes.values())))


def _nearest(
    store: Store, codes: Mapping[str, Codes], names: Sequence[str], question: Question, depth: int, trace: Trace
) -> tuple[list[dict[str, list[str]]], dict[str, Row]]:
    """For each query, the ids that these granularities find, and which of them did; and rows that came along."""
    found: list[dict[str, list[str]]] = [{} for _ in range(_count(codes))]
    known: dict[str, Row] | None = {} if len(found) * depth <= MOST_ROWS else None
    for name in names:
        with trace.timed(f"search {name}"):
            answers = store.nearest(name, codes[name], min(depth, MAX_DEPTH), question.where, known=known)
        if answers:
            trace.answers[name] = (min(depth, MAX_DEPTH), answers[0].ids)
        for own, neighbours in zip(found, answers, strict=True):
            for key in neighbours.ids:
                own.setdefault(key, []).append(name)
    return found, known or {}


def _parts(
    store: Store, schema: Schema, codes: Mapping[str, Codes], question: Question, place: int,
    pictures: Sequence[str] | None = None,
) -> Found | None:  # fmt: skip
    """The regions near to one query's details, of all pictures that the filter lets through or of these."""
    if schema.parts is None or question.parts is None:
        return None
    if pictures is None and question.where is not None:
        few = MAX_DEPTH // schema.parts.regions
        if store.count(question.where) <= few:
            pictures = [row.id for rows in store.scan(question.where) for row in rows]
    if pictures is not None and not pictures:
        details = len(codes[PARTS][place])
        return Found([{}] * details, [schema.parts.bits] * details)
    wanted = REGIONS_OF_MANY if question.parts == "regions" else REGIONS_A_PICTURE * question.depth
    if question.parts == "detail" and (pictures is not None or question.where is not None):
        wanted = MOST_REGIONS  # every region of these pictures, or what a filter will take away asked for beforehand
    return find_parts(store, schema.parts, codes[PARTS][place], wanted, pictures)


def _reached(store: Store, regions: Found, question: Question, known: Iterable[str]) -> list[str]:
    """The pictures that the regions name: ``depth`` at most, all of which pass the filter."""
    if question.where is None:
        return regions.nearest(question.depth)
    reached, passed = regions.nearest(MAX_DEPTH), set(known)
    for start in range(0, len(reached), 1000):
        some = [key for key in reached[start : start + 1000] if key not in passed]
        if some:
            where = f"({among(some)}) and ({question.where})"
            passed |= {row.id for rows in store.scan(where) for row in rows}
    return [key for key in reached if key in passed][: question.depth]
