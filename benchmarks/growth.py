"""What grows with the number of images, and by how much: one Milvus Lite file, filled on and measured at each size.

    python benchmarks/growth.py [--rows 10000,100000,1000000] [--rounds 50] [--json FILE]

Synthetic codes, written through the store, each size in ten steps. At each size, in fresh processes: opening the file
up to the first answer, and the ingest of ten new images. Then in one process, all in turn: queries by every fusion,
with and without a filter (k = 10); the searches of these queries in bare calls of pymilvus; and what
should not grow at all: counting, reading, writing and removing some rows, a look around.

The last table is the slope: milliseconds a million rows and at none, fitted to the medians. ``beyond the scan`` is what
is left of it without the bare searches.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from operations import SCAN, named, others, queries, scans
from painted_scenes import KINDS
from processes import engine_pid, file_size, memory
from result_file import write_result
from side_by_side.measuring import show
from synthetic import fill, make

from mg_milvus.config import MilvusConfig
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.milvus import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TENTHS = 10
PERCENTILES = (50, 95, 99)

FRESH = """
import json, sys, time
start = time.perf_counter()
from itertools import pairwise
from pathlib import Path
from processes import engine_pid, memory
from synthetic import synthetic_codes
from mg_milvus import ImageIndex
imported = time.perf_counter()
with ImageIndex.open(sys.argv[1]) as index:
    {work}
    done = time.perf_counter()
    print(json.dumps({{
        "imports s": imported - start, "work s": done - imported, "client peak MB": memory(None, "VmHWM"),
        "engine peak MB": memory(engine_pid(Path(sys.argv[1])), "VmHWM"),
    }}))
"""
FIRST_ANSWER = "index.query_codes({name: c[0] for name, c in synthetic_codes(1, index.schema, 0).items()}, k=10)"
TEN_IMAGES = "assert index.ingest(sys.argv[2]).added == 10"


def fresh(work: str, *arguments: str | Path) -> dict[str, float]:
    """Seconds and memory of some work on an index, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(work=work), *arguments],
        cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def ten_images(file: Path, folder: Path) -> dict[str, float]:
    """An ingest of ten images that are new, which are removed again."""
    folder.mkdir()
    for name, paint in KINDS.items():
        paint(random.Random(f"{folder.name} {name}")).save(folder / f"{name}.jpg")
    taken = fresh(TEN_IMAGES, file, folder)
    with ImageIndex.open(file) as index:
        index.delete([str(path) for path in folder.iterdir()])
    return taken


def timed(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Action -> percentiles in milliseconds; all take turns, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if turn:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: {f"p{p}": float(np.percentile(own, p)) for p in PERCENTILES} for name, own in taken.items()}


def grow(file: Path, there: int, rows: int) -> list[float]:
    """Fill from ``there`` to ``rows``; rows a second of each tenth."""
    schema = Schema()
    store = open_store(MilvusConfig(str(file), collection=schema.collection, timeout=60))
    if not there:
        make(store, schema)
    steps = np.linspace(there, rows, TENTHS + 1).astype(int).tolist()
    rates = [fill(store, schema, start, end) for start, end in pairwise(steps)]
    store.close()
    return rates


def measured(file: Path, rows: int, rounds: int) -> dict[str, Any]:
    """All figures at one size."""
    fresh(FIRST_ANSWER, file)  # the file is in the system's cache from now on
    state: dict[str, Any] = {
        "start-up": fresh(FIRST_ANSWER, file),
        "ten new images": ten_images(file, file.with_name(f"images{rows}")),
    }
    with ImageIndex.open(file, timeout=60) as index:
        if index.count() != rows:
            raise RuntimeError(f"{index.count()} rows, expected {rows}")
        state["ms"] = timed(queries(index) | scans(index) | others(index, rows), rounds)
        state["engine MB"] = memory(engine_pid(file))
    state["file MB"] = file_size(file) / 1e6
    return state


def slopes(states: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Action -> milliseconds a million rows, and at none, by least squares over the medians."""
    rows = np.array(list(states)) / 1e6
    found: dict[str, dict[str, float]] = {}
    for name in next(iter(states.values()))["ms"]:
        slope, constant = np.polyfit(rows, [state["ms"][name]["p50"] for state in states.values()], 1)
        found[name] = {"ms/million": float(slope), "ms at none": float(constant)}
    for name, own in found.items():
        own["beyond the scan"] = own["ms/million"]
        if name.startswith("query"):
            own["beyond the scan"] -= found[named(SCAN, "filter" if "filter" in name else None)]["ms/million"]
        elif name.startswith(SCAN):
            own["beyond the scan"] = 0.0
    return found


def summary(states: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Size -> what is not a latency."""
    return {
        f"{rows:,}": {
            "rows/s": float(np.mean(state["rows/s"])),
            "last/first": state["rows/s"][-1] / state["rows/s"][0],
            "file MB": state["file MB"],
            "engine MB": state["engine MB"],
            "client MB": state["start-up"]["client peak MB"],
            "first answer s": state["start-up"]["work s"],
            "ten new s": state["ten new images"]["work s"],
            "ten new MB": state["ten new images"]["client peak MB"],
        }
        for rows, state in states.items()
    }


def sizes(text: str) -> Sequence[int]:
    return sorted(int(float(part)) for part in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=sizes, default="10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    states: dict[int, dict[str, Any]] = {}
    there = 0
    with TemporaryDirectory() as folder:
        file = Path(folder) / "growth.db"
        for rows in options.rows:
            rates = grow(file, there, rows)
            states[rows], there = {"rows/s": rates, **measured(file, rows, options.rounds)}, rows
            print(f"{rows:,} rows: written at {' '.join(f'{rate:,.0f}' for rate in rates)} rows/s", flush=True)
            show(f"{rows:,} rows, ms", [f"p{p}" for p in PERCENTILES], states[rows]["ms"])
    table = summary(states)
    show("sizes", list(next(iter(table.values()))), table)
    result: dict[str, Any] = {"sizes": states}
    if len(states) > 1:
        result["slopes"] = slopes(states)
        show("slope of the medians", ["ms/million", "ms at none", "beyond the scan"], result["slopes"])
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
