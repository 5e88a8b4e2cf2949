"""Unsupervised hash heads, linear and with diffusion, and the baselines. Pure numpy.

Linear heads: PCA, then an ITQ rotation of the axes that minimises the quantisation loss (Gong and Lazebnik, "Iterative
Quantization", CVPR 2011). The covariance of a small sample is noisy, so it is averaged with the one of other images
that ships inside the encoder. Directions that augmentation changes are down-weighted first, as within-class covariance
normalisation does (Hatch, Kajarekar and Stolcke, Interspeech 2006).

Heads with diffusion: principal components of length 1, averaged over neighbours, joined with a diffusion map of the
collection (Coifman and Lafon, "Diffusion maps", 2006), also of length 1; then PCA and ITQ of both. The average is the
database-side augmentation and query expansion of retrieval (see ``expanded``), over images of the sample; it keeps
small groups of images apart, which the map of a large collection merges. The map is that of the walk between images
through affinities to anchors (Liu et al., "Hashing with Graphs", ICML 2011), so new images have a place in it. Cluster
centres of other images that ship inside the encoder take part, so that images of new kinds are not mapped onto those of
the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


Matrix = NDArray[np.float32]

ITERATIONS = 20
OWN_SHARE = 0.5
"""Share of the collection's own covariance in the mix."""
FACTOR_RANK = 256
"""Directions kept of the covariance that ships inside an encoder."""
NUISANCE_RANK = 96
"""Directions kept of the covariance of augmentation."""
NUISANCE_FLOOR = 0.2
EDIT_FLOOR = 0.1
"""Variance under augmentation that scales a direction by 1 / sqrt(2), as a share of the kept directions' mean: for
regions that are cut out, and for images that are edited."""
MAX_AXES = 512
"""Principal axes used at most: an ITQ step costs the cube of their number."""
_SEED = 20_110_620
_OVERSAMPLING = 32
_POWER_STEPS = 3


@dataclass(frozen=True, slots=True)
class Statistics:
    """First two moments of one granularity's features.

    Attributes:
        mean: (d,) float32.
        factor: (r, d) float32, values of half precision, with ``factor.T @ factor`` close to the (d, d) covariance.
        nuisance: (s, d) float32, values of half precision, likewise for the differences that augmentation makes; its
            rows are orthogonal. None: unknown.
        floor: see ``NUISANCE_FLOOR``.
        clusters: (m, r) float32, values of half precision: cluster centres of the features are ``mean + clusters @
            factor``. None: unknown.
    """

    mean: Matrix
    factor: Matrix
    nuisance: Matrix | None = None
    floor: float = NUISANCE_FLOOR
    clusters: Matrix | None = None

    def centres(self) -> Matrix:
        """The cluster centres as features: (m, d) float32, none of them where they are unknown."""
        known = np.empty((0, len(self.factor)), np.float32) if self.clusters is None else self.clusters
        return self.mean + known @ self.factor


@dataclass(frozen=True, slots=True)
class Head:
    """A linear hash function: the code is the signs of ``(features - mean) @ projection``.

    Attributes:
        mean: (d,) float32.
        projection: (d, bits) float32, values of half precision.
    """

    mean: Matrix
    projection: Matrix

    @property
    def bits(self) -> int:
        """Code length in bits."""
        return int(self.projection.shape[1])

    def __call__(self, features: Matrix) -> NDArray[np.float64]:
        """Features (n, d) -> (n, bits) float64 real codes.

        In double precision: the rounding of a matrix product depends on the number of rows, which in single precision
        would flip a bit now and then.
        """
        return self.of_deviations(features.astype(np.float64) - self.mean)

    def of_deviations(self, deviations: NDArray[np.float64]) -> NDArray[np.float64]:
        """What features (n, d) or texts deviate from their mean -> (n, bits) float64 real codes."""
        values: NDArray[np.float64] = deviations @ self.projection.astype(np.float64)
        return values


def statistics(features: Matrix, rank: int = FACTOR_RANK, *, clusters: bool = False) -> Statistics:
    """Moments of a sample of features (n, d), the covariance reduced to its ``rank`` largest directions.

    With ``clusters`` also at most ``CLUSTERS`` cluster centres, one for at least five images.
    """
    mean = features.mean(axis=0)
    axes, variances = principal_axes((features - mean) / np.sqrt(len(features)), rank)
    factor = half((axes * np.sqrt(variances)).T)
    count = min(CLUSTERS, len(features) // 5)
    if not clusters or not count:
        return Statistics(mean, factor)
    centres = cluster_centres((features - mean) @ axes, count) / np.sqrt(variances)
    return Statistics(mean, factor, clusters=half(centres))


def augmentation_covariance(moved: Matrix, rank: int = NUISANCE_RANK) -> Matrix:
    """The ``nuisance`` of ``Statistics``.

    Args:
        moved: (n, d) features of augmented images minus those of the originals.
        rank: number of largest directions to keep.
    """
    axes, variances = principal_axes(moved / np.sqrt(len(moved)), rank)
    return half((axes * np.sqrt(variances)).T)


def fit_head(sample: Matrix, bits: int, shipped: Statistics | None) -> Head:
    """Fit a head to a sample of the collection's features.

    Args:
        sample: (n, d) float32, n at least 2.
        bits: code length.
        shipped: moments of other images, mixed in; None uses the sample alone.

    Returns:
        A head centred on the sample.

    Raises:
        ValueError: all features are the same and there is nothing to mix in.
    """
    mean = sample.mean(axis=0)
    centred = suppress_nuisance(sample - mean, shipped)
    axes = mixed_axes(centred, shipped, min(bits, MAX_AXES))
    return _head(mean, axes, centred @ axes, bits, shipped)


def shipped_head(shipped: Statistics, bits: int) -> Head:
    """The head without a sample: fitted on draws from a Gaussian with the shipped moments."""
    random = np.random.default_rng(_SEED)
    factor = suppress_nuisance(shipped.factor, shipped)
    draws = random.standard_normal((4 * max(bits, 256), len(factor)), np.float32) @ factor
    axes, _ = principal_axes(factor, min(bits, MAX_AXES))
    return _head(shipped.mean, axes, draws @ axes, bits, shipped)


def mixed_axes(centred: Matrix, shipped: Statistics | None, count: int) -> NDArray[np.float64]:
    """Principal axes (d, p), p <= count, of a centred sample's covariance, mixed with the shipped one."""
    factor = centred / np.sqrt(len(centred))
    if shipped is not None:
        others = suppress_nuisance(shipped.factor, shipped)
        factor = np.concatenate([np.sqrt(OWN_SHARE) * factor, np.sqrt(1 - OWN_SHARE) * others])
    return principal_axes(factor, count)[0]


def suppress_nuisance(rows: NDArray[np.floating], shipped: Statistics | None) -> Matrix:
    """Down-weight directions that augmentation changes: with variance w there, by sqrt(c / (w + c)).

    The map of the rows (n, d) is linear and symmetric; the identity when the statistics have no ``nuisance``.
    """
    if shipped is None or shipped.nuisance is None:
        return rows.astype(np.float32)
    directions = shipped.nuisance.astype(np.float64)
    variances = (directions**2).sum(axis=1)
    # Half precision may have rounded the smallest directions to zero.
    directions, variances = directions[variances > 0], variances[variances > 0]
    if not len(variances):
        return rows.astype(np.float32)
    axes = directions.T / np.sqrt(variances)
    floor = shipped.floor * variances.mean()
    removed = 1 - np.sqrt(floor / (variances + floor))
    suppressed: Matrix = (rows - ((rows @ axes) * removed) @ axes.T).astype(np.float32)
    return suppressed


def itq_rotation(projected: Matrix, seed: int) -> NDArray[np.float64]:
    """The orthogonal (b, b) matrix R that brings ``projected @ R`` (n, b) nearest to its own signs."""
    values = projected.astype(np.float64)
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.standard_normal((values.shape[1], values.shape[1])))
    for _ in range(ITERATIONS):
        signs = np.where(values @ rotation > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(values.T @ signs)
        rotation = left @ right
    return rotation


def rotate_axes(axes: NDArray[np.float64], projected: NDArray[np.floating], bits: int) -> NDArray[np.float64]:
    """Rotate axes (d, p) by ITQ of a sample's coordinates (n, p) on them: (d, bits).

    Codes longer than p use several rotations of the same axes.
    """
    blocks = [
        axes @ itq_rotation(projected.astype(np.float32), _SEED + start) for start in range(0, bits, axes.shape[1])
    ]
    return np.concatenate(blocks, axis=1)[:, :bits]


def _head(
    mean: Matrix, axes: NDArray[np.float64], projected: NDArray[np.floating], bits: int, shipped: Statistics | None
) -> Head:
    """A head from axes of features without nuisance, for features with it."""
    return Head(mean, half(suppress_nuisance(rotate_axes(axes, projected, bits).T, shipped).T))


def half(values: NDArray[np.floating]) -> Matrix:
    """Values rounded to half precision, so that float16 in a file is lossless; C order."""
    return np.ascontiguousarray(values.astype(np.float16).astype(np.float32))


def principal_axes(factor: NDArray[np.floating], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest eigenvectors (d, p) and eigenvalues (p,) of ``factor.T @ factor``, p <= count, each axis' sign fixed.

    Large factors are first projected to the largest directions by randomised subspace iteration (Halko, Martinsson and
    Tropp 2011), in a tenth of the time of the exact decomposition.
    """
    values = factor.astype(np.float64)
    width = count + _OVERSAMPLING
    if 2 * width < min(values.shape):
        basis = np.random.default_rng(_SEED).standard_normal((values.shape[1], width)).astype(np.float32)
        single = factor.astype(np.float32)
        for _ in range(_POWER_STEPS):
            basis, _ = np.linalg.qr(single.T @ (single @ basis))
        exact = basis.astype(np.float64)
        exact, _ = np.linalg.qr(values.T @ (values @ exact))
        variances, vectors = _largest(values @ exact, count)
        vectors = exact @ vectors
    else:
        variances, vectors = _largest(values, count)
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    return vectors * signs, variances


def _largest(values: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest eigenvalues and eigenvectors of ``values.T @ values``, through the smaller of the two Gram matrices."""
    wide = values.shape[1] > values.shape[0]
    variances, vectors = np.linalg.eigh(values @ values.T if wide else values.T @ values)
    variances, vectors = variances[::-1][:count], vectors[:, ::-1][:, :count]
    if variances[0] <= 0:
        raise ValueError("the features do not vary")
    kept = variances > variances[0] * 1e-10
    variances, vectors = variances[kept], vectors[:, kept]
    if wide:
        vectors = values.T @ vectors / np.sqrt(variances)
    return variances, vectors


def itq_head(sample: Matrix, bits: int) -> Head:
    """PCA and ITQ of the sample alone (Gong and Lazebnik 2011): (n, d) float32 -> a head."""
    return fit_head(sample, bits, None)


def lsh_head(sample: Matrix, bits: int) -> Head:
    """Random hyperplanes through the sample's mean (Charikar, STOC 2002): (n, d) float32 -> a head."""
    planes = np.random.default_rng(_SEED).standard_normal((sample.shape[1], bits))
    return Head(sample.mean(axis=0), half(planes))


BASELINES: Mapping[str, Callable[[Matrix, int], Head]] = {"itq": itq_head, "lsh": lsh_head}
"""Unsupervised methods from the literature, to compare with."""


COMPONENTS = 128
"""Principal components in which neighbours are searched."""
MOST_ANCHORS = 400
"""Of a sample: so that, with ``MOST_ROWS``, the fitted encoder of 5,000 images is below 16 MB."""
MOST_ROWS = 1500
"""Images of a sample that others are averaged with."""
AVERAGES = 2
"""How often each of those is averaged with its own neighbours first."""
AVERAGE_POWER = 5
"""Power of the cosine by which a neighbour counts in an average: at 3, as usual, images of kinds that come after the
fit are drawn to those that were there, and are found less well than with the shipped heads."""
CLUSTERS = 256
"""Cluster centres of other images that ship inside an encoder."""
OTHERS_SHARE = 0.2
"""Weight of those in the diffusion map and in the axes, against the sample: at 0.2 codes of a sample's own kinds stay
as good, and those of kinds that come later are not worse than with the shipped heads."""
REACH = 0.95
"""Share of the sample that is within ``DiffusionHead.reach``."""
FADING = 2.0
"""At a distance of 1 + x times the reach the place in the diffusion map, and the cosine of a row that an image is
averaged with, count ``exp(-FADING * x)``."""
NEIGHBOURS = 5
"""Nearest anchors that an image has affinities to, and nearest images that it is averaged with."""
GRAPH_SHARE = 0.5
"""Weight of the embedding, against that of the components, in a large sample."""
HALF_SAMPLE = 200
"""Sample size at which the embedding has half of its weight: the graph of a small sample is a poor one."""
_CLUSTER_SEED = 20_110_628
_KMEANS_ROUNDS = 6
_LEAST_REACH = 1e-3
"""So that there is a distance beyond it where all images of a sample are anchors."""
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class DiffusionHead:
    """A hash function that is linear in averaged principal components and in a place in a diffusion map.

    All float matrices and ``reach`` have values of half precision.

    Attributes:
        mean: (d,) float32, of the features.
        axes: (d, p) float32 principal axes.
        anchors: (m, p) float32: the sample's, then those of other images.
        embedding: (m, q) float32, the anchors in the diffusion map.
        rows: (r, p) int8: images of the sample, averaged with their neighbours, each times any factor.
        centre: (p + q,) float32, mean of averaged components and places.
        projection: (p + q, bits) float32.
        neighbours: nearest anchors that an image has affinities to, and nearest rows that it is averaged with.
        own: number of the sample's anchors.
        reach: distance of the components to their nearest of the sample's anchors that ``REACH`` of the sample have at
            most; see ``distances``.
    """

    mean: Matrix
    axes: Matrix
    anchors: Matrix
    embedding: Matrix
    rows: NDArray[np.int8]
    centre: Matrix
    projection: Matrix
    neighbours: int
    own: int
    reach: float

    @property
    def bits(self) -> int:
        """Code length in bits."""
        return int(self.projection.shape[1])

    def __call__(self, features: Matrix) -> NDArray[np.float64]:
        """Features (n, d) -> (n, bits) float64 real codes, in double precision as ``Head``, a block at a time."""
        starts = range(0, max(len(features), 1), _BLOCK)
        return np.concatenate([self._values(features[start : start + _BLOCK]) for start in starts])

    def of_deviations(self, deviations: NDArray[np.float64]) -> NDArray[np.float64]:
        """What texts deviate from their mean, (n, d) -> (n, bits) float64 real codes, by the components alone.

        Texts lie far from all anchors, which are images, so that affinities to them say little
        (benchmarks/text_towers.py).
        """
        components = unit(deviations @ self.axes.astype(np.float64))
        values: NDArray[np.float64] = components @ self.projection[: components.shape[1]].astype(np.float64)
        return values

    def is_far(self, features: Matrix) -> NDArray[np.bool_]:
        """Which of the images (n, d) are farther from the sample than ``reach``: (n,)."""
        anchors = self.anchors[: self.own].astype(np.float64)
        far: NDArray[np.bool_] = anchor_distances(self._components(features), anchors, self.neighbours) > self.reach
        return far

    def _components(self, features: Matrix) -> NDArray[np.float64]:
        return unit((features.astype(np.float64) - self.mean.astype(np.float64)) @ self.axes.astype(np.float64))

    def _values(self, features: Matrix) -> NDArray[np.float64]:
        joined = _joined(
            self._components(features), unit(self.rows), self.anchors.astype(np.float64),
            self.embedding.astype(np.float64), _Graph(self.neighbours, self.own, self.reach),
        )  # fmt: skip
        values: NDArray[np.float64] = (joined - self.centre.astype(np.float64)) @ self.projection.astype(np.float64)
        return values


class _Graph(NamedTuple):
    """Attributes of ``DiffusionHead`` that say how an image is tied to anchors."""

    neighbours: int
    own: int
    reach: float


def _joined(
    components: NDArray[np.float64], rows: NDArray[np.float64], anchors: NDArray[np.float64],
    embedding: NDArray[np.float64], graph: _Graph,
) -> NDArray[np.float64]:  # fmt: skip
    """Averaged components (n, p) and places in the diffusion map: (n, p + q)."""
    places = unit(affinities(components, anchors, graph.neighbours) @ embedding)
    beyond = anchor_distances(components, anchors[: graph.own], graph.neighbours) / graph.reach - 1
    trust = np.exp(-FADING * np.maximum(beyond, 0))[:, None]
    averaged = expanded(components, trust * (components @ rows.T), rows, graph.neighbours, AVERAGE_POWER)
    return np.concatenate([averaged, trust * places], axis=1)


def fit_diffusion_head(sample: Matrix, bits: int, shipped: Statistics | None, steps: int) -> DiffusionHead:
    """Fit a head to a sample of the collection's features.

    Args:
        sample: (n, d) float32, n at least 2.
        bits: code length.
        shipped: moments of other images, mixed into the covariance of the components, and their clusters; None uses the
            sample alone.
        steps: of the random walk, at least 1; more give coarser clusters.

    Raises:
        ValueError: all features are the same.
    """
    mean = sample.mean(axis=0)
    axes = half(
        suppress_nuisance(mixed_axes(suppress_nuisance(sample - mean, shipped), shipped, COMPONENTS).T, shipped).T
    )
    components = unit((sample - mean).astype(np.float64) @ axes)
    if not np.ptp(components, axis=0).any():
        raise ValueError("the features do not vary")
    own = cluster_centres(components, anchor_count(len(sample)))
    others = np.empty((0, axes.shape[1]))
    if shipped is not None and shipped.clusters is not None:
        others = unit((shipped.centres() - mean).astype(np.float64) @ axes)
    anchors = half(np.concatenate([own, others]))
    exact = anchors.astype(np.float64)
    neighbours = min(NEIGHBOURS, len(own) - 1)
    distances = anchor_distances(components, exact[: len(own)], neighbours)
    graph = _Graph(neighbours, len(own), float(np.float16(max(np.quantile(distances, REACH), _LEAST_REACH))))

    rows = averaged_rows(components, neighbours)
    points = np.concatenate([components, others])
    weights = np.ones(len(points))
    weights[len(sample) :] = OTHERS_SHARE / (1 - OTHERS_SHARE) * len(sample) / max(1, len(others))
    embedding = half(graph_embedding(affinities(points, exact, neighbours), weights, COMPONENTS, steps))
    share = GRAPH_SHARE * len(sample) / (len(sample) + HALF_SAMPLE)
    scale = np.repeat(np.sqrt([1 - share, share]), [axes.shape[1], embedding.shape[1]])
    joined = _joined(points, unit(rows), exact, embedding.astype(np.float64), graph)
    centre = np.average(joined, axis=0, weights=weights)
    scaled = (joined - centre) * scale
    kept, _ = principal_axes(scaled * np.sqrt(weights / weights.sum())[:, None], bits)
    # The factor in front of a row leaves its signs, and weighs it in the quantisation loss.
    projection = half(scale[:, None] * rotate_axes(kept, weights[:, None] * (scaled @ kept), bits))
    return DiffusionHead(mean, axes, anchors, embedding, rows, centre.astype(np.float32), projection, *graph)


def averaged_rows(components: NDArray[np.float64], neighbours: int) -> NDArray[np.int8]:
    """The ``rows`` of a head, at most ``MOST_ROWS``: images with components (n, p), averaged ``AVERAGES`` times."""
    rows = components
    for _ in range(AVERAGES):
        blocks = []
        for start in range(0, len(rows), _BLOCK):
            part = np.arange(start, min(start + _BLOCK, len(rows)))
            similar = rows[part] @ rows.T
            similar[np.arange(len(part)), part] = -1  # an image is not its own neighbour
            blocks.append(expanded(rows[part], similar, rows, neighbours, AVERAGE_POWER))
        rows = np.concatenate(blocks)
    # A sample is in the order of its contents, so that these are as good as drawn.
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(int)]
    whole: NDArray[np.int8] = np.rint(127 * chosen / np.abs(chosen).max()).astype(np.int8)
    return whole


def expanded(points: NDArray[Any], similar: NDArray[Any], rows: NDArray[Any], count: int, power: int) -> NDArray[Any]:
    """Points averaged with their nearest rows, of length 1.

    Database-side augmentation (Arandjelovic and Zisserman, CVPR 2012) where the points are rows themselves, and alpha
    query expansion (Radenovic, Tolias and Chum, PAMI 2018) where they are not: each becomes the sum of itself and its
    nearest rows, each times a power of its cosine.

    Args:
        points: (q, d) of length 1.
        similar: (q, n) their cosines to the rows.
        rows: (n, d) of length 1.
        count: number of nearest rows; all, if there are fewer.
        power: of the cosine.
    """
    count = min(count, len(rows))
    nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
    weights = np.maximum(np.take_along_axis(similar, nearest, axis=1), 0) ** power
    return unit(points + np.einsum("qk,qkd->qd", weights, rows[nearest]))


def anchor_count(size: int) -> int:
    """Number of anchors for a sample: one for about five images, so that neighbours share anchors."""
    return max(2, min(MOST_ANCHORS, max(size // 5, min(128, 2 * size // 3))))


def affinities(points: NDArray[np.float64], anchors: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """Affinities of points (n, p) to anchors (m, p): (n, m), each row adds up to 1.

    A Gaussian of the distance to each of the nearest anchors, whose width is their mean squared distance; 0 for others.
    """
    squared = _squared_distances(points, anchors)
    nearest = np.partition(squared, neighbours - 1, axis=1)[:, :neighbours]
    width = np.maximum(nearest.mean(axis=1, keepdims=True), 1e-12)
    affinity = np.where(squared <= nearest.max(axis=1, keepdims=True), np.exp(-squared / width), 0)
    rows: NDArray[np.float64] = affinity / affinity.sum(axis=1, keepdims=True)
    return rows


def anchor_distances(points: NDArray[np.float64], anchors: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """Root mean square distance of points (n, p) to their nearest anchors (m, p): (n,)."""
    nearest = np.partition(_squared_distances(points, anchors), neighbours - 1, axis=1)[:, :neighbours]
    distances: NDArray[np.float64] = np.sqrt(nearest.mean(axis=1))
    return distances


def _squared_distances(points: NDArray[np.float64], anchors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances of points (n, p) to anchors (m, p): (n, m)."""
    squared = (points**2).sum(axis=1)[:, None] + (anchors**2).sum(axis=1) - 2 * points @ anchors.T
    distances: NDArray[np.float64] = np.maximum(squared, 0)
    return distances


def graph_embedding(
    affinity: NDArray[np.float64], weights: NDArray[np.float64], count: int, steps: int
) -> NDArray[np.float64]:
    """The anchors in the diffusion map of images: (m, q), q <= count, the largest value 1.

    With affinities Z (n, m), weights W = diag(w) of the images and D = diag(Z^T w), the walk between images is Z D^-1
    Z^T W; ``Z @ embedding`` is its eigenvectors, each times its eigenvalue to the power ``steps``, without the constant
    one.
    """
    mass = weights @ affinity
    used = mass > 0
    root = np.sqrt(np.where(used, mass, 1))
    heavy = np.sqrt(weights)[:, None]
    walk = heavy * affinity / root
    walk -= heavy * np.where(used, root, 0) / weights.sum()  # removes the constant eigenvector
    vectors, values = principal_axes(walk, min(count, len(mass) - 1))
    embedding = vectors * np.minimum(values, 1) ** (steps - 0.5) / root[:, None]
    largest: NDArray[np.float64] = embedding / np.abs(embedding).max()
    return largest


def cluster_centres(points: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """Centres (count, p) of k-means (Lloyd 1982), initialised with ``count`` of the points (n, p)."""
    centres = points[np.random.default_rng(_CLUSTER_SEED).permutation(len(points))[:count]].astype(np.float64)
    for _ in range(_KMEANS_ROUNDS):
        nearest = (points @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)
        order = np.argsort(nearest, kind="stable")
        taken, first, sizes = np.unique(nearest[order], return_index=True, return_counts=True)
        centres = centres.copy()
        centres[taken] = np.add.reduceat(points[order], first, axis=0) / sizes[:, None]
    return centres


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Scale rows to length 1, in their own precision, whole numbers in double; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[Any] = rows / np.where(lengths > 0, lengths, 1).astype(lengths.dtype)
    return scaled
