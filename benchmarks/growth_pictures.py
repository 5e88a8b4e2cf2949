"""Does an ingest of real pictures slow down, or need more memory, when there are more of them?

    python benchmarks/growth_pictures.py PICTURES [--counts 300,1000] [--json FILE]

So many pictures of a folder go into a new Milvus Lite file by ``ImageIndex.ingest``, heads adapted, each number in a
process of its own: pictures a second, fitting included, and peak memory. Then the same again, with nothing to do, and
with ten pictures that are new.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from painted_scenes import KINDS
from result_file import write_result
from side_by_side.measuring import alone, show

from mg_milvus import ImageIndex
from mg_milvus.images.discover import discover, text_path


def linked(pictures: Path, count: int, folder: Path) -> None:
    """The first so many pictures, in the order of their paths, under names of their own."""
    found = sorted(own.path for own in discover([pictures], lambda _: None))[:count]
    if len(found) < count:
        raise SystemExit(f"{pictures} holds {len(found)} pictures, {count} were asked for")
    for number, path in enumerate(found):
        source = text_path(path)
        (folder / f"{number:07}{source.suffix}").symlink_to(source.resolve())


def ingested(pictures: Path, count: int) -> dict[str, Any]:
    """Figures of an ingest of so many."""
    with TemporaryDirectory() as scratch:
        folder, file = Path(scratch) / "pictures", Path(scratch) / "growth.db"
        folder.mkdir()
        linked(pictures, count, folder)
        with ImageIndex.open(file) as index:
            first = index.ingest(folder)
            if first.added != count:
                raise RuntimeError(f"{first.added} of {count} were added")
            again = index.ingest(folder)
            for name, paint in KINDS.items():
                paint(random.Random(name)).save(folder / f"new-{name}.jpg")
            more = index.ingest(folder)
            if (again.unchanged, more.added) != (count, len(KINDS)):
                raise RuntimeError(f"{again.unchanged} unchanged and {more.added} added")
        return {
            "pictures/s": count / first.seconds,
            "nothing new, s": again.seconds,
            "ten new, s": more.seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--counts", default="300,1000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = {}
    for count in map(int, options.counts.split(",")):
        table[f"{count:,}"] = alone(ingested, options.pictures, count)
        print(count, table[f"{count:,}"], flush=True)
    show("pictures", list(next(iter(table.values()))), table)
    if options.json:
        write_result(options.json, table)


if __name__ == "__main__":
    main()
