"""Milvus filters for the in-memory store: the tree of a filter as a function of a row.

Conditions are true, false or, beside a missing value, unknown, as in SQL; a row is found where the whole is true.
"""

from __future__ import annotations

import operator
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.schema.tags import LEVELS, TAG_COLUMN, find_word, from_column, probability_of
from mg_milvus.store.filter_language import FilterColumn, characters, members, parse, render, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Predicate = Callable[[Mapping[str, Any]], bool]

_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": lambda a, b: int(a / b), "%": lambda a, b: a % b,
}  # fmt: skip


def compile_filter(where: str | None, columns: Mapping[str, FilterColumn | str]) -> Predicate:
    """Turn a filter into a function of one row's values; no filter is always true.

    Args:
        where: the expression, or None.
        columns: by name; of those that may lack values, the type is enough.

    Raises:
        FilterError: as ``render`` raises it.
    """
    full = {name: FilterColumn(kind, "sparse") if isinstance(kind, str) else kind for name, kind in columns.items()}
    if not where or not render(where, full, lite=False):
        return lambda _: True
    holds = _condition(parse(where), where)
    return lambda row: holds(row) is True


def _condition(node: Any, where: str) -> Callable[[Mapping[str, Any]], bool | None]:
    """What a node says of a row: true, false or unknown. Literals are read once, not with every row."""
    match node.data:
        case "or_" | "and_":
            return _joined([_condition(child, where) for child in node.children], decisive=node.data == "or_")
        case "negation":
            inner = _condition(node.children[0], where)
            return lambda row: None if (part := inner(row)) is None else not part
        case "null":
            name, missing = str(node.children[0]), node.children[1] is None
            return lambda row: (row[name] is None) == missing
        case "compare":
            nodes, comparisons = node.children[::2], map(str, node.children[1::2])
            pairs = [_compared(pair, sign, where) for *pair, sign in zip(nodes, nodes[1:], comparisons)]  # noqa: B905
            return _joined(pairs, decisive=False)
    name, negated = str(node.children[0]), node.children[1] is not None
    if name == "tags":
        words = [value_of(token, where) for token in members(node.children[2])]
        return lambda row: any(_has(row, word) for word in words) != negated
    if name == "user_tags" and node.data == "among":
        given = [value_of(token, where) for token in members(node.children[2])]
        return lambda row: None if not row[name] else any(tag in row[name].split("|") for tag in given) != negated
    if node.data == "like":
        is_like = _like(characters(node.children[2], where, "\\\"'%_"))
        return lambda row: None if (value := row[name]) is None else is_like(value) != negated
    wanted = [value_of(token, where) for token in members(node.children[2])]
    beside_missing = True if "" in wanted else None

    def is_member(row: Mapping[str, Any]) -> bool | None:
        found = beside_missing if (value := row[name]) is None else value in wanted
        return None if found is None else found != negated

    return is_member


def _joined(parts: list[Callable[[Mapping[str, Any]], bool | None]], *, decisive: bool) -> Any:
    """``or`` where true is decisive, ``and`` where false is; every part is computed, as errors of any count."""

    def joined(row: Mapping[str, Any]) -> bool | None:
        results = [part(row) for part in parts]
        return decisive if decisive in results else None if None in results else not decisive

    return joined


def _compared(pair: list[Any], sign: str, where: str) -> Callable[[Mapping[str, Any]], bool | None]:
    if "tags" in map(str, pair):
        (word,) = (value_of(node, where) for node in pair if str(node) != "tags")
        return lambda row: _has(row, word) == (sign == "==")
    if [str(node) for node in pair].count("user_tags") == 1 and sign in {"==", "!="}:
        (tag,) = (value_of(node, where) for node in pair if str(node) != "user_tags")
        if tag:
            return lambda row: (tag in row["user_tags"].split("|")) == (sign == "==") if row["user_tags"] else None
    left, right = (_operand(node, where) for node in pair)
    compare, equality = _SIGNS[sign], sign in {"==", "!="}

    def compared(row: Mapping[str, Any]) -> bool | None:
        one, other = _as_times(left(row), right(row))
        if equality and "" in (one, other):  # a text without characters is missing
            return (one in (None, "") and other in (None, "")) == (sign == "==")
        return None if one is None or other is None else compare(one, other)

    return compared


def _as_times(one: Any, other: Any) -> tuple[Any, Any]:
    """Two values of a comparison; the text of a date beside a number becomes nanoseconds since the epoch."""
    if isinstance(one, int) and isinstance(other, str):
        other = round(np.datetime64(other, "ns").astype(int))
    elif isinstance(one, str) and isinstance(other, int):
        one = round(np.datetime64(one, "ns").astype(int))
    return one, other


def _has(row: Mapping[str, Any], word: Any) -> bool:
    """Whether a row has a tag of this word, with a probability of at least a fifth."""
    numbers = find_word(word)
    return any(tag // LEVELS in numbers and probability_of(tag % LEVELS) > 0.2 for tag in from_column(row[TAG_COLUMN]))


def _operand(node: Any, where: str) -> Callable[[Mapping[str, Any]], Any]:
    if getattr(node, "data", None) == "arithmetic":
        left, sign, right = node.children
        one, other, compute = _operand(left, where), _operand(right, where), _SIGNS[str(sign)]

        def computed(row: Mapping[str, Any]) -> Any:
            values = one(row), other(row)
            return None if None in values else compute(*values)

        return computed
    if getattr(node, "type", None) == "NAME":
        return itemgetter(str(node))
    value = value_of(node, where)
    return lambda _: value


def _like(pattern: list[tuple[str, bool]]) -> Callable[[str], bool]:
    """Whether a text is like a pattern: between ``%`` the leftmost place is taken, so nothing is tried twice."""
    pieces: list[list[str]] = [[]]
    for char, escaped in pattern:
        if char == "%" and not escaped:
            pieces.append([])
        else:
            pieces[-1].append("." if char == "_" and not escaped else re.escape(char))
    parts = [re.compile("".join(piece), re.S) for piece in pieces]
    first, last_length = len(pieces[0]), len(pieces[-1])
    if len(parts) == 1:
        return lambda text: parts[0].fullmatch(text) is not None

    def matches(text: str) -> bool:
        position, last = first, len(text) - last_length
        if position > last or not parts[0].match(text) or not parts[-1].match(text, last):
            return False
        for part in parts[1:-1]:
            if (found := part.search(text, position, last)) is None:
                return False
            position = found.end()
        return True

    return matches
