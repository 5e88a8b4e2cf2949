"""The trace of a query, and the explanation of its results that is made from it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mg_milvus.results import Hits
    from mg_milvus.search.query import Query


class Trace:
    """Records the steps of one query. That costs microseconds, so every query does it.

    Attributes:
        seconds: step -> seconds, in the order of the steps.
        results: granularity -> the depth of its search and the ids of the first query's candidates, nearest first.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.results: dict[str, tuple[int, Sequence[str]]] = {}
        self._started = time.perf_counter()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure a step; the seconds of a repeated step add up."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started

    def total(self) -> float:
        """Seconds since the trace was created."""
        return time.perf_counter() - self._started


@dataclass(frozen=True, slots=True)
class FieldResult:
    """The search of one granularity's field.

    Attributes:
        weight: of the granularity in the fusion.
        bits: the largest possible distance.
        depth: candidates requested; None when the server fused.
        candidates: candidates retrieved; None when the server fused.
        nearest: distance of the first candidate in bits; None when there is none.
        farthest: distance of the last candidate in bits; None when there is none.
        seconds: of the search; None when the field was not searched on its own.
    """

    weight: float
    bits: int
    depth: int | None
    candidates: int | None
    nearest: int | None
    farthest: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one granularity contributes to one hit.

    Attributes:
        distance: in bits.
        position: in the granularity's own search results, from 1; None when the search did not return this image.
        rank: among all candidates, from 1; equal distances share their mean rank. Rank fusion uses this rank.
        score: its term of the fused score; None for a granularity without a weight, or when the server fused.
    """

    distance: int
    position: int | None
    rank: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The hits of one query, and how their scores were computed.

    Attributes:
        hits: the same as ``query`` returns.
        query: the checked query: weights, fusion, depth and so on.
        fields: granularity -> its search, for those with a weight.
        candidates: number of different images that were ranked; None when the server fused.
        contributions: for each hit, granularity -> its contribution; the scores of a hit's contributions add up to the
            hit's score.
        seconds: step -> seconds, in the order of the steps; the time between steps is in ``total_seconds`` only.
        total_seconds: of the whole query.
    """

    hits: Hits
    query: Query
    fields: Mapping[str, FieldResult]
    candidates: int | None
    contributions: Sequence[Mapping[str, Contribution]]
    seconds: Mapping[str, float]
    total_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON; every hit has its ``contributions``."""
        query = self.query
        return {
            "k": query.k, "depth": query.depth, "fusion": query.fusion,
            "rrf_k": query.rrf_k, "weights": dict(query.weights), "filter": query.where, "regions": query.regions,
            "fields": {name: _as_dict(field) for name, field in self.fields.items()},
            "candidates": self.candidates, "remark": self.hits.remark or None,
            "seconds": {step: round(value, 6) for step, value in self.seconds.items()},
            "total_seconds": round(self.total_seconds, 6),
            "hits": [
                hit.as_dict() | {"contributions": {name: _as_dict(value) for name, value in contributions.items()}}
                for hit, contributions in zip(self.hits, self.contributions, strict=True)
            ],
        }  # fmt: skip


def _as_dict(record: FieldResult | Contribution) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__slots__}
    return {name: round(value, 6) if name == "seconds" and value else value for name, value in values.items()}
