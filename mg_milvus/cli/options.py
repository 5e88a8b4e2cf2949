"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator


CONNECTION = "Connection"
ENCODING = "Encoding"


class UsageError(typer.BadParameter):
    """An error in the arguments that concerns no single one of them."""

    def format_message(self) -> str:
        """Return the message without Typer's prefix "Invalid value"."""
        return self.message


def require_one_choice(ids_or_paths: list[str] | None, where: str | None) -> None:
    """Raise UsageError unless images are given by name or by a filter, and not by both."""
    if bool(ids_or_paths) == (where is not None):
        raise UsageError("give ids or paths of images, or --filter EXPR, not both")


class Device(StrEnum):
    """Where the network runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Profile(StrEnum):
    """``auto``, and the profiles of ``schema.models.PROFILES``: repeated here because importing those is slow."""

    auto = "auto"
    category = "category"
    object = "object"
    instance = "instance"
    balanced = "balanced"


class Fusion(StrEnum):
    """The fusion methods of the schema."""

    rank = "rank"
    score = "score"
    chance = "chance"
    server = "server"


class Minimum(StrEnum):
    """The least verdicts of ``search.verdicts.MINIMA``."""

    same_image = "same-image"
    same_object = "same-object"
    same_kind = "same-kind"
    loosely_similar = "loosely-similar"


def complete_granularity(incomplete: str) -> list[str]:
    """Return the names of the default schema's granularities that start with ``incomplete``."""
    from mg_milvus.schema.models import Schema

    return [name for name in Schema().bits if name.startswith(incomplete)]


Uri = Annotated[
    str | None,
    typer.Option(
        "--uri",
        metavar="URI",
        help="Milvus Lite file or Milvus server: photos.db, http://localhost:19530. Env: MGM_URI; default: mgm.db",
        rich_help_panel=CONNECTION,
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        help="The server's token: user:password, or an API key. Env: MGM_TOKEN, which stays out of the shell history",
        rich_help_panel=CONNECTION,
    ),
]
Collection = Annotated[
    str | None,
    typer.Option(
        "--collection",
        metavar="NAME",
        help="Name of the Milvus collection, e.g. holidays. Env: MGM_COLLECTION; default: the schema's, images",
        rich_help_panel=CONNECTION,
    ),
]
SchemaFile = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="FILE",
        help="Schema of a new collection: schema.yaml from mgm schema init, or a preset such as regions. "
        "Env: MGM_SCHEMA",
    ),
]
Metadata = Annotated[
    Path | None,
    typer.Option(
        "--metadata",
        metavar="FILE",
        help="Values of the fields, a column each, matched by path: captions.csv, captions.jsonl or captions.parquet",
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
        help="Seconds to wait for a server, e.g. 30",
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
        help="Encoder file, e.g. resnet50.safetensors from mgm fit. Env: MGM_ENCODER; default: the collection's, or "
        "the built-in one",
        rich_help_panel=ENCODING,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="NUMBER",
        min=1,
        help="Images per forward pass, e.g. 32 to use less memory. Env: MGM_BATCH_SIZE; default: 64",
        rich_help_panel=ENCODING,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="NUMBER",
        min=1,
        help="Threads that decode images, e.g. 4. Env: MGM_WORKERS; default: the number of cores",
        rich_help_panel=ENCODING,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        metavar="NUMBER",
        min=1,
        help="Refuse images with more pixels, e.g. 500000000 to accept huge scans. Env: MGM_MAX_PIXELS; default: "
        "200000000",
        rich_help_panel=ENCODING,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs: mgm … --json | jq")]


def numbers(text: str, option: str, example: str) -> dict[str, float]:
    """Parse ``coarse=1,fine=3`` into names and numbers, in the given order.

    Raises:
        typer.BadParameter: the text has another form, or names a granularity twice.
    """
    values: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not (name and equals and 0 <= value < float("inf")):
            raise typer.BadParameter(
                f"'{item.strip()}' is not GRANULARITY=NUMBER with a number of 0 or more; write it as {example}",
                param_hint=option,
            )
        if name in values:
            raise typer.BadParameter(f"'{name}' comes twice in '{text}'", param_hint=option)
        values[name] = value
    return values


def code_lengths(text: str) -> dict[str, int]:
    """Parse the value of ``--bits``, such as ``coarse=64,fine=256``.

    Raises:
        typer.BadParameter: as ``numbers``, or a number is not a possible code length.
    """
    example = "coarse=64,fine=256"
    values = numbers(text, "--bits", example)
    for name, number in values.items():
        if number % 8 or not 8 <= number <= 4096:
            raise typer.BadParameter(
                f"{name}={number:g} is not a code length: expected a multiple of 8 from 8 to 4096, such as {example}",
                param_hint="--bits",
            )
    return {name: int(number) for name, number in values.items()}


_tls_values: ContextVar[dict[str, Any] | None] = ContextVar("mg_milvus_tls_values", default=None)


def _store_tls(parameter: typer.CallbackParam, value: Any) -> Any:
    values = _tls_values.get()
    if values is not None:
        values[str(parameter.name)] = value
    return value


def _tls_option(name: str, help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(
        name, metavar=metavar, help=help_text, rich_help_panel=CONNECTION, expose_value=False, callback=_store_tls
    )


def _tls_options(
    secure: Annotated[
        bool | None, _tls_option("--secure", "Connect with TLS, as https:// does. Env: MGM_SECURE")
    ] = None,
    ca_cert: Annotated[
        str | None,
        _tls_option("--ca-cert", "PEM file of the server certificate's authority: ca.pem. Env: MGM_CA_CERT", "FILE"),
    ] = None,
    client_cert: Annotated[
        str | None,
        _tls_option(
            "--client-cert",
            "PEM file of your certificate, if the server requires one: me.pem. Env: MGM_CLIENT_CERT",
            "FILE",
        ),
    ] = None,
    client_key: Annotated[
        str | None, _tls_option("--client-key", "PEM file of its private key: me.key. Env: MGM_CLIENT_KEY", "FILE")
    ] = None,
    server_name: Annotated[
        str | None,
        _tls_option(
            "--server-name", "Name in the server's certificate, e.g. milvus.local. Env: MGM_SERVER_NAME", "NAME"
        ),
    ] = None,
) -> None:
    """Declare the TLS options for ``tls_parameters``."""


@cache
def tls_parameters() -> tuple[Any, ...]:
    """Return the TLS options as parameters, which all commands share."""
    declaring = typer.Typer(add_completion=False)
    declaring.command()(_tls_options)
    return tuple(parameter for parameter in typer.main.get_command(declaring).params if parameter.name != "help")


@contextmanager
def tls_scope() -> Iterator[None]:
    """While a command runs: collect the TLS options for ``tls_values``."""
    before = _tls_values.set({})
    try:
        yield
    finally:
        _tls_values.reset(before)


def tls_values() -> dict[str, Any]:
    """Return the TLS options of the running command: name of the setting -> value, None where it is not given."""
    return dict(_tls_values.get() or {})
