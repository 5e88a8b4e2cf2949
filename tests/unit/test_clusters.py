"""Clusters of codes, against clusters that were planted and values worked out by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mg_milvus.search.clusters import cluster_codes, count_for, k_majority, near_groups, nearest_centre, typical_places


def bits(*rows: str) -> np.ndarray:
    return np.array([[int(row[i : i + 8], 2) for i in range(0, len(row), 8)] for row in rows], np.uint8)


def planted(centres: int, each: int, flipped: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of 64 bits around random centres, of whose bits this share is flipped; and the centre of each."""
    random = np.random.default_rng(seed)
    true = random.random((centres, 64)) < 0.5
    labels = np.repeat(np.arange(centres), each)
    codes = np.packbits(true[labels] ^ (random.random((len(labels), 64)) < flipped), axis=1)
    order = random.permutation(len(labels))
    return codes[order], labels[order]


def test_a_centre_has_the_bits_of_most() -> None:
    codes = bits("11110000", "11100000", "11100001", "00000111", "00001111")
    places, centres = k_majority(codes, bits("11110000", "00001111"))
    assert places.tolist() == [0, 0, 0, 1, 1]
    assert centres.tolist() == bits("11100000", "00000111").tolist()  # of two that differ the bit is 0


def test_an_empty_cluster_is_left_out() -> None:
    places, centres = k_majority(bits("11110000", "11110001"), bits("00001111", "11110000"))
    assert places.tolist() == [0, 0]
    assert centres.tolist() == bits("11110000").tolist()


def test_equal_distances_go_to_the_first_centre() -> None:
    assert nearest_centre(bits("11000000"), bits("10000000", "01000000")).tolist() == [0]


@pytest.mark.parametrize("count", [4, 12])
def test_planted_clusters_are_found(count: int) -> None:
    codes, labels = planted(count, 150, 0.1)
    places, centres = cluster_codes(codes, count)
    assert len(centres) == count
    pure = sum(np.bincount(labels[places == own]).max() for own in range(count))
    assert pure >= 0.99 * len(labels)
    again, _ = cluster_codes(codes, count)
    assert (again == places).all()


def test_fewer_different_codes_than_clusters_are_fine() -> None:
    places, centres = cluster_codes(np.zeros((20, 8), np.uint8), 5)
    assert places.tolist() == [0] * 20
    assert centres.tolist() == [[0] * 8]


def test_typical_codes_are_the_nearest_and_differ() -> None:
    codes = bits("11110000", "11111111", "11110000", "11100000")
    assert typical_places(codes, codes[0], 3).tolist() == [0, 3, 1]
    assert typical_places(codes[[0, 2]], codes[0], 3).tolist() == [0, 1]


def test_near_codes_are_grouped() -> None:
    codes = bits("11110000", "00000000", "11110001", "11111111", "00000000", "11110011")
    # 0 takes 2 (1 bit); 5 is 2 bits from 0; the two zeros are equal; 3 is 2 bits from 5, which is its group then.
    assert near_groups(codes, 1).tolist() == [1, 2, 1, 0, 2, 0]
    assert near_groups(codes, 2).tolist() == [1, 2, 1, 0, 2, 1]
    assert near_groups(codes[:1], 9).tolist() == [0]


def test_the_number_of_clusters_grows_with_the_cube_root() -> None:
    assert [count_for(n) for n in (1, 11, 12, 1000, 8000, 10**6)] == [1, 1, 2, 10, 20, 36]


def test_twenty_thousand_codes_take_a_moment() -> None:
    codes, _ = planted(40, 500, 0.15)
    started = time.process_time()
    cluster_codes(codes, count_for(len(codes)))
    assert time.process_time() - started < 20  # about one
