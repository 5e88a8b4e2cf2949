"""A small interpreter of Milvus filters, for the in-memory store.

The subset is: comparisons ``== != < <= > >=`` of a column with a number, a string or true/false, ``in [...]``,
``not in [...]``, ``like "prefix%"`` (``%`` any text, ``_`` any character), ``and or not``, parentheses.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import FilterError
from mg_milvus.store.filters import blank_literals, excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Predicate = Callable[[Mapping[str, Any]], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<number>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)
    |(?P<word>[A-Za-z_]\w*)|(?P<sign>==|!=|<=|>=|&&|\|\||[<>!()\[\],]))""",
    re.VERBOSE,
)
_DIGITS = 100
"""Of a number; those of 64 bits have 19."""
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_WORDS = {"and", "or", "not", "in", "like", "true", "false"}
_SYNONYMS = {"&&": "and", "||": "or", "!": "not"}
_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "int": (int, float), "float": (int, float), "bool": (bool,)}


def _like(pattern: str) -> Callable[[str], bool]:
    """Whether a text is like a pattern: between ``%`` the leftmost place is taken, so nothing is tried twice."""
    parts = [re.compile("".join("." if c == "_" else re.escape(c) for c in part), re.S) for part in pattern.split("%")]
    lengths = [len(part) for part in pattern.split("%")]
    if len(parts) == 1:
        return lambda text: parts[0].fullmatch(text) is not None

    def matches(text: str) -> bool:
        position, last = lengths[0], len(text) - lengths[-1]
        if position > last or not parts[0].match(text) or not parts[-1].match(text, last):
            return False
        for part in parts[1:-1]:
            if (found := part.search(text, position, last)) is None:
                return False
            position = found.end()
        return True

    return matches


def compile_filter(where: str | None, columns: Mapping[str, str]) -> Predicate:
    """Turn a filter into a function of one record; no filter is always true.

    Args:
        where: the expression, or None.
        columns: name -> "string", "int", "float" or "bool".

    Raises:
        FilterError: not in the subset, an unknown column, or a comparison of different types.
    """
    if not where:
        return lambda _: True
    blank_literals(where)
    return _Parser(where, columns).parse()


class _Parser:
    """Recursive descent: or, and, not, comparison."""

    def __init__(self, where: str, columns: Mapping[str, str]) -> None:
        self._where, self._columns = where, columns
        self._tokens = self._tokenise()
        self._next = 0

    def parse(self) -> Predicate:
        predicate = self._or()
        if self._next != len(self._tokens):
            raise self._error(f"'{excerpt(self._peek())}' was not expected")
        return predicate

    def _error(self, reason: str) -> FilterError:
        return FilterError(f"filter `{excerpt(self._where)}`: {reason}; columns are {', '.join(self._columns)}")

    def _tokenise(self) -> list[tuple[str, str]]:
        tokens, position, text = [], 0, self._where.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"cannot read `{excerpt(text[position:])}`")
            kind, value = str(match.lastgroup), match[str(match.lastgroup)]
            if kind == "word" and value.lower() in _WORDS:
                kind, value = "sign", value.lower()
            tokens.append((kind, _SYNONYMS.get(value, value) if kind == "sign" else value))
            position = match.end()
        return tokens

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else "the end"

    def _take(self) -> tuple[str, str]:
        if self._next == len(self._tokens):
            raise self._error("it ends too early")
        self._next += 1
        return self._tokens[self._next - 1]

    def _accept(self, sign: str) -> bool:
        if self._next < len(self._tokens) and self._tokens[self._next] == ("sign", sign):
            self._next += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._error(f"'{sign}' was expected, got '{excerpt(self._peek())}'")

    def _or(self) -> Predicate:
        parts = [self._and()]
        while self._accept("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else lambda record: any(part(record) for part in parts)

    def _and(self) -> Predicate:
        parts = [self._not()]
        while self._accept("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else lambda record: all(part(record) for part in parts)

    def _not(self) -> Predicate:
        if self._accept("not"):
            if self._peek() not in {"(", "not"}:  # as Milvus: `not` binds tighter than a comparison
                raise self._error("put what follows `not` in parentheses")
            inner = self._not()
            return lambda record: not inner(record)
        if self._accept("("):
            inner = self._or()
            self._expect(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        kind, value = self._take()
        if kind != "word":
            constant = self._constant(kind, value)
            sign = self._comparison_sign()
            column = self._column(*self._take())
            return self._compare(column, _MIRRORED[sign], constant)
        column = self._column(kind, value)
        if self._accept("like"):
            return self._like(column)
        if self._accept("in"):
            members = self._members(column)
            return lambda record: record[column] in members
        if self._accept("not"):
            self._expect("in")
            members = self._members(column)
            return lambda record: record[column] not in members
        sign = self._comparison_sign()
        return self._compare(column, sign, self._constant(*self._take()))

    def _comparison_sign(self) -> str:
        _, sign = self._take()
        if sign not in _COMPARISONS:
            raise self._error(f"a comparison was expected, got '{sign}'")
        return sign

    def _compare(self, column: str, sign: str, constant: Any) -> Predicate:
        self._check_type(column, constant)
        compare = _COMPARISONS[sign]
        return lambda record: compare(record[column], constant)

    def _like(self, column: str) -> Predicate:
        pattern = self._constant(*self._take())
        self._check_type(column, pattern)
        if not isinstance(pattern, str):
            raise self._error("`like` needs a string column and a string")
        matches = _like(pattern)
        return lambda record: matches(record[column])

    def _members(self, column: str) -> set[Any]:
        members: set[Any] = set()
        self._expect("[")
        while not self._accept("]"):
            if members:
                self._expect(",")
            member = self._constant(*self._take())
            self._check_type(column, member)
            members.add(member)
        return members

    def _column(self, kind: str, value: str) -> str:
        if kind != "word" or value not in self._columns:
            raise self._error(f"there is no column '{excerpt(value)}'")
        return value

    def _constant(self, kind: str, value: str) -> Any:
        if kind == "text":
            return re.sub(r"\\(.)", self._unescape, value[1:-1])
        if kind == "number":
            if len(value) > _DIGITS:
                raise self._error(f"the number {excerpt(value)} has more than {_DIGITS} digits")
            return int(value) if re.fullmatch(r"[-+]?\d+", value) else float(value)
        if value in {"true", "false"}:
            return value == "true"
        raise self._error(f"a value was expected, got '{excerpt(value)}'")

    def _unescape(self, match: re.Match[str]) -> str:
        if match[1] not in "\\\"'":
            raise self._error(f"the escape `{match[0]}` is not known")
        return match[1]

    def _check_type(self, column: str, constant: Any) -> None:
        expected = _TYPES[self._columns[column]]
        if not isinstance(constant, expected) or (isinstance(constant, bool) and bool not in expected):
            raise self._error(
                f"column {column} holds a {self._columns[column]}, it cannot be compared with {excerpt(repr(constant))}"
            )
