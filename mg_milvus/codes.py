"""Binary codes: packing, Hamming distances, bit statistics. Pure numpy.

A code is ``bits / 8`` bytes, most significant bit first, as ``np.packbits`` writes it and Milvus expects it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
RealCodes = NDArray[np.float32]
"""What a hash head computes, before the signs are taken: (..., bits)."""
QueryCodes = Mapping[str, RealCodes]
"""What n images are searched with: granularity -> (n, bits) real codes, ``in_steps``; or the ``signs`` of stored codes.
A granularity that is searched with several views of each image has (n, views, bits), the whole image first.
Where the regions are searched, under ``regions`` those of the m query regions (n, m, bits): one for each scale, or
those of ``query_scales``, pass by pass.
"""
_AT_ONCE = 1 << 16
"""Pairs of codes compared at a time: their words fit into a core's cache."""
_STEPS = 127
"""Different sizes of a real code's values: they fit a byte with its sign."""


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


def signs(codes: Codes) -> RealCodes:
    """Codes (n, bits / 8) uint8 -> (n, bits) float32, 1 for a one and -1 for a zero: all bits equally sure."""
    return unpack(codes).astype(np.float32) * 2 - 1


def in_steps(values: RealCodes) -> RealCodes:
    """Real codes (..., bits) in whole numbers from -127 to 127, the largest value of each code becoming 127.

    The signs stay. Distances from whole numbers are exact, and a byte holds each.
    """
    sizes = np.abs(values)
    largest = np.maximum(sizes.max(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    steps: RealCodes = np.copysign(np.ceil(sizes / largest * _STEPS), values)
    return steps


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
    right = np.ascontiguousarray(np.ascontiguousarray(database).view(words).T)
    distances = np.empty((len(left), len(database)), np.int32)
    step = max(1, _AT_ONCE // max(1, len(database)))
    for start in range(0, len(left), step):
        some = left[start : start + step]
        counts = np.zeros((len(some), len(database)), np.uint16)
        for column, word in enumerate(right):
            counts += np.bitwise_count(some[:, column, None] ^ word)
        distances[start : start + step] = counts
    return distances


def weighted_hamming(queries: RealCodes, database: Codes) -> NDArray[np.float64]:
    """Hamming distances in bits between real codes and codes; a bit counts as much as the query is sure of it.

    The absolute values of a real code, scaled to the mean 1, are added up where its signs differ from the code's bits.
    So it is 0 for the real code's own signs, and the Hamming distance when all values are equally large. It ranks codes
    as the product of the real code with their signs does (Gordo et al., "Asymmetric Distances for Binary Embeddings",
    PAMI 2014).

    Args:
        queries: (n, bits) float32.
        database: (m, bits / 8) uint8.

    Returns:
        (n, m) float64, from 0 to bits.
    """
    values = queries.astype(np.float64)  # in single precision the sum would depend on the number of rows
    sizes = np.maximum(np.abs(values).mean(axis=1, keepdims=True), 1e-300)
    # All that is above 0 differs from zeros; a one takes a value above 0 away, and adds the size of one below.
    differing = np.maximum(values, 0).sum(axis=1, keepdims=True) - values @ unpack(database).astype(np.float64).T
    distances: NDArray[np.float64] = np.clip(differing / sizes, 0, None)
    return distances


def bit_balance(codes: Codes) -> NDArray[np.float64]:
    """Share of ones of each bit: (n, bits / 8) uint8 -> (bits,); 0.5 is ideal."""
    balance: NDArray[np.float64] = unpack(codes).mean(axis=0)
    return balance
