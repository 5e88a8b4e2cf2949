"""Tags: the names of what images show, their groups, how they are stored, and the words that people say for them.

A tag of an image is a name (``sports car``), or a group of names (``car``), with a probability: one whole number of 16
bits, ``number * LEVELS + level``. All tags of an image are one whole number of 49 bits, see ``to_column``, whose
remainders a filter compares. ``tags.tsv`` beside this file lists names (ImageNet's 1,000 classes, by WordNet's lemmas),
groups and words.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import QueryError
from mg_milvus.schema.errors import format_value

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

LEVELS = 30
"""Steps of probability: equal ones of the log odds."""
LEAST = 0.02
"""Least probability that is stored: improbable tags rank what nothing else is known of."""
_STEP = 0.363
"""Log odds of a level; the highest begins at .9988."""
SHOWN = 7
"""The level, a probability of .206, from which on an image has a tag: to filters, in counts, and where it is shown."""
NAMES, GROUPS = 2, 1
"""Most names, and most groups, of an image."""
NO_TAG = -1
"""In place of a name or a group that an image has not."""
TAG_COLUMN = "tags"
"""The column of a row that holds its tags, see ``to_column``. Milvus Lite takes several times as long to write an
array, or to compare JSON, and three columns would take nearly three times as many bytes in its file."""
_OF_TAG, _OF_LEVEL = (2111, 2113, 2129), (31, 37, 41)
"""Divisors of each place: two names, then a group. Their product is below 2**53: exact as a double, too."""
ANY_TAG = f"{TAG_COLUMN} % {_OF_TAG[0]} != 0"
"""The filter for images that a classifier has seen."""
_NEAR = 3
"""Known words that a message offers."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The table of tags.

    Attributes:
        synsets: WordNet's id of each name.
        tags: names, then groups; the place of a tag is its number.
        groups: for each name the number of its group, or -1.
        words: word as ``_plain`` makes it -> numbers of the tags that it stands for.
        known: the words as people write them, for messages.
    """

    synsets: tuple[str, ...]
    tags: tuple[str, ...]
    groups: tuple[int, ...]
    words: Mapping[str, frozenset[int]]
    known: Mapping[str, str]

    @property
    def names(self) -> int:
        """How many of the tags are names: the classes of the network."""
        return len(self.synsets)


@cache
def vocabulary() -> Vocabulary:
    """The table, read once."""
    text = resources.files("mg_milvus.schema").joinpath("tags.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    names = [row for row in rows if row[0] not in "-+"]
    tagged = [*names, *(row for row in rows if row[0] == "-")]
    place = {row[1]: number for number, row in enumerate(tagged)}
    meant: dict[str, set[int]] = {}
    known: dict[str, str] = {}

    def add(word: str, numbers: Iterable[int]) -> None:
        meant.setdefault(_plain(word), set()).update(numbers)
        known.setdefault(_plain(word), word)

    for row in rows:
        if row[0] == "+":
            add(row[1], [number for part in row[2].split(", ") for number in _numbers(part, place)])
    groups = {_plain(row[1]) for row in tagged[len(names) :]}
    for number, row in enumerate(tagged):
        for word in (row[1], *filter(None, row[2].split(", "))):
            if number >= len(names) or _plain(word) not in groups:  # a group has its names already
                add(word, [number])
    return Vocabulary(
        tuple(row[0] for row in names), tuple(place), tuple(place.get(row[3], -1) for row in names),
        {word: frozenset(numbers) for word, numbers in meant.items()}, known,
    )  # fmt: skip


def _numbers(part: str, place: Mapping[str, int]) -> Iterable[int]:
    """The tags of a group's name, or of places such as ``3`` and ``3-5``."""
    if part in place:
        return [place[part]]
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def _plain(word: str) -> str:
    """A word without capitals, hyphens and punctuation, by which it is found."""
    return " ".join(re.findall(r"\w+", word.casefold()))


def find_word(word: str) -> frozenset[int]:
    """The numbers of the tags that a word stands for; ``dogs`` is ``dog``.

    Raises:
        QueryError: it is no known word; the nearest known ones are named.
    """
    words, plain = vocabulary().words, _plain(word) if isinstance(word, str) else ""
    for form in (plain, plain.removesuffix("s"), plain.removesuffix("es"), re.sub("ies$", "y", plain)):
        if form in words:
            return words[form]
    near = get_close_matches(plain, words, n=_NEAR, cutoff=0.6) if plain else []
    parts = [part for part in plain.split() if part in words and part not in near]
    offered = [f"'{vocabulary().known[each]}'" for each in [*parts, *near][:_NEAR]]
    hint = f"the nearest known are {', '.join(offered)}" if offered else "mgm tags --all lists the words that are known"
    raise QueryError(f"images have no tag {format_value(word)}; {hint}")


def level_of(probability: float) -> int:
    """The level of a probability of at least ``LEAST``."""
    odds = math.log(max(probability, LEAST) / max(1 - probability, 1e-12)) - math.log(LEAST / (1 - LEAST))
    return min(LEVELS - 1, max(0, int(odds / _STEP)))


def probability_of(level: int) -> float:
    """The probability in the middle of a level."""
    odds = math.log(LEAST / (1 - LEAST)) + (level + 0.5) * _STEP
    return 1 / (1 + math.exp(-odds))


def encode_tag(number: int, probability: float) -> int:
    """A tag as it is stored."""
    return number * LEVELS + level_of(probability)


@cache
def _bounds() -> tuple[int, int]:
    """The least stored tag of a group, and what all stored tags are below."""
    return vocabulary().names * LEVELS, len(vocabulary().tags) * LEVELS


def check_tags(tags: Sequence[int]) -> Sequence[int]:
    """The stored tags of an image, checked.

    Raises:
        ValueError: one of them is none, or there are too many names or groups.
    """
    if not tags:
        return tags
    first, most = _bounds()
    if not all(type(tag) is int and 0 <= tag < most for tag in tags):
        raise ValueError(f"the tags are {tags!r:.100}, expected whole numbers from 0 to {most - 1}")
    groups = sum(tag >= first for tag in tags)
    if groups > GROUPS or len(tags) - groups > NAMES:
        raise ValueError(f"there are {len(tags)} tags, expected at most {NAMES} names and {GROUPS} group")
    return tags


@cache
def _factors() -> tuple[int, tuple[int, ...]]:
    """The product of all divisors, and for each the number with the remainder 1 by it and 0 by all others."""
    divisors = (*_OF_TAG, *_OF_LEVEL)
    product = math.prod(divisors)
    return product, tuple(product // each * pow(product // each, -1, each) for each in divisors)


def to_column(tags: Sequence[int]) -> int:
    """The stored tags of an image as the value of their column: one number from whose remainders each can be read.

    Of place i, ``_OF_TAG[i]`` leaves ``2 * number + 1``, or one more where the image has the tag (from ``SHOWN`` on),
    and ``_OF_LEVEL[i]`` leaves the level; both leave 0 where there is no tag. By the Chinese remainder theorem there is
    one such number below the product of the divisors. Milvus compares a remainder in one pass over a plain column.

    Raises:
        ValueError: as ``check_tags``.
    """
    if not check_tags(tags):
        return 0
    first, _ = _bounds()
    names, groups = [tag for tag in tags if tag < first], [tag for tag in tags if tag >= first]
    product, factors = _factors()
    value = 0
    for place, tag in [*enumerate(names), *enumerate(groups, NAMES)]:
        number, level = divmod(tag, LEVELS)
        value += (2 * number + 1 + (level >= SHOWN)) * factors[place] + level * factors[len(_OF_TAG) + place]
    return value % product


def from_column(value: int) -> tuple[int, ...]:
    """The stored tags in the value of their column: names, most probable first, then a group.

    Raises:
        ValueError: no image has these.
    """
    if not value:
        return ()
    first, most = _bounds()
    tags = []
    for place, (of_tag, of_level) in enumerate(zip(_OF_TAG, _OF_LEVEL, strict=True)):
        remainder, level = value % of_tag, value % of_level
        if remainder == level == 0:
            continue
        number, shown = divmod(remainder - 1, 2)
        tag = number * LEVELS + level
        fits = 0 <= tag < first if place < NAMES else first <= tag < most
        if not fits or level >= LEVELS or shown != (level >= SHOWN):
            raise ValueError(f"the tags are {value}, which leaves {remainder} by {of_tag} and {level} by {of_level}")
        tags.append(tag)
    if not 0 < value < _factors()[0]:
        raise ValueError(f"the tags are {value}, expected 0 to {_factors()[0] - 1}")
    return tuple(tags)


def from_elements(values: Sequence[int]) -> tuple[int, ...]:
    """The stored tags among as many numbers as an image can have, ``NO_TAG`` where there are fewer.

    Raises:
        ValueError: there are more or fewer numbers, or as ``check_tags``.
    """
    if len(values) != NAMES + GROUPS:
        raise ValueError(f"the tags are {values!r:.100}, expected {NAMES + GROUPS} numbers")
    return tuple(check_tags([value for value in values if value != NO_TAG]))


def readable(tags: Sequence[int]) -> dict[str, float]:
    """The tags that an image has -> probability, two digits; the most probable first."""
    table = vocabulary().tags
    pairs = [(table[tag // LEVELS], probability_of(tag % LEVELS)) for tag in tags if tag % LEVELS >= SHOWN]
    return {name: round(value, 2) for name, value in sorted(pairs, key=lambda pair: -pair[1])}


def probability(tags: Sequence[int], numbers: frozenset[int]) -> float:
    """The probability that an image with these stored tags shows one of the tags of a word; 0 without any of them."""
    return min(1.0, sum(probability_of(tag % LEVELS) for tag in tags if tag // LEVELS in numbers))


def condition(numbers: Collection[int], level: int = 0) -> str:
    """The filter for images that have one of these tags, at this level or above, in the language of filters."""
    first = vocabulary().names
    names, groups = sorted(n for n in numbers if n < first), sorted(n for n in numbers if n >= first)
    return " or ".join(
        _at_place(place, own, level) for place, own in enumerate([names] * NAMES + [groups] * GROUPS) if own
    )


def _at_place(place: int, numbers: Sequence[int], level: int) -> str:
    """The filter for one of these tags at one place of the column."""
    parts = []
    for shown, levels in enumerate((range(SHOWN), range(SHOWN, LEVELS))):
        wanted, others = range(max(level, levels.start), levels.stop), range(levels.start, level)
        if not wanted:
            continue
        tagged = _remainders(_OF_TAG[place], "==", [2 * number + 1 + shown for number in numbers])
        if others and len(others) <= len(wanted):
            tagged = f"({tagged}) and {_remainders(_OF_LEVEL[place], '!=', others)}"
        elif others:
            tagged = f"({tagged}) and ({_remainders(_OF_LEVEL[place], '==', wanted)})"
        parts.append(tagged)
    return " or ".join(parts)


def _remainders(divisor: int, sign: str, values: Iterable[int]) -> str:
    """The filter that a remainder is one of these values, or with ``!=`` that it is none of them."""
    word = " or " if sign == "==" else " and "
    return word.join(f"{TAG_COLUMN} % {divisor} {sign} {value}" for value in values)


USER_TAGS = "user_tags"
"""The field of the tags that people give: ``|beach|to print|``, empty without any."""
USER_TAGS_BYTES = 4096
_MOST_CHARACTERS = 100


def check_user_tag(tag: object) -> str:
    """A tag that a person gives, without spaces around it.

    Raises:
        QueryError: it is empty, too long, or holds a ``|`` or a control character.
    """
    text = unicodedata.normalize("NFC", tag).strip() if isinstance(tag, str) else ""
    if not 0 < len(text) <= _MOST_CHARACTERS or not text.isprintable() or "|" in text:
        raise QueryError(
            f"the tag {format_value(tag)} is none: expected 1 to {_MOST_CHARACTERS} printable characters without |"
        )
    return text


def join_tags(tags: Iterable[str]) -> str:
    """Tags as they are stored; empty for none."""
    joined = "|".join(tags)
    return f"|{joined}|" if joined else ""


def split_tags(stored: object) -> list[str]:
    """The tags in a value of ``USER_TAGS``."""
    return [tag for tag in stored.split("|") if tag] if isinstance(stored, str) else []


def with_user_tags(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row for people and programs: ``USER_TAGS`` as a list."""
    return {name: split_tags(value) if name == USER_TAGS else value for name, value in fields.items()}


def user_tag_pattern(tag: str) -> str:
    """The literal that ``like`` compares ``USER_TAGS`` with, to find a tag."""
    return '"%|' + re.sub(r'([\\"%_])', r"\\\1", tag) + '|%"'
