"""``mgm schema``: list presets; write, check, show and compare schemas."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mg_milvus.cli import log, options
from mg_milvus.cli.console import ERROR
from mg_milvus.errors import SchemaError
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from mg_milvus.schema.models import Schema

app = typer.Typer(
    no_args_is_help=True,
    help="Write, check and compare schemas, the YAML descriptions of collections.",
    epilog="Start with: mgm schema init — then: mgm schema check mgm-schema.yaml",
)


def _complete_preset(incomplete: str) -> list[str]:
    from mg_milvus.schema.yaml import presets

    return [name for name in presets() if name.startswith(incomplete)]


SchemaFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A schema file or the name of a preset, e.g. mgm-schema.yaml", show_default=False
    ),
]


@app.command(name="presets", epilog="Example: mgm schema presets")
def list_presets() -> None:
    """List the presets and their purposes."""
    from mg_milvus.schema.yaml import presets

    purposes = presets()
    width = max(map(len, purposes))
    for name, purpose in purposes.items():
        print(f"{name:<{width}}  {purpose}")


@app.command(epilog="Examples: mgm schema init — mgm schema init --preset server --out server.yaml")
def init(
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="Preset to start from, e.g. compact; mgm schema presets lists them",
            autocompletion=_complete_preset,
        ),
    ] = "default",
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="File to write, e.g. holidays.yaml; - prints it")
    ] = "mgm-schema.yaml",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file: mgm schema init --force")] = False,
) -> None:
    """Write a commented schema to edit."""
    from mg_milvus.schema.yaml import commented_yaml

    text = commented_yaml(preset)
    if out == "-":
        print(text, end="")
        return
    try:
        with Path(out).open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SchemaError(f"{out} exists; choose another name with --out, or overwrite it with --force") from error
    except (OSError, ValueError) as error:
        raise SchemaError(f"{out} cannot be written: {error}; choose another file with --out") from error
    print(f"wrote {escape_controls(out)}; edit it, then: mgm schema check {escape_controls(out)}")


@app.command(epilog="Example: mgm schema check mgm-schema.yaml")
def check(file: SchemaFile) -> None:
    """Check a schema; each problem is one line on standard error with file and line number (exit code 1)."""
    from mg_milvus.schema.models import Schema

    try:
        schema = Schema.load(file)
    except SchemaError as error:
        for line in str(error).splitlines():
            if log.is_json():
                log.log_event(logging.ERROR, "error", message=line, error="SchemaError", file=str(file))
            else:
                print(escape_controls(line), file=sys.stderr)
        raise typer.Exit(ERROR) from error
    codes = " + ".join(f"{name} {bits}" for name, bits in schema.bits.items())
    print(
        f"ok: {escape_controls(file)}: collection {schema.collection}, {codes} bits = {schema.bytes_per_image} bytes "
        f"per image, index {schema.storage.index}"
    )


@app.command(epilog="Examples: mgm schema show > mgm-schema.yaml — mgm schema show --uri http://localhost:19530 --json")
def show(
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    as_json: options.AsJson = False,
) -> None:
    """Print the schema of a collection as YAML."""
    schema = _stored_schema(uri, token, collection, timeout)
    print(json.dumps(schema.model_dump(mode="json")) if as_json else schema.to_yaml(), end="\n" if as_json else "")


@app.command(epilog="Example: mgm schema diff mgm-schema.yaml --uri photos.db")
def diff(
    file: SchemaFile,
    uri: options.Uri = None,
    token: options.Token = None,
    collection: options.Collection = None,
    timeout: options.Timeout = 10.0,
    as_json: options.AsJson = False,
) -> None:
    """List the differences between a collection and a schema file, and which of them need a re-ingest.

    The collection is that of the settings, else the one the file names; the names are not compared. Exit code 0:
    no differences. 1: differences, or an error (one line on standard error). With --json, one object per difference.
    """
    from mg_milvus.schema.diff import difference
    from mg_milvus.schema.models import Schema

    target = Schema.load(file)
    stored = _stored_schema(uri, token, collection, timeout, default=target.collection)
    differences = difference(stored, target.model_copy(update={"collection": stored.collection}))
    for d in differences:
        if as_json:
            print(json.dumps(asdict(d)))
        else:
            print(escape_controls(f"{d.key}: {json.dumps(d.old)} -> {json.dumps(d.new)}"))
            print(f"    {d.consequence}: {d.reason}")
    if not as_json:
        _print_summary([d.consequence for d in differences])
    if differences:
        raise typer.Exit(ERROR)


def _print_summary(consequences: list[str]) -> None:
    if not consequences:
        print("no differences")
        return
    count, needed = len(consequences), consequences.count("re-ingest")
    remedy = "; ingest into a new collection: mgm ingest IMAGES --schema FILE --collection NAME" if needed else ""
    print(f"\n{count} difference{'' if count == 1 else 's'}, {needed} of them need a re-ingest{remedy}")


def _stored_schema(
    uri: str | None, token: str | None, collection: str | None, timeout: float, default: str | None = None
) -> Schema:
    """The schema of a collection; ``default`` is its name unless an option or a setting gives one."""
    from mg_milvus.cli.settings import settings_from
    from mg_milvus.index import ImageIndex

    settings = settings_from(uri, token, collection)
    config = settings.milvus(timeout)
    with ImageIndex.from_config(replace(config, collection=config.collection or default)) as index:
        if not index.exists:
            index.info()  # raises an error that lists the existing collections; slow otherwise, as it loads the encoder
        return index.schema
