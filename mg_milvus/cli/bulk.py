"""``mgm encode``, ``mgm load`` and ``mgm export``: pictures by the million, and moving house."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.terminal import INTERRUPTED, UNREADABLE, ProgressView, print_failures
from mg_milvus.display import printable

if TYPE_CHECKING:
    from mg_milvus.bulk.transfer import TransferReport

ENCODE_EXAMPLES = """Examples:

mgm fit sample/ --out mine.safetensors

mgm encode s3://shop/pictures --encoder mine.safetensors --shard 2/4 --out s3://shop/codes

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
            help="Folders, pictures, tars, Parquet tables, .txt files with a path or URL a line; or http(s)://, s3:// "
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
            "--rows-a-file", min=1, help="Pictures of one file; what a killed run does again at most, e.g. 5000"
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
    """Encode pictures into files of codes, without Milvus and on many machines; run again, it goes on.

    Broken pictures are listed at the end and stop nothing; the exit code is 3 then.
    """
    from mg_milvus.bulk import encode as run
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
            f"({report.pictures_per_second:.1f} pictures/s, {report.seconds:.1f} s)"
        )
        print(f"encoder {report.fingerprint}, kept in {printable(out)}")
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
    print(f"{report.rows:,} rows {printable(what)}, {files} ({rate}, {report.seconds:.1f} s)")
    print(f"encoder {report.fingerprint}")
