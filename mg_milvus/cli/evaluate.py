"""``mgm eval``: how well the images of a folder are found."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import ERROR, UNREADABLE, ProgressView, console, print_failures
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.evaluation.report import Evaluation
    from mg_milvus.evaluation.tune import TuneReport


PROTOCOL = "Protocol"
_MARGIN = 4
_BETWEEN = 3
"""Spaces around and between the columns of a table."""

EXAMPLES = """Examples:

mgm eval photos/      (a folder for each class; nested folders are a hierarchy)

mgm eval database/ --queries queries/ --json

mgm eval photos/ --protocol copies --report report/

mgm eval photos/ --protocol split --seeds 3 --table latex

mgm eval coco/ --protocol coco --lists train.txt,database.txt,test.txt --run runs/coco"""


class Protocol(StrEnum):
    """The protocols of ``mg_milvus.evaluation.protocols``, named here so that help and completion are instant."""

    leave_one_out = "leave-one-out"
    two_parts = "split"
    zero_shot = "zero-shot"
    cifar10_1 = "cifar10-1"
    cifar10_2 = "cifar10-2"
    imagenet100 = "imagenet100"
    nus_wide_21 = "nus-wide-21"
    coco = "coco"
    copies = "copies"


class TableFormat(StrEnum):
    """The formats of ``mg_milvus.evaluation.tables``."""

    latex = "latex"
    markdown = "markdown"


class Heads(StrEnum):
    """Where the hash heads come from."""

    adapt = "adapt"
    fixed = "fixed"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="eval", epilog=EXAMPLES)(evaluate)


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images in a folder for each class")],
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol",
            help="leave-one-out: each against all others; split: a share of each class as queries; zero-shot: classes "
            "that nothing was learned from; copies: edited versions; cifar10-1, cifar10-2, imagenet100, nus-wide-21, "
            "coco: as in papers",
            rich_help_panel=PROTOCOL,
        ),
    ] = Protocol.leave_one_out,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries", metavar="FOLDER", help="Labelled queries; FOLDER is the database", rich_help_panel=PROTOCOL
        ),
    ] = None,
    lists: Annotated[
        str | None,
        typer.Option(
            "--lists",
            metavar="FILES",
            help="Split lists as papers publish them, lines of a path and its labels: database.txt,test.txt or "
            "train.txt,database.txt,test.txt",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    labels: options.LabelTable = None,
    share: Annotated[
        float,
        typer.Option(
            "--share",
            help="split, zero-shot: the share of queries in each class, e.g. 0.2",
            rich_help_panel=PROTOCOL,
        ),
    ] = 0.1,
    seen: Annotated[
        str,
        typer.Option(
            "--seen",
            metavar="SHARE|FILE",
            help="zero-shot: the classes to learn from, a share of them or a file with a name on each line: seen.txt",
            rich_help_panel=PROTOCOL,
        ),
    ] = "0.75",
    copies: Annotated[
        int,
        typer.Option(
            "--copies", min=1, help="copies: edit so many images at most, e.g. 1000", rich_help_panel=PROTOCOL
        ),
    ] = 200,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Which images become queries, e.g. 1", rich_help_panel=PROTOCOL)
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            help="Evaluate with so many seeds, e.g. 3: means and standard deviations",
            rich_help_panel=PROTOCOL,
        ),
    ] = 1,
    map_at: Annotated[
        int | None,
        typer.Option(
            "--map-at",
            min=1,
            help="Also mAP of the first results alone, e.g. 5000; default: the protocol's",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option("--schema", metavar="FILE", help="A schema or a preset, e.g. compact. Env: MGM_SCHEMA"),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", metavar="NAME=BITS,...", help="Code lengths instead of the schema's: coarse=32,fine=64"),
    ] = None,
    heads: Annotated[
        Heads | None,
        typer.Option(
            "--heads",
            help="adapt: fitted on the database, as by mgm ingest; fixed: the encoder's own. Default: the schema's",
        ),
    ] = None,
    through_index: Annotated[
        bool,
        typer.Option("--through-index", help="Also ingest, query, and compare: mgm eval photos/ --through-index"),
    ] = False,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="--through-index: candidates of each granularity, e.g. 100; default: all"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Write a page with plots and images: report/index.html"),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Keep configuration, versions, metrics and the average precision of each query in a folder, e.g. "
            "runs/first; where it holds the same configuration, compare with it to the bit",
        ),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            "--codes",
            metavar="FILE",
            help="Write codes as +1 and -1, labels and paths for numpy or MATLAB: codes.npz, codes.mat",
        ),
    ] = None,
    table: Annotated[
        TableFormat | None,
        typer.Option("--table", help="Print a table for a paper instead: latex (with booktabs), markdown"),
    ] = None,
    as_json: options.AsJson = False,
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri",
            metavar="URI",
            help="--through-index: a server for the collection, http://localhost:19530; default: a temporary file",
            rich_help_panel=options.CONNECTION,
        ),
    ] = None,
    token: options.Token = None,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Evaluate the encoder on labelled images, with heads fitted to the database as an ingest does it.

    Broken files are listed at the end and left out; the exit code is 3 then.
    """
    from mg_milvus.cli.settings import local_settings, settings_from
    from mg_milvus.evaluation.evaluate import evaluate as call
    from mg_milvus.evaluation.outputs import check_codes_file, write_codes
    from mg_milvus.evaluation.report import report_data, write_evaluation_report
    from mg_milvus.evaluation.tables import paper_tables
    from mg_milvus.html.report import check_report
    from mg_milvus.ingest.pipeline import Settings

    if codes is not None and protocol is Protocol.copies:
        raise typer.BadParameter("--codes writes codes of queries and a database: copies has none of that kind")
    if table is not None and as_json:
        raise typer.BadParameter("--table and --json print the same metrics in two forms; choose one")
    if not through_index and (uri is not None or depth is not None):
        raise typer.BadParameter("--uri and --depth say where and how --through-index asks; add it")
    # The collection of --through-index is temporary: the environment's URI, where people keep theirs, plays no part.
    encoding = (device, schema, encoder, batch_size, workers, max_pixels)
    shared = local_settings(*encoding) if uri is None else settings_from(uri, token, None, *encoding)
    if report is not None:
        check_report(report)
    if codes is not None:
        check_codes_file(codes)
    with ProgressView() as view:
        evaluation = call(
            folder,
            queries=queries,
            protocol=protocol.value,
            lists=[part.strip() for part in lists.split(",")] if lists else (),
            encoder=shared.encoder,
            schema=shared.schema_source,
            bits=options.code_lengths(bits) if bits else None,
            heads=heads.value if heads else None,
            labels=labels,
            share=share,
            seen=_share_or_file(seen),
            seed=seed,
            seeds=seeds,
            map_at=map_at,
            through_index=through_index,
            milvus=None if uri is None else shared.milvus(),
            depth=depth,
            device=shared.device,
            settings=Settings(shared.batch_size, shared.workers),
            copies=copies,
            curves=report is not None or as_json or run is not None,
            run=run,
            progress=view,
        )
    if as_json:
        print(json.dumps(evaluation.to_json()))
    elif table is not None:
        print(paper_tables(evaluation.to_json(), table.value))
    else:
        show(evaluation)
    print_failures(evaluation.failures, as_json=as_json or table is not None)
    if report is not None:
        page = write_evaluation_report(report_data(evaluation, f"How well the images of {folder} are found"), report)
        if not as_json and table is None:
            print(f"\nReport: {escape_controls(str(page))}")
    if codes is not None:
        write_codes(evaluation, codes)
    kept = evaluation.metrics.get("run")
    if kept is not None and kept["reproduced"] is False:
        differences = "; ".join(map(escape_controls, kept["differences"])) or "the average precisions of queries"
        print(
            f"mgm: the metrics differ from those in '{escape_controls(kept['folder'])}', which is left as it is: "
            f"{differences}",
            file=sys.stderr,
        )
        raise typer.Exit(ERROR)
    if kept is not None and not as_json and table is None:
        what = "Kept in" if kept["reproduced"] is None else "The metrics are, to the bit, those in"
        print(f"\n{what} {escape_controls(kept['folder'])}")
    if evaluation.failures:
        raise typer.Exit(UNREADABLE)


def _share_or_file(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def show(evaluation: Evaluation) -> None:
    """Print the metrics as tables on standard output."""
    from mg_milvus.evaluation.report import copies_table, health_table, metrics_table, setup_lines

    metrics = evaluation.to_json()
    for line in setup_lines(metrics):
        print(escape_controls(line))
    for title, table in (
        ("", metrics_table(metrics)),
        ("recall@1 of edited copies", copies_table(metrics)),
        ("the codes of the database", health_table(metrics)),
        ("through the index", _index_table(metrics)),
    ):
        if table:
            print()
            print_table(title, table)
    if "through_index" in metrics:
        through = metrics["through_index"]
        same = "the same" if through["same_encoder"] else "ANOTHER"
        print(
            f"The index fitted {same} hash heads; with a depth of {through['depth']}, its metrics differ from "
            f"those in memory by {through['largest_difference']:.6f} at most."
        )


def _index_table(metrics: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    through = metrics.get("through_index", {})
    rows = through.get("granularities", {}) | through.get("fused", {})
    return {
        name: {f"P@{k}": value for k, value in found["precision"].items()}
        | {f"R@{k}": value for k, value in found["recall"].items()}
        for name, found in rows.items()
    }


def print_table(title: str, rows: Mapping[str, Mapping[str, float | None]]) -> None:
    """A table on standard output, cut into several where the terminal is narrower."""
    from rich import box
    from rich.table import Table

    out = console()
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    for part in _parts(columns, out.width - max(len(escape_controls(name)) for name in rows) - _MARGIN):
        table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
        table.add_column("", no_wrap=True)
        for column in part:
            table.add_column(escape_controls(column), justify="right", no_wrap=True)
        for name, row in rows.items():
            table.add_row(escape_controls(name), *(_text(row.get(column)) for column in part))
        out.print(table)
        title = ""


def _parts(columns: Sequence[str], width: int) -> list[list[str]]:
    """Columns in as many tables as fit into the width, one beneath the other."""
    parts: list[list[str]] = [[]]
    room = width
    for column in columns:
        needed = max(len(column), len("0.000")) + _BETWEEN
        if parts[-1] and needed > room:
            parts.append([])
            room = width
        parts[-1].append(column)
        room -= needed
    return parts


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


TUNE_EXAMPLES = """Examples:

mgm tune labelled/ --uri photos.db

mgm tune photos/ --pairs relevant.csv --goal recall@1 --uri photos.db

mgm tune labelled/ --schema mgm-schema.yaml      (before the first ingest)"""


class Goal(StrEnum):
    """The goals of ``mg_milvus.evaluation.tune``, named here so that help and completion are instant."""

    map = "map"
    recall = "recall@1"
    ndcg = "ndcg"


def register_tune(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=TUNE_EXAMPLES)(tune)


def tune(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images in a folder for each label, or those that --pairs names")
    ],
    labels: options.LabelTable = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE",
            help="Relevant pairs instead of labels, a table with the columns query and relevant: relevant.csv",
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
        int, typer.Option("--folds", min=2, help="Folds of the cross-validation over queries, e.g. 10")
    ] = 5,
    queries: Annotated[
        int, typer.Option("--queries", min=4, help="Most images used as queries, e.g. 300 to be quicker")
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

    They are measured on images that they were not learned from. Unless they are better than equal weights by more
    than one standard error, nothing is changed.
    """
    from mg_milvus.cli.settings import local_settings, settings_from
    from mg_milvus.evaluation import tune
    from mg_milvus.ingest.pipeline import Settings

    into_collection = schema is None or uri is not None or collection is not None
    encoding = (device, None, encoder, batch_size, workers, max_pixels)
    settings = settings_from(uri, token, collection, *encoding) if into_collection else local_settings(*encoding)
    target = tune.Target(
        schema=schema,
        out=out,
        milvus=settings.milvus(timeout) if into_collection else None,
        encoder=settings.encoder,
        device=settings.device,
    )
    with ProgressView() as view:
        report = tune.tune(
            folder,
            target,
            labels=labels,
            pairs=pairs,
            goal=goal.value,
            folds=folds,
            queries=queries,
            settings=Settings(settings.batch_size, settings.workers),
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
    """The outcome of a tuning, in lines."""
    tuning = report.tuning
    weights = ", ".join(f"{name} {weight:g}" for name, weight in tuning.weights.items())
    lines = [
        f"{tuning.goal} of {tuning.queries:,} queries among {tuning.candidates:,} images, "
        f"in {len(tuning.gains)} folds:",
        f"  equal weights    {tuning.equal:.4f}",
        f"  current weights  {tuning.before:.4f}",
        f"  learned weights  {tuning.tuned:.4f}   on unseen queries; {tuning.gain:+.4f} ± {tuning.standard_error:.4f} "
        "against equal ones",
        f"learned: {weights}; rrf_k {tuning.rrf_k}",
    ]
    if not tuning.better:
        reason = (
            "the current weights do as well"
            if tuning.gain > tuning.standard_error
            else "the learned weights are not better than equal ones by more than a standard error"
        )
        lines.append(f"Nothing was changed: {reason}.")
    if report.file is not None:
        lines.append(f"Written to {escape_controls(report.file)}.")
    if report.collection is not None:
        lines.append(
            f"Kept in the collection '{escape_controls(report.collection)}': its queries use them from now on."
        )
    return "\n".join(lines)
