"""The command ``mgm``: its subcommands, and what becomes of errors, Ctrl-C and closed pipes."""

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
from typer.core import TyperGroup

from mg_milvus import __version__
from mg_milvus.cli import bulk, duplicates, evaluate, ingest, log, manage, options, query, schema, serve, train
from mg_milvus.cli.console import ERROR, INTERRUPTED, USAGE
from mg_milvus.cli.log import log_error
from mg_milvus.errors import MgMilvusError
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator


_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Wrong usage of every kind; Typer gives it no name of its own."""


@contextmanager
def _usage_logged() -> Iterator[None]:
    """In a structured log wrong usage is an event; otherwise Typer draws its box, as it is, around what was given."""
    try:
        yield
    except _UsageError as exc:
        if not log.is_json():
            exc.message = escape_controls(exc.message)  # type: ignore[attr-defined]
            raise
        log_error(str(exc.format_message()), error="UsageError")  # type: ignore[attr-defined]
        raise typer.Exit(USAGE) from exc


def _log_end(ctx: Any, code: int, started: float) -> None:
    if log.is_json():
        seconds = round(time.perf_counter() - started, 3)
        log.log_event(logging.INFO, "finished", command=ctx.invoked_subcommand, exit_code=code, seconds=seconds)


class Commands(TyperGroup):
    """The group of all commands, with one place where errors become lines and exit codes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options.add_to(self.commands)

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Read the arguments; first of all, how to tell what is wrong with them."""
        with _usage_logged():
            return super().make_context(info_name, log.configure(args), *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and tell its end in a structured log."""
        started = time.perf_counter()
        try:
            with _usage_logged():
                result = self._invoke(ctx)
        except typer.Exit as exc:
            _log_end(ctx, exc.exit_code, started)
            raise
        _log_end(ctx, 0, started)
        return result

    def _invoke(self, ctx: Any) -> Any:
        """Run a command; a user's error is one line on standard error, a closed pipe is no error at all."""
        try:
            with options.collected():
                result = super().invoke(ctx)
            sys.stdout.flush()
        except MgMilvusError as exc:
            log_error(str(exc), error=type(exc).__name__)
            raise typer.Exit(ERROR) from exc
        except KeyboardInterrupt as exc:
            log_error("interrupted", error="KeyboardInterrupt")
            raise typer.Exit(INTERRUPTED) from exc
        except BrokenPipeError as exc:
            # Whoever read the output has seen enough; the flush at exit must not complain about it either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from exc
        return result


app = typer.Typer(
    name="mgm",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search images by images: multi-granular binary codes in Milvus.",
    epilog="Begin with:\n\nmgm ingest photos/\n\nmgm query image.jpg\n\nmgm doctor      (when something is wrong)",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mg-milvus {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    log_json: Annotated[  # noqa: ARG001 - taken out of the arguments before they are read, as it may stand anywhere
        bool,
        typer.Option(
            log.FLAG,
            help="Tell progress, unreadable images and errors as JSON, a line each, on standard error: "
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
    manage.register,
    ingest.register_fit,
    train.register,
    evaluate.register,
    evaluate.register_tune,
    serve.register,
    manage.register_cache,
    bulk.register,
    bulk.register_plan,
    serve.register_up,
):
    register(app)
app.add_typer(schema.app, name="schema")


def run() -> int:
    """Run ``mgm`` with the arguments of this process.

    Returns:
        The exit code: 0 done, 1 an error, 2 wrong usage, 3 done but some images could not be read, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names may hold what the terminal's encoding does not; that must not end a run.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # pymilvus loads a .env that it finds, and one of a stranger's could name a proxy for everything that is sent.
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    log.show_warnings()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of dependencies; they say nothing to users
    try:
        app(prog_name="mgm")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else ERROR
    except Exception as exc:  # noqa: BLE001 - the last resort: a traceback helps nobody but a developer
        if os.environ.get("MGM_DEBUG") == "1" and not log.is_json():
            print(log.redact(traceback.format_exc()), end="", file=sys.stderr)
        else:
            debug = {"traceback": log.redact(traceback.format_exc())} if os.environ.get("MGM_DEBUG") == "1" else {}
            log_error(
                f"unexpected {type(exc).__name__}: {log.redact(str(exc))}. A bug in mg-milvus: run it again with "
                "MGM_DEBUG=1 and report the traceback as an issue of the project",
                error=type(exc).__name__,
                **debug,
            )
        return ERROR
    return 0
