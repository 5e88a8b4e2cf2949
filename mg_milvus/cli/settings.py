"""Where a command's settings come from: option, environment, ``mgm.yaml`` in the current folder, default."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from mg_milvus.index import ImageIndex

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

    An environment variable that is set but empty counts as not set.

    Raises:
        typer.BadParameter: a value of the environment or of the file cannot be used, or the file has an unknown key.
    """
    options = {
        "uri": uri, "token": token, "collection": collection, "device": device, "schema": schema, "encoder": encoder,
        "batch_size": batch_size, "workers": workers,
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
        return Settings.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = str(first["loc"][0])
        raise typer.BadParameter(f"{origins[name]} is {first['input']!r}: {_sentence(first['msg'])}") from exc


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
    )


def _variable(name: str) -> str:
    return "MGM_" + name.upper()


def _read(file: Path) -> dict[str, Any]:
    import yaml

    if not file.exists():
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise typer.BadParameter(f"{file} cannot be read as YAML: {' '.join(str(exc).split())}") from exc
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
