"""The options of TLS, which every command that reaches a Milvus server has: added to all of them in one place."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mg_milvus.cli.options import CONNECTION

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
