"""The profile auto against the fixed ones: classes, edited copies, details and crops as a phone takes them of a screen.

    python benchmarks/auto_profile.py corel1k [--queries 100] [--json FILE]

FOLDER holds class/image and is ingested into Milvus Lite with the schema ``regions``. Everything is asked through
``ImageIndex``, with each profile, and by the regions alone.

- class: mAP over the first 300 results, of indexed images asked as files, which are left out of the ranking.
- copies: the share of edited copies of 20 images, each edit alone at each strength, whose original comes first.
- details: the share of crops of a quarter of an image, enlarged and saved again, whose source comes first.
- phone: 40 crops of 20 to 45 % of an image, seen askew, blurred, with another light and colour and the pattern of a
  screen: how many find their source first.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from parts import detail
from PIL import Image, ImageEnhance, ImageFilter
from result_file import write_result

from mg_milvus.images.augment import AUGMENTATIONS, STRENGTHS
from mg_milvus.index import ImageIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

WAYS: dict[str, dict[str, Any]] = {
    "auto": {"profile": "auto"}, "category": {"profile": "category"}, "object": {"profile": "object"},
    "instance": {"profile": "instance"}, "balanced": {"profile": "balanced"}, "regions": {"regions": "contains"},
}  # fmt: skip
DEPTH, EDITED, PHONE = 300, 20, 40


def phone(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A crop as a phone takes it of a screen."""
    share = float(random.uniform(0.2, 0.45)) ** 0.5
    width, height = (round(side * share) for side in image.size)
    x, y = int(random.integers(image.width - width + 1)), int(random.integers(image.height - height + 1))
    corners = np.array([[x, y], [x, y + height], [x + width, y + height], [x + width, y]], float)
    corners += random.uniform(-0.03, 0.03, (4, 2)) * [width, height]
    quad, size = corners.ravel().tolist(), (2 * width, 2 * height)
    seen = image.transform(size, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)
    pixels = np.asarray(seen, float) * random.uniform(0.8, 1.15, 3)
    pixels *= 1 + 0.08 * np.sin(np.arange(2 * height) * random.uniform(1.5, 2.5))[:, None, None]
    pixels += random.normal(0, 8, pixels.shape)
    seen = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
    seen = ImageEnhance.Contrast(seen).enhance(float(random.uniform(0.75, 1.1)))
    buffer = io.BytesIO()
    seen.save(buffer, "JPEG", quality=60)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def first(index: ImageIndex, made: Sequence[tuple[str, Image.Image]], options: dict[str, Any]) -> float:
    """The share of images whose source comes first."""
    found = []
    for start in range(0, len(made), 40):
        some = made[start : start + 40]
        answers = index.query_many([image for _, image in some], k=1, **options)
        found += [bool(hits) and hits[0].path == path for (path, _), hits in zip(some, answers, strict=True)]
    return float(np.mean(found))


def class_map(index: ImageIndex, paths: Sequence[str], options: dict[str, Any]) -> float:
    precisions = []
    for path in paths:
        hits = [hit for hit in index.query(path, k=DEPTH, depth=DEPTH, **options) if hit.path != path]
        relevant = np.array([Path(hit.path).parent == Path(path).parent for hit in hits])
        places = np.flatnonzero(relevant) + 1
        total = min(len(list(Path(path).parent.iterdir())) - 1, DEPTH)
        precisions.append(float((np.arange(1, len(places) + 1) / places).sum() / total))
    return float(np.mean(precisions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    random = np.random.default_rng(2)
    with TemporaryDirectory() as place, ImageIndex.open(Path(place) / "auto.db", "regions") as index:
        index.ingest(options.folder)
        paths = sorted(row.path for rows in index.session.store.scan() for row in rows)
        chosen = [paths[i] for i in random.permutation(len(paths))]
        opened = {path: Image.open(path).convert("RGB") for path in chosen[: max(PHONE, EDITED, options.queries)]}
        copies = [
            (path, own.apply(opened[path], strength))
            for path in chosen[:EDITED]
            for edit, own in AUGMENTATIONS.items()
            if edit != "all"
            for strength in STRENGTHS
        ]
        details = [(path, detail(opened[path], 0.25, False, random)[0]) for path in chosen[: options.queries]]
        phones = [(path, phone(opened[path], random)) for path in chosen[:PHONE]]
        result: dict[str, Any] = {}
        for way, own in WAYS.items():
            result[way] = {
                "class": class_map(index, chosen[: options.queries], own), "copies": first(index, copies, own),
                "details": first(index, details, own), "phone": round(PHONE * first(index, phones, own)),
            }  # fmt: skip
            print(f"{way:10}", " ".join(f"{name} {value:.3f}" for name, value in result[way].items()), flush=True)
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
