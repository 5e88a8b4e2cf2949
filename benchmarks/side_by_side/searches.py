"""FAISS on the same codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from side_by_side.measuring import in_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from mg_milvus.codes import Codes
    from mg_milvus.schema.models import Schema


def faiss_floor(codes: dict[str, Codes], schema: Schema, store: Any, rounds: int = 50) -> dict[str, dict[str, float]]:
    """Milliseconds of a search for 100 on each field: FAISS in memory, and Milvus Lite with the same rows."""
    import faiss

    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(1)
    table: dict[str, dict[str, float]] = {}
    for name, values in codes.items():
        flat = faiss.IndexBinaryFlat(schema.bits[name])
        flat.add(values)
        graph = faiss.IndexBinaryHNSW(schema.bits[name], 16)
        graph.add(values)

        def one(values: Codes = values) -> Codes:
            return values[[random.integers(len(values))]]

        actions: dict[str, Callable[[], Any]] = {
            "FAISS flat ms": lambda index=flat, one=one: index.search(one(), 100),
            "FAISS HNSW ms": lambda index=graph, one=one: index.search(one(), 100),
            "Milvus Lite ms": lambda name=name, one=one: store.nearest(name, one(), 100),
        }
        asked = values[:: max(1, len(values) // 200)]
        exact, found = flat.search(asked, 10)[0], graph.search(asked, 10)[0]
        table[name] = in_turn(actions, rounds) | {"HNSW recall@10": float((found <= exact[:, -1:]).mean())}
    return table
