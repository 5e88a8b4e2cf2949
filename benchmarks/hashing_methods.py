"""Methods of deep hashing side by side: same images, same network, same epochs, one table.

    python benchmarks/hashing_methods.py CIFAR10 [--recipes ours,paper] [--config FILE] [--before 2] [--epochs 1]
        [--bits 48] [--out FOLDER] [--json FILE]

CIFAR10 holds train/class/image and test/class/image; the protocol is cifar10-2: all test images are queries, all
training images are the database. By our recipe all methods share a hash layer, an optimizer and the settings of the
configuration, and differ in their loss alone; by that of their paper (``mgm train --recipe paper``) these are the
paper's.

With ``cifar10.yaml``, the default, a small net is first trained as a plain classifier, as the papers begin with a
network that has learned ImageNet; every supervised method goes on from there for the same epochs. With
``few_labels.yaml`` the network is the one that ships, stays as it is, and the methods learn a hash layer on it. ITQ,
random hyperplanes (LSH), anchor graph hashing and spectral hashing hash what the network saw before, whose float
features are ranked by cosine. Trainings that are already in the folder are not made again.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from result_file import write_result
from spectral_methods import anchor_graph_hashing, spectral_hashing

from mg_milvus.codes import pack
from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.encoded import encode_labelled
from mg_milvus.evaluation.evaluate import evaluate
from mg_milvus.evaluation.protocols import SplitOptions, read_split
from mg_milvus.evaluation.scoring import KS, graded, score_codes
from mg_milvus.ingest.fit_heads import SAMPLE_SIZE, FitOptions, fit_encoder
from mg_milvus.training.config import TrainingConfiguration
from mg_milvus.training.train import train

METHODS = ("orthohash", "csq", "greedyhash", "hashnet", "dsh")
UNSUPERVISED: tuple[Literal["itq", "lsh"], ...] = ("itq", "lsh")
CONFIGURATION = Path(__file__).with_name("cifar10.yaml")


def trained(folder: Path, out: Path, configuration: TrainingConfiguration) -> float:
    """Seconds that the training took; 0 when its encoder is there."""
    if out.exists():
        return 0.0
    started = time.perf_counter()
    train(folder / "train", out, configuration)
    return time.perf_counter() - started


def figures(folder: Path, encoder: Any, bits: int) -> dict[str, Any]:
    return evaluate(folder, encoder=encoder, protocol="cifar10-2", heads="fixed", bits={"mid": bits}).to_json()


def by_recipe(base: TrainingConfiguration, recipe: str, method: str) -> TrainingConfiguration:
    """A method by a recipe: that of its paper has its own rates and terms in place of the configuration's."""
    if recipe == "paper":
        base = base.changed({"recipe": recipe, "optimisation": {}, "weights": {}})
    return base.changed({"supervised": method})


def spectral(folder: Path, plain: Path, bits: int) -> dict[str, dict[str, Any]]:
    """Anchor graph hashing and spectral hashing of an encoder's features, fitted as the heads of an ingest are."""
    options = SplitOptions("cifar10-2", None, None, 0.1, 0)
    split = read_split(folder, options, lambda failure: print(failure.path, failure.reason))
    encoded = encode_labelled(split.images, load_encoder(plain))
    split = split.without(encoded.broken)
    features = encoded.features["mid"].astype(np.float64)
    database, queries = features[split.database], features[split.queries]
    sample = database[np.random.default_rng(0).permutation(len(database))[:SAMPLE_SIZE]]
    found = {}
    for name, method in (("agh", anchor_graph_hashing), ("sh", spectral_hashing)):
        hashed = method(sample, bits)
        of_queries, of_database = {"mid": pack(hashed(queries))}, {"mid": pack(hashed(database))}
        found[name] = score_codes(of_queries, of_database, graded(split), {})["mid"].as_dict(KS)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipes", default="ours", help="ours, paper, or both with a comma")
    parser.add_argument("--config", type=Path, default=CONFIGURATION, help="the network and all that is not said here")
    parser.add_argument("--before", type=int, default=2, help="epochs of the classifier of a network from nothing")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each method")
    parser.add_argument("--bits", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("hashing_methods"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    base = TrainingConfiguration.load(options.config).changed({"bits": {"mid": options.bits}}, epochs=options.epochs)
    table: dict[str, dict[str, float]] = {}

    def row(name: str, own: dict[str, Any], seconds: float) -> None:
        table[name] = {"map": own["map"], "p@100": own["precision"]["100"]}
        if "precision_radius_2" in own:
            table[name]["within_radius_2"] = own["precision_radius_2"]
        told = "".join(f"{value:12.3f}" for value in table[name].values())
        print(f"{name:22}{told:36}{seconds:8.0f} s", flush=True)

    first, before, plain = 0.0, 0, base.backbone
    if base.init == "scratch":
        before, plain = options.before, str(options.out / "classifier.safetensors")
        classifier = {"heads": "adaptive", "weights": {"coarse": 0, "mid": 0, "fine": 0, "softmax": 1}}
        first = trained(options.folder, Path(plain), base.changed(classifier, epochs=before))
        base = base.changed({"init": plain})
    print(f"{base.backbone}, {options.bits} bits, {before} + {options.epochs} epochs")
    print(f"{'':22}{'mAP':>12}{'P@100':>12}{'P@radius 2':>12}")
    for recipe, method in product(options.recipes.split(","), METHODS):
        file = options.out / f"{recipe}_{method}.safetensors"
        seconds = trained(options.folder, file, by_recipe(base, recipe, method))
        row(f"{method}, {recipe}", figures(options.folder, file, options.bits)["granularities"]["mid"], seconds)
    for method in UNSUPERVISED:
        file = options.out / f"{method}.safetensors"
        fit_encoder(
            options.folder / "train", file, FitOptions(backbone=plain, bits={"mid": options.bits}, method=method)
        )
        found = figures(options.folder, load_encoder(file), options.bits)
        row(f"network + {method}", found["granularities"]["mid"], first)
    for method, own in spectral(options.folder, file, options.bits).items():
        row(f"network + {method}", own, first)
    row("network, floats", found["float"], first)
    if options.json:
        result = {
            "network": base.backbone, "bits": options.bits, "before": before, "epochs": options.epochs,
            "images": {part: sum(1 for _ in (options.folder / part).glob("*/*")) for part in ("train", "test")},
            "methods": table,
        }  # fmt: skip
        write_result(options.json, result)


if __name__ == "__main__":
    main()
