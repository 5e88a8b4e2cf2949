"""The tokens of the running command, which no report of a bug may hold: those are pasted into issues."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import typer

from mg_milvus.files import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mg_milvus.records import Failure

    Level = Literal["info", "warning", "error"]
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from mg_milvus.records import Progress


_tokens: set[str] = set()


def keep(token: str | None) -> None:
    """Remember a token until the next command begins."""
    if token:
        _tokens.add(token)


def forget() -> None:
    """A new command begins."""
    _tokens.clear()


def hidden(text: str) -> str:
    """Text of a library's, or a traceback, without the tokens."""
    if _tokens:
        from mg_milvus.config import hide

        for token in _tokens:
            text = hide(text, token)
    return text


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
    """An event for each image that could not be read, unless it was told already."""
    for failure in failures:
        if failure not in _State.told:
            _State.told.add(failure)
            emit("warning", "unreadable", path=failure.path, reason=failure.reason)


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN; what is no text, number or list is written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | list | dict) else str(value)


ERROR = 1
USAGE = 2
UNREADABLE = 3
"""Done, but some images could not be read."""
INTERRUPTED = 130

QUIET_SECONDS = 10.0
"""How often a line tells the progress when standard error is not a terminal."""


def shorten(path: str, width: int) -> str:
    """A path cut from the left to fit into ``width`` columns, so that the file's name stays in sight."""
    from rich.cells import cell_len

    if cell_len(path) <= width:
        return path
    room, start = width - 1, len(path)
    while start and (room := room - cell_len(path[start - 1])) >= 0:
        start -= 1
    return "…" + path[start:]


def complain(message: str, **fields: Any) -> None:
    """One line on standard error about what is wrong; ``fields`` go into a structured log only."""
    if is_json():
        emit("error", "error", message=message, **fields)
    else:
        _line(message)


def tell(message: str, event: str = "note", **fields: Any) -> None:
    """One line on standard error about what was done; ``fields`` go into a structured log only."""
    if is_json():
        emit("info", event, message=message, **fields)
    else:
        _line(message)


class Notes(logging.Handler):
    """What the library warns of while it goes on: a line each, as everything else that is told."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by ``logging``."""
        tell(record.getMessage(), "warning")


def _line(message: str) -> None:
    line = " ".join(printable(part) for part in message.splitlines())
    print(f"mgm: {line}", file=sys.stderr, flush=True)


def console(*, error: bool = False) -> Console:
    """A rich console for standard output or standard error; what is no terminal has room for long lines."""
    from rich.console import Console

    made = Console(stderr=error, highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=error, highlight=False, markup=False, emoji=False, width=100_000)
    return made


def print_failures(failures: Sequence[Failure], *, as_json: bool = False) -> None:
    """The files that could not be read: one line each on standard output unless JSON is there, and in the log."""
    if is_json():
        unreadable(failures)
    if as_json:
        return
    if failures:
        print(f"\n{len(failures):,} could not be read:")
    for failure in failures:
        print(f"  {printable(failure.path)}: {printable(failure.reason)}")


class ProgressView:
    """Shows ``Progress`` records: a bar on a terminal, quiet lines or a structured log otherwise. On standard error.

    Use it as a context manager and hand it over as the ``progress`` callback.
    """

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._started = self._told = 0.0
        self._untold: Progress | None = None

    def __enter__(self) -> ProgressView:
        target = console(error=True)
        if not is_json() and target.is_terminal and not target.is_dumb_terminal:
            self._bar = _bar(target)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        self._log_untold()

    def __call__(self, progress: Progress, note: str = "") -> None:
        """Show how far it is, and beside it a note that may change."""
        begins = progress.stage != self._stage
        if begins:
            self._log_untold()
            self._stage = progress.stage
            self._started = time.monotonic()
        if self._bar:
            self._show_bar(self._bar, progress, note, begins=begins)
        else:
            self._show_line(progress, note, begins=begins)
        if is_json():
            unreadable(progress.failures)

    def line(self, text: str, event: str = "note", **fields: Any) -> None:
        """Write a line; on a terminal it takes the place of the bar of the stage that it sums up.

        In a structured log it is the event, with the fields.
        """
        if is_json():
            emit("info", event, message=text, **fields)
            return
        text = "\n".join(map(printable, text.splitlines()))
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
                self._task, self._stage = None, ""
            self._bar.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def _show_bar(self, bar: Bar, progress: Progress, note: str, *, begins: bool) -> None:
        if begins or self._task is None:
            self._task = bar.add_task(progress.stage, total=progress.total or None, failed="", note="")
        bar.update(
            self._task,
            completed=progress.done,
            total=progress.total or None,
            failed=f"{progress.failed:,} failed" if progress.failed else "",
            note=note,
        )

    def _show_line(self, progress: Progress, note: str, *, begins: bool) -> None:
        now = time.monotonic()
        self._untold = progress if is_json() else None
        if not begins and now - self._told < QUIET_SECONDS:
            return
        self._told = now
        if is_json():
            self._log_untold(note)
            return
        seconds = now - self._started
        rate = f", {progress.done / seconds:.0f} images/s" if seconds > 1 else ""
        failed = f", {progress.failed:,} failed" if progress.failed else ""
        total = f" of {progress.total:,}" if progress.total else ""
        print(
            f"{progress.stage}: {progress.done:,}{total} images{failed}{rate}{note and f'; {note}'}",
            file=sys.stderr,
            flush=True,
        )

    def _log_untold(self, note: str = "") -> None:
        """The state that was passed over last, so that the log tells how each stage ended."""
        if self._untold:
            last, self._untold = self._untold, None
            seconds = round(time.monotonic() - self._started, 3)
            emit(
                "info", "progress", stage=last.stage, done=last.done, total=last.total, failed=last.failed,
                seconds=seconds, **({"note": note} if note else {}),
            )  # fmt: skip


def _bar(target: Console) -> Bar:
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        """Images a second."""

        def render(self, task: object) -> Text:
            speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
            return Text(f"{speed:.0f}/s" if speed else "", style="progress.data.speed")

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[failed]}", style="yellow"),
        TextColumn("{task.fields[note]}"),
        console=target,
        expand=True,
    )
