"""Fusion of the same candidates: mg-milvus, ranx, and Milvus' own rankers.

``fuse`` and ranx get three lists of 1,000 candidates as Python objects of their own, ready made. Milvus' rankers are
inside of ``hybrid_search``, so what is compared with them is a whole query. Quality is the precision of the ten best
on labelled images, the image that asks left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pymilvus import AnnSearchRequest, RRFRanker, WeightedRanker

from mg_milvus.codes import signs
from mg_milvus.search.fusion import fuse
from mg_milvus.search.query import Query
from mg_milvus.search.searcher import Searcher
from side_by_side.floats import Binary, row_id
from side_by_side.measuring import in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mg_milvus.codes import Codes
    from mg_milvus.schema.models import Schema

CANDIDATES, BEST = 1000, 10


def fusion_alone(schema: Schema, rounds: int = 50) -> dict[str, float]:
    """Milliseconds for three lists of 1,000."""
    from ranx import Run
    from ranx import fuse as ranx_fuse

    random = np.random.default_rng(0)
    ids = [f"{n:032x}" for n in range(CANDIDATES)]
    distances = {name: random.integers(0, bits, CANDIDATES) for name, bits in schema.bits.items()}
    runs = [
        Run({"query": dict(zip(ids, (-values).astype(float).tolist(), strict=True))}) for values in distances.values()
    ]
    weights = dict.fromkeys(schema.bits, 1.0)
    return in_turn({
        "mg-milvus": lambda: fuse(ids, distances, bits=schema.bits, weights=weights),
        "ranx RRF": lambda: ranx_fuse(runs, method="rrf", params={"k": 60}),
    }, rounds)  # fmt: skip


def rankers(
    schema: Schema, codes: Mapping[str, Codes], labels: Sequence[int], work: Path
) -> dict[str, dict[str, float]]:
    """Way -> milliseconds of a query, precision@10 over every fifth row as a query."""
    from ranx import Run
    from ranx import fuse as ranx_fuse

    binary = Binary(work / "rankers.db", schema)
    binary.insert(0, dict(codes))
    store, ids = binary.store, [row_id(n) for n in range(len(labels))]
    known = dict(zip(ids, labels, strict=True))
    queries = {
        "mg-milvus, rank": Query.of(schema, {"k": BEST + 1, "fusion": "rank"}),
        "mg-milvus, score": Query.of(schema, {"k": BEST + 1, "fusion": "score"}),
    }
    client = store._client
    depth = queries["mg-milvus, rank"].depth

    def own(query: Any, row: int) -> list[str]:
        asked = {name: signs(values[[row]]) for name, values in codes.items()}
        return [hit.id for hit in Searcher(store, schema).search(asked, query)[0]]

    def hybrid(ranker: Any, row: int) -> list[str]:
        requests = [
            AnnSearchRequest([values[row].tobytes()], name, {"metric_type": "HAMMING"}, depth)
            for name, values in codes.items()
        ]
        found = client.hybrid_search(store.collection, requests, ranker, limit=BEST + 1, output_fields=["path"])
        return [hit["id"] for hit in found[0]]

    def ranx(method: str, row: int) -> list[str]:
        lists = []
        for name, values in codes.items():
            (near,) = store.nearest(name, values[[row]], depth)
            lists.append(Run({"query": dict(zip(near.ids, (-near.distances).astype(float).tolist(), strict=True))}))
        fused = ranx_fuse(lists, method=method, params={"k": 60}).to_dict()["query"]
        return sorted(fused, key=lambda found: (-fused[found], found))[: BEST + 1]

    ways = {name: (own, query) for name, query in queries.items()} | {
        "ranx RRF": (ranx, "rrf"),
        "RRFRanker": (hybrid, RRFRanker(60)),
        "WeightedRanker, normalised": (hybrid, WeightedRanker(*[1.0] * len(codes), norm_score=True)),
        "WeightedRanker, as it is": (hybrid, WeightedRanker(*[1.0] * len(codes), norm_score=False)),
    }
    table = {}
    for name, (ask, way) in ways.items():
        right = [
            np.mean([known[found] == labels[row] for found in ask(way, row) if found != ids[row]][:BEST])
            for row in range(0, len(ids), 5)
        ]
        table[name] = {"precision@10": float(np.mean(right))}
    random = np.random.default_rng(3)

    def at_random(ask: Callable[[Any, int], list[str]], way: Any) -> Callable[[], list[str]]:
        return lambda: ask(way, int(random.integers(len(ids))))

    times = in_turn({name: at_random(*asked) for name, asked in ways.items()}, rounds=50)
    for name, value in times.items():
        table[name]["query ms"] = value
    store.close()
    return table
