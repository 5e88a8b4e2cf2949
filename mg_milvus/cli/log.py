"""Messages on standard error through ``logging``: plain lines, or one JSON object per line with ``--log-json``."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from mg_milvus.config import hide
from mg_milvus.files import escape_controls, shorten_long

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mg_milvus.records import Failure

FLAG = "--log-json"
VARIABLE = "MGM_LOG_JSON"


class LineFormatter(logging.Formatter):
    """Formats a record as one line, with control characters escaped and long names shortened."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``mgm: message``."""
        return "mgm: " + shorten_long(" ".join(map(escape_controls, record.getMessage().splitlines())))


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object in ASCII: time, level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object on one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = getattr(record, "fields", {"message": record.getMessage()})
        head = {"time": time, "level": record.levelname.lower(), "event": getattr(record, "event", "warning")}
        return json.dumps(head | {name: _plain(value) for name, value in fields.items()}, allow_nan=False)


def _plain(value: Any) -> Any:
    """Replace what JSON does not have: None for infinity and NaN, text for other objects."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | list | dict) else str(value)


class _StandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


_handler = _StandardError()
_handler.setFormatter(LineFormatter())
_logger = logging.getLogger("mg_milvus.cli")
_logger.setLevel(logging.INFO)
_logger.propagate = False
_logger.addHandler(_handler)
_reported: set[Failure] = set()
"""Unreadable images that this command has logged."""
_tokens: set[str] = set()
"""Tokens of this command. Tracebacks must not contain them, because they are pasted into issues."""


def show_warnings() -> None:
    """Also write the warnings of the library."""
    logging.getLogger("mg_milvus").addHandler(_handler)


def configure(arguments: list[str]) -> list[str]:
    """Choose the format of a command's messages, and return its arguments without ``--log-json``.

    The flag may stand anywhere before ``--``.

    Raises:
        typer.BadParameter: the environment variable is neither 0 nor 1.
    """
    _reported.clear()
    _tokens.clear()
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [text for text in arguments[:end] if text != FLAG] + arguments[end:]
    variable = os.environ.get(VARIABLE) or "0"
    _handler.setFormatter(JsonFormatter() if len(rest) < len(arguments) or variable == "1" else LineFormatter())
    if variable not in {"0", "1"}:
        raise typer.BadParameter(f"{VARIABLE} is '{variable}', expected 1 for JSON messages, or 0")
    return rest


def is_json() -> bool:
    """Return whether messages are JSON."""
    return isinstance(_handler.formatter, JsonFormatter)


def log_event(level: int, event: str, **fields: Any) -> None:
    """Log an event and its fields; a plain line is the field ``message`` only."""
    _logger.log(level, "%s", fields.get("message", event), extra={"event": event, "fields": fields})


def log_error(message: str, **fields: Any) -> None:
    """Log an error; ``fields`` appear in JSON only."""
    log_event(logging.ERROR, "error", message=message, **fields)


def log_info(message: str, event: str = "note", **fields: Any) -> None:
    """Log a message; ``event`` and ``fields`` appear in JSON only."""
    log_event(logging.INFO, event, message=message, **fields)


def log_failures(failures: Iterable[Failure]) -> None:
    """Log each unreadable image once, as JSON; without ``--log-json`` the command prints them at its end."""
    for failure in failures:
        if is_json() and failure not in _reported:
            _reported.add(failure)
            log_event(logging.WARNING, "unreadable", path=failure.path, reason=failure.reason)


def register_token(token: str | None) -> None:
    """Remember a token of this command for ``redact``."""
    if token:
        _tokens.add(token)


def redact(text: str) -> str:
    """Replace the tokens in a traceback or in a library's message."""
    for token in _tokens:
        text = hide(text, token)
    return text
