"""Clusters of codes by their Hamming distances: k-majority, and groups of near codes. Pure numpy.

k-majority is k-means over bits (Grana et al., "A Fast Approach for Integrating ORB Descriptors in the Bag of Words
Model", SPIE 2013): each code belongs to the nearest centre, and each bit of a centre is that of most of its codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes

    Places = NDArray[np.int64]


MOST_CLUSTERS = 36
"""As many as can be looked over at once."""
FEWEST_TO_SPLIT = 12
"""Fewer codes than this are one cluster."""
_ROUNDS = 25
_SAMPLE = 4_000
_TRIES = 3
_BLOCK = 1 << 14
_SEED = 20


def count_for(codes: int) -> int:
    """How many clusters to make of so many codes: their cube root, so that two levels of them end in few images."""
    return 1 if codes < FEWEST_TO_SPLIT else min(MOST_CLUSTERS, max(2, round(codes ** (1 / 3))))


def cluster_codes(codes: Codes, count: int) -> tuple[Places, Codes]:
    """Divide codes into at most so many clusters; the same for the same codes.

    Starts from the best of several draws of centres from a sample, see ``k_majority``. Clusters stand in the order of
    a walk from the largest one to the nearest that was not visited, so that neighbours are alike.

    Args:
        codes: (n, bits / 8) uint8, n > 0.
        count: 1 or more.

    Returns:
        (n,) the cluster of each code, from 0; and (k, bits / 8) their centres. No cluster is empty.
    """
    random = np.random.default_rng(_SEED)
    sample = codes if len(codes) <= _SAMPLE else codes[np.sort(random.choice(len(codes), _SAMPLE, replace=False))]
    best: tuple[int, Codes] | None = None
    for _ in range(_TRIES if count > 1 else 1):
        places, centres = k_majority(sample, _draw(sample, count, random))
        cost = int(_own_distances(sample, centres, places).sum())
        if best is None or cost < best[0]:
            best = cost, centres
    places, centres = k_majority(codes, best[1] if best else codes[:1])
    order = _walk(centres, np.bincount(places, minlength=len(centres)))
    renumbered = np.empty(len(order), np.int64)
    renumbered[order] = np.arange(len(order))
    return renumbered[places], centres[order]


def k_majority(codes: Codes, centres: Codes) -> tuple[Places, Codes]:
    """Improve centres until the clusters do not change; see above.

    A cluster that has lost all codes is left out. Equal distances go to the first centre, and even bits are zeros.

    Args:
        codes: (n, bits / 8) uint8.
        centres: (k, bits / 8) uint8 to start with.

    Returns:
        As ``cluster_codes``, in the order of the centres that were given.
    """
    places = nearest_centre(codes, centres)
    for _ in range(_ROUNDS):
        kept, places = np.unique(places, return_inverse=True)
        centres = np.concatenate([majority(codes[places == i]) for i in range(len(kept))])
        moved = nearest_centre(codes, centres)
        if (moved == places).all():
            break
        places = moved
    kept, places = np.unique(places, return_inverse=True)
    return places, centres[kept]


def nearest_centre(codes: Codes, centres: Codes) -> Places:
    """The first of the nearest centres of each code: (n, bytes), (k, bytes) -> (n,)."""
    return np.concatenate([hamming(block, centres).argmin(axis=1) for block in _blocks(codes)])


def typical_places(codes: Codes, centre: Codes, count: int) -> Places:
    """Places of the codes nearest to a centre, of which no two are equal where there are others.

    Args:
        codes: (n, bits / 8) uint8.
        centre: (bits / 8,) uint8.
        count: how many, at most.

    Returns:
        At most ``count``, nearest first; equal distances in the order of the codes.
    """
    order = np.argsort(hamming(codes, centre[None])[:, 0], kind="stable")
    _, first = np.unique(codes[order], axis=0, return_index=True)
    different = np.zeros(len(order), bool)
    different[first] = True
    chosen: Places = np.concatenate([order[different], order[~different]])[:count]
    return chosen


def near_groups(codes: Codes, radius: int) -> Places:
    """Group the codes that are near to one of them; the same for the same codes.

    One code after the other, of those in no group yet, takes all such codes within the radius.

    Args:
        codes: (n, bits / 8) uint8.
        radius: in bits.

    Returns:
        (n,) the group of each code, from 1, in the order of their first codes; 0: none is near.
    """
    groups = np.zeros(len(codes), np.int64)
    _, different, same = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    crowded = np.bincount(same)[same] > 1
    for start, block in zip(range(0, len(codes), _BLOCK // 16), _blocks(codes, _BLOCK // 16), strict=True):
        crowded[start : start + len(block)] |= (hamming(block, codes[different]) <= radius).sum(axis=1) > 1
    number = 0
    candidates = np.flatnonzero(crowded)
    for place in candidates:
        if groups[place]:
            continue
        free = candidates[groups[candidates] == 0]
        near = free[hamming(codes[place][None], codes[free])[0] <= radius]
        if len(near) > 1:
            number += 1
            groups[near] = number
    return groups


def _draw(codes: Codes, count: int, random: np.random.Generator) -> Codes:
    """Centres far from each other: each drawn by the square of its distance to those before (k-means++)."""
    chosen = [int(random.integers(len(codes)))]
    distances = hamming(codes, codes[chosen])[:, 0].astype(np.float64)
    while len(chosen) < count and distances.any():
        shares = distances**2
        chosen.append(int(random.choice(len(codes), p=shares / shares.sum())))
        distances = np.minimum(distances, hamming(codes, codes[chosen[-1:]])[:, 0])
    return codes[chosen]


def majority(codes: Codes) -> Codes:
    """(n, bytes) -> (1, bytes): the bits of more than half of the codes."""
    ones = sum(np.unpackbits(block, axis=1).sum(axis=0, dtype=np.int64) for block in _blocks(codes))
    return np.packbits(2 * ones > len(codes))[None]


def _own_distances(codes: Codes, centres: Codes, places: Places) -> NDArray[np.int64]:
    distances: Places = np.bitwise_count(codes ^ centres[places]).sum(axis=1, dtype=np.int64)
    return distances


def _walk(centres: Codes, sizes: Places) -> Places:
    """The order of a walk from the largest cluster, each time to the nearest that was not visited."""
    distances = hamming(centres, centres)
    order = [int(sizes.argmax())]
    left = set(range(len(centres))) - set(order)
    while left:
        order.append(min(left, key=lambda i: (distances[order[-1], i], i)))
        left.remove(order[-1])
    return np.array(order)


def _blocks(codes: Codes, size: int = _BLOCK) -> Iterator[Codes]:
    for start in range(0, len(codes), size):
        yield codes[start : start + size]
