"""How long an overview takes: clusters of synthetic codes that lie in clusters, with the default lengths of codes.

``python benchmarks/clusters.py --images 100000`` prints the processor time of each part, and the share of images whose
cluster holds mostly images of their kind.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.schema.models import Schema
from mg_milvus.search.overview import make_clusters
from mg_milvus.store.base import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mg_milvus.store.base import Store

KINDS, INNER = 30, 8
FLIPPED = 0.12
"""Share of the bits in which an image differs from its kind."""
COPIES = 0.05


class Synthetic:
    """As much of a ``Store`` as an overview needs."""

    def __init__(self, images: int, schema: Schema) -> None:
        random = np.random.default_rng(0)
        self.kinds = random.integers(0, KINDS, images)
        inner = random.integers(0, INNER, images)
        self.codes = {}
        for name, bits in schema.bits.items():
            of = self.kinds if name == "coarse" else self.kinds * INNER + inner
            middles = random.random((KINDS * INNER, bits)) < 0.5
            codes = np.packbits(middles[of] ^ (random.random((images, bits)) < (0.3 if name == "fine" else FLIPPED)), 1)
            if name == "fine":
                copies = np.flatnonzero(random.random(images) < COPIES)
                codes[copies] = codes[copies - 1]
            self.codes[name] = codes

    def count(self) -> int:
        return len(self.kinds)

    def scan(self, _: None, granularities: tuple[str, ...]) -> Iterator[list[Row]]:
        for start in range(0, self.count(), 1000):
            yield [
                Row(f"{n:032x}", f"/images/{n}.jpg", 0, 0, 4, 3, "",
                    {name: self.codes[name][n].tobytes() for name in granularities})
                for n in range(start, min(start + 1000, self.count()))
            ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    schema = Schema()
    store = Synthetic(arguments.images, schema)
    read = time.process_time()
    for _ in store.scan(None, tuple(schema.bits)):
        pass
    started = time.process_time()
    kept = make_clusters(cast_store(store), schema, "0" * 16, None, lambda _: None)
    done = time.process_time()
    places = kept.clusters._places[:, 0]
    pure = sum(np.bincount(store.kinds[places == own]).max() for own in np.unique(places))
    started_again = time.process_time()
    data = kept.to_bytes()
    print(json.dumps({
        "images": arguments.images, "clusters": len(kept.clusters.clusters),
        "seconds": round(done - started - (started - read), 1), "kept MB": round(len(data) / 1e6, 1),
        "seconds to write": round(time.process_time() - started_again, 1), "pure": round(pure / len(places), 3),
        "groups of near-duplicates": sum(
            part.granularity == "fine" for one in kept.clusters.clusters for inner in one.parts for part in inner.parts
        ),
    }))  # fmt: skip


def cast_store(store: Synthetic) -> Store:
    return store  # type: ignore[return-value]


if __name__ == "__main__":
    main()
