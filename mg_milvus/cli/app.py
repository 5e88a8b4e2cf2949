"""The command ``mgm``: its subcommands, and what becomes of errors, Ctrl-C and closed pipes."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mg_milvus import __version__
from mg_milvus.cli import (
    bulk,
    duplicates,
    evaluate,
    fit,
    ingest,
    manage,
    plan,
    query,
    schema,
    serve,
    tls_options,
    train,
    tune,
)
from mg_milvus.cli.terminal import ERROR, INTERRUPTED, complain
from mg_milvus.errors import MgMilvusError


class Commands(TyperGroup):
    """The group of all commands, with one place where errors become lines and exit codes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        tls_options.add_to(self.commands)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a user's error is one line on standard error, a closed pipe is no error at all."""
        try:
            with tls_options.collected():
                result = super().invoke(ctx)
            sys.stdout.flush()
        except MgMilvusError as exc:
            complain(str(exc))
            raise typer.Exit(ERROR) from exc
        except KeyboardInterrupt as exc:
            complain("interrupted")
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
    help="Search pictures by pictures: multi-granular binary codes in Milvus.",
    epilog="Begin with:\n\nmgm ingest photos/\n\nmgm query picture.jpg\n\nmgm doctor      (when something is wrong)",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mg-milvus {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(name="version")
def print_version() -> None:
    """Print the version."""
    _print_version(True)


for register in (
    ingest.register,
    query.register,
    duplicates.register,
    manage.register,
    fit.register,
    train.register,
    evaluate.register,
    tune.register,
    serve.register,
    bulk.register,
    plan.register,
):
    register(app)
app.add_typer(schema.app, name="schema")


def run() -> int:
    """Run ``mgm`` with the arguments of this process.

    Returns:
        The exit code: 0 done, 1 an error, 2 wrong usage, 3 done but some pictures could not be read, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names may hold what the terminal's encoding does not; that must not end a run.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of dependencies; they say nothing to users
    try:
        app(prog_name="mgm")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else ERROR
    except Exception as exc:  # noqa: BLE001 - the last resort: a traceback helps nobody but a developer
        if os.environ.get("MGM_DEBUG") == "1":
            traceback.print_exc()
        else:
            complain(
                f"unexpected {type(exc).__name__}: {exc}. A bug in mg-milvus: run it again with MGM_DEBUG=1 and "
                "report the traceback as an issue of the project"
            )
        return ERROR
    return 0
