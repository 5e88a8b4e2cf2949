"""Settings of a command: from its options, the environment, ``mgm.yaml`` in the current folder, or the defaults."""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mg_milvus.cli import log, options
from mg_milvus.cli.log import log_info
from mg_milvus.errors import SchemaError
from mg_milvus.files import open_plain
from mg_milvus.images.limits import limit_pixels

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    from mg_milvus.config import MilvusConfig
    from mg_milvus.index import ImageIndex

SETTINGS_FILE = "mgm.yaml"
_SECRETS = ("token", "client_cert", "client_key")
"""Settings that authenticate the user to a server."""
_PEER = ("uri", "ca_cert", "server_name")
"""Settings that decide which server is used, and whose certificate is accepted for it."""
_CONNECTION = frozenset({*_SECRETS, *_PEER, "secure"})

Home = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path or a URI; a leading ``~`` is replaced by the home folder."""


class Settings(BaseModel):
    """Settings that commands share; None means the collection's own value, or else the library's default."""

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
    max_pixels: Annotated[int | None, Field(ge=1)] = None
    secure: bool = False
    ca_cert: Home | None = None
    client_cert: Home | None = None
    client_key: Home | None = None
    server_name: str | None = None

    def milvus(self, timeout: float = 10.0) -> MilvusConfig:
        """How the collection is reached."""
        from mg_milvus.config import MilvusConfig, Tls

        tls = Tls(self.ca_cert, self.client_cert, self.client_key, self.server_name)
        return MilvusConfig(
            self.uri, self.token, self.collection, timeout, tls if self.secure or tls != Tls() else None
        )

    @model_validator(mode="after")
    def _hide_password(self) -> Self:
        from mg_milvus.config import split_token

        uri, token = split_token(self.uri, self.token)
        return self if uri == self.uri else self.model_copy(update={"uri": uri, "token": token})


NAMES = tuple(field.alias or name for name, field in Settings.model_fields.items())
"""The keys of ``mgm.yaml``; the environment variable of each is ``MGM_`` and the key in capitals."""


def settings_from(
    uri: str | None = None,
    token: str | None = None,
    collection: str | None = None,
    device: str | None = None,
    schema: str | None = None,
    encoder: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
) -> Settings:
    """Read the settings of a command that connects to Milvus.

    Arguments that are not None come first, then ``MGM_*``, then ``mgm.yaml``, then the defaults. The TLS options are
    those of the running command. An empty environment variable counts as not set. User and password in the URI become
    the token. The largest image to decode is set for this process.

    A ``mgm.yaml`` written by somebody else must not obtain secrets: those of options and environment are never sent to
    a server that the file chose or vouches for, and the file's settings of its own server apply to no other.

    Raises:
        typer.BadParameter: a value of the environment or of the file is invalid, the file has an unknown key or can be
            written by others, or it chose the server that would receive a secret.
    """
    chosen = {
        "uri": uri, "token": token, "collection": collection, "device": device, "schema": schema, "encoder": encoder,
        "batch_size": batch_size, "workers": workers, "max_pixels": max_pixels, **options.tls_values(),
    }  # fmt: skip
    layers = _Layers(chosen)
    layers.drop_other_server()
    settings = layers.settings()
    layers.check_recipient(settings)
    log.register_token(settings.token)
    layers.log_origin(settings)
    limit_pixels(settings.max_pixels)
    return settings


def local_settings(
    device: str | None = None,
    schema: str | None = None,
    encoder: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
) -> Settings:
    """Read the settings of a command that connects to no Milvus server; they contain no secret.

    Raises:
        typer.BadParameter: as ``settings_from``.
    """
    options = {"device": device, "schema": schema, "encoder": encoder, "batch_size": batch_size, "workers": workers}
    layers = _Layers(options | {"max_pixels": max_pixels})
    layers.drop(_CONNECTION - {"uri"})
    settings = layers.settings()
    layers.log_origin(settings)
    limit_pixels(settings.max_pixels)
    return settings


class _Layers:
    """The values of file, environment and options; later ones override earlier ones."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._file = _read(Path(SETTINGS_FILE))
        self._note = ""
        environment = {name: os.environ.get(_variable(name)) or None for name in NAMES}
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        for layer, origin in (
            (self._file, lambda name: f"'{name}' in {SETTINGS_FILE}"),
            (environment, _variable),
            (options, lambda name: "--" + name.replace("_", "-")),
        ):
            for name, value in layer.items():
                if value is not None:
                    self._values[name] = value
                    self._origins[name] = origin(name)

    def drop(self, names: frozenset[str]) -> None:
        """Remove settings."""
        for name in names:
            self._values.pop(name, None)
            self._origins.pop(name, None)

    def drop_other_server(self) -> None:
        """Drop the file's connection settings if another server is used, and its token if the URI contains one."""
        from mg_milvus.config import split_token

        uri, own = self._values.get("uri"), self._file.get("uri")
        if not isinstance(uri, str) or self._from_file("uri"):
            return
        place, inside = split_token(uri, None)
        unused: set[str] = set()
        if isinstance(own, str) and split_token(own, None)[0] != place:
            unused = {name for name in _CONNECTION if self._from_file(name)}
        elif inside is not None and self._from_file("token"):
            unused = {"token"}
        self.drop(frozenset(unused))
        if unused:
            self._note = f"; ignored, because this is another server: {_words(unused)}"

    def settings(self) -> Settings:
        """Return the validated settings."""
        try:
            return Settings.model_validate(self._values)
        except ValidationError as exc:
            first = exc.errors()[0]
            name = str(first["loc"][0])
            got = "not shown" if name in {"uri", "token"} else repr(first["input"])  # they may hold a password
            raise typer.BadParameter(f"{self._origins[name]} is {got}: {_sentence(first['msg'])}") from None

    def check_recipient(self, settings: Settings) -> None:
        """Refuse to send secrets of options and environment to a server that the file chose or vouches for.

        Raises:
            typer.BadParameter: a secret would be sent there.
        """
        if "://" not in settings.uri:
            return  # a local file receives no secrets
        chosen = [name for name in _PEER if self._from_file(name)]
        sent = [self._origins[name] for name in _SECRETS if name in self._values and not self._from_file(name)]
        if settings.token is not None and "token" not in self._values and not self._from_file("uri"):
            sent.insert(0, f"the password in {self._origins['uri']}")
        if chosen and sent:
            remedy = " and ".join("--" + name.replace("_", "-") for name in chosen)
            raise typer.BadParameter(
                f"{_place()} chose the {_words(chosen)} of the server {settings.uri}, and {' and '.join(sent)} would "
                f"be sent there: give {remedy} yourself, or the variable {' and '.join(map(_variable, chosen))}, if "
                "that server is yours; otherwise leave the secret out, or remove the file"
            )

    def log_origin(self, settings: Settings) -> None:
        """Log that ``mgm.yaml`` was used; the user may not know that the folder contains one."""
        used = [name for name in NAMES if self._from_file(name)]
        if used or self._note:
            uri = f" (uri: {settings.uri})" if "uri" in used else ""
            keys = _words(used) if used else "nothing"
            log_info(f"settings from {_place()}: {keys}{uri}{self._note}", "settings")

    def _from_file(self, name: str) -> bool:
        return self._origins.get(name) == f"'{name}' in {SETTINGS_FILE}"


def _place() -> str:
    return str(Path(SETTINGS_FILE).absolute())


def _words(names: Iterable[str]) -> str:
    return ", ".join(name for name in NAMES if name in set(names))


def open_index(settings: Settings, *, timeout: float = 10.0) -> ImageIndex:
    """Open the index that the settings describe, as a context manager."""
    from mg_milvus.index import ImageIndex

    return ImageIndex.from_config(settings.milvus(timeout), settings.schema_source, settings.encoder, settings.device)


def _variable(name: str) -> str:
    return "MGM_" + name.upper()


def _read(file: Path) -> dict[str, Any]:
    try:
        stream = open_plain(file)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise typer.BadParameter(f"{file} cannot be read as YAML: {exc.strerror or exc}") from None
    from mg_milvus.schema.yaml import parse_yaml

    try:
        with stream:
            _check_owner(file, stream)
            content = parse_yaml(stream, str(file))
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


def _check_owner(file: Path, stream: BinaryIO) -> None:
    """Check that no other user can write the settings, or replace them by a link.

    Raises:
        typer.BadParameter: another user can.
    """
    if os.name != "posix":
        return
    status = os.fstat(stream.fileno())
    for owner in (status.st_uid, os.lstat(file).st_uid):
        if owner not in {0, os.geteuid()}:
            raise typer.BadParameter(
                f"{_place()} belongs to user id {owner}, expected yours ({os.geteuid()}) or root, because it "
                "decides where images and secrets are sent; copy it if you trust it, or remove it"
            )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise typer.BadParameter(
            f"{_place()} can be written by others (mode {stat.S_IMODE(status.st_mode):o}), and it decides where "
            f"images and secrets are sent: check it, then chmod go-w {file}"
        )


def _sentence(message: str) -> str:
    return message[:1].lower() + message[1:]
