"""Coarse to fine: how fast a cascade is and how much of the full search's answer it keeps, on Milvus Lite.

    python benchmarks/cascade.py IMAGES QUERIES [--rows 10000 100000 1000000] [--queries 100] [--json FILE]

IMAGES and QUERIES are folders (tiny-imagenet's train and val). Up to 10,000 of the images are encoded; the rows are
mixtures of two of them each, three to one, in feature space, hashed by heads adapted to the images: codes that are
spread as those of real images are, as many as wanted. Full and cascade are asked in turn with the same queries,
equal weights and k = 10; ``kept`` is the share of the full search's ten that the cascade also names.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from result_file import write_result

from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import discover
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.session import keep_encoder
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import open_store

DEPTHS = (200, 500, 1000, 2000, 4000, 8000)
MOST, SHARE, BATCH = 10_000, 0.75, 5000


def features(folder: Path, count: int, encoder: Any) -> dict[str, np.ndarray]:
    found = sorted(discover([folder], lambda _: None), key=lambda own: own.path)
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    chunks = []
    for start in range(0, len(chosen), 256):
        images = [Image.open(found[row].path).convert("RGB") for row in chosen[start : start + 256]]
        chunks.append(encoder.features([encoder.prepare(image) for image in images]))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def mixed(own: dict[str, np.ndarray], start: int, count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(start + 1)
    size = len(next(iter(own.values())))
    first, second = random.integers(0, size, (2, count))
    made = {name: SHARE * values[first] + (1 - SHARE) * values[second] for name, values in own.items()}
    return {name: values / np.linalg.norm(values, axis=1, keepdims=True) for name, values in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    schema, base = Schema(), load_encoder()
    known = features(options.images, MOST, base)
    sample = {name: values[:5000] for name, values in known.items()}
    encoder = base.adapted(sample, schema.bits)
    asked = encoder.codes(features(options.queries, options.queries, base))
    result: dict[str, Any] = {}
    with TemporaryDirectory() as place:
        uri = str(Path(place) / "cascade.db")
        store = open_store(MilvusConfig(uri, collection=schema.collection))
        keep_encoder(store, encoder)
        store.create(Description(schema, encoder.fingerprint, 5000))
        there = 0
        for rows in sorted(options.rows):
            while there < rows:
                count = min(BATCH, rows - there)
                codes = encoder.codes(mixed(known, there, count))
                store.upsert([
                    Row(f"{there + i:032x}", f"/{there + i}.jpg", 1, 1, 64, 64, "0" * 32,
                        {name: values[i].tobytes() for name, values in codes.items()})
                    for i in range(count)
                ])  # fmt: skip
                there += count
            store.close()
            with ImageIndex.open(uri) as index:
                result[str(rows)] = compare(index, asked, rows)
            store = open_store(MilvusConfig(uri, collection=schema.collection))
        store.close()
    if options.json:
        write_result(options.json, result)


def compare(index: ImageIndex, asked: dict[str, np.ndarray], rows: int) -> dict[str, Any]:
    ways: list[tuple[str, dict[str, Any]]] = [("full, depth 100", {"plan": "full"})]
    ways += [(f"cascade, depth {depth}", {"plan": "cascade", "depth": depth}) for depth in DEPTHS if depth <= rows]
    taken: dict[str, list[float]] = {way: [] for way, _ in ways}
    kept: dict[str, list[float]] = {way: [] for way, _ in ways}
    for place in range(len(next(iter(asked.values())))):
        codes = {name: values[place] for name, values in asked.items()}
        full: set[str] = set()
        for way, how in ways:
            started = time.perf_counter()
            hits = index.query_codes(codes, k=10, **how)
            taken[way].append(1000 * (time.perf_counter() - started))
            names = {hit.id for hit in hits}
            full = full or names
            kept[way].append(len(names & full) / len(full))
    print(f"\n{rows:,} rows{'':14}{'ms, median':>12}{'95 %':>8}{'of full':>9}{'kept':>8}")
    found: dict[str, Any] = {}
    for way, _ in ways:
        middle, high = float(np.median(taken[way])), float(np.percentile(taken[way], 95))
        found[way] = {"ms": middle, "ms_95": high, "of_full": middle / float(np.median(taken["full, depth 100"]))}
        found[way]["kept"] = float(np.mean(kept[way]))
        print(f"{way:24}{middle:12.1f}{high:8.1f}{found[way]['of_full']:9.2f}{found[way]['kept']:8.3f}", flush=True)
    return found


if __name__ == "__main__":
    main()
