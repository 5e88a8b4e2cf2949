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
        path: where the picture was when it was ingested.
        score: fused score, higher is nearer; comparable within one query only.
        distances: granularity -> Hamming distance in bits.
        ranks: granularity -> rank among the candidates, from 1; equal distances share their mean rank.
        fields: the row's other fields (size, width, height, the schema's own).
        box: x, y, width and height, in pixels of the upright picture, of where a detail was found; None where regions
            were not asked, or none of this picture is among the nearest.
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
    """A file that could not be ingested, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest, a fit or a refit is; handed to the ``progress`` callback every batch.

    Attributes:
        stage: what is being done, for people: "fitting hash heads", "encoding".
        done: pictures finished, failed ones included.
        total: pictures to do; 0 where nobody knows.
        failed: pictures that could not be read.
        failures: those of them that are known by name, in the order met; it may grow later.
    """

    stage: str
    done: int
    total: int
    failed: int
    failures: Sequence[Failure] = ()


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What one ingest did, in pictures.

    Attributes:
        seen: picture files found.
        added: rows that are new.
        updated: rows encoded again because the file's content changed.
        unchanged: files whose row was already right.
        removed: rows deleted because their file is gone (``prune``).
        failures: files that could not be read, in the order met.
        seconds: wall time.
        adapted_on: pictures the hash heads were fitted on; 0 when they were not fitted in this ingest.
        interrupted: stopped by the user; what is counted was acknowledged by Milvus.
        dry_run: nothing was written; the counts say what would have been done.
    """

    seen: int
    added: int
    updated: int
    unchanged: int
    removed: int
    failures: tuple[Failure, ...]
    seconds: float
    adapted_on: int = 0
    interrupted: bool = False
    dry_run: bool = False

    @property
    def failed(self) -> int:
        """Number of files that could not be read."""
        return len(self.failures)

    @property
    def pictures_per_second(self) -> float:
        """Pictures encoded (added or updated) a second."""
        return (self.added + self.updated) / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {
            "seen": self.seen, "added": self.added, "updated": self.updated, "unchanged": self.unchanged,
            "removed": self.removed, "failed": self.failed,
            "failures": [{"path": f.path, "reason": f.reason} for f in self.failures],
            "seconds": round(self.seconds, 3), "pictures_per_second": round(self.pictures_per_second, 1),
            "adapted_on": self.adapted_on, "interrupted": self.interrupted, "dry_run": self.dry_run,
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """The counts and the first failures as a table, for a notebook."""
        from mg_milvus.notebook import render

        state = "interrupted" if self.interrupted else "dry run: nothing was written" if self.dry_run else ""
        told = [f"{self.pictures_per_second:.1f} pictures/s", f"{self.seconds:.1f} s"] + ([state] if state else [])
        if self.adapted_on:
            told.append(f"hash heads fitted on {self.adapted_on:,} of them")
        counts = {"added": self.added, "updated": self.updated, "unchanged": self.unchanged, "removed": self.removed}
        return render(
            "ingest", headline=f"{self.seen:,} pictures seen", told=" · ".join(told), columns=["", *counts, "failed"],
            row=("pictures", [f"{count:,}" for count in (*counts.values(), self.failed)]),
            failures=self.failures[:FAILURES_SHOWN], more=max(0, self.failed - FAILURES_SHOWN),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What ``ImageIndex.info`` tells.

    Attributes:
        uri: where the collection lives.
        server: name and version of what answers there.
        collection: its name.
        rows: pictures in it.
        schema: the schema it was made with, as plain data.
        fingerprint: the encoder that filled it.
        backbone: name of that encoder's backbone.
        heads: "adapted on N pictures" or "shipped".
        bytes_per_picture: bytes of all codes of one picture.
        advice: what would make the index better, in sentences; empty when nothing would.
    """

    uri: str
    server: str
    collection: str
    rows: int
    schema: Mapping[str, Any]
    fingerprint: str
    backbone: str
    heads: str
    bytes_per_picture: int
    advice: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {"advice": list(self.advice)}
