"""Tags: the table, the words that people say, probabilities as levels, and the conditions that find them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_milvus.errors import FilterError, QueryError
from mg_milvus.schema import tags
from mg_milvus.schema.tags import (
    LEVELS,
    NO_TAG,
    SHOWN,
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
from tests.memory_filters import compile_filter

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
    first, _, group = stored
    assert [tag % LEVELS for tag in stored] == [16, 2, 20]
    value = to_column(stored)
    # Twice the number and one more, and again one more where the tag is shown; beside it the level.
    assert [value % divisor for divisor in (2111, 2113, 2129)] == [2 * 151 + 2, 2 * 281 + 1, 2 * DOG + 2]
    assert [value % divisor for divisor in (31, 37, 41)] == [16, 2, 20]
    assert from_column(value) == tuple(stored)
    assert to_column([]) == 0
    assert from_column(0) == ()
    alone = to_column([group])
    assert [alone % divisor for divisor in (2111, 31, 2113, 37)] == [0] * 4
    assert from_column(alone) == (group,)
    assert to_column([group, first]) == to_column([first, group]) != to_column([first])
    assert from_elements([first, NO_TAG, NO_TAG]) == (first,)
    with pytest.raises(ValueError, match=r"the tags are \[1, 2\], expected 3 numbers"):
        from_elements([1, 2])
    assert readable(stored) == {"dog": 0.97, "Chihuahua": 0.89}  # the middle of a level; that of 5 % is not shown


@pytest.mark.parametrize("wrong", [[-1], [NO_TAG], [1.5], [True], [0, 30, 60], [DOG * LEVELS, CAT * LEVELS]])
def test_what_no_image_has_is_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="tags"):
        to_column(wrong)


NAMED, GROUPED = st.integers(0, 1000 * LEVELS - 1), st.integers(1000 * LEVELS, len(TABLE.tags) * LEVELS - 1)


@given(st.lists(NAMED, max_size=2), st.lists(GROUPED, max_size=1))
def test_all_tags_come_back_and_milvus_can_divide_them(names: list[int], groups: list[int]) -> None:
    """Milvus divides as doubles do, which hold whole numbers below 2**53."""
    value = to_column([*names, *groups])
    assert 0 <= value < 2111 * 2113 * 2129 * 31 * 37 * 41 < 2**53
    assert from_column(value) == (*names, *groups)


def number_with(remainders: dict[int, int]) -> int:
    """The least number that leaves these remainders, and 0 by the other divisors, by trying."""
    value, step = 0, 1
    for divisor in (2111, 2113, 2129, 31, 37, 41):
        while value % divisor != remainders.get(divisor, 0):
            value += step
        step *= divisor
    return value


@pytest.mark.parametrize(
    "value",
    [
        -1, 1, 2**63 - 1, to_column([5]) + 2111 * 2113 * 2129 * 31 * 37 * 41,
        number_with({2111: 304, 31: 30}), number_with({2111: 303, 31: 7}), number_with({2111: 304, 31: 6}),
        number_with({2111: 2002, 31: 7}), number_with({2129: 304, 41: 7}), number_with({2129: 2106, 41: 7}),
        number_with({37: 3}),
    ],
)  # fmt: skip
def test_numbers_that_are_no_tags_are_refused(value: int) -> None:
    assert from_column(number_with({2111: 304, 31: 7})) == (151 * LEVELS + 7,)
    with pytest.raises(ValueError, match="the tags are "):
        from_column(value)


def test_the_probability_of_a_word_is_the_sum_over_its_tags() -> None:
    stored = [encode_tag(546, 0.5), encode_tag(402, 0.25), encode_tag(DOG, 0.9)]
    expected = probability_of(level_of(0.5)) + probability_of(level_of(0.25))
    assert probability(stored, find_word("guitar")) == pytest.approx(expected)
    assert probability(stored, find_word("electric guitar")) == pytest.approx(0.5, abs=0.05)
    assert probability(stored, find_word("cat")) == 0
    assert probability([encode_tag(402, 1), encode_tag(546, 1)], find_word("guitar")) == 1


def test_conditions_compare_remainders() -> None:
    assert condition([3, 2], SHOWN) == "tags % 2111 == 6 or tags % 2111 == 8 or tags % 2113 == 6 or tags % 2113 == 8"
    assert condition([DOG], SHOWN) == f"tags % 2129 == {2 * DOG + 2}"
    assert condition([DOG]) == f"tags % 2129 == {2 * DOG + 1} or tags % 2129 == {2 * DOG + 2}"
    assert condition([DOG], 28) == f"(tags % 2129 == {2 * DOG + 2}) and (tags % 41 == 28 or tags % 41 == 29)"
    assert condition([DOG], 9) == f"(tags % 2129 == {2 * DOG + 2}) and tags % 41 != 7 and tags % 41 != 8"
    assert condition([DOG], 6) == (
        f"(tags % 2129 == {2 * DOG + 1}) and (tags % 41 == 6) or tags % 2129 == {2 * DOG + 2}"
    )


@given(st.lists(NAMED, max_size=2), st.lists(GROUPED, max_size=1), st.integers(0, LEVELS - 1), st.data())
def test_conditions_hold_for_what_they_say(names: list[int], groups: list[int], level: int, data: Any) -> None:
    stored = [*names, *groups]
    number = st.integers(0, len(TABLE.tags) - 1) | st.sampled_from([tag // LEVELS for tag in [*stored, 0]])
    numbers = data.draw(st.sets(number, min_size=1, max_size=4))
    holds = any(tag // LEVELS in numbers and tag % LEVELS >= level for tag in stored)
    columns, row = {"tags": FilterColumn("tags")}, {"tags": to_column(stored)}
    for where, expected in ((condition(numbers, level), holds), (f"not ({condition(numbers, level)})", not holds)):
        assert eval(render(where, columns, lite=True), row) == expected  # Python reads it as Milvus does
        assert compile_filter(where, columns)(row) == expected


@pytest.mark.parametrize("where", ["tags + 1 == 3", "tags / 2 == 3", "tags % 31 > 3", "tags > 3", "tags[0] > 3"])
def test_tags_are_no_number_to_people(where: str) -> None:
    with pytest.raises(FilterError):
        render(where, {"tags": FilterColumn("tags")}, lite=True)
