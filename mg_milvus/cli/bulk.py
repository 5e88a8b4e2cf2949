"""``mgm encode``, ``load`` and ``export``: files of codes; ``mgm plan``: the size of a collection."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import INTERRUPTED, UNREADABLE, ProgressView, passed_over_line, print_failures
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from mg_milvus.bulk.transfer import TransferReport
    from mg_milvus.capacity import Collection, Plan


ENCODE_EXAMPLES = """Examples:

mgm fit sample/ --out mine.safetensors

mgm encode s3://shop/images --encoder mine.safetensors --shard 2/4 --out s3://shop/codes

mgm encode s3://shop/images --encoder mine.safetensors --on ray://10.0.0.1:10001 --out s3://shop/codes

mgm load s3://shop/codes --uri http://localhost:19530"""

Folder = Annotated[
    str, typer.Argument(metavar="FOLDER", help="Folder of codes: codes/, s3://bucket/codes", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog=ENCODE_EXAMPLES)(encode)
    app.command(epilog="Examples:\n\nmgm load codes/ --uri http://localhost:19530\n\nmgm load codes/ --partial")(load)
    app.command(
        epilog="Example, from a laptop to a server:\n\nmgm export backup/ --uri mgm.db\n\n"
        "mgm load backup/ --uri http://localhost:19530"
    )(export)


def encode(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folders, images, tars, zips, Parquet tables, .txt files of one path or URL per line; or http(s)://, "
            "s3:// and gs:// URLs of them",
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="FOLDER", help="Folder to write to: codes/, s3://bucket/codes")],
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Share of this machine, e.g. 2/4 for the second of four")
    ] = "1/1",
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="CLUSTER",
            help="Encode on the machines of a Ray cluster: ray for that of this machine, or e.g. ray://10.0.0.1:10001",
        ),
    ] = None,
    schema: options.SchemaFile = None,
    metadata: options.Metadata = None,
    rows_per_file: Annotated[
        int,
        typer.Option(
            "--rows-per-file", min=1, help="Images of one file; a killed run encodes at most as many again, e.g. 5000"
        ),
    ] = 20_000,
    allow_private: Annotated[
        bool,
        typer.Option(
            "--allow-private",
            help="Allow URLs of private, loopback and link-local addresses: mgm encode mine.txt --allow-private …",
        ),
    ] = False,
    as_json: options.AsJson = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="FILE",
            help="Encoder of all shards: mine.safetensors from mgm fit, or builtin. Env: MGM_ENCODER",
            rich_help_panel=options.ENCODING,
        ),
    ] = None,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Encode images into files of codes, without Milvus, on one or many machines.

    A repeated run skips the images that are already encoded. Unreadable images are listed at the end, with exit code 3.
    """
    from mg_milvus.bulk.dataset import Shard
    from mg_milvus.bulk.encode import EncodeOptions
    from mg_milvus.bulk.encode import encode as run
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.ingest.pipeline import Settings
    from mg_milvus.schema.models import Schema

    settings = local_settings(device, schema, encoder, batch_size, workers, max_pixels)
    encode_options = EncodeOptions(
        schema=Schema.load(settings.schema_source) if settings.schema_source else Schema(),
        shard=Shard.parse(shard),
        metadata=metadata,
        rows_per_file=rows_per_file,
        settings=Settings(settings.batch_size, settings.workers),
        device=settings.device,
        allow_private=allow_private,
        on=on,
    )
    with ProgressView() as view:
        report = run(*sources, out=out, encoder=settings.encoder, options=encode_options, progress=view)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        print(
            f"shard {report.shard}: {report.seen:,} seen: {report.encoded:,} encoded into {report.files:,} files, "
            f"{report.unchanged:,} unchanged, {len(report.failures):,} failed "
            f"({report.images_per_second:.1f} images/s, {report.seconds:.1f} s)"
        )
        print(f"encoder {report.fingerprint}, stored in {escape_controls(out)}")
        if report.passed_over:
            print(passed_over_line(report.passed_over))
        if report.interrupted:
            print("Interrupted: the images counted are written; run the same command again to continue.")
    print_failures(report.failures, as_json=as_json)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if report.failures:
        raise typer.Exit(UNREADABLE)


def load(
    folder: Folder,
    partial: Annotated[
        bool, typer.Option("--partial", help="Load the existing files, even if a shard is not finished")
    ] = False,
    bucket: Annotated[
        str | None,
        typer.Option(
            "--bucket",
            metavar="URL",
            help="Import by jobs of the server into an empty collection: a folder in the bucket where the server keeps "
            "its files, e.g. s3://a-bucket/imports",
        ),
    ] = None,
    rest: Annotated[
        str | None,
        typer.Option(
            "--rest",
            metavar="URL",
            help="With --bucket: address of the server's REST API, if it is not the URI's, e.g. https://host:8080",
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            help="Other weights, fusion and storage for a new collection, e.g. schema.yaml. Env: MGM_SCHEMA",
        ),
    ] = None,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Load a folder of codes into Milvus, with its schema and encoder; repeated, it replaces the same rows."""
    from mg_milvus.cli.settings import open_index, settings_from

    if rest is not None and bucket is None:
        raise typer.BadParameter("--rest is the address for the jobs of --bucket: give --bucket too")
    settings = settings_from(uri, token, collection, schema=schema)
    with open_index(settings, timeout=timeout) as index, ProgressView() as view:
        report = index.load(folder, partial=partial, bucket=bucket, rest=rest, progress=view)
    _print_report(report, f"loaded into '{report.collection}' at {settings.uri}", as_json=as_json)


def export(
    folder: Folder,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Write a collection into an empty folder of codes, as a backup or to move it to another Milvus."""
    from mg_milvus.cli.settings import open_index, settings_from

    settings = settings_from(uri, token, collection)
    with open_index(settings, timeout=timeout) as index, ProgressView() as view:
        report = index.export(folder, progress=view)
    _print_report(report, f"of '{report.collection}' written to {folder}", as_json=as_json)


def _print_report(report: TransferReport, what: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    files = f"{report.files:,} file" + ("" if report.files == 1 else "s")
    rate = f"{report.rows / report.seconds:,.0f} rows/s" if report.seconds else ""
    print(f"{report.rows:,} rows {escape_controls(what)}, {files} ({rate}, {report.seconds:.1f} s)")
    print(f"encoder {report.fingerprint}")


_UNITS = {"": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def register_plan(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        epilog="Examples:\n\nmgm plan --images 1e6\n\n"
        "mgm plan --images 1e9 --schema server --memory 64GB --machines 8 --images-per-second 2000"
    )(plan)


def plan(
    images: Annotated[str, typer.Option("--images", metavar="NUMBER", help="Number of images, e.g. 2500000 or 1e9")],
    schema: options.SchemaFile = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="BYTES", help="Memory of the server, e.g. 64GB: lists changes that fit into it"
        ),
    ] = None,
    machines: Annotated[int, typer.Option("--machines", min=1, help="Machines that encode in parallel, e.g. 4")] = 1,
    images_per_second: Annotated[
        float | None,
        typer.Option(
            "--images-per-second",
            metavar="NUMBER",
            min=0.01,
            help="Encoding rate of one machine, as mgm encode reports it, e.g. 2000; default: that of two cores",
        ),
    ] = None,
    path_bytes: Annotated[int, typer.Option("--path-bytes", min=1, help="Length of a typical path, e.g. 90")] = 60,
    text_bytes: Annotated[
        int, typer.Option("--text-bytes", min=0, help="Length of a typical text in additional fields, e.g. 200")
    ] = 32,
    as_json: options.AsJson = False,
) -> None:
    """Estimate the bytes per field, memory, disk, indexes and hours of a collection, and changes that make it fit."""
    from mg_milvus.capacity import Assumptions
    from mg_milvus.capacity import plan as estimate
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.schema.models import Schema

    source = local_settings(schema=schema).schema_source
    estimated = estimate(
        round(_number(images, "--images", {"": 1})),
        Schema.load(source) if source else None,
        Assumptions(
            path_bytes, text_bytes, images_per_second, machines,
            None if memory is None else _number(memory, "--memory", _UNITS),
        ),
    )  # fmt: skip
    print(json.dumps(estimated.as_dict()) if as_json else "\n".join(_lines(estimated)))


def _lines(plan: Plan) -> list[str]:
    lines = [
        *(_rows(table, what) for table, what in zip(plan.collections, ("images", "regions"), strict=False)),
        "",
        f"files of codes   {_bytes(plan.codes_folder)}, encoded in {plan.encode_hours:,.1f} hours "
        f"at {plan.images_per_second:,.4g} images/s a machine",
        f"Milvus Lite      {_bytes(plan.lite_file)} file, {_bytes(plan.lite_memory)} memory",
        f"Milvus server    {_bytes(plan.server_memory)} memory, {_bytes(plan.server_disk)} mapped from disk, "
        f"{sum(table.segments for table in plan.collections):,} segments",
        "indexes          " + ", ".join(f"{name} {_bytes(size)}" for name, size in plan.index.items()),
    ]
    if plan.changes:
        lines += ["", "To fit into the memory, one of:"]
        lines += [f"  {_bytes(c.memory)} memory, {_bytes(c.disk)} disk: {c.what}" for c in plan.changes]
    return [*lines, *([""] if plan.notes else []), *(f"note: {note}" for note in plan.notes)]


def _rows(table: Collection, what: str) -> str:
    fields = ", ".join(f"{name} {size:.4g}" for name, size in table.fields.items())
    return f"{table.rows:,} {what}, {sum(table.fields.values()):.4g} bytes each: {fields}"


def _number(text: str, option: str, units: dict[str, float]) -> float:
    """``64GB`` -> 6.4e10.

    Raises:
        typer.BadParameter: no number above 0, or another unit.
    """
    match = re.fullmatch(r"([0-9][0-9.,_]*(?:e[0-9]+)?)\s*([A-Za-z]*)", text.strip(), re.IGNORECASE)
    known = {unit.lower(): size for unit, size in units.items()}
    try:
        value = float(match[1].replace(",", "").replace("_", "")) * known[match[2].lower()] if match else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < 1e18:
        example = "64GB" if len(units) > 1 else "1e9"
        raise typer.BadParameter(f"'{text}' is not a number above 0, such as {example}", param_hint=option)
    return value


def _bytes(size: float) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB")
    step = min(len(units) - 1, int(math.log(max(size, 1), 1000)))
    value = size / 1000**step
    return f"{value:,.0f} {units[step]}" if step == 0 or value >= 100 else f"{value:,.1f} {units[step]}"
