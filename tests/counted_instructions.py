"""What ``test_costs.py`` runs under callgrind: each piece of work once, between two calls of ``getppid``.

Callgrind writes one file of counts at each of them (``--dump-before=getppid``), so every second file belongs to a piece
of work, in the order of ``work``. Nothing here depends on time, on chance or on the number of cores.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming, pack
from mg_milvus.search.fusion import fuse

if TYPE_CHECKING:
    from collections.abc import Callable

BITS = {"coarse": 64, "mid": 128, "fine": 256}
WEIGHTS = {"coarse": 1.0, "mid": 2.0, "fine": 3.0}
FEW, MANY = 1000, 2000


def plain_fusion(ids: list[str], distances: dict[str, list[int]]) -> list[str]:
    """Weighted reciprocal rank fusion as it is mostly written: lists and a dictionary."""
    scores = dict.fromkeys(ids, 0.0)
    for name, values in distances.items():
        for rank, (_, key) in enumerate(sorted(zip(values, ids, strict=True)), 1):
            scores[key] += WEIGHTS[name] / (60 + rank)
    return sorted(ids, key=lambda key: (-scores[key], key))


def work() -> dict[str, Callable[[], Any]]:
    """Name -> what to do once."""
    random = np.random.default_rng(0)
    ids = {n: [f"{i:032x}" for i in random.permutation(n).tolist()] for n in (FEW, MANY)}
    near = {n: {name: random.integers(0, bits, n) for name, bits in BITS.items()} for n in (FEW, MANY)}
    lists = {name: values.tolist() for name, values in near[FEW].items()}
    values = {n: random.standard_normal((n, 256)).astype(np.float32) for n in (FEW, MANY)}
    codes = {n: random.integers(0, 256, (n, 32), dtype=np.uint8) for n in (FEW, MANY)}
    words, asked = codes[FEW].view(np.uint64), codes[MANY][-1:]
    return {
        "fusion of few": lambda: fuse(ids[FEW], near[FEW], bits=BITS, weights=WEIGHTS),
        "fusion of many": lambda: fuse(ids[MANY], near[MANY], bits=BITS, weights=WEIGHTS),
        "plain fusion of few": lambda: plain_fusion(ids[FEW], lists),
        "packing of few": lambda: pack(values[FEW]),
        "packing of many": lambda: pack(values[MANY]),
        "bare packing of few": lambda: np.packbits(values[FEW] > 0, axis=1),
        "distances to few": lambda: hamming(asked, codes[FEW]),
        "distances to many": lambda: hamming(asked, codes[MANY]),
        "bare distances to few": lambda: np.bitwise_count(words ^ asked.view(np.uint64)).sum(axis=1),
    }


if __name__ == "__main__":
    todo = work()
    gc.disable()
    for action in todo.values():
        action()  # what is made once
        os.getppid()
        action()
        os.getppid()
