"""``mgm ingest``, ``mgm fit`` and ``mgm refit``: images into the index, and hash heads fitted to them."""

from __future__ import annotations

import enum
import json
from contextlib import nullcontext
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import INTERRUPTED, UNREADABLE, ProgressView, passed_over_line, print_failures
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from mg_milvus.records import Failure, TableMatch
    from mg_milvus.results import IngestReport


NOTES_SHOWN = 20
"""Most notes on single files that are printed."""

EXAMPLES = """Examples:

mgm ingest ~/Pictures

mgm ingest ~/Pictures --prune      (again: skips unchanged images)

mgm ingest photos/ --schema schema.yaml --metadata captions.csv

mgm ingest photos/ --log-json --metrics-file mgm.prom      (under monitoring)"""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog=EXAMPLES)(ingest)
    app.command(
        epilog="Examples:\n\nmgm fit photos/ --backbone resnet50 --out resnet50.safetensors\n\n"
        "mgm ingest photos/ --encoder resnet50.safetensors\n\n"
        "mgm fit labelled/ --labels folders --out mine.safetensors      (a folder for each label)"
    )(fit)
    app.command(epilog="Examples:\n\nmgm refit\n\nmgm refit --to images2")(refit)


def ingest(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER_OR_FILE", help="Folders, read with their subfolders, and image files"),
    ],
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    schema: options.SchemaFile = None,
    metadata: options.Metadata = None,
    reset_metadata: Annotated[
        bool,
        typer.Option("--reset-metadata", help="Images without a row in --metadata lose their values (default: keep)"),
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also delete rows whose file no longer exists: mgm ingest photos/ --prune")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Report what would be done, and write nothing: mgm ingest photos/ --dry-run"),
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="PATTERN",
            help="Leave out what matches, by the rules of gitignore: '*.png', old/, /a.jpg; may be given again. "
            "Lines of a file .mgmignore in a folder do the same",
        ),
    ] = None,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            "--metrics-file",
            metavar="FILE",
            dir_okay=False,
            help="Write counts, queues and latencies to this file for Prometheus: /var/lib/node_exporter/mgm.prom",
        ),
    ] = None,
    as_json: options.AsJson = False,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Encode images and store their codes in the index.

    Unreadable files are skipped and listed at the end; the exit code is then 3.
    """
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.ingest.metrics import IngestMetrics, MetricsFile

    if metrics_file is not None and dry_run:
        raise options.UsageError("--metrics-file measures an ingest, and --dry-run performs none; give one of them")
    if reset_metadata and metadata is None:
        raise options.UsageError("--reset-metadata replaces values by those of a table; give --metadata FILE too")
    settings = settings_from(uri, token, collection, device, schema, encoder, batch_size, workers, max_pixels)
    metrics = IngestMetrics()
    metrics_writer = MetricsFile(metrics_file, metrics) if metrics_file is not None else nullcontext()
    with open_index(settings, timeout=timeout) as index, metrics_writer:
        with ProgressView() as view:
            report = index.ingest(
                *sources,
                metadata=metadata,
                reset_metadata=reset_metadata,
                batch_size=settings.batch_size,
                workers=settings.workers,
                prune=prune,
                dry_run=dry_run,
                progress=view,
                metrics=metrics,
                exclude=exclude or (),
            )
        finish(report, as_json=as_json)


def finish(report: IngestReport, *, as_json: bool) -> None:
    """Print the report of an ingest, and exit with its exit code."""
    print(json.dumps(report.as_dict()) if as_json else summary(report))
    print_failures(report.failures, as_json=as_json)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if report.failures:
        raise typer.Exit(UNREADABLE)


def summary(report: IngestReport) -> str:
    """Return the report of an ingest as a few lines."""
    rate = f"{report.images_per_second:.1f} images/s, " if report.added + report.updated else ""
    moved = f"{report.moved:,} moved, " if report.moved else ""
    lines = [
        f"{report.seen:,} seen: {report.added:,} added, {report.updated:,} updated, {report.unchanged:,} unchanged, "
        f"{moved}{report.removed:,} removed, {report.failed:,} failed "
        f"({rate}{report.seconds:.1f} s)"
    ]
    if report.dry_run:
        lines.append("Dry run: nothing was written; these are the changes that an ingest would make.")
    if report.away:
        lines.append(
            f"{report.away:,} rows were kept though their files are not found: their folder is empty or cannot be "
            "read, as when a disk is not mounted. If none is missing, remove the empty folder and prune again."
        )
    if report.adapted_on:
        lines.append(f"The hash heads were fitted on {report.adapted_on:,} of these images.")
    if report.table:
        lines += [*_column_lines(report.table), *_table_lines(report.table)]
    if report.passed_over:
        lines.append(passed_over_line(report.passed_over))
    lines += [f"Read all the same: {escape_controls(note.path)} {note.text}" for note in report.notes[:NOTES_SHOWN]]
    if len(report.notes) > NOTES_SHOWN:
        lines.append(f"… and {len(report.notes) - NOTES_SHOWN:,} more; --json lists all")
    lines += [f"advice: {escape_controls(sentence)}" for sentence in report.advice]
    if report.interrupted:
        lines.append("Interrupted: the images counted here are stored; run the same command again to continue.")
    return "\n".join(lines)


def _column_lines(table: TableMatch) -> list[str]:
    """Columns of the table of metadata: new ones with their types, and those that are not stored."""
    lines = []
    if new := [column for column in table.columns if column.new]:
        notes = [
            ", ".join(
                [column.type]
                + [f"from {escape_controls(column.header)!r}"] * (column.header != column.name)
                + [f"not {column.near}, which the table lacks"] * bool(column.near)
            )
            for column in new
        ]
        lines.append("New columns: " + ", ".join(f"{c.name} ({note})" for c, note in zip(new, notes, strict=True)))
    if table.columns_passed_over:
        passed = (f"{escape_controls(column)} ({reason})" for column, reason in table.columns_passed_over)
        lines.append("Columns not stored: " + ", ".join(passed))
    return lines


def _table_lines(table: TableMatch) -> list[str]:
    """Rows of the table of metadata that name no image, and images without a row."""
    lines = []
    if missed := table.rows - table.matched:
        near = (
            f"{escape_controls(path)}" + f" (nearest image: {escape_controls(image)})" * bool(image)
            for path, image in table.unmatched
        )
        more = f" and {missed - len(table.unmatched):,} more" if missed > len(table.unmatched) else ""
        lines.append(f"{missed:,} of {table.rows:,} rows of the table name no image: " + ", ".join(near) + more)
    if table.without_row:
        lines.append(
            f"{table.without_row:,} images have no row in the table, such as {escape_controls(table.first_without_row)}"
        )
    return lines


class Method(enum.StrEnum):
    """How ``mgm fit`` fits hash heads."""

    ADAPTIVE = "adaptive"
    ITQ = "itq"
    LSH = "lsh"


def fit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images similar to those you want to search")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="Encoder file to write, e.g. mine.safetensors")
    ],
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            metavar="NAME",
            help="Network: resnet50, convnext_tiny, … of torchvision, timm:NAME, open_clip:MODEL/PRETRAINED, "
            "hf:ID_OR_FOLDER, onnx:FILE, or the built-in one",
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
        typer.Option(
            "--schema",
            metavar="FILE",
            help="Fit the granularities of this schema, with regions: schema.yaml, or a preset such as regions",
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", metavar="NUMBER", min=1, help="Most images to fit on, e.g. 20000")
    ] = 5000,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="File with the backbone's weights, instead of downloading them: resnet50.pth",
        ),
    ] = None,
    taps: Annotated[
        str | None,
        typer.Option(
            "--taps",
            metavar="NAME,...",
            help="Layers of a network of timm, open_clip, transformers or an ONNX file to make codes of, early to "
            "late, e.g. layer3,layer4; default: the last stages of a CNN, three depths of a transformer",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option("--method", help="adaptive, or a baseline: itq, lsh (random hyperplanes)"),
    ] = Method.ADAPTIVE,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="folders|FILE",
            help="What images show, to be learned: folders, a folder for each label, or a table (path,label; several "
            "as a|b) such as labels.csv",
        ),
    ] = None,
    as_json: options.AsJson = False,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Fit the hash heads of a backbone to images, with labels or without, and write an encoder file."""
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.evaluation.labels import read_labelled
    from mg_milvus.ingest.fit_heads import FitOptions, fit_encoder
    from mg_milvus.ingest.pipeline import Settings
    from mg_milvus.schema.models import Schema

    if bits and schema:
        raise options.UsageError("give --bits or --schema, not both")
    lengths = options.code_lengths(bits) if bits else None
    settings = local_settings(device=device, batch_size=batch_size, workers=workers, max_pixels=max_pixels)
    without: list[Failure] = []
    learned = None
    if labels is not None:
        table = None if labels == "folders" else labels
        learned = read_labelled(folder, table, without.append).by_path()
    with ProgressView() as view:
        report = fit_encoder(
            folder,
            out,
            FitOptions(
                backbone=backbone,
                weights=weights,
                taps=tuple(taps.split(",")) if taps else (),
                bits=lengths,
                schema=Schema.load(schema) if schema else Schema(),
                method=method.value,
                labels=learned,
                sample=sample,
                device=settings.device,
                settings=Settings(settings.batch_size, settings.workers),
            ),
            progress=view,
        )
    failures = tuple(dict.fromkeys((*report.failures, *without)))
    if as_json:
        print(
            json.dumps(
                {
                    "file": str(out), "fingerprint": report.fingerprint, "images": report.images,
                    "labels": dict(report.labels), "bytes": report.bytes, "seconds": round(report.seconds, 3),
                    "clients_need": report.clients_need,
                    "failures": [{"path": failure.path, "reason": failure.reason} for failure in failures],
                }
            )
        )  # fmt: skip
    else:
        taught = " and ".join(f"{count:,} labels by {name}" for name, count in report.labels.items())
        print(
            f"{escape_controls(str(out))}: encoder {report.fingerprint}, {report.bytes / 1e6:.1f} MB, heads fitted on "
            f"{report.images:,} images in {report.seconds:.1f} s{f'; learned: {taught}' if taught else ''}"
        )
        if report.clients_need:
            print(f"only the heads fit into Milvus: every client needs {escape_controls(report.clients_need)}")
    print_failures(failures, as_json=as_json)
    if failures:
        raise typer.Exit(UNREADABLE)


def refit(
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="NAME", help="Make a new collection of this name, and leave the old one, e.g. images2"
        ),
    ] = None,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Fit the hash heads to all images of a collection again, and encode them with these.

    The collection serves until all new codes are there, which then take its place: names, tags, fields and the names of
    clusters stay. After an interruption run it again.
    """
    from mg_milvus.cli.settings import open_index, settings_from

    settings = settings_from(
        uri, token, collection, device, batch_size=batch_size, workers=workers, max_pixels=max_pixels
    )
    with open_index(settings, timeout=timeout) as index, ProgressView() as view:
        report = index.refit(to, progress=view, batch_size=settings.batch_size, workers=settings.workers)
    finish(report, as_json=as_json)
