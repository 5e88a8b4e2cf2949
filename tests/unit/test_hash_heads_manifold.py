"""Manifold heads against scikit-learn's neighbours, the walk's own matrix, and clusters made on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from mg_milvus.encoder.hash_heads import affinities, anchor_count, fit_head, fit_manifold_head, graph_embedding


def rings(each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four closed curves in 24 dimensions, each longer than the curves are apart, and the curve of each point."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(4):
        angle = random.uniform(0, 2 * np.pi, each)
        turned, _ = np.linalg.qr(random.standard_normal((24, 4)))
        curve = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=1)
        rows.append(curve @ turned.T + random.standard_normal((each, 24)) * 0.05)
    return np.concatenate(rows).astype(np.float32), np.repeat(np.arange(4), each)


def precision(values: np.ndarray, kinds: np.ndarray, nearest: int) -> float:
    """Share of the nearest codes, the asked one left out, that are of the same kind."""
    signs = np.where(values > 0, 1, -1)
    distances = -(signs @ signs.T) + 10_000 * np.eye(len(signs), dtype=int)
    order = distances.argsort(axis=1, kind="stable")[:, :nearest]
    return float((kinds[order] == kinds[:, None]).mean())


def test_affinities_are_gaussians_over_the_nearest_anchors() -> None:
    random = np.random.default_rng(0)
    points, anchors = random.standard_normal((30, 6)), random.standard_normal((12, 6))
    found = affinities(points, anchors, 4)
    lengths, places = NearestNeighbors(n_neighbors=4).fit(anchors).kneighbors(points)
    expected = np.zeros((30, 12))
    for row in range(30):
        weights = np.exp(-(lengths[row] ** 2) / np.mean(lengths[row] ** 2))
        expected[row, places[row]] = weights / weights.sum()
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_embedding_is_eigenvectors_of_the_walk(steps: int) -> None:
    random = np.random.default_rng(1)
    tied = affinities(random.standard_normal((80, 5)), random.standard_normal((15, 5)), 4)
    walk = tied @ np.diag(1 / tied.sum(axis=0)) @ tied.T
    values = np.linalg.eigvalsh(walk)[::-1][1:7]  # the first is 1, of the constant vector
    embedded = tied @ graph_embedding(tied, 6, steps)
    assert walk @ embedded == pytest.approx(embedded * values, abs=1e-9)
    assert embedded.sum(axis=0) == pytest.approx(np.zeros(6), abs=1e-9)
    lengths = np.linalg.norm(embedded, axis=0)
    assert lengths / lengths[0] == pytest.approx((values / values[0]) ** steps, rel=1e-6)


def test_anchors_without_images_play_no_part() -> None:
    tied = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0, 1, 0]])
    embedding = graph_embedding(tied, 2, 1)
    assert np.isfinite(embedding).all()
    assert embedding[2] == pytest.approx(np.zeros(embedding.shape[1]), abs=1e-6)


@pytest.mark.parametrize(("size", "expected"), [(2, 2), (4, 2), (50, 33), (300, 128), (1000, 200), (5000, 1000)])
def test_a_larger_sample_has_more_anchors(size: int, expected: int) -> None:
    assert anchor_count(size) == expected


def test_codes_follow_curves_that_linear_ones_cut() -> None:
    sample, kinds = rings(100)
    others, _ = rings(100)
    others += np.random.default_rng(5).standard_normal(others.shape).astype(np.float32) * 0.02  # images not seen
    few, many = (fit_manifold_head(sample, 32, None, steps) for steps in (4, 16))
    found = [precision(head(others), kinds, 60) for head in (fit_head(sample, 32, None), few, many)]
    assert found[0] < found[1] - 0.05 < found[2] - 0.1


def test_real_codes_do_not_depend_on_the_batch() -> None:
    sample, _ = rings(60)
    head = fit_manifold_head(sample, 64, None, 2)
    many = np.concatenate([sample] * 5)  # longer than a block
    whole = head(many) > 0
    for size in (1, 7, 240):
        parts = [head(many[i : i + size]) > 0 for i in range(0, len(many), size)]
        assert (np.concatenate(parts) == whole).all()
    assert head(sample[:0]).shape == (0, 64)


def test_the_same_sample_gives_the_same_head() -> None:
    sample, _ = rings(30)
    first, second = fit_manifold_head(sample, 16, None, 2), fit_manifold_head(sample.copy(), 16, None, 2)
    assert (first(sample) == second(sample)).all()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_images_are_enough(count: int) -> None:
    sample, _ = rings(5)
    head = fit_manifold_head(sample[:count], 16, None, 4)
    assert head.bits == 16
    assert len({(row > 0).tobytes() for row in head(sample[:count])}) > 1


def test_two_images_many_times_over() -> None:
    sample = np.repeat(np.eye(6, dtype=np.float32)[:2], 40, axis=0)
    values = fit_manifold_head(sample, 8, None, 4)(sample)
    assert np.isfinite(values).all()
    assert ((values[0] > 0) != (values[40] > 0)).any()


def test_features_that_do_not_vary_are_refused() -> None:
    with pytest.raises(ValueError, match="do not vary"):
        fit_manifold_head(np.ones((60, 8), np.float32), 8, None, 4)
