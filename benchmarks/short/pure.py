"""Fusion and codes, beside the plainest way to do the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming, pack
from mg_milvus.schema.models import Schema
from mg_milvus.search.fusion import fuse

if TYPE_CHECKING:
    from pathlib import Path

    from short.turns import Turns

CANDIDATES, ROWS, BITS = 1000, 100_000, 256
RRF_K = 60


def plain_fusion(
    ids: list[str], distances: dict[str, list[int]], weights: dict[str, float]
) -> list[tuple[str, float]]:  # fmt: skip
    """Weighted reciprocal rank fusion as it is mostly written: sorted lists and a dictionary."""
    scores = dict.fromkeys(ids, 0.0)
    for name, values in distances.items():
        for rank, (_, key) in enumerate(sorted(zip(values, ids, strict=True)), 1):
            scores[key] += weights[name] / (RRF_K + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def ratios(turns: Turns, _work: Path, _folder: Path | None) -> dict[str, float]:
    random = np.random.default_rng(0)
    bits = Schema().bits
    weights = dict.fromkeys(bits, 1.0)
    ids = [f"{n:032x}" for n in random.permutation(CANDIDATES).tolist()]
    near = {name: random.integers(0, length, CANDIDATES) for name, length in bits.items()}
    lists = {name: values.tolist() for name, values in near.items()}
    values = random.standard_normal((2000, BITS)).astype(np.float32)
    codes = random.integers(0, 256, (ROWS, BITS // 8), dtype=np.uint8)
    ones = np.array([bin(value).count("1") for value in range(256)], np.uint8)
    return {
        "fusion": turns.times_as_fast(
            lambda: fuse(ids, near, bits=bits, weights=weights), lambda: plain_fusion(ids, lists, weights)
        ),
        "packing": turns.times_as_fast(lambda: pack(values), lambda: np.packbits(values > 0, axis=1)),
        "distances": turns.times_as_fast(
            lambda: hamming(codes[:1], codes), lambda: ones[codes ^ codes[:1]].sum(axis=1, dtype=np.int32)
        ),
    }
