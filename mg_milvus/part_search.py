"""Ask the regions: which pictures contain a detail, or share one with a picture, and where.

A detail has a code for each size of window, and is compared with the windows of that size only. A picture is as near as
its nearest region. The distance of a picture that a search did not reach is not known, but it is at least that of the
last one reached, and counts as that: equal distances share a rank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.regions import box_of, scale_of, split_id, windows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.regions import Box
    from mg_milvus.schema_parts import PartsSettings
    from mg_milvus.store import Store

MOST_REGIONS = 16_384
"""What Milvus returns at most for one search."""
REGIONS_A_PICTURE = 8
"""Regions asked for each picture wanted, of one detail: a picture often has several near ones."""
REGIONS_OF_MANY = 16
"""Regions asked for each of many details. Most details of a picture are in no other: with more, chance would add up to
more than the few that are (composites of Corel-1k, recall@10 of the pasted picture: 0.73 with 16, 0.52 with 80)."""
SPREAD = 0.05
"""Share of the bits by which the distance of a second region may be larger before it hardly moves the box."""

Near = tuple[int, int]
"""Distance and window number of a region."""


@dataclass(frozen=True, slots=True)
class Found:
    """The regions near to the details of one question.

    Attributes:
        near: for each detail, picture id -> its regions that were reached, all of one scale, that of the nearest.
        bounds: for each detail, the distance from which on nothing is known.
    """

    near: Sequence[Mapping[str, Sequence[Near]]]
    bounds: Sequence[int]

    def distances(self, pictures: Sequence[str]) -> NDArray[np.int32]:
        """Sum over the details of the distance of each picture's nearest region: (n,)."""
        total = np.zeros(len(pictures), np.int32)
        for near, bound in zip(self.near, self.bounds, strict=True):
            total += np.array([min(near[p][0][0], bound) if p in near else bound for p in pictures], np.int32)
        return total

    def nearest(self, depth: int, pictures: Sequence[str] | None = None) -> list[str]:
        """The ``depth`` nearest pictures, or those of the given ones, nearest first; ties by id."""
        reached = sorted({picture for near in self.near for picture in near} if pictures is None else pictures)
        order = np.argsort(self.distances(reached), kind="stable")[:depth]
        return [reached[i] for i in order]

    def box(self, picture: str, parts: PartsSettings, width: int, height: int) -> Box | None:
        """Where in a picture the detail is that was matched best; None: no region of it was reached.

        The regions around the nearest one take part, the less the farther they are, so the box is finer than the grid.
        """
        matched = [
            (near[picture][0][0] - bound, place)
            for place, (near, bound) in enumerate(zip(self.near, self.bounds, strict=True))
            if picture in near
        ]
        if not matched:
            return None
        regions = self.near[min(matched)[1]][picture]
        distances = np.array([distance for distance, _ in regions], float)
        shares = np.exp(-(distances - distances[0]) / (SPREAD * parts.bits))
        chosen = windows(parts.windows)[[number for _, number in regions]]
        return box_of(shares @ chosen / shares.sum(), width, height)


def find_parts(
    store: Store, parts: PartsSettings, details: Codes, regions: int, pictures: Sequence[str] | None = None
) -> Found:
    """Look for the details of a question among all regions, or those of some pictures.

    Args:
        store: where the collection is.
        parts: of its schema.
        details: (m, scales, bits / 8) uint8, of m details.
        regions: asked of each scale for each detail, at most.
        pictures: look at these only.
    """
    reached: list[dict[str, list[Near]]] = [{} for _ in details]
    bounds = np.full(len(details), parts.bits)
    for scale, count in enumerate(np.bincount(scale_of(parts.windows)).tolist()):
        whole = None if pictures is None else len(pictures) * count
        asked = min(MOST_REGIONS, regions) if whole is None else min(MOST_REGIONS, regions, whole)
        answers = store.regions.nearest(scale, details[:, scale], asked, pictures)
        for place, answer in enumerate(answers):
            if len(answer.ids) == asked != whole:
                bounds[place] = min(bounds[place], int(answer.distances[-1]))
            _add(reached[place], answer.ids, answer.distances.tolist())
    return Found(reached, bounds.tolist())


def _add(reached: dict[str, list[Near]], ids: Sequence[str], distances: Sequence[int]) -> None:
    """Keep the regions of one more scale, nearest first, for the pictures to which it is the nearest so far."""
    own: dict[str, list[Near]] = defaultdict(list)
    for region, distance in zip(ids, distances, strict=True):
        picture, number = split_id(region)
        own[picture].append((distance, number))
    for picture, regions in own.items():
        if picture not in reached or regions[0] < reached[picture][0]:
            reached[picture] = regions
