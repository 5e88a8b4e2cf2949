"""Whether hash heads are worth it, stay right when a collection grows, and how much they depend on chance.

    python benchmarks/heads.py corel1k tiny-imagenet/val [--most 1000] [--json FILE]

Each folder holds class/image or group/class/image; at most ``--most`` images of at most ``CLASSES`` classes are
encoded once. Heads are fitted as an ingest fits them. mAP of classes, expectation inside ties; ``coarse``, ``mid``,
and fused by score with the default weights.

- floats: the features by cosine, and with augmentation and query expansion; codes against the better of both, with the
  95 % interval of the difference over the queries. ``leave-one-out``: the queries are the database that the heads were
  fitted on. ``split``: heads and database of one half of each class, queries of the other.
- growth: heads fitted on half of the classes, then all classes in the index: mAP of the new ones, against heads fitted
  again, the shipped ones and features; and the share of images that are far, of old classes (unseen) and of new.
- stability: bits that flip, and mAP, for another order of the sample, other starts of clusters and rotations, copies of
  one image, constant features, and fewer images than bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from result_file import write_result

from mg_milvus.encoder import hash_heads
from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.encoded import encode_labelled
from mg_milvus.evaluation.labels import Labelled, read_labelled
from mg_milvus.evaluation.protocols import Split
from mg_milvus.evaluation.scoring import (
    SMOOTHED,
    Recipe,
    Scores,
    compare,
    float_rankings,
    graded,
    interval,
    score_all,
    score_codes,
    smoothed_rankings,
)
from mg_milvus.schema.models import Schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from mg_milvus.encoder.base import Encoder, Features

CLASSES = 40
BITS = dict(Schema().bits)
RECIPE = {"score": Recipe("score", dict(Schema().weights))}
NAMES = ("coarse", "mid", "fused:score")
ROUNDS = 3


def sample(images: Labelled, most: int) -> Labelled:
    """At most ``most`` images of at most ``CLASSES`` classes."""
    random = np.random.default_rng(3)
    assert images.classes
    ids = images.classes.ids()
    rows = np.flatnonzero(np.isin(ids, random.permutation(np.unique(ids))[:CLASSES]))
    return images.subset(np.sort(random.permutation(rows)[:most]))


class Set:
    """Labelled images with their features."""

    def __init__(self, folder: Path, encoder: Encoder, most: int) -> None:
        encoded = encode_labelled(sample(read_labelled(folder), most), encoder)
        self.name, self.images, self.encoder = folder.name, encoded.labelled, encoder
        self.features = {name: values.astype(np.float32) for name, values in encoded.features.items() if name in BITS}
        assert self.images.classes
        self.labels = self.images.classes.ids()

    def taken(self, rows: Any) -> Features:
        return {name: values[rows] for name, values in self.features.items()}

    def split(self, queries: Any, database: Any) -> Split:
        return Split("", self.images, np.asarray(queries), np.asarray(database))

    def codes(self, encoder: Encoder, split: Split) -> dict[str, Scores]:
        sides = encoder.codes(self.taken(split.queries)), encoder.codes(self.taken(split.database))
        return score_codes(*sides, graded(split), RECIPE)

    def floats(self, split: Split) -> dict[str, Scores]:
        shape = len(split.queries), len(split.database)
        queries, database = self.taken(split.queries), self.taken(split.database)
        plain = score_all(shape, float_rankings(queries, database), graded(split), "")
        best = max(plain, key=lambda name: plain[name].ranking.map)
        smoothed = score_all(shape, smoothed_rankings(queries[best], database[best]), graded(split), "")
        return {"float": plain[best], "float_smoothed": smoothed[SMOOTHED]}


def figures(scores: dict[str, Scores]) -> dict[str, Any]:
    shown = {name: own.ranking for name, own in scores.items() if name in {*NAMES, "float", "float_smoothed"}}
    return {
        name: {
            "map": round(own.map, 4),
            "interval": [round(end, 4) for end in interval(own.average_precisions)],
        }
        for name, own in shown.items()
    }


def halves(labels: np.ndarray) -> np.ndarray:
    """(n,) bool: a random half of each class."""
    random, first = np.random.default_rng(2), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        first[rows[: len(rows) // 2]] = True
    return first


def against_floats(own: Set) -> dict[str, Any]:
    every, first = np.arange(len(own.labels)), halves(own.labels)
    protocols = {
        "leave-one-out": own.split(every, every),
        "split": own.split(np.flatnonzero(~first), np.flatnonzero(first)),
    }
    found: dict[str, Any] = {}
    for name, split in protocols.items():
        codes = own.codes(own.encoder.adapted(own.taken(split.database), BITS), split)
        floats = own.floats(split)
        found[name] = figures(codes) | figures(floats) | {"compared": compare(codes, floats)}
        found[name]["of the better floats"] = round(
            codes["fused:score"].ranking.map / max(one.ranking.map for one in floats.values()), 4
        )
    return found


def growth(own: Set) -> dict[str, Any]:
    random, classes = np.random.default_rng(0), np.unique(own.labels)
    old = np.isin(own.labels, random.permutation(classes)[: len(classes) // 2])
    fitted_on = old & (random.random(len(old)) < 0.7)
    split = own.split(np.flatnonzero(~old), np.arange(len(old)))
    grown = own.encoder.adapted(own.taken(np.flatnonzero(fitted_on)), BITS)
    encoders = {
        "heads of the old classes": grown,
        "shipped heads": own.encoder.with_bits(BITS),
        "fitted again": own.encoder.adapted(own.features, BITS),
    }
    found: dict[str, Any] = {name: figures(own.codes(encoder, split)) for name, encoder in encoders.items()}
    found["features"] = figures(own.floats(split))
    head = grown.state.heads["coarse"]
    parts = {"old classes, unseen": old & ~fitted_on, "new classes": ~old}
    far = head.is_far(own.features["coarse"])
    found["far"] = {name: round(float(far[rows].mean()), 3) for name, rows in parts.items()}
    return found


def stability(own: Set) -> dict[str, Any]:
    """Variant -> granularity -> share of bits that flip, and mAP; the mean over ``ROUNDS`` where it is random."""
    every = np.arange(len(own.labels))
    split = own.split(every, every)
    first = own.encoder.adapted(own.features, BITS)
    known = first.codes(own.features)
    found: dict[str, Any] = {}

    def add(name: str, fits: list[Callable[[], Encoder]]) -> None:
        rows = []
        for fit in fits:
            encoder = fit()
            codes, scores = encoder.codes(own.features), own.codes(encoder, split)
            for granularity in BITS:
                flipped = np.bitwise_count(codes[granularity] ^ known[granularity]).sum() / known[granularity].size / 8
                rows.append((granularity, float(flipped), scores[granularity].ranking.map))
        found[name] = {
            granularity: {
                "flipped": round(float(np.mean([r[1] for r in rows if r[0] == granularity])), 4),
                "map": round(float(np.mean([r[2] for r in rows if r[0] == granularity])), 4),
                "deviation": round(float(np.std([r[2] for r in rows if r[0] == granularity])), 4),
            }
            for granularity in BITS
        }

    def fitted(features: Features) -> Callable[[], Encoder]:
        return lambda: own.encoder.adapted(features, BITS)

    def seeded(seed: int) -> Callable[[], Encoder]:
        def fit() -> Encoder:
            before = hash_heads._SEED, hash_heads._CLUSTER_SEED
            hash_heads._SEED, hash_heads._CLUSTER_SEED = before[0] + seed, before[1] + seed
            try:
                return own.encoder.adapted(own.features, BITS)
            finally:
                hash_heads._SEED, hash_heads._CLUSTER_SEED = before

        return fit

    orders = [np.random.default_rng(seed).permutation(every) for seed in range(ROUNDS)]
    add("as it is", [lambda: first])
    add("another order, were it not fixed", [fitted(own.taken(order)) for order in orders])
    add("other starts", [seeded(seed) for seed in range(1, ROUNDS + 1)])
    copies = np.concatenate([orders[0], np.full(len(every), orders[0][0])])
    add("half of them one image, were copies not left out", [fitted(own.taken(copies))])
    add("100 images", [fitted(own.taken(order[:100])) for order in orders])
    add("50 images, fewer than bits", [fitted(own.taken(order[:50])) for order in orders])
    constant = {name: values.copy() for name, values in own.features.items()}
    for values in constant.values():
        values[:, : values.shape[1] // 2] = values[0, : values.shape[1] // 2]
    add("fitted on features half of which are constant", [fitted(constant)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--most", type=int, default=1000, help="images of each folder")
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder, result = load_encoder(options.encoder), {}
    for folder in options.folders:
        own = Set(folder, encoder, options.most)
        result[own.name] = {"floats": against_floats(own), "growth": growth(own), "stability": stability(own)}
        for part, rows in result[own.name].items():
            for name, row in rows.items():
                print(f"{own.name:10} {part:10} {name}: {row}", flush=True)
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
