"""One patience for all tests that wait: generous, for machines that are busy with something else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 300.0
"""Seconds until a test gives up: also for the ``timeout`` of commands, connections and stores that ought to succeed."""


def wait_until(condition: Callable[[], object], what: str, *, patience: float = PATIENCE, pause: float = 0.02) -> None:
    """Wait until a condition holds.

    Args:
        condition: Called every ``pause`` seconds; true ends the wait, an exception is the test's.
        what: What the condition says when it holds, or a word on what is waited for, for the message.
        patience: Seconds after which the test fails.
        pause: Seconds between two calls.
    """
    __tracebackhide__ = True
    give_up = time.monotonic() + patience
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"after {patience:g} s of waiting it does not hold: {what}")
        time.sleep(pause)
