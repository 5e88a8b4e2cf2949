"""ITQ, anchor graph hashing and spectral hashing against second implementations, from the papers' formulas."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from mg_milvus.encoder.hash_heads import cluster_centres, itq_head

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EACH, KINDS = 30, 10


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("spectral_methods")


@pytest.fixture
def features() -> np.ndarray:
    """300 images of 10 kinds that overlap."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((KINDS, 40))
    return np.repeat(centres, EACH, axis=0) + random.standard_normal((KINDS * EACH, 40)) * 1.3


def mean_average_precision(values: np.ndarray) -> float:
    kinds = np.repeat(np.arange(KINDS), EACH)
    signs = np.where(values > 0, 1, -1)
    near = signs @ signs.T
    return float(np.mean([
        average_precision_score(np.delete(kinds == kinds[row], row), np.delete(near[row], row))
        for row in range(len(kinds))
    ]))  # fmt: skip


def test_itq_is_that_of_the_paper(features: np.ndarray) -> None:
    """Rotations by scipy's Procrustes, from many starts: ours is one of them."""
    projected = PCA(24, svd_solver="full").fit_transform(features)
    expected = []
    for seed in range(12):
        rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((24, 24)))[0]
        for _ in range(50):
            rotation, _ = orthogonal_procrustes(projected, np.where(projected @ rotation > 0, 1, -1))
        expected.append(mean_average_precision(projected @ rotation))
    sample = features.astype(np.float32)
    # Starts differ by more than implementations do: ours is within two deviations of them.
    found = mean_average_precision(itq_head(sample, 24)(sample))
    assert found == pytest.approx(np.mean(expected), abs=max(0.005, 2 * np.std(expected)))
    assert np.std(expected) < 0.02


def test_anchor_graph_hashing_is_that_of_the_whole_graph(features: np.ndarray, methods: ModuleType) -> None:
    """The Laplacian's eigenvectors of all n x n affinities, which anchors only make cheap to compute."""
    values = methods.anchor_graph_hashing(features, 16)(features)
    anchors = cluster_centres(features, 300)
    lengths, places = NearestNeighbors(n_neighbors=3).fit(anchors).kneighbors(features)
    tied = np.zeros((300, 300))
    weights = np.exp(-(lengths**2) / np.mean(lengths**2, axis=1, keepdims=True))
    np.put_along_axis(tied, places, weights / weights.sum(axis=1, keepdims=True), axis=1)
    used = tied.sum(axis=0) > 0
    graph = tied[:, used] @ np.diag(1 / tied[:, used].sum(axis=0)) @ tied[:, used].T
    assert graph.sum(axis=1) == pytest.approx(np.ones(300))  # so the Laplacian is I - graph
    eigenvalues, vectors = np.linalg.eigh(np.eye(300) - graph)
    expected = vectors[:, np.argsort(eigenvalues)[1:17]] * np.sqrt(300)
    assert np.abs(values) == pytest.approx(np.abs(expected), abs=1e-6)
    assert mean_average_precision(values) == pytest.approx(mean_average_precision(expected), abs=0.005)


def test_spectral_hashing_takes_the_smallest_frequencies(methods: ModuleType) -> None:
    """On a box of sides 4 and 1.5: half waves of lengths 4, 2, 4/3 of the long side come with 1.5 of the short one."""
    sides = np.stack(np.meshgrid(np.linspace(0, 4, 41), np.linspace(0, 1.5, 16)), axis=-1).reshape(-1, 2)
    values = methods.spectral_hashing(sides, 4)(sides)
    x, y = sides.T
    expected = [np.cos(np.pi * x / 4), np.cos(np.pi * x / 2), np.cos(np.pi * y / 1.5), np.cos(3 * np.pi * x / 4)]
    assert np.abs(values) == pytest.approx(np.abs(np.stack(expected, axis=1)), abs=1e-6)
