"""Keeps numpy's linear algebra on one core while its matrices are too small to be shared out.

By itself it wakes a thread for every core, and those wait for each other, and for the next product, at full speed:
where anything else wants the cores too, as the threads that decode do, the small products of a fit take ten times as
long. What is fitted would also depend on the number of cores.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from threadpoolctl import ThreadpoolController


def one_core() -> AbstractContextManager[Any]:
    """While this context lasts: for the whole process, or for this thread alone where the library can do that."""
    manager: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return manager


@cache
def _libraries() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController  # takes a while: not for a single question

    return ThreadpoolController()
