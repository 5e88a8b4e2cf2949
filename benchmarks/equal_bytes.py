"""Codes of equal bytes from the same float features: mg-milvus beside the quantizers that people would use instead.

    make peers
    build/peers/bin/python benchmarks/equal_bytes.py corel1k tiny-imagenet/val [--most 2000] [--json FILE]

Each folder holds class/image or group/class/image; at most ``--most`` images of at most ``CLASSES`` classes are encoded
once. Everything is fitted to them without labels, and they are searched: leave-one-out mAP of classes, and recall@1 of
200 copies, an edit each at middling strength. ``ms``: a query of all rows in one thread, the quickest of three rounds.

- Queries of FAISS' quantizers (PQ, OPQ, RaBitQ, SQ8, float16) are floats; RaBitQ, after a random rotation, is what
  Milvus' IVF_RABITQ keeps of a vector; ``refined`` ranks its first hundred again by vectors of 8 bits a dimension, as
  Milvus' refinement does, which are counted in its bytes. All of them get the ``COMPONENTS`` first principal
  components, for their rotations need more images than dimensions, and fewer of these where the name says PCA.
- ``first floats``: the first dimensions as they are, in float16, as an embedding made for it can be cut (Matryoshka).
- Signs, ITQ, random hyperplanes, spectral and anchor graph hashing (``spectral_methods.py``) compare codes with codes,
  the perceptual hash, too. Those that learn have no more bits than ``COMPONENTS``: 120 bytes where others have 128.
- mg-milvus: three granularities, fused by rank with the default weights; copies by ``fine`` alone, as the profile
  ``instance`` without its views. A query is known by its real codes, as in the product; ``codes with codes``: by its
  code.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from heads import sample
from result_file import write_result
from scipy.fft import dctn
from side_by_side.measuring import show
from spectral_methods import anchor_graph_hashing, spectral_hashing

from mg_milvus.codes import hamming, in_steps, pack, signs, weighted_hamming
from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.encoded import encode_labelled
from mg_milvus.evaluation.labels import read_labelled
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, SAME_CLASS, score_rankings
from mg_milvus.images.augment import AUGMENTATIONS
from mg_milvus.images.decode import open_image
from mg_milvus.schema.models import Schema
from mg_milvus.search.fusion import fuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    Floats = NDArray[np.float32]
    Distances = NDArray[Any]
    Search = Callable[[Any], Distances]
    """Queries -> (queries, rows), smaller is nearer."""
    Method = Callable[[Any, int], Callable[[Any], Distances]]

SIZES = {16: (32, 48, 48), 32: (64, 64, 128), 56: (64, 128, 256), 128: (128, 384, 512)}
"""Bytes -> bits of ``coarse``, ``mid`` and ``fine``."""
FLOATS, FINE = "mid", "fine"
"""``mid`` has the float features that rank classes best (benchmarks/quality.py)."""
COMPONENTS, COPIES, REFINED, ROUNDS = 960, 200, 100, 3
RABITQ_BYTES = 8
"""What RaBitQ keeps of a vector beside its bits."""
SIDE = 64
"""Pixels that a perceptual hash looks at."""


def quantizer(kind: str, database: Floats) -> Search:
    """A quantizer of FAISS, by the name of its factory, which holds the database."""
    index = faiss.index_factory(database.shape[1], kind)
    index.train(database)
    index.add(database)
    return lambda asked: by_row(*index.search(asked, len(database)))


def rabitq(size: int, database: Floats, *, refined: bool) -> Search:
    """Bits of RaBitQ; ``refined``: half of the bytes are a vector of 8 bits a dimension that ranks the first again."""
    if not refined:
        return quantizer(f"PCAR{8 * (size - RABITQ_BYTES)},RaBitQ", database)
    half = size // 2
    first = quantizer(f"PCAR{8 * (half - RABITQ_BYTES)},RaBitQ" if half > RABITQ_BYTES else f"PCA{half},SQ8", database)
    exact = quantizer(f"PCA{half},SQ8", database)

    def distances(asked: Floats) -> Distances:
        near, better = first(asked), exact(asked)
        chosen = np.argpartition(near, REFINED, axis=1)[:, :REFINED]
        np.put_along_axis(near, chosen, np.take_along_axis(better, chosen, 1) - better.max() - 1, 1)
        return near

    return distances


def by_row(found: Distances, rows: Distances) -> Distances:
    """Distances in the order of the database; a row that is not returned is farther than all others."""
    placed = np.full(found.shape, np.inf, np.float32)
    query, place = np.nonzero(rows >= 0)
    placed[query, rows[query, place]] = found[query, place]
    return placed


def binary(bits: int, database: Floats, *, rotated: bool) -> Search:
    """Signs of the first principal components; ``rotated`` as ITQ does it (Gong and Lazebnik, CVPR 2011)."""
    kind = faiss.ITQTransform(database.shape[1], bits, True) if rotated else faiss.PCAMatrix(database.shape[1], bits)
    kind.train(database)
    codes = pack(kind.apply(database))
    return lambda asked: hamming(pack(kind.apply(asked)), codes)


def hyperplanes(bits: int, database: Floats) -> Search:
    """Signs of projections on random directions."""
    planes = np.random.default_rng(0).standard_normal((database.shape[1], bits)).astype(np.float32)
    codes = pack(database @ planes)
    return lambda asked: hamming(pack(asked @ planes), codes)


def learned(method: Method, bits: int, database: Floats) -> Search:
    """Signs of a hash function that is learned from the database."""
    real = method(database.astype(np.float64), bits)
    codes = pack(real(database.astype(np.float64)))
    return lambda asked: hamming(pack(real(asked.astype(np.float64))), codes)


def half_floats(values: Floats) -> Search:
    kept = values.astype(np.float16)
    return lambda asked: squared(asked.astype(np.float16), kept)


def squared(asked: Distances, database: Distances) -> Distances:
    a, b = asked.astype(np.float32), database.astype(np.float32)
    return (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)[None]


def perceptual(images: Sequence[Image.Image], bits: int) -> Any:
    """Perceptual hashes of any length: the lowest frequencies of the grey image, along the diagonals, by their sign
    against the median (pHash of 64 bits takes a square of 8 x 8)."""
    rows, columns = np.indices((SIDE, SIDE))
    order = np.lexsort((rows.ravel(), (rows + columns).ravel()))[1 : bits + 1]
    grey = [np.asarray(image.convert("L").resize((SIDE, SIDE)), np.float32) for image in images]
    low = np.array([dctn(own).ravel()[order] for own in grey])
    return pack(low > np.median(low, axis=1, keepdims=True))


class Set:
    """Labelled images of a folder, encoded once, and edited copies of some."""

    def __init__(self, folder: Path, most: int) -> None:
        self.encoder = load_encoder("builtin")
        encoded = encode_labelled(sample(read_labelled(folder), most), self.encoder)
        assert encoded.labelled.classes
        self.labels = encoded.labelled.classes.ids()
        self.paths = [Path(found.path) for found in encoded.labelled.images]
        self.features = {name: values.astype(np.float32) for name, values in encoded.features.items()}
        self.chosen = np.sort(np.random.default_rng(0).permutation(len(self.paths))[:COPIES])
        edits = [edit for name, edit in AUGMENTATIONS.items() if name != "all"]
        self.copies = [
            edits[place % len(edits)].apply(open_image(self.paths[row]).image, "medium")
            for place, row in enumerate(self.chosen)
        ]
        self.edited = self.encoder.features([self.encoder.prepare(image) for image in self.copies])
        self.relevance = np.where(self.labels[:, None] == self.labels[None], SAME_CLASS, 0).astype(np.uint8)
        np.fill_diagonal(self.relevance, NOT_A_CANDIDATE)

    def figures(
        self, size: float, database: Any, copies: Any, search: Search, near: Search | None = None
    ) -> dict[str, float]:
        """Bytes, mAP, recall of copies and milliseconds; ``near``: what copies are searched with."""
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            among = search(database)
            seconds.append(time.perf_counter() - start)
        found = (near or search)(copies)
        own = found[np.arange(len(self.chosen)), self.chosen]
        return {
            "bytes": size,
            "mAP": round(score_rankings([(among, self.relevance)]).map, 4),
            "copies recall@1": round(float(((found <= own[:, None]).sum(axis=1) == 1).mean()), 3),
            "ms": round(1000 * min(seconds) / len(among), 3),
        }

    def own(self, size: int) -> dict[str, dict[str, float]]:
        """mg-milvus: queries by real codes, and by codes."""
        bits = dict(zip(Schema().bits, SIZES[size], strict=True))
        encoder = self.encoder.adapted(self.features, bits)
        codes = encoder.codes({name: self.features[name] for name in bits})
        ids, weights = [f"{row:08}" for row in range(len(self.labels))], Schema().weights

        def fused(asked: Mapping[str, Distances]) -> Distances:
            apart = {name: weighted_hamming(values, codes[name]) for name, values in asked.items()}
            every = []
            for row in range(len(asked[FINE])):
                found = fuse(ids, {name: own[row] for name, own in apart.items()}, bits=bits, weights=weights)
                every.append(-np.round(found.scores, 12))
            return np.array(every)

        def by_fine(asked: Mapping[str, Distances]) -> Distances:
            return weighted_hamming(asked[FINE], codes[FINE])

        def real(features: Mapping[str, Any]) -> dict[str, Distances]:
            return {n: in_steps(v) for n, v in encoder.real_codes({n: features[n] for n in bits}).items()}

        asked, copies = real(self.features), real(self.edited)
        return {
            f"mg-milvus, {size}": self.figures(size, asked, copies, fused, by_fine),
            f"mg-milvus, codes with codes, {size}": self.figures(
                size,
                {name: signs(values) for name, values in codes.items()},
                {name: signs(pack(values)) for name, values in copies.items()},
                fused,
                by_fine,
            ),
        }


def compare(own: Set) -> dict[str, dict[str, float]]:
    """Name of the codes, with their bytes -> figures."""
    unit, edited = (
        values / np.linalg.norm(values, axis=1, keepdims=True) for values in (own.features[FLOATS], own.edited[FLOATS])
    )
    table = {"floats, cosine": own.figures(4 * unit.shape[1], unit, edited, lambda asked: -(asked @ unit.T))}
    centre = unit.mean(axis=0)
    axes = np.linalg.svd(unit - centre, full_matrices=False)[2][:COMPONENTS].T
    database, copies = (np.ascontiguousarray((values - centre) @ axes, np.float32) for values in (unit, edited))
    pictures = [open_image(path).image for path in own.paths]
    for size in SIZES:
        table |= own.own(size)
        kept, learnable = size // 2, min(8 * size, COMPONENTS)
        first = half_floats(unit[:, :kept])
        quantizers: dict[str, Search] = {
            "PCA, PQ": quantizer(f"PCA{4 * size},PQ{size}np", database),
            "OPQ": quantizer(f"OPQ{size}_{4 * size},PQ{size}np", database),
            "PCA, RaBitQ": rabitq(size, database, refined=False),
            "PCA, RaBitQ, refined": rabitq(size, database, refined=True),
            "PCA, SQ8": quantizer(f"PCA{size},SQ8", database),
            "PCA, float16": quantizer(f"PCA{kept},SQfp16", database),
            "random hyperplanes": hyperplanes(8 * size, database),
        }
        hashes: dict[str, Search] = {
            "ITQ": binary(learnable, database, rotated=True),
            "PCA, signs": binary(learnable, database, rotated=False),
            "spectral hashing": learned(spectral_hashing, learnable, database),
            "anchor graph hashing": learned(anchor_graph_hashing, learnable, database),
        }
        for ways, taken in ((quantizers, size), (hashes, learnable / 8)):
            for name, search in ways.items():
                table[f"{name}, {size}"] = own.figures(taken, database, copies, search)
        table[f"first floats, {size}"] = own.figures(size, unit[:, :kept], edited[:, :kept], first)
        seen = perceptual(pictures, 8 * size)
        table[f"perceptual hash, {size}"] = own.figures(
            size, seen, perceptual(own.copies, 8 * size), lambda asked, seen=seen: hamming(asked, seen)
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--most", type=int, default=2000, help="images of each folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    figures: dict[str, Any] = {}
    for folder in options.folders:
        own = Set(folder, options.most)
        table = compare(own)
        show(f"{folder}: {len(own.labels):,} images", ["bytes", "mAP", "copies recall@1", "ms"], table)
        figures[folder.parent.name if folder.name in {"val", "train", "test"} else folder.name] = table
    if options.json:
        write_result(options.json, figures)


if __name__ == "__main__":
    main()
