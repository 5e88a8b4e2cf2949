"""What numpy does without store and network: candidates for near-duplicates, fusion, the metrics of an evaluation.

    python benchmarks/numpy_work.py [--codes 100000] [--queries 10000] [--rows 50000] [--json FILE]

Seconds of processors, which what else the machine does hardly changes; on n idle cores the time is about an n-th, but
for the fusion, which is one core's. Codes are synthetic, of the default schema. An evaluation is measured on a
fiftieth of its queries, and multiplied.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from result_file import write_result
from side_by_side.measuring import show
from synthetic import synthetic_codes

from mg_milvus.duplicates.find import CANDIDATES, NEAREST
from mg_milvus.duplicates.pairs import as_words, nearest_pairs
from mg_milvus.evaluation.metrics import relevance
from mg_milvus.evaluation.scoring import code_rankings, recipes_of, score_all
from mg_milvus.schema.models import Schema
from mg_milvus.search.fusion import fuse

if TYPE_CHECKING:
    from collections.abc import Callable

FUSED, ROUNDS = 1000, 300
SHARE, CLASSES = 50, 10


def taken(action: Callable[[], Any]) -> float:
    """Seconds of processors."""
    start = time.process_time()
    action()
    return time.process_time() - start


def duplicates(codes: int) -> dict[str, float]:
    """Candidates among so many codes: seconds, pairs, and the memory that the comparison takes beyond the codes."""
    schema = Schema()
    words = as_words(synthetic_codes(codes, schema, seed=1)["fine"])
    radius = int(CANDIDATES * schema.bits["fine"])
    pairs = [0]

    def run() -> None:
        pairs[0] = len(nearest_pairs(words, codes, radius, NEAREST).left)

    tracemalloc.start()
    seconds = taken(run)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": seconds, "pairs a code": pairs[0] / codes, "memory MB": most / 2**20}


def fusion() -> dict[str, float]:
    """Milliseconds of one fusion of three granularities."""
    random, schema = np.random.default_rng(0), Schema()
    ids = [f"{n:032x}" for n in random.permutation(FUSED)]
    distances = {name: bits * random.random(FUSED) for name, bits in schema.bits.items()}
    times = [taken(lambda: fuse(ids, distances, bits=schema.bits, weights=schema.weights)) for _ in range(ROUNDS)]
    return {"ms": 1000 * statistics.median(times)}


def evaluation(queries: int, rows: int) -> dict[str, float]:
    """Seconds of every query against every row: the granularities, and with all fusions and profiles."""
    schema, random, some = Schema(), np.random.default_rng(0), max(1, queries // SHARE)
    asked, database = synthetic_codes(some, schema, seed=1), synthetic_codes(rows, schema, seed=2)
    labels, classes = random.integers(0, CLASSES, some), random.integers(0, CLASSES, rows)

    def scored(recipes: dict[str, Any]) -> None:
        rankings = code_rankings(asked, database, recipes)
        score_all((some, rows), rankings, lambda part: relevance(labels[part], classes), "scoring")

    return {
        "codes s": taken(lambda: scored({})) * queries / some,
        "codes and fusions s": taken(lambda: scored(recipes_of(schema))) * queries / some,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--codes", type=int, default=100_000, help="codes among which near-duplicates are looked for")
    parser.add_argument("--queries", type=int, default=10_000, help="of the evaluation")
    parser.add_argument("--rows", type=int, default=50_000, help="of the evaluation")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = {
        "duplicates": duplicates(options.codes),
        "fusion": fusion(),
        "evaluation": evaluation(options.queries, options.rows),
    }
    for name, own in figures.items():
        show(name, list(own), {"": own})
    if options.json:
        write_result(
            options.json, {"codes": options.codes, "queries": options.queries, "rows": options.rows, **figures}
        )


if __name__ == "__main__":
    main()
