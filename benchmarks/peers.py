"""mg-milvus beside what people would use instead: the same images, the same machine, one run.

    make peers                                 # an environment with what benchmarks/peers.txt names
    build/peers/bin/python benchmarks/peers.py FOLDER [--rows 100000] [--images 1000] [--json FILE]

FOLDER holds class/image; at most ``--images`` images of at most 40 classes are taken. The parts, each in a module of
``side_by_side/``: near-duplicates against imagededup; indexes of Milvus Lite, SQLite, hnswlib, FAISS and USearch with
floats and codes of the same network; fusion against ranx and Milvus' rankers. Other codes of the same bytes are in
``equal_bytes.py``. Everything that is timed against another takes turns with it.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
from heads import sample
from result_file import write_result
from side_by_side import copies, fusing, searches
from side_by_side.measuring import show

from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.encoded import encode_labelled
from mg_milvus.evaluation.labels import read_labelled
from mg_milvus.schema.models import Schema

PARTS = ("copies", "searches", "fusion")


class Images:
    """Images of a labelled folder, encoded once: paths, labels, float features, the encoder fitted to them, codes."""

    def __init__(self, folder: Path, most: int) -> None:
        labelled = read_labelled(folder)
        if labelled.classes is None:
            raise SystemExit(f"{folder} holds no folders of images, which are the labels")
        self.labelled = sample(labelled, most)
        self.paths = [Path(found.path) for found in self.labelled.images]
        self.schema = Schema()
        self.base = load_encoder("builtin")

    @cached_property
    def labels(self) -> Any:
        assert self.labelled.classes
        return self.labelled.classes.ids()

    @cached_property
    def features(self) -> dict[str, Any]:
        encoded = encode_labelled(self.labelled, self.base)
        if encoded.failures:
            raise SystemExit(f"{encoded.failures[0].path} cannot be read: {encoded.failures[0].reason}")
        return {name: encoded.features[name] for name in self.schema.bits}

    @cached_property
    def encoder(self) -> Any:
        return self.base.adapted(self.features, self.schema.bits)


def near_duplicates(images: Images, work: Path, _: int) -> dict[str, Any]:
    found = copies.compare(images.paths, work)
    columns = ["encoding ms", "search s", "recall", "precision", "peak_mb"]
    show("Near-duplicates among images and one edited copy of each", columns, found)
    return {"copies": found}


def indexes(images: Images, work: Path, rows: int) -> dict[str, Any]:
    found = searches.compare(
        *searches.of_images(images.features, images.encoder), images.labels, images.schema, work, rows
    )
    columns = [*searches.RATIOS, "recall@10", "mAP"]
    show(f"{rows:,} rows, {found['dimensions']:,} floats or codes", columns, found["systems"])
    show("Of mg-milvus", list(searches.RATIOS), found["over mg-milvus"])
    return {"searches": found}


def fusion(images: Images, work: Path, _: int) -> dict[str, Any]:
    alone = {name: {"ms": value} for name, value in fusing.fusion_alone(images.schema).items()}
    show("Fusion of 3 x 1,000 candidates", ["ms"], alone)
    found = fusing.rankers(images.schema, images.encoder.codes(images.features), images.labels, work)
    show("Queries to Milvus Lite, fused", ["query ms", "precision@10"], found)
    return {"fusion": alone, "rankers": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of an index, repeated from the images")
    parser.add_argument("--images", type=int, default=1000, help="images of the folder; each gets an edited copy, too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    images = Images(options.folder, options.images)
    figures: dict[str, Any] = {}
    works = dict(zip(PARTS, (near_duplicates, indexes, fusion), strict=True))
    for name in options.only:
        with tempfile.TemporaryDirectory() as work:
            figures |= works[name](images, Path(work), options.rows)
    if options.json:
        write_result(options.json, figures)


if __name__ == "__main__":
    main()
