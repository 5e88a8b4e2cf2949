"""Exit codes, and what commands print: files, tables, unreadable images, progress."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from mg_milvus.cli.log import is_json, log_event, log_failures
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from mg_milvus.records import Failure, PassedOver, Progress


ERROR = 1
USAGE = 2
UNREADABLE = 3
"""Done, but some images could not be read."""
INTERRUPTED = 130

QUIET_SECONDS = 10.0
"""Seconds between two lines of progress when standard error is not a terminal."""


def shorten(path: str, width: int) -> str:
    """Cut a path at the left to ``width`` columns, so that the file name stays visible."""
    from rich.cells import cell_len

    if cell_len(path) <= width:
        return path
    room, start = width - 1, len(path)
    while start and (room := room - cell_len(path[start - 1])) >= 0:
        start -= 1
    return "…" + path[start:]


def console(*, error: bool = False) -> Console:
    """Return a rich console for standard output or standard error; it wraps lines on terminals only."""
    from rich.console import Console

    made = Console(stderr=error, highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=error, highlight=False, markup=False, emoji=False, width=100_000)
    return made


def passed_over_line(kinds: Sequence[PassedOver]) -> str:
    """What a walk did not take, by kind, in one line."""
    each = (f"{p.count:,} {escape_controls(p.kind)}" + f" ({p.remedy})" * bool(p.remedy) for p in kinds)
    return "Passed over: " + ", ".join(each)


def print_failures(failures: Sequence[Failure], *, as_json: bool = False) -> None:
    """Log the unreadable images, and print one line for each unless standard output is for JSON."""
    log_failures(failures)
    if as_json:
        return
    if failures:
        print(f"\n{len(failures):,} could not be read:")
    for failure in failures:
        print(f"  {escape_controls(failure.path)}: {escape_controls(failure.reason)}")


class ProgressView:
    """Shows progress on standard error: a bar on a terminal, otherwise a line every ten seconds, or JSON.

    A context manager whose instance is the ``progress`` callback of the library.
    """

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._started = self._shown = 0.0
        self._skipped: Progress | None = None

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
        self._log_skipped()

    def __call__(self, progress: Progress, note: str = "") -> None:
        """Show the progress of a stage, with a note beside it."""
        begins = progress.stage != self._stage
        if begins:
            self._log_skipped()
            self._stage = progress.stage
            self._started = time.monotonic()
        if self._bar:
            self._show_bar(self._bar, progress, note, begins=begins)
        else:
            self._show_line(progress, note, begins=begins)
        log_failures(progress.failures)

    def print_line(self, text: str, event: str = "note", **fields: Any) -> None:
        """Print a line, which replaces the bar of its stage; ``event`` and ``fields`` appear in JSON only."""
        if is_json():
            log_event(logging.INFO, event, message=text, **fields)
            return
        text = "\n".join(map(escape_controls, text.splitlines()))
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
        self._skipped = progress if is_json() else None
        if not begins and now - self._shown < QUIET_SECONDS:
            return
        self._shown = now
        if is_json():
            self._log_skipped(note)
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

    def _log_skipped(self, note: str = "") -> None:
        """Log the last state that was skipped, so that the log contains the end of each stage."""
        if self._skipped:
            last, self._skipped = self._skipped, None
            seconds = round(time.monotonic() - self._started, 3)
            log_event(
                logging.INFO, "progress", stage=last.stage, done=last.done, total=last.total, failed=last.failed,
                seconds=seconds, **({"note": note} if note else {}),
            )  # fmt: skip


def _bar(target: Console) -> Bar:
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        """Images per second."""

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
