"""Heads with diffusion against scikit-learn's neighbours, the walk's own matrix, and clusters made on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from mg_milvus.encoder.hash_heads import (
    MOST_ROWS,
    affinities,
    anchor_count,
    anchor_distances,
    averaged_rows,
    expanded,
    fit_diffusion_head,
    fit_head,
    graph_embedding,
    shipped_head,
    statistics,
    unit,
)


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
    embedded = tied @ graph_embedding(tied, np.ones(80), 6, steps)
    assert walk @ embedded == pytest.approx(embedded * values, abs=1e-9)
    assert embedded.sum(axis=0) == pytest.approx(np.zeros(6), abs=1e-9)
    lengths = np.linalg.norm(embedded, axis=0)
    assert lengths / lengths[0] == pytest.approx((values / values[0]) ** steps, rel=1e-6)


def test_a_weight_of_two_is_an_image_twice() -> None:
    random = np.random.default_rng(4)
    tied = affinities(random.standard_normal((40, 5)), random.standard_normal((9, 5)), 3)
    weights = np.where(np.arange(40) < 12, 2.0, 1.0)
    twice = np.concatenate([tied, tied[:12]])
    found, expected = graph_embedding(tied, weights, 4, 2), graph_embedding(twice, np.ones(52), 4, 2)
    assert found == pytest.approx(expected, abs=1e-9)


def test_anchor_distances_are_root_mean_squares() -> None:
    anchors = np.array([[0.0, 0], [3, 4], [100, 0]])
    assert anchor_distances(np.zeros((1, 2)), anchors, 2) == pytest.approx([np.sqrt(25 / 2)])


def test_anchors_without_images_play_no_part() -> None:
    tied = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0, 1, 0]])
    embedding = graph_embedding(tied, np.ones(3), 2, 1)
    assert np.isfinite(embedding).all()
    assert embedding[2] == pytest.approx(np.zeros(embedding.shape[1]), abs=1e-6)


@pytest.mark.parametrize(("size", "expected"), [(2, 2), (4, 2), (50, 33), (300, 128), (1000, 200), (5000, 400)])
def test_a_larger_sample_has_more_anchors(size: int, expected: int) -> None:
    assert anchor_count(size) == expected


def test_codes_follow_curves_that_linear_ones_cut() -> None:
    sample, kinds = rings(100)
    others, _ = rings(100)
    others += np.random.default_rng(5).standard_normal(others.shape).astype(np.float32) * 0.02  # images not seen
    few, many = (fit_diffusion_head(sample, 32, None, steps) for steps in (4, 16))
    found = [precision(head(others), kinds, 60) for head in (fit_head(sample, 32, None), few, many)]
    assert found[0] < found[1] - 0.05 < found[2] - 0.1


def test_an_average_over_neighbours_is_the_sum_of_their_cosines_cubed() -> None:
    rows = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]])
    found = expanded(rows[:1], rows[:1] @ rows.T, rows, 3, 3)
    by_hand = np.array([1 + 1 + 0.6**3 * 0.6, 0.6**3 * 0.8])  # itself twice, and the second
    assert found == pytest.approx(by_hand[None] / np.linalg.norm(by_hand))
    assert expanded(rows[3:], -np.ones((1, 4)), rows, 9, 3) == pytest.approx(rows[3:])  # nothing is near it


def test_rows_of_a_head_are_averages_of_a_sample() -> None:
    components = np.array([[1, 0], [0.8, 0.6], [0, 1.0]])
    rows = averaged_rows(components, 1)
    once = np.array([[1 + 0.8**5 * 0.8, 0.8**5 * 0.6], [0.8 + 0.8**5, 0.6], [0.6**5 * 0.8, 1 + 0.6**5 * 0.6]])
    once /= np.linalg.norm(once, axis=1, keepdims=True)
    cosines = once @ once.T
    other = [int(np.argmax(np.where(np.arange(3) == i, -1, cosines[i]))) for i in range(3)]
    twice = once + np.array([cosines[i, j] ** 5 * once[j] for i, j in enumerate(other)])
    twice /= np.linalg.norm(twice, axis=1, keepdims=True)
    assert rows.dtype == np.int8
    assert np.abs(rows).max() == 127
    assert unit(rows) == pytest.approx(twice, abs=0.01)
    assert len(averaged_rows(np.eye(2)[np.arange(MOST_ROWS + 9) % 2], 1)) == MOST_ROWS


def test_real_codes_do_not_depend_on_the_batch() -> None:
    sample, _ = rings(60)
    head = fit_diffusion_head(sample, 64, None, 2)
    many = np.concatenate([sample] * 5)  # longer than a block
    whole = head(many) > 0
    for size in (1, 7, 240):
        parts = [head(many[i : i + size]) > 0 for i in range(0, len(many), size)]
        assert (np.concatenate(parts) == whole).all()
    assert head(sample[:0]).shape == (0, 64)


def test_the_same_sample_gives_the_same_head() -> None:
    sample, _ = rings(30)
    first, second = fit_diffusion_head(sample, 16, None, 2), fit_diffusion_head(sample.copy(), 16, None, 2)
    assert (first(sample) == second(sample)).all()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_images_are_enough(count: int) -> None:
    sample, _ = rings(5)
    head = fit_diffusion_head(sample[:count], 16, None, 4)
    assert head.bits == 16
    assert len({(row > 0).tobytes() for row in head(sample[:count])}) > 1


def test_two_images_many_times_over() -> None:
    sample = np.repeat(np.eye(6, dtype=np.float32)[:2], 40, axis=0)
    values = fit_diffusion_head(sample, 8, None, 4)(sample)
    assert np.isfinite(values).all()
    assert ((values[0] > 0) != (values[40] > 0)).any()


def test_features_that_do_not_vary_are_refused() -> None:
    with pytest.raises(ValueError, match="do not vary"):
        fit_diffusion_head(np.ones((60, 8), np.float32), 8, None, 4)


def kinds_and_others(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """16 kinds in 48 dimensions, and 32 that the shipped statistics have been made of, the same 16 not among them."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((48, 48)).astype(np.float32)
    rows = np.repeat(centres, 40, axis=0) + random.standard_normal((48 * 40, 48)).astype(np.float32)
    return rows[: 16 * 40], np.repeat(np.arange(16), 40), rows[16 * 40 :]


def test_clusters_are_centres_of_the_features() -> None:
    _, _, others = kinds_and_others()
    found = statistics(others, clusters=True)
    assert found.clusters is not None
    centres = found.mean + found.clusters @ found.factor
    means = others.reshape(32, 40, 48).mean(axis=1)
    nearest = np.linalg.norm(means[:, None] - centres, axis=2).min(axis=1)
    assert np.median(nearest) < 0.5 * np.median(np.linalg.norm(means[:, None] - means, axis=2))
    assert statistics(others[:4], clusters=True).clusters is None


def test_kinds_that_come_later_are_found_about_as_well_as_with_the_shipped_head() -> None:
    rows, kinds, others = kinds_and_others()
    shipped = statistics(others, clusters=True)
    head = fit_diffusion_head(rows[:320], 64, shipped, 4)
    old, new = slice(0, 320), slice(320, 640)

    def of(values: np.ndarray, part: slice) -> float:
        signs = np.where(values > 0, 1, -1)
        order = (-(signs @ signs.T) + 10_000 * np.eye(640, dtype=int))[part].argsort(axis=1, kind="stable")[:, :30]
        return float((kinds[order] == kinds[part, None]).mean())

    alone = fit_diffusion_head(rows[:320], 64, replace(shipped, clusters=None), 4)
    assert of(head(rows), new) > of(alone(rows), new) + 0.05
    assert of(head(rows), new) > of(shipped_head(shipped, 64)(rows), new) - 0.05
    assert of(head(rows), old) > of(head(rows), new)
    assert of(head(rows), old) > of(shipped_head(shipped, 64)(rows), old) + 0.1


def test_images_of_other_kinds_are_far() -> None:
    rows, _, others = kinds_and_others()
    random = np.random.default_rng(9)
    taken = random.random(320) < 0.8
    head = fit_diffusion_head(rows[:320][taken], 32, statistics(others, clusters=True), 2)
    assert head.is_far(rows[:320][taken]).mean() == pytest.approx(0.05, abs=0.01)
    assert head.is_far(rows[:320][~taken]).mean() < 0.25 < 0.9 < head.is_far(rows[320:]).mean()
    assert head.is_far(rows[:0]).shape == (0,)
