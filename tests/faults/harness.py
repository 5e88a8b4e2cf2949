"""Runs of ``mgm`` that are watched while they work, and killed at moments drawn from the course of an earlier run.

Short form, the default: few trials with a fixed seed, in processes forked off one that has imported everything already,
which saves the 3 s of each start (on Linux; torch does not like to be forked elsewhere). Long form,
``MGM_FAULT_TRIALS=50``: so many trials of each fault, with the installed command.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import multiprocessing
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.images import save_image
from tests.waiting import PATIENCE, wait_until

TRIALS = int(os.environ.get("MGM_FAULT_TRIALS", "0"))
"""Trials of each fault in the long form; 0: the short form."""
SEED = int(os.environ.get("MGM_FAULT_SEED", "5"))

MGM = Path(sysconfig.get_path("scripts")) / "mgm"
REGIONS = "regions: {bits: 64, scales: [{size: 0.7, grid: 2}]}\n"
FIXED = "version: 1\nencoder: {heads: fixed}\n" + REGIONS
FITTED = "version: 1\n" + REGIONS
"""Schemas: with heads as shipped or fitted to the first images, both with four regions an image."""

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["mg_milvus.cli.app", "mg_milvus.encoder.torch_runtime", "mg_milvus.store.milvus"])


@dataclass(frozen=True)
class Event:
    """Progress as the command shows it: seconds since its start, the stage, images done."""

    time: float
    stage: str
    done: int


START = Event(0.0, "start", 0)


class Run:
    """One ``mgm`` on a terminal of its own, with another folder for temporary files, see ``check_nothing_left``."""

    def __init__(self, *arguments: str | Path) -> None:
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "300", "TMPDIR": str(_temporary())}
        words = list(map(str, arguments))
        self._leader, self._follower = pty.openpty()
        self._output = ""
        self._changed, self._asking = threading.Condition(), threading.Lock()
        self.events = [START]
        self._started, self._ended = time.monotonic(), 0.0
        self._process: subprocess.Popen[bytes] | multiprocessing.process.BaseProcess
        if TRIALS or sys.platform != "linux":
            terminal = {"stdin": subprocess.DEVNULL, "stdout": self._follower, "stderr": self._follower}
            self._process = subprocess.Popen([MGM, *words], env=environment, **terminal)
        else:
            self._process = _forked.Process(target=_command, args=(words, environment, os.ttyname(self._follower)))
            self._process.start()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """What it has written so far, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[━╸╺ ]{20,}", "", self._output).replace("\r", "\n")

    @property
    def complaints(self) -> list[str]:
        """Its lines of error."""
        return [line for line in self.output.splitlines() if line.startswith("mgm: ")]

    @property
    def seconds(self) -> float:
        """From its start until now or its end."""
        return (self._ended or time.monotonic()) - self._started

    @property
    def acknowledged(self) -> int:
        """Images that it has shown as stored, all of which are."""
        return max((event.done for event in self.events if event.stage == "encoding"), default=0)

    @property
    def code(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        with self._asking:  # a second thread that asks at the same time would get a wrong answer
            return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def wait_for(self, event: Event) -> bool:
        """Wait until it has come as far as ``event``; False when it has ended before."""

        def there() -> bool:
            return any(seen.stage == event.stage and seen.done >= event.done for seen in self.events)

        with self._changed:
            in_time = self._changed.wait_for(lambda: there() or not self._reader.is_alive(), PATIENCE)
        if not in_time:
            self.kill()
            raise AssertionError(f"after {PATIENCE} s it has not come to {event}:\n{self.output}")
        return there()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self.code is None:
            assert self._process.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self.finish()

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        self._reader.join(PATIENCE)
        if self._reader.is_alive():
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGKILL)
            self._reader.join()
            raise AssertionError(f"still running after {PATIENCE} s:\n{self.output}")
        code = self.code
        assert code is not None
        return code

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while True:
            if select.select([self._leader], [], [], 0.02)[0]:
                told = decoder.decode(os.read(self._leader, 65536))
                with self._changed:
                    self._output += told
                    for stage, done in re.findall(r"([a-z][a-z ]+) [━╸╺ ]*(\d+)/\d+", self.output[-4000:]):
                        self._notice(stage.strip(), int(done))
                    self._changed.notify_all()
            elif self.code is not None:
                break
        self._ended = time.monotonic()
        os.close(self._leader)
        os.close(self._follower)
        with self._changed:
            self._changed.notify_all()

    def _notice(self, stage: str, done: int) -> None:
        if not any((event.stage, event.done) == (stage, done) for event in self.events):
            self.events.append(Event(self.seconds, stage, done))


def _command(words: list[str], environment: dict[str, str], terminal: str) -> None:
    """``mgm`` in a process that was forked off: what the installed command does, after its imports."""
    os.environ.clear()
    os.environ.update(environment)
    for source, number in ((os.devnull, 0), (terminal, 1), (terminal, 2)):
        opened = os.open(source, os.O_RDWR | os.O_NOCTTY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0)  # noqa: SIM115
    # run() replaces these two, and must find the numbers open.
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["mgm", *words]
    from mg_milvus.cli.app import run

    code = run()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


@dataclass
class Moments:
    """Random moments of a run, drawn from the course of one that nobody disturbed.

    A moment is an event of that course and a delay after it, so that it is met whatever else the machine does. In the
    long form one in ten lies anywhere in the run, which begins with seconds of imports, and the others from when it
    makes its collection; in the short form all lie between the first and the last progress it shows.
    """

    course: list[Event]
    end: float
    random: random.Random

    @classmethod
    def of(cls, run: Run, seed: object) -> Moments:
        """From a run that has ended."""
        assert len(run.events) > 1, run.output
        return cls(run.events, run.seconds, random.Random(f"{SEED} {seed}"))

    def draw(self) -> tuple[Event, float]:
        """An event of the course, and seconds after it."""
        first, last = self.course[1].time, self.course[-1].time
        if not TRIALS:
            moment = self.random.uniform(first, last)
        elif self.random.random() < 0.1:
            moment = self.random.uniform(0.0, self.end)
        else:
            moment = self.random.uniform(0.8 * first, last)
        event = max((event for event in self.course if event.time <= moment), key=lambda event: event.time)
        return event, moment - event.time

    def reach(self, run: Run) -> None:
        """Wait for a random moment of this run, or for its end."""
        event, delay = self.draw()
        if run.wait_for(event):
            time.sleep(delay)


class Outcomes:
    """What the trials of one fault met and how they ended; printed at the end (``pytest -rP`` shows it)."""

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._met: Counter[str] = Counter()
        self._failures: list[str] = []

    def met(self, what: str) -> None:
        """Count what a trial met."""
        self._met[what] += 1

    @contextlib.contextmanager
    def trial(self, number: int) -> Iterator[None]:
        """One trial; should it fail, the others are made all the same."""
        try:
            yield
        except Exception:  # noqa: BLE001 - told at the end
            self._failures.append(f"trial {number}:\n{traceback.format_exc()}")

    def conclude(self) -> None:
        """Print a line; raise when a trial failed."""
        counts = ", ".join(f"{count} {what}" for what, count in self._met.items())
        print(f"{self._fault}: {self._met.total()} trials ({counts}), {len(self._failures)} failed")
        assert not self._failures, "\n".join(self._failures)


def make_images(folder: Path, numbers: range) -> Path:
    """``folder/NN.png``, each unlike the others; lossless, so that every decoder gives the same pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        save_image(folder / f"{number:02}.png", number)
    return folder


def ingest(images: Path, uri: str | Path, *options: str) -> Run:
    """``mgm ingest`` with the ``schema.yaml`` beside the images, a few at once: many moments between two calls."""
    schema = images.parent / "schema.yaml"
    return Run("ingest", images, "--uri", uri, "--schema", schema, "--batch-size", "4", *options)


@cache
def _temporary() -> Path:
    """With a short name: the engine's socket in it may have a path of about a hundred bytes."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def check_nothing_left() -> None:
    """Runs have left no temporary files."""
    left = list(_temporary().iterdir())
    for entry in left:
        shutil.rmtree(entry, ignore_errors=True)
    assert not left, f"left behind: {[entry.name for entry in left]}"


def engines(file: Path) -> list[int]:
    """Processes of Milvus Lite's engine that serve this file; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(file) in entry.read_bytes().split(b"\0")[1:2]:
                found.append(int(entry.parent.name))
    return found


@contextlib.contextmanager
def no_engine_left(file: Path) -> Iterator[None]:
    """Fail if an engine outlives its ``mgm``, and end it all the same."""
    try:
        yield
        wait_until(lambda: not engines(file), f"the engine of {file.name} ends with its mgm")
    finally:
        for process in engines(file):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
