"""What every store does: memory, Milvus Lite in process and over TCP, strict stand-ins, the server at MGM_TEST_URI."""

from __future__ import annotations

import functools
import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mg_milvus.config import MilvusConfig
from mg_milvus.errors import (
    CollectionNotFoundError,
    FilterError,
    QueryError,
    SchemaError,
    StoreError,
    UnsupportedError,
)
from mg_milvus.schema.models import ExtraField, FusionSettings, Granularity, RegionScale, RegionSettings, Schema
from mg_milvus.schema.tags import ANY_TAG, LEVELS, condition, vocabulary
from mg_milvus.store.base import Description, HybridSearch, Row, Store
from mg_milvus.store.milvus import open_store
from tests.server.strict_proxy import VERSIONS, StrictProxy, strict_proxy
from tests.servers import lite_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PLACES = ["memory", "file", "tcp", *VERSIONS, *(["server"] if "MGM_TEST_URI" in os.environ else [])]
FIELDS = (
    ExtraField(name="label", type="string", default="none", max_length=20),
    ExtraField(name="year", type="int"),
    ExtraField(name="price", type="float"),
    ExtraField(name="sold", type="bool"),
)
_names = (f"contract{os.getpid()}_{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def tcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with lite_server(tmp_path_factory.mktemp("tcp") / "tcp.db") as server:
        yield server.uri


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], StrictProxy]]:
    """A strict stand-in for a version, started when it is first asked for."""
    with ExitStack() as stack:
        yield functools.cache(
            lambda version: stack.enter_context(strict_proxy(tmp_path_factory.mktemp("strict") / "strict.db", version))
        )


@pytest.fixture(params=PLACES)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store without its collection."""
    uris: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory:",
        "file": lambda: str(tmp_path / "contract.db"),
        "tcp": lambda: str(request.getfixturevalue("tcp")),
        "server": lambda: os.environ["MGM_TEST_URI"],
        **{version: lambda version=version: request.getfixturevalue("proxies")(version).uri for version in VERSIONS},
    }
    uri, name, token = uris[request.param](), next(_names), os.environ.get("MGM_TEST_TOKEN")
    store = open_store(MilvusConfig(uri, collection=name, token=token))
    yield store
    store.close()
    if request.param == "server":
        cleaner = open_store(MilvusConfig(uri, collection=name, token=token))  # a test may have closed the other
        cleaner.drop()
        cleaner.close()


@contextmanager
def open_again(store: Store) -> Iterator[Store]:
    """Another client of the same place; the twin in memory has but one."""
    if store.uri == "memory:":
        yield store
        return
    other = open_store(MilvusConfig(store.uri, collection=store.collection, token=os.environ.get("MGM_TEST_TOKEN")))
    yield other
    other.close()


def description_for(store: Store) -> Description:
    """Two granularities, or the one that Milvus 2.3 can hold. Codes of 16 bits tie a lot."""
    granularities = (Granularity(name="coarse", bits=16), Granularity(name="fine", bits=64))
    if re.match(r"Milvus 2\.[0-3]\.", store.server()):
        granularities = granularities[:1]
    schema = Schema(collection=store.collection, granularities=granularities, fields=FIELDS)
    return Description(schema, "0123456789abcdef", adapted_on=7)


@pytest.fixture
def store(empty: Store) -> Store:
    empty.create(description_for(empty))
    return empty


def bits_of(store: Store) -> dict[str, int]:
    description = store.describe()
    assert description is not None
    return description.schema.bits


def make_rows(store: Store, count: int, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    bits = bits_of(store)
    return [
        Row(
            id=f"{seed:08x}{number:024x}",
            path=f"/images/{number}.jpg",
            size=1000 + number,
            mtime_ns=1_700_000_000_000_000_000 + number,
            width=640,
            height=480,
            content_hash=f"{number:032x}",
            taken=1_600_000_000_000_000_000 + number,
            codes={name: random.bytes(n // 8) for name, n in bits.items()},
            fields={
                "label": f"label {number % 7}",
                "year": 2000 + number % 5,
                "price": number / 4,
                "sold": number % 2 == 0,
            },
        )
        for number in range(count)
    ]


def distances(rows: list[Row], granularity: str, query: np.ndarray) -> dict[str, int]:
    """An independent Hamming distance: bits counted with Python's integers."""
    asked = int.from_bytes(query.tobytes())
    return {row.id: (int.from_bytes(row.codes[granularity]) ^ asked).bit_count() for row in rows}


def test_a_collection_remembers_who_made_it_first(empty: Store) -> None:
    first = description_for(empty)
    assert empty.describe() is None
    assert empty.collection not in empty.collections()
    assert empty.create(first) == first
    assert empty.create(replace(first, fingerprint="a" * 16, adapted_on=0)) == first
    assert empty.describe() == first
    assert empty.collection in empty.collections()
    empty.put_encoder("f", b"data")
    assert f"{empty.collection}_encoder" not in empty.collections()
    empty.drop()
    assert empty.describe() is None
    assert empty.get_encoder("f") is None
    empty.drop()
    other = replace(first, fingerprint="a" * 16)
    assert empty.create(other) == other
    assert empty.count() == 0


def test_a_collection_can_be_tuned_again_and_again(store: Store) -> None:
    first = description_for(store)
    rows = make_rows(store, 3)
    store.upsert(rows)
    names = list(bits_of(store))
    for weight, rrf_k in ((0.25, 20), (0.0, 200)):
        weights = dict.fromkeys(names, weight) | {names[0]: 1.0}
        fusion = FusionSettings(method="score", rrf_k=rrf_k, depth=500)
        changed = store.retune(weights, fusion)
        assert changed == store.describe()
        assert (changed.schema.weights, changed.schema.fusion) == (weights, fusion)
        assert (changed.schema.bits, changed.fingerprint, changed.adapted_on) == (
            first.schema.bits, first.fingerprint, first.adapted_on,
        )  # fmt: skip
        with open_again(store) as other:
            assert other.describe() == changed
    assert store.create(first) == changed
    assert store.fetch([row.id for row in rows], names) == {row.id: row for row in rows}
    assert [name for name in store.collections() if name.startswith(store.collection)] == [store.collection]
    store.drop()
    assert store.create(first) == first


ADDED = (
    ExtraField(name="title", type="string", max_length=200),
    ExtraField(name="pages", type="int"),
    ExtraField(name="stars", type="float"),
    ExtraField(name="mine", type="bool"),
)
MISSING = dict.fromkeys(field.name for field in ADDED)


def added_rows(store: Store) -> list[Row]:
    """Ten rows of before, and ten with values in added columns, but for every fifth of them."""
    new = [
        replace(
            row, fields={**row.fields, "title": f't"{n}\\%', "pages": n - 3, "stars": n / 2, "mine": n % 2 == 0}
            if n % 5 else row.fields,
        )
        for n, row in enumerate(make_rows(store, 10, seed=1))
    ]  # fmt: skip
    return [*make_rows(store, 10), *new]


def test_columns_added_later_hold_values_and_the_others_stay(store: Store) -> None:
    before = make_rows(store, 10)
    store.upsert(before)
    described = store.describe()
    assert described is not None
    changed = store.add_columns(ADDED[:2])
    assert set(changed.added) == {"title", "pages"}
    assert store.add_columns(ADDED).schema == store.describe().schema  # type: ignore[union-attr]
    assert set(store.describe().added) == set(MISSING)  # type: ignore[union-attr]
    granularities = tuple(bits_of(store))
    found = store.fetch([row.id for row in before], granularities)
    expected = {row.id: row for row in before}
    for row_id, row in found.items():
        assert row.codes == expected[row_id].codes
        assert {name: row.fields[name] for name in MISSING} == MISSING
        assert {name: row.fields[name] for name in expected[row_id].fields} == expected[row_id].fields
    rows = added_rows(store)
    store.upsert(rows)
    with open_again(store) as other:
        for one in (store, other):
            fetched = one.fetch([row.id for row in rows])
            scanned = {row.id: row for batch in one.scan(granularities=granularities) for row in batch}
            for row in rows:
                for got in (fetched[row.id], scanned[row.id]):
                    assert {name: got.fields[name] for name in MISSING} == MISSING | {
                        name: value for name, value in row.fields.items() if name in MISSING
                    }
                assert scanned[row.id].codes == row.codes
    assert store.delete([rows[0].id]) == 1


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ('title == "t\\"4\\\\%"', [4]),
        ("pages < 0", [1, 2]),
        ("pages != 1", [1, 2, 3, 6, 7, 8, 9]),
        ("not (pages in [1, 2])", [1, 2, 3, 6, 7, 8, 9]),
        ("stars >= 3.5 and width >= 0", [7, 8, 9]),
        ("mine == true", [2, 4, 6, 8]),
        ("mine != true", [1, 3, 7, 9]),
        ("mine is not null", [1, 2, 3, 4, 6, 7, 8, 9]),
        ('title like "t%" and mine == false', [1, 3, 7, 9]),
    ],
)
def test_filters_on_added_columns(store: Store, where: str, expected: list[int]) -> None:
    store.upsert(make_rows(store, 10))
    store.add_columns(ADDED)
    rows = added_rows(store)
    store.upsert(rows)
    found = {row.id for batch in store.scan(where) for row in batch}
    assert found == {rows[10 + n].id for n in expected}
    assert store.count(where) == len(expected)
    name = where.replace("not (", "").split()[0]
    assert store.count(f"{name} is null") == len(rows) - 8


def test_a_column_of_another_type_is_refused_and_nothing_changes(store: Store) -> None:
    store.add_columns(ADDED[:1])
    described = store.describe()
    for wrong in (ExtraField(name="title", type="int"), ExtraField(name="year", type="string")):
        with pytest.raises(SchemaError, match=f"the column '{wrong.name}' holds"):
            store.add_columns([ADDED[1], wrong])
    with pytest.raises(SchemaError, match=r"cannot be added: .*'width' is a column that every row has"):
        store.add_columns([ExtraField(name="width", type="int")])
    assert store.describe() == described
    rows = make_rows(store, 1)
    with pytest.raises(StoreError, match="title is 5, expected a value of type string"):
        store.upsert([replace(rows[0], fields={"title": 5})])


def test_a_new_collection_of_the_name_has_no_added_columns(store: Store) -> None:
    store.add_columns(ADDED)
    described = description_for(store)
    store.drop()
    store.create(described)
    assert store.describe() == described


def test_weights_that_no_schema_can_have_change_nothing(store: Store) -> None:
    names = list(bits_of(store))
    for wrong in ({}, {"texture": 1.0}, dict.fromkeys([*names, "texture"], 1.0), dict.fromkeys(names, 0.0)):
        with pytest.raises(ValueError, match=r"expected"):
            store.retune(wrong, FusionSettings())
    with pytest.raises(ValueError, match="weight"):
        store.retune(dict.fromkeys(names, -1.0), FusionSettings())
    assert store.describe() == description_for(store)


def test_nearest_equals_brute_force_with_many_ties(store: Store) -> None:
    rows = make_rows(store, 600)
    store.upsert(rows)
    random = np.random.default_rng(1)
    for granularity, bits in bits_of(store).items():
        queries = random.integers(0, 256, (3, bits // 8), dtype=np.uint8)
        for query, found in zip(queries, store.nearest(granularity, queries, 50), strict=True):
            true = distances(rows, granularity, query)
            assert found.distances.dtype == np.int32
            assert found.distances.tolist() == sorted(true.values())[:50]
            assert [true[i] for i in found.ids] == found.distances.tolist()
            assert len(set(found.ids)) == 50
            assert list(zip(found.distances, found.ids, strict=True)) == sorted(
                zip(found.distances, found.ids, strict=True)
            )


def test_nearest_returns_what_there_is(store: Store) -> None:
    bits = bits_of(store)["coarse"]
    query = np.zeros((1, bits // 8), np.uint8)
    assert store.nearest("coarse", query, 5)[0].ids == []
    assert store.nearest("coarse", query[:0], 5) == []
    rows = make_rows(store, 20)
    store.upsert(rows)
    assert set(store.nearest("coarse", query, 16_384)[0].ids) == {row.id for row in rows}
    (found,) = store.nearest("coarse", query, 5, where="size >= 1015")
    assert set(found.ids) == {row.id for row in rows[15:]}


def test_codes_come_along_with_a_search(store: Store) -> None:
    rows = make_rows(store, 40)
    store.upsert(rows)
    changed = replace(rows[7], path="/moved.jpg", codes={name: b"\xff" * len(c) for name, c in rows[7].codes.items()})
    store.upsert([changed])
    written = {row.id: row.codes for row in [*rows, changed]}
    for name, bits in bits_of(store).items():
        queries = np.stack([np.zeros(bits // 8, np.uint8), np.full(bits // 8, 255, np.uint8)])
        already: Mapping[str, bytes] = {"known": b"already"}
        known = {rows[3].id: already}
        both = store.nearest(name, queries, 25, where="size >= 1000", known=known)
        assert [len(found.ids) for found in both] == [25, 25]
        assert known.pop(rows[3].id) is already
        assert known == {i: written[i] for found in both for i in found.ids if i != rows[3].id}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("size == 1003", lambda n: n == 3),
        ("size != 1003 and size <= 1005", lambda n: n != 3 and n <= 5),
        ("size < 1003 or size > 1037", lambda n: n < 3 or n > 37),
        ("year in [2001, 2003] and sold == true", lambda n: n % 5 in {1, 3} and n % 2 == 0),
        ('label in ["label 1", "label 2"]', lambda n: n % 7 in {1, 2}),
        ("label not in ['label 1', 'label 2']", lambda n: n % 7 not in {1, 2}),
        ('path like "/images/3%"', lambda n: str(n).startswith("3")),
        ("price >= 2.5 && price < 5 || size == 1000", lambda n: 10 <= n < 20 or n == 0),
        ("size == 1001 or size == 1002 and year == 2000", lambda n: n == 1),
        ("(size == 1001 or size == 1002) and year == 2002", lambda n: n == 2),
        ("1005 > size", lambda n: n < 5),
        ("price == 2", lambda n: n == 8),
    ],
)
def test_filters(store: Store, where: str, expected: Callable[[int], bool]) -> None:
    rows = make_rows(store, 40)
    store.upsert(rows)
    wanted = {row.id for number, row in enumerate(rows) if expected(number)}
    assert wanted
    assert store.count(where) == len(wanted)
    assert {row.id for batch in store.scan(where) for row in batch} == wanted


@pytest.mark.parametrize("where", ["size <", "colour == 3", 'size == "a"', "label == 3", "size == 1 or", "???"])
def test_wrong_filters_are_refused(store: Store, where: str) -> None:
    store.upsert(make_rows(store, 2))
    with pytest.raises(FilterError):
        store.count(where)
    with pytest.raises(FilterError):
        list(store.scan(where))
    with pytest.raises(FilterError):
        store.nearest("coarse", np.zeros((1, 2), np.uint8), 3, where=where)


def test_upsert_replaces_and_a_read_sees_it_at_once(store: Store) -> None:
    rows = make_rows(store, 100)
    store.upsert(rows)
    store.upsert(rows)
    assert store.count() == 100
    changed = replace(rows[3], path="/elsewhere", codes={name: b"\xff" * len(c) for name, c in rows[3].codes.items()})
    store.upsert([changed])
    assert store.count() == 100
    assert store.fetch([changed.id], list(changed.codes)) == {changed.id: changed}
    store.upsert([])


def test_fetch(store: Store) -> None:
    rows = make_rows(store, 2500)
    store.upsert(rows)
    assert store.fetch([]) == {}
    assert store.fetch(["f" * 32, "it's", 'a"b\\', "a\nb", "x" * 65, "é漢😀", ""]) == {}
    wanted = [rows[9].id, "f" * 32, rows[2].id]
    assert store.fetch(wanted) == {rows[n].id: replace(rows[n], codes={}) for n in (9, 2)}
    assert list(store.fetch(wanted)) == [rows[9].id, rows[2].id]
    everything = store.fetch([row.id for row in rows], list(rows[0].codes))
    assert everything == {row.id: row for row in rows}
    with pytest.raises(QueryError, match="coarse"):
        store.fetch([rows[0].id], ["texture"])


def test_scan_gives_every_row_once_in_bounded_batches(store: Store) -> None:
    assert list(store.scan()) == []
    rows = make_rows(store, 2300)
    store.upsert(rows)
    batches = list(store.scan(granularities=["coarse"]))
    assert max(map(len, batches)) <= 1000
    found = [row for batch in batches for row in batch]
    assert len(found) == 2300
    assert {row.id: row.codes["coarse"] for row in found} == {row.id: row.codes["coarse"] for row in rows}


def test_tags_and_filters_on_them(store: Store) -> None:
    """Two names and a group, one name, a group alone, and none; the words are names, and the group of some of them."""
    numbers = {tag: number for number, tag in enumerate(vocabulary().tags)}
    beagle, tabby, dog, cat = (numbers[tag] * LEVELS for tag in ("beagle", "tabby", "dog", "cat"))
    given = [
        (beagle + 20, tabby + 7, dog + 29),  # .206 to .27 is the least that counts as a tag
        (tabby + 6, beagle + 9, cat + 7),
        (tabby + 29,),
        (dog + 6,),
        (),
    ]
    written = [replace(row, tags=tags) for row, tags in zip(make_rows(store, len(given)), given, strict=True)]
    store.upsert(written)
    where = {row.id: place for place, row in enumerate(written)}
    assert {row.id: row for row in store.fetch(list(where)).values()} == {
        row.id: replace(row, codes={}) for row in written
    }
    assert {where[row.id]: row.tags for rows in store.scan() for row in rows} == dict(enumerate(given))

    def found(text: str) -> list[int]:
        places = sorted(where[row.id] for rows in store.scan(text) for row in rows)
        assert store.count(text) == len(places)
        return places

    words = {
        'tags == "beagle"': [0, 1],
        'tags == "tabby"': [0, 2],
        'tags == "dog"': [0],
        'tags in ["dog", "tabby"]': [0, 2],
        'tags == "animal"': [0, 1],
    }
    for text, expected in words.items():
        assert found(text.replace("==", "!=").replace(" in ", " not in ")) == sorted({*range(5)} - {*expected}), text
    levels = {
        condition([numbers["dog"]]): [0, 3],
        condition([numbers["tabby"], numbers["cat"]], 7): [0, 1, 2],
        condition([numbers["tabby"]], 6): [0, 1, 2],
        condition([numbers["beagle"]], 9): [0, 1],
        condition([numbers["beagle"]], 10): [0],
        condition([numbers["dog"], numbers["tabby"]], 29): [0, 2],
    }
    for text, expected in (words | levels).items():
        assert found(text) == expected, text
        assert found(f"not ({text})") == sorted({*range(5)} - {*expected}), text
        assert found(f"not (not ({text}) or size < 0)") == expected, text
    assert found(ANY_TAG) == [0, 1, 2]
    code = np.zeros((1, len(written[0].codes["coarse"])), np.uint8)
    (nearest,) = store.nearest("coarse", code, 5, 'tags != "dog"')
    assert sorted(where[each] for each in nearest.ids) == [1, 2, 3, 4]


def test_values_are_some_columns_of_every_row_once(store: Store) -> None:
    tags = (5, 9, vocabulary().names * LEVELS)
    rows = [replace(row, tags=tags if i % 2 else ()) for i, row in enumerate(make_rows(store, 2300))]
    rows[7] = replace(rows[7], fields={})
    store.upsert(rows)
    columns = ("path", "tags", "price", "id", "taken", "sold")
    batches = list(store.values(columns))
    assert max(map(len, batches)) <= 1000
    expected = [
        (row.path, tuple(row.tags), row.fields.get("price"), row.id, row.taken, row.fields.get("sold")) for row in rows
    ]
    found = [(path, tuple(numbers), *others) for batch in batches for path, numbers, *others in batch]
    assert sorted(found, key=itemgetter(0)) == sorted(expected, key=itemgetter(0))
    assert expected[7][2] is None
    assert expected[6][2] is not None
    few = [value for batch in store.values(("size",), "size < 1003") for value in batch]
    assert sorted(few) == [(1000,), (1001,), (1002,)]


def test_delete_says_how_many_rows_were_there(store: Store) -> None:
    rows = make_rows(store, 10)
    store.upsert(rows)
    assert store.delete([]) == 0
    assert store.delete([rows[0].id, rows[1].id, rows[0].id, "f" * 32, 'it\'s "one"\\', "a\nb"]) == 2
    assert store.delete([rows[0].id]) == 0
    assert store.count() == 8
    assert rows[1].id not in store.fetch([row.id for row in rows])


def test_texts_come_back_as_they_were(store: Store) -> None:
    texts = ["it's", 'a "b"', "back\\slash\\", "new\nline", "tab\t", "é漢😀", "%_%", "\x01\x7f\u2028"]
    rows = make_rows(store, len(texts))
    rows = [
        replace(row, path=text, fields={**row.fields, "label": text}) for row, text in zip(rows, texts, strict=True)
    ]
    store.upsert(rows)
    found = store.fetch([row.id for row in rows])
    assert [(found[row.id].path, found[row.id].fields["label"]) for row in rows] == [(text, text) for text in texts]


def test_a_field_that_is_not_given_has_its_default_or_is_missing(store: Store) -> None:
    row, other = make_rows(store, 2)
    store.upsert([replace(row, fields={"year": None, "price": 3}), replace(other, fields={"label": "", "sold": False})])
    found = store.fetch([row.id, other.id])
    assert found[row.id].fields == {"label": "none", "year": None, "price": 3.0, "sold": None}
    assert found[other.id].fields == {"label": None, "year": None, "price": None, "sold": False}
    for where, matching in (
        ("year < 9 or year >= 9 or price != 3", set()),
        ("not (sold == true)", {other.id}),
        ("sold is null", {row.id}),
        ("label is null and price is null and sold is not null", {other.id}),
        ("year is null and price in [3, 4]", {row.id}),
        ("label not in ['x']", {row.id}),
    ):
        assert {each.id for rows in store.scan(where) for each in rows} == matching, where


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, "size is None"),
        ({"size": 2**63}, "64-bit"),
        ({"width": 1.5}, "width is 1.5"),
        ({"path": "x" * 16_385}, "16385 bytes, at most 16384"),
        ({"path": "é" * 8193}, "16386 bytes, at most 16384"),
        ({"path": "\udcff.jpg"}, "not valid Unicode"),
        ({"id": ""}, "not an id"),
        ({"id": "x" * 65}, "65 bytes, at most 64|not an id"),
        ({"fields": {"colour": "red"}}, "unknown fields colour"),
        ({"fields": {"label": "x" * 21}}, "21 bytes, at most 20"),
        ({"fields": {"year": "2000"}}, "year is '2000'"),
        ({"fields": {"sold": 1}}, "sold is 1"),
        ({"codes": {}}, "expected coarse"),
        ({"codes": {"coarse": b"1"}}, "expected"),
        ({"codes": {"coarse": None}}, "expected"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_breaks(
    store: Store, change: dict[str, Any], message: str
) -> None:
    good = make_rows(store, 3)
    if change.get("codes"):
        change = {"codes": dict(good[1].codes) | change["codes"]}
    with pytest.raises(StoreError, match=message):
        store.upsert([good[0], replace(good[1], **change), good[2]])
    assert store.count() == 0
    store.upsert(good)
    assert store.count() == 3


def test_statistics_are_kept_beside_the_collection(store: Store) -> None:
    assert store.get_statistics() is None
    store.put_encoder("aa", b"an encoder")
    for data in (b"first", bytes(100_000), b"last"):
        store.put_statistics(data)
        assert store.get_statistics() == data
    assert store.get_clusters() is None
    store.put_clusters(b"clusters")
    assert (store.get_clusters(), store.get_statistics()) == (b"clusters", b"last")
    assert store.get_encoder("aa") == b"an encoder"


def test_an_encoder_of_9_mb_travels_with_the_collection(store: Store) -> None:
    data = np.random.default_rng(0).bytes(9_000_001)
    assert store.get_encoder("aa") is None
    store.put_encoder("aa", data)
    store.put_encoder("aa", data)
    store.put_encoder("bb", b"small")
    store.put_encoder("cc", b"")
    assert store.get_encoder("aa") == data
    assert store.get_encoder("bb") == b"small"
    assert store.get_encoder("cc") == b""
    assert store.get_encoder("dd") is None
    store.drop_encoder("aa")
    store.drop_encoder("dd")
    assert store.get_encoder("aa") is None
    assert store.get_encoder("bb") == b"small"


def test_hybrid_is_reciprocal_rank_fusion(store: Store) -> None:
    """Rows at distances 0, 1, 2 ... on coarse and in another order on fine: no ties, so ranks are known by hand."""
    rows = make_rows(store, 5)
    bits = bits_of(store)
    orders = {"coarse": [0, 1, 2, 3, 4], "fine": [3, 4, 0, 1, 2]}

    def code(granularity: str, ones: int) -> bytes:
        return ((1 << ones) - 1).to_bytes(bits[granularity] // 8)

    rows = [replace(row, codes={g: code(g, orders[g][n]) for g in bits}) for n, row in enumerate(rows)]
    store.upsert(rows)
    queries = {g: np.zeros((2, bits[g] // 8), np.uint8) for g in bits}
    if len(bits) == 1:
        with pytest.raises(UnsupportedError):
            store.hybrid(queries, HybridSearch({"coarse": 1}, k=3, depth=5, rrf_k=10))
        return
    expected = {row.id: 2 / (11 + orders["coarse"][n]) + 2 / (11 + orders["fine"][n]) for n, row in enumerate(rows)}
    best = sorted(expected.items(), key=lambda item: (-item[1], item[0]))[:4]
    answers = store.hybrid(queries, HybridSearch({"coarse": 2.0, "fine": 2.0}, k=4, depth=5, rrf_k=10))
    assert len(answers) == 2
    for answer in answers:
        assert [i for i, _ in answer] == [i for i, _ in best]
        assert [s for _, s in answer] == pytest.approx([s for _, s in best], rel=1e-5)
    alone = store.hybrid(queries, HybridSearch({"coarse": 0.0, "fine": 1.0}, k=2, depth=5, rrf_k=10))
    assert [i for i, _ in alone[0]] == [rows[2].id, rows[3].id]
    filtered = store.hybrid(
        queries, HybridSearch({"coarse": 1, "fine": 1}, k=5, depth=5, rrf_k=10, where="size == 1004")
    )
    assert [i for i, _ in filtered[0]] == [rows[4].id]


def test_wrong_queries_are_refused(store: Store) -> None:
    query = np.zeros((1, 2), np.uint8)
    for depth in (0, -1, 16_385):
        with pytest.raises(QueryError, match=f"depth is {depth}, expected 1 to 16384"):
            store.nearest("coarse", query, depth)
    with pytest.raises(QueryError, match="texture"):
        store.nearest("texture", query, 5)
    for wrong in (np.zeros((1, 3), np.uint8), np.zeros(2, np.uint8), np.zeros((1, 2), np.int64)):
        with pytest.raises(QueryError, match="expected uint8"):
            store.nearest("coarse", wrong, 5)
    for weights in ({"coarse": 0.0}, {"coarse": -1.0}, {"texture": 1.0}, {}):
        with pytest.raises(QueryError):
            store.hybrid({"coarse": query}, HybridSearch(weights, k=3, depth=5, rrf_k=60))
    with pytest.raises(QueryError, match="are missing"):
        store.hybrid({}, HybridSearch({"coarse": 1.0}, k=3, depth=5, rrf_k=60))


def test_without_a_collection_every_verb_says_so(empty: Store) -> None:
    query = np.zeros((1, 2), np.uint8)
    for ask in (
        lambda: empty.upsert([]),
        lambda: empty.nearest("coarse", query, 3),
        lambda: empty.hybrid({"coarse": query}, HybridSearch({"coarse": 1}, k=1, depth=1, rrf_k=60)),
        lambda: empty.fetch(["a"]),
        lambda: list(empty.scan()),
        lambda: empty.count(),
        lambda: empty.size(),
        lambda: empty.delete(["a"]),
        lambda: empty.retune({"coarse": 1.0}, FusionSettings()),
    ):
        with pytest.raises(CollectionNotFoundError, match=empty.collection):
            ask()


def test_the_size_follows_what_this_client_writes(store: Store) -> None:
    rows = make_rows(store, 30)
    assert store.size() == 0
    store.upsert(rows)
    assert store.size() == store.size() == 30
    store.delete([rows[0].id, rows[1].id])
    assert store.size() == 28


def test_eight_threads_ask_at_once(store: Store) -> None:
    rows = make_rows(store, 300)
    store.upsert(rows)
    queries = np.random.default_rng(2).integers(0, 256, (64, 2), dtype=np.uint8)

    def ask(query: np.ndarray) -> list[int]:
        (found,) = store.nearest("coarse", query[None], 10)
        assert len(store.fetch(found.ids, ["coarse"])) == 10
        return found.distances.tolist()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, queries))
    assert answers == [sorted(distances(rows, "coarse", query).values())[:10] for query in queries]


def test_close_twice_then_every_verb_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.describe()
    with pytest.raises(StoreError, match="closed"):
        store.count()


REGIONS = RegionSettings(bits=16, scales=(RegionScale(size=0.6, grid=2), RegionScale(size=0.4, grid=3)))


@pytest.fixture
def with_regions(empty: Store) -> Store:
    description = description_for(empty)
    schema = description.schema.model_copy(update={"regions": REGIONS})
    empty.create(replace(description, schema=schema))
    return empty


def rows_with_regions(store: Store, count: int, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed + 100)
    return [replace(row, region_codes=random.bytes(REGIONS.bytes_per_image)) for row in make_rows(store, count, seed)]


def distances_of_regions(rows: list[Row], numbers: range, asked: np.ndarray) -> dict[str, int]:
    """An independent Hamming distance of regions, by their ids."""
    query = int.from_bytes(asked.tobytes())
    return {
        f"{row.id}:{n}": (int.from_bytes(row.region_codes[2 * n : 2 * n + 2]) ^ query).bit_count()
        for row in rows
        for n in numbers
    }


def test_regions_are_searched_scale_by_scale(with_regions: Store) -> None:
    rows = rows_with_regions(with_regions, 40)
    with_regions.upsert(rows)
    assert with_regions.regions.count() == 40 * 13
    assert f"{with_regions.collection}_regions" not in with_regions.collections()
    asked = np.random.default_rng(1).integers(0, 256, (3, 2), np.uint8)
    for scale, numbers in enumerate((range(4), range(4, 13))):
        answers = with_regions.regions.nearest(scale, asked, 25)
        for code, answer in zip(asked, answers, strict=True):
            exact = distances_of_regions(rows, numbers, code)
            assert answer.distances.tolist() == sorted(exact.values())[:25]
            assert [exact[i] for i in answer.ids] == answer.distances.tolist()


def test_the_regions_of_some_images_are_searched(with_regions: Store) -> None:
    rows = rows_with_regions(with_regions, 30)
    with_regions.upsert(rows)
    asked = np.random.default_rng(2).integers(0, 256, (1, 2), np.uint8)
    chosen = [row.id for row in rows[3:6]]
    (answer,) = with_regions.regions.nearest(1, asked, 100, chosen)
    exact = distances_of_regions(rows[3:6], range(4, 13), asked[0])
    assert dict(zip(answer.ids, answer.distances.tolist(), strict=True)) == exact
    assert with_regions.regions.nearest(1, asked, 100, ["f" * 32])[0].ids == []


def test_regions_come_and_go_with_their_images(with_regions: Store) -> None:
    rows = rows_with_regions(with_regions, 5)
    with_regions.upsert(rows)
    changed = replace(rows[0], region_codes=b"\xff" * REGIONS.bytes_per_image)
    with_regions.upsert([changed])
    with_regions.upsert([replace(rows[1], size=7, region_codes=b"")])  # only the file's time has changed: regions stay
    assert with_regions.regions.count() == 5 * 13
    (answer,) = with_regions.regions.nearest(0, np.full((1, 2), 255, np.uint8), 4)
    assert answer.ids == sorted(f"{rows[0].id}:{n}" for n in range(4))
    assert answer.distances.tolist() == [0] * 4
    assert with_regions.delete([rows[0].id, rows[2].id]) == 2
    left = {region.partition(":")[0] for some in with_regions.regions.scan() for region in some}
    assert left == {rows[1].id, rows[3].id, rows[4].id}
    with_regions.regions.delete([rows[3].id])
    assert with_regions.regions.count() == 2 * 13
    assert with_regions.count() == 3
    with open_again(with_regions) as other:
        assert other.regions.count() == 2 * 13
    with_regions.drop()
    with pytest.raises(CollectionNotFoundError):
        with_regions.regions.count()


def test_codes_of_regions_are_those_of_the_rows(with_regions: Store) -> None:
    rows = rows_with_regions(with_regions, 12)
    with_regions.upsert(rows)
    ids = [rows[7].id, "f" * 32, rows[2].id]
    assert with_regions.regions.codes(ids) == {row.id: row.region_codes for row in (rows[7], rows[2])}
    assert with_regions.regions.codes([]) == {}


def test_regions_are_refused_where_the_schema_has_none(store: Store) -> None:
    with pytest.raises(QueryError, match="no codes of regions"):
        store.regions.nearest(0, np.zeros((1, 2), np.uint8), 5)
    with pytest.raises(QueryError, match="no codes of regions"):
        store.upsert([replace(make_rows(store, 1)[0], region_codes=b"12")])


@pytest.mark.parametrize(
    ("scale", "codes", "depth", "message"),
    [
        (2, np.zeros((1, 2), np.uint8), 5, "no scale 2, expected 0 to 1"),
        (0, np.zeros((1, 3), np.uint8), 5, r"shape \(1, 3\), expected uint8 of \(n, 2\)"),
        (0, np.zeros((1, 2), np.uint8), 0, "depth is 0"),
    ],
)
def test_wrong_queries_to_regions(with_regions: Store, scale: int, codes: np.ndarray, depth: int, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        with_regions.regions.nearest(scale, codes, depth)


def test_region_codes_of_another_length_are_refused(with_regions: Store) -> None:
    with pytest.raises(StoreError, match="25 bytes of region codes, expected 13 times 2"):
        with_regions.upsert([replace(make_rows(with_regions, 1)[0], region_codes=b"1" * 25)])
    assert with_regions.count() == 0


def test_codes_alone_are_those_of_the_rows(store: Store) -> None:
    rows = make_rows(store, 12)
    store.upsert(rows)
    names = tuple(bits_of(store))
    ids = [rows[7].id, rows[2].id, "f" * 32, "no\nid"]
    assert store.fetch_codes(ids, names) == {row.id: dict(row.codes) for row in (rows[7], rows[2])}
    assert store.fetch_codes([], names) == {}
    with pytest.raises(QueryError, match="no granularity 'other'"):
        store.fetch_codes(ids, ["other"])
