"""How well edited copies find their original: recall@1 per granularity and for the profile ``instance``.

    python benchmarks/copies.py FOLDER [--queries 200] [--json FILE]

Every picture of FOLDER is in the database, heads adapted as an ingest does it; every n-th is asked for in edited
versions. A query counts as found when its original alone is first: a tie with another picture counts as missed.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from mg_milvus.codes import hamming
from mg_milvus.encoder import load_encoder
from mg_milvus.fusion import fuse
from mg_milvus.images.decode import open_picture
from mg_milvus.images.discover import discover, text_path
from mg_milvus.ingest import SAMPLE_SIZE, Settings, sample_features
from mg_milvus.schema import PROFILES, Schema

if TYPE_CHECKING:
    from collections.abc import Callable


def cropped(picture: Image.Image, area: float) -> Image.Image:
    """A window of this share of the area, a little off the middle."""
    width, height = (int(side * area**0.5) for side in picture.size)
    x, y = int((picture.width - width) * 0.4), int((picture.height - height) * 0.6)
    return picture.crop((x, y, x + width, y + height))


def recompressed(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop to 0.7 of the area": lambda p: cropped(p, 0.7),
    "crop to 0.5 of the area": lambda p: cropped(p, 0.5),
    "JPEG quality 10": lambda p: recompressed(p, 10),
    "blur 2 px": lambda p: p.filter(ImageFilter.GaussianBlur(2)),
    "rotation 15 degrees": lambda p: p.rotate(15, Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "greyscale": lambda p: p.convert("L").convert("RGB"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    schema, base = Schema(), load_encoder()
    files = list(discover([options.folder], print))
    read, features = sample_features(files, base, Settings(), lambda _: None)
    encoder = base.adapted({name: values[:SAMPLE_SIZE] for name, values in features.items()}, schema.bits)
    database = encoder.codes(features)
    names = [picture.found.path for picture in read if picture.failure is None]
    asked = range(0, len(names), max(1, len(names) // options.queries))
    originals = [open_picture(text_path(names[i])).picture for i in asked]
    columns = [*schema.bits, "instance"]
    print(f"{len(originals)} queries, {len(names)} pictures\n\n{'recall@1':26}" + "".join(f"{c:>10}" for c in columns))
    table = {}
    for edit, change in EDITS.items():
        codes = encoder.encode([encoder.prepare(change(picture)) for picture in originals])
        distances = {name: hamming(codes[name], database[name]) for name in schema.bits}
        found = {name: [] for name in columns}
        for place, i in enumerate(asked):
            for name, values in distances.items():
                others = np.delete(values[place], i)
                found[name].append(values[place][i] < others.min())
            fused = fuse(
                names, {name: values[place] for name, values in distances.items()},
                bits=schema.bits, weights=PROFILES["instance"],
            )  # fmt: skip
            found["instance"].append(fused.order[0] == i)
        table[edit] = {name: round(float(np.mean(values)), 3) for name, values in found.items()}
        print(f"{edit:26}" + "".join(f"{table[edit][c]:10.3f}" for c in columns), flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
