"""How much of the truth an index finds: its answers against distances to every row."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.store import Row, Store

_SEED = 7


def index_recall(
    store: Store, granularities: tuple[str, ...], *, k: int = 10, questions: int = 100
) -> dict[str, float]:
    """Recall at ``k`` of each granularity's index, asked with codes of rows drawn at random.

    An answer is right when it is no farther away than the k-th nearest row is, so that ties do not count as misses. All
    rows are read twice; memory does not grow with them.

    Args:
        store: has the collection.
        granularities: names of the fields.
        k: nearest rows asked for; fewer where there are fewer rows.
        questions: rows to draw, at most.

    Returns:
        Granularity -> share of right answers, 0 to 1; empty without rows.
    """
    asked = _drawn(store, granularities, questions)
    if not asked:
        return {}
    codes = {name: _codes(asked, name) for name in granularities}
    nearest: dict[str, NDArray[np.int32]] = {name: np.empty((len(asked), 0), np.int32) for name in granularities}
    for rows in store.scan(granularities=granularities):
        for name in granularities:
            seen = np.hstack([nearest[name], hamming(codes[name], _codes(rows, name))])
            nearest[name] = np.sort(seen, axis=1)[:, :k]
    found = {}
    for name in granularities:
        answers = store.nearest(name, codes[name], nearest[name].shape[1])
        right = [int((a.distances <= far).sum()) for a, far in zip(answers, nearest[name][:, -1], strict=True)]
        found[name] = sum(right) / nearest[name].size
    return found


def _drawn(store: Store, granularities: tuple[str, ...], size: int) -> list[Row]:
    """A uniform random sample of the rows (Vitter 1985)."""
    chosen: list[Row] = []
    randomness = random.Random(_SEED)  # noqa: S311  (reproducible, not secret)
    count = 0
    for rows in store.scan(granularities=granularities):
        for row in rows:
            count += 1
            if len(chosen) < size:
                chosen.append(row)
            elif (place := randomness.randrange(count)) < size:
                chosen[place] = row
    return chosen


def _codes(rows: list[Row], name: str) -> Codes:
    return np.stack([np.frombuffer(row.codes[name], np.uint8) for row in rows])
