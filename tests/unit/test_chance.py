"""The distances of random pairs: counted, as shares, and as they are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_milvus.search.chance import Chance, pair_counts

BITS = {"coarse": 8}


def chance_of(*counts: int) -> Chance:
    return Chance("f" * 16, 60, {"coarse": np.array(counts, np.int64)})


def test_pairs_are_counted_once_each() -> None:
    codes = {"coarse": np.array([[0b0], [0b1], [0b11], [0b1111_1111]], np.uint8)}
    # 0-1: 1, 0-11: 2, 0-all: 8, 1-11: 1, 1-all: 7, 11-all: 6
    assert pair_counts(codes)["coarse"].tolist() == [0, 2, 1, 0, 0, 0, 1, 1, 1]


def test_blocks_of_pairs_add_up() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (1201, 2), np.uint8)
    bits = np.unpackbits(codes, axis=1).astype(int)
    far = (bits[:, None] != bits[None]).sum(axis=2)[np.triu_indices(1201, 1)]
    assert pair_counts({"fine": codes})["fine"].tolist() == np.bincount(far, minlength=17).tolist()


def test_the_share_of_pairs_that_are_as_near() -> None:
    """9 pairs and one more, a ninth of it at each of the nine distances."""
    chance = chance_of(0, 2, 1, 0, 0, 0, 3, 2, 1)
    assert chance.of("coarse", np.array([0, 1, 2, 3, 8])).tolist() == pytest.approx(
        [1 / 90, (2 + 2 / 9) / 10, (3 + 3 / 9) / 10, (3 + 4 / 9) / 10, 1]
    )
    assert chance.of("coarse", np.array([1.5])).tolist() == pytest.approx([(2.5 + 2.5 / 9) / 10])


@given(st.lists(st.integers(0, 50), min_size=9, max_size=9).filter(any))
def test_a_smaller_distance_has_a_smaller_share(counts: list[int]) -> None:
    shares = chance_of(*counts).of("coarse", np.arange(0, 8.5, 0.5))
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(1)
    assert (np.diff(shares) > 0).all()


def test_the_spread_is_what_independent_bits_do_not_explain() -> None:
    assert chance_of(1, 8, 28, 56, 70, 56, 28, 8, 1).spread("coarse") == pytest.approx(0)  # binomial
    assert chance_of(5, 0, 0, 0, 0, 0, 0, 0, 5).spread("coarse") == pytest.approx((1 / 4 - 1 / 32) ** 0.5)


def test_it_is_kept_and_read() -> None:
    chance = chance_of(0, 2, 1, 0, 0, 0, 3, 2, 1)
    read = Chance.from_bytes(chance.to_bytes(), BITS)
    assert (read.fingerprint, read.rows) == (chance.fingerprint, 60)
    assert read.counts["coarse"].tolist() == chance.counts["coarse"].tolist()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"counts": 3, "rows": 1}',
        json.dumps({"rows": 1, "counts": {}}).encode(),
        json.dumps({"rows": 1, "counts": {"coarse": [1] * 8}}).encode(),
        json.dumps({"rows": 1, "counts": {"coarse": [0] * 9}}).encode(),
        json.dumps({"rows": 1, "counts": {"coarse": [1] * 8 + [-1]}}).encode(),
        json.dumps({"rows": 1, "counts": {"coarse": [1] * 8 + [1e9]}}).encode(),
        json.dumps({"rows": "1", "counts": {"coarse": [1] * 9}}).encode(),
    ],
)
def test_what_is_damaged_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own messages
        Chance.from_bytes(data, BITS)
