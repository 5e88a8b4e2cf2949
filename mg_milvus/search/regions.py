"""Search the regions: which images contain a query region, or share one with the query image, and where.

A query region has one code per scale and is compared with the stored regions of that scale only. The store retrieves
the nearest by Hamming distance; their distances are then computed from the query's real codes, which tell regions apart
that differ by the same number of bits. An image that contains the query region has several regions near it, and all of
them count: its distance is the soft minimum of theirs.

An image that shares something with the query image is near to a few of the query regions, and to the others as near as
any image. So each query region tells apart only the images nearest to it: ``NEAREST_OF_MANY``.

The distance of an image that the search did not return is unknown; it is set to that of the last one returned, and
equal distances share a rank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import pack, weighted_hamming
from mg_milvus.schema.models import box_of, scale_of, shared_scales, split_id, windows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import RealCodes
    from mg_milvus.records import Box
    from mg_milvus.schema.models import RegionSettings
    from mg_milvus.search.query import Regions
    from mg_milvus.store.base import Store


MAX_REGIONS = 16_384
"""Most results that Milvus returns for one search."""
REGIONS_PER_IMAGE = 4
"""Regions to retrieve per image of the depth, for a single query region: an image often has several near ones."""
REGIONS_OF_MANY = 16
"""Regions to retrieve for each of many query regions."""
NEAREST_OF_MANY = 2
"""Images that one of many query regions tells apart; all others are as far from it as the next one. Most regions of an
image are in no other image, and with more images chance matches add up to more than the few true ones (composites of
Corel-1k, recall@10 of the pasted image: .875 with 2, .825 with 4, .733 with 8)."""
SOFTNESS = 1 / 3
"""Scale of the soft minimum in units of sqrt(bits), twice the standard deviation of the distance of random codes."""
BOX_SOFTNESS = 0.025
"""Scale of the weights that average the boxes of near regions, as a share of the bits: a region this much farther than
the nearest one counts 1/e as much."""

Match = tuple[float, int]
"""Distance in bits and window number of a stored region."""


@dataclass(frozen=True, slots=True)
class RegionMatches:
    """The stored regions nearest to the query regions of one query.

    Attributes:
        by_image: for each query region, image id -> its retrieved regions, nearest first.
        bounds: for each query region, the largest distance of an image in bits.
        softness: scale of the soft minimum over an image's regions in bits; 0: the nearest one counts alone.
    """

    by_image: Sequence[Mapping[str, Sequence[Match]]]
    bounds: Sequence[float]
    softness: float = 0.0

    def distances(self, images: Sequence[str]) -> NDArray[np.float64]:
        """Distance of each image: (n,) float64 bits.

        With many query regions it is summed over them, as bound * (1 - nearness ** 2), where nearness is 1 - distance /
        bound: one region that is very near says more than two that are half as near.
        """
        total, many = np.zeros(len(images)), len(self.by_image) > 1
        for matches, bound in zip(self.by_image, self.bounds, strict=True):
            own = np.array([self._distance(matches[image]) if image in matches else bound for image in images])
            own = np.minimum(own, bound)
            total += bound * (1 - (1 - own / bound) ** 2) if many and bound else own
        return total

    def nearest_images(self, depth: int) -> list[str]:
        """Ids of at most ``depth`` images, nearest first; ties by id."""
        images = sorted({image for matches in self.by_image for image in matches})
        order = np.argsort(self.distances(images), kind="stable")[:depth]
        return [images[i] for i in order]

    def box(self, image: str, settings: RegionSettings, width: int, height: int) -> Box | None:
        """Where in an image the best matching query region is; None when no region of the image was retrieved.

        The box is a weighted mean over the nearest region and those of its size around it, so it is finer than the grid
        of windows.
        """
        matched = [
            (matches[image][0][0] - bound, i)
            for i, (matches, bound) in enumerate(zip(self.by_image, self.bounds, strict=True))
            if image in matches
        ]
        if not matched:
            return None
        regions = self.by_image[min(matched)[1]][image]
        boxes = windows(settings.windows)[[number for _, number in regions]]
        around = (boxes[:, 2] == boxes[0, 2]) & (np.abs(boxes[:, :2] - boxes[0, :2]) <= boxes[0, 2]).all(axis=1)
        distances = np.array([distance for distance, _ in regions])[around]
        weights = np.exp(-(distances - distances[0]) / (BOX_SOFTNESS * settings.bits))
        return box_of(weights @ boxes[around] / weights.sum(), width, height)

    def _distance(self, regions: Sequence[Match]) -> float:
        nearest = regions[0][0]
        if not self.softness or len(regions) == 1:
            return nearest
        beyond = np.array([distance for distance, _ in regions]) - nearest
        return max(0.0, nearest - self.softness * float(np.log(np.exp(-beyond / self.softness).sum())))


def search_regions(
    store: Store, settings: RegionSettings, query: tuple[RealCodes, Regions], depth: int,
    images: Sequence[str] | None = None,
) -> RegionMatches:  # fmt: skip
    """Search the stored regions, or those of some images only, for the regions of one query.

    Args:
        store: holds the collection.
        settings: regions of its schema.
        query: real codes (m, bits) and what they are of: ``contains``: of one query region, a code for each scale;
            ``overlap``: of the m windows of ``query_scales``.
        depth: regions to retrieve for each code, at most.
        images: ids of the images to search in; None for all.
    """
    codes, mode = query
    overlap = mode == "overlap"
    scales = shared_scales(settings.windows) if overlap else np.arange(len(settings.scales))
    regions_of = np.arange(len(codes)) if overlap else np.zeros(len(codes), np.int64)
    by_image: list[dict[str, list[Match]]] = [defaultdict(list) for _ in range(regions_of[-1] + 1)]
    bounds = np.full(len(by_image), float(settings.bits))
    found: list[tuple[int, list[str], bool]] = []
    for scale, stored in enumerate(np.bincount(scale_of(settings.windows)).tolist()):
        existing = None if images is None else len(images) * stored
        limit = min(MAX_REGIONS, depth) if existing is None else min(MAX_REGIONS, depth, existing)
        own = np.flatnonzero(scales == scale)
        results = store.regions.nearest(scale, pack(codes[own]), limit, images)
        found += [
            (i, result.ids, len(result.ids) == limit != existing)
            for i, result in zip(own.tolist(), results, strict=True)
        ]
    stored_codes = store.regions.codes_by_id(sorted({region for _, regions, _ in found for region in regions}))
    for i, regions, cut in found:
        there = [region for region in regions if region in stored_codes]  # others were deleted since
        if not there:
            continue
        own_codes = np.frombuffer(b"".join(stored_codes[region] for region in there), np.uint8)
        distances = weighted_hamming(codes[i : i + 1], own_codes.reshape(len(there), -1))[0]
        for region, distance in zip(there, distances.tolist(), strict=True):
            image, number = split_id(region)
            by_image[regions_of[i]][image].append((distance, number))
        if cut:
            bounds[regions_of[i]] = min(bounds[regions_of[i]], distances.max())
    for matches in by_image:
        for near in matches.values():
            near.sort()
    if overlap:
        bounds = np.array([_next(matches, bound) for matches, bound in zip(by_image, bounds, strict=True)])
    return RegionMatches(by_image, bounds.tolist(), 0.0 if overlap else SOFTNESS * settings.bits**0.5)


def _next(matches: Mapping[str, Sequence[Match]], bound: float) -> float:
    """Distance of the first image that a query region does not tell from others, at most ``bound``."""
    distances = sorted(regions[0][0] for regions in matches.values())
    return min(distances[NEAREST_OF_MANY], bound) if len(distances) > NEAREST_OF_MANY else bound
