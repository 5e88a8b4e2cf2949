"""``mgm encode``, ``mgm load`` and ``mgm export``: images by the million, and moving house."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import INTERRUPTED, UNREADABLE, ProgressView, print_failures
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from mg_milvus.bulk.transfer import TransferReport
    from mg_milvus.capacity import Collection, Plan


ENCODE_EXAMPLES = """Examples:

mgm fit sample/ --out mine.safetensors

mgm encode s3://shop/images --encoder mine.safetensors --shard 2/4 --out s3://shop/codes

mgm load s3://shop/codes --uri http://localhost:19530"""

Folder = Annotated[
    str, typer.Argument(metavar="FOLDER", help="A folder of codes: codes/, s3://bucket/codes", show_default=False)
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
            help="Folders, images, tars, Parquet tables, .txt files with a path or URL a line; or http(s)://, s3:// "
            "and gs:// URLs of them",
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="FOLDER", help="Where the codes go: codes/, s3://bucket/codes")],
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="This machine's share, e.g. 2/4 for the second of four")
    ] = "1/1",
    schema: options.SchemaFile = None,
    metadata: options.Metadata = None,
    rows_a_file: Annotated[
        int,
        typer.Option(
            "--rows-a-file", min=1, help="Images of one file; what a killed run does again at most, e.g. 5000"
        ),
    ] = 20_000,
    allow_private: Annotated[
        bool,
        typer.Option(
            "--allow-private",
            help="URLs may lead to private, loopback and link-local addresses: mgm encode mine.txt --allow-private …",
        ),
    ] = False,
    as_json: options.AsJson = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="FILE",
            help="The encoder of all shards: mine.safetensors from mgm fit, or builtin. Env: MGM_ENCODER",
            rich_help_panel=options.ENCODING,
        ),
    ] = None,
    device: options.DeviceOption = None,
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Encode images into files of codes, without Milvus and on many machines; run again, it goes on.

    Broken images are listed at the end and stop nothing; the exit code is 3 then.
    """
    from mg_milvus.bulk.encode import encode as run
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.images.decode import DEFAULT_MAX_PIXELS

    settings = local_settings(device, schema, encoder, batch_size, workers)
    with ProgressView() as view:
        report = run(
            *sources,
            out=out,
            encoder=settings.encoder,
            schema=settings.schema_source,
            shard=shard,
            metadata=metadata,
            rows_a_file=rows_a_file,
            batch_size=settings.batch_size,
            workers=settings.workers,
            max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
            device=settings.device,
            allow_private=allow_private,
            progress=view,
        )
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        print(
            f"shard {report.shard}: {report.seen:,} seen: {report.encoded:,} encoded into {report.files:,} files, "
            f"{report.finished:,} finished before, {len(report.failures):,} failed "
            f"({report.images_per_second:.1f} images/s, {report.seconds:.1f} s)"
        )
        print(f"encoder {report.fingerprint}, kept in {escape_controls(out)}")
        if report.interrupted:
            print("Interrupted: what is counted here is written; run the same command again to go on.")
    print_failures(report.failures, as_json=as_json)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if report.failures:
        raise typer.Exit(UNREADABLE)


def load(
    folder: Folder,
    partial: Annotated[
        bool, typer.Option("--partial", help="Load what there is, even where a shard is not finished")
    ] = False,
    bucket: Annotated[
        str | None,
        typer.Option(
            "--bucket",
            metavar="URL",
            help="Import by the server's own jobs, into an empty collection: a folder in the bucket that the server "
            "keeps its files in, e.g. s3://a-bucket/imports",
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
    """Put a folder of codes into Milvus, with its schema and encoder; again, it replaces the same rows."""
    from mg_milvus.cli.settings import open_index, settings_from

    settings = settings_from(uri, token, collection, schema=schema)
    with open_index(settings, timeout=timeout) as index, ProgressView() as view:
        report = index.load(folder, partial=partial, bucket=bucket, progress=view)
    _tell(report, f"loaded into '{report.collection}' at {settings.uri}", as_json=as_json)


def export(
    folder: Folder,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Write a collection into an empty folder of codes: a backup, and the way to another Milvus."""
    from mg_milvus.cli.settings import open_index, settings_from

    settings = settings_from(uri, token, collection)
    with open_index(settings, timeout=timeout) as index, ProgressView() as view:
        report = index.export(folder, progress=view)
    _tell(report, f"of '{report.collection}' written to {folder}", as_json=as_json)


def _tell(report: TransferReport, what: str, *, as_json: bool) -> None:
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
    images: Annotated[str, typer.Option("--images", metavar="NUMBER", help="How many, e.g. 2500000 or 1e9")],
    schema: options.SchemaFile = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="BYTES", help="Of the server, e.g. 64GB: say what to change if it is too little"
        ),
    ] = None,
    machines: Annotated[int, typer.Option("--machines", min=1, help="Machines that encode at once, e.g. 4")] = 1,
    images_per_second: Annotated[
        float | None,
        typer.Option(
            "--images-per-second",
            metavar="NUMBER",
            min=0.01,
            help="That one machine encodes, as mgm encode says, e.g. 2000; default: what two cores do",
        ),
    ] = None,
    path_bytes: Annotated[int, typer.Option("--path-bytes", min=1, help="Length of a typical path, e.g. 90")] = 60,
    text_bytes: Annotated[
        int, typer.Option("--text-bytes", min=0, help="Length of a typical text in your own fields, e.g. 200")
    ] = 32,
    as_json: options.AsJson = False,
) -> None:
    """Say what a collection takes: bytes per field, memory, disk, indexes, hours; and what to change to make it fit."""
    from mg_milvus.capacity import Assumptions
    from mg_milvus.capacity import plan as make
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.schema.models import Schema

    source = local_settings(schema=schema).schema_source
    made = make(
        round(_number(images, "--images", {"": 1})),
        Schema.load(source) if source else None,
        Assumptions(
            path_bytes, text_bytes, images_per_second, machines,
            None if memory is None else _number(memory, "--memory", _UNITS),
        ),
    )  # fmt: skip
    print(json.dumps(made.as_dict()) if as_json else "\n".join(_lines(made)))


def _lines(made: Plan) -> list[str]:
    lines = [
        *(_rows(held, what) for held, what in zip(made.collections, ("images", "regions"), strict=False)),
        "",
        f"files of codes   {_bytes(made.codes_folder)}, encoded in {made.encode_hours:,.1f} hours",
        f"Milvus Lite      {_bytes(made.lite_file)} file, {_bytes(made.lite_memory)} memory",
        f"Milvus server    {_bytes(made.server_memory)} memory, {_bytes(made.server_disk)} mapped from disk, "
        f"{sum(held.segments for held in made.collections):,} segments",
        "indexes          " + ", ".join(f"{name} {_bytes(size)}" for name, size in made.index.items()),
    ]
    if made.changes:
        lines += ["", "To fit into the memory, one of:"]
        lines += [f"  {_bytes(c.memory)} memory, {_bytes(c.disk)} disk: {c.what}" for c in made.changes]
    return [*lines, *([""] if made.notes else []), *(f"note: {note}" for note in made.notes)]


def _rows(held: Collection, what: str) -> str:
    fields = ", ".join(f"{name} {size:.4g}" for name, size in held.fields.items())
    return f"{held.rows:,} {what}, {sum(held.fields.values()):.4g} bytes each: {fields}"


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
