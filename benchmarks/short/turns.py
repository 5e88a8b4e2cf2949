"""Two sides of the same work, timed in turn, in seconds of processor time."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Side = Callable[[], Any]

LEAST = 0.1
"""Seconds that one side takes at least, so that reading the clock and a short disturbance matter little."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How long to measure.

    Attributes:
        seconds: as long as rounds go on,
        rounds: but at least so many.
    """

    seconds: float = 3.0
    rounds: int = 5

    def times_as_fast(self, ours: Side, other: Side) -> float:
        """How many times as much time as we the other side takes for work that can be repeated.

        Both are called to warm up. A round is both sides, each repeated for ``LEAST`` seconds; who begins changes.
        """
        repeats = [
            max(1, round(LEAST / max(1e-9, min(_taken(side, time.perf_counter) for _ in range(2)))))
            for side in (ours, other)
        ]
        found = self.once_each(_repeated(ours, repeats[0]), _repeated(other, repeats[1]))
        return found * repeats[0] / repeats[1]

    def once_each(self, ours: Side, other: Side) -> float:
        """The same for work that takes seconds and is warm: each side once in a round."""
        end = time.perf_counter() + self.seconds

        def rounds() -> Iterator[tuple[Side, Side]]:
            done = 0
            while done < self.rounds or time.perf_counter() < end:
                yield ours, other
                done += 1

        return ratio(rounds())


def ratio(pairs: Iterable[tuple[Side, Side]]) -> float:
    """The other side's processor time over ours: of many pairs (ours, other), in turn."""
    taken = [0.0, 0.0]
    for place, pair in enumerate(pairs):
        for side in (0, 1) if place % 2 else (1, 0):
            taken[side] += _taken(pair[side], spent)
    return taken[1] / taken[0]


def _repeated(action: Side, times: int) -> Side:
    def repeated() -> None:
        for _ in range(times):
            action()

    return repeated


def _taken(action: Side, clock: Callable[[], float]) -> float:
    start = clock()
    action()
    return clock() - start


def spent() -> float:
    """Seconds of processor time so far: of this process, and of those that it started, ended or not.

    Those are Milvus Lite's, and commands. What else the machine does hardly changes it. The time of those that run is
    in hundredths. Without Linux' /proc it is the time of day.
    """
    lists = list(Path("/proc/self/task").glob("*/children"))
    if not lists:
        return time.perf_counter()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = sum(_ticks(child) for file in lists for child in _read(file).split())
    return time.process_time() + ended.ru_utime + ended.ru_stime + running / os.sysconf("SC_CLK_TCK")


def _ticks(process: str) -> int:
    """User and system time of all threads of a process, ended or not."""
    fields = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if fields else 0


def _read(file: Path) -> str:
    """A file of /proc; nothing when it is gone."""
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
