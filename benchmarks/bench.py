"""The short form of the benchmarks: ratios of processor time of two sides in turn, beside those that are committed.

    make bench                                        # or: python benchmarks/bench.py
    make bench IMAGES=folder                        # a labelled folder of your own: class/image
    python benchmarks/bench.py --only pure --runs 3
    make bench KEEP=1                                 # take these for the committed ones

More is better in every ratio. Those that fell by more than 15 % are measured again, and a line warns of each that did
so twice. The exit status is 0 all the same, for machines differ. Ratios of your own images are compared with nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from result_file import machine, write_result
from short.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

KEPT = Path(__file__).parent / "results" / "bench.json"
FELL = 0.15
BUSY = 0.5
"""Load of each core, before anything is measured, from which on ratios move by themselves."""
MEANING = {
    "pure": {
        "fusion": "3 x 1,000 candidates: plain Python's time over ours",
        "packing": "2,000 x 256 values: time of np.packbits over ours",
        "distances": "one code to 100,000: time of a table of bytes over ours",
    },
    "storing": {
        "query": "20,000 rows: the plainest pymilvus calls' time over ours",
        "queries together": "eight queries one by one over eight in one call",
        "upsert": "500 rows: bare pymilvus' time over ours",
        "writing beside floats": "500 rows: time of one vector of 1,280 floats over ours",
        "query beside floats": "20,000 rows: time of its search, FLAT and COSINE, over ours",
        "bytes beside floats": "20,000 rows in Milvus Lite's file: its bytes over ours",
        "details": "a query for whole images over one for a detail",
    },
    "images": {
        "making ready": "12 megapixels: plain Pillow's time over ours",
        "encoding": "32 images: a ResNet-18's time over ours",
        "ingest": "decoding and encoding alone over a whole ingest",
        "precision": "mAP of the fused codes over that of the float features",
        "cold query": "python -c 'import numpy' over mgm query",
    },
}
"""Part -> ratio -> what is divided by what; time is processor time, see ``short/turns.py``."""


def measured(parts: Sequence[str], turns: Turns, folder: Path | None) -> dict[str, float]:
    """Ratio -> its value."""
    found: dict[str, float] = {}
    for part in parts:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            found |= import_module(f"short.{part}").ratios(turns, Path(work), folder)
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
    return found


def several(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Ratio -> the median of several runs, and the least and the most of them."""
    return {
        name: {"ratio": statistics.median(values), "least": min(values), "most": max(values)}
        for name in runs[0]
        for values in [[float(f"{run[name]:.4g}") for run in runs]]
    }


def fell(name: str, now: Mapping[str, float], kept: Mapping[str, float]) -> bool:
    """Whether a ratio that was measured and is committed fell by more than ``FELL``."""
    return name in now and name in kept and now[name] < (1 - FELL) * kept[name]


def compared(now: Mapping[str, float], kept: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """A line for each ratio, and a warning for each that fell by more than ``FELL``."""
    texts = {name: text for part in MEANING.values() for name, text in part.items()}
    wide = max(len(name) for name in now) + 2
    lines = [f"{'':{wide}}{'committed':>10}{'now':>9}{'change':>9}"]
    fallen = []
    for name, value in now.items():
        before = kept.get(name)
        change = "" if before is None else f"{value / before - 1:+.0%}"
        shown = "" if before is None else f"{before:.3g}"
        lines.append(f"{name:{wide}}{shown:>10}{value:9.3g}{change:>9}  {texts.get(name, '')}")
        if before is not None and fell(name, now, kept):
            fallen.append(
                f"warning: '{name}' fell by {1 - value / before:.0%}: {before:.3g} committed, {value:.3g} now"
            )
    return lines, fallen


def looked_again(
    now: Mapping[str, float], kept: Mapping[str, float], again: Callable[[Sequence[str]], Mapping[str, float]]
) -> dict[str, float]:
    """The ratios, but those that fell as the better of two times: what else a machine does only makes them worse."""
    fallen = [part for part, names in MEANING.items() if any(fell(name, now, kept) for name in names)]
    if not fallen:
        return dict(now)
    print(f"something fell: measuring {', '.join(fallen)} again", flush=True)
    second = again(fallen)
    return {name: max(value, second[name]) if fell(name, now, kept) else value for name, value in now.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a labelled folder, instead of painted scenes")
    parser.add_argument("--only", nargs="+", choices=MEANING, default=list(MEANING))
    parser.add_argument("--runs", type=int, default=1, help="the median of so many")
    parser.add_argument("--seconds", type=float, default=Turns().seconds, help="for each ratio")
    parser.add_argument("--rounds", type=int, default=Turns().rounds, help="of both sides, at least")
    parser.add_argument("--against", type=Path, default=KEPT, metavar="FILE", help="what is committed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios to this file")
    options = parser.parse_args(arguments)
    if options.images is not None and not options.images.is_dir():
        parser.error(f"--images {options.images} is no folder; expected one that holds class/image")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    warnings.filterwarnings("ignore", module="milvus_lite")

    def measure(parts: Sequence[str]) -> dict[str, float]:
        return measured(parts, Turns(options.seconds, options.rounds), options.images)

    if os.getloadavg()[0] > BUSY * (os.cpu_count() or 1):
        print(f"the machine is busy, its load is {os.getloadavg()[0]:.1f}: do not trust what follows", flush=True)
    found = several([measure(options.only) for _ in range(options.runs)])
    kept: dict[str, Any] = json.loads(options.against.read_text()) if options.against.exists() else {}
    known = {name: own["ratio"] for name, own in kept.get("figures", {}).items()}
    if options.images is not None:
        known = {name: value for name, value in known.items() if name not in MEANING["images"]}
    now = looked_again({name: own["ratio"] for name, own in found.items()}, known, measure)
    lines, fallen = compared(now, known)
    print("\n".join(["", *lines, *fallen]))
    if known and kept["machine"] != machine():
        print(f"committed on {kept['machine']['processor']}, {kept['machine']['cores']} cores, {kept['date'][:10]}")
    if options.json:
        write_result(options.json, found)


if __name__ == "__main__":
    main()
