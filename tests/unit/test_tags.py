"""Tags: the table, the words that people say, probabilities as levels, and the conditions that find them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_milvus.errors import FilterError, QueryError
from mg_milvus.schema import tags
from mg_milvus.schema.tags import (
    LEVELS,
    NO_TAG,
    TAG_BYTES,
    condition,
    encode_tag,
    find_word,
    from_column,
    from_elements,
    level_of,
    probability,
    probability_of,
    readable,
    to_column,
    vocabulary,
)
from mg_milvus.store.filter_language import FilterColumn, render

TABLE = vocabulary()
DOG, CAT = TABLE.tags.index("dog"), TABLE.tags.index("cat")


def meant(word: str) -> set[str]:
    return {TABLE.tags[number] for number in find_word(word)}


def test_the_table_is_that_of_the_network() -> None:
    """Places of well-known classes of ImageNet; every tag once, and all fit into 16 bits."""
    places = {"tench": 0, "Chihuahua": 151, "tabby": 281, "sports car": 817, "toilet paper": 999}
    assert {name: TABLE.tags.index(name) for name in places} == places
    assert len(TABLE.synsets) == len(set(TABLE.synsets)) == len(TABLE.groups) == 1000
    assert TABLE.synsets[817] == "n04285008"
    assert len(TABLE.tags) == len({tag.casefold() for tag in TABLE.tags})
    assert len(TABLE.tags) * LEVELS <= 2**15
    assert TABLE.groups[151] == TABLE.groups[268] == DOG
    assert sum(group == DOG for group in TABLE.groups) == 118  # ImageNet's breeds


def test_every_group_has_names_and_every_word_a_meaning() -> None:
    assert set(TABLE.groups) - {-1} == set(range(1000, len(TABLE.tags)))
    assert all(numbers and max(numbers) < len(TABLE.tags) for numbers in TABLE.words.values())
    assert all(find_word(word) == TABLE.words[plain] for plain, word in TABLE.known.items())


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sports car", {"sports car"}),
        ("Sports-Car", {"sports car"}),
        ("dog", {"dog"}),
        ("DOGS", {"dog"}),
        ("horses", {"horse"}),
        ("buses", {"bus"}),
        ("puma", {"cougar"}),
        ("crane", {"crane", "crane bird"}),  # the machine and the bird
        ("guitar", {"acoustic guitar", "electric guitar"}),
        ("clothes", {"garment"}),
        ("clothing", {"garment", "hat", "shoe"}),
        ("food", {"dish", "fruit", "vegetable"}),
        ("t shirt", {"T-shirt"}),
    ],
)
def test_words_as_people_say_them(word: str, expected: set[str]) -> None:
    assert meant(word) == expected


def test_an_animal_is_a_dog_and_not_a_car() -> None:
    animals = meant("animal")
    assert {"dog", "cat", "bird", "fish", "elephant"} <= animals
    assert animals.isdisjoint({"car", "person", "fruit"})
    assert meant("mammal") < animals


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("sportscar", "the nearest known are 'sports car'"),
        ("elefant", "the nearest known are 'elephant'"),
        ("red dress", "the nearest known are 'dress'"),
        ("xyzzy", "mgm tags --all lists the words"),
        ("", "mgm tags --all lists the words"),
        ("!?", "mgm tags --all lists the words"),
    ],
)
def test_an_unknown_word_gets_the_nearest_in_one_line(word: str, near: str) -> None:
    with pytest.raises(QueryError, match=f"images have no tag '{word.replace('?', '.')}'; {near}") as caught:
        find_word(word)
    assert "\n" not in str(caught.value)


@given(st.floats(0.02, 1))
def test_a_level_is_near_its_probability(value: float) -> None:
    """Half a level of log odds; the first and the last level have the rest."""
    read = probability_of(level_of(value))
    if value < 0.9988:
        assert abs(math.log(read / (1 - read)) - math.log(value / (1 - value))) <= 0.363 / 2 + 1e-9
    else:
        assert read > 0.998


def test_levels_rise_and_are_shown_from_a_fifth_on() -> None:
    read = [probability_of(level) for level in range(LEVELS)]
    assert read == sorted(read)
    assert [level_of(value) for value in read] == list(range(LEVELS))
    assert (level_of(0.0), level_of(1.0)) == (0, LEVELS - 1)
    assert level_of(0.2) < tags.SHOWN <= level_of(0.21)


def test_tags_in_a_column_and_back() -> None:
    stored = [encode_tag(151, 0.9), encode_tag(281, 0.05), encode_tag(DOG, 0.97)]
    first, second, group = stored
    assert to_column(stored) == f"[[{first},{second},{group}]]"
    assert to_column([group, first]) == f"[[{first},-1,{group}]]"
    assert to_column([group]) == f"[[-1,-1,{group}]]"
    assert to_column([]) == "[[-1,-1,-1]]"
    assert from_column([[first, second, group]]) == tuple(stored)
    assert from_column([[-1, -1, group]]) == (group,)
    assert from_elements([first, -1, -1]) == (first,)
    last = len(TABLE.tags) * LEVELS - 1
    assert len(to_column([30_000 - 1, 30_000 - 2, last])) == TAG_BYTES
    assert readable(stored) == {"dog": 0.97, "Chihuahua": 0.89}  # the middle of a level; that of 5 % is not shown


@pytest.mark.parametrize("wrong", [[-1], [NO_TAG], [1.5], [True], [0, 30, 60], [DOG * LEVELS, CAT * LEVELS]])
def test_what_no_image_has_is_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="tags"):
        to_column(wrong)


@pytest.mark.parametrize(
    "wrong",
    [None, 3, "[[1,2,30000]]", {}, [], [1, 2, 30_000], [[1, 2]], [[1, 2, 3, 4]], [[1, 2, 3]], [[1, 2, None]],
     [[1, 2, "30000"]], [[1.5, 2, -1]], [[-2, -1, -1]], [[True, -1, -1]], [[[1], -1, -1]], [[1, 2, -1], [1, 2, -1]]],
)  # fmt: skip
def test_what_no_column_holds_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"the tags are|there are 3 tags"):
        from_column(wrong)


def test_the_probability_of_a_word_is_the_sum_over_its_tags() -> None:
    stored = [encode_tag(546, 0.5), encode_tag(402, 0.25), encode_tag(DOG, 0.9)]
    expected = probability_of(level_of(0.5)) + probability_of(level_of(0.25))
    assert probability(stored, find_word("guitar")) == pytest.approx(expected)
    assert probability(stored, find_word("electric guitar")) == pytest.approx(0.5, abs=0.05)
    assert probability(stored, find_word("cat")) == 0
    assert probability([encode_tag(402, 1), encode_tag(546, 1)], find_word("guitar")) == 1


def test_conditions_list_all_that_a_tag_is_stored_as() -> None:
    assert condition([3, 2], 28) == "_tags in [88, 89, 118, 119]"
    assert condition([5]) == f"_tags in [{', '.join(str(150 + level) for level in range(30))}]"
    assert condition([]) == "_tags in []"


COLUMNS = {"id": FilterColumn("string"), "tags": FilterColumn("tags"), "_tags": FilterColumn("stored tags")}


@pytest.mark.parametrize(
    ("where", "written"),
    [
        ("_tags in [88, 89]", "json_contains_any(tags[0], [88, 89])"),
        ("not (_tags in [88])", "(tags[0][0] not in [88]) and (tags[0][1] not in [88])"),
        ("_tags not in [30000]", "tags[0][2] not in [30000]"),
        (
            "_tags not in [88, 30000]",
            "(tags[0][0] not in [88]) and ((tags[0][1] not in [88]) and (tags[0][2] not in [30000]))",
        ),
        ("_tags in []", 'id == ""'),
        ("_tags not in []", 'id != ""'),
        ("_tags is not null", "tags[0][0] >= 0"),
        ("not (_tags is not null)", "tags[0][0] < 0"),
        ("_tags is null", "tags[0][0] < 0"),
    ],
)
def test_what_milvus_reads(where: str, written: str) -> None:
    assert render(where, COLUMNS, lite=True) == render(where, COLUMNS, lite=False) == written


@pytest.mark.parametrize(
    "where",
    ["_tags == 3", "_tags > 3", "_tags in [1.5]", '_tags in ["dog"]', "_tags in [true]", "_tags in [1,]",
     '_tags like "1%"', "_tags[0] > 3", "tags[0] > 3", "_tagz in [3]"],
)  # fmt: skip
def test_stored_tags_are_found_by_lists_of_numbers_only(where: str) -> None:
    says = r"whole numbers were expected|no column '_tag[sz]', the columns are (tags, id|id, tags): |cannot be read from here on"
    with pytest.raises(FilterError, match=says):
        render(where, COLUMNS, lite=True)
