"""Whether fusing loses anything: the default weights against the best single granularity, on several kinds of images.

    python benchmarks/fusion.py corel1k tiny-imagenet/val cifar10/test [--most 1500] [--json FILE]

Each folder holds class/image (or group/class/image). A random sample of its classes' images is encoded once; the heads
are fitted as an ingest fits them, for the code lengths of the presets, and for half of the images. Leave-one-out mAP.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from result_file import write_result

from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.encoded import encode_labelled
from mg_milvus.evaluation.labels import Labelled, read_labelled
from mg_milvus.evaluation.protocols import Split
from mg_milvus.evaluation.scoring import FUSED, ScoringOptions, graded, recipes_of, score_codes
from mg_milvus.schema.models import Schema

CLASSES = 60
LENGTHS = {"default": (64, 128, 256), "compact": (32, 48, 48), "double": (128, 256, 512)}


def sample(images: Labelled, most: int) -> Labelled:
    """At most ``most`` images of at most ``CLASSES`` classes."""
    random = np.random.default_rng(3)
    assert images.classes
    ids = images.classes.ids()
    kept = random.permutation(np.unique(ids))[:CLASSES]
    rows = np.flatnonzero(np.isin(ids, kept))
    return images.subset(np.sort(random.permutation(rows)[:most]))


def scores(images: Labelled, features: dict[str, Any], encoder: Any, lengths: tuple[int, ...]) -> dict[str, float]:
    schema = Schema()
    bits = dict(zip(schema.bits, lengths, strict=True))
    codes = encoder.adapted(features, bits).codes(features)
    rows = np.arange(len(images))
    relevance = graded(Split("leave-one-out", images, rows, rows))
    recipes = {name: own for name, own in recipes_of(schema).items() if name in {"rank", "score", "category"}}
    found = score_codes(codes, codes, relevance, recipes, ScoringOptions())
    return {name.removeprefix(FUSED): round(own.ranking.map, 4) for name, own in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--most", type=int, default=1500, help="images of each folder")
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder(options.encoder)
    result = {}
    for folder in options.folders:
        encoded = encode_labelled(sample(read_labelled(folder), options.most), encoder)
        images, features = encoded.labelled, encoded.features
        half = np.sort(np.random.default_rng(0).permutation(len(images))[: len(images) // 2])
        parts = {name: (images, features, lengths) for name, lengths in LENGTHS.items()}
        parts["half"] = images.subset(half), {name: own[half] for name, own in features.items()}, LENGTHS["default"]
        for name, (own, values, lengths) in parts.items():
            row = scores(own, dict(values), encoder, lengths)
            gain = row["rank"] - max(row[granularity] for granularity in ("coarse", "mid", "fine"))
            result[f"{folder.name}, {name}"] = row | {"gain": round(gain, 4)}
            print(f"{folder.name:10} {name:9}" + "".join(f" {key} {value:.4f}" for key, value in row.items()), end="")
            print(f" rank - best single {gain:+.4f}", flush=True)
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
