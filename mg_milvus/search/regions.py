"""Ask the regions: which images contain a detail, or share one with an image, and where.

A detail has a code for each size of window, and is compared with the windows of that size only. An image is as near as
its nearest region. The distance of an image that a search did not reach is not known, but it is at least that of the
last one reached, and counts as that: equal distances share a rank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.schema.regions import box_of, scale_of, split_id, windows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.records import Box
    from mg_milvus.schema.regions import RegionSettings
    from mg_milvus.store.base import Store


MOST_REGIONS = 16_384
"""What Milvus returns at most for one search."""
REGIONS_PER_IMAGE = 8
"""Regions asked for each image wanted, of one detail: an image often has several near ones."""
REGIONS_OF_MANY = 16
"""Regions asked for each of many details. Most details of an image are in no other: with more, chance would add up to
more than the few that are (composites of Corel-1k, recall@10 of the pasted image: 0.73 with 16, 0.52 with 80)."""
SPREAD = 0.05
"""Share of the bits by which the distance of a second region may be larger before it hardly moves the box."""

Near = tuple[int, int]
"""Distance and window number of a region."""


@dataclass(frozen=True, slots=True)
class Found:
    """The regions near to the details of one query.

    Attributes:
        near: for each detail, image id -> its regions that were reached, all of one scale, that of the nearest.
        bounds: for each detail, the distance from which on nothing is known.
    """

    near: Sequence[Mapping[str, Sequence[Near]]]
    bounds: Sequence[int]

    def distances(self, images: Sequence[str]) -> NDArray[np.int32]:
        """Sum over the details of the distance of each image's nearest region: (n,)."""
        total = np.zeros(len(images), np.int32)
        for near, bound in zip(self.near, self.bounds, strict=True):
            total += np.array([min(near[p][0][0], bound) if p in near else bound for p in images], np.int32)
        return total

    def nearest(self, depth: int, images: Sequence[str] | None = None) -> list[str]:
        """The ``depth`` nearest images, or those of the given ones, nearest first; ties by id."""
        reached = sorted({image for near in self.near for image in near} if images is None else images)
        order = np.argsort(self.distances(reached), kind="stable")[:depth]
        return [reached[i] for i in order]

    def box(self, image: str, settings: RegionSettings, width: int, height: int) -> Box | None:
        """Where in an image the detail is that was matched best; None: no region of it was reached.

        The regions around the nearest one take part, the less the farther they are, so the box is finer than the grid.
        """
        matched = [
            (near[image][0][0] - bound, place)
            for place, (near, bound) in enumerate(zip(self.near, self.bounds, strict=True))
            if image in near
        ]
        if not matched:
            return None
        regions = self.near[min(matched)[1]][image]
        distances = np.array([distance for distance, _ in regions], float)
        shares = np.exp(-(distances - distances[0]) / (SPREAD * settings.bits))
        chosen = windows(settings.windows)[[number for _, number in regions]]
        return box_of(shares @ chosen / shares.sum(), width, height)


def find_regions(
    store: Store, settings: RegionSettings, details: Codes, regions: int, images: Sequence[str] | None = None
) -> Found:
    """Look for the details of a query among all regions, or those of some images.

    Args:
        store: where the collection is.
        settings: of its schema.
        details: (m, scales, bits / 8) uint8, of m details.
        regions: asked of each scale for each detail, at most.
        images: look at these only.
    """
    reached: list[dict[str, list[Near]]] = [{} for _ in details]
    bounds = np.full(len(details), settings.bits)
    for scale, count in enumerate(np.bincount(scale_of(settings.windows)).tolist()):
        whole = None if images is None else len(images) * count
        asked = min(MOST_REGIONS, regions) if whole is None else min(MOST_REGIONS, regions, whole)
        answers = store.regions.nearest(scale, details[:, scale], asked, images)
        for place, answer in enumerate(answers):
            if len(answer.ids) == asked != whole:
                bounds[place] = min(bounds[place], int(answer.distances[-1]))
            _add(reached[place], answer.ids, answer.distances.tolist())
    return Found(reached, bounds.tolist())


def _add(reached: dict[str, list[Near]], ids: Sequence[str], distances: Sequence[int]) -> None:
    """Keep the regions of one more scale, nearest first, for the images to which it is the nearest so far."""
    own: dict[str, list[Near]] = defaultdict(list)
    for region, distance in zip(ids, distances, strict=True):
        image, number = split_id(region)
        own[image].append((distance, number))
    for image, regions in own.items():
        if image not in reached or regions[0] < reached[image][0]:
            reached[image] = regions
