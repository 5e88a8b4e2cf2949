"""Groups of near-duplicates in a notebook, with small pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mg_milvus.duplicates.sentences import file_size, headline
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import thumbnail
from mg_milvus.notebook import SIDE, render

if TYPE_CHECKING:
    from mg_milvus.duplicates import DuplicateGroup, DuplicateReport, GroupMember

MOST_GROUPS = 12
MOST_MEMBERS = 6
"""Shown of a report and of a group: with more the notebook's file would grow too large."""


def report_html(report: DuplicateReport) -> str:
    """The first groups of a report."""
    shown = report.groups[:MOST_GROUPS]
    return render(
        "duplicates", headline=headline(report), told="Nothing was deleted: what could go is a suggestion.",
        groups=[_group(group) for group in shown], more=len(report.groups) - len(shown),
    )  # fmt: skip


def group_html(group: DuplicateGroup) -> str:
    """One group."""
    return render("duplicates", headline="Near-duplicates", told="", groups=[_group(group)], more=0)


def _group(group: DuplicateGroup) -> dict[str, Any]:
    return {
        "size": len(group.members),
        "spread": group.spread,
        "cards": [_card(member) for member in group.members[:MOST_MEMBERS]],
    }


def _card(member: GroupMember) -> dict[str, Any]:
    path = text_path(member.path)
    apart = "" if member.keep else ", ".join(f"{name} {bits}" for name, bits in member.distances.items())
    return {
        "name": path.name or member.path,
        "path": str(path),
        "picture": thumbnail(path, SIDE),
        "badge": "keep" if member.keep else "could go",
        "size": f"{member.width} × {member.height} · {file_size(member.size)}",
        "apart": apart,
    }
