"""``mgm ingest``: images into the index."""

from __future__ import annotations

import enum
import json
from contextlib import nullcontext
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import INTERRUPTED, UNREADABLE, ProgressView, print_failures
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from mg_milvus.results import IngestReport


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
        list[Path], typer.Argument(metavar="FOLDER_OR_FILE", help="Folders, walked to the bottom, and image files")
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
    """Encode the images of folders and files into the index.

    Broken files are listed at the end and stop nothing; the exit code is 3 then.
    """
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
    from mg_milvus.ingest.metrics import IngestMetrics, MetricsFile

    if metrics_file is not None and dry_run:
        raise typer.BadParameter("--metrics-file tells what an ingest does, and --dry-run does nothing; leave one out")
    settings = settings_from(uri, token, collection, device, schema, encoder, batch_size, workers)
    metrics = IngestMetrics()
    watched = MetricsFile(metrics_file, metrics) if metrics_file is not None else nullcontext()
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
                metrics=metrics,
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
        f"({report.images_per_second:.1f} images/s, {report.seconds:.1f} s)"
    ]
    if report.dry_run:
        lines.append("Dry run: nothing was written; this is what would have been done.")
    if report.adapted_on:
        lines.append(f"The hash heads were fitted on {report.adapted_on:,} of these images.")
    if report.interrupted:
        lines.append("Interrupted: what is counted here is stored and stays; run the same command again to go on.")
    return "\n".join(lines)


class Method(enum.StrEnum):
    """How ``mgm fit`` makes hash heads."""

    ADAPTIVE = "adaptive"
    ITQ = "itq"
    LSH = "lsh"


def register_fit(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(
        epilog="Example:\n\nmgm fit photos/ --backbone resnet50 --out resnet50.safetensors\n\n"
        "mgm ingest photos/ --encoder resnet50.safetensors"
    )(fit)
    app.command(epilog="Example:\n\nmgm refit --to images2\n\nmgm query cat.jpg --collection images2")(refit)


def fit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images like those you want to search")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="The encoder file, e.g. mine.safetensors")
    ],
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone", metavar="NAME", help="The network: resnet50, convnext_tiny, … or the one that ships"
        ),
    ] = "builtin",
    bits: Annotated[
        str | None,
        typer.Option(
            "--bits",
            metavar="NAME=BITS,...",
            help="Code lengths, e.g. coarse=64,mid=128,fine=256; default: the encoder's own",
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option("--schema", metavar="FILE", help="Fit what this schema holds, regions too: schema.yaml, parts"),
    ] = None,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Fit on at most so many images, e.g. 20000")] = 5000,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help="The backbone's weights, where they are not downloaded: resnet50.pth"
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option("--method", help="adaptive; or, to compare with: itq, lsh (random hyperplanes)"),
    ] = Method.ADAPTIVE,
    as_json: options.AsJson = False,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Fit hash heads over a backbone to a folder of images, without labels, into an encoder file."""
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
    from mg_milvus.ingest.fit_heads import FitOptions, fit_encoder
    from mg_milvus.ingest.pipeline import Settings
    from mg_milvus.schema.models import Schema

    if bits and schema:
        raise typer.BadParameter("give --bits or --schema, and not both")
    lengths = options.code_lengths(bits) if bits else None
    settings = local_settings(device=device, batch_size=batch_size, workers=workers)
    with ProgressView() as view:
        report = fit_encoder(
            folder,
            out,
            FitOptions(
                backbone=backbone,
                weights=weights,
                bits=lengths,
                schema=Schema.load(schema) if schema else Schema(),
                method=method.value,
                sample=sample,
                device=settings.device,
                settings=Settings(settings.batch_size, settings.workers, max_pixels or DEFAULT_MAX_PIXELS),
            ),
            progress=view,
        )
    if as_json:
        failures = [{"path": failure.path, "reason": failure.reason} for failure in report.failures]
        print(
            json.dumps(
                {
                    "file": str(out), "fingerprint": report.fingerprint, "images": report.images,
                    "bytes": report.bytes, "seconds": round(report.seconds, 3), "failures": failures,
                }
            )
        )  # fmt: skip
    else:
        print(
            f"{escape_controls(str(out))}: encoder {report.fingerprint}, {report.bytes / 1e6:.1f} MB, heads fitted on "
            f"{report.images:,} images in {report.seconds:.1f} s"
        )
    print_failures(report.failures, as_json=as_json)
    if report.failures:
        raise typer.Exit(UNREADABLE)


def refit(
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="The collection to build, e.g. images2")],
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
) -> None:
    """Fit the hash heads again, on the collection as it has grown, and build a new one beside the old."""
    from mg_milvus.cli.settings import open_index, settings_from

    settings = settings_from(uri, token, collection, device, batch_size=batch_size, workers=workers)
    with open_index(settings, timeout=timeout) as index, ProgressView() as view:
        report = index.refit(to, progress=view, batch_size=settings.batch_size, workers=settings.workers)
    finish(report, as_json=as_json)
