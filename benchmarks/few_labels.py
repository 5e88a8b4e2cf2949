"""What a few hundred labels add to the codes of images that have none: ``mgm fit --labels folders``.

    python benchmarks/few_labels.py FOLDER [--classes 25] [--labelled 20] [--others 40] [--draws 3] [--json FILE]

FOLDER holds label/image or group/label/image. Each draw takes classes, some images of each with their labels, and
others without. The others are hashed and evaluated (leave-one-out mAP of their classes), once with heads that are
fitted to them over the network alone, once over the encoder that learned the labels; and so are the others of the next
draw, of whose classes that encoder has learned hardly any.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from result_file import write_result

from mg_milvus.evaluation.evaluate import evaluate
from mg_milvus.evaluation.labels import read_labelled
from mg_milvus.ingest.fit_heads import FitOptions, fit_encoder

if TYPE_CHECKING:
    from argparse import Namespace

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def draw(options: Namespace, seed: int, work: Path) -> tuple[Path, Path]:
    """Two folders of links: images that have labels, and others of the same classes."""
    chance = random.Random(seed)
    images: dict[Path, list[Path]] = {}
    for file in sorted(options.folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES:
            images.setdefault(file.parent, []).append(file)
    enough = sorted(folder for folder, own in images.items() if len(own) >= options.labelled + options.others)
    folders = work / f"labelled{seed}", work / f"others{seed}"
    for folder in chance.sample(enough, options.classes):
        chosen = chance.sample(images[folder], options.labelled + options.others)
        for target, some in zip(folders, (chosen[: options.labelled], chosen[options.labelled :]), strict=True):
            place = target / folder.relative_to(options.folder)
            place.mkdir(parents=True)
            for file in some:
                (place / file.name).symlink_to(file.absolute())
    return folders


def figures(folder: Path, encoder: str | Path) -> dict[str, float]:
    """mAP of the granularities that learn labels, and of the fused ranking."""
    found = evaluate(folder, encoder=encoder).metrics
    codes = {name: found["granularities"][name]["map"] for name in ("coarse", "mid")}
    return codes | {"fused": found["fused"]["rank"]["map"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=25)
    parser.add_argument("--labelled", type=int, default=20, help="images of a class with their label")
    parser.add_argument("--others", type=int, default=40, help="images of a class without")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        drawn = [draw(options, seed, work) for seed in range(1, options.draws + 1)]
        plain = [figures(others, "builtin") for _, others in drawn]
        for place, (labelled, others) in enumerate(drawn):
            file = work / f"{place}.safetensors"
            started = time.process_time()
            labels = read_labelled(labelled).by_path()
            fit_encoder(labelled, file, FitOptions(labels=labels))
            seconds = time.process_time() - started
            following = (place + 1) % len(drawn)
            found.append({
                "without": plain[place], "with": figures(others, file), "processor s": seconds,
                "other classes, without": plain[following],
                "other classes, with": figures(drawn[following][1], file),
            })  # fmt: skip
            print(found[-1], flush=True)
    means = {
        part: {name: float(np.mean([one[part][name] for one in found])) for name in own}
        for part, own in found[0].items()
        if isinstance(own, dict)
    }
    gains = {
        name: {"mean": float(np.mean(ratios)), "least": min(ratios), "most": max(ratios)}
        for name in means["with"]
        if (ratios := [one["with"][name] / one["without"][name] for one in found])
    }
    table = {"labelled": options.classes * options.labelled, "others": options.classes * options.others,
             "classes": options.classes, "means": means, "gains": gains, "draws": found,
             "processor s": float(np.mean([one["processor s"] for one in found]))}  # fmt: skip
    print(means, gains)
    if options.json:
        write_result(options.json, table)


if __name__ == "__main__":
    main()
