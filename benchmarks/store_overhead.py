"""What the adapter costs over the bare pymilvus calls it makes, on Milvus Lite with synthetic codes.

Both sides are timed in turn in one run, on the same file: upsert in batches of 1,000 rows, and a question as
``ImageIndex.query`` asks it (three fields of 64, 128 and 256 bits, depth 100, then all columns and codes of the
union). Medians, so that a busy machine disturbs little.

    python benchmarks/store_overhead.py --rows 100000 --json overhead.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.schema import Schema
from mg_milvus.store import Description, Row
from mg_milvus.store.milvus import MilvusStore

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, DEPTH, QUESTIONS = 1000, 100, 200


def make_rows(start: int, random: np.random.Generator, bits: dict[str, int]) -> list[Row]:
    return [
        Row(
            id=f"{n:032x}",
            path=f"/home/somebody/pictures/2024/holiday/IMG_{n:08d}.jpg",
            size=2_000_000 + n,
            mtime_ns=1_700_000_000_000_000_000 + n,
            width=4000,
            height=3000,
            content_hash=f"{n:032x}",
            codes={name: random.bytes(b // 8) for name, b in bits.items()},
        )
        for n in range(start, start + BATCH)
    ]


def as_dictionary(row: Row) -> dict[str, Any]:
    fixed = {name: getattr(row, name) for name in Row.__slots__ if name not in {"codes", "fields"}}
    return fixed | dict(row.codes)


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_upserts(store: MilvusStore, plain: MilvusStore, rows: int, bits: dict[str, int]) -> tuple[float, float]:
    """Median seconds of a batch: adapter, bare."""
    random = np.random.default_rng(0)
    ours, bare = [], []
    for start in range(0, rows, BATCH):
        batch = make_rows(start, random, bits)
        dictionaries = [as_dictionary(row) for row in batch]
        turns = [
            lambda batch=batch: ours.append(seconds(lambda: store.upsert(batch))),
            lambda made=dictionaries: bare.append(seconds(lambda: plain._client.upsert("plain", made, timeout=10))),
        ]
        for turn in turns if start // BATCH % 2 else reversed(turns):
            turn()
    return statistics.median(ours), statistics.median(bare)


def measure_questions(store: MilvusStore, bits: dict[str, int]) -> dict[str, float]:
    """Medians in seconds over ``QUESTIONS``: adapter, bare; candidates fetched on average."""
    random = np.random.default_rng(1)
    fields = [name for name in Row.__slots__ if name not in {"codes", "fields"}] + list(bits)
    candidates: list[int] = []

    def ask_ours(codes: dict[str, np.ndarray]) -> None:
        ids = {i for name in bits for i in store.nearest(name, codes[name], DEPTH)[0].ids}
        candidates.append(len(store.fetch(list(ids), list(bits))))

    def ask_bare(codes: dict[str, np.ndarray]) -> None:
        ids = set()
        for name in bits:
            found = store._client.search(
                store.collection, [codes[name][0].tobytes()], limit=DEPTH, anns_field=name, timeout=10,
                search_params={"metric_type": "HAMMING", "params": {}},
            )  # fmt: skip
            ids.update(found[0].ids)
        list(store._client.query(
            store.collection, filter="id in [" + ",".join(f'"{i}"' for i in ids) + "]", output_fields=fields,
            consistency_level="Strong", timeout=10,
        ))  # fmt: skip

    ours, bare = [], []
    for number in range(QUESTIONS):
        codes = {name: random.integers(0, 256, (1, b // 8), dtype=np.uint8) for name, b in bits.items()}
        if number % 2:
            ours.append(seconds(lambda codes=codes: ask_ours(codes)))
            bare.append(seconds(lambda codes=codes: ask_bare(codes)))
        else:
            bare.append(seconds(lambda codes=codes: ask_bare(codes)))
            ours.append(seconds(lambda codes=codes: ask_ours(codes)))
    return {
        "adapter": statistics.median(ours),
        "bare": statistics.median(bare),
        "candidates": statistics.mean(candidates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows to write, a multiple of 1,000")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()

    schema = Schema()
    with tempfile.TemporaryDirectory() as folder:
        store = MilvusStore(f"{folder}/overhead.db", "pictures")
        plain = MilvusStore(f"{folder}/overhead.db", "plain")
        for each in (store, plain):
            each.create(Description(schema, "benchmark"))
        upsert, bare_upsert = measure_upserts(store, plain, arguments.rows, schema.bits)
        question = measure_questions(store, schema.bits)
        store.close()
        plain.close()

    figures = {
        "rows": arguments.rows,
        "upsert_rows_per_second": round(BATCH / upsert),
        "bare_upsert_rows_per_second": round(BATCH / bare_upsert),
        "upsert_ratio": round(upsert / bare_upsert, 3),
        "query_ms": round(1000 * question["adapter"], 2),
        "bare_query_ms": round(1000 * question["bare"], 2),
        "query_ratio": round(question["adapter"] / question["bare"], 3),
        "candidates": round(question["candidates"], 1),
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
