"""Near-duplicates: how precise the prediction of precision is, what is found of edited copies, and what it costs.

    python benchmarks/duplicates.py FOLDER [--copies SHARE] [--without EDIT ...] [--rows 100000] [--json FILE]

A share of the folder's images is edited once each, by a random edit at a random strength, and put beside the folder
in one index on Milvus Lite. A pair is right when both are the same image or copies of it. The pairs are counted by
brute force, apart from the code that is measured. A folder has near-duplicates of its own (the same scene a second
later), which count as wrong here: --show FILE writes the page to look at them.

Then the whole command on ``--rows`` synthetic rows, one in a hundred of them a copy with some bits turned.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from result_file import write_result
from synthetic import BATCH, synthetic_codes

from mg_milvus.codes import hamming
from mg_milvus.config import MilvusConfig
from mg_milvus.duplicates.find import DuplicateQuery, find_duplicates
from mg_milvus.duplicates.report import duplicates_page
from mg_milvus.images.augment import AUGMENTATIONS, STRENGTHS
from mg_milvus.images.decode import open_image
from mg_milvus.images.discover import discover, image_id
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import open_store

if TYPE_CHECKING:
    from mg_milvus.duplicates.report import DuplicateReport

DISTANCES = (8, 16, 24, 32, 40)
FARTHEST = 96


def write_copies(folder: Path, share: float, edits: list[str], out: Path) -> dict[str, tuple[str, str, str]]:
    """Edited copies of a share of the images: path -> path of the original, edit, strength."""
    random = np.random.default_rng(0)
    paths = sorted(found.path for found in discover([folder], print))
    made = {}
    for number in np.sort(random.permutation(len(paths))[: round(share * len(paths))]):
        edit, strength = str(random.choice(edits)), str(random.choice(STRENGTHS))
        copy = out / f"{number:06}.{edit}.{strength}.jpg"
        AUGMENTATIONS[edit].apply(open_image(paths[number]).image, strength).save(copy, quality=90)
        made[str(copy)] = paths[number], edit, strength
    return made


class Truth:
    """All near pairs of an index by brute force, and which are right."""

    def __init__(self, index: ImageIndex, copies: dict[str, tuple[str, str, str]]) -> None:
        rows = [r for batch in index._connection.store.scan(None, tuple(index.schema.bits)) for r in batch]
        sources = [copies.get(r.path, (r.path,))[0] for r in rows]
        codes = {name: np.array([np.frombuffer(r.codes[name], np.uint8) for r in rows]) for name in index.schema.bits}
        self.pairs = []
        for i in range(len(rows)):
            distances = {name: hamming(own[i : i + 1], own[i + 1 :])[0] for name, own in codes.items()}
            for j in np.flatnonzero(distances["fine"] <= FARTHEST):
                apart = {name: int(values[j]) for name, values in distances.items()}
                self.pairs.append((apart, sources[i] == sources[i + 1 + j]))

    def near(self, report: DuplicateReport) -> list[bool]:
        """Of each near pair as the report defines it, whether it is right."""
        limits = {"fine": -1 if report.distance is None else report.distance, **report.limits}
        return [right for apart, right in self.pairs if all(apart[name] <= most for name, most in limits.items())]


def quality(folder: Path, share: float, edits: list[str], show: Path | None) -> list[dict[str, object]]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "copies").mkdir()
        copies = write_copies(folder, share, edits, Path(scratch) / "copies")
        with ImageIndex.open(f"{scratch}/images.db") as index:
            index.ingest(folder, Path(scratch) / "copies")
            truth = Truth(index, copies)
            asked: list[dict[str, float]] = [{"precision": p} for p in (0.5, 0.9, 0.99)]
            asked += [{"distance": d} for d in DISTANCES]
            for options in asked:
                report = index.duplicates(**options)
                right = truth.near(report)
                assert len(right) == report.pairs, (len(right), report.pairs)
                together = {m.path: n for n, group in enumerate(report.groups) for m in group.members}
                found = [
                    (strength, together.get(copy, -1) == together.get(original, -2))
                    for copy, (original, _, strength) in copies.items()
                ]
                shares = {s: float(np.mean([hit for own, hit in found if own == s])) for s in STRENGTHS}
                rows.append({
                    "asked": " ".join(f"{name} {value:g}" for name, value in options.items()),
                    "distance": report.distance, "pairs": report.pairs, "expected wrong": report.expected_false,
                    "wrong": right.count(False),
                    "precision predicted": 1 - (report.expected_false or 0) / max(1, report.pairs),
                    "precision": right.count(True) / max(1, len(right)),
                    "copies found": {name: round(own, 3) for name, own in shares.items()},
                    "groups": len(report.groups), "chained": sum(map(report.is_chained, report.groups)),
                })  # fmt: skip
                if show and options == {"precision": 0.9}:
                    show.write_text(duplicates_page(report, collection=index.collection, bits=index.schema.bits))
    return rows


def cost(count: int) -> dict[str, object]:
    """Seconds of each stage for synthetic rows on Milvus Lite, and the most memory this process has had."""
    schema, random = Schema(), np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(MilvusConfig(f"{scratch}/rows.db", collection=schema.collection))
        store.create(Description(schema, "0" * 16))
        for start in range(0, count, BATCH):
            codes = synthetic_codes(BATCH, schema, seed=start + 1)
            for own in codes.values():  # one in a hundred is the row before it, with four bits turned
                copy = own[:-1:100].copy()
                copy[:, 0] ^= np.uint8(0b01010101)
                own[1::100] = copy[: len(own[1::100])]
            paths = [f"/photos/{start + i:09}.jpg" for i in range(BATCH)]
            times = random.integers(0, 100, BATCH)
            store.upsert([
                Row(image_id(path), path, 1, int(times[i]), 640, 480, "0" * 32,
                    {name: values[i].tobytes() for name, values in codes.items()})
                for i, path in enumerate(paths)
            ])  # fmt: skip
        took: dict[str, object] = {"rows": count}
        for name, options in {"all pairs": {}, "1 % new": {"newer_than_ns": 98}}.items():
            began: dict[str, float] = {}
            started = time.perf_counter()
            report = find_duplicates(
                store, schema, DuplicateQuery(**options),
                lambda step, began=began: began.setdefault(step.stage, time.perf_counter()),
            )  # fmt: skip
            seconds = time.perf_counter() - started
            took[name] = {
                "seconds": round(seconds, 1), "until comparing": round(began["comparing"] - started, 1),
                "groups": len(report.groups), "distance": report.distance, "compared": report.compared,
            }  # fmt: skip
        store.close()
    took["peak memory, MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="images; without it, only the cost is measured")
    parser.add_argument("--copies", type=float, default=0.1)
    parser.add_argument("--without", nargs="*", default=[], choices=list(AUGMENTATIONS), help="edits left out")
    parser.add_argument("--rows", type=int, default=100_000, help="0 leaves the cost out")
    parser.add_argument("--show", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {}
    if options.rows:
        result["cost"] = cost(options.rows)
        print(json.dumps(result["cost"], indent=1))
    if options.folder:
        edits = [edit for edit in AUGMENTATIONS if edit not in options.without]
        result["quality"] = quality(options.folder, options.copies, edits, options.show)
        for row in result["quality"]:
            print("  ".join(f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items()))
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
