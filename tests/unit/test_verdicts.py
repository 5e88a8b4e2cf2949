"""Verdicts on hits: which stands out on ``fine``, the probability of the same kind, and what is said of an answer."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from mg_milvus.records import VERDICTS
from mg_milvus.search.chance import Chance
from mg_milvus.search.verdicts import contains_query, judge, remark, stands_out


def gaussian(bits: int, deviation: float) -> np.ndarray:
    """Counts of distances around the half of the bits; the deviation is a share of the bits."""
    at = np.arange(bits + 1) / bits
    return np.round(1e6 * np.exp(-(((at - 0.5) / deviation) ** 2) / 2)).astype(np.int64)


CHANCE = Chance("f" * 16, 1000, {"coarse": gaussian(64, 0.13), "mid": gaussian(128, 0.11), "fine": gaussian(256, 0.06)})


@pytest.mark.parametrize(
    ("shares", "image", "thing"),
    [
        ([0.2, 0.30, 0.31, 0.33, 0.35, 0.36], [0], [0]),  # 0.2 is 2/3 of the next
        ([0.29, 0.30, 0.31, 0.33, 0.35, 0.36], [], []),  # the first of a crowd
        ([0.2, 0.21, 0.31, 0.33, 0.35, 0.36], [], [0, 1]),  # two views of a scene: no gap between them
        ([0.05, 0.06, 0.31, 0.33, 0.35, 0.36], [0, 1], [0, 1]),  # two copies
        ([0.31, 0.45, 0.45, 0.45, 0.45, 0.45], [], []),  # too far
        ([0.25], [0], [0]),  # alone: unrelated images are at 0.5
        ([0.4], [], []),
    ],
)
def test_what_stands_out(shares: list[float], image: list[int], thing: list[int]) -> None:
    same, at_least_object = stands_out(np.array(shares))
    assert np.flatnonzero(same).tolist() == image
    assert np.flatnonzero(at_least_object).tolist() == thing


def test_the_probability_is_the_logistic_of_distances_and_spread() -> None:
    """With the deviation of ``fine`` beyond independent bits, worked out from the counts; 80 bits count as 82."""
    far = {"coarse": np.array([8, 16, 32]), "mid": np.array([16, 32, 64]), "fine": np.array([80, 90, 128])}
    judged = judge(far, CHANCE)
    counts = CHANCE.counts["fine"].astype(float)
    variance = sum(n * (d / 256 - 0.5) ** 2 for d, n in enumerate(counts)) / counts.sum()
    spread = (variance - 1 / 1024) ** 0.5
    least = 256 * (0.5 - 3 * variance**0.5)
    assert 81 < least < 83
    expected = [
        1 / (1 + exp(-(-0.42 - 7.05 * c / 64 - 3.66 * m / 128 + (4.79 - 345.1 * spread) * f / 256 + 169.6 * spread)))
        for c, m, f in zip(far["coarse"].tolist(), far["mid"].tolist(), [least, 90, 128], strict=True)
    ]
    assert judged.confidence.tolist() == pytest.approx(expected)
    words = [VERDICTS[place] for place in judged.verdicts]
    assert words == ["same kind", "loosely similar", "nothing in common"]
    assert judged.chance["mid"].tolist() == CHANCE.of("mid", far["mid"]).tolist()


def test_fractions_of_bits_and_lacking_granularities() -> None:
    near = {"coarse": np.array([3.5]), "mid": np.array([7.25]), "fine": np.array([70.5])}
    whole = {"coarse": np.array([4]), "mid": np.array([8]), "fine": np.array([71])}
    assert judge(near, CHANCE).confidence[0] > judge(whole, CHANCE).confidence[0]
    without = Chance("f" * 16, 1000, {"mid": CHANCE.counts["mid"]})
    judged = judge(near, without)
    assert VERDICTS[judged.verdicts[0]] in VERDICTS[2:]  # the same image, or object, is told on fine only
    assert set(judged.of(0)["chance"]) == {"mid"}


@pytest.mark.parametrize(
    ("regions", "fine", "leads", "thing"),
    [
        ([10, 20, 30, 40, 50], [0.4, 0.41, 0.42, 0.43, 0.44], [0], [0]),
        ([10, 12, 30, 40, 50], [0.4, 0.41, 0.42, 0.43, 0.44], [0], []),  # the gap is enough to lead
        ([10, 12, 30, 40, 50], [0.44, 0.41, 0.42, 0.43, 0.40], [0], []),
        ([10, 10.5, 30, 40, 50], [0.42, 0.41, 0.40, 0.43, 0.44], [0], []),  # no gap, and the third on fine
        ([10, 10.5, 30, 40, 50], [0.43, 0.41, 0.40, 0.42, 0.44], [], []),
        ([10, 10, 30, 40, 50], [0.4, 0.41, 0.42, 0.43, 0.44], [0], []),  # equally near on the regions: fine decides
        ([10, 10, 30, 40, 50], [0.4, 0.4, 0.42, 0.43, 0.44], [], []),
        # (0.2 + 1/16) * 14 ** 1.5 = 13.8 is 0.63 of the next, (0.4 + 1/16) * 13 ** 1.5 = 21.7
        ([10, 9, 30, 40, 50], [0.2, 0.4, 0.42, 0.43, 0.44], [0], []),
    ],
)
def test_the_image_that_contains_the_query(
    regions: list[float], fine: list[float], leads: list[int], thing: list[int]
) -> None:
    leading, same = contains_query(np.array(regions), np.array(fine))
    assert np.flatnonzero(leading).tolist() == leads
    assert np.flatnonzero(same).tolist() == thing
    assert np.flatnonzero(contains_query(np.array(regions), None)[1]).tolist() == []
    alone = contains_query(np.array(regions), None, detail=True)[1]
    assert alone.tolist() == [place == 0 and regions[0] <= 0.75 * regions[1] for place in range(5)]


def test_one_of_the_nearest_on_fine_or_the_regions_leads() -> None:
    """The last is (0.2 + 1/16) * 24 ** 1.5 = 30.9, the first ten 83 and the next ten 42, but it is near on neither."""
    regions, fine = np.array([60.0] * 10 + [12.0] * 10 + [20.0]), np.array([0.1] * 10 + [0.6] * 10 + [0.2])
    assert not contains_query(regions, fine)[0].any()
    assert np.flatnonzero(contains_query(regions[5:], fine[5:])[0]).tolist() == [15]


def test_farther_candidates_do_not_change_what_a_hit_is() -> None:
    near = np.array([60, 80, 88, 90, 92, 95, 96])  # 60 is 3/4 of the next, and 80 is farther than 4/5 of the crowd
    far = {"coarse": np.full(7, 5), "mid": np.full(7, 10), "fine": near}
    more = {name: np.append(own, [97, 99, 128, 200]) for name, own in far.items()}
    words = [VERDICTS[place] for place in judge(far, CHANCE).verdicts]
    assert words[:2] == ["same image", "same kind"]
    assert [VERDICTS[place] for place in judge(more, CHANCE).verdicts[:7]] == words


def test_a_remark_where_nothing_is_related() -> None:
    assert remark(["same kind", "nothing in common"]) == ""
    assert remark([]) == remark([None]) == ""
    assert remark(["nothing in common"] * 2) == "nothing similar is indexed; the nearest are shown"
    assert remark(["nothing in common", "loosely similar"]).startswith("nothing surely of the same kind is indexed")
