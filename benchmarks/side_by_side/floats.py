"""Milvus Lite with one vector an image, as Milvus' image search tutorials do it, and as mg-milvus uses it.

Rows are written in equal batches: on one side a vector and the file's name, on the other what an ingest of mg-milvus
writes. A query is one search with the name on one side, and on the other three searches for 100 with rows and codes,
and the fusion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pymilvus import DataType, MilvusClient

from mg_milvus.config import MilvusConfig
from mg_milvus.schema.tags import LEVELS
from mg_milvus.search import query
from mg_milvus.search.searcher import Searcher
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import MilvusStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes, RealCodes
    from mg_milvus.schema.models import Schema

BATCH, K = 1000, 10
INDEXES: dict[str, dict[str, Any]] = {
    "FLAT": {"metric_type": "COSINE"},
    "IVF_FLAT": {"metric_type": "COSINE", "params": {"nlist": 1024}},
    "BIN_FLAT": {"metric_type": "HAMMING"},
}
"""Milvus Lite refuses HNSW for floats, and searches an IVF_FLAT of fewer than some 90,000 rows as if it were FLAT."""


def repeated_floats(features: NDArray[np.float32], rows: int, random: np.random.Generator) -> NDArray[np.float32]:
    """(rows, d) float32: the features again and again, each time moved by a tenth of their spread."""
    chosen = features[np.arange(rows) % len(features)]
    return chosen + (0.1 * features.std() * random.standard_normal(chosen.shape)).astype(np.float32)


def repeated_codes(codes: Codes, rows: int, random: np.random.Generator) -> Codes:
    """(rows, bytes) uint8: the codes again and again, each time with one bit in twenty turned."""
    chosen = codes[np.arange(rows) % len(codes)]
    return chosen ^ np.packbits(random.random((rows, 8 * codes.shape[1])) < 0.05, axis=1)


class OneVector:
    """One vector an image: ``dimensions`` floats, or with BIN_FLAT a code of as many bits."""

    def __init__(self, file: Path, dimensions: int, index: str, k: int = K) -> None:
        self.file, self.k = file, k
        self.client = MilvusClient(str(file))
        schema = self.client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("filename", DataType.VARCHAR, max_length=512)
        kind = DataType.BINARY_VECTOR if index == "BIN_FLAT" else DataType.FLOAT_VECTOR
        schema.add_field("vector", kind, dim=dimensions)
        parameters = self.client.prepare_index_params()
        parameters.add_index("vector", index_type=index, **INDEXES[index])
        self.client.create_collection("images", schema=schema, index_params=parameters)

    def insert(self, start: int, vectors: NDArray[Any]) -> None:
        rows = [
            {"id": n, "filename": name_of(n), "vector": as_sent(vector)}
            for n, vector in enumerate(vectors, start)
        ]  # fmt: skip
        self.client.insert("images", rows)

    def fill(self, vectors: NDArray[Any]) -> None:
        for part in batches(len(vectors)):
            self.insert(part.start, vectors[part])

    def search(self, vector: NDArray[Any]) -> list[int]:
        """Numbers of the nearest rows."""
        (found,) = self.client.search("images", [as_sent(vector)], limit=self.k, output_fields=["filename"])
        return [hit["id"] for hit in found]

    def close(self) -> None:
        self.client.close()


def as_sent(vector: NDArray[Any]) -> Any:
    """Floats as they are, a code (bytes,) uint8 as bytes."""
    return vector.tobytes() if vector.dtype == np.uint8 else vector


class Binary:
    """What mg-milvus writes, and its query."""

    def __init__(self, file: Path, schema: Schema, k: int = K) -> None:
        self.file, self.schema = file, schema
        self.store = MilvusStore(MilvusConfig(str(file), collection="images"))
        self.store.create(Description(schema, "0" * 16))
        self.query = query.Query.of(schema, {"k": k})

    def insert(self, start: int, codes: dict[str, Codes]) -> None:
        self.store.upsert([
            row(n, {name: values[n - start] for name, values in codes.items()})
            for n in range(start, start + len(next(iter(codes.values()))))
        ])  # fmt: skip

    def fill(self, codes: dict[str, Codes]) -> None:
        for part in batches(len(next(iter(codes.values())))):
            self.insert(part.start, {name: values[part] for name, values in codes.items()})

    def search(self, codes: dict[str, RealCodes]) -> list[int]:
        """Numbers of the best rows, by real codes (1, bits)."""
        (hits,) = Searcher(self.store, self.schema).search(codes, self.query)
        return [int(hit.id, 16) for hit in hits]

    def close(self) -> None:
        self.store.close()


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
