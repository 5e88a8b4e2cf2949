"""``mgm serve``: the web page."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from mg_milvus.cli import options, secret

EXAMPLES = """Examples:

mgm serve

mgm serve --uri photos.db --allow-ingest ~/Pictures --port 8080

MGM_WEB_TOKEN=... mgm serve --host 0.0.0.0 --read-only"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=EXAMPLES)(serve)


def serve(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; beyond this machine, e.g. 0.0.0.0, --token is needed")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port, e.g. 8080; 0: any that is free")] = 8000,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Nothing can be changed from the page: mgm serve --read-only"),
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            help="What the page asks of its visitors. Env: MGM_WEB_TOKEN (better: no history). "
            "That of a Milvus server: MGM_TOKEN or mgm.yaml",
        ),
    ] = None,
    allow_ingest: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow-ingest",
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="A folder that may be ingested from the page, e.g. ~/Pictures; several times for several",
        ),
    ] = None,
    upload_to: Annotated[
        Path | None,
        typer.Option(
            "--upload-to",
            metavar="FOLDER",
            file_okay=False,
            help="Where pictures uploaded into the index are kept; default for photos.db: photos-uploads",
        ),
    ] = None,
    uri: options.Uri = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Serve a web page and an API for searching the index, until Ctrl-C."""
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.errors import MissingPackageError

    try:
        from mg_milvus.web import server, thumbnails
        from mg_milvus.web.settings import WebSettings
    except ModuleNotFoundError as exc:
        raise MissingPackageError(
            f"mgm serve needs the package {exc.name}, which is not installed: pip install 'mg-milvus[web]'"
        ) from exc
    settings = settings_from(uri, None, collection, device, encoder=encoder)
    asked = token or os.environ.get("MGM_WEB_TOKEN") or None
    secret.keep(asked)
    file = Path(settings.uri)
    beside = file.with_name(f"{file.stem}-uploads") if file.suffix == ".db" and "://" not in settings.uri else None
    folder = upload_to or beside
    taken = server.bind(host, port, asked)
    # Where this line does not go to a terminal it goes into a log, which is not to hold the token.
    where = server.address(host, taken) + (f"?token={quote(token)}" if token and sys.stdout.isatty() else "")
    with closing(taken), open_index(settings, timeout=timeout) as index:
        rows = index.count() if index.exists else 0
        server.serve(
            index,
            WebSettings(
                read_only=read_only,
                token=asked,
                ingest_folders=tuple(path.absolute() for path in allow_ingest or ()),
                upload_folder=folder.absolute() if folder else None,
                thumbnail_folder=thumbnails.default_folder(),
            ),
            taken,
            started=lambda: print(f"{where} · {rows:,} pictures of '{index.collection}' · Ctrl-C ends it", flush=True),
        )
