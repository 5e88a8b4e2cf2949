"""What a report says, in sentences for people: the command line and the page show the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mg_milvus.duplicates.calibration import FINE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.duplicates import DuplicateReport


def headline(report: DuplicateReport) -> str:
    """How many groups, and what could go."""
    if not report.groups:
        return f"no near-duplicates among {_count(report.rows, 'picture')}"
    could_go = report.could_go
    freed = file_size(sum(member.size for member in could_go))
    return (
        f"{_count(len(report.groups), 'group')} of {report.pictures:,} pictures among {report.rows:,}; "
        f"{len(could_go):,} could go ({freed})"
    )


def criterion(report: DuplicateReport, bits: Mapping[str, int]) -> str:
    """What near means."""
    if not report.compared:
        return "nothing was compared: no picture is that new"
    if report.distance is None:
        return (
            f"no pair is near enough to be a copy with {100 * (report.precision or 0):g} % certainty; a lower "
            "precision, or a distance, finds more"
        )
    limits = [f"{limit} of {bits[name]} on {name}" for name, limit in report.limits.items() if limit < bits[name]]
    also = f", {', '.join(limits)}" if limits else ""
    return f"near: at most {report.distance} of {bits[FINE]} bits differ on {FINE}{also}"


def chance(report: DuplicateReport) -> str:
    """How many pairs are expected to be near by chance; empty when there is nothing to say."""
    if report.distance is None or not report.compared:
        return ""
    found = f"{_count(report.pairs, 'near pair')} of {report.compared:,} compared"
    if report.expected_false is None:
        return f"{found}; it cannot be told how many are near by chance: too few unrelated pictures"
    rate = report.false_positive_rate or 0.0
    return f"{found}; expected by chance: {_small(report.expected_false)} (rate {rate:.1e})"


def file_size(size: int) -> str:
    """Bytes for people: 812 B, 12.3 kB, 4.0 MB."""
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
