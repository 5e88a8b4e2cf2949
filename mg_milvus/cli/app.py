"""The command ``mgm``: its subcommands, and how errors, Ctrl-C and closed pipes become lines and exit codes."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mg_milvus import __version__
from mg_milvus.cli import (
    bulk,
    cluster,
    duplicates,
    evaluate,
    ingest,
    lists,
    log,
    manage,
    options,
    query,
    schema,
    serve,
    streams,
    train,
)
from mg_milvus.cli.console import ERROR, INTERRUPTED, UNREADABLE, USAGE
from mg_milvus.cli.log import log_error
from mg_milvus.errors import MgMilvusError
from mg_milvus.files import escape_controls, shorten_long

if TYPE_CHECKING:
    from collections.abc import Iterator


PANELS = {
    "Images": (
        "ingest",
        "query",
        "duplicates",
        "cluster",
        "list",
        "tags",
        "facets",
        "tag",
        "delete",
        "relocate",
        "info",
        "serve",
    ),
    "Encoders": ("fit", "refit", "train", "eval", "tune"),
    "Large collections": ("schema", "plan", "encode", "load", "export"),
    "Operation": ("doctor", "up", "down", "cache", "version"),
}
"""Headings of ``mgm --help``, with their commands in the order shown."""

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Base class of all errors in the arguments; Typer exports no name for it."""


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Log an error in the arguments as JSON with ``--log-json``; otherwise Typer prints it in a box."""
    try:
        yield
    except _UsageError as exc:
        if not log.is_json():
            exc.message = shorten_long(escape_controls(exc.message))  # type: ignore[attr-defined]
            raise
        log_error(str(exc.format_message()), error="UsageError")  # type: ignore[attr-defined]
        raise typer.Exit(USAGE) from exc


def _log_end(ctx: Any, code: int, started: float) -> None:
    if log.is_json():
        seconds = round(time.perf_counter() - started, 3)
        log.log_event(logging.INFO, "finished", command=ctx.invoked_subcommand, exit_code=code, seconds=seconds)


def _without_flag_types(parameters: list[Any]) -> list[Any]:
    """Let help show flags without a type: ``--prune`` takes no value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


class Command(TyperCommand):
    """A command; one with ``--uri`` has the TLS options, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if any(parameter.name == "uri" for parameter in self.params):
            self.params += options.tls_parameters()

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, as help shows them."""
        return _without_flag_types(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, as help shows them."""
        return _without_flag_types(super().get_params(ctx))


class MainGroup(Group):
    """The group of all commands: turns errors into lines and exit codes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ordered = {}
        for panel, names in PANELS.items():
            for name in names:
                ordered[name] = command = self.commands[name]
                command.rich_help_panel = panel  # type: ignore[attr-defined]
        self.commands = ordered

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Parse the arguments, after the format of error messages is known."""
        with _usage_errors():
            return super().make_context(info_name, log.configure(args), *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run a command and log its end."""
        started = time.perf_counter()
        try:
            with _usage_errors():
                result = self._invoke(ctx)
        except typer.Exit as exc:
            _log_end(ctx, exc.exit_code, started)
            raise
        _log_end(ctx, 0, started)
        return result

    def _invoke(self, ctx: Any) -> Any:
        try:
            with options.tls_scope():
                result = super().invoke(ctx)
            sys.stdout.flush()
        except MgMilvusError as exc:
            log_error(str(exc), error=type(exc).__name__)
            raise typer.Exit(ERROR) from exc
        except KeyboardInterrupt as exc:
            log_error("interrupted", error="KeyboardInterrupt")
            raise typer.Exit(INTERRUPTED) from exc
        except BrokenPipeError as exc:
            streams.abandon_output()  # the reader has closed the pipe, such as head
            raise typer.Exit from exc
        except (OSError, MemoryError) as exc:
            _report_system_error(exc)
            raise typer.Exit(ERROR) from exc
        return result


app = typer.Typer(
    name="mgm",
    cls=MainGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search images by images: multi-granular binary codes in Milvus.",
    epilog="Start with:\n\nmgm ingest photos/\n\nmgm query image.jpg\n\nmgm doctor      (if something does not work)",
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"mg-milvus {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    log_json: Annotated[  # noqa: ARG001 - log.configure removes it from the arguments, as it may stand anywhere
        bool,
        typer.Option(
            log.FLAG,
            help="Write progress, unreadable images and errors to standard error as JSON, one object per line: "
            f"mgm ingest photos/ {log.FLAG}. Env: {log.VARIABLE}=1",
        ),
    ] = False,
) -> None:
    if log.is_json():
        log.log_event(logging.INFO, "started", command=ctx.invoked_subcommand, version=__version__)


@app.command(name="version")
def print_version() -> None:
    """Print the version."""
    _print_version(True)


for register in (
    ingest.register,
    query.register,
    duplicates.register,
    cluster.register,
    lists.register,
    manage.register,
    train.register,
    evaluate.register,
    evaluate.register_tune,
    serve.register,
    bulk.register,
    bulk.register_plan,
):
    register(app)
app.add_typer(schema.app, name="schema", cls=Group)
for command_info in (*app.registered_commands, *schema.app.registered_commands):
    command_info.cls = Command


def run() -> int:
    """Run ``mgm`` with the arguments of this process.

    Returns:
        The exit code: 0 done, 1 an error, 2 wrong usage, 3 done but some images could not be read, 130 interrupted.
    """
    streams.prepare()
    # pymilvus loads any .env file it finds; one written by somebody else could redirect traffic to a proxy.
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    log.show_warnings()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # warnings of dependencies
    code = _exit_code()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        streams.abandon_output()
    except OSError as exc:
        _report_system_error(exc)
        return ERROR if code in {0, UNREADABLE} else code
    return code


def _exit_code() -> int:
    try:
        app(prog_name="mgm")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else ERROR
    except (OSError, MemoryError) as exc:  # of the help, for example
        _report_system_error(exc)
        return ERROR
    except Exception as exc:  # noqa: BLE001 - the last resort: users get one line, developers the traceback
        _report_bug(exc)
        return ERROR
    return 0


def _report_system_error(exc: OSError | MemoryError) -> None:
    """Log what the system refused: a full disk, a closed stream, a limit. It is no bug."""
    message = streams.sentence(exc) if isinstance(exc, OSError) else f"not enough memory: {exc}".removesuffix(": ")
    _report(exc, log.redact(message))


def _report_bug(exc: Exception) -> None:
    _report(
        exc,
        f"unexpected {type(exc).__name__}: {log.redact(str(exc))}. This is a bug in mg-milvus: run the command again "
        "with MGM_DEBUG=1 and report the traceback as an issue of the project",
    )


def _report(exc: BaseException, message: str) -> None:
    """Log an error in one line, or with ``MGM_DEBUG=1`` its traceback."""
    trace = log.redact("".join(traceback.format_exception(exc))) if os.environ.get("MGM_DEBUG") == "1" else ""
    if trace and not log.is_json():
        print(trace, end="", file=sys.stderr)
        return
    log_error(message, error=type(exc).__name__, **({"traceback": trace} if trace else {}))
