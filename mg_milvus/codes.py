"""Binary codes: packing, Hamming distances, bit statistics. Pure numpy.

A code is ``bits / 8`` bytes, most significant bit first, as ``np.packbits`` writes it and Milvus expects it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]


def pack(values: NDArray[np.floating] | NDArray[np.bool_]) -> Codes:
    """Pack signs into codes: a value above 0 (or True) is a one.

    Args:
        values: (n, bits), bits a multiple of 8.

    Returns:
        (n, bits / 8) uint8.

    Raises:
        ValueError: another shape.
    """
    if values.ndim != 2 or values.shape[1] % 8:
        raise ValueError(f"values have shape {values.shape}, expected (n, bits) with bits a multiple of 8")
    return np.packbits(values > 0, axis=1)


def unpack(codes: Codes) -> NDArray[np.bool_]:
    """Codes (n, bits / 8) uint8 -> bits (n, bits) bool; the inverse of ``pack``."""
    return np.unpackbits(codes, axis=1).astype(bool)


def hamming(queries: Codes, database: Codes) -> NDArray[np.int32]:
    """Hamming distances in bits between every query and every database code.

    Args:
        queries: (n, bytes) uint8.
        database: (m, bytes) uint8.

    Returns:
        (n, m) int32.

    Raises:
        ValueError: the codes differ in length.
    """
    if queries.shape[1] != database.shape[1]:
        raise ValueError(f"codes of {queries.shape[1]} bytes cannot be compared with codes of {database.shape[1]}")
    width = 8 if queries.shape[1] % 8 == 0 else 1
    words = {8: np.uint64, 1: np.uint8}[width]
    left = np.ascontiguousarray(queries).view(words)
    right = np.ascontiguousarray(database).view(words)
    distances = np.zeros((len(left), len(right)), np.int32)
    for column in range(left.shape[1]):
        distances += np.bitwise_count(left[:, None, column] ^ right[None, :, column])
    return distances


def bit_balance(codes: Codes) -> NDArray[np.float64]:
    """Share of ones of each bit: (n, bits / 8) uint8 -> (bits,); 0.5 is ideal."""
    balance: NDArray[np.float64] = unpack(codes).mean(axis=0)
    return balance
