"""``mgm plan``: what so many pictures take, before there is one."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import options  # noqa: TC001 - typer reads the annotations

if TYPE_CHECKING:
    from mg_milvus.capacity import Collection, Plan

_UNITS = {"": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        epilog="Examples:\n\nmgm plan --pictures 1e6\n\n"
        "mgm plan --pictures 1e9 --schema server --memory 64GB --machines 8 --pictures-per-second 2000"
    )(plan)


def plan(
    pictures: Annotated[str, typer.Option("--pictures", metavar="NUMBER", help="How many, e.g. 2500000 or 1e9")],
    schema: options.SchemaFile = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="BYTES", help="Of the server, e.g. 64GB: say what to change if it is too little"
        ),
    ] = None,
    machines: Annotated[int, typer.Option("--machines", min=1, help="Machines that encode at once, e.g. 4")] = 1,
    pictures_per_second: Annotated[
        float | None,
        typer.Option(
            "--pictures-per-second",
            metavar="NUMBER",
            min=0.01,
            help="That one machine encodes, as mgm encode says, e.g. 2000; default: what two cores do",
        ),
    ] = None,
    path_bytes: Annotated[int, typer.Option("--path-bytes", min=1, help="Length of a typical path, e.g. 90")] = 60,
    text_bytes: Annotated[
        int, typer.Option("--text-bytes", min=0, help="Length of a typical text in your own fields, e.g. 200")
    ] = 32,
    as_json: options.AsJson = False,
) -> None:
    """Say what a collection takes: bytes per field, memory, disk, indexes, hours; and what to change to make it fit."""
    from mg_milvus.capacity import plan as make
    from mg_milvus.cli.settings import local_settings
    from mg_milvus.schema import Schema

    source = local_settings(schema=schema).schema_source
    made = make(
        round(_number(pictures, "--pictures", {"": 1})),
        Schema.load(source) if source else None,
        path_bytes=path_bytes,
        text_bytes=text_bytes,
        pictures_per_second=pictures_per_second,
        machines=machines,
        memory=None if memory is None else _number(memory, "--memory", _UNITS),
    )
    print(json.dumps(made.as_dict()) if as_json else "\n".join(_lines(made)))


def _lines(made: Plan) -> list[str]:
    lines = [
        *(_rows(held, what) for held, what in zip(made.collections, ("pictures", "regions"), strict=False)),
        "",
        f"files of codes   {_bytes(made.codes_folder)}, encoded in {made.encode_hours:,.1f} hours",
        f"Milvus Lite      {_bytes(made.lite_file)} file, {_bytes(made.lite_memory)} memory",
        f"Milvus server    {_bytes(made.server_memory)} memory, {_bytes(made.server_disk)} mapped from disk, "
        f"{sum(held.segments for held in made.collections):,} segments",
        "indexes          " + ", ".join(f"{name} {_bytes(size)}" for name, size in made.index.items()),
    ]
    if made.changes:
        lines += ["", "To fit into the memory, one of:"]
        lines += [f"  {_bytes(c.memory)} memory, {_bytes(c.disk)} disk: {c.what}" for c in made.changes]
    return [*lines, *([""] if made.notes else []), *(f"note: {note}" for note in made.notes)]


def _rows(held: Collection, what: str) -> str:
    fields = ", ".join(f"{name} {size:.4g}" for name, size in held.fields.items())
    return f"{held.rows:,} {what}, {sum(held.fields.values()):.4g} bytes each: {fields}"


def _number(text: str, option: str, units: dict[str, float]) -> float:
    """``64GB`` -> 6.4e10.

    Raises:
        typer.BadParameter: no number above 0, or another unit.
    """
    match = re.fullmatch(r"([0-9][0-9.,_]*(?:e[0-9]+)?)\s*([A-Za-z]*)", text.strip(), re.IGNORECASE)
    known = {unit.lower(): size for unit, size in units.items()}
    try:
        value = float(match[1].replace(",", "").replace("_", "")) * known[match[2].lower()] if match else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < 1e18:
        example = "64GB" if len(units) > 1 else "1e9"
        raise typer.BadParameter(f"'{text}' is not a number above 0, such as {example}", param_hint=option)
    return value


def _bytes(size: float) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB")
    step = min(len(units) - 1, int(math.log(max(size, 1), 1000)))
    value = size / 1000**step
    return f"{value:,.0f} {units[step]}" if step == 0 or value >= 100 else f"{value:,.1f} {units[step]}"
