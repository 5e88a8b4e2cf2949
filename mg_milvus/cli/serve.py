"""``mgm serve``, ``mgm up`` and ``mgm down``: the web page, and the server of a Milvus Lite file."""

from __future__ import annotations

import json
import os
import re
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
    from mg_milvus.index import ImageIndex
    from mg_milvus.store.lite_server import Server


EXAMPLES = """Examples:

mgm serve

mgm serve --uri photos.db --allow-ingest ~/Pictures --port 8080

mgm serve --title "Summer shoes" --show price,sku

MGM_WEB_TOKEN=... mgm serve --host 0.0.0.0 --read-only"""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog=EXAMPLES)(serve)
    app.command(epilog="Examples:\n\nmgm up\n\nmgm up --data photos.db --port 0\n\nmgm up --status --show-token")(up)
    app.command(epilog="Example: mgm down --data photos.db")(down)


def serve(
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Address to listen on, e.g. 0.0.0.0, which requires --token"),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="NUMBER", min=0, max=65535, help="Port, e.g. 8080; 0: any free port")
    ] = 8000,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Allow no changes from the page: mgm serve --read-only"),
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            help="Token that visitors of the page need. Env: MGM_WEB_TOKEN, which stays out of the shell history. "
            "The Milvus server's token is read from MGM_TOKEN or mgm.yaml",
        ),
    ] = None,
    allow_ingest: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow-ingest",
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Folder that the page may ingest, e.g. ~/Pictures; can be repeated",
        ),
    ] = None,
    upload_to: Annotated[
        Path | None,
        typer.Option(
            "--upload-to",
            metavar="FOLDER",
            file_okay=False,
            help="Folder for images uploaded into the index; default for photos.db: photos-uploads",
        ),
    ] = None,
    allow_move: Annotated[
        Path | None,
        typer.Option(
            "--allow-move",
            metavar="FOLDER",
            file_okay=False,
            help="Folder that copies may be moved to from the page, and are put back from, e.g. ~/aside",
        ),
    ] = None,
    ignore: Annotated[
        Path | None,
        typer.Option(
            "--ignore",
            metavar="FILE",
            dir_okay=False,
            help="File of the pairs that are no duplicates, as of mgm duplicates --ignore; default for photos.db: "
            "photos-not-duplicates.jsonl",
        ),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            "--root-path", metavar="PATH", help="Path of the page behind a proxy, e.g. /images for https://HOST/images/"
        ),
    ] = "",
    title: Annotated[
        str,
        typer.Option(
            "--title", metavar="TEXT", help="Heading of the page, e.g. 'Summer shoes'; default: the collection's name"
        ),
    ] = "",
    show: Annotated[
        str,
        typer.Option(
            "--show", metavar="FIELD,...", help="Fields that results show instead of the name of the file: price,sku"
        ),
    ] = "",
    uri: options.Uri = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    encoder: options.EncoderOption = None,
    device: options.DeviceOption = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Serve a web page and an HTTP API for searching the index, until Ctrl-C."""
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.errors import MissingPackageError
    from mg_milvus.files import cache_folder
    from mg_milvus.images.limits import pixel_limit

    try:
        from mg_milvus.web import app, media
        from mg_milvus.web.security import WebSettings
    except ModuleNotFoundError as exc:
        raise MissingPackageError(
            f"mgm serve needs the package {exc.name}, which is not installed: pip install 'mg-milvus[web]'"
        ) from exc
    settings = settings_from(uri, None, collection, device, encoder=encoder, max_pixels=max_pixels)
    web_token = token or os.environ.get("MGM_WEB_TOKEN") or None
    log.register_token(web_token)
    file = Path(settings.uri)
    beside = file.with_name(f"{file.stem}-uploads") if file.suffix == ".db" and "://" not in settings.uri else None
    folder = upload_to or beside
    pairs = ignore or (beside.with_name(f"{file.stem}-not-duplicates.jsonl") if beside else None)
    listener = app.bind(host, port, web_token)
    # Without a terminal this line goes to a log, which must not contain the token.
    address = app.address(host, listener) + (f"?token={quote(token)}" if token and sys.stdout.isatty() else "")
    with closing(listener), open_index(settings, timeout=timeout) as index:
        rows = index.count() if index.exists else 0
        app.serve(
            index,
            WebSettings(
                read_only=read_only,
                token=web_token,
                ingest_folders=tuple(path.absolute() for path in allow_ingest or ()),
                upload_folder=folder.absolute() if folder else None,
                move_folder=allow_move.absolute() if allow_move else None,
                ignore_file=pairs.absolute() if pairs else None,
                share_folder=cache_folder("shares"),
                thumbnail_folder=media.default_folder(),
                max_pixels=pixel_limit(),
                root_path=_root_path(root_path),
                title=title,
                show=_fields(show, index),
            ),
            listener,
            started=lambda: print(
                f"{address} · {rows:,} images in '{index.collection}' · press Ctrl-C to stop", flush=True
            ),
        )


def _fields(text: str, index: ImageIndex) -> tuple[str, ...]:
    """Names of fields of the index."""
    fields = tuple(name.strip() for name in text.split(",") if name.strip())
    known = ["path", "size", "width", "height", "tags", *(field.name for field in index.schema.fields)]
    for name in fields:
        if name not in known:
            raise typer.BadParameter(
                f"'{name}' is no field of '{index.collection}', expected some of {', '.join(known)}",
                param_hint="--show",
            )
    return fields


def _root_path(text: str) -> str:
    """A path without the slash at its end."""
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise typer.BadParameter(f"'{text}' is not a path such as /images", param_hint="--root-path")
    return path


Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Milvus Lite file, e.g. photos.db, or a folder that contains mgm.db; default: MGM_URI, mgm.yaml's uri, or "
        "mgm.db",
    ),
]


def up(
    data: Data = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="NUMBER", min=0, max=65535, help="Port, e.g. 20000; 0: any free port; default: 19530"
        ),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Only report whether the server runs: mgm up --status || mgm up")
    ] = False,
    show_token: Annotated[
        bool,
        typer.Option("--show-token", help="Print only the token, which programs other than mgm need"),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Serve a Milvus Lite file to all your programs on this machine, until mgm down."""
    from mg_milvus.store import lite_server

    if show_token and as_json:
        raise options.UsageError("give --json or --show-token, not both: the JSON does not contain the token")
    file = _file(data)
    if status:
        running = lite_server.server_of(file)
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
        "for your own programs only"
    )
    print(f"log: {escape_controls(running.log)}\n")
    print(f"mgm ingest photos/ --uri {running.uri}")
    print(f"mgm serve --uri {running.uri}")
    print(f"mgm down{_named(data)}\n")
    print(f"Commands that open {escape_controls(Path(running.file).name)} by its name use this server, too.")
    print(f"Other Milvus clients need a token: mgm up --status --show-token{_named(data)}")


def down(data: Data = None, as_json: options.AsJson = False) -> None:
    """Stop the server that mgm up started; the data stays in the file."""
    from mg_milvus.store import lite_server

    file = _file(data)
    stopped = lite_server.down(file)
    if as_json:
        print(json.dumps({"file": str(file), "stopped": stopped is not None}))
    elif stopped:
        print(f"{escape_controls(stopped.file)} is no longer served at {stopped.uri}")
    else:
        print(f"{escape_controls(str(file))} is not served: nothing to stop")


def _print_status(file: Path, running: Server | None, data: str | None, *, as_json: bool) -> None:
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


def _print_token(running: Server) -> None:
    from mg_milvus.store import lite_server

    print(lite_server.token_of(running))


def _facts(running: Server) -> dict[str, object]:
    return {name: value for name, value in asdict(running).items() if name != "socket"}  # an implementation detail


def _named(data: str | None) -> str:
    return f" --data {shlex.quote(data)}" if data else ""


def _file(data: str | None) -> Path:
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.store import lite_server

    if data is None:
        uri = local_settings().uri
        data = uri if uri.endswith(".db") and "://" not in uri else lite_server.DEFAULT_NAME
    return lite_server.data_file(data)
