"""``mgm list`` and ``mgm tag``: images to take along, and tags of one's own."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import UNREADABLE
from mg_milvus.cli.log import log_info
from mg_milvus.cli.streams import print_names
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.index import ImageIndex
    from mg_milvus.records import Failure
    from mg_milvus.store.base import Row


class Form(StrEnum):
    """What ``mgm list`` prints."""

    paths = "paths"
    csv = "csv"
    json = "json"


IdsOrPaths = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID_OR_PATH", help="Ids or paths of images, as mgm query prints them", show_default=False),
]
Where = Annotated[
    str | None, typer.Option("--filter", metavar="EXPR", help="All images that match, e.g. 'width >= 800'")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(
        name="list",
        epilog="Examples:\n\nmgm list --filter 'width >= 800' --order-by=-size\n\n"
        "mgm list --filter 'user_tags == \"beach\"' --print0 | xargs -0 cp -t album/\n\n"
        "mgm list a.jpg b.jpg --zip two.zip",
    )(list_images)
    app.command(
        epilog="Examples:\n\nmgm tag photos/1.jpg photos/2.jpg --add beach\n\n"
        "mgm tag --filter 'path like \"/photos/2024/%\"' --remove beach"
    )(tag)


def list_images(
    ids_or_paths: IdsOrPaths = None,
    where: Where = None,
    form: Annotated[
        Form, typer.Option("--format", help="Paths, or all fields of the images as a table or as JSON: --format csv")
    ] = Form.paths,
    order_by: Annotated[
        str, typer.Option("--order-by", metavar="FIELD", help="Rising, or falling with - before it: --order-by=-size")
    ] = "path",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="List the first ones only, e.g. 100")] = None,
    print0: Annotated[
        bool, typer.Option("--print0", help="End each path with a null byte: mgm list --print0 | xargs -0")
    ] = False,
    archive: Annotated[
        Path | None,
        typer.Option("--zip", metavar="FILE", dir_okay=False, help="Instead, put the image files into a zip: two.zip"),
    ] = None,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """List indexed images, by a filter or by name: paths, all fields, or the files themselves in a zip."""
    from mg_milvus.bulk.lists import json_of, table_of
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.images.discover import text_path

    if ids_or_paths and where is not None:
        raise options.UsageError("give ids or paths of images, or --filter EXPR, not both")
    if print0 and (form is not Form.paths or archive):
        raise options.UsageError("--print0 is for paths; leave out --format and --zip")
    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        rows = _rows(index, ids_or_paths, where, (order_by, limit))
    if archive:
        _write_archive(archive, rows)
    elif form is Form.paths:
        print_names([str(text_path(row.path)) for row in rows], null=print0)
    elif form is Form.csv:
        sys.stdout.write(table_of(rows).replace("\r\n", "\n"))
    else:
        print(json_of(rows))


def _rows(
    index: ImageIndex, ids_or_paths: Sequence[str] | None, where: str | None, order: tuple[str, int | None]
) -> Sequence[Row]:
    if ids_or_paths:
        return index.rows(ids_or_paths)[: order[1]]
    return index.images(filter=where, order_by=order[0], limit=order[1] or max(1, index.count(where)))


def _write_archive(file: Path, rows: Sequence[Row]) -> None:
    from mg_milvus.bulk.lists import archive_chunks

    failures: list[Failure] = []
    try:
        with open(file, "xb") as stream:
            stream.writelines(archive_chunks(rows, failures))
    except FileExistsError:
        raise typer.BadParameter(f"'{file}' exists; give another name", param_hint="--zip") from None
    except OSError as exc:
        raise typer.BadParameter(f"'{file}' cannot be written: {exc.strerror}", param_hint="--zip") from exc
    log_info(f"wrote {file} with {len(rows) - len(failures):,} images", "wrote", file=str(file))
    for failure in failures:
        log_info(f"not in it: {escape_controls(failure.path)} {failure.reason}", "missing", path=failure.path)
    if failures:
        raise typer.Exit(UNREADABLE)


def tag(
    ids_or_paths: IdsOrPaths = None,
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="TAG", help="Give this tag; repeatable: --add 'to print'")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="TAG", help="Take this tag away; repeatable")
    ] = None,
    where: Where = None,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Give images tags of your own, or take them away; filters find them by user_tags == "TAG"."""
    from mg_milvus.cli.settings import open_index, settings_from

    options.require_one_choice(ids_or_paths, where)
    if not add and not remove:
        raise options.UsageError("give a tag: --add TAG, or --remove TAG")
    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        ids = ids_or_paths or [row.id for row in _rows(index, None, where, ("id", None))]
        changed = index.tag(ids, add or (), remove or ())
    print(f"{changed:,} {'image' if changed == 1 else 'images'} changed")
