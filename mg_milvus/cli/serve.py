"""``mgm serve``: the web page."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from mg_milvus.cli import log, options
from mg_milvus.cli.console import ERROR
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from mg_milvus.store.lite_server import Served


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
            help="Where images uploaded into the index are kept; default for photos.db: photos-uploads",
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
        from mg_milvus.web import app, media
        from mg_milvus.web.security import WebSettings
    except ModuleNotFoundError as exc:
        raise MissingPackageError(
            f"mgm serve needs the package {exc.name}, which is not installed: pip install 'mg-milvus[web]'"
        ) from exc
    settings = settings_from(uri, None, collection, device, encoder=encoder)
    asked = token or os.environ.get("MGM_WEB_TOKEN") or None
    log.register_token(asked)
    file = Path(settings.uri)
    beside = file.with_name(f"{file.stem}-uploads") if file.suffix == ".db" and "://" not in settings.uri else None
    folder = upload_to or beside
    taken = app.bind(host, port, asked)
    # Where this line does not go to a terminal it goes into a log, which is not to hold the token.
    where = app.address(host, taken) + (f"?token={quote(token)}" if token and sys.stdout.isatty() else "")
    with closing(taken), open_index(settings, timeout=timeout) as index:
        rows = index.count() if index.exists else 0
        app.serve(
            index,
            WebSettings(
                read_only=read_only,
                token=asked,
                ingest_folders=tuple(path.absolute() for path in allow_ingest or ()),
                upload_folder=folder.absolute() if folder else None,
                thumbnail_folder=media.default_folder(),
            ),
            taken,
            started=lambda: print(f"{where} · {rows:,} images of '{index.collection}' · Ctrl-C ends it", flush=True),
        )


Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PLACE",
        help="A Milvus Lite file, photos.db, or a folder for mgm.db; default: what MGM_URI or mgm.yaml name, or mgm.db",
    ),
]


def register_up(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Examples:\n\nmgm up\n\nmgm up --data photos.db --port 0\n\nmgm up --status --show-token")(up)
    app.command(epilog="Example: mgm down --data photos.db")(down)


def up(
    data: Data = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port, e.g. 20000; 0: any that is free; default: 19530"),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Only say whether it runs: mgm up --status || mgm up")
    ] = False,
    show_token: Annotated[
        bool,
        typer.Option("--show-token", help="Print the token that Milvus programs other than mgm need, nothing else"),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Share a Milvus Lite file: serve it to all your programs on this machine, until mgm down."""
    from mg_milvus.store import lite_server

    if show_token and as_json:
        raise typer.BadParameter("give --json or --show-token: the token is in no JSON")
    file = _file(data)
    if status:
        running = lite_server.served(file)
        if running and show_token:
            _print_token(running)
            return
        _print_status(file, running, data, as_json=as_json)
        return
    running, fresh = lite_server.up(file, port)
    if show_token:
        _print_token(running)
        return
    if as_json:
        print(json.dumps({"running": True, "started": fresh} | _facts(running)))
        return
    print(
        f"{escape_controls(running.file)} is {'' if fresh else 'already '}served at {running.uri}, "
        "to your programs only"
    )
    print(f"log: {escape_controls(running.log)}\n")
    print(f"mgm ingest photos/ --uri {running.uri}")
    print(f"mgm serve --uri {running.uri}")
    print(f"mgm down{_named(data)}\n")
    print(f"Programs that name {escape_controls(Path(running.file).name)} instead of the URI are led there too.")
    print(f"Milvus programs other than mgm need a token: mgm up --status --show-token{_named(data)}")


def down(data: Data = None, as_json: options.AsJson = False) -> None:
    """Stop the server that mgm up started; everything stays in the file."""
    from mg_milvus.store import lite_server

    file = _file(data)
    stopped = lite_server.down(file)
    if as_json:
        print(json.dumps({"file": str(file), "stopped": stopped is not None}))
    elif stopped:
        print(f"{escape_controls(stopped.file)} is no longer served at {stopped.uri}")
    else:
        print(f"{escape_controls(str(file))} is not served: nothing to stop")


def _print_status(file: Path, running: Served | None, data: str | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"running": True} | _facts(running) if running else {"running": False, "file": str(file)}))
    elif running:
        print(
            f"{escape_controls(running.file)} is served at {running.uri} since {running.since} by process {running.pid}"
        )
        print(f"log: {escape_controls(running.log)}")
    else:
        print(f"{escape_controls(str(file))} is not served: mgm up{_named(data)}")
    if not running:
        raise typer.Exit(ERROR)


def _print_token(running: Served) -> None:
    from mg_milvus.store import lite_server

    print(lite_server.token_of(running))


def _facts(running: Served) -> dict[str, object]:
    return {name: value for name, value in asdict(running).items() if name != "socket"}  # mgm finds it by itself


def _named(data: str | None) -> str:
    return f" --data {shlex.quote(data)}" if data else ""


def _file(data: str | None) -> Path:
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.store import lite_server

    if data is None:
        uri = local_settings().uri
        data = uri if uri.endswith(".db") and "://" not in uri else lite_server.DEFAULT_NAME
    return lite_server.data_file(data)
