"""Ways to compare a text's vector with binary codes of images, where no weights of a text tower are to be had.

    python benchmarks/text_towers.py tiny-imagenet/val tiny-imagenet/train [--json FILE]

The weights of a class in the last layer of EfficientNet-Lite0 stand for the vector of its name, the averages of the
last stage for the vectors of images: the two lie apart, and their product says whether an image shows the name, as
with the towers of CLIP. ``mid`` pools that vector and an earlier stage, as it does with a library's transformer. Ten
images of each class of VAL are searched for with each class; TRAIN says what the classes are called, see words.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from result_file import write_result
from words import TEN, classes_of

from mg_milvus.codes import hamming, in_steps, pack, weighted_hamming
from mg_milvus.encoder.base import HashEncoder, one_core
from mg_milvus.encoder.classifier import TAGS
from mg_milvus.encoder.hash_heads import fit_manifold_head
from mg_milvus.encoder.load import load_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.floating[Any]]

BITS, STEPS = 128, 2
"""Those of ``mid``."""


def unit(rows: Matrix) -> Matrix:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def features(encoder: HashEncoder, files: Sequence[str]) -> tuple[Matrix, Matrix]:
    """Vectors (n, c) and the earlier stage (n, d) of images, each of length 1."""
    row = encoder.row
    earlier = dict(zip(row.stages, row.channels, strict=True))[row.roles["mid"][0]]
    vectors, stages = [], []
    for file in files:
        with Image.open(file) as image:
            found = encoder._features(encoder.prepare(image.convert("RGB"))[None], ["mid"], ())
        vectors.append(found[TAGS][0])
        stages.append(found["mid"][0, :earlier])
    return unit(np.array(vectors)), unit(np.array(stages))


def precision(distances: Matrix, names: Sequence[int], shown: NDArray[np.int64]) -> float:
    """Mean share of the first ten that show the name, of distances (names, images)."""
    right = [
        (shown[np.argsort(row, kind="stable")[:TEN]] == name).mean()
        for name, row in zip(names, distances, strict=True)
    ]  # fmt: skip
    return round(float(np.mean(right)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("val", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder()
    assert isinstance(encoder, HashEncoder)
    of_file = classes_of(options.val, options.train)
    names = sorted(set(of_file.values()))
    files = [file for name in names for file in sorted(f for f, own in of_file.items() if own == name)[:TEN]]
    shown = np.array([of_file[file] for file in files])
    images, earlier = features(encoder, files)
    weights = unit(encoder._classifier[:-1].T.astype(np.float64))
    texts, mean = weights[names], weights.mean(axis=0)
    pooled = (np.concatenate([earlier, images], axis=1) / 2**0.5).astype(np.float32)
    with one_core():
        head = fit_manifold_head(pooled, BITS, None, STEPS)
        codes = pack(head(pooled))

    def as_image(vectors: Matrix) -> Matrix:
        """Vectors with the images' mean of the earlier stage."""
        stage = np.repeat(earlier.mean(axis=0)[None], len(vectors), axis=0)
        return (np.concatenate([stage, vectors], axis=1) / 2**0.5).astype(np.float32)

    centred = texts - mean + images.mean(axis=0)
    ways = {
        "not centred": head(as_image(texts)),
        "centred on texts": head(as_image(centred)),
        "centred, without affinities": head.of_deviations(as_image(centred).astype(np.float64) - pooled.mean(axis=0)),
    }
    figures: dict[str, Any] = {
        "images": len(files), "names": len(names), "cosine": precision(-texts @ images.T, names, shown),
        "cosine, each centred": precision(-unit(texts - mean) @ unit(images - images.mean(axis=0)).T, names, shown),
    }  # fmt: skip
    for way, values in ways.items():
        real = in_steps(values.astype(np.float32))
        figures[f"{way}: signs"] = precision(hamming(pack(real), codes), names, shown)
        figures[f"{way}: real code"] = precision(weighted_hamming(real, codes), names, shown)
    for name, value in figures.items():
        print(f"{name:>40}  {value}")
    if options.json:
        write_result(options.json, figures)


if __name__ == "__main__":
    main()
