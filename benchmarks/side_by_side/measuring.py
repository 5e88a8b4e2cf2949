"""What every part of the comparison needs: alone in a process, seconds, rows of a table."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What ``work`` returns in a process of its own.

    With ``peak_mb``, the most memory that the process, or one that it started, had.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work, arguments).result()


def _measured(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    multiprocessing.set_start_method("fork", force=True)  # what a program of its own begins with
    result = work(*arguments)
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return result | {"peak_mb": most / 1024}


def seconds(action: Callable[[], Any]) -> float:
    """How long it takes once."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each action; all take turns, so that a busy machine disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(1000 * seconds(action))
    return {name: statistics.median(own) for name, own in times.items()}


def show(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table; what a row has no figure for stays empty."""
    wide = max(len(name) for name in rows) + 2
    print(f"\n{title}\n{'':{wide}}" + "".join(f"{column:>{max(12, len(column) + 2)}}" for column in columns))
    for name, row in rows.items():
        cells = (f"{row[column]:.4g}" if column in row else "" for column in columns)
        print(
            f"{name:{wide}}"
            + "".join(f"{cell:>{max(12, len(column) + 2)}}" for cell, column in zip(cells, columns, strict=True)),
            flush=True,
        )
