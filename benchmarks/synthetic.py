"""Synthetic images for a store: clustered codes, rows around them, and an index filled with as many as wanted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import pack
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import image_id
from mg_milvus.session import keep_encoder
from mg_milvus.store.base import Description, Row

if TYPE_CHECKING:
    from mg_milvus.codes import Codes
    from mg_milvus.schema.models import Schema
    from mg_milvus.store.base import Store

CLUSTERS, BATCH = 1000, 2000


def synthetic_codes(count: int, schema: Schema, seed: int) -> dict[str, Codes]:
    """Codes of ``count`` images around 1,000 centres which all granularities share."""
    centres = np.random.default_rng(0)
    random = np.random.default_rng(seed)
    cluster = random.integers(0, CLUSTERS, count)
    codes = {}
    for name, bits in schema.bits.items():
        middle = centres.standard_normal((CLUSTERS, bits)).astype(np.float32)
        codes[name] = pack(middle[cluster] + random.standard_normal((count, bits)).astype(np.float32))
    return codes


def path_of(number: int) -> str:
    """Path of a synthetic image; a thousand to a folder."""
    return f"/photos/{number // 1000:05}/{number:09}.jpg"


def synthetic_rows(start: int, count: int, schema: Schema) -> list[Row]:
    """Rows number ``start`` and those after it, always the same ones. A hundredth has the width 100, and so on."""
    codes = synthetic_codes(count, schema, seed=start + 1)
    return [
        Row(
            image_id(path_of(start + i)), path_of(start + i), 2_000_000, 1_700_000_000_000_000_000,
            100 + (start + i) % 100, 480, f"{start + i:032x}",
            {name: values[i].tobytes() for name, values in codes.items()},
        )
        for i in range(count)
    ]  # fmt: skip


def make(store: Store, schema: Schema) -> None:
    """An empty collection with the encoder that ships."""
    encoder = load_encoder()
    keep_encoder(store, encoder)
    store.create(Description(schema, encoder.fingerprint, 0, encoder.backbone))


def fill(store: Store, schema: Schema, start: int, end: int) -> float:
    """Write rows ``start`` to ``end``; rows a second of the writing alone."""
    taken = 0.0
    for first in range(start, end, BATCH):
        rows = synthetic_rows(first, min(BATCH, end - first), schema)
        started = time.perf_counter()
        store.upsert(rows)
        taken += time.perf_counter() - started
    return (end - start) / taken
