"""The command ``mgm`` in this process: what it prints and returns, without the three seconds that a new one takes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from mg_milvus.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Done:
    """What a command did: its exit code, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def mgm(*arguments: str | Path, cwd: Path) -> Done:
    """Run a command in a folder; an exception that the command does not turn into a line is the test's."""
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)
