"""Near-duplicates: copies found by kind of edit, precision of the groups among hard negatives, and time.

    python benchmarks/duplicates.py FOLDER [--each 40] [--negatives 38] [--seed 1] [--json FILE]

Of ``--each`` photographs of the folder for each kind of edit one copy is made: resized to half, recompressed, brighter,
cropped to 94 % a side, watermarked, mirrored, captioned. They, the originals and eight kinds of ``hard_negatives.py``
are ingested into one index on Milvus Lite, and ``ImageIndex.duplicates`` groups them. A copy is found when it is in the
group of its original. A pair in a group is right when both are the same photograph, or copies of it.

The time is that of a first search, without kept verdicts, in another index: all photographs of the folder and copies of
a twentieth. Its processor seconds are extrapolated to 10,000 images by the number of images; the codes of 10,000 are
compared, and the pairs counted that they propose.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hard_negatives import KINDS, write_hard_negatives
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from result_file import write_result
from synthetic import synthetic_codes

from mg_milvus.duplicates.find import CANDIDATES, NEAREST
from mg_milvus.duplicates.looks import look, read_pixels
from mg_milvus.duplicates.pairs import as_words, nearest_pairs
from mg_milvus.images.decode import open_image
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mg_milvus.duplicates.report import DuplicateReport

    Edit = Callable[[Image.Image], Image.Image]

IMAGES = 10_000
"""Images that the time is extrapolated to."""
COPIES = 20
"""Photographs for each copy in the index whose search is timed."""
SAMPLE = 100
"""Images that are looked at once more, to know what looks cost."""
RESERVED = 100
"""Photographs that are not indexed: hard negatives are made of them."""


def cropped(image: Image.Image) -> Image.Image:
    """94 % a side."""
    x, y = round(0.03 * image.width), round(0.03 * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


def watermarked(image: Image.Image) -> Image.Image:
    """Pale letters all over the image."""
    layer = Image.new("RGBA", image.size)
    draw, font = ImageDraw.Draw(layer), ImageFont.load_default(max(12, image.width // 16))
    for row, y in enumerate(range(0, image.height, image.height // 4)):
        draw.text((image.width // 12 + (row % 2) * image.width // 3, y), "PREVIEW  PREVIEW", (255, 255, 255, 90), font)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def captioned(image: Image.Image) -> Image.Image:
    """A line of text with an outline near the lower edge."""
    image, font = image.copy(), ImageFont.load_default(max(12, image.width // 14))
    place = image.width // 10, round(0.84 * image.height)
    ImageDraw.Draw(image).text(place, "Summer by the lake", "white", font, stroke_width=2, stroke_fill="black")
    return image


EDITS: dict[str, tuple[Edit, int]] = {
    "resized": (lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), 90),
    "recompressed": (lambda image: image, 50),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.25), 88),
    "cropped": (cropped, 90),
    "watermarked": (watermarked, 88),
    "mirrored": (ImageOps.mirror, 90),
    "captioned": (captioned, 88),
}
"""Kind -> the edit, and the quality of the JPEG."""


def lay_out(photos: Sequence[Path], options: argparse.Namespace, out: Path) -> dict[str, tuple[str, str]]:
    """Originals, copies and hard negatives under ``out``; path of a copy -> path of its original, kind of edit."""
    each = options.each
    chosen = random.Random(options.seed).sample(list(photos), each * len(EDITS) + RESERVED)
    reserved = [chosen.pop() for _ in range(RESERVED)]
    for folder in ("originals", "copies"):
        (out / folder).mkdir()
    copies = {}
    for number, photo in enumerate(chosen):
        kind = list(EDITS)[number % len(EDITS)]
        edit, quality = EDITS[kind]
        original = Path(shutil.copy(photo, out / "originals" / f"{number:04}{photo.suffix}"))
        copy = out / "copies" / f"{number:04} {kind}.jpg"
        edit(open_image(photo).image).save(copy, quality=quality)
        copies[str(copy)] = str(original), kind
    write_hard_negatives(out / "negatives", options.negatives, reserved)
    return copies


def quality(report: DuplicateReport, copies: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Copies found by kind, and precision of pairs and groups."""
    together = {member.path: number for number, group in enumerate(report.groups) for member in group.members}
    found: dict[str, list[bool]] = defaultdict(list)
    verdicts: dict[str, Counter[str]] = defaultdict(Counter)
    for copy, (original, kind) in copies.items():
        found[kind].append(together.get(copy, -1) == together.get(original, -2))
    for group in report.groups:
        for member in group.members:
            if member.path in copies and member.verdict:
                verdicts[copies[member.path][1]][member.verdict] += 1
    wrong = []
    pairs = 0
    for group in report.groups:
        for one, two in combinations(sorted(member.path for member in group.members), 2):
            pairs += 1
            if copies.get(one, (one,))[0] != copies.get(two, (two,))[0]:
                wrong.append([Path(one).parts[-2:], Path(two).parts[-2:]])
    impure = sum(len({copies.get(m.path, (m.path,))[0] for m in group.members}) > 1 for group in report.groups)
    every = [hit for own in found.values() for hit in own]
    return {
        "copies": len(every), "found": round(sum(every) / len(every), 4),
        "found by kind": {kind: round(sum(own) / len(own), 4) for kind, own in found.items()},
        "missed": sorted(Path(c).name for c, (o, _) in copies.items() if together.get(c, -1) != together.get(o, -2)),
        "said of copies": {kind: dict(own) for kind, own in verdicts.items()},
        "pairs": pairs, "precision of pairs": round(1 - len(wrong) / max(1, pairs), 4),
        "groups": len(report.groups), "precision of groups": round(1 - impure / max(1, len(report.groups)), 4),
        "wrong": wrong,
    }  # fmt: skip


def cost(photos: Sequence[Path], scratch: Path) -> dict[str, Any]:
    """A first search among distinct photographs and a few copies, and its time, extrapolated."""
    images = scratch / "distinct"
    images.mkdir()
    for number, photo in enumerate(photos):
        shutil.copy(photo, images / f"{number:05}{photo.suffix}")
        if number % COPIES == 0:
            kind = list(EDITS)[number // COPIES % len(EDITS)]
            edit, quality = EDITS[kind]
            edit(open_image(photo).image).save(images / f"{number:05} {kind}.jpg", quality=quality)
    with ImageIndex.open(f"{scratch}/distinct.db") as index:
        index.ingest(images)
        start, used = time.perf_counter(), time.process_time()
        report = index.duplicates()
        seconds, processor = time.perf_counter() - start, time.process_time() - used
    looked = sum(report.verdicts.values())
    sample = random.Random(0).sample(sorted(images.iterdir()), min(SAMPLE, report.rows))
    once = time.process_time()
    for image in sample:
        look(*read_pixels(image))
    looks = (time.process_time() - once) / len(sample)
    codes = synthetic_codes(IMAGES, Schema(), seed=1)["fine"]
    once = time.process_time()
    proposed = nearest_pairs(as_words(codes), IMAGES, int(CANDIDATES * codes.shape[1] * 8), NEAREST)
    comparing = time.process_time() - once
    predicted = comparing + processor * IMAGES / report.rows
    cores = os.cpu_count() or 1
    return {
        "images": report.rows, "seconds": round(seconds, 1), "processor seconds": round(processor, 1),
        "groups": len(report.groups), "verdicts": report.verdicts, "pairs an image": round(looked / report.rows, 2),
        "pairs an image among 10,000 made-up codes": round(len(proposed.left) / IMAGES, 2),
        "processor seconds for 10,000 images": {
            "to compare the codes": round(comparing, 1), "to read and look": round(IMAGES * looks),
            "in all, extrapolated": round(predicted),
        },
        "minutes for 10,000 on this machine's cores, if no other program runs": round(predicted / cores / 60, 1),
        "cores for three minutes": -(-round(predicted) // 180),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=40, help="copies of each kind")
    parser.add_argument("--negatives", type=int, default=38, help="images of each kind of hard negatives")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of photographs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    photos = sorted(options.folder.rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"  # first searches: nothing is known
        images = Path(scratch) / "images"
        images.mkdir()
        copies = lay_out(photos, options, images)
        with ImageIndex.open(f"{scratch}/images.db") as index:
            index.ingest(images)
            report = index.duplicates()
        result = {"hard negatives": options.negatives * len(KINDS), **quality(report, copies)}
        result["time"] = cost(photos, Path(scratch))
    print(json.dumps(result, indent=1))
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
