"""``mgm query``: search by images; hits as a table, thumbnails, JSON or a page, and explanations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options, streams
from mg_milvus.cli.console import console, shorten
from mg_milvus.cli.log import log_info
from mg_milvus.cli.show import show_hits
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from mg_milvus.images.decode import ImageSource
    from mg_milvus.records import Hit
    from mg_milvus.results import Hits
    from mg_milvus.search.explain import Contribution, Explanation
    from mg_milvus.search.query import QueryOptions, QueryTerm


MIN_PATH = 28
"""Columns a path needs; with fewer left, the granularities move to a second line."""

GAP = 2
"""Columns between two columns of a table."""

NO_HITS = "No images found."

FORMULAS = {
    "rank": "the score is the sum of weight / ({rrf_k} + rank)",
    "score": "the score is the sum of weight × (1 - distance / bits)",
    "chance": "the score is the sum of weight × -log10 of the share of random pairs that are as near",
    "server": "the server's own ranks and scores",
}

Crop = tuple[int, int, int, int]

EXAMPLES = """Examples:

mgm query cat.jpg --profile instance

curl -s URL | mgm query - --json

mgm query --like photos/cat.jpg -k 20 --html result.html

mgm query scene.jpg --crop 40,60,200,150 --weights coarse=1,regions=2      (same kind of scene, with this in it)

mgm query cat.jpg --min same-kind      (nothing that is merely the nearest)

mgm query poster.jpg --verify      (which hits are the same image, or show it, and where)

mgm query red.jpg shoe.jpg --together --not boot.jpg

mgm query --text "sports car"      (by the names that images are tagged with; see mgm tags)

mgm query cat.jpg -k 3 --explain      (why these, and where the time went)"""


def print_hits(hits: Hits, bits: Mapping[str, int], *, title: str = "") -> None:
    """Print rank, score, path, and per granularity distance and rank.

    Args:
        hits: best first.
        bits: granularity -> code length, in the order of the columns.
        title: the query; empty where there is only one.
    """
    from rich.text import Text

    out = console()
    _print_title(title, out)
    if not hits:
        out.print(Text(NO_HITS))
        _print_remark(hits, out)
        return
    names = [name for name in bits if any(name in hit.distances for hit in hits)]
    columns = [_numbers(hits, name) for name in names]
    widths = [max(len(name), len(column[0])) for name, column in zip(names, columns, strict=True)]
    left = max(4, len(str(hits[-1].rank))) + GAP + 6 + GAP
    boxes = [",".join(map(str, hit.box)) if hit.box else "" for hit in hits]
    verdicts, verified = [hit.words for hit in hits], [_verified(hit) for hit in hits]
    for name, column in (("verdict", verdicts), ("box", boxes), ("verified", verified)):
        if any(column):
            place = 0 if name == "verdict" else len(names)
            names.insert(place, name)
            columns.insert(place, column)
            widths.append(max(len(name), *map(len, column)))
    room = out.width - left - sum(width + GAP for width in widths)
    stacked = room < MIN_PATH
    if stacked:
        room = out.width - left
    table = _table("rank", "score", "path", *([] if stacked else map(escape_controls, names)), left=("path",))
    for place, hit in enumerate(hits):
        row = [column[place] for column in columns]
        cells = [Text(number) for number in row]
        path = Text(shorten(escape_controls(hit.path), room))
        if stacked:
            below = "  ".join(f"{name} {number}" for name, number in zip(names, row, strict=True))
            path.append("\n" + below, style="dim")
            cells = []
        table.add_row(Text(str(hit.rank)), Text(f"{hit.score:.4f}"), path, *cells)
    out.print(table)
    _print_remark(hits, out)
    if title:
        out.print()


def _print_remark(hits: Hits, out: Console) -> None:
    from rich.text import Text

    if hits.remark:
        out.print(Text(f"{hits.remark[0].upper()}{hits.remark[1:]}."))


def _verified(hit: Hit) -> str:
    """The verdict on a hit, and where the query image lies in it unless it fills it; empty when there is none."""
    if hit.verified is None:
        return ""
    box, size = hit.verified.box, (hit.fields.get("width"), hit.fields.get("height"))
    return hit.verified.verdict + (f" {','.join(map(str, box))}" if box and box != (0, 0, *size) else "")


def _numbers(hits: Sequence[Hit], name: str) -> list[str]:
    """Distance and rank of each hit on one granularity, all of the same width."""
    distances = [str(hit.distances.get(name, "")) for hit in hits]
    ranks = [f"#{hit.ranks[name]:g}" if name in hit.ranks else "" for hit in hits]
    wide, narrow = max(map(len, distances)), max(map(len, ranks))
    return [f"{distance:>{wide}} {rank:<{narrow}}" for distance, rank in zip(distances, ranks, strict=True)]


def print_explanation(explanation: Explanation, *, title: str = "") -> None:
    """Print the formula, the search of each granularity, what each adds to a hit's score, and the times.

    Args:
        explanation: of one query.
        title: the query; empty where there is only one.
    """
    from rich.text import Text

    from mg_milvus.store.filters import excerpt

    out = console()
    _print_title(title, out)
    query = explanation.query
    out.print(Text(f"fusion {query.fusion}: {FORMULAS[query.fusion].format(rrf_k=query.rrf_k)}"))
    if query.where:
        out.print(Text(f"filter: {escape_controls(excerpt(query.where))}"))
    out.print(Text())
    out.print(_fields(explanation))
    if explanation.candidates is not None:
        out.print(Text(f"{explanation.candidates:,} different images were ranked on every granularity."))
    out.print(Text())
    out.print(_hits(explanation, out) if explanation.hits else Text(NO_HITS))
    _print_remark(explanation.hits, out)
    out.print(Text())
    out.print(_times(explanation))


def _print_title(title: str, out: Console) -> None:
    from rich.text import Text

    if title:
        out.print(Text(shorten(escape_controls(title), out.width), style="bold"), soft_wrap=True)


def _table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _fields(explanation: Explanation) -> Table:
    table = _table(
        "granularity", "weight", "bits", "depth", "candidates", "nearest", "farthest", "time", left=("granularity",)
    )
    for name, field in explanation.fields.items():
        numbers = (field.depth, field.candidates, field.nearest, field.farthest)
        table.add_row(
            escape_controls(name), f"{field.weight:g}", str(field.bits),
            *("" if number is None else f"{number:,}" for number in numbers),
            "" if field.seconds is None else _time(field.seconds),
        )  # fmt: skip
    return table


def _hits(explanation: Explanation, out: Console) -> Table:
    from rich.text import Text

    table = _table("rank", "image", "distance", "position", "of all", "score", left=("image",))
    room = out.width - 4 - 8 - 8 - 6 - 6 - 5 * GAP
    for hit, contributions in zip(explanation.hits, explanation.contributions, strict=True):
        path = Text(shorten(escape_controls(hit.path), room), style="bold")
        table.add_row(str(hit.rank), path, "", "", "", Text(f"{hit.score:.4f}", style="bold"))
        if hit.verdict is not None:
            table.add_row("", f"  {hit.words}", "", "", "", "")
        if hit.verified is not None:
            table.add_row("", f"  verified: {_verified(hit)}", "", "", "", "")
        for name, contribution in contributions.items():
            table.add_row("", f"  {escape_controls(name)}", *_contribution(contribution))
    return table


def _contribution(contribution: Contribution) -> tuple[str, str, str, str]:
    return (
        str(contribution.distance),
        "–" if contribution.position is None else f"#{contribution.position}",
        f"#{contribution.rank:g}",
        "–" if contribution.score is None else f"{contribution.score:.4f}",
    )


def _times(explanation: Explanation) -> Table:
    table = _table("step", "time", left=("step",))
    for step, seconds in explanation.seconds.items():
        table.add_row(escape_controls(step), _time(seconds))
    table.add_row("total", _time(explanation.total_seconds), style="bold")
    return table


def _time(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=EXAMPLES)(query)


def query(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Image files; - reads one from standard input", show_default=False),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            "--like",
            metavar="ID_OR_PATH",
            help="Query with an indexed image and its stored codes, e.g. photos/cat.jpg",
        ),
    ] = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="One answer for all query images: mgm query a.jpg b.jpg --together"),
    ] = False,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="WORDS",
            help="Find images that show this, alone or beside images: --text dog --like photos/cat.jpg",
        ),
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="IMAGE", help="Push down what is like this image; may be given more than once"),
    ] = None,
    weighted: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="WEIGHT:IMAGE", help="One of several images and its weight, e.g. 2:cat.jpg"),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Number of results, e.g. -k 20")] = 10,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="NAME=NUMBER,...", help="Weight of each granularity, e.g. coarse=1,fine=3"),
    ] = None,
    profile: Annotated[
        options.Profile | None,
        typer.Option(
            "--profile",
            help="Weights by purpose: same kind of scene, same class of object, same image or object, all equal; "
            "default: auto, where what stands out as the same image comes first",
        ),
    ] = None,
    fusion: Annotated[
        options.Fusion | None,
        typer.Option("--fusion", help="How the rankings are fused, e.g. score; default: the schema's, rank"),
    ] = None,
    rrf_k: Annotated[
        int | None,
        typer.Option("--rrf-k", min=1, help="The constant in 1 / (rrf_k + rank), e.g. 10 to favour the first ranks"),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="Candidates retrieved per granularity, e.g. 500 for better recall"),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity",
            metavar="NAME",
            autocompletion=options.complete_granularity,
            help="Search one granularity only, e.g. fine",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="CLUSTER", help="Only images of a cluster: its number, name or label from mgm cluster"
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="EXPR", help="Milvus filter expression, e.g. 'width >= 800'"),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option("--crop", metavar="X,Y,W,H", help="Search with this area of the image, in pixels: 40,60,200,150"),
    ] = None,
    contains: Annotated[
        bool,
        typer.Option("--contains", help="Find images that contain what this one shows: mgm query logo.jpg --contains"),
    ] = False,
    overlap: Annotated[
        bool,
        typer.Option("--overlap", help="Find images that share a region with this one: mgm query scene.jpg --overlap"),
    ] = False,
    least: Annotated[
        options.Minimum | None,
        typer.Option("--min", help="Leave out results that are less: mgm query cat.jpg --min same-kind"),
    ] = None,
    max_chance: Annotated[
        float | None,
        typer.Option(
            "--max-chance",
            metavar="SHARE",
            help="Leave out results that a larger share of random pairs of images is as near as, e.g. 0.001",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Look at the pixels of the first ten hits: the same image, edited, the same flat object, and where",
        ),
    ] = False,
    views: Annotated[
        bool | None,
        typer.Option(
            "--views/--no-views",
            help="Search with the middle and the corners of the image, too: finds what is framed, on a page or in a "
            "collage; default: with --profile instance",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per hit and line: mgm query cat.jpg --json | jq .path")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Explain the scores: candidates, ranks, contributions, times"),
    ] = False,
    show: Annotated[
        bool,
        typer.Option("--show", help="Also show the images in the terminal. Env: MGM_SHOW=kitty, sixel or blocks"),
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
    max_pixels: options.MaxPixels = None,
) -> None:
    """Find the images most similar to the query images."""
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.images.discover import text_path

    names = images or []
    area = _crop(crop) if crop else None
    together = together or bool(unlike or weighted)
    terms = _terms(names, like or (), unlike or (), weighted or ()) if together else []
    words_only = text is not None and not (names or like or together)
    if words_only and (crop or contains or overlap or verify or html):
        raise options.UsageError(
            "--crop, --contains, --overlap, --verify and --html need an image; give one with --text"
        )
    if not words_only:
        _refuse_conflicts(names, like or (), crop, (weights, profile, granularity), together=together)
    if together and (explain or html):
        raise options.UsageError("--explain and --html are for the answer to one image; give one, or leave them out")
    if contains and overlap:
        raise options.UsageError("--contains and --overlap are two ways to search regions; give one of them")
    if show and as_json:
        raise options.UsageError("--show and --json both write to standard output; give one of them")
    query_options: QueryOptions = {
        "k": k,
        "weights": options.numbers(weights, "--weights", "coarse=1,fine=3") if weights else None,
        "profile": profile,
        "fusion": fusion,
        "rrf_k": rrf_k,
        "depth": depth,
        "granularity": granularity,
        "filter": where,
        "cluster": cluster,
        "crop": area,
        "regions": "contains" if contains else "overlap" if overlap else None,
        "min": least,
        "max_chance": max_chance,
        "verify": verify,
        "views": views,
        "text": text,
    }
    settings = settings_from(uri, token, collection, device, encoder=encoder, max_pixels=max_pixels)
    explanations: list[Explanation] = []
    with open_index(settings, timeout=timeout) as index:
        sources: list[ImageSource]
        one = like[0] if like and not together else None
        if one is not None:
            names, sources = [one], [text_path(index.path(one))]
        else:
            sources = [_source(name) for name in names]
        if words_only:
            names = [text or ""]
            if explain:
                explanations = [index.explain(**query_options)]
            results = [explanations[0].hits if explain else index.query(**query_options)]
        elif together:
            names = [", ".join([*([text] if text else []), *names, *(like or ())]) or "several images"]
            results = [index.query_together(terms, **query_options)]
        elif explain or html:  # the page shows the weights and the fusion that were used
            explanations = [
                index.explain(None if one is not None else source, like=one, **query_options) for source in sources
            ]
            results = [explanation.hits for explanation in explanations]
        elif one is not None:
            results = [index.like(one, **query_options)]
        else:
            results = index.query_many(sources, **query_options)
        if html:
            pairs = [("standard input" if n == "-" else n, source) for n, source in zip(names, sources, strict=True)]
            _write_page(html, pairs, explanations, query_options, index.collection)
        bits = results[0].bits if results else index.schema.code_bits
    for place, (name, hits) in enumerate(zip(names, results, strict=True)):
        title = name if len(names) > 1 else ""
        if show:
            show_hits(hits, title=title)
        if as_json and explain:
            print(json.dumps({"query": name} | explanations[place].as_dict()))
        elif as_json:
            for hit in hits:
                print(json.dumps({"query": name} | hit.as_dict()))
            if hits.remark:
                log_info(hits.remark, "remark", query=name)
        elif explain:
            print_explanation(explanations[place], title=title)
        else:
            print_hits(hits, bits, title=title)


def _source(name: str) -> ImageSource:
    """What an argument stands for: standard input, a data URI or a URL as it is, or the path of a file."""
    if name == "-":
        return streams.read_input()
    return name if re.match(r"data:|[A-Za-z][A-Za-z0-9+.-]*://", name) else Path(name)


def _terms(
    names: Sequence[str], like: Sequence[str], unlike: Sequence[str], weighted: Sequence[str]
) -> list[QueryTerm]:
    """The images of ``--together``."""
    from mg_milvus.search.query import QueryTerm

    terms = [QueryTerm(_source(name)) for name in names] + [QueryTerm(like=name) for name in like]
    terms += [QueryTerm(_source(name), weight=-1.0) for name in unlike]
    for text in weighted:
        weight, _, name = text.partition(":")
        try:
            terms.append(QueryTerm(_source(name), weight=float(weight)))
        except ValueError:
            name = ""
        if not name:
            raise typer.BadParameter(
                f"'{text}' is not WEIGHT:IMAGE, such as 2:cat.jpg, or -1:dog.jpg", param_hint="--image"
            )
    return terms


def _refuse_conflicts(
    names: Sequence[str], like: Sequence[str], crop: str | None, weights: Sequence[object | None], *, together: bool
) -> None:
    if not together and bool(names) == bool(like):
        raise options.UsageError(
            "give image files (or - for standard input), or --like ID_OR_PATH, not both; or --together"
        )
    if not together and len(like) > 1:
        raise options.UsageError("--like is given more than once: add --together for one answer to all of them")
    if names.count("-") > 1:
        raise options.UsageError("standard input holds one image, so - can be given once")
    if crop and like:
        raise options.UsageError("--crop needs the image itself; give its path instead of --like")
    if sum(given is not None for given in weights) > 1:
        raise options.UsageError("--weights, --profile and --granularity all set the weights; give one of them")


def _crop(text: str) -> Crop:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not X,Y,W,H: four whole numbers in pixels, such as 40,60,200,150", param_hint="--crop"
        ) from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise typer.BadParameter(
            f"'{text}' is not a part of an image: X and Y are 0 or more, W and H 1 or more", param_hint="--crop"
        )
    return x, y, width, height


def _write_page(
    file: Path,
    queries: Sequence[tuple[str, ImageSource]],
    explanations: Sequence[Explanation],
    options: QueryOptions,
    collection: str,
) -> None:
    from mg_milvus.html.pages import QueryResult, QuerySettings, result_page

    query, hits = explanations[0].query, explanations[0].hits
    results = [
        QueryResult(name, source, explanation.hits, options["crop"], explanation.hits.remark)
        for (name, source), explanation in zip(queries, explanations, strict=True)
    ]
    settings = QuerySettings(collection, hits.bits, query.weights, query.fusion, options["profile"])
    page = result_page(results, settings)
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise typer.BadParameter(f"'{file}' cannot be written: {exc.strerror}", param_hint="--html") from exc
    log_info(f"wrote {file}", "wrote", file=str(file))
