"""Fusions of the granularities beside the best single one, with intervals, on several kinds of images.

    python benchmarks/fusion.py corel1k c200 tiny-imagenet/val cifar10/test [--most 1000] [--json FILE]

Each folder holds class/image or group/class/image; at most ``--most`` images of at most 40 classes are encoded once,
and the heads fitted to them as an ingest fits them, for the code lengths of ``LENGTHS``. Leave-one-out mAP of queries
by their real codes, as in the product. With each way stand the differences to the best single granularity and to the
default (by rank), and their 95 % intervals over the queries; a difference whose interval holds 0 is called equal.

``z-scores``: Σ weight · (mean - distance) / deviation, of the query's distances. ``logistic``: a regression of the
three distances fitted to the labels of half of the queries, which is asked with the other half; what labels can give.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from heads import Set
from result_file import write_result
from sklearn.linear_model import LogisticRegression

from mg_milvus.codes import in_steps, pack, weighted_hamming
from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, SAME_CLASS, score_rankings
from mg_milvus.evaluation.scoring import interval
from mg_milvus.schema.models import PROFILES, Schema
from mg_milvus.search.chance import Chance
from mg_milvus.search.fusion import DEFAULT_RRF_K, Fusion, fuse, shared_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Distances = Mapping[str, NDArray[np.float64]]

LENGTHS = {"default": (64, 128, 256), "compact": (32, 48, 48), "double": (128, 256, 512)}
WEIGHTS = dict(Schema().weights)
DEFAULT, LEARNED = "rank", "logistic, other half"
PAIRS = 200_000


def distances_of(own: Set, bits: Mapping[str, int]) -> Distances:
    """Granularity -> (n, n) distances in bits of codes, the rows, to real codes, the queries."""
    real = own.encoder.adapted(own.features, bits).real_codes({name: own.features[name] for name in bits})
    return {name: weighted_hamming(in_steps(values), pack(values)) for name, values in real.items()}


def fused(distances: Distances, bits: Mapping[str, int], weights: Mapping[str, float], fusion: Fusion) -> Any:
    """(n, n), smaller is nearer: what the product's fusion makes of all rows."""
    rows = len(next(iter(distances.values())))
    ids = [f"{row:08}" for row in range(rows)]
    every = [
        fuse(ids, {name: own[row] for name, own in distances.items()}, bits=bits, weights=weights, fusion=fusion).scores
        for row in range(rows)
    ]
    return -np.round(every, 12)


def logistic(distances: Distances, bits: Mapping[str, int], same: NDArray[np.bool_], learn: NDArray[np.bool_]) -> Any:
    """(n, n), smaller is nearer: by a regression on the pairs of some queries with all rows."""
    terms = np.stack([own / bits[name] for name, own in distances.items()], axis=-1)
    others = ~np.eye(len(same), dtype=bool)[learn]
    x, y = terms[learn][others], same[learn][others]
    chosen = np.random.default_rng(0).permutation(len(y))[:PAIRS]
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x[chosen], y[chosen])
    return -(terms @ model.coef_[0])


def ways(distances: Distances, bits: Mapping[str, int], same: NDArray[np.bool_], learn: NDArray[np.bool_]) -> Any:
    """Name -> (n, n), smaller is nearer."""
    counts = {
        n: np.bincount(np.rint(d[~np.eye(len(d), dtype=bool)]).astype(int), minlength=bits[n] + 1)
        for n, d in distances.items()
    }
    chance = Chance("", len(same), counts)
    ranks = [np.array([shared_ranks(row) for row in own]) for own in distances.values()]
    z = [WEIGHTS[n] * (d - d.mean(1, keepdims=True)) / d.std(1, keepdims=True) for n, d in distances.items()]
    rank = Fusion("rank", DEFAULT_RRF_K)
    return {
        **distances,
        "concatenated bits": np.sum(list(distances.values()), axis=0),
        "least rank": np.min(ranks, axis=0),
        DEFAULT: fused(distances, bits, WEIGHTS, rank),
        **{profile: fused(distances, bits, PROFILES[profile], rank) for profile in ("object", "balanced")},
        "score": fused(distances, bits, WEIGHTS, Fusion("score")),
        "chance": fused(distances, bits, WEIGHTS, Fusion("chance", chance=chance)),
        "z-scores": np.sum(z, axis=0),
        LEARNED: logistic(distances, bits, same, learn),
    }


def table(own: Set, bits: Mapping[str, int]) -> dict[str, Any]:
    """Way -> mAP, and the differences with their intervals."""
    distances = distances_of(own, bits)
    same = own.labels[:, None] == own.labels[None]
    relevance = np.where(same, SAME_CLASS, 0).astype(np.uint8)
    np.fill_diagonal(relevance, NOT_A_CANDIDATE)
    learn = np.random.default_rng(1).random(len(same)) < 0.5
    precisions = {
        name: score_rankings([(near, relevance)]).average_precisions
        for name, near in ways(distances, bits, same, learn).items()
    }
    best = max(bits, key=lambda name: float(np.nanmean(precisions[name])))
    found: dict[str, Any] = {}
    for name, values in precisions.items():
        asked = ~learn if name == LEARNED else np.ones(len(learn), bool)
        row: dict[str, Any] = {"map": round(float(np.nanmean(values[asked])), 4)}
        for against, key in ((best, "best single"), (DEFAULT, "default")):
            difference = (values - precisions[against])[asked]
            low, high = interval(difference)
            row[key] = {
                "difference": round(float(np.nanmean(difference)), 4), "interval": [round(low, 4), round(high, 4)],
                "equal": low <= 0 <= high,
            }  # fmt: skip
        found[name] = row
    return {"best single": best, "ways": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--most", type=int, default=1000, help="images of each folder")
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder(options.encoder)
    result = {}
    for folder in options.folders:
        own = Set(folder, encoder, options.most)
        name = folder.parent.name if folder.name in {"train", "test", "val"} else folder.name
        for length, lengths in LENGTHS.items():
            found = table(own, dict(zip(Schema().bits, lengths, strict=True)))
            result[f"{name}, {length}"] = found
            print(f"\n{name}, {length}: {len(own.labels):,} images; the best single one is {found['best single']}")
            for way, row in found["ways"].items():
                ends = [f"{row[key]['difference']:+.4f} {row[key]['interval']}" for key in ("best single", "default")]
                print(f"{way:22}{row['map']:.4f}  {ends[0]:30}  {ends[1]}", flush=True)
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
