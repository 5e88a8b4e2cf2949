"""``mgm tune``: weights of fusion from labelled pictures or wanted pairs."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options  # noqa: TC001 - typer reads the annotations
from mg_milvus.cli.terminal import UNREADABLE, ProgressView, print_failures
from mg_milvus.display import printable

if TYPE_CHECKING:
    from mg_milvus.evaluation.tuning import TuneReport

EXAMPLES = """Examples:

mgm tune labelled/ --uri photos.db

mgm tune photos/ --pairs wanted.csv --goal recall@1 --uri photos.db

mgm tune labelled/ --schema mgm-schema.yaml      (before the first ingest)"""


class Goal(StrEnum):
    """The goals of ``mg_milvus.evaluation.questions``, named here so that help and completion are instant."""

    map = "map"
    recall = "recall@1"
    ndcg = "ndcg"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=EXAMPLES)(tune)


def tune(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Pictures in a folder for each label, or those that --pairs names")
    ],
    labels: options.LabelTable = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE",
            help="Wanted results instead of labels, a table with the columns query and wanted: wanted.csv",
        ),
    ] = None,
    goal: Annotated[
        Goal,
        typer.Option(
            "--goal",
            help="map: the whole ranking; recall@1: the first result; ndcg: the first 100 by label and group",
        ),
    ] = Goal.map,
    folds: Annotated[
        int, typer.Option("--folds", min=2, help="Parts of the cross-validation over queries, e.g. 10")
    ] = 5,
    queries: Annotated[
        int, typer.Option("--queries", min=4, help="Ask with at most so many of the pictures, e.g. 300 to be quicker")
    ] = 1000,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            help="The schema file to tune, in place (comments are lost), or a preset with --out. Then a collection is "
            "tuned only if --uri or --collection is given too",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", dir_okay=False, help="Write the tuned schema here: tuned.yaml"),
    ] = None,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Learn the weights of the fusion, and keep them in the collection or in a schema file.

    They are tried on pictures they were not learned from. Where they are not better than equal weights by more than a
    standard error, nothing is changed.
    """
    from mg_milvus.cli.settings import local_settings, settings_from
    from mg_milvus.evaluation import tuning
    from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
    from mg_milvus.ingest import Settings

    into_collection = schema is None or uri is not None or collection is not None
    encoding = (device, None, encoder, batch_size, workers)
    settings = settings_from(uri, token, collection, *encoding) if into_collection else local_settings(*encoding)
    target = tuning.Target(
        schema=schema,
        out=out,
        uri=settings.uri if into_collection else None,
        token=settings.token,
        collection=settings.collection,
        timeout=timeout,
        encoder=settings.encoder,
        device=settings.device,
        tls=settings.tls,
    )
    with ProgressView() as view:
        report = tuning.tune(
            folder,
            target,
            labels=labels,
            pairs=pairs,
            goal=goal.value,
            folds=folds,
            queries=queries,
            settings=Settings(settings.batch_size, settings.workers, max_pixels or DEFAULT_MAX_PIXELS),
            progress=view,
        )
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        print(summary(report))
    print_failures(report.failures, as_json=as_json)
    if report.failures:
        raise typer.Exit(UNREADABLE)


def summary(report: TuneReport) -> str:
    """What a tuning found and did, in lines."""
    found = report.tuning
    weights = ", ".join(f"{name} {weight:g}" for name, weight in found.weights.items())
    lines = [
        f"{found.goal} of {found.queries:,} queries among {found.candidates:,} pictures, in {len(found.gains)} folds:",
        f"  equal weights    {found.equal:.4f}",
        f"  weights so far   {found.before:.4f}",
        f"  learned weights  {found.tuned:.4f}   on unseen queries; {found.gain:+.4f} ± {found.standard_error:.4f} "
        "against equal ones",
        f"learned: {weights}; rrf_k {found.rrf_k}, depth {found.depth}",
    ]
    if not found.better:
        reason = (
            "the weights so far do as well"
            if found.gain > found.standard_error
            else "the learned weights are not better than equal ones by more than a standard error"
        )
        lines.append(f"Nothing was changed: {reason}.")
    if report.file is not None:
        lines.append(f"Written to {printable(report.file)}.")
    if report.collection is not None:
        lines.append(f"Kept in the collection '{printable(report.collection)}': its queries use them from now on.")
    return "\n".join(lines)
