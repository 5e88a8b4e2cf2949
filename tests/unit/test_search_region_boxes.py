"""Searching regions: the distance and the box of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import RegionScale, RegionSettings, Schema, scale_of
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


def test_the_distance_to_several_details_is_the_sum() -> None:
    matches = RegionMatches(by_image=[{"a": [(3, 0)]}, {"a": [(5, 1)], "b": [(1, 0)]}], bounds=[10, 8])
    assert matches.distances(["a", "b", "c"]).tolist() == [8, 11, 18]
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


def by_hand(images: list[Row], detail: np.ndarray) -> dict[str, tuple[int, int]]:
    """Distance of the nearest region of each image, and its number: bits counted with Python's integers."""
    places = scale_of(REGIONS.windows).tolist()
    matches = {}
    for row in images:
        codes = [int.from_bytes(row.region_codes[4 * n : 4 * n + 4]) for n in range(REGIONS.count)]
        matches[row.id] = min(
            ((code ^ int.from_bytes(detail[place].tobytes())).bit_count(), n)
            for n, (code, place) in enumerate(zip(codes, places, strict=True))
        )
    return matches


def test_a_search_that_reaches_everything_is_exact(store: Store) -> None:
    images = rows(20)
    store.upsert(images)
    detail = np.random.default_rng(5).integers(0, 256, (2, 4), np.uint8)
    matches = search_regions(store, REGIONS, detail[None], 8000)
    exact = by_hand(images, detail)
    assert matches.bounds == [32]
    assert dict(zip(exact, matches.distances(list(exact)).tolist(), strict=True)) == {
        k: d for k, (d, _) in exact.items()
    }
    assert {image: near[0] for image, near in matches.by_image[0].items()} == exact


def test_a_search_that_stops_early_is_exact_below_its_bound(store: Store) -> None:
    images = rows(200)
    store.upsert(images)
    detail = np.random.default_rng(6).integers(0, 256, (2, 4), np.uint8)
    matches = search_regions(store, REGIONS, detail[None], 80)
    exact = {image: distance for image, (distance, _) in by_hand(images, detail).items()}
    (bound,) = matches.bounds
    assert bound < 32
    assert max(len(near) for near in matches.by_image) <= 2 * 80
    assert matches.distances(list(exact)).tolist() == [min(d, bound) for d in exact.values()]


def test_only_some_images_are_looked_at(store: Store) -> None:
    images = rows(30)
    store.upsert(images)
    detail = np.random.default_rng(7).integers(0, 256, (2, 4), np.uint8)
    chosen = [row.id for row in images[5:9]]
    matches = search_regions(store, REGIONS, detail[None], 800, chosen)
    exact = by_hand(images[5:9], detail)
    assert set(matches.by_image[0]) == set(chosen)
    assert matches.distances(chosen).tolist() == [exact[image][0] for image in chosen]
