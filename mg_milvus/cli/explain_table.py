"""``mgm query --explain`` for people: the plan, what each granularity found, each hit's ranks and shares, the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mg_milvus.cli.terminal import console, shorten
from mg_milvus.display import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mg_milvus.explanation import Explanation, Standing

GAP = 2
FORMULAS = {
    "rank": "the score is the sum of weight / ({rrf_k} + rank)",
    "score": "the score is the sum of weight × (1 - distance / bits)",
    "server": "the server's own ranks and scores",
}


def print_explanation(told: Explanation, *, title: str = "") -> None:
    """Print how an answer came about.

    Args:
        told: see ``Explanation``.
        title: the query, where there are several.
    """
    from rich.text import Text

    out = console()
    if title:
        out.print(Text(shorten(printable(title), out.width), style="bold"), soft_wrap=True)
    asked = told.question
    out.print(Text(f"plan {told.plan}: {printable(told.reason)}"))
    out.print(Text(f"fusion {asked.fusion}: {FORMULAS[asked.fusion].format(rrf_k=asked.rrf_k)}"))
    if asked.where:
        out.print(Text(f"filter: {printable(asked.where)}"))
    out.print(Text())
    out.print(_fields(told))
    if told.candidates is not None:
        out.print(Text(f"{told.candidates:,} different pictures were ranked on every granularity."))
    out.print(Text())
    out.print(_hits(told, out) if told.hits else Text("Nothing was found."))
    out.print(Text())
    out.print(_times(told))


def _table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _fields(told: Explanation) -> Table:
    table = _table(
        "granularity", "weight", "bits", "asked", "found", "nearest", "farthest", "time", left=("granularity",)
    )
    for name, field in told.fields.items():
        numbers = (field.asked, field.found, field.nearest, field.farthest)
        table.add_row(
            printable(name), f"{field.weight:g}", str(field.bits),
            *("" if number is None else f"{number:,}" for number in numbers),
            "" if field.seconds is None else _time(field.seconds),
        )  # fmt: skip
    return table


def _hits(told: Explanation, out: Console) -> Table:
    from rich.text import Text

    table = _table("rank", "picture", "distance", "found at", "of all", "score", left=("picture",))
    room = out.width - 4 - 8 - 8 - 6 - 6 - 5 * GAP
    for hit, standings in zip(told.hits, told.standings, strict=True):
        path = Text(shorten(printable(hit.path), room), style="bold")
        table.add_row(str(hit.rank), path, "", "", "", Text(f"{hit.score:.4f}", style="bold"))
        for name, standing in standings.items():
            table.add_row("", f"  {printable(name)}", *_standing(standing))
    return table


def _standing(standing: Standing) -> tuple[str, str, str, str]:
    return (
        str(standing.distance),
        "–" if standing.found_at is None else f"#{standing.found_at}",
        f"#{standing.rank:g}",
        "–" if standing.share is None else f"{standing.share:.4f}",
    )


def _times(told: Explanation) -> Table:
    table = _table("step", "time", left=("step",))
    for step, seconds in told.seconds.items():
        table.add_row(printable(step), _time(seconds))
    table.add_row("total", _time(told.total), style="bold")
    return table


def _time(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"
