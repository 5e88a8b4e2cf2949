"""What the adapter costs over the bare pymilvus calls it makes, on Milvus Lite with synthetic codes.

All sides are timed in turn in one run, on the same file: upsert in batches of 1,000 rows, by columns and as
``MilvusClient.upsert`` takes them; and what ``ImageIndex.query`` asks for (three fields of 64, 128 and 256 bits, depth
100, the codes of all candidates, then the rows of ten), beside the same bare searches, and beside bare searches that
return whole rows. Time is that of processors, of this process and of Milvus Lite together, so that a busy
machine disturbs little.

    python benchmarks/store_overhead.py --rows 100000 --json overhead.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from result_file import write_result
from short.turns import spent

from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.filters import among
from mg_milvus.store.milvus import MilvusStore
from mg_milvus.store.rows import COPY, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BATCH, DEPTH, QUERIES, HITS = 1000, 100, 200, 10


def make_rows(start: int, random: np.random.Generator, bits: dict[str, int]) -> list[Row]:
    return [
        Row(
            id=f"{n:032x}",
            path=f"/home/somebody/images/2024/holiday/IMG_{n:08d}.jpg",
            size=2_000_000 + n,
            mtime_ns=1_700_000_000_000_000_000 + n,
            width=4000,
            height=3000,
            content_hash=f"{n:032x}",
            codes={name: random.bytes(b // 8) for name, b in bits.items()},
        )
        for n in range(start, start + BATCH)
    ]


def seconds(action: Callable[[], Any]) -> float:
    start = spent()
    action()
    return spent() - start


def measure_upserts(store: MilvusStore, plain: MilvusStore, rows: int, bits: dict[str, int]) -> tuple[float, float]:
    """Mean seconds of a batch: adapter, bare."""
    random = np.random.default_rng(0)
    layout = Layout(Schema())
    ours, bare = [], []
    for start in range(0, rows, BATCH):
        batch = make_rows(start, random, bits)
        dictionaries = [record | {COPY: layout.copied(record)} for record in layout.records(batch)]
        turns = [
            lambda batch=batch: ours.append(seconds(lambda: store.upsert(batch))),
            lambda made=dictionaries: bare.append(seconds(lambda: plain._client.upsert("plain", made, timeout=10))),
        ]
        for turn in turns if start // BATCH % 2 else reversed(turns):
            turn()
    return statistics.mean(ours), statistics.mean(bare)


def measure_queries(store: MilvusStore, bits: dict[str, int]) -> tuple[dict[str, float], float]:
    """Means in seconds over ``QUERIES`` of each way; rows found on average."""
    random = np.random.default_rng(1)
    columns = Layout(Schema()).output_fields(())
    found: list[int] = []

    def ask_ours(codes: dict[str, np.ndarray]) -> None:
        known: dict[str, Mapping[str, bytes]] = {}
        for name in bits:
            store.nearest(name, codes[name], DEPTH, known=known)
        store.fetch(list(known)[:HITS])
        found.append(len(known))

    def search(name: str, code: np.ndarray, output: list[str], **options: Any) -> Any:
        return store._client.search(
            store.collection, [code[0].tobytes()], anns_field=name, output_fields=output, timeout=10,
            search_params={"metric_type": "HAMMING", "params": {}}, **{"limit": DEPTH, **options},
        )  # fmt: skip

    def ask_bare(codes: dict[str, np.ndarray]) -> None:
        ids = {i: None for name in bits for i in search(name, codes[name], [COPY])[0].ids}
        shortest = min(bits, key=bits.__getitem__)
        search(shortest, codes[shortest], columns, limit=HITS, filter=among(list(ids)[:HITS]))

    def ask_for_rows(codes: dict[str, np.ndarray]) -> None:
        for name in bits:
            search(name, codes[name], [*columns, COPY])

    ways = {"adapter": ask_ours, "bare": ask_bare, "rows": ask_for_rows}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(QUERIES):
        codes = {name: random.integers(0, 256, (1, b // 8), dtype=np.uint8) for name, b in bits.items()}
        order = list(ways.items())
        for way, ask in order[number % 3 :] + order[: number % 3]:
            taken[way].append(seconds(lambda ask=ask, codes=codes: ask(codes)))
    return {way: statistics.mean(times) for way, times in taken.items()}, statistics.mean(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows to write, a multiple of 1,000")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()

    schema = Schema()
    with tempfile.TemporaryDirectory() as folder:
        store = MilvusStore(MilvusConfig(f"{folder}/overhead.db", collection="images"))
        plain = MilvusStore(MilvusConfig(f"{folder}/overhead.db", collection="plain"))
        for each in (store, plain):
            each.create(Description(schema, "0" * 16))
        upsert, bare_upsert = measure_upserts(store, plain, arguments.rows, schema.bits)
        query, found = measure_queries(store, schema.bits)
        store.close()
        plain.close()

    figures = {
        "rows": arguments.rows,
        "upsert_rows_per_second": round(BATCH / upsert),
        "bare_upsert_rows_per_second": round(BATCH / bare_upsert),
        "upsert_ratio": round(upsert / bare_upsert, 3),
        "query_ms": round(1000 * query["adapter"], 2),
        "bare_query_ms": round(1000 * query["bare"], 2),
        "query_ratio": round(query["adapter"] / query["bare"], 3),
        "whole_rows_ms": round(1000 * query["rows"], 2),
        "candidates": round(found, 1),
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        write_result(arguments.json, figures)


if __name__ == "__main__":
    main()
