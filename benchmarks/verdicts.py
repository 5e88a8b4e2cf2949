"""Whether verdicts hold: same image, same kind and nothing similar, on several sets; and the fusions beside each other.

    python benchmarks/verdicts.py corel1k tiny-imagenet/train cifar10/test [--fit] [--json FILE]

Each folder holds class/image or group/class/image; of at most 100 classes at most 1,000 images are taken. A set of
painted scenes (``painted_scenes.py``) is added. Each set is ingested into Milvus Lite and asked through ``ImageIndex``.

- kind: 200 indexed images of each set. Of the first ten hits that are called *same kind* or nearer, the share that has
  the query's label (the group, where there are groups), and the mean confidence that is printed.
- copies: edited copies of 40 images of the first folder, with every edit of ``mg_milvus.images.augment``. ``alone``: an
  edit at a time; ``together``: eight of them one after another. Recall and precision of *same image*, and how many of
  the indexed images that have no copy are called so.
- foreign: noise, blurred noise, drawings, and images of another set without a common kind, 50 each: the share that gets
  nothing above *loosely similar*.
- fusion: leave-one-out mAP of 200 queries by rank, by score and by chance, with the default weights.

``--fit`` prints the regression of ``mg_milvus.search.verdicts`` as these images give it: of the kinds and the foreign.
That of the module is fitted to 40 % of each set, too, with heads of their own, and then shrunk by a tenth, since images
of few kinds took part.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from painted_scenes import KINDS
from PIL import Image, ImageDraw, ImageFilter
from result_file import write_result

from mg_milvus.codes import hamming
from mg_milvus.images.augment import AUGMENTATIONS, STRENGTHS
from mg_milvus.index import ImageIndex
from mg_milvus.records import VERDICTS
from mg_milvus.search.chance import Chance, ChanceKeeper
from mg_milvus.search.fusion import Fusion, fuse
from mg_milvus.search.verdicts import FINE, FITTED_SPREADS, NEAREST_OF_KIND

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASSES, MOST, QUERIES, EDITED, EACH = 100, 1000, 200, 40, 50
PAINTED, SCENES = "painted", 30
GRANULARITIES = ("coarse", "mid", FINE)
RELATED = VERDICTS[:3]
FOREIGN_WEIGHT, RIDGE = 0.1, 1e-2


def sample(folder: Path, to: Path) -> None:
    """Copy a random sample, with its folders."""
    random = np.random.default_rng(3)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    classes = sorted({file.parent for file in files})
    chosen = {classes[i] for i in random.permutation(len(classes))[:CLASSES]}
    each = MOST // min(CLASSES, len(classes))
    for own in sorted(chosen):
        images = [file for file in files if file.parent == own]
        for i in random.permutation(len(images))[:each]:
            place = to / images[i].relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(images[i], place)


def drawing(random: np.random.Generator) -> Image.Image:
    """Black lines and circles on white."""
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        points = [(int(x), int(y)) for x, y in zip(random.integers(0, 320, 6), random.integers(0, 240, 6), strict=True)]
        draw.line(points, fill="black", width=int(random.integers(1, 5)))
        x, y, size = (int(random.integers(*ends)) for ends in ((20, 280), (20, 200), (5, 60)))
        draw.ellipse((x - size, y - size, x + size, y + size), outline="black", width=3)
    return image


def foreign(others: Sequence[Path]) -> list[Image.Image]:
    random = np.random.default_rng(5)
    noise = [Image.fromarray(random.integers(0, 256, (200, 300, 3), np.uint8)) for _ in range(2 * EACH)]
    blurred = [image.filter(ImageFilter.GaussianBlur(4 + i / 4)) for i, image in enumerate(noise[EACH:])]
    return [*noise[:EACH], *blurred, *(drawing(random) for _ in range(EACH)), *map(Image.open, others)]


class Set:
    """An ingested set, its codes and labels."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.index = ImageIndex.open(place / f"{folder.name}.db")
        self.index.ingest(folder)
        rows = [row for batch in self.index.session.store.scan(None, GRANULARITIES) for row in batch]
        rows.sort(key=lambda row: row.path)
        self.ids, self.paths = [row.id for row in rows], [row.path for row in rows]
        self.place = {path: place for place, path in enumerate(self.paths)}
        self.labels = np.array([Path(path).relative_to(folder).parts[0] for path in self.paths])
        self.codes = {
            name: np.frombuffer(b"".join(row.codes[name] for row in rows), np.uint8).reshape(len(rows), -1)
            for name in GRANULARITIES
        }
        self.asked = np.random.default_rng(0).permutation(len(rows))[:QUERIES]
        chance = ChanceKeeper(self.index.session).chance()
        assert chance is not None
        self.chance: Chance = chance

    def kind(self) -> dict[str, float]:
        right, confidence, every = [], [], 0
        for row in self.asked:
            hits = self.index.like(self.ids[row])
            same = [self.labels[self.place[hit.path]] == self.labels[row] for hit in hits]
            every += sum(same)
            named = [(own, hit) for own, hit in zip(same, hits, strict=True) if hit.verdict in RELATED]
            right += [own for own, _ in named]
            confidence += [hit.confidence or 0.0 for _, hit in named]
        return {
            "images": len(self.ids), "precision": float(np.mean(right)), "printed": float(np.mean(confidence)),
            "of the right hits": sum(right) / every, "P@10": every / (10 * len(self.asked)),
        }  # fmt: skip

    def copies(self) -> dict[str, float]:
        counts = {"alone": [0, 0, 0], "together": [0, 0, 0]}  # copies, found, wrong
        for row in self.asked[:EDITED]:
            image = Image.open(self.paths[row]).convert("RGB")
            versions = [
                (edit, own.apply(image, strength)) for edit, own in AUGMENTATIONS.items() for strength in STRENGTHS
            ]
            answers = self.index.query_many([version for _, version in versions])
            for (edit, _), hits in zip(versions, answers, strict=True):
                named = [hit.path == self.paths[row] for hit in hits if hit.verdict == VERDICTS[0]]
                own = counts["together" if edit == "all" else "alone"]
                own[:] = own[0] + 1, own[1] + sum(named), own[2] + len(named) - sum(named)
        alarms = [self.index.like(self.ids[row], k=10)[:] for row in self.asked]
        found = {f"recall, {way}": own[1] / own[0] for way, own in counts.items()}
        found |= {f"precision, {way}": own[1] / max(1, own[1] + own[2]) for way, own in counts.items()}
        without = np.mean([any(hit.verdict == VERDICTS[0] for hit in hits) for hits in alarms])
        return found | {"called so without a copy": float(without)}

    def foreign(self, others: Sequence[Path]) -> float:
        answers = self.index.query_many(foreign(others))
        return float(np.mean([all(hit.verdict not in RELATED for hit in hits) for hits in answers]))

    def fusion(self) -> dict[str, float]:
        schema, found = self.index.schema, {}
        ways = {"rank": Fusion(), "score": Fusion("score"), "chance": Fusion("chance", chance=self.chance)}
        for way, own in ways.items():
            precisions = []
            for row in self.asked:
                distances = {name: hamming(codes[row : row + 1], codes)[0] for name, codes in self.codes.items()}
                order = fuse(self.ids, distances, bits=schema.bits, weights=schema.weights, fusion=own).order
                relevant = (self.labels[order] == self.labels[row])[order != row]
                places = np.flatnonzero(relevant) + 1
                precisions.append(float((np.arange(1, len(places) + 1) / places).mean()) if len(places) else 0.0)
            found[way] = float(np.mean(precisions))
        return found

    def evidence(self, others: Sequence[Path]) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """What the regression is fitted to: its terms (n, 6), right or not (n,), and the weight of these n."""
        spread = float(np.clip(self.chance.spread(FINE), *FITTED_SPREADS))
        parts: list[list[Any]] = [[], []]
        for row in self.asked:
            hits = self.index.like(self.ids[row])
            parts[0] += [(hit, self.labels[self.place[hit.path]] == self.labels[row]) for hit in hits]
        for hits in self.index.query_many(foreign(others)):
            parts[1] += [(hit, False) for hit in hits]
        found = []
        for part, weight in zip(parts, (1.0, FOREIGN_WEIGHT), strict=True):
            bits = self.index.schema.bits
            far = {name: np.array([hit.distances[name] for hit, _ in part]) / bits[name] for name in GRANULARITIES}
            far[FINE] = np.maximum(far[FINE], 0.5 - NEAREST_OF_KIND * self.chance.deviation(FINE))
            terms = [np.ones(len(part)), *far.values(), np.full(len(part), spread), spread * far[FINE]]
            found.append((np.stack(terms, axis=1), np.array([right for _, right in part], float), weight / len(part)))
        return found


def fitted(evidence: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> list[float]:
    """Logistic regression by Newton's method: intercept, coarse, mid, fine, spread, spread times fine."""
    terms = np.concatenate([own for own, _, _ in evidence])
    right = np.concatenate([own for _, own, _ in evidence])
    weights = 1000 * np.concatenate([np.full(len(own), weight) for own, _, weight in evidence])
    mean, scale = terms[:, 1:].mean(axis=0), terms[:, 1:].std(axis=0)
    scaled = np.concatenate([terms[:, :1], (terms[:, 1:] - mean) / scale], axis=1)
    slopes = np.zeros(scaled.shape[1])
    for _ in range(60):
        probability = 1 / (1 + np.exp(-scaled @ slopes))
        curvature = (scaled.T * (weights * probability * (1 - probability))) @ scaled + RIDGE * np.eye(len(slopes))
        slopes += np.linalg.solve(curvature, scaled.T @ (weights * (right - probability)) - RIDGE * slopes)
    own = slopes[1:] / scale
    return [float(slopes[0] - own @ mean), *own.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--fit", action="store_true", help="also fit the regression")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        parts = {"train", "test", "val"}
        names = [folder.parent.name if folder.name in parts else folder.name for folder in options.folders]
        for folder, name in zip(options.folders, names, strict=True):
            sample(folder, place / name)
        for kind, paint in KINDS.items():
            (place / PAINTED / kind).mkdir(parents=True)
            for number in range(SCENES):
                paint(Random(f"{kind} {number}")).save(place / PAINTED / kind / f"{number:02}.jpg", quality=90)
        evidence = []
        for name in [*names, PAINTED]:
            other = sorted((place / (names[0] if name == PAINTED else PAINTED)).rglob("*.*"))
            strangers = [other[i] for i in np.random.default_rng(0).permutation(len(other))[:EACH]]
            own = Set(place / name, place)
            figures: dict[str, Any] = {"kind": own.kind(), "foreign": own.foreign(strangers), "fusion": own.fusion()}
            if name == names[0]:
                figures["copies"] = own.copies()
            if options.fit:
                evidence += own.evidence(strangers)
            own.index.close()
            result[name] = figures
            for part, values in figures.items():
                shown = {"": values} if isinstance(values, float) else values
                text = " ".join(f"{key} {value:.3f}" for key, value in shown.items())
                print(f"{name:14} {part:8} {text}", flush=True)
    if options.fit:
        result["fit"] = fitted(evidence)
        print("intercept, coarse, mid, fine, spread, spread * fine:", [round(value, 2) for value in result["fit"]])
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
