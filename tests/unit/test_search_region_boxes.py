"""Searching regions: the distance and the box of an image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import RegionScale, RegionSettings, Schema, scale_of, shared_scales
from mg_milvus.search.regions import RegionMatches, search_regions
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mg_milvus.store.base import Store

REGIONS = RegionSettings(bits=32, scales=(RegionScale(size=0.5, grid=2), RegionScale(size=0.3, grid=3)))


def test_an_image_is_as_near_as_its_nearest_region_and_no_farther_than_what_was_reached() -> None:
    matches = RegionMatches(by_image=[{"a": [(3, 0), (9, 1)], "b": [(12, 2)]}], bounds=[10])
    assert matches.distances(["a", "b", "c"]).tolist() == [3, 10, 10]
    assert matches.nearest_images(5) == ["a", "b"]
    assert matches.nearest_images(1) == ["a"]


def test_the_distance_to_several_details_is_a_sum_in_which_near_ones_count_more() -> None:
    matches = RegionMatches(by_image=[{"a": [(3, 0)]}, {"a": [(4, 1)], "b": [(2, 0)]}], bounds=[10, 8])
    expected = [10 * (1 - 0.7**2) + 8 * (1 - 0.5**2), 10 + 8 * (1 - 0.75**2), 18]
    assert matches.distances(["a", "b", "c"]).tolist() == pytest.approx(expected)
    assert matches.nearest_images(2) == ["a", "b"]


def test_ties_are_in_the_order_of_the_ids() -> None:
    matches = RegionMatches(by_image=[{"b": [(3, 0)], "a": [(3, 1)]}], bounds=[10])
    assert matches.nearest_images(2) == ["a", "b"]


def test_the_box_is_that_of_the_nearest_region() -> None:
    matches = RegionMatches(by_image=[{"a": [(3, 3)]}], bounds=[10])
    assert matches.box("a", REGIONS, 200, 100) == (100, 50, 100, 50)
    assert matches.box("b", REGIONS, 200, 100) is None


def test_equally_near_regions_share_the_box() -> None:
    matches = RegionMatches(by_image=[{"a": [(3, 0), (3, 1)]}], bounds=[10])
    assert matches.box("a", REGIONS, 200, 100) == (50, 0, 100, 50)


def test_a_region_much_farther_away_does_not_move_the_box() -> None:
    matches = RegionMatches(by_image=[{"a": [(0, 0), (30, 3)]}], bounds=[32])
    assert matches.box("a", REGIONS, 200, 100) == (0, 0, 100, 50)


def test_the_box_is_of_the_detail_that_was_matched_best() -> None:
    matches = RegionMatches(by_image=[{"a": [(9, 0)]}, {"a": [(2, 3)]}], bounds=[10, 10])
    assert matches.box("a", REGIONS, 200, 100) == (100, 50, 100, 50)


@pytest.fixture
def store() -> Iterator[Store]:
    made = open_store(MilvusConfig("memory:", collection="images"))
    made.create(Description(Schema(regions=REGIONS), "0123456789abcdef"))
    yield made
    made.close()


def rows(count: int) -> list[Row]:
    random = np.random.default_rng(0)
    bits = Schema().bits
    return [
        Row(
            f"{number:032x}", f"/{number}.jpg", 1, 1, 100, 100, "0" * 32,
            {name: random.bytes(n // 8) for name, n in bits.items()}, {}, random.bytes(REGIONS.bytes_per_image),
        )
        for number in range(count)
    ]  # fmt: skip


def by_hand(images: list[Row], detail: np.ndarray) -> dict[str, list[tuple[int, int]]]:
    """Distance and number of each region of each image, nearest first: bits counted with Python's integers."""
    places = scale_of(REGIONS.windows).tolist()
    matches = {}
    for row in images:
        codes = [int.from_bytes(row.region_codes[4 * n : 4 * n + 4]) for n in range(REGIONS.count)]
        matches[row.id] = sorted(
            ((code ^ int.from_bytes(detail[place].tobytes())).bit_count(), n)
            for n, (code, place) in enumerate(zip(codes, places, strict=True))
        )
    return matches


def sure(codes: np.ndarray) -> np.ndarray:
    """Real codes whose numbers are all equally large: their distances are Hamming distances."""
    return np.where(np.unpackbits(codes, axis=-1) > 0, 0.5, -0.5).astype(np.float32)


def near(matches: RegionMatches, image: str) -> list[tuple[float, int]]:
    return [(round(distance, 3), number) for distance, number in matches.by_image[0].get(image, [])]


def softly(distances: list[int]) -> float:
    scale = math.sqrt(32) / 3
    return max(0.0, -scale * math.log(sum(math.exp(-distance / scale) for distance in distances)))


def test_a_search_that_reaches_everything_is_exact(store: Store) -> None:
    images = rows(20)
    store.upsert(images)
    detail = np.random.default_rng(5).integers(0, 256, (2, 4), np.uint8)
    matches = search_regions(store, REGIONS, (sure(detail), "contains"), 8000)
    exact = by_hand(images, detail)
    assert matches.bounds == [32]
    assert {image: near(matches, image) for image in exact} == exact
    expected = [softly([distance for distance, _ in regions]) for regions in exact.values()]
    np.testing.assert_allclose(matches.distances(list(exact)), expected, atol=1e-4)


def test_a_search_that_stops_early_is_exact_below_its_bound(store: Store) -> None:
    images = rows(200)
    store.upsert(images)
    detail = np.random.default_rng(6).integers(0, 256, (2, 4), np.uint8)
    matches = search_regions(store, REGIONS, (sure(detail), "contains"), 80)
    (bound,) = matches.bounds
    assert bound < 32
    assert sum(len(regions) for regions in matches.by_image[0].values()) == 2 * 80
    for image, regions in by_hand(images, detail).items():
        below = [(distance, number) for distance, number in regions if distance < bound - 0.5]
        assert [match for match in near(matches, image) if match[0] < bound - 0.5] == below


def test_bits_that_the_query_is_sure_of_count_more(store: Store) -> None:
    """Both images differ from the query in one bit, one of them in a bit that is next to 0."""
    images = rows(2)
    codes = np.full((2, REGIONS.count, 4), 255, np.uint8)
    codes[:, 0] = 0
    codes[0, 0, 0], codes[1, 0, 0] = 0b01000000, 0b10000000
    store.upsert([replace(row, region_codes=own.tobytes()) for row, own in zip(images, codes, strict=True)])
    query = np.full((2, 32), -1, np.float32)
    query[0, 1] = -0.01
    matches = search_regions(store, REGIONS, (query, "contains"), 100)
    # 31 values of 1 and one of .01 have the mean 31.01 / 32; only the bit that differs is counted.
    expected = [0.01 * 32 / 31.01, 32 / 31.01]
    for row, distance in zip(images, expected, strict=True):
        assert matches.by_image[0][row.id][0] == (pytest.approx(distance, abs=1e-4), 0)
    assert matches.nearest_images(1) == [images[0].id]


def test_each_of_many_regions_tells_two_images_apart(store: Store) -> None:
    images = rows(4)
    codes = np.full((4, REGIONS.count, 4), 255, np.uint8)
    codes[:, 0] = [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 3], [0, 0, 0, 7]]
    store.upsert([replace(row, region_codes=own.tobytes()) for row, own in zip(images, codes, strict=True)])
    scales = shared_scales(REGIONS.windows)
    query = sure(np.zeros((len(scales), 4), np.uint8))
    matches = search_regions(store, REGIONS, (query, "overlap"), 100)
    first = [i for i, scale in enumerate(scales.tolist()) if scale == 0]
    assert [matches.bounds[i] for i in first] == pytest.approx([2] * len(first), abs=1e-4)
    only = RegionMatches([matches.by_image[i] for i in first], [matches.bounds[i] for i in first])
    expected = [len(first) * distance for distance in (0, 1.5, 2, 2)]  # 1.5 = 2 * (1 - (1 / 2) ** 2)
    assert only.distances([row.id for row in images]) == pytest.approx(expected, abs=1e-3)


def test_only_some_images_are_looked_at(store: Store) -> None:
    images = rows(30)
    store.upsert(images)
    detail = np.random.default_rng(7).integers(0, 256, (2, 4), np.uint8)
    chosen = [row.id for row in images[5:9]]
    matches = search_regions(store, REGIONS, (sure(detail), "contains"), 800, chosen)
    assert {image: near(matches, image) for image in matches.by_image[0]} == by_hand(images[5:9], detail)
