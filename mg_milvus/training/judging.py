"""How good codes are while they are trained: mAP among the held-out pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.metrics import NOT_A_CANDIDATE, code_blocks, score_rankings
from mg_milvus.training.objective import LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes


def held_out_figures(codes: Mapping[str, Codes], labels: Mapping[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Leave-one-out mAP of each granularity on the labels of its own level, and their mean.

    Args:
        codes: granularity -> (n, bits / 8) uint8 of the held-out pictures.
        labels: level -> (n, labels) bool; clusters stand in for labels where there are none.

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

        # A held-out part so small that no two pictures share a label has no figure: 0 for all epochs alike.
        figures[f"map_{name}"] = float(np.nan_to_num(score_rankings(code_blocks(values, values, relevance_of)).map))
    return figures | {"held_out": float(np.mean(list(figures.values())))}
