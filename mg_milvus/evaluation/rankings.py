"""Fused rankings of whole databases, for many queries: the formulas of ``fusion.fuse`` by tables instead of sorting.

A Hamming distance has few values, so its shared rank is looked up in a table made by counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mg_milvus.fusion import DEFAULT_RRF_K
from mg_milvus.schema import PROFILES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.schema import Schema

DECIMALS = 1e12
"""``fuse`` takes scores for equal that agree to 12 decimals."""
LARGEST_SUM = 64.0
"""Weights with a larger sum are scaled down to it, so that 12 decimals of a score fit into 64 bits."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to fuse. ``weights``: granularity -> weight above 0."""

    method: Literal["rank", "score"]
    weights: Mapping[str, float]
    rrf_k: int = DEFAULT_RRF_K


def recipes_of(schema: Schema) -> dict[str, Recipe]:
    """``rank`` and ``score`` with the schema's weights, and every profile by rank; names as in the figures."""
    rrf_k = schema.fusion.rrf_k

    def recipe(method: Literal["rank", "score"], weights: Mapping[str, float]) -> Recipe:
        return Recipe(method, {name: weight for name, weight in sorted(weights.items()) if weight > 0}, rrf_k)

    found = {"rank": recipe("rank", schema.weights), "score": recipe("score", schema.weights)}
    for profile, weights in PROFILES.items():
        own = {name: weights.get(name, weight) for name, weight in schema.weights.items()}
        if any(own.values()):  # a profile may ask only for what this schema does not have
            found[profile] = recipe("rank", own)
    return found


def fused_keys(
    distances: Mapping[str, NDArray[np.integer]],
    bits: Mapping[str, int],
    recipes: Sequence[Recipe],
    candidates: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The fused order of one query's rows, by every recipe.

    Args:
        distances: granularity -> (n,) Hamming distances in bits.
        bits: granularity -> code length.
        recipes: how to fuse.
        candidates: (n,) bool: rows that take part; None: all. The others get a key, but no rank counts them.

    Returns:
        (recipes, n) int64: smaller is nearer, in the order of ``fuse``; rows that only their ids tell apart are equal.
    """
    near, reciprocal = {}, {}
    for name, values in distances.items():
        places = values.astype(np.intp)
        # Every distance is inside its table; the mode "clip" alone does without a buffer.
        near[name] = np.take(1 - np.arange(bits[name] + 1) / bits[name], places, mode="clip")
        ranks = _ranks(places if candidates is None else places[candidates], bits[name])
        for rrf_k in {recipe.rrf_k for recipe in recipes}:
            reciprocal[name, rrf_k] = np.take(1 / (rrf_k + ranks), places, mode="clip")
    keys = np.empty((len(recipes), len(next(iter(near.values())))), np.int64)
    for own, recipe in zip(keys, recipes, strict=True):
        total = sum(recipe.weights.values())
        scale = min(1.0, LARGEST_SUM / total)
        weights = {name: weight * scale for name, weight in recipe.weights.items()}
        nearness = _weighted(weights, near)
        if recipe.method == "score":
            own[:] = _rounded(nearness, -DECIMALS)
            continue
        # Score first, nearness where scores are equal: the one in the upper bits, the other in those that are left.
        most = total * scale * DECIMALS / (recipe.rrf_k + 1)
        free = 62 - int(np.ceil(np.log2(most + 2)))
        scores = _weighted(weights, {name: reciprocal[name, recipe.rrf_k] for name in weights})
        own[:] = _rounded(scores, -DECIMALS)
        own <<= free
        own += _rounded(nearness, -(2.0**free - 1) / (total * scale)).astype(np.int64)
    return keys


def _ranks(distances: NDArray[np.intp], bits: int) -> NDArray[np.float64]:
    """Rank of each distance 0 ... bits among these, equal ones sharing their mean rank, as ``fusion.shared_ranks``."""
    counted = np.bincount(distances, minlength=bits + 1)
    ranks: NDArray[np.float64] = np.cumsum(counted) - (counted - 1) / 2
    return ranks


def _weighted(weights: Mapping[str, float], terms: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Sum of weight times term."""
    (first, weight), *rest = weights.items()
    found = weight * terms[first]
    part = np.empty_like(found)
    for name, weight in rest:
        found += np.multiply(terms[name], weight, out=part)
    return found


def _rounded(values: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """``values`` times ``scale``, to the nearest whole number; ``values`` is used up."""
    values *= scale
    return np.rint(values, out=values)
