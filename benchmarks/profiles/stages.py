"""Seconds of named stages that add up: what a stage does inside of another one is the inner one's alone.

Seconds on the clock are those of the main thread, so they add up to the whole. Seconds of a processor are those of
every thread that runs a stage; what is left of the process' own is that of threads which the libraries started.
"""

from __future__ import annotations

import functools
import importlib
import os
import resource
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REST = "anything else on the main thread"
THREADS = "threads of the libraries"
SERVER = "Milvus Lite's own process"


class Stages:
    """Measures stages.

    Attributes:
        ended: called with the name of each stage that ends on the main thread.
        memory: stage -> megabytes in memory when it last ended on the main thread.
    """

    def __init__(self) -> None:
        self.ended: list[Callable[[str], None]] = []
        self._lock, self._of_thread = threading.Lock(), threading.local()
        self.begin()

    def begin(self) -> None:
        """Forget what was measured, and begin anew."""
        self.memory: dict[str, float] = {}
        self._clock: dict[str, float] = {}
        self._processor: dict[str, float] = {}
        self._on_main = 0.0
        self._began = time.perf_counter(), process_seconds(), time.thread_time()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside, on this thread."""
        inner: list[list[float]] = self._of_thread.__dict__.setdefault("inner", [])
        inner.append([0.0, 0.0])
        clock, processor = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            clock, processor = time.perf_counter() - clock, time.thread_time() - processor
            inside = inner.pop()
            if inner:
                inner[-1][0] += clock
                inner[-1][1] += processor
            main = threading.current_thread() is threading.main_thread()
            with self._lock:
                self._clock[name] = self._clock.get(name, 0.0) + (clock - inside[0]) * main
                self._processor[name] = self._processor.get(name, 0.0) + processor - inside[1]
                if main:
                    self.memory[name] = resident()
                    self._on_main += 0 if inner else processor
            if main:
                for told in self.ended:
                    told(name)

    def wrap(self, name: str, owner: object, attribute: str) -> None:
        """Make a stage of a function of a module or a method of a class."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def measured(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        setattr(owner, attribute, measured)

    def wrap_in(self, name: str, place: str) -> None:
        """Make a stage of what is written ``module:function`` or ``module:Class.method``."""
        module, _, dotted = place.partition(":")
        *path, attribute = dotted.split(".")
        self.wrap(name, functools.reduce(getattr, path, importlib.import_module(module)), attribute)

    def wrap_next(self, name: str, place: str) -> None:
        """Make a stage of each step of a generator that a function of a module makes."""
        module_name, _, attribute = place.partition(":")
        module = importlib.import_module(module_name)
        function = getattr(module, attribute)

        @functools.wraps(function)
        def measured(*arguments: Any, **options: Any) -> Iterator[Any]:
            generator = function(*arguments, **options)
            try:
                while True:
                    with self.stage(name):
                        item = next(generator, generator)
                    if item is generator:
                        return
                    yield item
            finally:
                generator.close()

        setattr(module, attribute, measured)

    def table(self) -> dict[str, dict[str, float]]:
        """Stage -> seconds and their shares; called on the main thread, when the other processes have ended."""
        whole = time.perf_counter() - self._began[0]
        own, processes = (now - then for now, then in zip(process_seconds(), self._began[1], strict=True))
        unseen = own - sum(self._processor.values())
        here = min(unseen, time.thread_time() - self._began[2] - self._on_main)
        rows = {name: (self._clock[name], self._processor[name]) for name in self._clock}
        rows[REST] = whole - sum(self._clock.values()), here
        rows[THREADS] = 0.0, unseen - here
        rows[SERVER] = 0.0, processes
        work = sum(processor for _, processor in rows.values())
        return {
            name: {"s": clock, "share": clock / whole, "CPU s": processor, "share of CPU": processor / work}
            for name, (clock, processor) in rows.items()
        } | {"in all": {"s": whole, "share": 1.0, "CPU s": work, "share of CPU": 1.0}}


def process_seconds() -> tuple[float, float]:
    """Processor seconds of this process, and of those it started that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


def resident() -> float:
    """Megabytes of this process in memory; where that is not told, the most it had."""
    told = Path("/proc/self/statm")
    if told.exists():
        return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return peak()


def peak() -> float:
    """Megabytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
