"""The table of hits for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mg_milvus.cli.terminal import console, shorten
from mg_milvus.display import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.hits import Hit

LEAST_PATH = 28
"""Columns a path needs to be of use; with fewer left, the granularities move to a second line."""

GAP = 2


def print_hits(hits: Sequence[Hit], bits: Mapping[str, int], *, title: str = "") -> None:
    """Print rank, score, path, and per granularity distance and rank.

    Args:
        hits: best first.
        bits: granularity -> code length, in the order of the columns.
        title: the query, where there are several.
    """
    from rich.table import Table
    from rich.text import Text

    out = console()
    if title:
        out.print(Text(shorten(printable(title), out.width), style="bold"), soft_wrap=True)
    if not hits:
        out.print(Text("Nothing was found."))
        return
    names = [name for name in bits if any(name in hit.distances for hit in hits)]
    columns = [_numbers(hits, name) for name in names]
    widths = [max(len(name), len(column[0])) for name, column in zip(names, columns, strict=True)]
    left = max(4, len(str(hits[-1].rank))) + GAP + 6 + GAP
    boxes = [",".join(map(str, hit.box)) if hit.box else "" for hit in hits]
    if any(boxes):
        names, columns = [*names, "box"], [*columns, boxes]
        widths.append(max(map(len, boxes)))
    room = out.width - left - sum(width + GAP for width in widths)
    stacked = room < LEAST_PATH
    if stacked:
        room = out.width - left
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("path", no_wrap=True)
    for name in [] if stacked else names:
        table.add_column(printable(name), justify="right", no_wrap=True)
    for place, hit in enumerate(hits):
        row = [column[place] for column in columns]
        cells = [Text(number) for number in row]
        path = Text(shorten(printable(hit.path), room))
        if stacked:
            below = "  ".join(f"{name} {number}" for name, number in zip(names, row, strict=True))
            path.append("\n" + below, style="dim")
            cells = []
        table.add_row(Text(str(hit.rank)), Text(f"{hit.score:.4f}"), path, *cells)
    out.print(table)
    if title:
        out.print()


def _numbers(hits: Sequence[Hit], name: str) -> list[str]:
    """Distance and rank of each hit on one granularity, all of the same width."""
    distances = [str(hit.distances.get(name, "")) for hit in hits]
    ranks = [f"#{hit.ranks[name]:g}" if name in hit.ranks else "" for hit in hits]
    wide, narrow = max(map(len, distances)), max(map(len, ranks))
    return [f"{distance:>{wide}} {rank:<{narrow}}" for distance, rank in zip(distances, ranks, strict=True)]
