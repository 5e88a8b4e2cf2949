"""How good codes are while they are trained: mAP of the held-out pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.metrics import NOT_A_CANDIDATE, code_blocks, score_rankings
from mg_milvus.training.objective import LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes


def held_out_figures(
    codes: Mapping[str, Codes], labels: Mapping[str, NDArray[np.bool_]], held_out: int
) -> dict[str, float]:
    """mAP of each granularity on the labels of its own level, and their mean.

    Each held-out picture is asked against all others: among themselves alone, a few would have nothing to find.

    Args:
        codes: granularity -> (n, bits / 8) uint8, of the held-out pictures and then of some that were trained on.
        labels: level -> (n, labels) bool; clusters stand in for labels where there are none.
        held_out: how many of the n are held out.

    Returns:
        ``map_<granularity>`` and ``held_out``.
    """
    figures: dict[str, float] = {}
    for name, values in codes.items():
        level = labels[LEVELS.get(name, "classes")].astype(np.float32)

        def relevance_of(part: slice, level: NDArray[np.float32] = level) -> NDArray[np.uint8]:
            found = (level[part] @ level.T > 0).astype(np.uint8)
            found[np.arange(len(found)), np.arange(len(level))[part]] = NOT_A_CANDIDATE
            return found

        blocks = code_blocks(values[:held_out], values, relevance_of)
        # Where no other picture shares a label with one held out there is no figure: 0 for all epochs alike.
        figures[f"map_{name}"] = float(np.nan_to_num(score_rankings(blocks).map))
    return figures | {"held_out": float(np.mean(list(figures.values())))}
