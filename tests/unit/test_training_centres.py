"""Hash centres against what defines them: all different, and far apart in Hamming distance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.linalg import hadamard

from mg_milvus.errors import TrainingError
from mg_milvus.training import losses
from mg_milvus.training.losses import hash_centres


def distances(words: np.ndarray) -> np.ndarray:
    """Hamming distances of all pairs, counted bit by bit."""
    return np.array([(a != b).sum() for place, a in enumerate(words) for b in words[place + 1 :]])


def lone(words: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(word) for word in words.tolist()}


@pytest.mark.parametrize(
    ("classes", "bits"), [(1, 8), (2, 1), (4, 2), (10, 48), (16, 8), (17, 8), (200, 16), (300, 16), (40, 17), (100, 64)]
)
def test_centres_are_different_words_of_minus_and_plus_one(classes: int, bits: int) -> None:
    words = hash_centres(classes, bits)
    assert words.shape == (classes, bits)
    assert words.dtype == np.int8
    assert set(np.unique(words)) == {-1, 1}
    assert len(lone(words)) == classes


@pytest.mark.parametrize(("classes", "bits"), [(3, 8), (8, 8), (20, 32), (64, 64), (128, 128)])
def test_up_to_as_many_classes_as_bits_are_orthogonal(classes: int, bits: int) -> None:
    words = hash_centres(classes, bits).astype(int)
    assert (words @ words.T == bits * np.eye(classes)).all()


@pytest.mark.parametrize(("classes", "bits"), [(9, 8), (16, 8), (50, 32), (100, 64)])
def test_up_to_twice_as_many_are_orthogonal_or_opposite(classes: int, bits: int) -> None:
    found = distances(hash_centres(classes, bits))
    assert set(found) == {bits // 2, bits}
    assert (found == bits).sum() == classes - bits


@pytest.mark.parametrize(
    ("classes", "bits", "least"),
    # The Plotkin bound allows 12 bits and 10 words no more than 6; 48 bits and 10 words no more than 26.
    [(10, 12, 6), (10, 24, 9), (10, 48, 20), (100, 48, 16), (200, 16, 4), (1000, 64, 19)],
)
def test_other_centres_are_kept_apart(classes: int, bits: int, least: int) -> None:
    assert distances(hash_centres(classes, bits)).min() >= least


@pytest.mark.parametrize(("classes", "bits"), [(10, 32), (64, 64), (100, 64), (10, 48), (100, 48), (21, 12), (200, 16)])
def test_centres_are_half_of_their_bits_apart_on_average(classes: int, bits: int) -> None:
    """What makes words hash centres in Yuan et al. 2020, definition 1: a mean distance of at least half of the bits."""
    assert distances(hash_centres(classes, bits)).mean() >= bits / 2


@pytest.mark.parametrize(("classes", "bits"), [(10, 16), (32, 32), (100, 64)])
def test_centres_are_rows_of_a_hadamard_matrix_or_their_opposites(classes: int, bits: int) -> None:
    rows = lone(hadamard(bits))
    words = hash_centres(classes, bits)
    assert all(tuple(word) in rows or tuple(-word) in rows for word in words)
    if classes > bits:
        assert (words[bits:] == -words[: classes - bits]).all(), "as Yuan et al. go on with the negative matrix"


def test_other_centres_are_as_balanced_as_coins() -> None:
    """Bernoulli words of half ones: among 4,800 coins the share of ones is within three deviations of a half."""
    ones = (hash_centres(100, 48) == 1).mean()
    assert abs(ones - 0.5) < 3 * 0.5 / 4800**0.5


def test_no_bit_says_the_same_for_every_class() -> None:
    for classes, bits in [(10, 64), (64, 64), (100, 64), (10, 48), (200, 16)]:
        assert (np.abs(hash_centres(classes, bits).sum(axis=0, dtype=int)) < classes).all()


def test_the_seed_decides() -> None:
    for classes, bits in [(10, 64), (100, 16), (10, 48)]:
        first = hash_centres(classes, bits, seed=3)
        assert (hash_centres(classes, bits, seed=3) == first).all()
        assert (hash_centres(classes, bits, seed=4) != first).any()


def test_every_word_can_be_a_centre() -> None:
    assert lone(hash_centres(32, 5)) == set(product((-1, 1), repeat=5))


def test_drawing_goes_on_until_a_word_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "ENUMERABLE_BITS", 0)
    monkeypatch.setattr(losses, "_DRAWS", 2)
    assert lone(hash_centres(32, 5)) == set(product((-1, 1), repeat=5))


@pytest.mark.parametrize(("classes", "bits", "most"), [(257, 8, 256), (5, 2, 4), (0, 8, 256)])
def test_more_classes_than_words(classes: int, bits: int, most: int) -> None:
    with pytest.raises(
        TrainingError, match=f"{classes} classes .* {bits} bits, expected 1 to {most} classes; use more"
    ):
        hash_centres(classes, bits)
