"""Where the time and the memory of an ingest go: seconds of each stage, functions seen most, memory.

    python benchmarks/profile_ingest.py FOLDER [--again] [--stacks FILE] [--json FILE]

FOLDER is ingested into new Milvus Lite files, each time in a process of its own that imports everything anew: once to
take the times of the stages, once looked at by py-spy (``pip install py-spy``) if it is there, once to see what holds
memory. ``--again`` times a second ingest, to which nothing is new. ``--stacks`` keeps the folded stacks, from which
flamegraph.pl and speedscope.app draw.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from profiles.memory import Held
from profiles.sampled import by_function, by_package, recorded
from profiles.stages import Stages, peak
from result_file import write_result
from side_by_side.measuring import alone, show

STAGES = (
    ("walk the folder", "mg_milvus.ingest.run:random_sample"),
    ("open the store: import pymilvus, start Lite", "mg_milvus.session:open_store"),
    ("load the encoder, with its imports", "mg_milvus.session:load_encoder"),
    ("read the file", "mg_milvus.images.discover:Found.read"),
    ("hash the content", "mg_milvus.ingest.pipeline:_read"),
    ("decode", "mg_milvus.ingest.pipeline:decode"),
    ("keep the encoder in the store", "mg_milvus.ingest.fit_heads:keep_encoder"),
    ("wait for the rows sent", "mg_milvus.ingest.pipeline:Writer._wait"),
)
"""Where the functions are looked up when they are called."""
ENCODER = {
    "prepare": "resize", "features": "encode: the network", "_features": "encode: the network",
    "adapted": "fit the hash heads", "_fit_head": "fit the hash heads", "codes": "hash features to codes",
}  # fmt: skip
STORE = {"create": "make the collection", "upsert": "upsert", "fetch": "look rows up"}


def measured(folder: str, again: bool, hold: bool) -> dict[str, Any]:
    """One ingest, or a second one, in this process."""
    held = Held() if hold else None
    stages = Stages()
    with stages.stage("import mg_milvus"):
        from mg_milvus import session
        from mg_milvus.index import ImageIndex
    for name, place in STAGES:
        stages.wrap_in(name, place)
    for place in ("mg_milvus.ingest.fit_heads:read_images", "mg_milvus.ingest.pipeline:read_images"):
        stages.wrap_next("wait for decoded images", place)
    for attribute, names in (("load_encoder", ENCODER), ("open_store", STORE)):
        wrap_what_it_makes(stages, session, attribute, names)
    with tempfile.TemporaryDirectory() as scratch:
        if again:
            with ImageIndex.open(f"{scratch}/i.db") as index:
                index.ingest(folder)
            stages.begin()
        if held:
            stages.ended.append(held.look)
        with ImageIndex.open(f"{scratch}/i.db") as index:
            report = index.ingest(folder)
        table = stages.table()
    found: dict[str, Any] = {
        "images": report.seen, "images/s": report.images_per_second, "stages": table, "memory": stages.memory,
        "peak": peak(),
    }  # fmt: skip
    if held:
        found["held"] = held.table()
    return found


def wrap_what_it_makes(stages: Stages, module: object, attribute: str, names: dict[str, str]) -> None:
    """Make stages of the methods of whatever class a function returns an object of, once it does."""
    make, seen = getattr(module, attribute), set()

    def made(*arguments: Any, **options: Any) -> Any:
        thing = make(*arguments, **options)
        if type(thing) not in seen:
            seen.add(type(thing))
            for method, name in names.items():
                stages.wrap(name, type(thing), method)
        return thing

    setattr(module, attribute, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--stacks", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = alone(measured, str(options.folder), options.again, False)
    print(f"{result['images']} images, {result['images/s']:.1f} a second in {sys.version.split()[0]}")
    rows = dict(sorted(result["stages"].items(), key=lambda row: (row[0] == "in all", -row[1]["s"] - row[1]["CPU s"])))
    show("Seconds, on the clock of the main thread and of processors", ["s", "share", "CPU s", "share of CPU"], rows)
    memory = {name: {"MB": size} for name, size in [*result["memory"].items(), ("at most", result["peak"])]}
    show("Memory in use when a stage last ended", ["MB"], memory)
    if not options.again:
        result["held"] = alone(measured, str(options.folder), False, True)["held"]
        show("Of it, held by Python and numpy when that was most", ["MB"], as_rows(result["held"], "MB"))
        work = f"from mg_milvus import ImageIndex\nwith ImageIndex.open({{!r}}) as i: i.ingest({str(options.folder)!r})"
        with tempfile.TemporaryDirectory() as scratch:
            stacks = recorded([sys.executable, "-c", work.format(f"{scratch}/i.db")], options.stacks)
        if stacks is None:
            print("\nNo samples: pip install py-spy")
        else:
            result["packages"], result["functions"] = by_package(stacks), by_function(stacks, "mg_milvus")
            show("Samples, by the innermost package", ["share"], as_rows(result["packages"], "share"))
            show("Samples, by what of mg_milvus was running", ["share"], as_rows(result["functions"], "share"))
    if options.json:
        write_result(options.json, result)


def as_rows(figures: dict[str, float], column: str, most: int = 15) -> dict[str, dict[str, float]]:
    """The first of them, as ``show`` has them."""
    return {name: {column: value} for name, value in list(figures.items())[:most]}


if __name__ == "__main__":
    main()
