"""How well codes use their bits, without labels: balance, correlation, effective bits, collisions. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import Codes, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Codes unpacked in one go, which bounds the working memory.
AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class Health:
    """What the bits of n codes are worth.

    Attributes:
        bits: the length of a code.
        balance: mean over the bits of ``2 |share of ones - 1/2|``: 0 where every bit is half ones (ideal), 1 where all
            are constant.
        correlation: mean absolute Pearson correlation over all pairs of bits that vary, 0 (ideal) to 1; 0 where fewer
            than two bits vary.
        effective_bits: participation ratio ``(sum l)^2 / sum l^2`` of the eigenvalues l of the bits' covariance (Gao et
            al., A theory of multineuronal dimensionality, dynamics and measurement, bioRxiv 2017): ``bits`` where all
            vary alike and independently, 1 where all say the same, 0 where none varies.
        collisions: share of the pictures whose code is also another picture's, 0 to 1.
    """

    bits: int
    balance: float
    correlation: float
    effective_bits: float
    collisions: float


def health(codes: Codes) -> Health:
    """The health of codes (n, bits / 8) uint8, one picture each.

    Raises:
        ValueError: no codes.
    """
    if not codes.size:
        raise ValueError(f"codes have shape {codes.shape}, expected at least one code of at least one byte")
    ones, covariance = _moments(codes)
    variance = np.diag(covariance)
    varying = variance > 0
    deviation = np.sqrt(variance[varying])
    correlation = np.abs(covariance[np.ix_(varying, varying)] / np.outer(deviation, deviation))
    pairs = correlation[np.triu_indices(len(correlation), k=1)]
    # The eigenvalues' sum is the trace, the sum of their squares that of all entries of the symmetric matrix.
    squares = np.square(covariance).sum()
    return Health(
        bits=codes.shape[1] * 8,
        balance=float(np.mean(2 * np.abs(ones - 0.5))),
        correlation=float(pairs.mean()) if len(pairs) else 0.0,
        effective_bits=float(variance.sum() ** 2 / squares) if squares > 0 else 0.0,
        collisions=_collisions(codes),
    )


def joint_collisions(codes: Mapping[str, Codes]) -> float:
    """Share of the pictures whose codes are another picture's on every granularity, 0 to 1.

    Args:
        codes: granularity -> (n, bytes) uint8, the same pictures in the same order.

    Raises:
        ValueError: no codes, or not as many for each granularity.
    """
    counts = {name: len(part) for name, part in codes.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise ValueError(f"there are {counts} codes, expected as many, and at least one, for every granularity")
    return _collisions(np.concatenate(list(codes.values()), axis=1))


def _collisions(codes: Codes) -> float:
    _, times = np.unique(codes, axis=0, return_counts=True)
    return float(times[times > 1].sum() / len(codes))


def _moments(codes: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of ones (bits,) and covariance (bits, bits) of the bits as 0 and 1."""
    bits = codes.shape[1] * 8
    together = np.zeros((bits, bits))
    for start in range(0, len(codes), AT_ONCE):
        # Whole numbers this small are exact in float32.
        part = unpack(codes[start : start + AT_ONCE]).astype(np.float32)
        together += part.T @ part
    ones = np.diag(together) / len(codes)
    return ones, together / len(codes) - np.outer(ones, ones)
