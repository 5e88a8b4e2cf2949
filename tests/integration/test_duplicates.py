"""Near-duplicates: pairs, components and groups against brute force; the calibration against known distributions."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mg_milvus.codes import hamming, pack
from mg_milvus.config import MilvusConfig
from mg_milvus.duplicates import pairs as pairs_module
from mg_milvus.duplicates.calibration import calibrate, fit_chance_rates, largest_distance
from mg_milvus.duplicates.find import DuplicateQuery, find_duplicates, find_duplicates_of
from mg_milvus.duplicates.pairs import (
    ConnectedComponents,
    Pairs,
    as_words,
    connected_components,
    distance_counts,
    distances_of,
    nearest_pairs,
    pairs_within,
)
from mg_milvus.duplicates.report import KEEP, Choice, Files, file_size, make_group
from mg_milvus.duplicates.verify import Verdict
from mg_milvus.errors import ImageError, QueryError
from mg_milvus.images.discover import image_id, is_under
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Granularity, Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import open_store

BITS = {"coarse": 16, "fine": 64}


def random_codes(count: int, bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, bits // 8), dtype=np.uint8)


def a_row(path: str, codes: dict[str, bytes], **more) -> Row:
    values = {"size": 100, "mtime_ns": 1, "width": 10, "height": 10} | more
    return Row(image_id(path), path, content_hash="0" * 32, codes=codes, **values)


def a_store(rows: list[Row], bits: dict[str, int] = BITS):
    schema = Schema(granularities=tuple(Granularity(name=name, bits=length) for name, length in bits.items()))
    store = open_store(MilvusConfig("memory:", collection=schema.collection))
    store.create(Description(schema, "0" * 16))
    store.upsert(rows)
    return store, schema


def asked(schema: Schema, **options) -> DuplicateQuery:
    query = DuplicateQuery(**options)
    query.check(schema)
    return query


# Pairs


@pytest.mark.parametrize("bits", [8, 24, 64, 128, 200, 256, 512])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.5, 1.0])
def test_pairs_are_those_of_brute_force(bits, share, monkeypatch):
    monkeypatch.setattr(pairs_module, "ROWS", 16)
    monkeypatch.setattr(pairs_module, "COLUMNS", 40)
    codes = random_codes(150, bits)
    codes[60:70] = codes[:10]
    codes[70:80, 0] = codes[:10, 0]
    words, radius = as_words(codes), round(share * bits)
    for first in (1, 50, 150):
        found = list(pairs_within(words, radius, first))
        got = {(i, j): d for p in found for i, j, d in zip(*(part.tolist() for part in p), strict=True)}
        assert sum(len(p.left) for p in found) == len(got)
        distances = hamming(codes, codes)
        assert got == {
            (i, j): int(distances[i, j])
            for i, j in itertools.combinations(range(150), 2)
            if i < first and distances[i, j] <= radius
        }


def test_counts_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(pairs_module, "COLUMNS", 70)
    codes = random_codes(200, 24)
    expected = np.bincount(hamming(codes, codes)[np.triu_indices(200, 1)], minlength=65)
    assert distance_counts(as_words(codes)).tolist() == expected.tolist()


def test_rows_done_are_told_to_the_end():
    told: list[int] = []
    list(pairs_within(as_words(random_codes(150, 64)), 3, 100, told.append))
    assert told == [64, 100]


def nearest_of(distances: np.ndarray, first: int, radius: int, nearest: int, most: int) -> dict[tuple[int, int], int]:
    """The pairs of ``nearest_pairs`` from all distances, row by row."""
    pairs = {}
    for row in range(first):
        others = sorted((int(d), other) for other, d in enumerate(distances[row]) if other != row)
        for place, (d, other) in enumerate(others[:most]):
            if d <= radius or place < nearest:
                pairs[min(row, other), max(row, other)] = d
    return pairs


@pytest.mark.parametrize("bits", [8, 64, 200, 256, 320])
@pytest.mark.parametrize("nearest", [0, 1, 5])
def test_nearest_pairs_are_those_of_brute_force(bits, nearest, monkeypatch):
    for name, value in (("ROWS", 16), ("COLUMNS", 40), ("MOST", 8), ("_SAMPLE", 30), ("_LEAST_WAITING", 50)):
        monkeypatch.setattr(pairs_module, name, value)
    codes = random_codes(120, bits)
    codes[60:75] = codes[0]  # more than fit into a list
    codes[75:80] = ~codes[:5]  # as far as can be
    words = as_words(codes)
    distances = hamming(codes, codes)
    for first, radius in itertools.product((1, 50, 120), (0, bits // 4, bits)):
        told: list[int] = []
        found = nearest_pairs(words, first, radius, nearest, told.append)
        got = dict(
            zip(zip(found.left.tolist(), found.right.tolist(), strict=True), found.distances.tolist(), strict=True)
        )
        assert got == nearest_of(distances, first, radius, nearest, 8)
        assert list(got) == sorted(got)
        assert told[-1] == first


@pytest.mark.parametrize("count", [2, 3])
def test_few_rows_are_all_near(count):
    found = nearest_pairs(as_words(random_codes(count, 256)), count, 0, 5)
    assert len(found.left) == count * (count - 1) // 2


# Connected components


@st.composite
def graphs(draw):
    count = draw(st.integers(2, 12))
    ends = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(ends, ends, st.integers(0, 5)), max_size=40))
    return count, [(min(a, b), max(a, b), d) for a, b, d in edges if a != b]


def transitive_closure(count: int, edges: list[tuple[int, int]]) -> list[list[int]]:
    """Components with two rows or more, by Warshall's algorithm."""
    reach = np.eye(count, dtype=bool)
    for a, b in edges:
        reach[a, b] = reach[b, a] = True
    for middle in range(count):
        reach |= reach[:, middle : middle + 1] & reach[middle : middle + 1]
    found = {tuple(np.flatnonzero(row).tolist()) for row in reach}
    return [list(group) for group in sorted(found) if len(group) > 1]


@given(graphs())
def test_groups_are_the_transitive_closure_at_every_distance(graph):
    count, edges = graph
    components = ConnectedComponents(count)
    for some in (edges[::3], edges[1::3], edges[2::3]):
        columns = np.array(some, np.int64).reshape(-1, 3).T
        components.add(Pairs(columns[0], columns[1], columns[2].astype(np.int32)))
        components.edges()
    left, right, distances = components.edges()
    assert len(left) < count
    assert distances.tolist() == sorted(distances.tolist())
    for limit in range(6):
        expected = transitive_closure(count, [(a, b) for a, b, d in edges if d <= limit])
        near = [(a, b) for a, b, d in zip(left.tolist(), right.tolist(), distances.tolist(), strict=True) if d <= limit]
        assert connected_components(near) == expected


def test_a_spanning_forest_keeps_few_pairs_however_many_come(monkeypatch):
    monkeypatch.setattr("mg_milvus.duplicates.pairs._LEAST_WAITING", 100)
    random, components = np.random.default_rng(0), ConnectedComponents(30)
    for _ in range(50):
        ends = np.sort(random.integers(0, 30, (40, 2)), axis=1)
        ends = ends[ends[:, 0] < ends[:, 1]]
        components.add(Pairs(ends[:, 0], ends[:, 1], random.integers(0, 9, len(ends)).astype(np.int32)))
        assert sum(len(pairs.left) for pairs in components._kept) <= 100 + 29
    assert len(components.edges().left) == 29


# Which to keep


def within(distance: int, limits: dict[str, int]):
    """Rows that are near by their codes show the same image."""

    def relate(row: Row, others: list[Row]) -> list[Verdict | None]:
        bounds = {"fine": distance, **limits}
        return [
            Verdict.SAME
            if all(
                sum((a ^ b).bit_count() for a, b in zip(row.codes[name], other.codes[name], strict=True)) <= most
                for name, most in bounds.items()
            )
            else None
            for other in others
        ]

    return relate


def chain(*ones: int) -> list[bytes]:
    """Codes of 64 bits with that many ones at the front: their distances are the differences."""
    return [np.packbits(np.arange(64) < n).tobytes() for n in ones]


def test_a_removable_row_is_near_to_a_kept_one_not_only_through_a_chain():
    rows = [
        a_row(f"/{n}.jpg", {"fine": code}, width=100 - n)
        for n, code in enumerate(chain(0, 4, 8, 12, 16))  # 4 bits from one to the next; the ends are 16 apart
    ]
    group = make_group(rows, within(4, {}), Choice("best"), Files())
    assert [(m.path, m.duplicate_of) for m in group.members] == [
        ("/0.jpg", None), ("/2.jpg", None), ("/4.jpg", None), ("/1.jpg", "/0.jpg"), ("/3.jpg", "/2.jpg"),
    ]  # fmt: skip
    assert group.diameter == 16
    assert [m.distances["fine"] for m in group.removable] == [4, 4]


def test_a_removable_row_duplicates_the_best_kept_one():
    rows = [
        a_row(f"/{n}.jpg", {"fine": code}, width=w)
        for n, (code, w) in enumerate(zip(chain(0, 9, 12), (3, 1, 2), strict=True))
    ]
    group = make_group(rows, within(10, {}), Choice("best"), Files())
    assert [(m.path, m.duplicate_of) for m in group.members] == [
        ("/0.jpg", None),
        ("/2.jpg", None),
        ("/1.jpg", "/0.jpg"),
    ]
    assert group.members[2].distances == {"fine": 9}


def test_other_granularities_keep_images_from_going():
    far, near = b"\xff\x00", b"\x00\x00"
    rows = [a_row(f"/{n}.jpg", {"coarse": c, "fine": bytes(8)}) for n, c in enumerate((near, far, near))]
    group = make_group(rows, within(0, {"coarse": 7}), Choice("first"), Files())
    assert [(m.path, m.duplicate_of) for m in group.members] == [
        ("/0.jpg", None),
        ("/1.jpg", None),
        ("/2.jpg", "/0.jpg"),
    ]
    assert make_group(rows, within(0, {"coarse": 8}), Choice("first"), Files()).removable[0].distances == {
        "fine": 0,
        "coarse": 8,
    }


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("best", "/c.jpg"), ("largest", "/b.jpg"), ("oldest", "/d.jpg"), ("newest", "/a.jpg"), ("first", "/a.jpg")],
)
def test_the_rule_says_which_image_stays(rule, kept):
    codes = {"fine": bytes(8)}
    rows = [
        a_row("/d.jpg", codes, width=20, size=10, mtime_ns=1),
        a_row("/c.jpg", codes, width=30, size=20, mtime_ns=5),
        a_row("/b.jpg", codes, width=30, size=10, mtime_ns=2),
        a_row("/a.jpg", codes, width=10, size=15, mtime_ns=9),
    ]
    if rule == "largest":
        rows[2] = a_row("/b.jpg", codes, width=1, size=99)
    assert set(KEEP) == {"best", "largest", "oldest", "newest", "first"}
    assert make_group(rows, within(0, {}), Choice(rule), Files()).members[0].path == kept


# The calibration


def pairs_of_a_power_law(total: int, dimension: float, reach: float) -> np.ndarray:
    """Counts of pairs whose true distances follow a power law up to ``reach`` bits, each seen with Poisson's noise."""
    random = np.random.default_rng(0)
    true = reach * random.random(total) ** (1 / dimension)
    return np.bincount(random.poisson(true), minlength=257)[:257]


def share_within(distance: int, dimension: float, reach: float) -> float:
    """Of such pairs, the share seen within a distance, by numerical integration."""
    true = reach * ((np.arange(20_000) + 0.5) / 20_000) ** (1 / dimension)
    return sum(float(np.mean(np.exp(-true + d * np.log(true) - math.lgamma(d + 1)))) for d in range(distance + 1))


@pytest.mark.parametrize("dimension", [4.0, 7.0])
def test_known_chance_rates_are_predicted_and_hardly_understated(dimension):
    fit = fit_chance_rates(pairs_of_a_power_law(1_000_000, dimension, 120))
    assert fit is not None
    assert 0.5 * dimension <= fit.dimension <= 1.1 * dimension
    for distance in range(50):
        known = share_within(distance, dimension, 120)
        if known >= 1e-6:  # one pair of those looked at
            assert 0.7 <= fit.rates[distance] / known <= 12, distance


@pytest.mark.parametrize("duplicates", [0, 100, 3000])
def test_duplicates_among_the_pairs_change_the_prediction_little(duplicates):
    counts = pairs_of_a_power_law(1_000_000, 7.0, 120)
    clean = fit_chance_rates(counts)
    copies = np.bincount(np.random.default_rng(1).geometric(0.15, duplicates), minlength=257)[:257]
    fit = fit_chance_rates(counts + copies)
    assert clean is not None
    assert fit is not None
    for distance in (10, 20, 30):
        assert fit.rates[distance] >= 0.7 * clean.rates[distance]
    # At a precision of 0.9 most duplicates are found, and hardly a pair that is none.
    distance = largest_distance(fit.rates * counts.sum(), np.cumsum(counts + copies), 0.9)
    if duplicates:
        assert distance is not None
        assert copies[: distance + 1].sum() > 0.8 * duplicates
        assert counts[: distance + 1].sum() <= 0.12 * copies[: distance + 1].sum()
    else:
        assert distance is None


def test_strongly_edited_copies_move_the_prediction_alike_whatever_copies_they_are():
    """Copies farther apart than what is taken for near run into the tail; with few pairs a fit takes them for it."""
    rates = []
    for seed in range(12):
        copies = np.bincount(np.random.default_rng(seed).integers(18, 36, 90), minlength=257)
        fit = fit_chance_rates(pairs_of_a_power_law(570_000, 7.0, 120) + copies, 17)
        assert fit is not None
        rates.append(fit.rates[18] / share_within(18, 7.0, 120))
    assert max(rates) <= 16
    assert max(rates) <= 2 * min(rates)


def test_duplicates_only_give_no_chance_rates():
    counts = np.zeros(257, np.int64)
    counts[:10] = 5000
    assert fit_chance_rates(counts) is None
    assert fit_chance_rates(np.zeros(257, np.int64)) is None


def test_the_largest_distance_is_the_last_that_is_precise_enough():
    expected = np.array([0.0, 0.1, 0.5, 2.0, 2.1, 9.0])
    found = np.array([0, 5, 6, 7, 30, 31])
    assert largest_distance(expected, found, 0.9) == 4  # 2.1 of 30; 9 of 31 are too many
    assert largest_distance(expected, found, 0.95) == 1  # 0.1 of 5; 2.1 of 30 are too many
    assert largest_distance(expected, found, 0.99) is None
    assert largest_distance(np.zeros(3), np.zeros(3, int), 0.5) is None


def clustered(count: int, bits: int, seed: int) -> np.ndarray:
    """Codes of points in a space of few dimensions, as images' are."""
    random = np.random.default_rng(seed)
    plane = np.random.default_rng(99).standard_normal((8, bits))
    return pack(random.standard_normal((count, 8)) @ plane + 0.1 * random.standard_normal((count, bits)))


def test_expected_chance_pairs_are_those_of_an_index_without_duplicates():
    sample, others = clustered(1500, 256, 0), clustered(12_000, 256, 1)
    calibration = calibrate({"fine": as_words(sample)}, {"fine": 256})
    assert calibration.chance is not None
    words = as_words(others)
    within = np.zeros(61)
    for pairs in pairs_within(words, 60, len(others)):
        within += np.bincount(pairs.distances, minlength=61)
    within = np.cumsum(within)
    total = len(others) * (len(others) - 1) / 2
    seen = [distance for distance in range(61) if within[distance] >= 20]
    assert seen[0] < 40
    for distance in seen:
        assert 0.5 <= calibration.chance.rates[distance] * total / within[distance] <= 8, distance


def test_limits_let_the_nearest_unrelated_pairs_pass():
    codes = {"coarse": as_words(random_codes(500, 64, 1)), "fine": as_words(clustered(500, 256, 0))}
    limits = calibrate(codes, {"coarse": 64, "fine": 256}).limits
    distances = distances_of(codes["coarse"], *np.triu_indices(500, 1))
    assert (distances <= limits["coarse"]).mean() <= 0.03 < (distances <= limits["coarse"] + 1).mean()


# The whole


def copies_among(count: int, copies: int) -> list[Row]:
    """Rows of clustered images, and copies of the first with three bits turned."""
    fine, coarse = clustered(count, 256, 3), random_codes(count, 16, 4)
    rows = []
    for n in range(count):
        codes = {"coarse": coarse[n].tobytes(), "fine": fine[n].tobytes()}
        rows.append(a_row(f"/old/{n:04}.jpg", codes, mtime_ns=1000, width=100))
        if n < copies:
            turned = fine[n].copy()
            turned[5] ^= 0b10101
            rows.append(a_row(f"/new/{n:04}.jpg", codes | {"fine": turned.tobytes()}, mtime_ns=2000 + n))
    return rows


LONG = {"coarse": 16, "fine": 256}


def test_copies_are_found_and_what_is_expected_by_chance_is_said():
    store, schema = a_store(copies_among(1000, 20), LONG)
    report = find_duplicates(store, schema, asked(schema))
    assert [[m.path for m in g.members] for g in report.groups] == [
        [f"/new/{n:04}.jpg", f"/old/{n:04}.jpg"] for n in range(20)
    ]
    assert (report.rows, report.compared, report.pairs, report.precision) == (1020, 1020 * 1019 // 2, 20, 0.99)
    assert report.distance is not None
    assert report.distance >= 3
    assert report.expected_false is not None
    assert report.expected_false <= 0.2
    assert report.false_positive_rate == report.expected_false / report.compared
    assert report.removable == ()  # their files are gone
    assert store.count() == 1020
    assert not report.is_chained(report.groups[0])


def test_a_given_distance_finds_what_brute_force_finds():
    rows = copies_among(300, 30)
    store, schema = a_store(rows, LONG)
    rows.sort(key=lambda row: row.id)
    fine = np.array([np.frombuffer(row.codes["fine"], np.uint8) for row in rows])
    coarse = np.array([np.frombuffer(row.codes["coarse"], np.uint8) for row in rows])
    for distance in (0, 2, 3, 70):
        report = find_duplicates(store, schema, asked(schema, distance=distance))
        near = (hamming(fine, fine) <= distance) & (hamming(coarse, coarse) <= report.limits["coarse"])
        edges = np.argwhere(np.triu(near, 1)).tolist()
        expected = transitive_closure(len(rows), edges)
        got = sorted(sorted(m.id for m in group.members) for group in report.groups)
        assert got == [[rows[i].id for i in group] for group in expected]
        assert report.pairs == len(edges)
        spreads = {min(m.id for m in group.members): group.diameter for group in report.groups}
        assert spreads == {rows[group[0]].id: int(hamming(fine[group], fine[group]).max()) for group in expected}
        assert report.precision is None


def test_only_pairs_with_a_new_image():
    rows = copies_among(500, 10)
    store, schema = a_store(rows, LONG)
    report = find_duplicates(store, schema, asked(schema, distance=5, newer_than_ns=2004))
    assert [sorted(m.path for m in g.members) for g in report.groups] == [
        [f"/new/{n:04}.jpg", f"/old/{n:04}.jpg"] for n in range(5, 10)
    ]
    assert report.compared == 5 * 505 + 5 * 4 // 2
    nothing = find_duplicates(store, schema, asked(schema, newer_than_ns=9999))
    assert (nothing.groups, nothing.compared) == ((), 0)
    assert "no image is that new" in nothing.summary(schema.bits)[1]


def test_two_old_images_are_a_group_only_through_a_new_one():
    code = {"coarse": bytes(2), "fine": bytes(32)}
    rows = copies_among(200, 0) + [a_row(f"/same/{n}.jpg", code, mtime_ns=1) for n in range(2)]
    store, schema = a_store(rows, LONG)
    assert find_duplicates(store, schema, asked(schema, distance=0, newer_than_ns=1000)).groups == ()
    store.upsert([a_row("/same/new.jpg", code, mtime_ns=5000)])
    groups_found = find_duplicates(store, schema, asked(schema, distance=0, newer_than_ns=1000)).groups
    assert [len(group.members) for group in groups_found] == [3]


def test_only_rows_under_a_folder():
    store, schema = a_store(copies_among(300, 8), LONG)
    assert find_duplicates(store, schema, asked(schema, distance=5, within="/old")).groups == ()
    report = find_duplicates(store, schema, asked(schema, distance=5, within="/"))
    assert len(report.groups) == 8
    with pytest.raises(QueryError, match=r"no image in 'images' under /olde, expected two or more"):
        find_duplicates(store, schema, asked(schema, within="/olde"))


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("/a/b.jpg", "/a", True), ("/a/b/c.jpg", "/a", True), ("/ab/c.jpg", "/a", False), ("/a", "/a", True),
        ("/a/b.jpg", "/", True), ("file:///a/caf%E9/b.jpg", "file:///a/caf%E9", True), ("/a/b.jpg", "/a/b", False),
    ],
)  # fmt: skip
def test_a_path_is_under_a_folder(path, folder, expected):
    assert is_under(path, ["/elsewhere", folder]) is expected


def test_many_equal_images_are_one_group_in_bounded_memory():
    rows = copies_among(300, 0)
    rows += [a_row(f"/same/{n}.jpg", {"coarse": bytes(2), "fine": bytes(32)}) for n in range(700)]
    store, schema = a_store(rows, LONG)
    report = find_duplicates(store, schema, asked(schema, distance=0))
    assert [len(group.members) for group in report.groups] == [700]
    assert (report.pairs, len(report.removable)) == (700 * 699 // 2, 0)  # their files are gone


def test_rows_deleted_meanwhile_are_left_out(monkeypatch):
    rows = copies_among(300, 3)
    store, schema = a_store(rows, LONG)
    fetch = store.fetch
    gone = image_id("/new/0001.jpg")
    monkeypatch.setattr(store, "fetch", lambda ids, names=(): fetch([i for i in ids if i != gone], names))
    report = find_duplicates(store, schema, asked(schema, distance=5))
    assert [g.members[0].path for g in report.groups] == ["/new/0000.jpg", "/new/0002.jpg"]


def test_too_little_is_said_clearly():
    store, schema = a_store([])
    with pytest.raises(QueryError, match=r"no image in 'images', expected two or more"):
        find_duplicates(store, schema, asked(schema))
    rows = [a_row(f"/{n}.jpg", {"coarse": bytes(2), "fine": random_codes(1, 64, n).tobytes()}) for n in range(6)]
    store.upsert(rows[:1])
    with pytest.raises(QueryError, match=r"there is one image in 'images', expected two or more"):
        find_duplicates(store, schema, asked(schema))
    store.upsert([*rows, a_row("/again.jpg", dict(rows[0].codes))])
    with pytest.raises(QueryError, match=r"too few.*give a distance in bits"):
        find_duplicates(store, schema, asked(schema))
    report = find_duplicates(store, schema, asked(schema, distance=0))
    assert [[m.path for m in g.members] for g in report.groups] == [["/0.jpg", "/again.jpg"]]
    assert report.expected_false is None
    assert report.false_positive_rate is None
    assert "too few unrelated images" in report.summary(schema.bits)[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": 65}, r"distance is 65, expected a number of bits from 0 to 64"),
        ({"distance": -1}, r"distance is -1"),
        ({"precision": 1.0}, r"precision is 1, expected a number between 0 and 1"),
        ({"precision": 0.0}, r"precision is 0"),
        ({"precision": float("nan")}, r"precision is nan"),
        ({"precision": 0.9, "distance": 3}, r"distance and precision were both given"),
        ({"keep": "bets"}, r"keep is 'bets' \(did you mean 'best'\?\), expected best, largest"),
    ],
)
def test_silly_options_are_refused(options, message):
    with pytest.raises(QueryError, match=message):
        asked(a_store([])[1], **options)


def test_a_schema_without_fine_is_refused():
    _, schema = a_store([], {"coarse": 16})
    with pytest.raises(QueryError, match=r"need the granularity 'fine', 'images' has coarse; ingest into a collection"):
        asked(schema)


# One image


class _Encoder:
    """Gives the codes that the colour of an image names."""

    side = 8

    def __init__(self, codes):
        self._codes = codes

    def prepare(self, image):
        return np.array(image.resize((1, 1)).getpixel((0, 0)), np.uint8)

    def encode(self, prepared):
        return {name: values[[int(p[0]) for p in prepared]] for name, values in self._codes.items()}


def test_one_image_against_the_index(tmp_path):
    rows = copies_among(6000, 0)
    store, schema = a_store(rows, LONG)
    fine = np.array([np.frombuffer(row.codes["fine"], np.uint8) for row in rows[:200]])
    coarse = np.array([np.frombuffer(row.codes["coarse"], np.uint8) for row in rows[:200]])
    fine[7, 0] ^= 0b11
    encoder = _Encoder({"fine": fine, "coarse": coarse})
    Image.new("RGB", (40, 30), (7, 7, 7)).save(tmp_path / "new.png")
    report = find_duplicates_of((store, schema, encoder), tmp_path / "new.png", asked(schema))
    assert (report.rows, report.compared, report.pairs) == (6000, 6000, 1)
    assert [m.path for m in report.groups[0].members] == [str(tmp_path / "new.png"), "/old/0007.jpg"]
    assert report.groups[0].members[1].distances == {"fine": 2, "coarse": 0}
    assert report.expected_false is not None
    assert report.expected_false <= 0.01
    # Every pair at once, where the nearest 128 are not enough.
    wide = find_duplicates_of((store, schema, encoder), tmp_path / "new.png", asked(schema, distance=256))
    limit = wide.limits["coarse"]
    near = [
        r for r in rows
        if np.bitwise_count(np.frombuffer(r.codes["coarse"], np.uint8) ^ coarse[7]).sum() <= limit
    ]  # fmt: skip
    assert wide.pairs == len(near) > 10
    with pytest.raises(ImageError, match=r"gone.png' does not exist"):
        find_duplicates_of((store, schema, encoder), tmp_path / "gone.png", asked(schema))


def test_an_indexed_image_is_not_a_duplicate_of_itself(tmp_path):
    Image.new("RGB", (40, 30), (3, 3, 3)).save(tmp_path / "a.png")
    codes = {"fine": clustered(10, 256, 0), "coarse": random_codes(10, 16)}
    own = a_row(str(tmp_path / "a.png"), {name: values[3].tobytes() for name, values in codes.items()})
    store, schema = a_store([own], LONG)
    with pytest.raises(QueryError, match=r"there is no other image in 'images' to compare .*a.png with"):
        find_duplicates_of((store, schema, _Encoder(codes)), tmp_path / "a.png", asked(schema))
    store.upsert([a_row("/copy.jpg", dict(own.codes), width=99)])
    report = find_duplicates_of((store, schema, _Encoder(codes)), tmp_path / "a.png", asked(schema, distance=0))
    assert [(m.path, m.id) for m in report.groups[0].members] == [
        (str(tmp_path / "a.png"), own.id), ("/copy.jpg", image_id("/copy.jpg")),
    ]  # fmt: skip


# The facade and the sentences


def test_the_facade(tmp_path):
    (tmp_path / "p").mkdir()
    for n in range(20):
        noise = np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / "p" / f"{n}.png")
    Image.open(tmp_path / "p" / "4.png").save(tmp_path / "p" / "copy.jpg", quality=95)
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path / "p")
        report = index.duplicates(distance=30)
        # Equal pixels; the PNG has more bytes.
        assert [[m.path for m in g.members] for g in report.groups] == [
            [str(tmp_path / "p" / "4.png"), str(tmp_path / "p" / "copy.jpg")]
        ]
        assert index.duplicates(distance=30, newer_than=datetime(2000, 1, 1, tzinfo=UTC)).groups == report.groups
        assert index.duplicates(of=tmp_path / "p" / "copy.jpg", distance=30).groups == report.groups
        with pytest.raises(QueryError, match="omit within and newer_than"):
            index.duplicates(of=tmp_path / "p" / "4.png", within=tmp_path)
        assert index.count() == 21
    told = report.as_dict()
    assert [member["keep"] for member in told["groups"][0]["members"]] == [True, False]
    assert told["images"] == 2


def test_sentences():
    store, schema = a_store(copies_among(1000, 20), LONG)
    report = find_duplicates(store, schema, asked(schema))
    headline, near, pairs, away = report.summary(schema.bits)
    assert headline == report.headline == "20 groups of 40 images among 1,020; 0 removable (0 B)"
    assert near.startswith(f"near: at most {report.distance} of 256 bits differ on fine, ")
    assert pairs.startswith("20 near pairs of 519,690 compared by codes only; expected by chance: ")
    assert away == "1,020 rows whose file is not found or cannot be read: is its disk mounted?"
    store, schema = a_store(copies_among(500, 0), LONG)
    nothing = find_duplicates(store, schema, asked(schema))
    assert nothing.distance is None
    headline, reason, _ = nothing.summary(schema.bits)
    assert headline == "no near-duplicates among 500 images"
    assert reason.startswith("no pair is near enough to be a copy with 99 % certainty; ")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (2_500_000_000, "2.5 GB"),
    ],
)
def test_file_sizes(size, text):
    assert file_size(size) == text
