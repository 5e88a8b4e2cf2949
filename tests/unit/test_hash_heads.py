"""PCA and ITQ against numpy's covariance, scikit-learn's PCA, and the definition of the quantisation loss."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from mg_milvus.encoder.hash_heads import (
    BASELINES,
    Head,
    Statistics,
    augmentation_covariance,
    fit_head,
    itq_rotation,
    shipped_head,
    statistics,
    suppress_nuisance,
)


def sample(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Correlated features with a mean."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((d, d)) * (0.8 ** np.arange(d))[:, None]
    return (random.standard_normal((n, d)) @ mixing + random.standard_normal(d)).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(200, 24), (20, 48)])
def test_statistics_are_mean_and_covariance(n: int, d: int) -> None:
    features = sample(n, d)
    found = statistics(features)
    assert found.mean == pytest.approx(features.mean(axis=0), abs=1e-5)
    expected = np.cov(features.T, bias=True)
    assert np.abs(found.factor.T @ found.factor - expected).max() < 2e-3 * np.abs(expected).max()  # half precision


def test_statistics_keep_the_largest_directions() -> None:
    features = sample(300, 24)
    found = statistics(features, rank=5)
    kept = np.trace(found.factor.T @ found.factor)
    reference = PCA(5, svd_solver="full").fit(features)
    assert kept == pytest.approx(reference.explained_variance_.sum() * 299 / 300, rel=1e-3)


@pytest.mark.parametrize(("n", "d"), [(300, 32), (40, 64)])
def test_a_head_projects_onto_the_principal_components(n: int, d: int) -> None:
    features = sample(n, d)
    head = fit_head(features, 8, None)
    reference = PCA(8, svd_solver="full").fit(features)
    # The rotation turns the axes within the subspace: projecting onto it loses nothing of either basis.
    inside = reference.components_.T @ (reference.components_ @ head.projection)
    assert np.abs(inside - head.projection).max() < 2e-3
    assert head.projection.T @ head.projection == pytest.approx(np.eye(8), abs=5e-3)
    assert head.mean == pytest.approx(reference.mean_, abs=1e-5)


def test_the_rotation_is_orthogonal_and_loses_less_than_none() -> None:
    values = sample(500, 16)
    values -= values.mean(axis=0)
    rotation = itq_rotation(values, seed=3)

    def loss(turned: np.ndarray) -> float:
        return float(((np.where(turned > 0, 1, -1) - turned) ** 2).sum())

    assert rotation @ rotation.T == pytest.approx(np.eye(16), abs=1e-9)
    random, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))
    assert loss(values @ rotation) < min(loss(values), loss(values @ random))


def test_half_of_a_mixed_covariance_is_the_collections_own() -> None:
    random = np.random.default_rng(0)
    own, other = np.zeros((200, 16), np.float32), np.zeros((200, 16), np.float32)
    own[:, :4] = random.standard_normal((200, 4))
    other[:, 8:12] = random.standard_normal((200, 4))
    projection = fit_head(own, 8, statistics(other)).projection
    energy = (projection**2).sum(axis=1)
    assert energy[:4] == pytest.approx(np.ones(4), abs=1e-2)
    assert energy[8:12] == pytest.approx(np.ones(4), abs=1e-2)
    assert energy[[4, 5, 6, 7, 12, 13, 14, 15]] == pytest.approx(np.zeros(8), abs=1e-2)


def moved(n: int, d: int) -> np.ndarray:
    """Differences that edits make: much along the first axis, a little along the second."""
    random = np.random.default_rng(7)
    values = np.zeros((n, d), np.float32)
    values[:, :2] = random.standard_normal((n, 2)) * (3, 0.5)
    return values


def test_the_covariance_of_edits_is_not_centred() -> None:
    differences = moved(500, 12) + np.float32(0.25)  # an edit that moves all images alike is one to forget, too
    factor = augmentation_covariance(differences)
    assert factor.T @ factor == pytest.approx(differences.T @ differences / 500, abs=2e-2)


def test_directions_of_edits_count_less() -> None:
    differences = moved(500, 12)
    known = Statistics(np.zeros(12, np.float32), np.eye(12, dtype=np.float32), augmentation_covariance(differences))
    floor = 0.2 * (differences**2).mean(axis=0)[:2].mean()  # of the two directions that were kept
    expected = np.eye(12)
    for axis, variance in enumerate((differences**2).mean(axis=0)[:2]):
        expected[axis, axis] = np.sqrt(floor / (variance + floor))
    assert suppress_nuisance(np.eye(12, dtype=np.float32), known) == pytest.approx(expected, abs=2e-2)


def test_directions_rounded_to_nothing_are_left_out() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    nothing = Statistics(np.zeros(3, np.float32), np.eye(3, dtype=np.float32), np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(suppress_nuisance(rows, nothing), rows)


def test_heads_that_know_edits_keep_their_bits_under_them() -> None:
    features, differences = sample(400, 12), moved(400, 12)
    plain = statistics(features)
    knowing = Statistics(plain.mean, plain.factor, augmentation_covariance(differences))

    def lost(head: Head) -> float:
        return float(((head(features) > 0) != (head(features + differences) > 0)).mean())

    assert lost(fit_head(features, 8, knowing)) < 0.4 * lost(fit_head(features, 8, plain))
    assert lost(shipped_head(knowing, 8)) < 0.4 * lost(shipped_head(plain, 8))


def test_codes_may_be_longer_than_the_features() -> None:
    head = fit_head(sample(100, 10), 64, None)
    assert head.projection.shape == (10, 64)
    assert len({column.tobytes() for column in head.projection.T}) == 64


def test_the_same_sample_gives_the_same_head() -> None:
    features = sample(80, 32)
    first, second = fit_head(features, 16, None), fit_head(features.copy(), 16, None)
    assert (first.projection == second.projection).all()


def test_real_codes_do_not_depend_on_the_batch() -> None:
    features = sample(257, 300)
    head = fit_head(features, 64, None)
    whole = head(features) > 0
    for size in (1, 2, 7, 64):
        parts = [head(features[i : i + size]) > 0 for i in range(0, 257, size)]
        assert (np.concatenate(parts) == whole).all()


def test_shipped_heads_come_from_the_moments_alone() -> None:
    features = sample(400, 24)
    head = shipped_head(statistics(features), 16)
    balance = (head(features) > 0).mean(axis=0)
    assert head.bits == 16
    assert balance == pytest.approx(np.full(16, 0.5), abs=0.15)
    inside = PCA(16).fit(features).components_
    assert np.abs(inside.T @ (inside @ head.projection) - head.projection).max() < 5e-2


def test_lsh_is_random_hyperplanes_through_the_mean() -> None:
    """The share of bits in which two vectors differ estimates their angle over pi (Charikar 2002)."""
    random = np.random.default_rng(0)
    sample = random.standard_normal((400, 30)).astype(np.float32) + 5
    bits = BASELINES["lsh"](sample, 2048)(sample) > 0
    centred = sample - sample.mean(axis=0)
    for first, second in ((0, 1), (2, 3), (4, 5)):
        a, b = centred[first], centred[second]
        angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert (bits[first] != bits[second]).mean() == pytest.approx(angle / np.pi, abs=0.04)


def test_itq_alone_knows_only_the_sample() -> None:
    random = np.random.default_rng(1)
    sample = (random.standard_normal((300, 12)) * np.arange(1, 13)).astype(np.float32)
    head = BASELINES["itq"](sample, 8)
    # PCA's subspace, turned: the projection spans the 8 axes of largest variance and is orthonormal.
    np.testing.assert_allclose(head.projection.T @ head.projection, np.eye(8), atol=2e-3)
    _, vectors = np.linalg.eigh(np.cov((sample - sample.mean(axis=0)).T))
    assert np.linalg.norm(vectors[:, :4].T @ head.projection) < 0.01
