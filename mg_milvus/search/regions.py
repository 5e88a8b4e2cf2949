"""Search the regions: which images contain a query region, or share one with the query image, and where.

A query region has one code per scale and is compared with the stored regions of that scale only. The distance of an
image is that of its nearest region. The distance of an image that the search did not return is unknown, but at least
that of the last region returned; it is set to that bound, and equal distances share a rank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.schema.models import box_of, scale_of, split_id, windows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.records import Box
    from mg_milvus.schema.models import RegionSettings
    from mg_milvus.store.base import Store


MAX_REGIONS = 16_384
"""Most results that Milvus returns for one search."""
REGIONS_PER_IMAGE = 8
"""Regions to retrieve per image of the depth, for a single query region: an image often has several near ones."""
REGIONS_OF_MANY = 16
"""Regions to retrieve for each of many query regions. Most regions of an image are in no other image: with more, chance
matches add up to more than the few true ones (composites of Corel-1k, recall@10 of the pasted image: 0.73 with 16, 0.52
with 80)."""
BOX_SOFTNESS = 0.05
"""Scale of the weights that average the boxes of near regions, as a share of the bits: a region this much farther than
the nearest one counts 1/e as much."""

Match = tuple[int, int]
"""Distance in bits and window number of a stored region."""


@dataclass(frozen=True, slots=True)
class RegionMatches:
    """The stored regions nearest to the m regions of one query.

    Attributes:
        by_image: for each query region, image id -> its retrieved regions, nearest first, all of the scale of the
            nearest one.
        bounds: for each query region, the distance that an image without a retrieved region is at least away, in bits.
    """

    by_image: Sequence[Mapping[str, Sequence[Match]]]
    bounds: Sequence[int]

    def distances(self, images: Sequence[str]) -> NDArray[np.int32]:
        """Distance of each image's nearest region, summed over the query regions: (n,) int32 bits."""
        total = np.zeros(len(images), np.int32)
        for matches, bound in zip(self.by_image, self.bounds, strict=True):
            nearest = [min(matches[image][0][0], bound) if image in matches else bound for image in images]
            total += np.array(nearest, np.int32)
        return total

    def nearest_images(self, depth: int) -> list[str]:
        """Ids of at most ``depth`` images, nearest first; ties by id."""
        images = sorted({image for matches in self.by_image for image in matches})
        order = np.argsort(self.distances(images), kind="stable")[:depth]
        return [images[i] for i in order]

    def box(self, image: str, settings: RegionSettings, width: int, height: int) -> Box | None:
        """Where in an image the best matching query region is; None when no region of the image was retrieved.

        The box is a weighted mean over the regions around the nearest one, so it is finer than the grid of windows.
        """
        matched = [
            (matches[image][0][0] - bound, i)
            for i, (matches, bound) in enumerate(zip(self.by_image, self.bounds, strict=True))
            if image in matches
        ]
        if not matched:
            return None
        regions = self.by_image[min(matched)[1]][image]
        distances = np.array([distance for distance, _ in regions], float)
        weights = np.exp(-(distances - distances[0]) / (BOX_SOFTNESS * settings.bits))
        boxes = windows(settings.windows)[[number for _, number in regions]]
        return box_of(weights @ boxes / weights.sum(), width, height)


def search_regions(
    store: Store, settings: RegionSettings, codes: Codes, depth: int, images: Sequence[str] | None = None
) -> RegionMatches:
    """Search the stored regions, or those of some images only, for the regions of one query.

    Args:
        store: holds the collection.
        settings: regions of its schema.
        codes: (m, scales, bits / 8) uint8, of m query regions.
        depth: regions to retrieve at each scale for each query region, at most.
        images: ids of the images to search in; None for all.
    """
    by_image: list[dict[str, list[Match]]] = [{} for _ in codes]
    bounds = np.full(len(codes), settings.bits)
    for scale, windows_of_scale in enumerate(np.bincount(scale_of(settings.windows)).tolist()):
        existing = None if images is None else len(images) * windows_of_scale
        limit = min(MAX_REGIONS, depth) if existing is None else min(MAX_REGIONS, depth, existing)
        for i, result in enumerate(store.regions.nearest(scale, codes[:, scale], limit, images)):
            if len(result.ids) == limit != existing:
                bounds[i] = min(bounds[i], int(result.distances[-1]))
            _keep_nearest_scale(by_image[i], result.ids, result.distances.tolist())
    return RegionMatches(by_image, bounds.tolist())


def _keep_nearest_scale(by_image: dict[str, list[Match]], ids: Sequence[str], distances: Sequence[int]) -> None:
    """Replace the regions of those images that have a nearer one among these, all of one scale, nearest first."""
    retrieved: dict[str, list[Match]] = defaultdict(list)
    for region, distance in zip(ids, distances, strict=True):
        image, number = split_id(region)
        retrieved[image].append((distance, number))
    for image, regions in retrieved.items():
        if image not in by_image or regions[0] < by_image[image][0]:
            by_image[image] = regions
