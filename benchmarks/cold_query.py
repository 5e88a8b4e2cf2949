"""What ``mgm query`` takes from a cold shell, with onnxruntime and without it, in turn.

    python benchmarks/cold_query.py FOLDER [--rounds 7] [--imports] [--json FILE]

Makes an index of up to 100 images of the folder in a Milvus Lite file, then asks it with one of them in a new process
each time. Where onnxruntime is left out, a module of its name that cannot be imported stands in its place, so the
encoder runs in torch. ``--imports`` also lists the packages that each side imports, by the time they take themselves.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from result_file import write_result

from mg_milvus.images.discover import discover
from mg_milvus.index import ImageIndex

IMAGES, SHOWN = 100, 12
NAMES = ("onnxruntime", "torch", "torchvision", "pymilvus", "pandas", "scipy")


def asked(uri: str, image: str, blocked: Path | None, *flags: str) -> tuple[float, float, str]:
    """Seconds, seconds of CPU, and what was written on standard error."""
    environment = dict(os.environ)
    if blocked is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(blocked), environment.get("PYTHONPATH", "")]).rstrip(":")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, *flags, "-m", "mg_milvus", "query", image, "--uri", uri, "--device", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.stderr


def imports(text: str) -> Counter[str]:
    """Milliseconds of each package by itself, from what ``-X importtime`` writes."""
    found: Counter[str] = Counter()
    for microseconds, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", text, re.MULTILINE):
        found[name.partition(".")[0]] += int(microseconds) / 1000
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = [found.path for found in discover([options.folder], print)][:IMAGES]
    with tempfile.TemporaryDirectory() as scratch:
        uri, blocked = f"{scratch}/cold.db", Path(scratch) / "blocked"
        blocked.mkdir()
        (blocked / "onnxruntime.py").write_text("raise ImportError('left out')\n")
        with ImageIndex.open(uri, device="cpu") as index:
            index.ingest(*files)
        sides = {"with onnxruntime": None, "torch alone": blocked}
        result: dict[str, dict[str, object]] = {}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        loaded = {name: imports(asked(uri, files[0], side, "-X", "importtime")[2]) for name, side in sides.items()}
        for _ in range(options.rounds):
            for name, side in sides.items():
                times[name].append(asked(uri, files[0], side)[:2])
    print(f"{'mgm query, cold':20}{'seconds':>9}{'fastest':>9}{'CPU':>7}  imported, of {', '.join(NAMES)}")
    for name, taken in times.items():
        wall, cpu = zip(*taken, strict=True)
        gone = {"onnxruntime"} if sides[name] else set()  # its import is tried, and traced
        known = [package for package in NAMES if package in loaded[name].keys() - gone]
        figures = {"seconds": statistics.median(wall), "fastest": min(wall), "CPU seconds": statistics.median(cpu)}
        result[name] = {key: round(value, 2) for key, value in figures.items()} | {"imported": known}
        numbers = (figures["seconds"], figures["fastest"], figures["CPU seconds"])
        print(f"{name:20}{numbers[0]:9.2f}{numbers[1]:9.2f}{numbers[2]:7.2f}  {', '.join(known)}")
    first, second = (sorted(wall for wall, _ in taken) for taken in times.values())
    print(f"\ntorch alone takes {statistics.median(second) / statistics.median(first):.2f} x the time")
    if options.imports:
        for name, packages in loaded.items():
            print(f"\n{name}: {sum(packages.values()):.0f} ms of imports, traced")
            print("\n".join(f"{taken:8.0f} ms  {package}" for package, taken in packages.most_common(SHOWN)))
            result[name]["milliseconds of imports"] = {p: round(t) for p, t in packages.most_common(SHOWN)}
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
