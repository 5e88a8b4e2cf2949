"""Anchor graph hashing and spectral hashing as their papers have them: baselines, features in, real codes out.

Both learn from a sample (n, d) without labels; the signs of what they return for other rows are the codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.encoder.hash_heads import affinities, cluster_centres, principal_axes

if TYPE_CHECKING:
    from collections.abc import Callable

    Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    Hash = Callable[[Floats], Floats]

ANCHORS = 300
NEIGHBOURS = 3
"""Both as the paper on anchor graphs has them; more anchors where there are more bits, for each bit needs one."""


def anchor_graph_hashing(sample: Floats, bits: int) -> Hash:
    """One-layer anchor graph hashing (Liu et al., Hashing with Graphs, ICML 2011): (n, d) -> a hash function.

    The ``bits`` eigenvectors of the graph Laplacian with the smallest eigenvalues above 0, each out of the sample by
    its Nystrom extension ``z(x) W``, with ``W = sqrt(n) D^-1/2 V S^-1/2`` from the eigenvectors V and values S of
    ``D^-1/2 Z^T Z D^-1/2``. At most one bit less than there are rows in the sample.
    """
    anchors = cluster_centres(sample, min(max(ANCHORS, bits + 1), len(sample)))
    tied = affinities(sample, anchors, min(NEIGHBOURS, len(anchors) - 1))
    mass = tied.sum(axis=0)
    anchors, tied, mass = anchors[mass > 0], tied[:, mass > 0], mass[mass > 0]
    root = np.sqrt(mass)
    values, vectors = np.linalg.eigh((tied / root).T @ (tied / root))
    kept = np.argsort(-values)[1 : bits + 1]  # without the constant eigenvector, whose value is 1
    weights = np.sqrt(len(sample)) * vectors[:, kept] / root[:, None] / np.sqrt(values[kept])
    return lambda rows: affinities(rows, anchors, min(NEIGHBOURS, len(anchors) - 1)) @ weights


def spectral_hashing(sample: Floats, bits: int) -> Hash:
    """Spectral hashing (Weiss, Torralba and Fergus, NeurIPS 2008): (n, d) -> a hash function.

    Eigenfunctions ``sin(pi / 2 + m pi x / (b - a))`` of a uniform distribution along each of ``bits`` principal axes,
    x from a to b there; the ``bits`` with the smallest ``m / (b - a)``, m at least 1.
    """
    mean = sample.mean(axis=0)
    axes, _ = principal_axes(sample - mean, bits)
    along = (sample - mean) @ axes
    low, high = along.min(axis=0), along.max(axis=0)
    modes = np.arange(1, bits + 1)
    frequencies = modes[:, None] / (high - low)
    mode, axis = np.unravel_index(np.argsort(frequencies, axis=None, kind="stable")[:bits], frequencies.shape)
    turns = np.pi * frequencies[mode, axis]
    return lambda rows: np.sin(np.pi / 2 + (((rows - mean) @ axes)[:, axis] - low[axis]) * turns)
