"""How well pictures of a class are found: leave-one-out mAP on a labelled folder, per granularity and fused.

    python benchmarks/quality.py FOLDER [--schema compact] [--sample 50] [--json FILE]

FOLDER holds class/picture. Every picture is asked against all others; those of its class are relevant. Ties are shared:
a picture's precision counts all pictures that are as near as it is. Four rows: heads adapted to the folder as an ingest
does it, the shipped heads as they are, and the float features of the same network by cosine, centred on the collection.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.encoder import load_encoder
from mg_milvus.fusion import shared_ranks
from mg_milvus.images.discover import discover
from mg_milvus.ingest import SAMPLE_SIZE, Settings, reservoir, sample_features
from mg_milvus.schema import PROFILES, Schema

if TYPE_CHECKING:
    from mg_milvus.codes import Codes


def average_precision(distances: np.ndarray, relevant: np.ndarray) -> float:
    """Average precision of one query; pictures at the same distance share the precision at the end of their tie."""
    order = np.argsort(distances, kind="stable")
    ordered, hits = distances[order], relevant[order]
    end = np.searchsorted(ordered, ordered, side="right")
    precision = np.cumsum(hits)[end - 1] / end
    return float((precision * hits).sum() / hits.sum())


def mean_average_precision(distances: np.ndarray, labels: np.ndarray) -> float:
    """Leave-one-out mAP of (n, n) distances."""
    others = ~np.eye(len(labels), dtype=bool)
    return float(
        np.mean([
            average_precision(row[other], (labels == label)[other])
            for row, label, other in zip(distances, labels, others, strict=True)
        ])
    )  # fmt: skip


def fused_distances(
    distances: dict[str, np.ndarray], weights: dict[str, float], method: str, schema: Schema
) -> np.ndarray:
    """Minus the fused score of every pair; a picture is no candidate for itself."""
    n = len(next(iter(distances.values())))
    scores = np.zeros((n, n))
    for name, weight in weights.items():
        if method == "score":
            scores += weight * (1 - distances[name] / schema.bits[name])
            continue
        others = np.where(np.eye(n, dtype=bool), np.iinfo(np.int32).max, distances[name])
        scores += weight / (schema.fusion.rrf_k + np.stack([shared_ranks(row) for row in others]))
    return -np.round(scores, 12)


def scores_of(codes: dict[str, Codes], labels: np.ndarray, schema: Schema) -> dict[str, float]:
    """mAP per granularity, fused by rank and by score with the schema's weights, and by rank with each profile."""
    distances = {name: hamming(values, values) for name, values in codes.items()}
    found = {name: mean_average_precision(values, labels) for name, values in distances.items()}
    for method in ("rank", "score"):
        fused = fused_distances(distances, schema.weights, method, schema)
        found[f"fused, {method}"] = mean_average_precision(fused, labels)
    for profile, weights in PROFILES.items():
        known = {name: weights[name] for name in distances}
        found[profile] = mean_average_precision(fused_distances(distances, known, "rank", schema), labels)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--schema", default="default", help="preset or file")
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--sample", type=int, default=SAMPLE_SIZE, help="pictures to fit the heads on, at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    schema, base = Schema.load(options.schema), load_encoder(options.encoder)

    files = list(discover([options.folder], print))
    chosen, _ = reservoir(files, max(SAMPLE_SIZE, len(files)))
    started = time.perf_counter()
    read, features = sample_features(chosen, base, Settings(), lambda _: None)
    encoded = time.perf_counter() - started
    labels = np.array([Path(p.found.path).parent.name for p in read if p.failure is None])

    started = time.perf_counter()
    sample = np.random.default_rng(0).permutation(len(labels))[: options.sample]
    adapted = base.adapted({name: values[sample] for name, values in features.items()}, schema.bits)
    fitted = time.perf_counter() - started
    rows = {
        "adapted heads": scores_of(adapted.codes(features), labels, schema),
        "shipped heads": scores_of(base.with_bits(schema.bits).codes(features), labels, schema),
    }
    floats = {}
    for name, values in features.items():
        centred = values - values.mean(axis=0)
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        floats[name] = mean_average_precision(-(centred @ centred.T), labels)
    rows["floats, cosine"] = floats

    columns = list(rows["adapted heads"])
    print(f"{len(labels)} pictures, {len(set(labels))} classes; {sum(schema.bits.values()) // 8} bytes a picture;")
    print(f"decoded and encoded in {encoded:.1f} s, heads fitted in {fitted:.1f} s\n")
    print(f"{'mAP':16}" + "".join(f"{column:>14}" for column in columns))
    for title, row in rows.items():
        print(f"{title:16}" + "".join(f"{row[c]:14.3f}" if c in row else f"{'':14}" for c in columns))
    if options.json:
        options.json.write_text(json.dumps({"pictures": len(labels), "schema": schema.bits, "map": rows}, indent=1))


if __name__ == "__main__":
    main()
