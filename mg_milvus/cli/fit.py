"""``mgm fit`` and ``mgm refit``: hash heads for one's own pictures."""

from __future__ import annotations

import enum
import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.ingest import finish
from mg_milvus.cli.terminal import UNREADABLE, ProgressView, print_failures
from mg_milvus.display import printable


class Method(enum.StrEnum):
    """How ``mgm fit`` makes hash heads."""

    ADAPTIVE = "adaptive"
    ITQ = "itq"
    LSH = "lsh"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(
        epilog="Example:\n\nmgm fit photos/ --backbone resnet50 --out resnet50.safetensors\n\n"
        "mgm ingest photos/ --encoder resnet50.safetensors"
    )(fit)
    app.command(epilog="Example:\n\nmgm refit --to pictures2\n\nmgm query cat.jpg --collection pictures2")(refit)


def fit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures like those you want to search")],
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
    sample: Annotated[int, typer.Option("--sample", min=1, help="Fit on at most so many pictures, e.g. 20000")] = 5000,
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
    """Fit hash heads over a backbone to a folder of pictures, without labels, into an encoder file."""
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.fitting import fit_encoder
    from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
    from mg_milvus.schema import Schema

    if bits and schema:
        raise typer.BadParameter("give --bits or --schema, and not both")
    lengths = options.code_lengths(bits) if bits else None
    settings = local_settings(device=device, batch_size=batch_size, workers=workers)
    with ProgressView() as view:
        report = fit_encoder(
            folder,
            out,
            backbone=backbone,
            bits=lengths,
            schema=Schema.load(schema) if schema else None,
            sample=sample,
            weights=weights,
            method=method.value,
            device=settings.device,
            batch_size=settings.batch_size,
            workers=settings.workers,
            max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
            progress=view,
        )
    if as_json:
        failures = [{"path": failure.path, "reason": failure.reason} for failure in report.failures]
        print(
            json.dumps(
                {
                    "file": str(out), "fingerprint": report.fingerprint, "pictures": report.pictures,
                    "bytes": report.bytes, "seconds": round(report.seconds, 3), "failures": failures,
                }
            )
        )  # fmt: skip
    else:
        print(
            f"{printable(str(out))}: encoder {report.fingerprint}, {report.bytes / 1e6:.1f} MB, heads fitted on "
            f"{report.pictures:,} pictures in {report.seconds:.1f} s"
        )
    print_failures(report.failures, as_json=as_json)
    if report.failures:
        raise typer.Exit(UNREADABLE)


def refit(
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="The collection to build, e.g. pictures2")],
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
