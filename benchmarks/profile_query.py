"""Where the time of one query goes, from a cold shell and in a program that runs: steps, imports, functions, memory.

    python benchmarks/profile_query.py FOLDER [--images 200] [--rounds 5] [--stacks FILE] [--json FILE]

The first images of FOLDER are ingested into a new Milvus Lite file. ``mgm query --explain`` is then started anew for
each round; what it says of its own steps is taken from the time of the whole command, and what is left is Python, the
imports and the command line. One more start counts the imports (``-X importtime``), one is looked at by py-spy (``pip
install py-spy``) if it is there. A program that stays asks the same query 20 times.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from profile_ingest import as_rows
from profiles.sampled import by_function, by_package, recorded
from profiles.stages import peak
from result_file import write_result
from side_by_side.measuring import alone, show

from mg_milvus.images.discover import discover, text_path

ASKED = 20


def ingested(uri: str, images: list[str]) -> dict[str, Any]:
    """Make the index."""
    from mg_milvus.index import ImageIndex

    with ImageIndex.open(uri) as index:
        return {"rows": index.ingest(*images).added}


def in_a_shell(command: list[str]) -> tuple[float, dict[str, float]]:
    """Seconds of the command, and of the steps it tells."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"mgm query failed: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    steps = told["seconds"]
    rest = told["total_seconds"] - sum(steps.values())
    return whole, {"Python, imports, the command line": whole - told["total_seconds"], **steps, "between steps": rest}


def in_a_program(uri: str, image: str) -> dict[str, Any]:
    """Median seconds of each step when everything is loaded, and memory before and after."""
    from mg_milvus.index import ImageIndex

    memory = {"importing mg_milvus": peak()}
    with ImageIndex.open(uri) as index:
        index.info()
        memory["opening the index"] = peak()
        index.query(image)
        memory["the first answer"] = peak()
        told = [index.explain(image) for _ in range(ASKED)]
        memory[f"{ASKED} more"] = peak()
    steps = {step: statistics.median(one.seconds[step] for one in told) for step in told[0].seconds}
    whole = statistics.median(one.total for one in told)
    return {"steps": {**steps, "between steps": whole - sum(steps.values())}, "memory": memory}


def imports(command: list[str]) -> dict[str, float]:
    """Package -> seconds in which it itself was imported, most first, of what one start imports."""
    told = subprocess.run([command[0], "-X", "importtime", *command[1:]], capture_output=True, text=True, check=True)
    found: Counter[str] = Counter()
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)$", told.stderr, re.MULTILINE):
        found[name.split(".")[0]] += int(own)
    return {name: own / 1e6 for name, own in found.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stacks", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    images = [str(text_path(f.path)) for f in islice(discover([options.folder], print), options.images)]
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"{scratch}/i.db"
        rows = alone(ingested, uri, images)["rows"]
        command = [sys.executable, "-m", "mg_milvus", "query", images[0], "--uri", uri, "--explain", "--json"]
        in_a_shell(command)  # the copy of the encoder is there now, and the files are in memory
        cold = [in_a_shell(command) for _ in range(options.rounds)]
        seconds = {step: statistics.median(steps[step] for _, steps in cold) for step in cold[0][1]}
        seconds["in all"] = statistics.median(whole for whole, _ in cold)
        result: dict[str, Any] = {"rows": rows, "cold": seconds, "imports": imports(command)}
        warm = alone(in_a_program, uri, images[0])
        result |= {"warm": warm["steps"], "memory": warm["memory"]}
        stacks = recorded(command, options.stacks)
    print(f"{rows} rows; medians of {options.rounds} starts, and of {ASKED} queries in a program that stays")
    steps = {name: {"cold ms": 1000 * value} for name, value in seconds.items()}
    for name, value in {**result["warm"], "in all": sum(result["warm"].values())}.items():
        steps.setdefault(name, {})["warm ms"] = 1000 * value
    show("One query", ["cold ms", "warm ms"], steps)
    show("Imports of a start", ["s"], as_rows(result["imports"], "s"))
    show("Most memory until after", ["MB"], as_rows(result["memory"], "MB"))
    if stacks is None:
        print("\nNo samples: pip install py-spy")
    else:
        result["packages"], result["functions"] = by_package(stacks), by_function(stacks, "mg_milvus")
        show("Samples of a start, by the innermost package", ["share"], as_rows(result["packages"], "share"))
        show("Samples of a start, by what of mg_milvus was running", ["share"], as_rows(result["functions"], "share"))
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
