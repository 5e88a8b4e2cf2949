"""Two sides of the same work, timed in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Side = Callable[[], Any]

LEAST = 0.02
"""Seconds that one side takes at least, so that the clock and a short disturbance matter little."""
QUARTILE = 25
"""Of a side's times: what else runs on a machine only makes them longer, and the very shortest is luck."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How long to measure.

    Attributes:
        seconds: as long as rounds go on,
        rounds: but at least so many.
    """

    seconds: float = 6.0
    rounds: int = 5

    def times_as_fast(self, ours: Side, other: Side) -> float:
        """How many times as fast as the other side we are at work that can be repeated.

        Both are called to warm up. A round is both sides, each repeated for ``LEAST`` seconds; who begins changes.
        """
        repeats = [max(1, round(LEAST / max(1e-9, min(_taken(side), _taken(side))))) for side in (ours, other)]
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
    """The other side's seconds over ours: the lower quartiles of many pairs (ours, other), in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for place, pair in enumerate(pairs):
        for side in (0, 1) if place % 2 else (1, 0):
            taken[side].append(_taken(pair[side]))
    ours, other = (float(np.percentile(side, QUARTILE)) for side in taken)
    return other / ours


def _repeated(action: Side, times: int) -> Side:
    def repeated() -> None:
        for _ in range(times):
            action()

    return repeated


def _taken(action: Side) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
