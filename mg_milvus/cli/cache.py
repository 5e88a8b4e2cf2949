"""``mgm cache``: what this machine keeps of pictures and encoders, and how it is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.display import printable

if TYPE_CHECKING:
    from pathlib import Path


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Examples:\n\nmgm cache\n\nmgm cache --clear")(cache)


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all of it that can be made again: mgm cache --clear")
    ] = False,
) -> None:
    """Say what is kept on this machine: thumbnails of the web page, and copies of collections' encoders."""
    from mg_milvus.encoder_cache import cache_folder, cached_encoders, clear_encoders
    from mg_milvus.web.thumbnails import Thumbnails, default_folder

    thumbnails = Thumbnails(default_folder(), 0)
    if clear:
        thumbnails.clear()
        kept = clear_encoders()
        for file in kept:
            print(f"kept {printable(str(file))}: no collection holds this encoder whole; delete it if it is not needed")
    _print("thumbnails", *thumbnails.usage(), default_folder())
    sizes = cached_encoders().values()
    _print("encoders", len(sizes), sum(sizes), cache_folder())


def _print(what: str, count: int, size: int, folder: Path) -> None:
    files = f"{count:,} file" + ("" if count == 1 else "s")
    print(f"{what:<10}  {files:>15}  {size / 1e6:>10,.1f} MB  {printable(str(folder))}")
