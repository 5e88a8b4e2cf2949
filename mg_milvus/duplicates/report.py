"""Groups of near-duplicates and their report, as records, text and HTML. Nothing is ever deleted.

A group is a connected component of copies: pairs that ``verify`` finds to be the same image, or edits of one. Images
whose file is gone can be compared by their codes only: two are near when their ``fine`` codes differ in at most
``distance`` bits and their other codes are nearer than those of nearly all unrelated pairs. ``distance`` is chosen such
that the expected number of chance pairs, which ``calibration`` estimates from the index, is a small share of the pairs
found.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.duplicates.calibration import FINE
from mg_milvus.duplicates.verify import COPIES, Verdict
from mg_milvus.files import file_link
from mg_milvus.html.pages import HIT_SIDE, SIDE, bars_of, render, template
from mg_milvus.images.discover import text_path
from mg_milvus.images.paths import Disks
from mg_milvus.images.shots import Shots
from mg_milvus.images.thumbnails import thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.images.paths import Folders, State

    Relate = Callable[["Row", Sequence["Row"]], Sequence[Verdict | None]]
    """The verdicts on one row and each of others; None where they are not near."""
    from mg_milvus.store.base import Row


MARKS: Mapping[State, str] = {
    "changed": "file changed", "gone": "file gone", "away": "file not found", "url": "address",
}  # fmt: skip
"""State of a file that is neither kept nor removable -> what is said of it."""


@dataclass(frozen=True, slots=True)
class GroupMember:
    """An image of a group.

    Attributes:
        id: primary key of the row; of an image that is not indexed, the key it would have.
        path: path of the image at its ingest.
        size: bytes of the file.
        mtime_ns: modification time of the file, nanoseconds since the epoch.
        width: pixels.
        height: pixels.
        duplicate_of: path of the nearest image to keep; None for an image to keep.
        distances: granularity -> distance to ``duplicate_of`` in bits; zeros for an image to keep.
        file: state of the file now, see ``images.paths.State``; only one that is ``here`` is kept or removable.
        names: other indexed paths of the same file: links to it, and hard links.
        parts: paths of the other files of the same shot, indexed or not: what the sensor gave (RAW), the movie of a
            Live Photo, sidecars; all of them go, or none.
        verdict: what it is to ``duplicate_of``; empty for an image to keep.
        offered: whether images of this verdict are offered for removal, this one is no reference, and the other files
            of its shot are all beside ``duplicate_of``, too.
    """

    id: str
    path: str
    size: int
    mtime_ns: int
    width: int
    height: int
    duplicate_of: str | None
    distances: Mapping[str, int]
    file: State = "here"
    names: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    verdict: str = ""
    offered: bool = True

    @property
    def keep(self) -> bool:
        """Whether this is an image to keep."""
        return self.file == "here" and self.duplicate_of is None

    @property
    def removable(self) -> bool:
        """Whether this duplicates an image to keep, and its file is there to be removed."""
        return self.file == "here" and self.duplicate_of is not None and self.offered

    @property
    def mark(self) -> str:
        """What is said of it in a word or two."""
        if self.file != "here":
            return MARKS[self.file]
        return "keep" if self.keep else "removable" if self.removable else self.verdict

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        own = {name: getattr(self, name) for name in self.__slots__}
        return own | {
            "keep": self.keep, "removable": self.removable, "mark": self.mark, "names": list(self.names),
            "parts": list(self.parts), "distances": dict(self.distances),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """A connected component of near-duplicates.

    Attributes:
        members: the images to keep, best first, then the others by path. Each removable image is a near-duplicate of
            a kept one, so a long chain of images keeps several.
        diameter: largest distance on ``fine`` between two members, in bits.
    """

    members: tuple[GroupMember, ...]
    diameter: int

    @property
    def removable(self) -> tuple[GroupMember, ...]:
        """The members that duplicate a kept one."""
        return tuple(member for member in self.members if member.removable)

    def _repr_html_(self) -> str:
        """The images side by side, for a notebook."""
        return render("duplicates", headline="Near-duplicates", note="", groups=[_group_values(self)], more=0)


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Result of ``ImageIndex.duplicates``.

    Attributes:
        rows: images compared.
        compared: pairs of images compared.
        distance: largest distance on ``fine`` of images that are near by their codes, in bits; None when no distance is
            precise enough, or every file was there to be looked at.
        limits: other granularity -> largest distance in bits.
        precision: the required precision; None when the distance was given.
        pairs: pairs of copies, and of images near by their codes.
        expected_false: expected number of the latter by chance; None when it cannot be estimated, or there are none.
        keep: rule for the image to keep, a key of ``KEEP``.
        groups: by number of members, largest first, then by diameter, then by path.
        seconds: wall time.
        missing: rows compared whose file is certainly gone.
        away: rows compared whose file is not found, and may be on a disk that is not mounted.
        changed: rows compared whose file was changed since its ingest.
        verdicts: verdict -> number of pairs that were looked at.
        unseen_pairs: pairs compared by codes only, since a file cannot be seen.
        near_pairs: those of them that are near.
        ignored: pairs left out, since a file says that they are no duplicates.
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
    missing: int = 0
    away: int = 0
    changed: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    unseen_pairs: int = 0
    near_pairs: int = 0
    ignored: int = 0

    @property
    def images(self) -> int:
        """Images in all groups."""
        return sum(len(group.members) for group in self.groups)

    @property
    def removable(self) -> tuple[GroupMember, ...]:
        """The images that duplicate a kept one."""
        return tuple(member for group in self.groups for member in group.removable)

    @property
    def removable_paths(self) -> tuple[str, ...]:
        """Their paths, with every indexed name of a file that has several, and the other files of their shots."""
        disks = Disks()
        paths = [path for member in self.removable for path in (member.path, *member.names, *member.parts)]
        return tuple({disks.location(path): path for path in reversed(paths)}.values())[::-1]

    @property
    def false_positive_rate(self) -> float | None:
        """Expected share of the pairs compared by codes only that are near by chance."""
        return None if self.expected_false is None or not self.unseen_pairs else self.expected_false / self.unseen_pairs

    @property
    def headline(self) -> str:
        """One line: the number of groups and of removable images."""
        if not self.groups:
            return f"no near-duplicates among {_count(self.rows, 'image')}"
        removable = self.removable
        size = file_size(sum(member.size for member in removable))
        groups = f"{_count(len(self.groups), 'group')} of {self.images:,} images among {self.rows:,}"
        return f"{groups}; {len(removable):,} removable ({size})"

    def is_chained(self, group: DuplicateGroup) -> bool:
        """Whether two images of a group are connected through others only."""
        return sum(member.keep for member in group.members) > 1

    def summary(self, bits: Mapping[str, int]) -> list[str]:
        """Lines of text: the headline, the criterion, and the expected number of chance pairs where it applies.

        Args:
            bits: granularity -> code length in bits.
        """
        if not self.compared:
            return [self.headline, "nothing was compared: no image is that new", *self._without_file()]
        looked = self._looked_at()
        if self.ignored:
            looked.append(f"{_count(self.ignored, 'pair')} left out as no duplicates")
        if not self.unseen_pairs:
            return [self.headline, *looked, *self._without_file()]
        if self.distance is None:
            certainty = f"{100 * (self.precision or 0):g} %"
            return [
                self.headline,
                *looked,
                f"no pair is near enough to be a copy with {certainty} certainty; use a lower precision, or a distance",
                *self._without_file(),
            ]
        limits = [f"{limit} of {bits[name]} on {name}" for name, limit in self.limits.items() if limit < bits[name]]
        near = ", ".join([f"near: at most {self.distance} of {bits[FINE]} bits differ on {FINE}", *limits])
        pairs = f"{_count(self.near_pairs, 'near pair')} of {self.unseen_pairs:,} compared by codes only"
        if self.expected_false is None:
            expected = "; the number by chance cannot be estimated: too few unrelated images"
        else:
            expected = f"; expected by chance: {_small(self.expected_false)} (rate {self.false_positive_rate:.1e})"
        return [self.headline, *looked, near, pairs + expected, *self._without_file()]

    def _looked_at(self) -> list[str]:
        """What was seen in the pairs that the codes proposed."""
        number = sum(self.verdicts.values())
        counts = ", ".join(f"{count:,} {verdict}" for verdict, count in self.verdicts.items() if count)
        return [f"looked at {_count(number, 'pair')}: {counts}"] if number else []

    def _without_file(self) -> list[str]:
        lines = []
        if self.missing:
            lines.append(
                f"{_count(self.missing, 'row')} without a file: mgm ingest finds files that were moved, mgm relocate "
                "OLD NEW follows a folder, mgm ingest --prune removes the rows"
            )
        if self.away:
            lines.append(f"{_count(self.away, 'row')} whose file is not found or cannot be read: is its disk mounted?")
        if self.changed:
            lines.append(f"{_count(self.changed, 'row')} whose file has changed since: mgm ingest looks at it again")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        own = {name: getattr(self, name) for name in self.__slots__ if name not in {"groups", "seconds"}}
        return own | {
            "limits": dict(self.limits),
            "verdicts": dict(self.verdicts),
            "false_positive_rate": self.false_positive_rate,
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "groups": [
                {
                    "diameter": group.diameter,
                    "chained": self.is_chained(group),
                    "members": [member.as_dict() for member in group.members],
                }
                for group in self.groups
            ],
        }

    def _repr_html_(self) -> str:
        """The first groups with their images side by side, for a notebook."""
        groups = self.groups[:NOTEBOOK_GROUPS]
        return render(
            "duplicates", headline=self.headline, note="No file is deleted; the report only suggests which to remove.",
            groups=[_group_values(group) for group in groups], more=len(self.groups) - len(groups),
        )  # fmt: skip


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


_BLOCK = 256
"""Codes compared with all others at a time."""


def _best(row: Row) -> tuple[Any, ...]:
    return -row.width * row.height, -row.size, row.mtime_ns, row.path


KEEP: dict[str, Callable[[Row], tuple[Any, ...]]] = {
    "best": _best,
    "largest": lambda row: (-row.size, *_best(row)),
    "oldest": lambda row: (row.mtime_ns, *_best(row)),
    "newest": lambda row: (-row.mtime_ns, *_best(row)),
    "first": lambda row: (row.path,),
}
"""Rule -> sort key of a row; the smallest is kept. best: most pixels, then most bytes, then the oldest, then path."""


VISIBLE: frozenset[State] = frozenset({"here", "changed"})
"""States of the files that can be looked at."""

SAFE = frozenset({Verdict.IDENTICAL, Verdict.SAME})
"""The verdicts whose images are offered for removal unless more is asked for."""


@dataclass(frozen=True, slots=True)
class Files:
    """What is known of the files of rows.

    Attributes:
        states: row id -> state of its file; a row that is not named has its file.
        names: row id -> other indexed paths of the same file.
        shots: which files belong together.
    """

    states: Mapping[str, State] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shots: Shots = field(default_factory=Shots)

    def parts(self, row: Row) -> tuple[str, ...]:
        """The other files of the shot of a row, under all its names."""
        paths = (row.path, *self.names.get(row.id, ()))
        return tuple(dict.fromkeys(part for path in paths for part in self.shots.parts(path) if part not in paths))

    def is_spare(self, row: Row, kept: Row) -> bool:
        """Whether nothing of the shot of a row is missing beside a row that stays."""
        return all(self.shots.spare(path, kept.path) for path in (row.path, *self.names.get(row.id, ())))

    def state(self, row: Row) -> State:
        """The state of the file of a row."""
        return self.states.get(row.id, "here")

    def is_visible(self, row: Row) -> bool:
        """Whether the file of a row can be looked at."""
        return self.state(row) in VISIBLE

    def trusted(self, row: Row) -> Row:
        """The row, without the hash of a content that its file does not have any more."""
        return row if self.state(row) == "here" else replace(row, content_hash="")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which images of a group stay.

    Attributes:
        rule: a key of ``KEEP``.
        offered: the verdicts whose images are offered for removal.
        reference: folders whose images stay, whatever the rule says.
        keep_folder: folders whose images stay rather than others.
    """

    rule: str = "best"
    offered: frozenset[Verdict] = SAFE
    reference: Folders | None = None
    keep_folder: Folders | None = None

    def order(self, row: Row, parts: int) -> tuple[Any, ...]:
        """A sort key: the row to keep comes first; of copies, one whose shot has more files (``parts``) stays."""
        preferred = self.keep_folder is not None and self.keep_folder.holds(row.path)
        return not self.is_reference(row), not preferred, -parts, *KEEP[self.rule](row)

    def is_reference(self, row: Row) -> bool:
        """Whether a row is never offered."""
        return self.reference is not None and self.reference.holds(row.path)


def make_group(rows: Sequence[Row], relate: Relate, choice: Choice, files: Files) -> DuplicateGroup:
    """Make a group of rows.

    The best row is kept, and its copies are removable; then the best of the rest is kept, and so on. So each removable
    row is a copy of one that stays. Rows without their file are never kept, and come last. The files of a shot go
    together, and only where each has a copy beside the row that stays.

    Args:
        rows: two or more, with all their codes.
        relate: see ``Relate``.
        choice: which rows to keep, and which verdicts to offer.
        files: of the rows.
    """
    parts = {row.id: files.parts(row) if files.state(row) == "here" else () for row in rows}
    rows = sorted(rows, key=lambda row: (files.state(row) != "here", *choice.order(row, len(parts[row.id]))))
    found: dict[int, tuple[int, Verdict]] = {}  # place -> place of the row that it duplicates, verdict
    going: set[int] = set()
    for place, row in enumerate(rows):
        if place in going or files.state(row) != "here":
            continue
        # A row that stays although it is an edited copy may have copies of its own.
        rest = [other for other in range(len(rows)) if other > place and other not in going]
        for other, verdict in zip(rest, relate(row, [rows[other] for other in rest]), strict=True):
            if verdict is None or (verdict not in COPIES and verdict is not Verdict.UNSEEN):
                continue
            safe = verdict in choice.offered and not choice.is_reference(rows[other])
            safe = safe and files.is_spare(rows[other], row)
            if safe or other not in found:
                found[other] = place, verdict
            if safe and files.state(rows[other]) == "here":
                going.add(other)
    members = [
        GroupMember(
            row.id, row.path, row.size, row.mtime_ns, row.width, row.height,
            rows[found[place][0]].path if place in found else None,
            _apart(row, rows[found[place][0]] if place in found else row),
            files.state(row), files.names.get(row.id, ()), parts[row.id],
            found[place][1].value if place in found else "", place not in found or place in going,
        )
        for place, row in enumerate(rows)
    ]  # fmt: skip
    others = sorted((member for member in members if not member.keep), key=lambda member: member.path)
    codes = np.frombuffer(b"".join(row.codes[FINE] for row in rows), np.uint8).reshape(len(rows), -1)
    return DuplicateGroup((*(member for member in members if member.keep), *others), _diameter(codes))


def _apart(left: Row, right: Row) -> dict[str, int]:
    """Granularity -> distance of two rows in bits."""
    codes = {name: [np.frombuffer(row.codes[name], np.uint8)[None] for row in (left, right)] for name in left.codes}
    return {name: int(hamming(*pair)[0, 0]) for name, pair in codes.items()}


def _diameter(codes: Codes) -> int:
    """The largest distance between two codes."""
    return max(
        int(hamming(codes[start : start + _BLOCK], codes[start:]).max()) for start in range(0, len(codes), _BLOCK)
    )


NOTEBOOK_GROUPS, NOTEBOOK_MEMBERS = 12, 6
"""Most groups of a report, and most images of a group, in a notebook, which would otherwise grow too large."""

MOST_GROUPS, MOST_MEMBERS = 200, 12
"""Most groups, and most images of a group, on a page."""


def duplicates_page(report: DuplicateReport, *, collection: str, bits: Mapping[str, int]) -> str:
    """A report as one self-contained HTML page.

    Images are embedded as small JPEGs; unreadable ones become placeholders. Of many groups and of large groups the page
    shows the first, and the number of the others.

    Args:
        report: see ``ImageIndex.duplicates``.
        collection: name of the collection.
        bits: granularity -> code length in bits, in the order to show.

    Returns:
        The HTML text, encodable as UTF-8.
    """
    groups = [
        _group_values(group, MOST_MEMBERS, HIT_SIDE) | {"chained": report.is_chained(group)}
        for group in report.groups[:MOST_GROUPS]
    ]
    for card in (card for group in groups for card in group["cards"]):
        card["bars"] = bars_of(card["distances"], bits)
    headline, *notes = report.summary(bits)
    return template("duplicates.html.jinja").render(
        collection=collection, headline=headline, notes=notes, keep=report.keep, groups=groups,
        more_groups=max(0, len(report.groups) - MOST_GROUPS), made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )  # fmt: skip


def _group_values(group: DuplicateGroup, most: int = NOTEBOOK_MEMBERS, side: int = SIDE) -> dict[str, Any]:
    """Values of the templates for a group: its first ``most`` images, with thumbnails of ``side`` pixels."""
    return {
        "cards": [_card_values(member, side) for member in group.members[:most]],
        "more": max(0, len(group.members) - most),
        "size": len(group.members),
        "diameter": group.diameter,
        "kept": sum(member.keep for member in group.members),
        "removable": file_size(sum(member.size for member in group.removable)),
    }


def _card_values(member: GroupMember, side: int) -> dict[str, Any]:
    """Values of the templates for an image."""
    path = text_path(member.path)
    return {
        "keep": member.keep,
        "removable": member.removable,
        "mark": member.mark,
        "verdict": member.verdict,
        "names": member.names,
        "parts": [text_path(part).name for part in member.parts],
        "duplicate_of": "" if member.duplicate_of is None else text_path(member.duplicate_of).name,
        "name": path.name or member.path,
        "path": str(path),
        "folder": str(path.parent),
        "link": file_link(path),
        "pixels": f"{member.width} × {member.height}",
        "size": file_size(member.size),
        "time": datetime.fromtimestamp(member.mtime_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M"),
        "thumbnail": thumbnail(path, side),
        "distances": {} if member.keep else dict(member.distances),
    }
