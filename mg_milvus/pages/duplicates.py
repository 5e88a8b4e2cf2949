"""The page of near-duplicates: groups side by side as one HTML file that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mg_milvus.display import file_link
from mg_milvus.duplicates.sentences import chance, criterion, file_size, headline
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import Thumbnail, thumbnail
from mg_milvus.pages import HIT_SIDE, _template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.duplicates import DuplicateGroup, DuplicateReport, GroupMember

__all__ = ["duplicates_page"]

MOST_GROUPS = 200
"""Groups shown; with more the page would be too large to open."""

MOST_MEMBERS = 12
"""Pictures shown of a group: those to keep first."""


@dataclass(frozen=True, slots=True)
class _Bar:
    """How near a picture is to the one that it is like, on one granularity."""

    name: str
    hue: int
    percent: float
    distance: int
    bits: int


@dataclass(frozen=True, slots=True)
class _Card:
    """What the template shows of one picture."""

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

    Pictures are embedded as small JPEGs; one that is gone or cannot be read becomes a placeholder tile. Of many groups
    and of large groups only the first are shown, and the page says so.

    Args:
        report: see ``ImageIndex.duplicates``.
        collection: name of the collection that was asked.
        bits: granularity -> code length in bits, in the order to show.

    Returns:
        The HTML text, encodable as UTF-8.
    """
    return _template("duplicates.html.jinja").render(
        collection=collection,
        headline=headline(report),
        criterion=criterion(report, bits),
        chance=chance(report),
        keep=report.keep,
        groups=[_shown(report, group, bits) for group in report.groups[:MOST_GROUPS]],
        more_groups=max(0, len(report.groups) - MOST_GROUPS),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _shown(report: DuplicateReport, group: DuplicateGroup, bits: Mapping[str, int]) -> dict[str, object]:
    return {
        "cards": [_card(member, bits) for member in group.members[:MOST_MEMBERS]],
        "more": max(0, len(group.members) - MOST_MEMBERS),
        "size": len(group.members),
        "spread": group.spread,
        "loose": report.loose(group),
        "kept": sum(member.keep for member in group.members),
        "freed": file_size(sum(member.size for member in group.could_go)),
    }


def _card(member: GroupMember, bits: Mapping[str, int]) -> _Card:
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
