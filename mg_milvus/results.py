"""Results of the facade, with their views in a notebook: ``Hits``, ``IngestReport``, ``IndexInfo``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from mg_milvus.html.pages import SIDE, bars_of, render, words_of
from mg_milvus.images.discover import text_path
from mg_milvus.records import FAILURES_SHOWN, Failure, Hit, Note, PassedOver, TableMatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


MAX_SHOWN = 48
"""Most images in a notebook cell: with more, the notebook file would grow too large."""


class Hits(list[Hit]):
    """Hits, best first: a list with a view for notebooks, equal to any list of the same hits.

    Attributes:
        bits: granularity -> largest possible distance in bits.
        remark: a sentence where none of the hits is related to the query image, or all were cut, or where a crop was
            compared with whole images; else empty.
    """

    def __init__(self, hits: Iterable[Hit] = (), bits: Mapping[str, int] | None = None, remark: str = "") -> None:
        super().__init__(hits)
        self.bits, self.remark = dict(bits or {}), remark

    @overload
    def __getitem__(self, place: SupportsIndex) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> Hits: ...

    def __getitem__(self, place: SupportsIndex | slice) -> Hit | Hits:
        """A hit, or ``Hits`` for a slice."""
        if isinstance(place, slice):
            return Hits(super().__getitem__(place), self.bits, self.remark)
        return super().__getitem__(place)

    def _repr_html_(self) -> str:
        """Thumbnails, scores and distances; an image that is gone or cannot be read is a placeholder."""
        from mg_milvus.images.thumbnails import thumbnail

        cards = [
            {
                "rank": " · ".join(str(own) for own in (hit.rank, words_of(hit)) if own),
                "score": f"{hit.score:.4f}",
                "path": str(path),
                "name": path.name or hit.path,
                "image": thumbnail(path, SIDE, hit.shown_box),
                "bars": bars_of(hit.distances, self.bits),
            }
            for hit in self[:MAX_SHOWN]
            for path in [text_path(hit.path)]
        ]
        return render("hits", cards=cards, count=len(self), remark=self.remark)


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Result of one ingest, in numbers of images.

    Attributes:
        seen: image files found.
        added: rows that are new.
        updated: rows encoded again because the file's content changed.
        unchanged: files whose row was up to date.
        removed: rows deleted because their file is gone (``prune``).
        failures: files that could not be read, in the order met.
        seconds: wall time.
        adapted_on: images that the hash heads were fitted on; 0 when they were not fitted in this ingest.
        interrupted: stopped by the user; the counts hold what Milvus acknowledged.
        dry_run: nothing was written; the counts are those of a real ingest.
        moved: rows that were moved to the path where their file is now.
        away: rows that ``prune`` kept although their file is not found, since its disk may be not mounted.
        passed_over: what the folders hold that was not taken, by kind.
        table: how the table of metadata fits the images; None without one.
        notes: files that were ingested though something is wrong with them.
        later: images that were encoded by hash heads fitted to others of the collection.
        far: of these, images unlike those that the heads were fitted on.
        advice: recommended improvements, in sentences, as ``IndexInfo`` has them.
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
    moved: int = 0
    away: int = 0
    passed_over: tuple[PassedOver, ...] = ()
    table: TableMatch | None = None
    notes: tuple[Note, ...] = ()
    later: int = 0
    far: int = 0
    advice: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Number of files that could not be read."""
        return len(self.failures)

    @property
    def images_per_second(self) -> float:
        """Images encoded (added or updated) a second."""
        return (self.added + self.updated) / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {
            "seen": self.seen, "added": self.added, "updated": self.updated, "unchanged": self.unchanged,
            "removed": self.removed, "failed": self.failed,
            "failures": [{"path": f.path, "reason": f.reason} for f in self.failures],
            "seconds": round(self.seconds, 3), "images_per_second": round(self.images_per_second, 1),
            "adapted_on": self.adapted_on, "interrupted": self.interrupted, "dry_run": self.dry_run,
            "moved": self.moved, "away": self.away,
            "passed_over": [{"kind": p.kind, "count": p.count, "remedy": p.remedy} for p in self.passed_over],
            "table": None if self.table is None else asdict(self.table),
            "notes": [{"path": n.path, "text": n.text} for n in self.notes],
            "later": self.later, "far": self.far, "advice": list(self.advice),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """The counts and the first failures as a table, for a notebook."""
        from mg_milvus.html.pages import render

        state = "interrupted" if self.interrupted else "dry run: nothing was written" if self.dry_run else ""
        notes = [f"{self.images_per_second:.1f} images/s", f"{self.seconds:.1f} s"] + ([state] if state else [])
        if self.adapted_on:
            notes.append(f"hash heads fitted on {self.adapted_on:,} of them")
        counts = {"added": self.added, "updated": self.updated, "unchanged": self.unchanged, "removed": self.removed}
        counts |= {"moved": self.moved} if self.moved else {}
        return render(
            "ingest", headline=f"{self.seen:,} images seen", notes=" · ".join(notes), columns=["", *counts, "failed"],
            row=("images", [f"{count:,}" for count in (*counts.values(), self.failed)]),
            failures=self.failures[:FAILURES_SHOWN], more=max(0, self.failed - FAILURES_SHOWN),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RelocateReport:
    """Result of ``ImageIndex.relocate``, in numbers of rows.

    Attributes:
        moved: rows that have the new path now.
        absent: rows that stay, since the new folder does not hold their file.
        taken: rows that stay, since the file at the new path has a row already.
    """

    moved: int
    absent: int
    taken: int

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """Facts about an index, from ``ImageIndex.info``.

    Attributes:
        uri: where the collection lives.
        server: name and version of the Milvus server.
        collection: its name.
        rows: images in it.
        schema: the collection's schema, as plain data.
        fingerprint: of the encoder that filled it.
        backbone: name of that encoder's backbone.
        heads: "adapted on N images" or "shipped", and how many later images are unlike those.
        bytes_per_image: bytes of all codes of one image.
        advice: recommended improvements, in sentences.
    """

    uri: str
    server: str
    collection: str
    rows: int
    schema: Mapping[str, Any]
    fingerprint: str
    backbone: str
    heads: str
    bytes_per_image: int
    advice: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {"advice": list(self.advice)}
