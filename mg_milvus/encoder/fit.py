"""Unsupervised hash functions: PCA of a mixed covariance, then an ITQ rotation. Pure numpy.

PCA decorrelates, ITQ (Gong and Lazebnik, "Iterative Quantization", CVPR 2011) turns the axes so that signs lose little.
A small sample of a collection gives a noisy covariance; mixed half and half with the one of other pictures that ships
inside the encoder it gives better codes at every sample size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

ITERATIONS = 20
OWN_SHARE = 0.5
"""Share of the collection's own covariance in the mix."""
FACTOR_RANK = 256
"""Directions kept of the covariance that ships inside an encoder."""
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
    """

    mean: Matrix
    factor: Matrix


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

        In double precision: the rounding of a matrix product depends on the number of rows, and in single precision
        that would flip a bit now and then.
        """
        centred = features.astype(np.float64) - self.mean
        values: NDArray[np.float64] = centred @ self.projection.astype(np.float64)
        return values


def statistics(features: Matrix, rank: int = FACTOR_RANK) -> Statistics:
    """Moments of a sample of features (n, d), the covariance reduced to its ``rank`` largest directions."""
    mean = features.mean(axis=0)
    axes, variances = _principal_axes((features - mean) / np.sqrt(len(features)), rank)
    return Statistics(mean, _half((axes * np.sqrt(variances)).T))


def fit_head(sample: Matrix, bits: int, shipped: Statistics | None) -> Head:
    """Fit a head to a sample of the collection's features.

    Args:
        sample: (n, d) float32, n at least 2.
        bits: code length.
        shipped: moments of other pictures, mixed in; None uses the sample alone.

    Returns:
        A head centred on the sample.

    Raises:
        ValueError: all features are the same and there is nothing to mix in.
    """
    mean = sample.mean(axis=0)
    centred = sample - mean
    factor = centred / np.sqrt(len(centred))
    if shipped is not None:
        factor = np.concatenate([np.sqrt(OWN_SHARE) * factor, np.sqrt(1 - OWN_SHARE) * shipped.factor])
    axes, _ = _principal_axes(factor, min(bits, MAX_AXES))
    return Head(mean, _rotate(axes, centred @ axes, bits))


def shipped_head(shipped: Statistics, bits: int) -> Head:
    """The head for pictures of which nothing is known: fitted on draws from a Gaussian with the shipped moments."""
    random = np.random.default_rng(_SEED)
    draws = random.standard_normal((4 * max(bits, 256), len(shipped.factor)), np.float32) @ shipped.factor
    axes, _ = _principal_axes(shipped.factor, min(bits, MAX_AXES))
    return Head(shipped.mean, _rotate(axes, draws @ axes, bits))


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


def _rotate(axes: NDArray[np.float64], projected: NDArray[np.floating], bits: int) -> Matrix:
    """Projection (d, bits) from principal axes (d, p); codes longer than p take several rotations of the same axes."""
    blocks = [
        axes @ itq_rotation(projected.astype(np.float32), _SEED + start) for start in range(0, bits, axes.shape[1])
    ]
    return _half(np.concatenate(blocks, axis=1)[:, :bits])


def _half(values: NDArray[np.float64]) -> Matrix:
    """Rounded to half precision, so that a file with half the bytes holds the same values; C order."""
    return np.ascontiguousarray(values.astype(np.float16).astype(np.float32))


def _principal_axes(factor: NDArray[np.floating], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest eigenvectors (d, p) and eigenvalues (p,) of ``factor.T @ factor``, p <= count, each axis' sign fixed.

    Large factors are first reduced to a subspace that holds the largest directions, by randomised subspace iteration
    (Halko, Martinsson and Tropp 2011): a tenth of the time of the exact decomposition.
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
