"""The table of hits for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import console, shorten, tell
from mg_milvus.cli.show import show_hits
from mg_milvus.files import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from mg_milvus.html.pages import QueryResult
    from mg_milvus.images.decode import ImageSource
    from mg_milvus.records import Hit
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.explain import Contribution, Explanation
    from mg_milvus.search.query import QueryOptions


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


EXPLAIN_GAP = 2
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
    asked = told.query
    out.print(Text(f"plan {told.plan}: {printable(told.reason)}"))
    out.print(Text(f"fusion {asked.fusion}: {FORMULAS[asked.fusion].format(rrf_k=asked.rrf_k)}"))
    if asked.where:
        out.print(Text(f"filter: {printable(asked.where)}"))
    out.print(Text())
    out.print(_fields(told))
    if told.candidates is not None:
        out.print(Text(f"{told.candidates:,} different images were ranked on every granularity."))
    out.print(Text())
    out.print(_hits(told, out) if told.hits else Text("Nothing was found."))
    out.print(Text())
    out.print(_times(told))


def _table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, EXPLAIN_GAP, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _fields(told: Explanation) -> Table:
    table = _table(
        "granularity", "weight", "bits", "depth", "candidates", "nearest", "farthest", "time", left=("granularity",)
    )
    for name, field in told.fields.items():
        numbers = (field.depth, field.candidates, field.nearest, field.farthest)
        table.add_row(
            printable(name), f"{field.weight:g}", str(field.bits),
            *("" if number is None else f"{number:,}" for number in numbers),
            "" if field.seconds is None else _time(field.seconds),
        )  # fmt: skip
    return table


def _hits(told: Explanation, out: Console) -> Table:
    from rich.text import Text

    table = _table("rank", "image", "distance", "position", "of all", "score", left=("image",))
    room = out.width - 4 - 8 - 8 - 6 - 6 - 5 * EXPLAIN_GAP
    for hit, contributions in zip(told.hits, told.contributions, strict=True):
        path = Text(shorten(printable(hit.path), room), style="bold")
        table.add_row(str(hit.rank), path, "", "", "", Text(f"{hit.score:.4f}", style="bold"))
        for name, contribution in contributions.items():
            table.add_row("", f"  {printable(name)}", *_contribution(contribution))
    return table


def _contribution(contribution: Contribution) -> tuple[str, str, str, str]:
    return (
        str(contribution.distance),
        "–" if contribution.position is None else f"#{contribution.position}",
        f"#{contribution.rank:g}",
        "–" if contribution.score is None else f"{contribution.score:.4f}",
    )


def _times(told: Explanation) -> Table:
    table = _table("step", "time", left=("step",))
    for step, seconds in told.seconds.items():
        table.add_row(printable(step), _time(seconds))
    table.add_row("total", _time(told.total_seconds), style="bold")
    return table


def _time(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


Crop = tuple[int, int, int, int]

EXAMPLES = """Examples:

mgm query cat.jpg --profile instance

curl -s URL | mgm query - --json

mgm query --like photos/cat.jpg -k 20 --html result.html

mgm query scene.jpg --crop 40,60,200,150 --weights coarse=1,regions=2      (same kind of scene, with this in it)

mgm query cat.jpg -k 3 --explain      (why these, and what took the time)"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=EXAMPLES)(query)


def query(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Image files; - reads one from standard input", show_default=False),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="ID_OR_PATH",
            help="Ask with an image that is indexed already, e.g. photos/cat.jpg; it is not encoded again",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many results, e.g. -k 20")] = 10,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="NAME=NUMBER,...", help="What each granularity counts, e.g. coarse=1,fine=3"),
    ] = None,
    profile: Annotated[
        options.Profile | None,
        typer.Option(
            "--profile",
            help="Weights by purpose: the same kind, the same sort of object, the very same one, or all alike",
        ),
    ] = None,
    fusion: Annotated[
        options.Fusion | None,
        typer.Option("--fusion", help="How rankings become one, e.g. score; default: the schema's, rank"),
    ] = None,
    rrf_k: Annotated[
        int | None,
        typer.Option("--rrf-k", min=1, help="The constant in 1 / (rrf_k + rank), e.g. 10 for steeper scores"),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="Candidates asked of each granularity, e.g. 500 for better recall"),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity",
            metavar="NAME",
            autocompletion=options.complete_granularity,
            help="Ask one granularity only, e.g. fine",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="EXPR", help="A Milvus expression on the rows, e.g. 'width >= 800'"),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option("--crop", metavar="X,Y,W,H", help="Ask with a part of the image, in pixels: 40,60,200,150"),
    ] = None,
    contains: Annotated[
        bool,
        typer.Option("--contains", help="Which images contain what this one shows: mgm query logo.jpg --contains"),
    ] = False,
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap", help="Which images share something with this one, anywhere: mgm query scene.jpg --overlap"
        ),
    ] = False,
    plan: Annotated[
        options.Plan | None,
        typer.Option(
            "--plan",
            help="Ask every granularity (full), or the shortest for many candidates (cascade); default: the schema's",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per hit and line: mgm query cat.jpg --json | jq .path")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also tell how the answer came about: candidates, ranks, shares, times"),
    ] = False,
    show: Annotated[
        bool,
        typer.Option(
            "--show", help="Also show the images, as the terminal can. Env: MGM_SHOW=kitty, iterm, sixel or blocks"
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", dir_okay=False, help="Also write a page with images: result.html"),
    ] = None,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Find the images that look like the given ones."""
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.images.discover import text_path

    names = images or []
    area = _crop(crop) if crop else None
    _refuse_conflicts(names, like, crop, (weights, profile, granularity))
    if contains and overlap:
        raise typer.BadParameter("--contains looks for one detail, --overlap for all regions; give one of them")
    if show and as_json:
        raise typer.BadParameter("--show is for people and --json for programs; give one of them")
    asked: QueryOptions = {
        "k": k,
        "weights": options.numbers(weights, "--weights", "coarse=1,fine=3") if weights else None,
        "profile": profile,
        "fusion": fusion,
        "rrf_k": rrf_k,
        "depth": depth,
        "granularity": granularity,
        "filter": where,
        "crop": area,
        "regions": "contains" if contains else "overlap" if overlap else None,
        "plan": plan,
    }
    settings = settings_from(uri, token, collection, device, encoder=encoder)
    with open_index(settings, timeout=timeout) as index:
        answers: Sequence[Sequence[Hit]]
        sources: list[ImageSource]
        told: Sequence[Explanation] = ()
        if like is not None:
            names, sources = [like], [text_path(index.path(like))]
        else:
            sources = [sys.stdin.buffer.read() if name == "-" else Path(name) for name in names]
        if explain:
            told = [index.explain(None if like is not None else source, like=like, **asked) for source in sources]
            answers = [one.hits for one in told]
        else:
            answers = [index.like(like, **asked)] if like is not None else index.query_many(sources, **asked)
        if html:
            _write_page(html, _results(names, sources, answers, area), asked, index.collection, index.schema)
        bits = index.schema.code_bits
    for place, (name, hits) in enumerate(zip(names, answers, strict=True)):
        title = name if len(names) > 1 else ""
        if show:
            show_hits(hits, title=title)
        if as_json and explain:
            print(json.dumps({"query": name} | told[place].as_dict()))
        elif as_json:
            for hit in hits:
                print(json.dumps({"query": name} | hit.as_dict()))
        elif explain:
            print_explanation(told[place], title=title)
        else:
            print_hits(hits, bits, title=title)


def _refuse_conflicts(
    names: Sequence[str], like: str | None, crop: str | None, weights: Sequence[object | None]
) -> None:
    if bool(names) == (like is not None):
        raise typer.BadParameter("give image files (or - for standard input), or --like ID_OR_PATH, and not both")
    if names.count("-") > 1:
        raise typer.BadParameter("standard input holds one image, so - can be given once")
    if crop and like is not None:
        raise typer.BadParameter("--crop needs the image itself; give its path instead of --like")
    if sum(given is not None for given in weights) > 1:
        raise typer.BadParameter("--weights, --profile and --granularity all say what counts; give one of them")


def _crop(text: str) -> Crop:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not X,Y,W,H: four whole numbers in pixels, such as 40,60,200,150", param_hint="--crop"
        ) from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise typer.BadParameter(
            f"'{text}' is no part of an image: X and Y count from 0, W and H from 1", param_hint="--crop"
        )
    return x, y, width, height


def _results(
    names: Sequence[str], sources: Sequence[ImageSource], answers: Sequence[Sequence[Hit]], crop: Crop | None
) -> list[QueryResult]:
    from mg_milvus.html.pages import QueryResult

    return [
        QueryResult("standard input" if name == "-" else name, source, hits, crop)
        for name, source, hits in zip(names, sources, answers, strict=True)
    ]


def _write_page(
    file: Path, results: Sequence[QueryResult], asked: QueryOptions, collection: str, schema: Schema
) -> None:
    from mg_milvus.html.pages import QuerySettings, result_page
    from mg_milvus.search.query import Query

    query = Query.of(schema, asked)
    bits = query.max_distances(schema)
    page = result_page(results, QuerySettings(collection, bits, query.weights, query.fusion, asked["profile"]))
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise typer.BadParameter(f"'{file}' cannot be written: {exc.strerror}", param_hint="--html") from exc
    tell(f"wrote {file}", "wrote", file=str(file))
