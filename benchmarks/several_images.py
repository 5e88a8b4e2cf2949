"""What several query images find that one does not, and what an image to be unlike adds.

    python benchmarks/several_images.py FOLDER [--images 3] [--queries 300] [--json FILE]

FOLDER holds class/image and is ingested into Milvus Lite. Each query is an indexed image, alone and together with
others of its class that are drawn at random; all query images are left out of the ranking, also where one is asked
alone. The figures are mAP over the whole ranking, and P@10. ``unlike``: for the fifth of the queries with the lowest
P@10, two images of the class that took most of their first ten are given a weight of -0.5.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from result_file import write_result

from mg_milvus.index import ImageIndex
from mg_milvus.search.query import QueryTerm

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 3


def class_of(path: str) -> str:
    return Path(path).parent.name


def average_precision(relevant: np.ndarray, total: int) -> float:
    places = np.flatnonzero(relevant) + 1
    return float((np.arange(1, len(places) + 1) / places).sum() / total)


class Asked:
    """An index, its images by class, and rankings without some of them."""

    def __init__(self, index: ImageIndex) -> None:
        self.index = index
        rows = [row for batch in index.session.store.scan() for row in batch]
        self.paths = sorted(row.path for row in rows)
        self.of_class: dict[str, list[str]] = {}
        for path in self.paths:
            self.of_class.setdefault(class_of(path), []).append(path)

    def ranking(self, terms: Sequence[QueryTerm], left_out: Sequence[str]) -> list[str]:
        depth = min(len(self.paths), 16_384)
        hits = self.index.query_together(terms, k=depth, depth=depth)
        return [hit.path for hit in hits if hit.path not in set(left_out)]

    def figures(self, terms: Sequence[QueryTerm], kind: str, left_out: Sequence[str]) -> tuple[float, float, list[str]]:
        ranked = self.ranking(terms, left_out)
        relevant = np.array([class_of(path) == kind for path in ranked])
        total = sum(path not in left_out for path in self.of_class[kind])
        return average_precision(relevant, total), float(relevant[:10].mean()), ranked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    random = np.random.default_rng(SEED)
    found: dict[str, list[float]] = {name: [] for name in ("one mAP", "one P@10", "several mAP", "several P@10")}
    asked: list[tuple[float, list[str], list[str]]] = []
    with TemporaryDirectory() as place, ImageIndex.open(Path(place) / "several.db") as index:
        index.ingest(options.folder)
        own = Asked(index)
        usable = [path for path in own.paths if len(own.of_class[class_of(path)]) > options.images]
        for path in random.permutation(usable)[: options.queries].tolist():
            kind = class_of(path)
            others = [other for other in own.of_class[kind] if other != path]
            chosen = [path, *random.permutation(others)[: options.images - 1].tolist()]
            for way, count in (("one", 1), ("several", options.images)):
                terms = [QueryTerm(like=name) for name in chosen[:count]]
                precision, first_ten, ranked = own.figures(terms, kind, chosen)
                found[f"{way} mAP"].append(precision)
                found[f"{way} P@10"].append(first_ten)
                if way == "one":
                    asked.append((first_ten, chosen, ranked[:10]))
        hardest = sorted(asked, key=lambda one: one[0])[: max(1, len(asked) // 5)]
        before, after = [], []
        for first_ten, chosen, ten in hardest:
            kind = class_of(chosen[0])
            wrong = Counter(class_of(path) for path in ten if class_of(path) != kind)
            if not wrong:
                continue
            confused = own.of_class[wrong.most_common(1)[0][0]]
            unlike = random.permutation(confused)[:2].tolist()
            terms = [QueryTerm(like=chosen[0]), *(QueryTerm(like=name, weight=-0.5) for name in unlike)]
            before.append(first_ten)
            after.append(own.figures(terms, kind, [*chosen, *unlike])[1])
    result: dict[str, Any] = {name: float(np.mean(values)) for name, values in found.items()}
    result |= {"hardest fifth P@10": float(np.mean(before)), "with two unlike P@10": float(np.mean(after))}
    result |= {"images": options.images, "queries": len(asked), "folder": options.folder.name}
    for name, value in result.items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
