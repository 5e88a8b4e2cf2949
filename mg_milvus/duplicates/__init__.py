"""Near-duplicates: groups of pictures that are one picture, edited, scaled or saved again. Nothing is ever deleted.

Two rows are near when their ``fine`` codes differ in at most ``distance`` bits and their other codes are nearer than
nearly all unrelated pairs. Near rows hang together in groups. ``distance`` is chosen such that the pairs expected to be
near by chance are a small share of the pairs found; how many those are is told from the index itself (``calibration``).

All pairs are compared here, on codes read from the store, and not by Milvus' range search: that takes a request a
row, returns 16,384 rows at most, and is approximate on servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A picture of a group.

    Attributes:
        id: primary key of the row, or what it would be for a picture that is asked for and not indexed.
        path: where the picture was when it was ingested.
        size: bytes of the file.
        mtime_ns: modification time of the file, nanoseconds since the epoch.
        width: pixels.
        height: pixels.
        like: path of the picture to keep that this one is near to; None for one to keep.
        distances: granularity -> distance to it in bits; zeros for one to keep.
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
        """Whether this is one to keep."""
        return self.like is None

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        own = {name: getattr(self, name) for name in self.__slots__}
        return own | {"keep": self.keep, "distances": dict(self.distances)}


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Pictures that hang together through near pairs.

    Attributes:
        members: those to keep first, best first, then the others by path. Every one that could go is near to one that
            is kept: a long chain of pictures keeps several.
        spread: largest distance on ``fine`` between two of them, in bits; above the report's distance, the group is
            held together by pictures in between.
    """

    members: tuple[GroupMember, ...]
    spread: int

    @property
    def could_go(self) -> tuple[GroupMember, ...]:
        """The members that are not needed."""
        return tuple(member for member in self.members if not member.keep)

    def _repr_html_(self) -> str:
        """The pictures side by side, for a notebook."""
        from mg_milvus.duplicates.shown import group_html

        return group_html(self)


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """What ``ImageIndex.duplicates`` found.

    Attributes:
        rows: pictures looked at.
        compared: pairs of pictures compared.
        distance: largest distance on ``fine`` of a near pair, in bits; None when no distance is precise enough.
        limits: other granularity -> largest distance in bits.
        precision: what was asked for; None when the distance was given.
        pairs: near pairs found.
        expected_false: pairs expected to be that near by chance; None when there are too few pictures to tell.
        keep: the rule that says which picture of a group to keep.
        groups: with most members first, then the tightest, then by path.
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
    def pictures(self) -> int:
        """Pictures in all groups."""
        return sum(len(group.members) for group in self.groups)

    @property
    def could_go(self) -> tuple[GroupMember, ...]:
        """The pictures that are not needed."""
        return tuple(member for group in self.groups for member in group.could_go)

    @property
    def false_positive_rate(self) -> float | None:
        """Share of the compared pairs that is expected to be near by chance."""
        return None if self.expected_false is None or not self.compared else self.expected_false / self.compared

    def loose(self, group: DuplicateGroup) -> bool:
        """Whether a group has two pictures that are not near to each other."""
        return self.distance is not None and group.spread > self.distance

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        own = {name: getattr(self, name) for name in self.__slots__ if name not in {"groups", "limits", "seconds"}}
        return own | {
            "limits": dict(self.limits),
            "false_positive_rate": self.false_positive_rate,
            "pictures": self.pictures,
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
        """The first groups with their pictures side by side, for a notebook."""
        from mg_milvus.duplicates.shown import report_html

        return report_html(self)
