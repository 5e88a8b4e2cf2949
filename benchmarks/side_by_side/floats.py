"""Milvus Lite with the float features of the same network, as Milvus' image search tutorials do it.

Real features and codes of a folder, repeated with a little noise until there are enough rows, go into Milvus Lite in
equal batches: on one side one FLOAT_VECTOR with COSINE and the file's name, on the other what an ingest of mg-milvus
writes. A query is one search for 10 with the name on one side, and on the other three searches for 100 with rows and
codes, and the fusion. Memory is what Milvus' own process takes.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
from processes import engine_pid, memory
from pymilvus import DataType, MilvusClient

from mg_milvus.codes import signs
from mg_milvus.config import MilvusConfig
from mg_milvus.schema.tags import LEVELS
from mg_milvus.search import query
from mg_milvus.search.searcher import Searcher
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import MilvusStore
from side_by_side.measuring import in_turn, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.schema.models import Schema

BATCH, K = 1000, 10
COSINE_INDEXES: dict[str, dict[str, Any]] = {
    "FLAT": {},
    "IVF_FLAT": {"nlist": 1024},
    "HNSW": {"M": 16, "efConstruction": 200},
    "AUTOINDEX": {},
}


def repeated_floats(features: NDArray[np.float32], rows: int, random: np.random.Generator) -> NDArray[np.float32]:
    """(rows, d) float32: the features again and again, each time moved by a tenth of their spread."""
    chosen = features[np.arange(rows) % len(features)]
    return chosen + (0.1 * features.std() * random.standard_normal(chosen.shape)).astype(np.float32)


def repeated_codes(codes: Codes, rows: int, random: np.random.Generator) -> Codes:
    """(rows, bytes) uint8: the codes again and again, each time with one bit in twenty turned."""
    chosen = codes[np.arange(rows) % len(codes)]
    return chosen ^ np.packbits(random.random((rows, 8 * codes.shape[1])) < 0.05, axis=1)


class Floats:
    """One float vector an image."""

    def __init__(self, file: Path, dimensions: int, index: str) -> None:
        self.file = file
        self.client = MilvusClient(str(file))
        schema = self.client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("filename", DataType.VARCHAR, max_length=512)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimensions)
        parameters = self.client.prepare_index_params()
        parameters.add_index("vector", index_type=index, metric_type="COSINE", params=COSINE_INDEXES[index])
        self.client.create_collection("images", schema=schema, index_params=parameters)

    def insert(self, start: int, vectors: NDArray[np.float32]) -> None:
        rows = [
            {"id": n, "filename": name_of(n), "vector": vector}
            for n, vector in enumerate(vectors, start)
        ]  # fmt: skip
        self.client.insert("images", rows)

    def ask(self, vector: NDArray[np.float32]) -> None:
        self.client.search("images", [vector], limit=K, output_fields=["filename"])


class Binary:
    """What mg-milvus writes and asks."""

    def __init__(self, file: Path, schema: Schema) -> None:
        self.file, self.schema = file, schema
        self.store = MilvusStore(MilvusConfig(str(file), collection="images"))
        self.store.create(Description(schema, "0" * 16))
        self.query = query.Query.of(schema, {"k": K})

    def insert(self, start: int, codes: dict[str, Codes]) -> None:
        self.store.upsert([
            row(n, {name: values[n - start] for name, values in codes.items()})
            for n in range(start, start + len(next(iter(codes.values()))))
        ])  # fmt: skip

    def ask(self, codes: dict[str, Codes]) -> None:
        Searcher(self.store, self.schema).search({name: signs(own) for name, own in codes.items()}, self.query)


def row(number: int, codes: dict[str, Codes]) -> Row:
    """A row as an ingest writes it."""
    return Row(
        id=row_id(number), path=name_of(number), size=2_000_000 + number, mtime_ns=1_700_000_000_000_000_000 + number,
        width=4000, height=3000, content_hash=row_id(number),
        codes={name: code.tobytes() for name, code in codes.items()}, tags=tags_of(number),
    )  # fmt: skip


def tags_of(number: int) -> list[int]:
    """Two names and a group."""
    numbers = number % 1000, (number + 500) % 1000, 1000 + number % 50
    return [tag * LEVELS + level for tag, level in zip(numbers, (20, 5, 25), strict=True)]


def row_id(number: int) -> str:
    return f"{number:032x}"


def name_of(number: int) -> str:
    return f"/home/somebody/images/2024/holiday/IMG_{number:08d}.jpg"


def batches(rows: int) -> Iterator[slice]:
    for start in range(0, rows, BATCH):
        yield slice(start, min(rows, start + BATCH))


def indexes_of_lite(folder: Path) -> list[str]:
    """Those of ``COSINE_INDEXES`` that Milvus Lite makes."""
    made = []
    for index in COSINE_INDEXES:
        try:
            Floats(folder / f"try-{index}.db".lower(), 8, index).client.close()
        except Exception as error:  # noqa: BLE001 - whatever pymilvus raises, the index cannot be made
            print(f"Milvus Lite makes no {index} for floats: {str(error)[:100]}")
        else:
            made.append(index)
    return made


def compare(
    features: NDArray[np.float32], codes: dict[str, Codes], schema: Schema, work: Path, rows: int
) -> dict[str, dict[str, float]]:
    """Way -> rows a second, milliseconds of a query, bytes of disk and memory an image."""
    random = np.random.default_rng(0)
    vectors = repeated_floats(features, rows, random)
    hashed = {name: repeated_codes(values, rows, random) for name, values in codes.items()}
    sides: dict[str, tuple[Any, float]] = {}
    table: dict[str, dict[str, float]] = {}
    ways = {f"floats, {index}": index for index in indexes_of_lite(work)}
    for name, index in ways.items():
        file = work / f"floats-{index}.db".lower()
        side = Floats(file, vectors.shape[1], index)
        before = memory(engine_pid(file))
        taken = sum(seconds(lambda p=part, s=side: s.insert(p.start, vectors[p])) for part in batches(rows))
        sides[name], table[name] = (side, before), {"rows/s": rows / taken}
    file = work / "binary.db"
    own = Binary(file, schema)
    before = memory(engine_pid(file))
    taken = sum(
        seconds(lambda p=part: own.insert(p.start, {name: values[p] for name, values in hashed.items()}))
        for part in batches(rows)
    )
    sides["mg-milvus"], table["mg-milvus"] = (own, before), {"rows/s": rows / taken}
    gc.collect()

    def query(side: Any) -> Any:
        if isinstance(side, Floats):
            return lambda: side.ask(vectors[random.integers(rows)])
        return lambda: side.ask({name: values[[random.integers(rows)]] for name, values in hashed.items()})

    times = in_turn({name: query(side) for name, (side, _) in sides.items()}, rounds=50)
    for name, (side, before) in sides.items():
        table[name] |= {
            "query ms": times[name],
            "disk bytes": sum(file.stat().st_size for file in work.glob(f"{side.file.name}*")) / rows,
            "memory bytes": (memory(engine_pid(side.file)) - before) * 2**20 / rows,
        }
    return table
