"""The small result records that cross the public surface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


FAILURES_SHOWN = 20
"""Failures that a report shows in a notebook."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a query.

    Attributes:
        rank: place in the results, from 1.
        id: primary key of the row, 32 hexadecimal digits.
        path: where the image was when it was ingested.
        score: fused score, higher is nearer; comparable within one query only.
        distances: granularity -> Hamming distance in bits.
        ranks: granularity -> rank among the candidates, from 1; equal distances share their mean rank.
        fields: the row's other fields (size, width, height, the schema's own).
        box: x, y, width and height, in pixels of the upright image, of where a detail was found; None where regions
            were not asked, or none of this image is among the nearest.
    """

    rank: int
    id: str
    path: str
    score: float
    distances: Mapping[str, int]
    ranks: Mapping[str, float]
    fields: Mapping[str, Any] = field(default_factory=dict)
    box: tuple[int, int, int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """A flat dictionary, ready for JSON: rank, id, path, score, distances, ranks, box if any, the row's fields."""
        own: dict[str, Any] = {"rank": self.rank, "id": self.id, "path": self.path, "score": self.score}
        own |= {"distances": dict(self.distances), "ranks": dict(self.ranks)}
        return own | ({"box": list(self.box)} if self.box else {}) | dict(self.fields)


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be ingested, and why.

    Attributes:
        path: the file.
        reason: why, in one line.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest, a fit or a refit is; handed to the ``progress`` callback every batch.

    Attributes:
        stage: what is being done, for people: "fitting hash heads", "encoding".
        done: images finished, failed ones included.
        total: images to do; 0 where nobody knows.
        failed: images that could not be read.
        failures: those of them that are known by name, in the order met; it may grow later.
    """

    stage: str
    done: int
    total: int
    failed: int
    failures: Sequence[Failure] = ()


Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""
