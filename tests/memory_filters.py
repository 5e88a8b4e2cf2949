"""Milvus filters for the in-memory store: the tree of a filter, computed row by row.

Conditions are true, false or, beside a missing value, unknown, as in SQL; a row is found where the whole is true.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

from mg_milvus.schema.tags import LEVELS, NO_TAG, TAG_COLUMNS, find_word, probability_of
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
    tree = parse(where)
    return lambda row: _condition(tree, where, row) is True


def _condition(node: Any, where: str, row: Mapping[str, Any]) -> bool | None:
    match node.data:
        case "or_" | "and_":
            parts = {_condition(child, where, row) for child in node.children}
            decisive = node.data == "or_"
            return decisive if decisive in parts else None if None in parts else not decisive
        case "negation":
            part = _condition(node.children[0], where, row)
            return None if part is None else not part
        case "null":
            return (row[str(node.children[0])] is None) == (node.children[1] is None)
        case "compare":
            values, signs = node.children[::2], node.children[1::2]
            compared = {_compared(pair, str(sign), where, row) for *pair, sign in zip(values, values[1:], signs)}  # noqa: B905
            return False if False in compared else None if None in compared else True
    if str(node.children[0]) == "tags":
        words = [value_of(token, where) for token in members(node.children[2])]
        return any(_has(row, word) for word in words) != (node.children[1] is not None)
    value = row[str(node.children[0])]
    negated = node.children[1] is not None
    if node.data == "like":
        return None if value is None else bool(_like(characters(node.children[2], where, "\\\"'%_"))(value)) != negated
    wanted = [value_of(token, where) for token in members(node.children[2])]
    found = (True if "" in wanted else None) if value is None else value in wanted
    return None if found is None else found != negated


def _compared(pair: list[Any], sign: str, where: str, row: Mapping[str, Any]) -> bool | None:
    if "tags" in map(str, pair):
        (word,) = (value_of(node, where) for node in pair if str(node) != "tags")
        return _has(row, word) == (sign == "==")
    left, right = (_operand(node, where, row) for node in pair)
    if "" in (left, right) and sign in {"==", "!="}:  # a text without characters is missing
        return (left in (None, "") and right in (None, "")) == (sign == "==")
    return None if left is None or right is None else _SIGNS[sign](left, right)


def _has(row: Mapping[str, Any], word: Any) -> bool:
    """Whether a row has a tag of this word, with a probability of at least a fifth."""
    stored = [row[column] for column in TAG_COLUMNS if row[column] != NO_TAG]
    return any(tag // LEVELS in find_word(word) and probability_of(tag % LEVELS) > 0.2 for tag in stored)


def _operand(node: Any, where: str, row: Mapping[str, Any]) -> Any:
    if getattr(node, "data", None) == "arithmetic":
        left, sign, right = node.children
        values = _operand(left, where, row), _operand(right, where, row)
        return None if None in values else _SIGNS[str(sign)](*values)
    return row[str(node)] if getattr(node, "type", None) == "NAME" else value_of(node, where)


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
