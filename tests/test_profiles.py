"""The tools behind benchmarks/profile_*.py: stages that add up, folded stacks summed by package and by function."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from profiles import sampled
from profiles.stages import REST, SERVER, THREADS, Stages

STACKS = [
    "thread (7): MainThread;<module> (a.py:3);run (mg_milvus/run.py:9);forward (torch/nn/conv.py:5) 6",
    "thread (7): MainThread;<module> (a.py:3);run (mg_milvus/run.py:11);at::_ops::conv2d (libtorch_cpu.so);0x7f (x) 2",
    "thread (8): mgm-decode_0;read (mg_milvus/read.py:1);jpeg_decode (_imaging.cpython-311-x86_64.so) 1",
    "thread (7): MainThread;_find_and_load (<frozen importlib._bootstrap>:1027) 1",
]


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_what_an_inner_stage_takes_is_not_the_outer_ones() -> None:
    stages = Stages()
    with stages.stage("outer"):
        busy(0.02)
        with stages.stage("inner"):
            busy(0.1)
    table = stages.table()
    assert table["inner"]["CPU s"] >= 0.1
    assert 0.02 <= table["outer"]["CPU s"] < 0.1
    columns = {column for row in table.values() for column in row}
    for column in columns:
        assert sum(row[column] for name, row in table.items() if name != "in all") == pytest.approx(
            table["in all"][column], abs=1e-6
        )


def test_other_threads_count_as_work_and_not_on_the_clock() -> None:
    stages = Stages()
    box = SimpleNamespace(work=lambda: busy(0.05))
    stages.wrap("decode", box, "work")

    def elsewhere() -> None:
        box.work()
        busy(0.05)  # in no stage

    thread = threading.Thread(target=elsewhere)
    with stages.stage("wait"):
        thread.start()
        thread.join()
    busy(0.03)
    table = stages.table()
    assert (table["decode"]["s"], table["decode"]["CPU s"] >= 0.05) == (0, True)
    assert table["wait"]["s"] >= 0.1 > table["wait"]["CPU s"]
    assert table[THREADS]["CPU s"] >= 0.04  # the clock of the process is coarser than that of a thread
    assert table[REST]["CPU s"] >= 0.03
    assert table[SERVER]["CPU s"] == 0
    assert set(stages.memory) == {"wait"}


def test_each_step_of_a_generator_is_timed_and_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def numbers(last: int) -> Iterator[int]:
        try:
            for number in range(last):
                busy(0.02)
                yield number
        finally:
            ended.append("closed")

    module = SimpleNamespace(numbers=numbers)
    monkeypatch.setitem(sys.modules, "a_module", module)  # type: ignore[arg-type]
    stages = Stages()
    stages.wrap_next("next", "a_module:numbers")
    assert list(module.numbers(3)) == [0, 1, 2]
    some = module.numbers(5)
    assert next(some) == 0
    some.close()
    assert ended == ["closed", "closed"]
    assert stages.table()["next"]["CPU s"] >= 0.08


def test_samples_belong_to_the_innermost_package_that_is_known() -> None:
    assert sampled.by_package(STACKS) == {"torch": 0.6, "libtorch_cpu": 0.2, "_imaging": 0.1, "importing": 0.1}


def test_functions_count_wherever_they_are_on_the_stack_whatever_the_line() -> None:
    assert sampled.by_function(STACKS, "mg_milvus") == {"run (mg_milvus/run.py)": 0.8, "read (mg_milvus/read.py)": 0.1}


def test_without_py_spy_there_are_no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert sampled.recorded([sys.executable, "-c", "raise SystemExit(1)"]) is None
