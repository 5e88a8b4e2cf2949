"""What labels teach a granularity: a linear map of its features to scores of labels, in closed form. Pure numpy.

Features are regressed on the labels by least squares with a penalty (ridge regression; as a discriminant analysis:
Hastie, Buja and Tibshirani, "Penalized discriminant analysis", 1995), and the scores joined to the features. The hash
heads of a collection are then fitted to both, as always, so that images of one label lie together there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.encoder.hash_heads import Matrix, half, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_SCORES = 256
"""Scores that are kept: of more labels those directions of their scores that vary most."""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties that are tried: they are added to the squares of the features, which have length 1, summed over images."""


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Features (n, d) -> features of length 1, joined with scores of length 1.

    Attributes:
        mean: (d,) float32, of the labelled images' features.
        weights: (d, m) float32, values of half precision.
    """

    mean: Matrix
    weights: Matrix

    @property
    def scores(self) -> int:
        """m, by which features become longer."""
        return int(self.weights.shape[1])

    def __call__(self, features: Matrix) -> Matrix:
        """(n, d) float32 -> (n, d + m) float32."""
        centred = unit(features - self.mean)
        return np.concatenate([centred, unit(centred @ self.weights)], axis=1).astype(np.float32)


def fit_label_map(features: Matrix, labels: NDArray[np.bool_]) -> LabelMap:
    """Fit the map with the penalty whose predictions of left-out images are nearest to their labels.

    Args:
        features: (n, d) of labelled images.
        labels: (n, m) which labels each has.
    """
    mean = features.mean(axis=0)
    centred = unit(features - mean).astype(np.float64)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    projected = left.T @ labels

    def error(penalty: float) -> float:
        """Mean square of what each image, left out, is mispredicted by (Allen's PRESS, 1974)."""
        shrunk = values**2 / (values**2 + penalty)
        residuals = labels - (left * shrunk) @ projected
        return float(np.mean((residuals / (1 - (left**2 @ shrunk))[:, None]) ** 2))

    penalty = min(PENALTIES, key=error)
    weights = right.T @ ((values / (values**2 + penalty))[:, None] * projected)
    if weights.shape[1] > MOST_SCORES:
        _, _, axes = np.linalg.svd(centred @ weights, full_matrices=False)
        weights = weights @ axes[:MOST_SCORES].T
    return LabelMap(mean.astype(np.float32), half(weights))
