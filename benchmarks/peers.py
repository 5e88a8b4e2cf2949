"""mg-milvus beside what people would use instead: the same images, the same machine, one run.

    make peers                                 # an environment with imagededup, FAISS and ranx
    build/peers/bin/python benchmarks/peers.py FOLDER [--rows 100000] [--images 1000] [--json FILE]

FOLDER holds class/image. The parts, each in a module of ``side_by_side/``: near-duplicates against imagededup; Milvus
Lite with the float features of the same network; FAISS on the same codes; fusion against ranx and Milvus' rankers.
Other codes of the same bytes are in ``equal_bytes.py``. Everything that is timed against another takes turns with it.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from result_file import write_result
from side_by_side import copies, floats, fusing, searches
from side_by_side.measuring import show

from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.encoded import encode_labelled
from mg_milvus.evaluation.labels import read_labelled
from mg_milvus.schema.models import Schema

PARTS = ("copies", "floats", "searches", "fusion")
FLOATS = "mid"
"""The granularity whose float features rank photographs best (benchmarks/quality.py)."""


class Images:
    """A labelled folder, encoded once: paths, labels, float features, the encoder fitted to it, codes."""

    def __init__(self, folder: Path) -> None:
        self.labelled = read_labelled(folder)
        if self.labelled.classes is None:
            raise SystemExit(f"{folder} holds no folders of images, which are the labels")
        self.labels = [own[0] for own in self.labelled.classes.members]
        self.paths = [Path(found.path) for found in self.labelled.images]
        self.schema = Schema()
        self.base = load_encoder("builtin")

    @cached_property
    def features(self) -> dict[str, Any]:
        encoded = encode_labelled(self.labelled, self.base)
        if encoded.failures:
            raise SystemExit(f"{encoded.failures[0].path} cannot be read: {encoded.failures[0].reason}")
        return encoded.features

    @cached_property
    def encoder(self) -> Any:
        return self.base.adapted(self.features, self.schema.bits)

    @cached_property
    def codes(self) -> dict[str, Any]:
        return self.encoder.codes({name: self.features[name] for name in self.schema.bits})


def near_duplicates(images: Images, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    found = copies.compare(images.paths[: options.images], work)
    columns = ["images/s", "search s", "recall", "precision", "peak_mb"]
    show("Near-duplicates among images and one edited copy of each", columns, found)
    return {"copies": found}


def float_vectors(images: Images, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    found = floats.compare(images.features[FLOATS], images.codes, images.schema, work, options.rows)
    columns = ["rows/s", "query ms", "disk bytes", "memory bytes"]
    show(f"Milvus Lite, {options.rows} rows in batches of {floats.BATCH}", columns, found)
    return {"floats": found}


def bare_searches(images: Images, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    random = np.random.default_rng(0)
    many = {name: floats.repeated_codes(values, options.rows, random) for name, values in images.codes.items()}
    binary = floats.Binary(work / "floor.db", images.schema)
    for part in floats.batches(options.rows):
        binary.insert(part.start, {name: values[part] for name, values in many.items()})
    floor = searches.faiss_floor(many, images.schema, binary.store)
    binary.store.close()
    columns = ["FAISS flat ms", "FAISS HNSW ms", "HNSW recall@10", "Milvus Lite ms"]
    show(f"One search for 100 among {options.rows} codes", columns, floor)
    return {"faiss": floor}


def fusion(images: Images, work: Path, _: argparse.Namespace) -> dict[str, Any]:
    alone = {name: {"ms": value} for name, value in fusing.fusion_alone(images.schema).items()}
    show("Fusion of 3 x 1,000 candidates", ["ms"], alone)
    found = fusing.rankers(images.schema, images.codes, images.labels, work)
    show("Queries to Milvus Lite, fused", ["query ms", "precision@10"], found)
    return {"fusion": alone, "rankers": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="rows in Milvus Lite, repeated from the images")
    parser.add_argument("--images", type=int, default=1000, help="images that get an edited copy")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    images = Images(options.folder)
    tools = ("pymilvus", "milvus-lite", "torch", "imagededup", "faiss-cpu", "ranx")
    figures: dict[str, Any] = {"rows": options.rows, "versions": {name: version(name) for name in tools}}
    works = dict(zip(PARTS, (near_duplicates, float_vectors, bare_searches, fusion), strict=True))
    for name in options.only:
        with tempfile.TemporaryDirectory() as work:
            figures |= works[name](images, Path(work), options)
    if options.json:
        write_result(options.json, figures)


if __name__ == "__main__":
    main()
