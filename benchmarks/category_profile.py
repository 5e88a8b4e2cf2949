"""The profiles beside each other on labelled sets: is ``category`` the best at categories on each?

    python benchmarks/category_profile.py corel1k c200 tiny-imagenet/val cifar10/test [--json FILE]

Each folder holds class/image or group/class/image; of at most 100 classes at most 1,000 images are taken, as by
verdicts.py. They are encoded once, the heads fitted to them as by an ingest; each image is a query by its real codes,
and the rest is ranked by rank fusion. The figures are leave-one-out mAP with the weights of each profile, and of some
that lie near to those of ``category``; of groups, where there are some, as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from result_file import write_result
from verdicts import sample

from mg_milvus.codes import in_steps, pack, weighted_hamming
from mg_milvus.encoder.load import load_encoder
from mg_milvus.schema.models import PROFILES, Schema
from mg_milvus.search.fusion import DEFAULT_RRF_K, shared_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

BATCH = 64
NEAR = {
    f"coarse {coarse:g}, mid 1, fine {fine:g}": {"coarse": coarse, "mid": 1.0, "fine": fine}
    for coarse, fine in ((1, 0.1), (2, 0.1), (3, 0.1), (4, 0.1), (6, 0.1), (2.5, 0.25), (2.5, 0.5))
}  # fmt: skip
"""Weights beside those of ``category``, to see how much hangs on them."""


def ranks_of(files: list[Path]) -> dict[str, NDArray[np.float64]]:
    """Granularity -> (n, n) ranks of all images for each as the query, itself far behind."""
    encoder, features = load_encoder(), []
    for start in range(0, len(files), BATCH):
        pixels = []
        for file in files[start : start + BATCH]:
            with Image.open(file) as image:
                pixels.append(encoder.prepare(image.convert("RGB")))
        features.append(encoder.features(pixels))
    joined = {name: np.concatenate([own[name] for own in features]) for name in features[0]}
    encoder = encoder.adapted(joined, Schema().bits)
    ranks = {}
    for name, real in encoder.real_codes(joined).items():
        distances = weighted_hamming(in_steps(real), pack(real))
        np.fill_diagonal(distances, np.inf)
        ranks[name] = np.array([shared_ranks(row) for row in distances])
    return ranks


def mean_precision(
    ranks: Mapping[str, NDArray[np.float64]], labels: NDArray[np.str_], weights: Mapping[str, float]
) -> float:
    """Leave-one-out mAP of rank fusion with these weights."""
    scores = np.zeros((len(labels), len(labels)))
    for name, weight in weights.items():
        scores += weight / (DEFAULT_RRF_K + ranks[name])
    np.fill_diagonal(scores, -1)
    found = []
    for own, label in zip(scores, labels, strict=True):
        relevant = (labels == label)[np.argsort(-own, kind="stable")[:-1]]
        places = np.flatnonzero(relevant) + 1
        if len(places):
            found.append(float((np.arange(1, len(places) + 1) / places).mean()))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, dict[str, float]] = {}
    for folder in options.folders:
        name = folder.parent.name if folder.name in {"train", "test", "val"} else folder.name
        with TemporaryDirectory() as place:
            to = Path(place)
            sample(folder, to)
            files = sorted(file for file in to.rglob("*") if file.is_file())
            ranks = ranks_of(files)
            nested = files[0].parent.parent != to
            labels = {name: np.array([str(file.parent) for file in files])}
            if nested:
                labels[f"{name}, groups"] = np.array([file.relative_to(to).parts[0] for file in files])
        for label, own in labels.items():
            result[label] = {
                way: round(mean_precision(ranks, own, weights), 4) for way, weights in {**PROFILES, **NEAR}.items()
            }
            print(f"{label} ({len(files)} images)", *(f"  {way:30} {v:.4f}" for way, v in result[label].items()),
                  sep="\n", flush=True)  # fmt: skip
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
