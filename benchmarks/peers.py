"""mg-milvus beside what people would use instead: the same pictures, the same machine, one run.

    make peers                                 # an environment with imagededup, FAISS and ranx
    build/peers/bin/python benchmarks/peers.py FOLDER [--rows 100000] [--pictures 1000] [--json FILE]

FOLDER holds class/picture. The parts, each in a module of ``side_by_side/``: near-duplicates against imagededup; Milvus
Lite with the float features of the same network; other codes of the same bytes; FAISS on the same codes; fusion against
ranx and Milvus' rankers. Everything that is timed against another takes turns with it.
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
from side_by_side import codes as other_codes
from side_by_side import copies, floats, fusing
from side_by_side.measuring import show

from mg_milvus import Schema, load_encoder
from mg_milvus.evaluation.encoded import encode_labelled
from mg_milvus.labels import read_labelled

PARTS = ("copies", "floats", "codes", "fusion")
FLOATS = "mid"
"""The granularity whose float features rank photographs best (benchmarks/quality.py)."""
COPIES = 200
"""Pictures whose edited copy is looked for with every kind of code."""


class Pictures:
    """A labelled folder, encoded once: paths, labels, float features, the encoder fitted to it, codes."""

    def __init__(self, folder: Path) -> None:
        self.labelled = read_labelled(folder)
        if self.labelled.classes is None:
            raise SystemExit(f"{folder} holds no folders of pictures, which are the labels")
        self.labels = [own[0] for own in self.labelled.classes.members]
        self.paths = [Path(found.path) for found in self.labelled.pictures]
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


def near_duplicates(pictures: Pictures, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    found = copies.compare(pictures.paths[: options.pictures], work)
    columns = ["pictures/s", "search s", "recall", "precision", "peak_mb"]
    show("Near-duplicates among pictures and one edited copy of each", columns, found)
    return {"copies": found}


def float_vectors(pictures: Pictures, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    found = floats.compare(pictures.features[FLOATS], pictures.codes, pictures.schema, work, options.rows)
    columns = ["rows/s", "question ms", "disk bytes", "memory bytes"]
    show(f"Milvus Lite, {options.rows} rows in batches of {floats.BATCH}", columns, found)
    return {"floats": found}


def same_bytes(pictures: Pictures, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    centre = pictures.features[FLOATS].mean(axis=0)
    coded = other_codes.Coded(pictures.encoder, FLOATS, pictures.schema, centre)
    found = other_codes.compare(coded, pictures.labels, pictures.paths, COPIES)
    show("Codes of the same bytes", ["bytes", "mAP", "copies recall@1"], found)

    random = np.random.default_rng(0)
    many = {name: floats.repeated_codes(values, options.rows, random) for name, values in pictures.codes.items()}
    binary = floats.Binary(work / "floor.db", pictures.schema)
    for part in floats.batches(options.rows):
        binary.insert(part.start, {name: values[part] for name, values in many.items()})
    floor = other_codes.faiss_floor(many, pictures.schema, binary.store)
    binary.store.close()
    columns = ["FAISS flat ms", "FAISS HNSW ms", "HNSW recall@10", "Milvus Lite ms"]
    show(f"One search for 100 among {options.rows} codes", columns, floor)
    return {"codes": found, "faiss": floor}


def fusion(pictures: Pictures, work: Path, _: argparse.Namespace) -> dict[str, Any]:
    alone = {name: {"ms": value} for name, value in fusing.fusion_alone(pictures.schema).items()}
    show("Fusion of 3 x 1,000 candidates", ["ms"], alone)
    found = fusing.rankers(pictures.schema, pictures.codes, pictures.labels, work)
    show("Questions to Milvus Lite, fused", ["question ms", "precision@10"], found)
    return {"fusion": alone, "rankers": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="rows in Milvus Lite, repeated from the pictures")
    parser.add_argument("--pictures", type=int, default=1000, help="pictures that get an edited copy")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pictures = Pictures(options.folder)
    tools = ("pymilvus", "milvus-lite", "torch", "imagededup", "faiss-cpu", "ranx")
    figures: dict[str, Any] = {"rows": options.rows, "versions": {name: version(name) for name in tools}}
    works = dict(zip(PARTS, (near_duplicates, float_vectors, same_bytes, fusion), strict=True))
    for name in options.only:
        with tempfile.TemporaryDirectory() as work:
            figures |= works[name](pictures, Path(work), options)
    if options.json:
        write_result(options.json, figures)


if __name__ == "__main__":
    main()
