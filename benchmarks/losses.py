"""The losses of ``mgm train`` by our recipe and by those of their papers: does each learn, and how well?

    python benchmarks/losses.py CIFAR10/test [--epochs 100] [--seeds 3] [--bits 64] [--json FILE]

The folder holds class/image. Of each of at most ten classes 140 images are encoded once by the network that ships,
whose features stay as they are. A seed divides them: 60 of a class are learned from, 20 are queries, and 60 are the
database, which nothing was learned from. Both recipes learn one hash layer in the same number of passes over the same
features, as ``mgm train --freeze backbone`` does, but without variations of the images and without an early stop. The
seed also decides the first weights and the order of the images.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from result_file import write_result
from torch import nn

from mg_milvus.codes import pack
from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.encoded import encode_labelled
from mg_milvus.evaluation.labels import Labelled, read_labelled
from mg_milvus.evaluation.protocols import Split
from mg_milvus.evaluation.scoring import KS, ScoringOptions, float_rankings, graded, score_all, score_codes
from mg_milvus.training.config import PAPERS, TrainingConfiguration
from mg_milvus.training.losses import Objective
from mg_milvus.training.network import HashLayer, half_spaces
from mg_milvus.training.trainer import FeatureBatches, MovingAverage, optimizer_of, rate_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

CLASSES = 10
LEARNED, QUERIES, DATABASE = 60, 20, 60
"""Images of each class."""
RECIPES = ("ours", "paper")
MEASURES = {"map": "map", "within_radius_2": "precision_radius_2"}
LEVEL, NAME = "classes", "mid"


@dataclass(frozen=True)
class Parts:
    """Rows to learn from, rows that are queries, rows of the database."""

    learned: NDArray[np.intp]
    queries: NDArray[np.intp]
    database: NDArray[np.intp]


def sample(images: Labelled) -> Labelled:
    """``LEARNED + QUERIES + DATABASE`` images of each of the first ``CLASSES`` classes."""
    assert images.classes
    ids, random = images.classes.ids(), np.random.default_rng(0)
    each = LEARNED + QUERIES + DATABASE
    rows = [random.permutation(np.flatnonzero(ids == label))[:each] for label in np.unique(ids)[:CLASSES]]
    if (fewest := min(map(len, rows))) < each:
        raise SystemExit(f"a class has {fewest} images, expected at least {each} in each")
    return images.subset(np.sort(np.concatenate(rows)))


def divided(images: Labelled, seed: int) -> Parts:
    assert images.classes
    ids, random = images.classes.ids(), np.random.default_rng(seed)
    shuffled = [random.permutation(np.flatnonzero(ids == label)) for label in np.unique(ids)]
    ends = (0, LEARNED, LEARNED + QUERIES, LEARNED + QUERIES + DATABASE)
    return Parts(*(
        np.sort(np.concatenate([rows[start:end] for rows in shuffled])) for start, end in pairwise(ends)
    ))  # fmt: skip


def learn(
    settings: TrainingConfiguration, features: NDArray[np.float32], labels: NDArray[np.bool_]
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """The state of a hash layer before and after it has learned from features (n, d) and labels (n, classes)."""
    torch.manual_seed(settings.seed)
    network = nn.Module()
    network.heads = nn.ModuleDict({NAME: HashLayer(features.shape[1], settings.bits[NAME], settings.hash_layer)})
    objective = Objective(settings, {LEVEL: labels.shape[1]})
    optimizer = optimizer_of([], [*network.parameters(), *objective.parameters()], settings.optimisation)
    average = MovingAverage(network, settings.optimisation.average)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    views, targets = features.astype(np.float16)[:, None], torch.from_numpy(labels).float()
    step = 0
    for epoch in range(settings.epochs):
        batches = FeatureBatches(
            np.arange(len(views)), views, settings.optimisation.batch, settings.seed * 1000 + epoch
        )
        for batch in batches:
            progress = step / (settings.epochs * len(batches))
            objective.step(progress)
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * rate_at(progress, settings.optimisation)
            optimizer.zero_grad(set_to_none=True)
            codes = {NAME: network.heads[NAME](batch.views[0])}
            torch.stack(list(objective(codes, {}, {LEVEL: targets[batch.rows]}).values())).sum().backward()
            if settings.optimisation.clip is not None:
                nn.utils.clip_grad_norm_([*network.parameters(), *objective.parameters()], settings.optimisation.clip)
            optimizer.step()
            average.update(network, step)
            step += 1
    return first, average.weights


def scores(state: Mapping[str, torch.Tensor], features: NDArray[np.float32], split: Split) -> dict[str, float]:
    projection, threshold = half_spaces(state, NAME)
    codes = pack(features @ projection.T > threshold)
    found = score_codes({NAME: codes[split.queries]}, {NAME: codes[split.database]}, graded(split), {})
    own = found[NAME].as_dict(KS)
    return {name: own[key] for name, key in MEASURES.items()}


def float_map(features: NDArray[np.float32], split: Split) -> float:
    """mAP of the features themselves, by cosine."""
    queries, database = {NAME: features[split.queries]}, {NAME: features[split.database]}
    shape = (len(split.queries), len(split.database))
    found = score_all(shape, float_rankings(queries, database), graded(split), "scoring floats", ScoringOptions())
    return next(iter(found.values())).ranking.map


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over the seeds."""
    return {"mean": round(float(np.mean(values)), 4), "deviation": round(float(np.std(values, ddof=1)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.process_time()
    images = sample(read_labelled(options.folder))
    encoded = encode_labelled(images, load_encoder("builtin"))
    if encoded.failures:
        raise SystemExit(f"{encoded.failures[0].path} cannot be read: {encoded.failures[0].reason}")
    assert images.classes
    features, labels = encoded.features[NAME].astype(np.float32), images.classes.one_hot()
    print(f"{len(images)} images, {options.bits} bits, {options.epochs} epochs, {options.seeds} seeds")
    found: dict[str, dict[str, Any]] = {recipe: {} for recipe in RECIPES}
    parts = [divided(images, seed) for seed in range(options.seeds)]
    splits = [Split("losses", images, part.queries, part.database) for part in parts]
    floats = [float_map(features, split) for split in splits]
    print(f"floats by cosine: mAP {np.mean(floats):.3f} ± {np.std(floats, ddof=1):.3f}")
    for recipe in RECIPES:
        for loss in PAPERS:
            runs: list[dict[str, float]] = []
            for seed, (part, split) in enumerate(zip(parts, splits, strict=True)):
                settings = TrainingConfiguration.of({
                    "recipe": recipe, "supervised": loss, "seed": seed, "bits": {NAME: options.bits},
                    "phases": [{"epochs": options.epochs, "sides": [224]}],
                }).with_recipe()  # fmt: skip
                before, after = learn(settings, features[part.learned], labels[part.learned])
                own = scores(after, features, split)
                runs.append(own | {"map_before": scores(before, features, split)["map"]})
            row = {name: spread([run[name] for run in runs]) for name in runs[0]}
            found[recipe][loss] = row
            told = "  ".join(f"{name} {own['mean']:.3f} ± {own['deviation']:.3f}" for name, own in row.items())
            print(f"{recipe:6}{loss:12}{told}   ({time.process_time() - started:.0f} s of a processor)", flush=True)
    if options.json:
        result = {
            "images": {"learned": LEARNED * CLASSES, "queries": QUERIES * CLASSES, "database": DATABASE * CLASSES},
            "bits": options.bits, "epochs": options.epochs, "seeds": options.seeds,
            "floats": spread(floats), "recipes": found, "processor_seconds": round(time.process_time() - started),
        }  # fmt: skip
        write_result(options.json, result)


if __name__ == "__main__":
    main()
