"""The options of TLS, which every command that reaches a Milvus server has: added to all of them in one place."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


_given: ContextVar[dict[str, Any] | None] = ContextVar("mg_milvus_tls_options", default=None)


def _keep(parameter: typer.CallbackParam, value: Any) -> Any:
    kept = _given.get()
    if kept is not None:
        kept[str(parameter.name)] = value
    return value


def _option(name: str, help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(
        name, metavar=metavar, help=help_text, rich_help_panel=CONNECTION, expose_value=False, callback=_keep
    )


def _options(
    secure: Annotated[bool | None, _option("--secure", "Reach it with TLS, as https:// does. Env: MGM_SECURE")] = None,
    ca_cert: Annotated[
        str | None,
        _option("--ca-cert", "PEM file of who signed the server's certificate: ca.pem. Env: MGM_CA_CERT", "FILE"),
    ] = None,
    client_cert: Annotated[
        str | None,
        _option(
            "--client-cert", "PEM file of your own certificate, if asked for: me.pem. Env: MGM_CLIENT_CERT", "FILE"
        ),
    ] = None,
    client_key: Annotated[
        str | None, _option("--client-key", "PEM file of its key, e.g. me.key. Env: MGM_CLIENT_KEY", "FILE")
    ] = None,
    server_name: Annotated[
        str | None,
        _option("--server-name", "The name in its certificate, e.g. milvus.local. Env: MGM_SERVER_NAME", "NAME"),
    ] = None,
) -> None:
    pass


def add_to(commands: Mapping[str, Any]) -> None:
    """Give the options to each command, also of groups, that says where Milvus is."""
    for command in commands.values():
        if hasattr(command, "commands"):
            add_to(command.commands)
        elif any(parameter.name == "uri" for parameter in command.params):
            maker = typer.Typer(add_completion=False)
            maker.command()(_options)
            command.params += [p for p in typer.main.get_command(maker).params if p.name != "help"]


@contextmanager
def collected() -> Iterator[None]:
    """While a command runs: keep what it is given, for ``given``."""
    before = _given.set({})
    try:
        yield
    finally:
        _given.reset(before)


def given() -> dict[str, Any]:
    """The values that the running command was given, by the name of the setting; None: not given."""
    return dict(_given.get() or {})


CONNECTION = "Where"
ENCODING = "Encoding"


class Device(StrEnum):
    """Where the network runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Profile(StrEnum):
    """The weight profiles of ``schema.models.PROFILES``, named here so that help and completion are instant."""

    category = "category"
    object = "object"
    instance = "instance"
    balanced = "balanced"


class Fusion(StrEnum):
    """The fusion methods of the schema."""

    rank = "rank"
    score = "score"
    server = "server"


class Plan(StrEnum):
    """How candidates are found, as in the schema."""

    auto = "auto"
    full = "full"
    cascade = "cascade"


def complete_granularity(incomplete: str) -> list[str]:
    """The names of the default schema's granularities that begin like this."""
    from mg_milvus.schema.models import Schema

    return [name for name in Schema().bits if name.startswith(incomplete)]


Uri = Annotated[
    str | None,
    typer.Option(
        "--uri",
        metavar="URI",
        help="A file for Milvus Lite, or a server: photos.db, http://localhost:19530. Env: MGM_URI; default: mgm.db",
        rich_help_panel=CONNECTION,
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        help="What the server asks for: user:password, or an API key. Env: MGM_TOKEN (better: no history)",
        rich_help_panel=CONNECTION,
    ),
]
Collection = Annotated[
    str | None,
    typer.Option(
        "--collection",
        metavar="NAME",
        help="The Milvus collection, e.g. holidays. Env: MGM_COLLECTION; default: the schema's, images",
        rich_help_panel=CONNECTION,
    ),
]
SchemaFile = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="FILE",
        help="What a new collection holds: schema.yaml from mgm schema init, or a preset such as regions. "
        "Env: MGM_SCHEMA",
    ),
]
Metadata = Annotated[
    Path | None,
    typer.Option(
        "--metadata",
        metavar="FILE",
        help="Values of the schema's own fields, matched by path: captions.csv, captions.jsonl or captions.parquet",
    ),
]
LabelTable = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE", help="Labels in a table (path,label; several as a|b) instead of folders: labels.csv"
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0.1,
        help="How long to wait for a server, e.g. 30",
        rich_help_panel=CONNECTION,
    ),
]
DeviceOption = Annotated[
    Device | None,
    typer.Option(
        "--device", help="Where the network runs, e.g. cuda. Env: MGM_DEVICE; default: auto", rich_help_panel=ENCODING
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="FILE",
        help="An encoder file, e.g. resnet50.safetensors from mgm fit. Env: MGM_ENCODER; default: what the collection "
        "remembers, or else the one that ships",
        rich_help_panel=ENCODING,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Images per pass of the network, e.g. 32 when memory is short. Env: MGM_BATCH_SIZE; default: 64",
        rich_help_panel=ENCODING,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Threads that read images, e.g. 4. Env: MGM_WORKERS; default: the number of cores",
        rich_help_panel=ENCODING,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        help="Refuse images of more pixels than this, e.g. 500000000 for huge scans",
        rich_help_panel=ENCODING,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs: mgm … --json | jq")]


def numbers(text: str, option: str, example: str) -> dict[str, float]:
    """``coarse=1,fine=3`` -> names and numbers, in the order given.

    Raises:
        typer.BadParameter: it is written otherwise, or a name comes twice.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not (name and equals and 0 <= value < float("inf")):
            raise typer.BadParameter(
                f"'{part.strip()}' is not GRANULARITY=NUMBER with a number from 0 up; write it as {example}",
                param_hint=option,
            )
        if name in found:
            raise typer.BadParameter(f"'{name}' comes twice in '{text}'", param_hint=option)
        found[name] = value
    return found


def code_lengths(text: str) -> dict[str, int]:
    """``coarse=64,fine=256`` as given with ``--bits``."""
    example = "coarse=64,fine=256"
    found = numbers(text, "--bits", example)
    for name, number in found.items():
        if number % 8 or not 8 <= number <= 4096:
            raise typer.BadParameter(
                f"{name}={number:g} is no code length: a multiple of 8 from 8 to 4096, such as {example}",
                param_hint="--bits",
            )
    return {name: int(number) for name, number in found.items()}
