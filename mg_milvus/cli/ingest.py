"""``mgm ingest``: pictures into the index."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options  # noqa: TC001 - typer reads the annotations
from mg_milvus.cli.terminal import INTERRUPTED, UNREADABLE, ProgressView, print_failures

if TYPE_CHECKING:
    from mg_milvus.hits import IngestReport

EXAMPLES = """Examples:

mgm ingest ~/Pictures

mgm ingest ~/Pictures --prune      (later: what is unchanged is skipped)

mgm ingest photos/ --schema schema.yaml --metadata captions.csv

mgm ingest photos/ --log-json --metrics-file mgm.prom      (as a service that is watched)"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=EXAMPLES)(ingest)


def ingest(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FOLDER_OR_FILE", help="Folders, walked to the bottom, and picture files")
    ],
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    schema: options.SchemaFile = None,
    metadata: options.Metadata = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also remove rows whose file is gone: mgm ingest photos/ --prune")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing, say what would be done: mgm ingest photos/ --dry-run")
    ] = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            "--metrics-file",
            metavar="FILE",
            dir_okay=False,
            help="Keep counts, queues and latencies there in Prometheus' text format: /var/lib/node_exporter/mgm.prom",
        ),
    ] = None,
    as_json: options.AsJson = False,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Encode the pictures of folders and files into the index.

    Broken files are listed at the end and stop nothing; the exit code is 3 then.
    """
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
    from mg_milvus.ingest import IngestMeters, MetricsFile

    if metrics_file is not None and dry_run:
        raise typer.BadParameter("--metrics-file tells what an ingest does, and --dry-run does nothing; leave one out")
    settings = settings_from(uri, token, collection, device, schema, encoder, batch_size, workers)
    meters = IngestMeters()
    watched = MetricsFile(metrics_file, meters) if metrics_file is not None else nullcontext()
    with open_index(settings, timeout=timeout) as index, watched:
        with ProgressView() as view:
            report = index.ingest(
                *sources,
                metadata=metadata,
                batch_size=settings.batch_size,
                workers=settings.workers,
                prune=prune,
                dry_run=dry_run,
                max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
                progress=view,
                meters=meters,
            )
        finish(report, as_json=as_json)


def finish(report: IngestReport, *, as_json: bool) -> None:
    """Print what an ingest did, and end the command with the exit code that belongs to it."""
    print(json.dumps(report.as_dict()) if as_json else summary(report))
    print_failures(report.failures, as_json=as_json)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if report.failures:
        raise typer.Exit(UNREADABLE)


def summary(report: IngestReport) -> str:
    """What an ingest did, in one to three lines."""
    lines = [
        f"{report.seen:,} seen: {report.added:,} added, {report.updated:,} updated, {report.unchanged:,} unchanged, "
        f"{report.removed:,} removed, {report.failed:,} failed "
        f"({report.pictures_per_second:.1f} pictures/s, {report.seconds:.1f} s)"
    ]
    if report.dry_run:
        lines.append("Dry run: nothing was written; this is what would have been done.")
    if report.adapted_on:
        lines.append(f"The hash heads were fitted on {report.adapted_on:,} of these pictures.")
    if report.interrupted:
        lines.append("Interrupted: what is counted here is stored and stays; run the same command again to go on.")
    return "\n".join(lines)
