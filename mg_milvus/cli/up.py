"""``mgm up`` and ``mgm down``: one Milvus Lite file for all programs of a machine."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options  # noqa: TC001 - typer reads the annotations
from mg_milvus.cli.terminal import ERROR
from mg_milvus.display import printable

if TYPE_CHECKING:
    from mg_milvus.store.served import Served

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PLACE",
        help="A Milvus Lite file, photos.db, or a folder for mgm.db; default: what MGM_URI or mgm.yaml name, or mgm.db",
    ),
]


def register(app: typer.Typer) -> None:
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
    from mg_milvus.store import served

    if show_token and as_json:
        raise typer.BadParameter("give --json or --show-token: the token is in no JSON")
    file = _file(data)
    if status:
        running = served.served(file)
        if running and show_token:
            _print_token(running)
            return
        _print_status(file, running, data, as_json=as_json)
        return
    running, fresh = served.up(file, port)
    if show_token:
        _print_token(running)
        return
    if as_json:
        print(json.dumps({"running": True, "started": fresh} | _facts(running)))
        return
    print(f"{printable(running.file)} is {'' if fresh else 'already '}served at {running.uri}, to your programs only")
    print(f"log: {printable(running.log)}\n")
    print(f"mgm ingest photos/ --uri {running.uri}")
    print(f"mgm serve --uri {running.uri}")
    print(f"mgm down{_named(data)}\n")
    print(f"Programs that name {printable(Path(running.file).name)} instead of the URI are led there too.")
    print(f"Milvus programs other than mgm need a token: mgm up --status --show-token{_named(data)}")


def down(data: Data = None, as_json: options.AsJson = False) -> None:
    """Stop the server that mgm up started; everything stays in the file."""
    from mg_milvus.store import served

    file = _file(data)
    stopped = served.down(file)
    if as_json:
        print(json.dumps({"file": str(file), "stopped": stopped is not None}))
    elif stopped:
        print(f"{printable(stopped.file)} is no longer served at {stopped.uri}")
    else:
        print(f"{printable(str(file))} is not served: nothing to stop")


def _print_status(file: Path, running: Served | None, data: str | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"running": True} | _facts(running) if running else {"running": False, "file": str(file)}))
    elif running:
        print(f"{printable(running.file)} is served at {running.uri} since {running.since} by process {running.pid}")
        print(f"log: {printable(running.log)}")
    else:
        print(f"{printable(str(file))} is not served: mgm up{_named(data)}")
    if not running:
        raise typer.Exit(ERROR)


def _print_token(running: Served) -> None:
    from mg_milvus.store import own_servers

    print(own_servers.token_of(running))


def _facts(running: Served) -> dict[str, object]:
    return {name: value for name, value in asdict(running).items() if name != "socket"}  # mgm finds it by itself


def _named(data: str | None) -> str:
    return f" --data {shlex.quote(data)}" if data else ""


def _file(data: str | None) -> Path:
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.store import served

    if data is None:
        uri = local_settings().uri
        data = uri if uri.endswith(".db") and "://" not in uri else served.DEFAULT_NAME
    return served.data_file(data)
