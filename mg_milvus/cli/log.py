"""Structured logs: with ``--log-json`` what people are told on standard error becomes one JSON object a line.

Every object has ``time`` (RFC 3339, UTC), ``level`` (info, warning, error), ``event`` and the event's own fields:
started, progress, note, unreadable, wrote, error, finished. Standard output and exit codes stay as they are.
"""

from __future__ import annotations

import json
import math
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mg_milvus.hits import Failure

    Level = Literal["info", "warning", "error"]

FLAG = "--log-json"
VARIABLE = "MGM_LOG_JSON"


class _State:
    """Of this process; set when a command begins."""

    json = False
    told: set[Failure] = set()  # noqa: RUF012 - there is one state


def choose(arguments: list[str]) -> list[str]:
    """Turn structured logs on or off for a command, and give back its arguments without the flag.

    The flag may stand anywhere, as people expect of something that every command has.

    Raises:
        typer.BadParameter: the environment variable is neither 0 nor 1.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [text for text in arguments[:end] if text != FLAG] + arguments[end:]
    variable = os.environ.get(VARIABLE) or "0"
    _State.json, _State.told = len(rest) < len(arguments) or variable == "1", set()
    if variable not in {"0", "1"}:
        raise typer.BadParameter(f"{VARIABLE} is '{variable}', expected 1 for structured logs, 0 or nothing for none")
    return rest


def is_json() -> bool:
    """Whether standard error holds structured logs in this process."""
    return _State.json


def emit(level: Level, event: str, **fields: Any) -> None:
    """Write one event."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = {"time": now, "level": level, "event": event} | {name: _plain(value) for name, value in fields.items()}
    # ASCII only, in one write: no file name can break a line or an encoding, no thread comes in between.
    sys.stderr.write(json.dumps(record, allow_nan=False) + "\n")
    sys.stderr.flush()


def unreadable(failures: Iterable[Failure]) -> None:
    """An event for each picture that could not be read, unless it was told already."""
    for failure in failures:
        if failure not in _State.told:
            _State.told.add(failure)
            emit("warning", "unreadable", path=failure.path, reason=failure.reason)


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN; what is no text, number or list is written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | list | dict) else str(value)
