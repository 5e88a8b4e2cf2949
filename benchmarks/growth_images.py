"""Does an ingest of real images slow down, or need more memory, when there are more of them?

    python benchmarks/growth_images.py IMAGES [--counts 300,1000] [--json FILE]

So many images of a folder go into a new Milvus Lite file by ``ImageIndex.ingest``, heads adapted, each number in a
process of its own: images a second, fitting included, and peak memory. Then the same again, with nothing to do, and
with ten images that are new.
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

from mg_milvus.images.discover import discover, text_path
from mg_milvus.index import ImageIndex


def linked(images: Path, count: int, folder: Path) -> None:
    """The first so many images, in the order of their paths, under names of their own."""
    found = sorted(own.path for own in discover([images], lambda _: None))[:count]
    if len(found) < count:
        raise SystemExit(f"{images} holds {len(found)} images, {count} were asked for")
    for number, path in enumerate(found):
        source = text_path(path)
        (folder / f"{number:07}{source.suffix}").symlink_to(source.resolve())


def ingested(images: Path, count: int) -> dict[str, Any]:
    """Figures of an ingest of so many."""
    with TemporaryDirectory() as scratch:
        folder, file = Path(scratch) / "images", Path(scratch) / "growth.db"
        folder.mkdir()
        linked(images, count, folder)
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
            "images/s": count / first.seconds,
            "nothing new, s": again.seconds,
            "ten new, s": more.seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--counts", default="300,1000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = {}
    for count in map(int, options.counts.split(",")):
        table[f"{count:,}"] = alone(ingested, options.images, count)
        print(count, table[f"{count:,}"], flush=True)
    show("images", list(next(iter(table.values()))), table)
    if options.json:
        write_result(options.json, table)


if __name__ == "__main__":
    main()
