"""``mgm cluster``: the overview of an index, and the names of its clusters."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import ProgressView
from mg_milvus.cli.log import log_info
from mg_milvus.cli.streams import print_names
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from mg_milvus.search.overview import Cluster

EXAMPLES = """Examples:

mgm cluster

mgm cluster --html overview.html

mgm cluster --name 3=beach

mgm cluster beach --paths

mgm query photo.jpg --cluster beach"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=EXAMPLES)(cluster)


def cluster(
    of: Annotated[
        str | None,
        typer.Argument(
            metavar="CLUSTER", help="Only this cluster: its number, name or label, e.g. 3.2", show_default=False
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="CLUSTER=NAME", help="Name a cluster; nothing behind = takes it away: 3=beach; repeatable"
        ),
    ] = None,
    paths: Annotated[
        bool, typer.Option("--paths", help="Print the paths of the cluster's images: mgm cluster beach --paths")
    ] = False,
    print0: Annotated[
        bool, typer.Option("--print0", help="With --paths: end each with a null byte: mgm cluster 3 --paths --print0")
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Make the clusters anew, even if the number of images is the same")
    ] = False,
    as_json: options.AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", dir_okay=False, help="Also write an HTML page, e.g. overview.html"),
    ] = None,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
) -> None:
    """Show the index as clusters of alike images, smaller ones inside of them, and near-duplicates inside of these."""
    from mg_milvus.cli.settings import open_index, settings_from

    if paths and (of is None or as_json):
        raise options.UsageError("--paths prints the paths of one cluster, and not with --json: mgm cluster 3 --paths")
    if print0 and not paths:
        raise options.UsageError("--print0 belongs to --paths: mgm cluster 3 --paths --print0")
    renamed = [_parse_name(text) for text in names or ()]
    with open_index(settings_from(uri, token, collection), timeout=timeout) as index:
        with ProgressView() as view:
            found = index.clusters(refresh=refresh, progress=view)
        for key, name in renamed:
            own = index.name_cluster(key, name)
            log_info(f"cluster {own.key} is called '{own.name}'" if own.name else f"cluster {own.key} has no name")
        if renamed:
            found = index.clusters()
        chosen = found.clusters if of is None else (found.find(of),)
        if paths:
            rows = index.page(found.ids(of or ""))
            print_names([row.path for row in rows], null=print0)
            return
        title = index.collection
    if html:
        from mg_milvus.search.overview import clusters_page

        try:
            html.write_text(clusters_page(found, title), encoding="utf-8")
        except OSError as exc:
            raise typer.BadParameter(f"'{html}' cannot be written: {exc.strerror}", param_hint="--html") from exc
        log_info(f"wrote {html}", "wrote", file=str(html))
    if as_json:
        print(json.dumps(found.as_dict() if of is None else chosen[0].as_dict()))
        return
    for one in chosen:
        _print(one, 0)


def _parse_name(text: str) -> tuple[str, str]:
    key, sign, name = text.partition("=")
    if not sign or not key.strip():
        raise typer.BadParameter(f"'{text}' is not CLUSTER=NAME, such as 3=beach", param_hint="--name")
    return key.strip(), name


def _print(one: Cluster, depth: int) -> None:
    """A cluster and its parts; of groups of near-duplicates only their number."""
    from mg_milvus.schema.models import FINE

    title = f"  {one.name or one.label}" if one.name or one.label else ""
    groups = [part for part in one.parts if part.granularity == FINE]
    near = f", {len(groups)} of near-duplicates" if groups else ""
    print(f"{'  ' * depth}{one.key:<6} {one.size:>8,} images{near}{escape_controls(title)}")
    for part in one.parts:
        if part.granularity != FINE:
            _print(part, depth + 1)
