"""Hash centres: one binary word per class, far from each other in Hamming distance. Pure numpy.

As in CSQ (Yuan et al., "Central Similarity Quantization for Efficient Image and Video Retrieval", CVPR 2020): rows of a
Hadamard matrix where it has enough of them, otherwise words drawn by fair coins and kept apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENUMERABLE_BITS = 16
"""Up to this length all words can be listed, and the farthest one taken each time."""
_DRAWS = 64
_DRAWS_IN_ALL = 2**16


def hash_centres(classes: int, bits: int, seed: int = 0) -> NDArray[np.int8]:
    """Words for the classes, all different; the same arguments give the same words.

    With ``bits`` a power of two and ``classes <= 2 * bits`` any two words differ in half of the bits (some of them in
    all, when there are more classes than bits). Otherwise each word is the farthest of many from those before it.

    Args:
        classes: number of words.
        bits: their length.
        seed: of the choice.

    Returns:
        (classes, bits) int8 of -1 and +1.

    Raises:
        TrainingError: there are fewer words than classes.
    """
    if not 1 <= classes <= 2**bits:
        raise TrainingError(
            f"{classes} classes cannot have different codes of {bits} bits, expected 1 to {2**bits} classes; "
            "use more bits"
        )
    random = np.random.default_rng(seed)
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        return _hadamard_rows(classes, bits, random)
    if bits <= ENUMERABLE_BITS:
        return _farthest_of_all(classes, bits, random)
    return _farthest_of_draws(classes, bits, random)


def _hadamard_rows(classes: int, bits: int, random: np.random.Generator) -> NDArray[np.int8]:
    """Rows of a Hadamard matrix, chosen at random, each or its negative, and then the opposites of the same rows.

    Left as they are, the first rows share their first bit, which then says nothing. Any choice of rows and signs is
    orthogonal, and has the same mean square of the bits' sums over the classes; of several, the one whose largest sums
    are smallest is taken.
    """
    matrix = np.ones((1, 1), np.int8)
    while len(matrix) < bits:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])

    def draw() -> NDArray[np.int8]:
        rows = matrix[random.permutation(bits)[:classes]]
        rows = rows * random.choice(np.array([-1, 1], np.int8), (len(rows), 1))
        return np.concatenate([rows, -rows])[:classes]

    return min((draw() for _ in range(_DRAWS)), key=lambda words: float((words.sum(axis=0, dtype=float) ** 4).sum()))


def _farthest_of_all(classes: int, bits: int, random: np.random.Generator) -> NDArray[np.int8]:
    """Farthest-first traversal of all words; ties are broken at random."""
    numbers = random.permutation(2**bits)
    words = ((numbers[:, None] >> np.arange(bits)) & 1).astype(np.float32) * 2 - 1
    chosen = np.zeros(classes, np.int64)
    closeness = words @ words[0]
    for place in range(1, classes):
        chosen[place] = closeness.argmin()
        closeness = np.maximum(closeness, words @ words[chosen[place]])
    return words[chosen].astype(np.int8)


def _farthest_of_draws(classes: int, bits: int, random: np.random.Generator) -> NDArray[np.int8]:
    """Each word the one of several random ones that is farthest from its nearest predecessor (Mitchell 1991)."""
    draws = max(1, min(_DRAWS, _DRAWS_IN_ALL // classes))  # many classes: time grows with their square
    centres = np.empty((classes, bits), np.float32)
    for place in range(classes):
        closeness = np.float32(bits)
        while closeness == bits:  # every draw was taken already
            words = random.choice(np.array([-1, 1], np.float32), (draws, bits))
            nearest = (words @ centres[:place].T).max(axis=1, initial=-bits)
            closeness = nearest.min()
            centres[place] = words[nearest.argmin()]
    return centres.astype(np.int8)
