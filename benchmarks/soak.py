"""Does anything grow that should not? Mixed work for half an hour, watched.

    python benchmarks/soak.py IMAGES [--minutes 30] [--schema regions] [--json FILE]

``mgm up`` serves a Milvus Lite file, ``mgm serve`` a page on it, and this process works on a folder of copies of
IMAGES (small ones, such as tiny-imagenet's, keep it cheap): images come, change and go, ingests follow, and
queries by image, by id, by part and by the page are asked; now and then the index is opened anew. Every answer is
checked. The number of images stays between 200 and 400.

Every ten seconds memory, descriptors and threads of the three processes, rows and bytes are recorded. What they grow by
is the slope of Theil and Sen over the second half, in which caches are warm; flat is less than 2 MB and one percent for
memory, and less than one descriptor or thread. Milvus Lite's engine keeps rows that were replaced or removed in memory
until it is started anew, so it may have 400 bytes more for each row that was written. At the end the index must hold
the folder and nothing else, also after the engine was started anew, which then must take no more than in the
beginning. Exit code 1 when something grows or is wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from mixed_work import MixedWork, WrongAnswerError
from processes import descriptors, engine_pid, file_size, memory, threads
from result_file import write_result

from mg_milvus.images.discover import discover, text_path
from mg_milvus.store import lite_server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EVERY = 10.0
"""Seconds between two samples."""
KEPT = 400 / 1e6
"""MB that the engine (2.5.1) may keep of a row after it was replaced or removed; 200 to 300 bytes were counted."""


def growth(times: Sequence[float], values: Sequence[float]) -> float:
    """What the second half grows by: its length times the median slope of all pairs (Theil 1950, Sen 1968)."""
    half = len(times) // 2
    t, v = np.array(times[half:]), np.array(values[half:])
    first, second = np.triu_indices(len(t), 1)
    return float(np.median((v[second] - v[first]) / (t[second] - t[first])) * (t[-1] - t[0]))


def allowed(what: str, values: Sequence[float], written: float) -> float:
    """The growth that is still flat, when so many rows were written meanwhile."""
    if not what.endswith("MB"):
        return 1.0
    return 2 + 0.01 * float(np.median(values)) + (KEPT * written if what == "engine MB" else 0)


def sample(pids: Mapping[str, int], file: Path) -> dict[str, float]:
    """What every process takes now."""
    found: dict[str, float] = {}
    for who, pid in pids.items():
        found[f"{who} MB"] = memory(pid)
        found[f"{who} descriptors"] = descriptors(pid)
        found[f"{who} threads"] = threads(pid)
    return found | {"file MB": file_size(file) / 1e6}


def soak(work: MixedWork, pids: Mapping[str, int], file: Path, seconds: float) -> list[dict[str, float]]:
    """Samples, the first one after the first step."""
    samples: list[dict[str, float]] = []
    started = time.monotonic()
    while (now := time.monotonic() - started) < seconds:
        work.step()
        if now >= EVERY * len(samples):
            samples.append({"s": now, **sample(pids, file), "rows": len(work.files), "written": work.written})
            print(" ".join(f"{name} {value:.0f}" for name, value in samples[-1].items()), flush=True)
    return samples


def verdict(samples: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Figure -> median, growth in the second half, and how much of it is allowed."""
    times = [each["s"] for each in samples]
    written = samples[-1]["written"] - samples[len(samples) // 2]["written"]
    print(f"second half: {times[-1] - times[len(times) // 2]:.0f} s, {written:,.0f} rows written")
    table: dict[str, dict[str, float]] = {}
    for name in samples[0]:
        if name in {"s", "rows", "written"}:
            continue
        values = [each[name] for each in samples]
        table[name] = {
            "median": float(np.median(values)),
            "most": max(values),
            "growth": growth(times, values),
            "allowed": allowed(name, values, written),
        }
        own = table[name]
        print(
            f"{name:20} median {own['median']:8.1f}  most {own['most']:8.1f}  grew by {own['growth']:+7.2f} of "
            f"{own['allowed']:5.1f} allowed  {'ok' if own['growth'] < own['allowed'] else 'GROWS'}"
        )
    print(f"the engine kept {1e6 * table['engine MB']['growth'] / max(1, written):.0f} bytes of each row written")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--schema", default="regions")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sources = [text_path(found.path) for found in discover([options.images], print)]
    with TemporaryDirectory() as scratch:
        file, folder = Path(scratch) / "soak.db", Path(scratch) / "images"
        folder.mkdir()
        running, _ = lite_server.up(file, 0)
        command = [sys.executable, "-m", "mg_milvus", "serve", "--uri", running.uri, "--port", "0", "--read-only"]
        page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        work = None
        try:
            assert page.stdout is not None
            work = MixedWork(sources, folder, running.uri, options.schema, page.stdout.readline().split()[0])
            pids = {"client": None, "engine": engine_pid(file), "page": page.pid}
            samples = soak(work, pids, file, 60 * options.minutes)
            work.check()
            work.close()
            lite_server.down(file)
            lite_server.up(file, int(running.uri.rpartition(":")[2]))
            work.check()
            anew = memory(engine_pid(file))
            print(f"the index holds what it should; done: {work.done}")
            print(f"the engine started anew: {anew:.0f} MB, in the beginning {samples[0]['engine MB']:.0f} MB")
            if anew > 1.1 * samples[0]["engine MB"]:
                raise WrongAnswerError("the engine needs more than in the beginning, with about as many images")
        except WrongAnswerError as error:
            print(f"WRONG: {error}")
            return 1
        finally:
            if work is not None:
                work.close()
            page.terminate()
            page.wait()
            lite_server.down(file)
    table = verdict(samples)
    if options.json:
        write_result(options.json, {"done": work.done, "figures": table, "samples": samples})
    return int(any(own["growth"] >= own["allowed"] for own in table.values()))


if __name__ == "__main__":
    sys.exit(main())
