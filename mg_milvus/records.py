"""The small result records that cross the public surface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


FAILURES_SHOWN = 20
"""Most failures that a report shows in a notebook."""


HitVerdict = Literal["same image", "same object or scene", "same kind", "loosely similar", "nothing in common"]
"""What a hit is to the query image, from the nearest to the farthest."""
VERDICTS: tuple[HitVerdict, ...] = get_args(HitVerdict)
MINIMA: dict[str, HitVerdict] = dict(
    zip(("same-image", "same-object", "same-kind", "loosely-similar"), VERDICTS, strict=False)
)
"""Values of the option ``min`` of a query, and the least verdict that each lets pass."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a query image is to a hit, by their pixels.

    Attributes:
        verdict: identical file, same image, edited, same object (the hit shows the flat object that the query image
            is), similar or different; or why the hit cannot be looked at: file gone, file not found, cannot be read.
        box: x, y, width and height of what the query image shows, in pixels of the upright hit; None for the others
            than the first four.
    """

    verdict: str
    box: tuple[int, int, int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {"verdict": self.verdict, "box": None if self.box is None else list(self.box)}


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a query.

    Attributes:
        rank: place in the results, from 1.
        id: primary key of the row, 32 hexadecimal digits.
        path: path (or URI) that the image was ingested from.
        score: fused score, higher is nearer; comparable within one query only.
        distances: granularity -> Hamming distance in bits; of ``text`` in percent that are missing to certainty.
        ranks: granularity -> rank among the candidates, from 1; equal distances share their mean rank.
        fields: the row's other fields (size, width, height, the schema's own); ``tags``: what the image shows, name
            or group -> probability.
        box: x, y, width and height of the best matching region, in pixels of the upright image; None when the query
            has no regions, or no region of this image is among the nearest.
        verified: what the query image is to it by their pixels; None when that was not asked for, and behind the first
            ten hits.
        verdict: what it is to the query image by their codes; None where the collection has too few images to tell.
        confidence: probability that it is of the query's kind, or nearer; None as ``verdict``.
        chance: granularity -> share of random pairs of the collection's images that are as near; empty as ``verdict``.
        lead: granularity on which it stands out from all others; with the profile auto it then comes first.
    """

    rank: int
    id: str
    path: str
    score: float
    distances: Mapping[str, int]
    ranks: Mapping[str, float]
    fields: Mapping[str, Any] = field(default_factory=dict)
    box: tuple[int, int, int, int] | None = None
    verified: Verification | None = None
    verdict: HitVerdict | None = None
    confidence: float | None = None
    chance: Mapping[str, float] = field(default_factory=dict)
    lead: str | None = None

    @property
    def words(self) -> str:
        """The verdict, with the confidence where that is all it says: ``same kind, 93 %``; empty without one."""
        if self.verdict in {"same kind", "loosely similar"} and self.confidence is not None:
            return f"{self.verdict}, {100 * self.confidence:.0f} %"
        return self.verdict or ""

    @property
    def shown_box(self) -> tuple[int, int, int, int] | None:
        """The box to draw: of what was verified, else of the region."""
        return self.verified.box if self.verified and self.verified.box else self.box

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON: these attributes, without those that are None, and the row's fields."""
        own: dict[str, Any] = {"rank": self.rank, "id": self.id, "path": self.path, "score": self.score}
        if self.verdict is not None:
            own |= {"verdict": self.verdict, "confidence": self.confidence, "chance": dict(self.chance)}
        own |= {"lead": self.lead} if self.lead else {}
        own |= {"distances": dict(self.distances), "ranks": dict(self.ranks)}
        own |= {"box": list(self.box)} if self.box else {}
        return own | ({"verified": self.verified.as_dict()} if self.verified else {}) | dict(self.fields)


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
class Note:
    """A file that was ingested though something is wrong with it.

    Attributes:
        path: the file.
        text: what is wrong, in one line.
    """

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Files of one kind that a walk through folders did not take.

    Attributes:
        kind: their ending, or why they were left out.
        count: how many; a folder counts once.
        remedy: what to do about images among them; empty for what is no image.
    """

    kind: str
    count: int
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table of metadata whose values are stored.

    Attributes:
        name: of the field that holds them.
        type: of the field: string, int, float or bool.
        header: the column's name in the table.
        new: whether the ingest adds the field to the collection.
        near: a field of nearly the same name, which the table lacks; empty where there is none.
    """

    name: str
    type: str
    header: str
    new: bool = False
    near: str = ""


@dataclass(frozen=True, slots=True)
class TableMatch:
    """How a table of metadata and the images of an ingest fit.

    Attributes:
        rows: of the table.
        matched: rows that name an image.
        without_row: images that no row names.
        unmatched: the first paths of the table that name no image, each with the image of the nearest name.
        first_without_row: the first image that no row names; empty where there is none.
        columns: those that are stored.
        columns_passed_over: those that are not, each with the reason.
    """

    rows: int
    matched: int
    without_row: int
    unmatched: tuple[tuple[str, str], ...] = ()
    first_without_row: str = ""
    columns: tuple[TableColumn, ...] = ()
    columns_passed_over: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of an ingest, a fit or a refit; passed to the ``progress`` callback after every batch.

    Attributes:
        stage: the current step, in words: "fitting hash heads", "encoding".
        done: images finished, failed ones included.
        total: images in all; 0 when unknown.
        failed: images that could not be read.
        failures: the failures known by path, in order of occurrence; the list may grow later.
    """

    stage: str
    done: int
    total: int
    failed: int
    failures: Sequence[Failure] = ()


Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""
