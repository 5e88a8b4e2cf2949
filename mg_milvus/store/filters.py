"""Filter expressions: writing values into them safely, and the checks a user's filter passes before Milvus gets it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mg_milvus.errors import FilterError

if TYPE_CHECKING:
    from collections.abc import Sequence

Filter = str | Mapping[str, object]
"""A condition as text, or as values of columns that all hold; see ``filter_text``."""

_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|["']""", re.DOTALL)
"""A string literal or an unclosed quote; reads each character at most twice."""
_ABOVE_ZERO = r"(?:0*+[1-9]\d*+(?:\.\d*+)?|\d*+\.0*+[1-9]\d*+)(?![\w.])"
_MAX_LENGTH = 1 << 20
"""Characters of a filter; a list of 20,000 ids has 700,000."""
_MAX_DEPTH = 100
"""Nested brackets and `not`: Milvus parses both recursively."""
_MAX_TOKENS = 10_000
"""Words and signs outside of lists. Milvus Lite's process crashes at 50,000 brackets or comparisons joined by `or`."""
_LIST = re.compile(r"\[[^\[\]]*+\]")
_TOKENS = re.compile(r"\w+|\S")
_OPENING, _CLOSING, _UNARY = frozenset("(["), frozenset(")]"), frozenset({"not", "!", "-", "+", "~"})
_EXCERPT = 200
"""Characters of a filter that messages quote."""
_DIVISION = re.compile(rf"[/%]\s*+(?!{_ABOVE_ZERO})")


def literal(text: str) -> str:
    """Quote text as a string literal of a Milvus filter.

    Raises:
        FilterError: the text holds a line break, which no literal can express on Milvus Lite.
    """
    if "\n" in text or "\r" in text:
        raise FilterError(f"a filter cannot hold a line break, got {text!r}: use `like` with `_` in its place")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def filter_text(given: Filter | None) -> str:
    """A filter as text; empty for None and for no condition.

    Args:
        given: text, or column -> what its value is: the value itself, None for a missing one, a list or set of several,
            ``(sign, value)`` with one of ``_SIGNS``, or a tuple of such pairs, which all hold:
            ``{"category": "shoes", "price": ("<", 40)}``.

    Raises:
        FilterError: a key is no name, or a value none that a column holds.
    """
    if given is None or isinstance(given, str):
        return given or ""
    if not isinstance(given, Mapping):
        raise FilterError(f"a filter is text or a dictionary of values, got {excerpt(repr(given))}")
    return " and ".join(f"({_condition(column, value)})" for column, value in given.items())


def _condition(column: object, value: object) -> str:
    if not isinstance(column, str) or not re.fullmatch(r"[A-Za-z_]\w*", column):
        raise FilterError(f"the keys of a filter are names of columns, got {excerpt(repr(column))}")
    if isinstance(value, tuple) and value and all(isinstance(pair, tuple) for pair in value):
        return " and ".join(_condition(column, pair) for pair in value)
    sign, operand = "==", value
    if isinstance(value, tuple):
        if len(value) != 2 or value[0] not in _SIGNS:
            raise FilterError(f"{column}: expected a pair of one of {' '.join(_SIGNS)} and a value, got {value!r:.100}")
        sign, operand = value
    if isinstance(operand, list | set | frozenset):
        signs = {"==": "in", "in": "in", "!=": "not in", "not in": "not in"}
        if sign not in signs:
            raise FilterError(f"{column}: {sign} compares with one value, got {excerpt(repr(operand))}")
        return f"{column} {signs[sign]} [{', '.join(_value(column, each) for each in operand)}]"
    if operand is None and sign in {"==", "!="}:
        return f"{column} is {'not ' if sign == '!=' else ''}null"
    if sign in {"in", "not in"}:
        raise FilterError(f"{column}: {sign} takes a list of values, got {excerpt(repr(operand))}")
    return f"{column} {sign} {_value(column, operand)}"


def _value(column: str, value: object) -> str:
    value = value.item() if hasattr(value, "item") else value  # numpy's
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise FilterError(f"{column}: expected a text, a finite number, True or False, got {excerpt(repr(value))}")


_SIGNS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in", "like", "not like")


def among(ids: Sequence[str]) -> str:
    """Return the filter that matches these ids."""
    return f"id in [{','.join(map(literal, ids))}]"


def validate(where: str | None, *, lite: bool) -> str:
    """Check a user's filter before it is sent to Milvus.

    Milvus Lite 2.5.1 crashes at a division by zero, and waits until the timeout for the values of a template.

    Args:
        where: the filter, or None.
        lite: whether it is for Milvus Lite.

    Returns:
        The filter; empty for None.

    Raises:
        FilterError: too long, too deeply nested, an unclosed quote, a template, or (Lite) a division by anything but
            a number above 0.
    """
    unquoted = blank_literals(where or "")
    if "{" in unquoted or "}" in unquoted:
        raise FilterError(
            f"a filter takes no {{template}}, got {excerpt(where)!r}: write the value itself, text in quotes"
        )
    if lite and _DIVISION.search(unquoted):
        raise FilterError(
            f"a filter divides by numbers above 0 only, got {excerpt(where)!r}: write the number behind / or %"
        )
    return where or ""


def blank_literals(where: str) -> str:
    """Replace each string literal of a filter by ``''``, so that what remains is syntax.

    Raises:
        FilterError: the filter is too long, too deeply nested, or has an unclosed quote.
    """
    if len(where) > _MAX_LENGTH:
        raise FilterError(f"a filter has at most {_MAX_LENGTH:,} characters, got {len(where):,}: split it")

    def closed(match: re.Match[str]) -> str:
        if len(match[0]) == 1:
            raise FilterError(f"a filter has a quote that is not closed: {excerpt(where[match.start() :])!r}")
        return "''"

    unquoted = _QUOTED.sub(closed, where)
    depth = signs = deepest = 0
    tokens = _TOKENS.findall(unquoted)
    if (outside := len(_TOKENS.findall(_LIST.sub("", unquoted)))) > _MAX_TOKENS:
        raise FilterError(
            f"a filter has at most {_MAX_TOKENS:,} words and signs outside of [lists], got {outside:,}: "
            f"{excerpt(where)!r}; write `in [...]` for many values"
        )
    for token in tokens:
        if token in _OPENING:
            depth += 1
        elif token.lower() in _UNARY:
            signs += 1
        else:
            depth, signs = depth - (token in _CLOSING), 0
        deepest = max(deepest, depth + signs)
    if deepest > _MAX_DEPTH:
        raise FilterError(
            f"a filter has at most {_MAX_DEPTH} brackets and `not` within each other, got {deepest:,}: "
            f"{excerpt(where)!r}"
        )
    return unquoted


def excerpt(where: str | None) -> str:
    """Shorten a filter for messages."""
    text = where or ""
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + " …"


def patterns(where: str) -> list[str]:
    """Return the literals that follow each ``like`` of a filter, as written; ``""`` where something else follows."""
    found, begin = [], 0
    for match in _QUOTED.finditer(where):
        between = where[begin : match.start()].lower()
        found += [""] * (between.count("like") - 1) + [match[0][1:-1]] * ("like" in between)
        begin = match.end()
    return found + [""] * where[begin:].lower().count("like")
