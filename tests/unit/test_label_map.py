"""What labels teach: against scikit-learn's ridge regression."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from mg_milvus.encoder.label_map import MOST_SCORES, PENALTIES, fit_label_map


def labelled(images: int, dimensions: int, labels: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre for each label, and one-hot labels."""
    random = np.random.default_rng(labels)
    own = np.arange(images) % labels
    centres = random.standard_normal((labels, dimensions))
    features = centres[own] + noise * random.standard_normal((images, dimensions))
    return features.astype(np.float32), np.eye(labels, dtype=bool)[own]


@pytest.mark.parametrize("noise", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("images", [60, 200])
def test_the_map_is_ridge_regression_with_the_best_penalty(images: int, noise: float) -> None:
    features, labels = labelled(images, 100, 6, noise)
    found = fit_label_map(features, labels)
    centred = features - features.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    # One penalty for all labels, by the error of left-out images.
    chosen = RidgeCV(alphas=PENALTIES, fit_intercept=False).fit(centred, labels.astype(float)).alpha_
    expected = Ridge(alpha=chosen, fit_intercept=False).fit(centred, labels.astype(float)).coef_.T
    np.testing.assert_allclose(found.weights, expected, atol=2e-3 * np.abs(expected).max())
    joined = found(features)
    assert (joined.shape, joined.dtype) == ((images, 106), np.float32)
    np.testing.assert_allclose(joined[:, :100], centred, atol=1e-5)
    scores = centred @ expected
    np.testing.assert_allclose(joined[:, 100:], scores / np.linalg.norm(scores, axis=1, keepdims=True), atol=5e-3)


def test_of_many_labels_the_scores_keep_their_angles() -> None:
    features, labels = labelled(1200, 80, 400, 0.3)
    found = fit_label_map(features, labels)
    assert found.scores == min(MOST_SCORES, 400)
    centred = features - features.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    alpha = RidgeCV(alphas=PENALTIES, fit_intercept=False).fit(centred, labels.astype(float)).alpha_
    scores = Ridge(alpha=alpha, fit_intercept=False).fit(centred, labels.astype(float)).predict(centred)
    # 80 features have 80 directions of scores, which 256 numbers hold.
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    own = found(features)[:, 80:]
    np.testing.assert_allclose(own @ own.T, scores @ scores.T, atol=1e-2)
