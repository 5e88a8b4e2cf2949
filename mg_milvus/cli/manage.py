"""``mgm delete``, ``mgm info`` and ``mgm doctor``: looking after an index."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mg_milvus.cli import options  # noqa: TC001 - typer reads the annotations
from mg_milvus.cli.console import ERROR, console
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Examples:\n\nmgm delete photos/old.jpg\n\nmgm delete --filter 'width < 200' --yes")(delete)
    app.command(epilog="Example: mgm info --uri http://localhost:19530")(info)
    app.command(epilog="Example: mgm doctor --uri http://localhost:19530")(doctor)


def delete(
    ids_or_paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID_OR_PATH", help="Ids or paths of rows, as mgm query shows them", show_default=False),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--filter", metavar="EXPR", help="Delete all rows that match, e.g. 'path like \"/old/%\"'"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask: mgm delete --filter EXPR --yes")] = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Remove rows from the index; the image files stay where they are."""
    from mg_milvus.cli.settings import open_index, settings_from

    if bool(ids_or_paths) == (where is not None):
        raise typer.BadParameter("give ids or paths of rows, or --filter EXPR, and not both")
    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        if where is None:
            deleted = index.delete(ids_or_paths or [])
        else:
            if not yes:
                _confirm(index.count(where), index.collection)
            deleted = index.delete_where(where)
    print(f"{_rows(deleted)} deleted")


def _confirm(rows: int, collection: str) -> None:
    if not rows:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"the filter matches {_rows(rows)} and there is no terminal to ask at; add --yes to delete them"
        )
    if not typer.confirm(f"Delete {_rows(rows)} of '{collection}'?", err=True):
        print("Nothing was deleted.")
        raise typer.Exit(ERROR)


def _rows(number: int) -> str:
    return f"{number:,} row" + ("" if number == 1 else "s")


def info(
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Say what the index holds and what would make it better."""
    from mg_milvus.cli.settings import open_index, settings_from

    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        told = index.info()
    if as_json:
        print(json.dumps(told.as_dict()))
        return
    granularities = ", ".join(f"{g['name']} {g['bits']} bits" for g in told.schema["granularities"])
    for label, value in (
        ("collection", told.collection),
        ("at", f"{told.uri} ({told.server})"),
        ("rows", f"{told.rows:,}"),
        ("granularities", granularities),
        ("bytes per image", f"{told.bytes_per_image:,} of codes"),
        ("encoder", f"{told.fingerprint} ({told.backbone}, heads {told.heads})"),
        ("regions", _regions(told.schema["regions"])),
        ("fusion", told.schema["fusion"]["method"]),
        ("fields", ", ".join(f"{f['name']} ({f['type']})" for f in told.schema["fields"]) or "none of your own"),
    ):
        print(f"{label:<19}{escape_controls(str(value))}")
    for sentence in told.advice:
        print(f"\nadvice: {escape_controls(sentence)}")


def _regions(parts: Mapping[str, Any] | None) -> str:
    if parts is None:
        return "none"
    scales = ", ".join(f"{s['grid']}x{s['grid']} of {s['size']:g}" for s in parts["scales"])
    return f"{parts['bits']} bits each: {scales} of the image's sides"


def doctor(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Also remove codes of regions whose image is gone, and build an index again that no longer fits the "
            "rows: mgm doctor --repair",
        ),
    ] = False,
    recall: Annotated[
        bool, typer.Option("--recall", help="Also measure what the index misses, against all rows: mgm doctor --recall")
    ] = False,
    as_json: options.AsJson = False,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    device: options.DeviceOption = None,
) -> None:
    """Check packages, device, encoder and Milvus; every problem comes with its remedy."""
    from rich.text import Text

    from mg_milvus.cli.settings import settings_from
    from mg_milvus.doctor import examine

    settings = settings_from(uri, token, collection, device)
    out = console()
    checks = []
    for check in examine(
        settings.uri,
        collection=settings.collection,
        token=settings.token,
        device=settings.device,
        timeout=timeout,
        recall=recall,
        repair=repair,
        tls=settings.tls,
    ):
        checks.append(check)
        if not as_json:
            mark = Text("ok   ", style="green") if check.ok else Text("FAIL ", style="bold red")
            out.print(mark + Text(f"{check.name}: {escape_controls(check.message)}"))
            if check.remedy:
                out.print(Text(f"     remedy: {escape_controls(check.remedy)}", style="yellow"))
    failed = sum(not check.ok for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    else:
        print(f"\n{failed} of {len(checks)} checks failed." if failed else f"\nAll {len(checks)} checks passed.")
    if failed:
        raise typer.Exit(ERROR)


def register_cache(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Examples:\n\nmgm cache\n\nmgm cache --clear")(cache)


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all of it that can be made again: mgm cache --clear")
    ] = False,
) -> None:
    """Say what is kept on this machine: thumbnails of the web page, and copies of collections' encoders."""
    from mg_milvus.session import cache_folder, cached_encoders, clear_encoders
    from mg_milvus.web.media import Thumbnails, default_folder

    thumbnails = Thumbnails(default_folder(), 0)
    if clear:
        thumbnails.clear()
        kept = clear_encoders()
        for file in kept:
            print(
                f"kept {escape_controls(str(file))}: no collection has a complete copy of this encoder; "
                "delete the file if you do not need it"
            )
    _print("thumbnails", *thumbnails.usage(), default_folder())
    sizes = cached_encoders().values()
    _print("encoders", len(sizes), sum(sizes), cache_folder())


def _print(what: str, count: int, size: int, folder: Path) -> None:
    files = f"{count:,} file" + ("" if count == 1 else "s")
    print(f"{what:<10}  {files:>15}  {size / 1e6:>10,.1f} MB  {escape_controls(str(folder))}")
