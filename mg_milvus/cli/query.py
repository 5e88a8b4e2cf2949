"""``mgm query``: a picture in, the pictures that look like it out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.explain_table import print_explanation
from mg_milvus.cli.hit_table import print_hits
from mg_milvus.cli.show import show_hits
from mg_milvus.cli.terminal import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.explanation import Explanation
    from mg_milvus.hits import Hit
    from mg_milvus.images.decode import PictureSource
    from mg_milvus.pages import QueryResult
    from mg_milvus.question import QueryOptions
    from mg_milvus.schema import Schema

Crop = tuple[int, int, int, int]

EXAMPLES = """Examples:

mgm query cat.jpg --profile instance

curl -s URL | mgm query - --json

mgm query --like photos/cat.jpg -k 20 --html result.html

mgm query scene.jpg --crop 40,60,200,150 --weights coarse=1,parts=2      (same kind of scene, with this in it)

mgm query cat.jpg -k 3 --explain      (why these, and what took the time)"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=EXAMPLES)(query)


def query(
    pictures: Annotated[
        list[str] | None,
        typer.Argument(metavar="PICTURE", help="Picture files; - reads one from standard input", show_default=False),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="ID_OR_PATH",
            help="Ask with a picture that is indexed already, e.g. photos/cat.jpg; it is not encoded again",
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
        typer.Option("--crop", metavar="X,Y,W,H", help="Ask with a part of the picture, in pixels: 40,60,200,150"),
    ] = None,
    parts: Annotated[
        bool, typer.Option("--parts", help="Which pictures contain this detail, and where: mgm query logo.jpg --parts")
    ] = False,
    regions: Annotated[
        bool,
        typer.Option(
            "--regions", help="Which pictures share something with this one, anywhere: mgm query scene.jpg --regions"
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
            "--show", help="Also show the pictures, as the terminal can. Env: MGM_SHOW=kitty, iterm, sixel or blocks"
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", dir_okay=False, help="Also write a page with pictures: result.html"),
    ] = None,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Find the pictures that look like the given ones."""
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.images.discover import text_path

    names = pictures or []
    area = _crop(crop) if crop else None
    _refuse_conflicts(names, like, crop, (weights, profile, granularity))
    if parts and regions:
        raise typer.BadParameter("--parts looks for one detail, --regions for all regions; give one of them")
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
        "parts": "detail" if parts else "regions" if regions else None,
        "plan": plan,
    }
    settings = settings_from(uri, token, collection, device, encoder=encoder)
    with open_index(settings, timeout=timeout) as index:
        answers: Sequence[Sequence[Hit]]
        sources: list[PictureSource]
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
        raise typer.BadParameter("give picture files (or - for standard input), or --like ID_OR_PATH, and not both")
    if names.count("-") > 1:
        raise typer.BadParameter("standard input holds one picture, so - can be given once")
    if crop and like is not None:
        raise typer.BadParameter("--crop needs the picture itself; give its path instead of --like")
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
            f"'{text}' is no part of a picture: X and Y count from 0, W and H from 1", param_hint="--crop"
        )
    return x, y, width, height


def _results(
    names: Sequence[str], sources: Sequence[PictureSource], answers: Sequence[Sequence[Hit]], crop: Crop | None
) -> list[QueryResult]:
    from mg_milvus.pages import QueryResult

    return [
        QueryResult("standard input" if name == "-" else name, source, hits, crop)
        for name, source, hits in zip(names, sources, answers, strict=True)
    ]


def _write_page(
    file: Path, results: Sequence[QueryResult], asked: QueryOptions, collection: str, schema: Schema
) -> None:
    from mg_milvus.pages import result_page
    from mg_milvus.question import Question

    question = Question.of(schema, asked)
    page = result_page(
        results,
        collection=collection,
        bits=question.largest(schema),
        weights=question.weights,
        fusion=question.fusion,
        profile=asked["profile"],
    )
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise typer.BadParameter(f"'{file}' cannot be written: {exc.strerror}", param_hint="--html") from exc
    tell(f"wrote {file}", "wrote", file=str(file))
