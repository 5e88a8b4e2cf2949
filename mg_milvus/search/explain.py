"""How an answer came about: what each granularity found, what that counted, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.records import Hit
    from mg_milvus.results import Hits
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.query import Query
    from mg_milvus.search.retrieve import Candidates, Trace


@dataclass(frozen=True, slots=True)
class FieldAnswer:
    """What one granularity answered.

    Attributes:
        weight: in the fusion.
        bits: the largest distance there can be.
        asked: candidates asked of it; None when the server fused by itself.
        found: candidates that it named.
        nearest: distance of the first of them in bits; None when there is none.
        farthest: distance of the last of them in bits: what is nearer was found. None when there is none.
        seconds: of its search; None when it was not searched by itself.
    """

    weight: float
    bits: int
    asked: int | None
    found: int | None
    nearest: int | None
    farthest: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How one hit stands on one granularity.

    Attributes:
        distance: in bits.
        found_at: place in the granularity's own answer, from 1; None when it did not name this image.
        rank: among all candidates, from 1; equal distances share their mean rank. This is what rank fusion counts.
        share: what it adds to the score; None for a granularity without weight, or when the server fused by itself.
    """

    distance: int
    found_at: int | None
    rank: float
    share: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer and how it came about.

    Attributes:
        hits: as ``query`` gives them.
        query: as it was understood: weights, fusion, depth and so on.
        plan: ``full``, ``cascade`` or ``server``.
        reason: why this plan.
        fields: granularity -> what it answered, for those with a weight.
        candidates: different images that were ranked; None when the server fused by itself.
        standings: for each hit, granularity -> how it stands; the shares of a hit add up to its score.
        seconds: step -> seconds, in the order of the steps; what is left of ``total`` is between them.
        total: seconds in all.
    """

    hits: Hits
    query: Query
    plan: str
    reason: str
    fields: Mapping[str, FieldAnswer]
    candidates: int | None
    standings: Sequence[Mapping[str, Standing]]
    seconds: Mapping[str, float]
    total: float

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON; every hit has its ``why``."""
        asked = self.query
        return {
            "plan": self.plan, "reason": self.reason, "k": asked.k, "depth": asked.depth, "fusion": asked.fusion,
            "rrf_k": asked.rrf_k, "weights": dict(asked.weights), "filter": asked.where, "regions": asked.regions,
            "fields": {name: _plain(field) for name, field in self.fields.items()},
            "candidates": self.candidates,
            "seconds": {step: round(value, 6) for step, value in self.seconds.items()},
            "total_seconds": round(self.total, 6),
            "hits": [
                hit.as_dict() | {"why": {name: _plain(standing) for name, standing in standings.items()}}
                for hit, standings in zip(self.hits, self.standings, strict=True)
            ],
        }  # fmt: skip


def explained(
    hits: Hits,
    found: Candidates | None,
    schema: Schema,
    query: Query,
    trace: Trace,
    without: Sequence[str] = (),
) -> Explanation:
    """Put together what is known of an answer.

    Args:
        hits: the answer.
        found: what it was chosen from; None when the server fused by itself.
        schema: the collection's.
        query: what was asked.
        trace: notes of the asking.
        without: ids that were left out.
    """
    total = trace.total()
    largest = query.largest(schema)
    left_out = set(without)
    answers = {name: [key for key in ids if key not in left_out] for name, (_, ids) in trace.answers.items()}
    places = {name: {key: place for place, key in enumerate(ids, 1)} for name, ids in answers.items()}
    rows = {} if found is None else {row.id: i for i, row in enumerate(found.rows)}
    fields = {}
    for name in (name for name in largest if name in query.weights):
        asked, named = trace.answers[name][0] if name in answers else None, answers.get(name)
        there = [rows[key] for key in named or () if key in rows]
        known = [] if found is None else found.distances[name][there].tolist()
        fields[name] = FieldAnswer(
            query.weights[name], largest[name], asked, None if named is None else len(named),
            min(known, default=None), max(known, default=None), trace.seconds.get(f"search {name}"),
        )  # fmt: skip
    standings = [
        {
            name: Standing(
                distance, places.get(name, {}).get(hit.id), hit.ranks[name], _share(hit, name, query, largest)
            )
            for name, distance in hit.distances.items()
        }
        for hit in hits
    ]
    plan, reason = trace.plan
    count = None if found is None else len(found.rows)
    return Explanation(hits, query, plan, reason, fields, count, standings, trace.seconds, total)


def _share(hit: Hit, name: str, query: Query, largest: Mapping[str, int]) -> float | None:
    weight = query.weights.get(name)
    if weight is None or query.fusion == "server":
        return None
    if query.fusion == "score":
        return weight * (1 - hit.distances[name] / largest[name])
    return weight / (query.rrf_k + hit.ranks[name])


def _plain(record: FieldAnswer | Standing) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__slots__}
    return {name: round(value, 6) if name == "seconds" and value else value for name, value in values.items()}
