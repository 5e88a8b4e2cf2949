"""Groups of near-duplicates and their report, as records, text and HTML. Nothing is ever deleted.

Two rows are near when their ``fine`` codes differ in at most ``distance`` bits and their other codes are nearer than
nearly all unrelated pairs; a group is a connected component of near rows. ``distance`` is chosen such that the pairs
expected to be near by chance, which ``calibration`` estimates from the index, are a small share of the pairs found.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.duplicates.calibration import FINE
from mg_milvus.files import file_link
from mg_milvus.html.pages import HIT_SIDE, SIDE, render, template
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import Thumbnail, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.store.base import Row


@dataclass(frozen=True, slots=True)
class GroupMember:
    """An image of a group.

    Attributes:
        id: primary key of the row, or the one that an image that is not indexed would have.
        path: path of the image at its ingest.
        size: bytes of the file.
        mtime_ns: modification time of the file, nanoseconds since the epoch.
        width: pixels.
        height: pixels.
        like: path of the image to keep that this one is near to; None for an image to keep.
        distances: granularity -> distance to ``like`` in bits; zeros for an image to keep.
    """

    id: str
    path: str
    size: int
    mtime_ns: int
    width: int
    height: int
    like: str | None
    distances: Mapping[str, int]

    @property
    def keep(self) -> bool:
        """Whether this is an image to keep."""
        return self.like is None

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        own = {name: getattr(self, name) for name in self.__slots__}
        return own | {"keep": self.keep, "distances": dict(self.distances)}


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """A connected component of near images.

    Attributes:
        members: the images to keep, best first, then the others by path. Each of the others is near to one that is
            kept, so a long chain of images keeps several.
        spread: largest distance on ``fine`` between two members, in bits; above the report's distance, some members
            are connected only through others.
    """

    members: tuple[GroupMember, ...]
    spread: int

    @property
    def could_go(self) -> tuple[GroupMember, ...]:
        """The members that are not needed."""
        return tuple(member for member in self.members if not member.keep)

    def _repr_html_(self) -> str:
        """The images side by side, for a notebook."""
        return group_html(self)


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """What ``ImageIndex.duplicates`` found.

    Attributes:
        rows: images in the comparison.
        compared: pairs of images compared.
        distance: largest distance on ``fine`` of a near pair, in bits; None when no distance is precise enough.
        limits: other granularity -> largest distance in bits.
        precision: the required precision; None when the distance was given.
        pairs: near pairs found.
        expected_false: pairs expected to be that near by chance; None when there are too few images to tell.
        keep: the rule by which an image of a group is kept, a key of ``KEEP``.
        groups: those with most members first, then the tightest, then by path.
        seconds: wall time.
    """

    rows: int
    compared: int
    distance: int | None
    limits: Mapping[str, int]
    precision: float | None
    pairs: int
    expected_false: float | None
    keep: str
    groups: tuple[DuplicateGroup, ...]
    seconds: float

    @property
    def images(self) -> int:
        """Images in all groups."""
        return sum(len(group.members) for group in self.groups)

    @property
    def could_go(self) -> tuple[GroupMember, ...]:
        """The images that are not needed."""
        return tuple(member for group in self.groups for member in group.could_go)

    @property
    def false_positive_rate(self) -> float | None:
        """Share of the compared pairs that is expected to be near by chance."""
        return None if self.expected_false is None or not self.compared else self.expected_false / self.compared

    def loose(self, group: DuplicateGroup) -> bool:
        """Whether a group has two images that are not near to each other."""
        return self.distance is not None and group.spread > self.distance

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        own = {name: getattr(self, name) for name in self.__slots__ if name not in {"groups", "limits", "seconds"}}
        return own | {
            "limits": dict(self.limits),
            "false_positive_rate": self.false_positive_rate,
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "groups": [
                {
                    "spread": group.spread,
                    "loose": self.loose(group),
                    "members": [member.as_dict() for member in group.members],
                }
                for group in self.groups
            ],
        }

    def _repr_html_(self) -> str:
        """The first groups with their images side by side, for a notebook."""
        return report_html(self)


def headline(report: DuplicateReport) -> str:
    """One line: the number of groups, and the images that could go."""
    if not report.groups:
        return f"no near-duplicates among {_count(report.rows, 'image')}"
    could_go = report.could_go
    freed = file_size(sum(member.size for member in could_go))
    return (
        f"{_count(len(report.groups), 'group')} of {report.images:,} images among {report.rows:,}; "
        f"{len(could_go):,} could go ({freed})"
    )


def criterion(report: DuplicateReport, bits: Mapping[str, int]) -> str:
    """One line: the largest distances of near images."""
    if not report.compared:
        return "nothing was compared: no image is that new"
    if report.distance is None:
        return (
            f"no pair is near enough to be a copy with {100 * (report.precision or 0):g} % certainty; a lower "
            "precision, or a distance, finds more"
        )
    limits = [f"{limit} of {bits[name]} on {name}" for name, limit in report.limits.items() if limit < bits[name]]
    also = f", {', '.join(limits)}" if limits else ""
    return f"near: at most {report.distance} of {bits[FINE]} bits differ on {FINE}{also}"


def chance(report: DuplicateReport) -> str:
    """One line: the number of near pairs, and how many are expected by chance; empty when nothing was compared."""
    if report.distance is None or not report.compared:
        return ""
    pairs = f"{_count(report.pairs, 'near pair')} of {report.compared:,} compared"
    if report.expected_false is None:
        return f"{pairs}; how many are near by chance cannot be estimated: too few unrelated images"
    rate = report.false_positive_rate or 0.0
    return f"{pairs}; expected by chance: {_small(report.expected_false)} (rate {rate:.1e})"


def file_size(size: int) -> str:
    """A number of bytes as text: 812 B, 12.3 kB, 4.0 MB."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _small(number: float) -> str:
    return "less than 0.01" if number < 0.01 else f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


_AT_ONCE = 256


def _best(row: Row) -> tuple[Any, ...]:
    return -row.width * row.height, -row.size, row.mtime_ns, row.path


KEEP: dict[str, Callable[[Row], tuple[Any, ...]]] = {
    "best": _best,
    "largest": lambda row: (-row.size, *_best(row)),
    "oldest": lambda row: (row.mtime_ns, *_best(row)),
    "newest": lambda row: (-row.mtime_ns, *_best(row)),
    "first": lambda row: (row.path,),
}
"""Rule -> key of a row; the smallest is kept. best: most pixels, then most bytes, then the oldest, then by path."""


def make_group(rows: Sequence[Row], distance: int, limits: Mapping[str, int], rule: str) -> DuplicateGroup:
    """Make a group of rows.

    The best row is kept, and rows near to it could go; of the rest the best is kept, and so on. So each row that could
    go is near to one that is kept, and ``like`` is the nearest of those on ``fine``.

    Args:
        rows: two or more, with all their codes.
        distance: of near pairs on ``fine``, in bits.
        limits: of near pairs on the other granularities.
        rule: a key of ``KEEP``.
    """
    rows = sorted(rows, key=KEEP[rule])
    codes = {
        name: np.frombuffer(b"".join(row.codes[name] for row in rows), np.uint8).reshape(len(rows), -1)
        for name in (FINE, *limits)
    }
    kept: list[int] = []
    like = np.full(len(rows), -1)
    apart = {name: np.zeros(len(rows), np.int32) for name in codes}
    for place in range(len(rows)):
        if like[place] >= 0:
            continue
        kept.append(place)
        distances = {name: hamming(own[place : place + 1], own)[0] for name, own in codes.items()}
        nearer = (distances[FINE] <= distance) & ((like < 0) | (distances[FINE] < apart[FINE]))
        nearer[place] = False
        for name, limit in limits.items():
            nearer &= distances[name] <= limit
        like[nearer] = place
        for name, values in distances.items():
            apart[name][nearer] = values[nearer]
    members = [
        GroupMember(
            row.id, row.path, row.size, row.mtime_ns, row.width, row.height,
            None if near < 0 else rows[near].path, {name: int(values[place]) for name, values in apart.items()},
        )
        for place, (row, near) in enumerate(zip(rows, like, strict=True))
    ]  # fmt: skip
    gone = sorted((member for member in members if not member.keep), key=lambda member: member.path)
    return DuplicateGroup((*(members[place] for place in kept), *gone), _spread(codes[FINE]))


def _spread(codes: Codes) -> int:
    """The largest distance between two codes."""
    farthest: list[NDArray[np.int32]] = [
        hamming(codes[start : start + _AT_ONCE], codes[start:]).max() for start in range(0, len(codes), _AT_ONCE)
    ]
    return int(max(farthest))


NOTEBOOK_GROUPS = 12
NOTEBOOK_MEMBERS = 6
"""Groups of a report and members of a group in a notebook, whose file would otherwise grow too large."""


def report_html(report: DuplicateReport) -> str:
    """The first groups of a report as HTML for a notebook."""
    shown = report.groups[:NOTEBOOK_GROUPS]
    return render(
        "duplicates", headline=headline(report), told="Nothing was deleted: what could go is a suggestion.",
        groups=[_group(group) for group in shown], more=len(report.groups) - len(shown),
    )  # fmt: skip


def group_html(group: DuplicateGroup) -> str:
    """One group as HTML for a notebook."""
    return render("duplicates", headline="Near-duplicates", told="", groups=[_group(group)], more=0)


def _group(group: DuplicateGroup) -> dict[str, Any]:
    return {
        "size": len(group.members),
        "spread": group.spread,
        "cards": [_card(member) for member in group.members[:NOTEBOOK_MEMBERS]],
    }


def _card(member: GroupMember) -> dict[str, Any]:
    path = text_path(member.path)
    apart = "" if member.keep else ", ".join(f"{name} {bits}" for name, bits in member.distances.items())
    return {
        "name": path.name or member.path,
        "path": str(path),
        "image": thumbnail(path, SIDE),
        "badge": "keep" if member.keep else "could go",
        "size": f"{member.width} × {member.height} · {file_size(member.size)}",
        "apart": apart,
    }


MOST_GROUPS = 200
"""Most groups on a page."""

MOST_MEMBERS = 12
"""Most images of a group on a page, those to keep first."""


@dataclass(frozen=True, slots=True)
class _Bar:
    """Similarity of an image to the one that it is like, on one granularity."""

    name: str
    hue: int
    percent: float
    distance: int
    bits: int


@dataclass(frozen=True, slots=True)
class _Card:
    """Values of the template for one image."""

    keep: bool
    like: str
    name: str
    path: str
    folder: str
    link: str
    pixels: str
    size: str
    time: str
    thumbnail: Thumbnail
    bars: Sequence[_Bar]


def duplicates_page(report: DuplicateReport, *, collection: str, bits: Mapping[str, int]) -> str:
    """A report as one self-contained HTML page.

    Images are embedded as small JPEGs; unreadable ones become placeholders. Of many groups and of large groups only the
    first are on the page, which says so.

    Args:
        report: see ``ImageIndex.duplicates``.
        collection: name of the collection.
        bits: granularity -> code length in bits, in the order to show.

    Returns:
        The HTML text, encodable as UTF-8.
    """
    return template("duplicates.html.jinja").render(
        collection=collection,
        headline=headline(report),
        criterion=criterion(report, bits),
        chance=chance(report),
        keep=report.keep,
        groups=[_group_values(report, group, bits) for group in report.groups[:MOST_GROUPS]],
        more_groups=max(0, len(report.groups) - MOST_GROUPS),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _group_values(report: DuplicateReport, group: DuplicateGroup, bits: Mapping[str, int]) -> dict[str, object]:
    return {
        "cards": [_duplicates_card(member, bits) for member in group.members[:MOST_MEMBERS]],
        "more": max(0, len(group.members) - MOST_MEMBERS),
        "size": len(group.members),
        "spread": group.spread,
        "loose": report.loose(group),
        "kept": sum(member.keep for member in group.members),
        "freed": file_size(sum(member.size for member in group.could_go)),
    }


def _duplicates_card(member: GroupMember, bits: Mapping[str, int]) -> _Card:
    bars = tuple(
        _Bar(name, index % 6, round(100 * (1 - member.distances[name] / length), 1), member.distances[name], length)
        for index, (name, length) in enumerate(bits.items())
        if not member.keep
    )
    path = text_path(member.path)
    return _Card(
        keep=member.keep,
        like="" if member.like is None else text_path(member.like).name,
        name=path.name or member.path,
        path=str(path),
        folder=str(path.parent),
        link=file_link(path),
        pixels=f"{member.width} × {member.height}",
        size=file_size(member.size),
        time=datetime.fromtimestamp(member.mtime_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M"),
        thumbnail=thumbnail(path, HIT_SIDE),
        bars=bars,
    )
