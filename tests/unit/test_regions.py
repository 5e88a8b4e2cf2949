"""Windows of an image and their boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_milvus.schema.models import box_of, region_id, scale_of, split_id, windows


def test_windows_go_from_the_upper_left_scale_by_scale() -> None:
    assert windows([(0.5, 2), (0.4, 1)]).tolist() == [
        [0.0, 0.0, 0.5, 0.5],
        [0.5, 0.0, 0.5, 0.5],
        [0.0, 0.5, 0.5, 0.5],
        [0.5, 0.5, 0.5, 0.5],
        [0.3, 0.3, 0.4, 0.4],
    ]
    assert scale_of([(0.5, 2), (0.4, 1)]).tolist() == [0, 0, 0, 0, 1]


def test_no_scales_are_no_windows() -> None:
    assert windows([]).shape == (0, 4)


@pytest.mark.parametrize(
    ("window", "size", "box"),
    [
        ((0.0, 0.0, 1.0, 1.0), (384, 256), (0, 0, 384, 256)),
        ((0.5, 0.25, 0.5, 0.5), (384, 256), (192, 64, 192, 128)),
        ((0.67, 0.67, 0.33, 0.33), (100, 100), (67, 67, 33, 33)),
        ((0.67, 0.67, 0.33, 0.33), (1, 1), (0, 0, 1, 1)),
        ((0.9, 0.0, 0.1, 0.1), (3, 3), (2, 0, 1, 1)),
    ],
)
def test_boxes_by_hand(window: tuple[float, ...], size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert box_of(np.array(window), *size) == box


@given(
    size=st.floats(0.1, 1),
    grid=st.integers(1, 16),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
)
def test_boxes_lie_inside_the_image(size: float, grid: int, width: int, height: int) -> None:
    for window in windows([(size, grid)]):
        x, y, w, h = box_of(window, width, height)
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height


def test_ids_of_regions() -> None:
    assert region_id("ab" * 16, 7) == "ab" * 16 + ":7"
    assert split_id("ab" * 16 + ":7") == ("ab" * 16, 7)
