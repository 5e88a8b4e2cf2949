"""Unsupervised hash functions that follow the collection's own neighbourhoods. Pure numpy.

Anchor graph hashing (Liu, Wang, Kumar and Chang, "Hashing with Graphs", ICML 2011): pictures are tied to the nearest
of a few hundred anchors, and the leading eigenvectors of the random walk picture -> anchor -> picture are a smooth
embedding of the graph. An eigenvalue to the power ``steps`` is that much of a walk of ``steps`` steps (Coifman and
Lafon, "Diffusion maps", 2006), so many steps show clusters and few show detail. The embedding is joined with the
principal components, which keep what the graph does not hold, and both are turned into bits by ITQ, see ``fit.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.encoder.fit import Matrix, half, mixed_axes, principal_axes, rotated, steadied

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mg_milvus.encoder.fit import Statistics

COMPONENTS = 128
"""Principal components in which neighbours are looked for."""
NEIGHBOURS = 5
"""Anchors that a picture is tied to."""
GRAPH_SHARE = 0.5
"""Share of the embedding, against the components, in a large sample."""
HALF_SAMPLE = 200
"""Sample size at which the embedding has half of its share: a small sample's graph shows little of the collection."""
_SEED = 20_110_628
_KMEANS_ROUNDS = 6
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class ManifoldHead:
    """A hash function that is linear in principal components and in their affinities to anchors.

    All matrices have values of half precision.

    Attributes:
        mean: (d,) float32, of the features.
        axes: (d, p) float32 principal axes.
        anchors: (m, p) float32.
        embedding: (m, q) float32, the anchors in the graph's embedding.
        centre: (p + q,) float32, mean of components and embedding.
        projection: (p + q, bits) float32.
        neighbours: anchors that a picture is tied to.
    """

    mean: Matrix
    axes: Matrix
    anchors: Matrix
    embedding: Matrix
    centre: Matrix
    projection: Matrix
    neighbours: int

    @property
    def bits(self) -> int:
        """Code length in bits."""
        return int(self.projection.shape[1])

    def __call__(self, features: Matrix) -> NDArray[np.float64]:
        """Features (n, d) -> (n, bits) float64 real codes, in double precision as ``Head``; a block at a time."""
        starts = range(0, max(len(features), 1), _BLOCK)
        return np.concatenate([self._values(features[start : start + _BLOCK]) for start in starts])

    def _values(self, features: Matrix) -> NDArray[np.float64]:
        components = _unit((features.astype(np.float64) - self.mean.astype(np.float64)) @ self.axes.astype(np.float64))
        tied = affinities(components, self.anchors.astype(np.float64), self.neighbours)
        joined = np.concatenate([components, _unit(tied @ self.embedding.astype(np.float64))], axis=1)
        values: NDArray[np.float64] = (joined - self.centre.astype(np.float64)) @ self.projection.astype(np.float64)
        return values


def fit_manifold_head(sample: Matrix, bits: int, shipped: Statistics | None, steps: int) -> ManifoldHead:
    """Fit a head to a sample of the collection's features.

    Args:
        sample: (n, d) float32, n at least 2.
        bits: code length.
        shipped: moments of other pictures, mixed into the covariance of the components; None uses the sample alone.
        steps: of the random walk, at least 1; more show coarser clusters.

    Raises:
        ValueError: all features are the same.
    """
    mean = sample.mean(axis=0)
    axes = half(steadied(mixed_axes(steadied(sample - mean, shipped), shipped, COMPONENTS).T, shipped).T)
    components = _unit((sample - mean).astype(np.float64) @ axes)
    if not np.ptp(components, axis=0).any():
        raise ValueError("the features do not vary")
    anchors = half(_centres(components, anchor_count(len(sample))))
    neighbours = min(NEIGHBOURS, len(anchors) - 1)
    tied = affinities(components, anchors.astype(np.float64), neighbours)
    embedding = half(graph_embedding(tied, COMPONENTS, steps))
    share = GRAPH_SHARE * len(sample) / (len(sample) + HALF_SAMPLE)
    scale = np.repeat(np.sqrt([1 - share, share]), [axes.shape[1], embedding.shape[1]])
    joined = np.concatenate([components, _unit(tied @ embedding)], axis=1)
    centre = joined.mean(axis=0)
    weighted = (joined - centre) * scale
    kept, _ = principal_axes(weighted / np.sqrt(len(sample)), bits)
    projection = half(scale[:, None] * rotated(kept, weighted @ kept, bits))
    return ManifoldHead(mean, axes, anchors, embedding, centre.astype(np.float32), projection, neighbours)


def anchor_count(size: int) -> int:
    """Anchors for a sample of this many pictures: some five pictures each, so that neighbours share anchors."""
    return max(2, min(1000, max(size // 5, min(128, 2 * size // 3))))


def affinities(points: NDArray[np.float64], anchors: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """How strongly points (n, p) are tied to anchors (m, p): (n, m), each row adds up to 1.

    A Gaussian of the distance to each of the nearest anchors, as wide as their mean squared distance; 0 for the others.
    """
    squared = (points**2).sum(axis=1)[:, None] + (anchors**2).sum(axis=1) - 2 * points @ anchors.T
    squared = np.maximum(squared, 0)
    nearest = np.partition(squared, neighbours - 1, axis=1)[:, :neighbours]
    width = np.maximum(nearest.mean(axis=1, keepdims=True), 1e-12)
    tied = np.where(squared <= nearest.max(axis=1, keepdims=True), np.exp(-squared / width), 0)
    rows: NDArray[np.float64] = tied / tied.sum(axis=1, keepdims=True)
    return rows


def graph_embedding(tied: NDArray[np.float64], count: int, steps: int) -> NDArray[np.float64]:
    """Anchors in the embedding of the graph: (m, q), q <= count, the largest value 1.

    With affinities Z (n, m) of mass D = diag(Z^T 1), the walk between pictures is Z D^-1 Z^T; ``Z @ embedding`` is its
    eigenvectors, each times its eigenvalue to the power ``steps``, without the constant one.
    """
    mass = tied.sum(axis=0)
    used = mass > 0
    root = np.sqrt(np.where(used, mass, 1))
    walk = tied / root
    walk -= np.where(used, root, 0) / len(tied)  # takes the constant eigenvector out
    vectors, values = principal_axes(walk, min(count, len(mass) - 1))
    embedding = vectors * np.minimum(values, 1) ** (steps - 0.5) / root[:, None]
    largest: NDArray[np.float64] = embedding / np.abs(embedding).max()
    return largest


def _centres(points: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Centres (count, p) of k-means (Lloyd 1982), begun at ``count`` of the points."""
    centres = points[np.random.default_rng(_SEED).permutation(len(points))[:count]]
    for _ in range(_KMEANS_ROUNDS):
        nearest = (points @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)
        order = np.argsort(nearest, kind="stable")
        taken, first, sizes = np.unique(nearest[order], return_index=True, return_counts=True)
        centres = centres.copy()
        centres[taken] = np.add.reduceat(points[order], first, axis=0) / sizes[:, None]
    return centres


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1)
    return scaled
