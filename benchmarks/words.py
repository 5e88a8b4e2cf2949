"""Queries by words: how many of the first ten images show what was said, how right the tags are, and what they cost.

    python benchmarks/words.py tiny-imagenet/val tiny-imagenet/train [--json FILE]
    python benchmarks/words.py corel1k [--json FILE]

VAL holds group/class/image, and TRAIN group/class/image whose names begin with the synset of the class, which says
what the class is called in the table of tags. All images of VAL are ingested into a new file. Each class is asked by
its name, each group of names that has at least 50 images by its word; an image is right if it is of that class or
group. A folder alone holds class/image, and each class is asked by the name of its folder, if that is a known word.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from result_file import write_result
from short.turns import Turns

from mg_milvus import ImageIndex
from mg_milvus.encoder.base import HashEncoder
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import QueryError
from mg_milvus.images.paths import stored_path
from mg_milvus.schema.tags import LEVELS, SHOWN, probability_of, vocabulary

FEWEST = 50
BATCH = 64
TEN = 10


def classes_of(val: Path, train: Path) -> dict[str, int]:
    """Path of an image of ``val`` -> place of its class in the table of tags."""
    place = {synset: number for number, synset in enumerate(vocabulary().synsets)}
    found = {}
    for folder in sorted(val.glob("*/*")):
        synset = min(os.listdir(train / folder.relative_to(val))).partition("_")[0]
        if synset in place:
            found |= {stored_path(file): place[synset] for file in folder.iterdir()}
    return found


def precision(index: ImageIndex, word: str, right: set[str]) -> float:
    """Share of the first ten that are right; missing ones are wrong."""
    return sum(hit.path in right for hit in index.query(text=word, k=TEN)) / TEN


def calibration(index: ImageIndex, shown: dict[str, int]) -> dict[str, Any]:
    """The most probable name of each image: how often it is right, by its probability, and the mean difference."""
    probable = [
        (probability_of(row.tags[0] % LEVELS), row.tags[0] // LEVELS == shown[row.path])
        for row in index.images(limit=len(shown))
        if row.tags and row.tags[0] // LEVELS < vocabulary().names and row.tags[0] % LEVELS >= SHOWN
    ]
    said, right = (np.array(values, float) for values in zip(*probable, strict=True))
    bins = np.minimum((said * 10).astype(int), 9)
    rows = {
        f"{said[bins == b].mean():.2f}": round(float(right[bins == b].mean()), 3) for b in sorted(set(bins.tolist()))
    }
    off = sum(abs(said[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist()))
    return {"right by probability": rows, "mean difference": round(float(off), 3), "share with a name": round(
        len(said) / len(shown), 3
    )}  # fmt: skip


def encoding_ratio(files: list[str]) -> float:
    """Processor time of encoding a batch with tags, over that without a classifier, in turn."""
    encoder = load_encoder()
    assert isinstance(encoder, HashEncoder)
    bare = encoder._like(encoder.state.model_copy(update={"classifier": None}))
    batch = [encoder.prepare(Image.open(file).convert("RGB")) for file in files[:BATCH]]
    without = Turns(seconds=25.0).times_as_fast(lambda: encoder.encode_and_tag(batch), lambda: bare.encode(batch))
    return 1 / without


def latency_ratio(index: ImageIndex, words: list[str], files: list[str]) -> float:
    """Time of queries by words over that of as many by images, encoding included, in turn; medians."""
    index.warm_up()
    taken: dict[str, list[float]] = {"text": [], "image": []}
    for word, file in zip(words, files, strict=True):
        for name, options in (("text", {"text": word}), ("image", {"image": file})):
            started = time.perf_counter()
            index.query(**options)  # type: ignore[arg-type]
            taken[name].append(time.perf_counter() - started)
    return float(np.median(taken["text"]) / np.median(taken["image"]))


def by_folders(folder: Path) -> dict[str, Any]:
    """Queries by the names of the folders of a set."""
    of_word, unknown = {}, []
    with tempfile.TemporaryDirectory() as place, ImageIndex.open(Path(place) / "words.db") as index:
        index.ingest(folder)
        for own in sorted(folder.iterdir()):
            try:
                of_word[own.name] = precision(index, own.name, {stored_path(file) for file in own.iterdir()})
            except QueryError:
                unknown.append(own.name)
    return {
        "folder": folder.name, "words": len(of_word), "P@10 of words": round(float(np.mean(list(of_word.values()))), 4),
        "of each": of_word, "no known word": unknown,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("val", type=Path)
    parser.add_argument("train", type=Path, nargs="?")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = by_folders(options.val) if options.train is None else by_names(options.val, options.train)
    for name, value in figures.items():
        print(f"{name:>32}  {value}")
    if options.json:
        write_result(options.json, figures)


def by_names(val: Path, train: Path) -> dict[str, Any]:
    """Queries by the names of classes and of groups, and what tags are worth and cost."""
    table, shown = vocabulary(), classes_of(val, train)
    classes, groups = sorted(set(shown.values())), np.array(table.groups)
    with tempfile.TemporaryDirectory() as folder, ImageIndex.open(Path(folder) / "words.db") as index:
        index.ingest(val)
        of_class = {}
        for place in classes:
            right = {file for file, own in shown.items() if own == place}
            of_class[table.tags[place]] = precision(index, table.tags[place], right)
        of_group = {}
        for group in sorted({int(groups[place]) for place in classes} - {-1}):
            right = {file for file, own in shown.items() if groups[own] == group}
            if len(right) >= FEWEST:
                of_group[table.tags[group]] = precision(index, table.tags[group], right)
        files = sorted(shown)[:: len(shown) // 50][:50]
        names = list(of_class)[:: max(1, len(of_class) // 50)][:50]
        return {
            "images": len(shown),
            "classes": len(of_class),
            "P@10 of classes": round(float(np.mean(list(of_class.values()))), 4),
            "classes below .5": sum(value < 0.5 for value in of_class.values()),
            "groups": len(of_group),
            "P@10 of groups": round(float(np.mean(list(of_group.values()))), 4),
            "calibration": calibration(index, shown),
            "encoding with tags / without": round(encoding_ratio(files * 2), 4),
            "latency of text / of an image": round(latency_ratio(index, names, files[: len(names)]), 3),
            "encoder bytes": len(index.session.encoder.to_bytes()),
            "worst": dict(sorted(of_class.items(), key=lambda pair: pair[1])[:20]),
        }


if __name__ == "__main__":
    main()
