"""``mgm duplicates``: groups of near-identical images, and which of them are removable."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options
from mg_milvus.cli.console import UNREADABLE, ProgressView, console, shorten
from mg_milvus.cli.log import log_info
from mg_milvus.cli.streams import print_names
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from mg_milvus.duplicates.move import MoveReport
    from mg_milvus.duplicates.report import DuplicateGroup, DuplicateReport
    from mg_milvus.schema.models import Schema

EXAMPLES = """Examples:

mgm duplicates --html duplicates.html

mgm duplicates --within photos/2024 --keep best > removable.txt

mgm duplicates --of new.jpg

mgm duplicates --new-since 2d --json

mgm duplicates --ignore seen.jsonl --not-duplicates a.jpg b.jpg

mgm duplicates --ignore seen.jsonl

mgm duplicates --keep best --move-to aside/      (and mgm duplicates --undo aside/)"""


class Include(StrEnum):
    """What ``--include`` offers beside identical files and the same image."""

    edited = "edited"


class Keep(StrEnum):
    """The rules of ``mg_milvus.duplicates.report.KEEP``, named here so that help and completion are instant."""

    best = "best"
    largest = "largest"
    oldest = "oldest"
    newest = "newest"
    first = "first"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog=EXAMPLES)(duplicates)


def duplicates(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE", help="With --not-duplicates: two images or more", show_default=False),
    ] = None,
    of: Annotated[
        Path | None,
        typer.Option("--of", metavar="IMAGE", help="Only near-duplicates of this file, indexed or not, e.g. new.jpg"),
    ] = None,
    within: Annotated[
        Path | None,
        typer.Option("--within", metavar="FOLDER", help="Only images under this folder, e.g. photos/2024"),
    ] = None,
    new_since: Annotated[
        str | None,
        typer.Option(
            "--new-since",
            metavar="TIME",
            help="Only pairs with a file modified since then: 2d, 12h, 2026-01-31, 2026-01-31T18:00",
        ),
    ] = None,
    distance: Annotated[
        int | None,
        typer.Option(
            "--distance", metavar="BITS", help="Look only at pairs whose fine codes differ in at most so many bits: 16"
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision",
            metavar="SHARE",
            help="Instead of --distance: expected share of pairs that are not near by chance, e.g. 0.9; default: 0.99",
        ),
    ] = None,
    keep: Annotated[
        Keep | None,
        typer.Option(
            "--keep",
            help="Print only the removable paths, keeping of each group the image with most pixels, with most bytes, "
            "the oldest or newest file, or the first path. No file is deleted",
        ),
    ] = None,
    include: Annotated[
        Include | None,
        typer.Option("--include", help="Offer edited copies, too: cropped, captioned, mirrored or turned ones"),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            "--reference", metavar="FOLDER", help="Images in this folder are never offered, e.g. archive/; repeatable"
        ),
    ] = None,
    keep_folder: Annotated[
        list[Path] | None,
        typer.Option(
            "--keep-folder", metavar="FOLDER", help="Keep images in this folder rather than others: albums/; repeatable"
        ),
    ] = None,
    ignore: Annotated[
        Path | None,
        typer.Option(
            "--ignore",
            metavar="FILE",
            dir_okay=False,
            help="Leave out the pairs that this file names as no duplicates, by their content: seen.jsonl",
        ),
    ] = None,
    not_duplicates: Annotated[
        bool,
        typer.Option(
            "--not-duplicates",
            help="Only add images to that file, each pair of them: mgm duplicates --ignore seen.jsonl "
            "--not-duplicates a.jpg b.jpg",
        ),
    ] = False,
    move_to: Annotated[
        Path | None,
        typer.Option(
            "--move-to",
            metavar="FOLDER",
            file_okay=False,
            help="With --keep: move the removable files there instead of printing them; nothing is deleted or "
            "overwritten, and --undo puts them back: --keep best --move-to aside/",
        ),
    ] = None,
    undo: Annotated[
        Path | None,
        typer.Option(
            "--undo", metavar="FOLDER", file_okay=False, help="Only put back what was moved there last: --undo aside/"
        ),
    ] = None,
    print0: Annotated[
        bool,
        typer.Option(
            "--print0",
            help="With --keep: end each path with a null byte: mgm duplicates --keep best --print0 | xargs -0",
        ),
    ] = False,
    as_json: options.AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            dir_okay=False,
            help="Also write an HTML page with the groups, e.g. duplicates.html",
        ),
    ] = None,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    device: options.DeviceOption = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Find groups of near-identical images, and which of them are removable. No file and no row is ever deleted."""
    from mg_milvus.cli.settings import open_index, settings_from
    from mg_milvus.images.discover import text_path

    if distance is not None and precision is not None:
        raise typer.BadParameter("--distance and --precision exclude each other; give one of them")
    if of is not None and (within is not None or new_since is not None):
        raise typer.BadParameter("--of compares one image with the whole index; omit --within and --new-since")
    if print0 and (keep is None or as_json):
        raise options.UsageError("--print0 prints the paths of --keep RULE, and not with --json; give --keep best")
    if not_duplicates != bool(images) or (not_duplicates and ignore is None):
        raise options.UsageError(
            "--not-duplicates takes images, and the file to add them to: mgm duplicates --ignore FILE "
            "--not-duplicates A B; copies of one image are found with --of"
        )
    if move_to is not None and (keep is None or as_json or print0 or undo is not None):
        raise options.UsageError("--move-to moves the files of --keep RULE; give --keep best, and no other output")
    since = _time(new_since) if new_since is not None else None
    settings = settings_from(uri, token, collection, device, max_pixels=max_pixels)
    if undo is not None:
        with open_index(settings, timeout=timeout) as index:
            _print_moved(index.undo_move(undo), "put back from", undo)
        return
    if images and ignore is not None:
        with open_index(settings, timeout=timeout) as index:
            added = index.not_duplicates(ignore, *images)
        log_info(f"added {added} {'pair' if added == 1 else 'pairs'} to {ignore}", "added", pairs=added)
        return
    with open_index(settings, timeout=timeout) as index, ProgressView() as view:
        report = index.duplicates(
            of=of, within=within, newer_than=since, distance=distance, precision=precision, keep=keep or "best",
            edited=include is Include.edited, reference=reference or (), keep_folder=keep_folder or (), ignore=ignore,
            progress=view,
        )  # fmt: skip
        schema = index.schema
        if move_to is not None and report.removable:
            _print_moved(
                index.move_duplicates(report, [member.id for member in report.removable], move_to), "moved to", move_to
            )
    if html:
        _write_page(html, report, schema)
    if as_json:
        print(json.dumps(report.as_dict()))
    elif move_to is not None:
        for line in report.summary(schema.bits):
            log_info(line)
    elif keep:
        paths = [str(text_path(path)) for path in report.removable_paths]
        print_names(paths, null=print0)
        if not print0 and any("\n" in path for path in paths):
            log_info("some of these paths contain line breaks; --print0 keeps them apart")
        for line in report.summary(schema.bits):
            log_info(line)
    else:
        for number, group in enumerate(report.groups, 1):
            _print_group(number, group, report)
        for line in report.summary(schema.bits):
            print(line)


def _print_moved(report: MoveReport, what: str, folder: Path) -> None:
    count = f"{len(report.files):,} {'file' if len(report.files) == 1 else 'files'}"
    log_info(f"{count} {what} {folder}", "moved", files=len(report.files))
    for failure in report.failures:
        log_info(f"{escape_controls(failure.path)} stays: {failure.reason}", "stays", path=failure.path)
    if report.failures:
        raise typer.Exit(UNREADABLE)


def _time(text: str) -> datetime:
    """A moment in the past, from ``2d`` or an ISO date or time."""
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    try:
        if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip()):
            return datetime.now().astimezone() - timedelta(**{units[ago[2]]: float(ago[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(
            f"'{text}' is neither a time span such as 30m, 12h, 2d, 1w nor a date such as 2026-01-31 or "
            "2026-01-31T18:00",
            param_hint="--new-since",
        ) from None


def _print_group(number: int, group: DuplicateGroup, report: DuplicateReport) -> None:
    from mg_milvus.duplicates.report import file_size

    chained = "; connected through intermediate images" if report.is_chained(group) else ""
    print(f"group {number}: {len(group.members)} images, up to {group.diameter} bits apart{chained}")
    width = console().width - 48
    for member in group.members:
        pixels, path = f"{member.width}x{member.height}", shorten(escape_controls(member.path), width)
        mark = member.verdict if member.removable else member.mark
        print(f"  {mark:>14}  {pixels:>11}  {file_size(member.size):>9}  {path}")
        for name in member.names:
            print(f"{'':>16}  the same file: {shorten(escape_controls(name), width)}")
        for part in member.parts:
            print(f"{'':>16}  one shot with: {shorten(escape_controls(part), width)}")
    print()


def _write_page(file: Path, report: DuplicateReport, schema: Schema) -> None:
    from mg_milvus.duplicates.report import duplicates_page

    try:
        file.write_text(duplicates_page(report, collection=schema.collection, bits=schema.bits), encoding="utf-8")
    except OSError as exc:
        raise typer.BadParameter(f"'{file}' cannot be written: {exc.strerror}", param_hint="--html") from exc
    log_info(f"wrote {file}", "wrote", file=str(file))
