"""The health of codes, worked out by hand and against numpy on the unpacked bits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mg_milvus.codes import pack
from mg_milvus.evaluation import metrics
from mg_milvus.evaluation.metrics import Health, health, joint_collisions


def codes_of(*rows: str) -> np.ndarray:
    return pack(np.array([[bit == "1" for bit in row] for row in rows]))


def test_by_hand() -> None:
    # The first two bits say the same, the third is independent of them, the others are constant.
    found = health(codes_of("11100001", "11000001", "00100001", "00000001"))
    assert found == Health(
        bits=8,
        balance=pytest.approx(5 / 8),
        correlation=pytest.approx(1 / 3),
        # Eigenvalues 1/2, 1/4 and zeros.
        effective_bits=pytest.approx((3 / 4) ** 2 / (1 / 4 + 1 / 16)),
        collisions=0,
    )


def test_a_bit_and_its_opposite_are_as_correlated_as_can_be() -> None:
    found = health(codes_of("10000000", "01000000"))
    assert (found.correlation, found.effective_bits) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("row", ["00000000", "11111111", "10101010"])
def test_constant_bits_have_no_correlation(row: str) -> None:
    assert health(codes_of(row, row, row)) == Health(8, balance=1, correlation=0, effective_bits=0, collisions=1)


def test_one_bit_that_varies_has_no_pair() -> None:
    found = health(codes_of("10000000", "00000000"))
    assert (found.correlation, found.effective_bits, found.balance) == (0, pytest.approx(1), pytest.approx(7 / 8))


def test_one_image() -> None:
    assert health(codes_of("01100000")) == Health(8, balance=1, correlation=0, effective_bits=0, collisions=0)


def test_independent_bits_are_all_effective() -> None:
    every = np.arange(256, dtype=np.uint8)[:, None]
    found = health(every)
    assert (found.balance, found.correlation, found.collisions) == (0, 0, 0)
    assert found.effective_bits == pytest.approx(8)


def test_against_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "AT_ONCE", 70)
    rng = np.random.default_rng(0)
    bits = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 32)) + rng.normal(size=32) > 0
    bits[:, 5] = True
    found = health(pack(bits))
    varying = np.delete(bits, 5, axis=1)
    correlation = np.abs(np.corrcoef(varying, rowvar=False))
    eigenvalues = np.linalg.eigvalsh(np.cov(bits, rowvar=False))
    times = Counter(row.tobytes() for row in bits)
    assert found == Health(
        bits=32,
        balance=pytest.approx(np.abs(bits.mean(axis=0) * 2 - 1).mean()),
        correlation=pytest.approx((correlation.sum() - 31) / (31 * 30)),
        effective_bits=pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum()),
        collisions=pytest.approx(sum(n for n in times.values() if n > 1) / 300),
    )
    assert 0 < found.collisions < 1


def test_collisions_alone_and_jointly_by_hand() -> None:
    coarse = np.array([[1], [1], [1], [2], [3]], np.uint8)
    fine = np.array([[7, 7], [7, 8], [7, 7], [7, 7], [7, 7]], np.uint8)
    assert health(coarse).collisions == pytest.approx(3 / 5)
    assert health(fine).collisions == pytest.approx(4 / 5)
    assert joint_collisions({"coarse": coarse, "fine": fine}) == pytest.approx(2 / 5)
    assert joint_collisions({"coarse": coarse}) == pytest.approx(3 / 5)


def test_no_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 4\), expected at least one"):
        health(np.zeros((0, 4), np.uint8))


@pytest.mark.parametrize("counts", [{}, {"mid": 0}, {"mid": 2, "fine": 3}])
def test_codes_that_cannot_be_joined_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected as many"):
        joint_collisions({name: np.zeros((n, 1), np.uint8) for name, n in counts.items()})
