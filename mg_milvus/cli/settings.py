"""Where a command's settings come from: option, environment, ``mgm.yaml`` in the current folder, default."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mg_milvus.cli import secret, tls_options
from mg_milvus.errors import SchemaError

if TYPE_CHECKING:
    from mg_milvus.index import ImageIndex
    from mg_milvus.store.access import Tls

SETTINGS_FILE = "mgm.yaml"

Home = Annotated[str, AfterValidator(lambda text: str(Path(text).expanduser()) if text.startswith("~") else text)]
"""A path or a URI; ``~`` is the home folder also where no shell has replaced it."""


class Settings(BaseModel):
    """What the commands share. None means: what the collection remembers, or else the library's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: Home = "mgm.db"
    token: str | None = None
    collection: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # BaseModel has a method of its own called schema.
    schema_source: Annotated[Home | None, Field(alias="schema")] = None
    encoder: Home | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    workers: Annotated[int | None, Field(ge=1)] = None
    secure: bool = False
    ca_cert: Home | None = None
    client_cert: Home | None = None
    client_key: Home | None = None
    server_name: str | None = None

    @property
    def tls(self) -> Tls | None:
        """How the server is reached; None: as its URI says."""
        from mg_milvus.store.access import Tls

        tls = Tls(self.ca_cert, self.client_cert, self.client_key, self.server_name)
        return tls if self.secure or tls != Tls() else None

    @model_validator(mode="after")
    def _hide_password(self) -> Self:
        from mg_milvus.store.access import split_token

        uri, token = split_token(self.uri, self.token)
        return self if uri == self.uri else self.model_copy(update={"uri": uri, "token": token})


NAMES = tuple(field.alias or name for name, field in Settings.model_fields.items())
"""The keys of ``mgm.yaml``; the environment variable of each is ``MGM_`` and the name in capitals."""


def settings_from(
    uri: str | None = None,
    token: str | None = None,
    collection: str | None = None,
    device: str | None = None,
    schema: str | None = None,
    encoder: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Settings:
    """Settings for one command: each argument that is not None wins, then ``MGM_*``, then ``mgm.yaml``, then defaults.

    The options of TLS, which every command that reaches Milvus has, are taken from the command that runs. An
    environment variable that is set but empty counts as not set. User and password in the URI become the token.

    Raises:
        typer.BadParameter: a value of the environment or of the file cannot be used, or the file has an unknown key.
    """
    options = {
        "uri": uri, "token": token, "collection": collection, "device": device, "schema": schema, "encoder": encoder,
        "batch_size": batch_size, "workers": workers, **tls_options.given(),
    }  # fmt: skip
    file = Path(SETTINGS_FILE)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers = (
        (_read(file), lambda name: f"'{name}' in {SETTINGS_FILE}"),
        ({name: os.environ.get(_variable(name)) or None for name in NAMES}, lambda name: _variable(name)),
        (options, lambda name: "--" + name.replace("_", "-")),
    )
    for layer, origin in layers:
        for name, value in layer.items():
            if value is not None:
                values[name] = value
                origins[name] = origin(name)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = str(first["loc"][0])
        got = "not shown" if name in {"uri", "token"} else repr(first["input"])  # they may hold a password
        raise typer.BadParameter(f"{origins[name]} is {got}: {_sentence(first['msg'])}") from None
    secret.keep(settings.token)
    return settings


def open_index(settings: Settings, *, timeout: float = 10.0) -> ImageIndex:
    """The index that the settings describe, opened; use it as a context manager."""
    from mg_milvus.index import ImageIndex

    return ImageIndex.open(
        settings.uri,
        schema=settings.schema_source,
        encoder=settings.encoder,
        token=settings.token,
        collection=settings.collection,
        device=settings.device,
        timeout=timeout,
        tls=settings.tls,
    )


def _variable(name: str) -> str:
    return "MGM_" + name.upper()


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    from mg_milvus.schema_file import read_yaml

    try:
        content = read_yaml(file)
    except SchemaError as exc:
        raise typer.BadParameter(f"{file} cannot be read as YAML: {exc}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise typer.BadParameter(
            f"{file} holds {type(content).__name__}, expected lines such as 'uri: http://localhost:19530'"
        )
    for key in content:
        if key not in NAMES:
            near = difflib.get_close_matches(str(key), NAMES, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it may hold {', '.join(NAMES)}"
            raise typer.BadParameter(f"{file} has the unknown key {str(key)!r}; {hint}")
    return content


def _sentence(message: str) -> str:
    return message[:1].lower() + message[1:]
