"""What a query costs beyond the encoding, on a Milvus Lite file of synthetic codes.

    python benchmarks/query_latency.py [--rows 100000] [--json FILE]

Times ``ImageIndex.query_codes`` whole: three searches of depth 100 that bring the rows along, fusion, hits. Beside it,
in turn, the searches alone; the rest is this package's own work. The codes are those of clustered images: random
codes would make every candidate list different, which images do not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from result_file import write_result
from synthetic import fill, make, synthetic_codes

from mg_milvus.config import MilvusConfig
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.milvus import open_store

if TYPE_CHECKING:
    from mg_milvus.store.base import Row

QUERIES, DEPTH = 100, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    schema = Schema()
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"{scratch}/latency.db"
        store = open_store(MilvusConfig(uri, collection=schema.collection))
        make(store, schema)
        fill_rate = fill(store, schema, 0, options.rows)
        store.close()
        with ImageIndex.open(uri) as index:
            queries = synthetic_codes(QUERIES, schema, seed=0)
            whole, calls = [], []
            for i in range(QUERIES):
                asked = {name: codes[i] for name, codes in queries.items()}
                started = time.perf_counter()
                index.query_codes(asked, k=10, depth=DEPTH)
                whole.append(time.perf_counter() - started)
                started = time.perf_counter()
                live = index._session.store
                known: dict[str, Row] = {}
                for name in schema.bits:
                    live.nearest(name, asked[name][None], DEPTH, known=known)
                calls.append(time.perf_counter() - started)
    result = {
        "rows": options.rows,
        "upsert, rows/s": round(fill_rate),
        "query p50, ms": round(1000 * float(np.percentile(whole, 50)), 1),
        "query p95, ms": round(1000 * float(np.percentile(whole, 95)), 1),
        "store calls p50, ms": round(1000 * float(np.percentile(calls, 50)), 1),
        "query over store calls": round(float(np.median(np.array(whole) / np.array(calls))), 3),
    }
    print("\n".join(f"{name:32}{value:>10}" for name, value in result.items()))
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
