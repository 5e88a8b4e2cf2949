"""Pseudo-labels for pictures without labels: clusters of their features (Caron et al., DeepCluster, ECCV 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 25


def spherical_kmeans(features: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int64]:
    """Cluster of each row (n,), by cosine (Dhillon and Modha 2001); no cluster stays empty.

    Args:
        features: (n, d); centred and scaled to length 1 here.
        clusters: how many; at most n.
        seed: of the first centres, which are rows far from each other (k-means++, Arthur and Vassilvitskii 2007).
    """
    random = np.random.default_rng(seed)
    x = features - features.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
    chosen = [int(random.integers(len(x)))]
    distance = (1 - x @ x[chosen[0]]).clip(min=0)
    while len(chosen) < clusters:
        distance[chosen[-1]] = 0
        total = distance.sum(dtype=np.float64)
        # Once only copies of the centres are left, any row will do.
        chances = distance.astype(np.float64) / total if total > 0 else None
        chosen.append(int(random.choice(len(x), p=chances)))
        distance = np.minimum(distance, (1 - x @ x[chosen[-1]]).clip(min=0))
    centres = x[chosen]
    nearest = np.zeros(len(x), np.int64)
    for _ in range(ROUNDS):
        similarity = x @ centres.T
        found = similarity.argmax(axis=1)
        for empty in np.setdiff1d(np.arange(clusters), found):
            sizes = np.bincount(found, minlength=clusters)
            # The picture that fits its own cluster worst begins a new one; clusters of one picture are left alone.
            fit = np.where(sizes[found] > 1, similarity[np.arange(len(x)), found], np.inf)
            found[fit.argmin()] = empty
            similarity[fit.argmin(), empty] = np.inf
        if (found == nearest).all():
            break
        nearest = found
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, x)
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(min=1e-12)
    return nearest


def pseudo_labels(features: NDArray[np.float32], seed: int) -> dict[str, NDArray[np.bool_]]:
    """Labels of two levels: about the root of n classes, and the root of that many groups: level -> (n, labels)."""
    classes = max(2, round(len(features) ** 0.5))
    return {
        level: np.eye(count, dtype=np.bool_)[spherical_kmeans(features, count, seed)]
        for level, count in {"classes": classes, "groups": max(2, round(classes**0.5))}.items()
    }
