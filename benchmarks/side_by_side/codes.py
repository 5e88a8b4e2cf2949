"""Other codes of the same bytes, and FAISS on the same codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy.fft import dctn

from mg_milvus.codes import hamming, pack
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, SAME_CLASS, score_rankings
from mg_milvus.evaluation.scoring import fused_keys, recipes_of
from mg_milvus.images.augment import AUGMENTATIONS
from mg_milvus.images.decode import open_image
from side_by_side.measuring import in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.schema.models import Schema

    Distances = NDArray[np.floating] | NDArray[np.integer]

BATCH = 64
SIDE = 64
"""Pixels a perceptual hash looks at."""


def perceptual(image: Image.Image, bits: int) -> NDArray[np.bool_]:
    """A perceptual hash of any length: the lowest frequencies of the grey image, along the diagonals, by their sign
    against the median (pHash of 64 bits takes a square of 8 x 8)."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
    rows, columns = np.indices((SIDE, SIDE))
    order = np.lexsort((rows.ravel(), (rows + columns).ravel()))[1 : bits + 1]
    low = dctn(grey).ravel()[order]
    return low > np.median(low)


def hyperplanes(dimensions: int, bits: int) -> NDArray[np.float32]:
    """(dimensions, bits) float32 of a normal distribution."""
    return np.random.default_rng(0).standard_normal((dimensions, bits)).astype(np.float32)


class Coded:
    """Images in every kind of code, and how far two sets of them are apart."""

    def __init__(self, encoder: Encoder, floats: str, schema: Schema, centre: NDArray[np.float32]) -> None:
        self.encoder, self.floats, self.schema, self.centre = encoder, floats, schema, centre
        self.bits = sum(schema.bits.values())
        self.planes = hyperplanes(len(centre), self.bits)

    def encode(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Name -> codes, or floats, of RGB images."""
        features = self.encoder.features([self.encoder.prepare(image) for image in images])
        vectors = features[self.floats]
        centred = vectors - self.centre
        codes = self.encoder.codes({name: features[name] for name in self.schema.bits})
        return {
            "mg-milvus": codes,
            **{f"mg-milvus, {name} alone": values for name, values in codes.items()},
            "floats, cosine": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            "signs of the floats": pack(centred[:, : self.bits]),
            "random hyperplanes": pack(centred @ self.planes),
            "perceptual hash": pack(np.array([perceptual(image, self.bits) for image in images])),
        }

    def distances(self, name: str, asked: Any, database: Any) -> Distances:
        """(queries, rows), smaller is nearer."""
        if name == "floats, cosine":
            return -(asked @ database.T)
        if name == "mg-milvus":
            own = {field: hamming(asked[field], database[field]) for field in asked}
            recipe = recipes_of(self.schema)["rank"]
            return np.array([
                fused_keys({field: values[row] for field, values in own.items()}, self.schema.bits, [recipe])[0]
                for row in range(len(next(iter(own.values()))))
            ])  # fmt: skip
        return hamming(asked, database)


def _all(coded: Coded, images: Sequence[Path]) -> dict[str, Any]:
    """Codes of image files, a batch at a time."""
    parts = [
        coded.encode([open_image(path).image for path in images[start : start + BATCH]])
        for start in range(0, len(images), BATCH)
    ]
    return {
        name: {field: np.concatenate([part[name][field] for part in parts]) for field in value}
        if isinstance(value, dict)
        else np.concatenate([part[name] for part in parts])
        for name, value in parts[0].items()
    }


def compare(coded: Coded, labels: Sequence[int], images: Sequence[Path], copies: int) -> dict[str, dict[str, float]]:
    """Kind of code -> bytes, leave-one-out mAP, recall@1 of copies edited at middling strength."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:copies])
    edits = [edit for name, edit in AUGMENTATIONS.items() if name != "all"]
    made = [
        edits[place % len(edits)].apply(open_image(images[row]).image, "medium") for place, row in enumerate(chosen)
    ]
    asked, database = coded.encode(made), _all(coded, images)
    known = np.asarray(labels)
    relevance = np.where(known[:, None] == known[None], SAME_CLASS, 0).astype(np.uint8)
    np.fill_diagonal(relevance, NOT_A_CANDIDATE)
    table = {}
    for name, rows in database.items():
        among = coded.distances(name, rows, rows)
        near = coded.distances(name, asked[name], rows)
        own = near[np.arange(len(chosen)), chosen]
        size = sum(v.shape[1] for v in rows.values()) if isinstance(rows, dict) else rows.nbytes / len(rows)
        table[name] = {
            "bytes": size,
            "mAP": score_rankings([(among, relevance)]).map,
            "copies recall@1": float(((near <= own[:, None]).sum(axis=1) == 1).mean()),
        }
    return table


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
