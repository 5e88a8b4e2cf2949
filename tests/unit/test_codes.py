"""Packing and Hamming distances against values worked out by hand and numpy on unpacked bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_milvus.codes import bit_balance, hamming, in_steps, pack, signs, unpack, weighted_hamming


def test_the_first_bit_is_the_most_significant() -> None:
    values = np.array([[1.0, -1, -1, -1, -1, -1, -1, 0.5], [-1, -1, -1, -1, -1, -1, 2, 0]])
    assert pack(values).tolist() == [[0b1000_0001], [0b0000_0010]]


def test_zero_is_no_one() -> None:
    assert pack(np.zeros((1, 8))).tolist() == [[0]]


def test_unpack_is_the_inverse() -> None:
    bits = np.random.default_rng(0).random((5, 48)) > 0.5
    assert (unpack(pack(bits)) == bits).all()


@pytest.mark.parametrize("shape", [(3, 7), (8,), (1, 2, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\(n, bits\\)"):
        pack(np.zeros(shape))


def test_distances_by_hand() -> None:
    queries = np.array([[0b0000_0000], [0b1111_1111]], np.uint8)
    database = np.array([[0b0000_0001], [0b1111_0000], [0b1111_1111]], np.uint8)
    assert hamming(queries, database).tolist() == [[1, 4, 8], [7, 4, 0]]


@given(st.integers(0, 5), st.integers(0, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_distances_are_those_of_the_bits(n: int, m: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    left = random.integers(0, 256, (n, width), np.uint8)
    right = random.integers(0, 256, (m, width), np.uint8)
    expected = (np.unpackbits(left, axis=1)[:, None] != np.unpackbits(right, axis=1)[None]).sum(axis=2)
    assert (hamming(left, right) == expected).all()


def test_codes_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="codes of 2 bytes cannot be compared with codes of 3"):
        hamming(np.zeros((1, 2), np.uint8), np.zeros((1, 3), np.uint8))


def test_bits_count_as_much_as_the_query_is_sure_by_hand() -> None:
    # The values have the mean size 1: the first three differ from 0b0000_0000 where they are above 0.
    real = np.array([[2.0, 0.5, -1.0, -0.5, -1, -1, -1, -1]], np.float32)
    codes = np.array([[0b1100_0000], [0b0000_0000], [0b0100_0000], [0b0011_1111]], np.uint8)
    assert weighted_hamming(real, codes).tolist() == [[0, 2.5, 2, 8]]
    assert weighted_hamming(7 * real, codes).tolist() == [[0, 2.5, 2, 8]]
    assert signs(codes[:1]).tolist() == [[1, 1, -1, -1, -1, -1, -1, -1]]
    assert weighted_hamming(signs(codes), codes).tolist() == hamming(codes, codes).tolist()


def test_a_real_code_in_steps_by_hand() -> None:
    """The largest is 127, the others are rounded away from 0, so that no sign is lost."""
    real = np.array([[[2.0, -1.0, 1e-9, -1e-9]], [[0.0, 0, 0, 0]]], np.float32)
    assert in_steps(real).tolist() == [[[127, -64, 1, -1]], [[0, 0, 0, 0]]]
    assert in_steps(real).dtype == np.float32


def test_balance_is_the_share_of_ones() -> None:
    assert bit_balance(np.array([[0b1000_0000], [0b1100_0000]], np.uint8)).tolist() == [1, 0.5, 0, 0, 0, 0, 0, 0]
