"""Where a command's settings come from: option, environment, ``mgm.yaml`` in the current folder, default."""

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

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    from mg_milvus.config import Tls
    from mg_milvus.index import ImageIndex

SETTINGS_FILE = "mgm.yaml"
_SECRETS = ("token", "client_cert", "client_key")
"""What shows a server who one is."""
_PEER = ("uri", "ca_cert", "server_name")
"""What decides which server that is, and who passes for it."""
_CONNECTION = frozenset({*_SECRETS, *_PEER, "secure"})

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
        from mg_milvus.config import Tls

        tls = Tls(self.ca_cert, self.client_cert, self.client_key, self.server_name)
        return tls if self.secure or tls != Tls() else None

    @model_validator(mode="after")
    def _hide_password(self) -> Self:
        from mg_milvus.config import split_token

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
    """Settings for a command that reaches Milvus.

    Each argument that is not None wins, then ``MGM_*``, then ``mgm.yaml``, then defaults. The options of TLS, which
    every such command has, are taken from the command that runs. An environment variable that is set but empty counts
    as not set. User and password in the URI become the token.

    Whoever leaves a ``mgm.yaml`` in a folder gets no secret by it: those of the options and of the environment are sent
    to no server that the file chose or vouches for, and what the file says of its own server holds for no other.

    Raises:
        typer.BadParameter: a value of the environment or of the file cannot be used, the file has an unknown key or can
            be written by others, or it chose the server that a secret would be sent to.
    """
    chosen = {
        "uri": uri, "token": token, "collection": collection, "device": device, "schema": schema, "encoder": encoder,
        "batch_size": batch_size, "workers": workers, **options.given(),
    }  # fmt: skip
    layers = _Layers(chosen)
    layers.part_servers()
    settings = layers.settings()
    layers.refuse_to_send(settings)
    log.register_token(settings.token)
    layers.log_origin(settings)
    return settings


def local_settings(
    device: str | None = None,
    schema: str | None = None,
    encoder: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Settings:
    """Settings for a command that reaches no Milvus server; they hold no secret.

    Raises:
        typer.BadParameter: as ``settings_from``.
    """
    options = {"device": device, "schema": schema, "encoder": encoder, "batch_size": batch_size, "workers": workers}
    layers = _Layers(options)
    layers.drop(_CONNECTION - {"uri"})
    settings = layers.settings()
    layers.log_origin(settings)
    return settings


class _Layers:
    """The values of all origins: of the options, of the environment, of the file."""

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
        """Take settings out again."""
        for name in names:
            self._values.pop(name, None)
            self._origins.pop(name, None)

    def part_servers(self) -> None:
        """Drop what the file says of its server where another is asked, and its token where the URI holds one."""
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
            self._note = f"; not its {_words(unused)}, for this is another server"

    def settings(self) -> Settings:
        """All of them, checked."""
        try:
            return Settings.model_validate(self._values)
        except ValidationError as exc:
            first = exc.errors()[0]
            name = str(first["loc"][0])
            got = "not shown" if name in {"uri", "token"} else repr(first["input"])  # they may hold a password
            raise typer.BadParameter(f"{self._origins[name]} is {got}: {_sentence(first['msg'])}") from None

    def refuse_to_send(self, settings: Settings) -> None:
        """Secrets from elsewhere are for no server that the file chose, or whose certificate it vouches for."""
        if "://" not in settings.uri:
            return  # a file of this machine is sent none
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
        """Say once that a file was used: nobody need know that one lies in the current folder."""
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
    """Settings decide which server is asked: nobody else may write them, nor put a link to others in their place.

    Raises:
        typer.BadParameter: somebody else may.
    """
    if os.name != "posix":
        return
    status = os.fstat(stream.fileno())
    for owner in (status.st_uid, os.lstat(file).st_uid):
        if owner not in {0, os.geteuid()}:
            raise typer.BadParameter(
                f"{_place()} belongs to the user with the number {owner}, expected you ({os.geteuid()}) or root: it "
                "decides where images and secrets go; copy it, if it is right, or remove it"
            )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise typer.BadParameter(
            f"{_place()} can be written by others (mode {stat.S_IMODE(status.st_mode):o}), and it decides where "
            f"images and secrets go: look at it, then chmod go-w {file}"
        )


def _sentence(message: str) -> str:
    return message[:1].lower() + message[1:]
