"""The language of filters: read whole or not at all, checked against the columns, and written anew for Milvus.

Milvus Lite ignores what it does not understand, and some patterns end its process; so it gets no text of a user.

A comparison with a missing value never holds, negated or not; ``is null`` finds it. An empty text is a missing value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from fractions import Fraction
from functools import cache
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING, Any, Literal

from mg_milvus.errors import FilterError, QueryError
from mg_milvus.files import one_line
from mg_milvus.schema.tags import SHOWN, USER_TAGS, condition, find_word, user_tag_pattern
from mg_milvus.store.filters import literal, validate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lark import Lark, Token, Tree

_NUMBER = r"(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?(?![\w.])"
_STRING = r""""(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'"""
_ITEM = rf"(?P<NUMBER>[+-]?\s*+{_NUMBER})|(?P<STRING>{_STRING})|(?P<BOOL>(?:true|false)\b)"
_PLAIN_ITEM = re.sub(r"\?P<\w+>", "?:", _ITEM)
_ITEMS = rf"\[\s*+(?:(?:{_PLAIN_ITEM})\s*+,\s*+)*+"
_GRAMMAR = rf"""
?start: or_
?or_: and_ (_OR and_)*
?and_: not_ (_AND not_)*
?not_: _NOT not_ -> negation
     | comparison
?comparison: sum
     | sum (COMPARE sum)+ -> compare
     | sum [NOT] _IN LIST -> among
     | sum [NOT] _LIKE STRING -> like
     | sum _IS [NOT] _NULL -> null
?sum: product
     | sum SIGN product -> arithmetic
?product: unary
     | product FACTOR unary -> arithmetic
?unary: atom
     | SIGN unary -> sign
?atom: NAME | NUMBER | STRING | BOOL
     | "(" or_ ")"
     | NAME "(" [or_ ("," or_)*] ")" -> call
_OR.3: /or\b|\|\|/i
_AND.3: /and\b|&&/i
_NOT.3: /not\b|!(?!=)/i
NOT.4: /not\b(?=\s+(in|like|null)\b)/i
_IN.3: /in\b/i
_LIKE.3: /like\b/i
_IS.3: /is\b/i
_NULL.3: /null\b/i
BOOL.3: /(true|false)\b/i
COMPARE: "==" | "!=" | "<=" | ">=" | "<" | ">"
SIGN: "+" | "-"
FACTOR: "*" | "/" | "%"
NAME: /[A-Za-z_]\w*/
NUMBER: /{_NUMBER}/
STRING: /{_STRING}/s
LIST: /{_ITEMS}(?:{_PLAIN_ITEM})?+\s*+\]/is
%ignore /\s+/
"""
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_NEGATED = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_DIGITS, _AROUND, _INT = 100, 60, 2**63
LEAST_INT, LEAST_FLOAT = -_INT + 1, -1e308
"""The least numbers that are values; columns hold a lesser one where the value is missing."""
_OF_TAGS = 'tags are compared with words by ==, != and in, such as tags == "dog"'
_NEVER, _ALWAYS = 'id == ""', 'id != ""'


@dataclass(frozen=True, slots=True)
class FilterColumn:
    """A column as filters see it.

    Attributes:
        type: "string", "int", "float", "bool", or "tags": all that an image has, compared with a word for some; as they
            are one number, ``schema.tags.condition`` compares its remainders.
        kind: ``full``: every row has a value; ``sparse``: some have none; ``added``: as that, and kept in the dynamic
            field of the collection, under the key of its name, and ``true`` under that of its name and ``?``.
        time: whether it holds nanoseconds since the epoch, and is compared with dates, too.
    """

    type: str
    kind: Literal["full", "sparse", "added"] = "full"
    time: bool = False


@cache
def _parser() -> Lark:
    from lark import Lark

    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True)


def render(where: str | None, columns: Mapping[str, FilterColumn], *, lite: bool) -> str:
    """Write a filter anew, as Milvus Lite or a server reads it.

    Args:
        where: the filter, or None.
        columns: by name.
        lite: whether it is for Milvus Lite.

    Returns:
        The same condition; empty for an empty filter.

    Raises:
        FilterError: it is not in the language, names no column, or compares different types; the place is marked.
    """
    text = validate(where, lite=lite)
    if not text.strip():
        return ""
    return _Writer(text, columns, lite).condition(parse(text), positive=True)


def both(where: str | None, condition: str) -> str:
    """A filter that holds where a user's filter and another condition hold.

    Raises:
        FilterError: the user's filter is not, as a whole, in the language: it cannot end the brackets around it.
    """
    if not where or not validate(where, lite=False).strip():
        return condition
    parse(where)
    return f"({where}) and ({condition})" if condition else where


def parse(text: str) -> Tree[Token] | Token:
    """The syntax tree of a filter.

    Raises:
        FilterError: the text is not, as a whole, in the language.
    """
    from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

    try:
        return _parser().parse(text)
    except UnexpectedInput as exc:
        at = len(text) if isinstance(exc, UnexpectedToken) and exc.token.type == "$END" else exc.pos_in_stream or 0
        if isinstance(exc, UnexpectedCharacters) and (items := re.compile(_ITEMS, re.I | re.S).match(text, at)):
            at = items.end()
        reason = "it ends too early" if at >= len(text) else "it cannot be read from here on"
        if isinstance(exc, UnexpectedCharacters) and text[at : at + 1] == "=":
            reason = "write == to compare"
        raise _error(text, at, reason) from None


def members(token: Token) -> list[Token]:
    """The values of a list, as tokens."""
    from lark import Token

    start = (token.start_pos or 0) + 1
    return [
        Token(match.lastgroup or "", match[0], start_pos=start + match.start())
        for match in re.compile(_ITEM, re.I | re.S).finditer(token[1:-1])
    ]


def value_of(node: Any, text: str) -> str | int | float | bool:
    """The value that a node of the tree of ``text`` writes.

    Raises:
        FilterError: it is none.
    """
    if getattr(node, "data", None) == "sign":
        value = value_of(node.children[1], text)
        if isinstance(value, str | bool):
            raise _refused(node, text, "a sign stands before a number")
        return -value if node.children[0] == "-" else value
    match getattr(node, "type", None):
        case "BOOL":
            return str(node).lower() == "true"
        case "STRING":
            return "".join(char for char, _ in characters(node, text, "\\\"'"))
        case "NUMBER":
            if len(node) > _DIGITS:
                raise _refused(node, text, f"a number has at most {_DIGITS} digits")
            digits = "".join(str(node).split())
            number = int(digits) if digits.lstrip("+-").isdigit() else float(digits)
            if not isfinite(number):
                raise _refused(node, text, "the number is too large")
            return number
    raise _refused(node, text, "a value was expected")


def characters(node: Token, text: str, escaped: str) -> list[tuple[str, bool]]:
    """The characters of a string literal, and whether each was written with a backslash.

    Raises:
        FilterError: a backslash stands before another character than ``escaped``.
    """
    found = []
    for match in re.finditer(r"\\(.)|.", node[1:-1], re.DOTALL):
        char = match[1] if match[1] is not None else match[0]
        if match[1] is not None and char not in escaped:
            place = (node.start_pos or 0) + 1 + match.start()
            raise _error(text, place, f"the escape \\{char} is not known, write \\\\ for a backslash")
        found.append((char, match[1] is not None))
    return found


def _joined(conditions: Sequence[str], word: str) -> str:
    """Join conditions in pairs: a chain of them is as deep as it is long, and Milvus Lite reads 49 levels."""
    if len(conditions) == 1:
        return conditions[0]
    middle = len(conditions) // 2
    return f"({_joined(conditions[:middle], word)}){word}({_joined(conditions[middle:], word)})"


def _refused(node: Any, text: str, reason: str) -> FilterError:
    meta = getattr(node, "meta", node)
    return _error(text, getattr(meta, "start_pos", 0) or 0, reason)


def _error(text: str, at: int, reason: str) -> FilterError:
    before, after = text[max(0, at - _AROUND) : at], text[at : at + _AROUND]
    return FilterError(one_line(f"filter, character {at + 1}: {reason}: {before} --> {after}", 900))


class _Writer:
    """Writes conditions without ``not``, which Milvus Lite cannot read: negations move down to the comparisons."""

    def __init__(self, text: str, columns: Mapping[str, FilterColumn], lite: bool) -> None:
        self._text, self._columns, self._lite = text, columns, lite

    def condition(self, node: Any, positive: bool) -> str:
        """One condition, or its negation."""
        kind = getattr(node, "data", None)
        match kind:
            case "or_" | "and_":
                word = " or " if (kind == "or_") == positive else " and "
                return _joined([self.condition(child, positive) for child in node.children], word)
            case "negation":
                return self.condition(node.children[0], not positive)
            case "compare":
                return self._chain(node, positive)
            case "among":
                return self._among(node, positive)
            case "like":
                return self._like(node, positive)
            case "null":
                name, negated = self._column(node.children[0]), node.children[1] is not None
                if self._columns[name].type == "tags":
                    raise self._refused(node, f"no image lacks {name}, it may have none; {_OF_TAGS}")
                return self._missing(name) if positive != negated else self._present(name)
        raise self._refused(node, "a comparison was expected, such as width >= 800")

    def _refused(self, node: Any, reason: str) -> FilterError:
        return _refused(node, self._text, reason)

    def _tagged(self, condition: str, positive: bool) -> str:
        """A condition on the columns of tags, which every row has, or its negation."""
        return _Writer(condition, self._columns, self._lite).condition(parse(condition), positive)

    def _words(self, node: Any, words: Iterable[Any]) -> str:
        """The condition that an image has a tag that one of these words stands for."""
        try:
            return condition(frozenset[int]().union(*(find_word(word) for word in words)), SHOWN)
        except QueryError as exc:
            raise self._refused(node, str(exc)) from exc

    def _present(self, name: str) -> str:
        """The condition that a row has a value in this column."""
        column = self._columns[name]
        if column.kind == "full":
            return _ALWAYS
        match column.type:
            case "int":
                return f"{name} >= {LEAST_INT}"
            case "float":
                return f"{name} >= {LEAST_FLOAT!r}"
            case "bool":
                return f"{name} == true or {name} == false" if column.kind == "added" else f"{name} >= 0"
        return f'{name} > ""'

    def _missing(self, name: str) -> str:
        """The condition that a row has no value in this column."""
        column = self._columns[name]
        if column.kind == "full":
            return f'{name} == ""' if column.type == "string" else _NEVER
        if column.kind == "added":
            return f'$meta["{name}?"] != true' if self._lite else f"not exists {name}"
        match column.type:
            case "int":
                return f"{name} < {LEAST_INT}"
            case "float":
                return f"{name} < {LEAST_FLOAT!r}"
            case "bool":
                return f"{name} < 0"
        return f'{name} == ""'

    def _where_present(self, name: str, condition: str) -> str:
        """A condition that may hold for what stands in place of a missing value."""
        return condition if self._columns[name].kind == "full" else f"({condition}) and ({self._present(name)})"

    def _column(self, node: Any) -> str:
        if getattr(node, "data", None) == "call":
            raise self._refused(node, f"{node.children[0]}() is for array and JSON columns, this collection has none")
        if getattr(node, "type", None) != "NAME":
            raise self._refused(node, "the name of a column was expected")
        name = str(node)
        if name not in self._columns:
            near = get_close_matches(name, self._columns, n=3, cutoff=0.5)
            names = ", ".join([*near, *(known for known in self._columns if known not in near)])
            raise self._refused(node, f"there is no column '{name[:60]}', the columns are {names}")
        return name

    def _chain(self, node: Any, positive: bool) -> str:
        values, signs = node.children[::2], [str(sign) for sign in node.children[1::2]]
        if (len(signs) > 1 and len({sign[0] for sign in signs}) > 1) or (len(signs) > 1 and signs[0][0] in "=!"):
            raise self._refused(node, "only comparisons of one direction are chained, such as 1 < width <= 5")
        parts = [
            self._compare(left, sign if positive else _NEGATED[sign], right)
            for left, sign, right in zip(values, signs, values[1:], strict=False)
        ]
        word = " and " if positive else " or "
        return parts[0] if len(parts) == 1 else word.join(f"({part})" for part in parts)

    def _compare(self, left: Any, sign: str, right: Any) -> str:
        first, second = self._operand(left), self._operand(right)
        if isinstance(first, str) and isinstance(second, str):
            return self._two_columns(right, first, sign, second)
        if not isinstance(first, str | tuple):
            if not isinstance(second, str | tuple):
                raise self._refused(left, "a comparison needs a column")
            left, first, second, sign = right, second, first, _MIRRORED[sign]
        if isinstance(second, str | tuple):
            raise self._refused(right, "arithmetic is compared with a number")
        value = second[0]
        if isinstance(first, tuple):
            return self._arithmetic(left, first, sign, value)
        return self._column_and_value(right, first, sign, value)

    def _two_columns(self, node: Any, first: str, sign: str, second: str) -> str:
        types = [self._columns[name].type for name in (first, second)]
        if "tags" in types:
            raise self._refused(node, _OF_TAGS)
        numbers = [kind in {"int", "float"} for kind in types]
        if first == second or numbers[0] != numbers[1] or "bool" in types:
            raise self._refused(node, f"{first} cannot be compared with {second}")
        if "added" in {self._columns[name].kind for name in (first, second)}:
            raise self._refused(node, "Milvus cannot compare a column that was added later with another column")
        return self._where_present(first, self._where_present(second, f"{first} {sign} {second}"))

    def _operand(self, node: Any) -> str | tuple[str, str, int] | list[Any]:
        """A column's name, (column, sign, number), or a list of one value."""
        if getattr(node, "data", None) == "arithmetic":
            left, sign, right = node.children
            wanted = "Milvus computes one int column and one whole number, such as width % 2 == 0"
            if "arithmetic" in (getattr(left, "data", None), getattr(right, "data", None)):
                raise self._refused(node, wanted)  # not by recursion: a sum may have thousands of terms
            first, second = self._operand(left), self._operand(right)
            if isinstance(first, list) and isinstance(second, str) and str(sign) in "+*":
                first, second = second, first
            computed = {"int", "tags"} if sign == "%" else {"int"}
            if not isinstance(first, str) or self._columns[first].type not in computed or not isinstance(second, list):
                raise self._refused(node, wanted)
            if type(second[0]) is not int:
                raise self._refused(node, wanted)
            return first, str(sign), second[0]
        if getattr(node, "type", None) in {"NUMBER", "STRING", "BOOL"} or getattr(node, "data", None) == "sign":
            return [value_of(node, self._text)]
        return self._column(node)

    def _check_type(self, node: Any, name: str, value: Any) -> str:
        """The column's type, which is that of the value.

        Raises:
            FilterError: the value is of another.
        """
        kind = self._columns[name].type
        fits = {"string": str, "bool": bool}.get(kind, (int, float))
        if not isinstance(value, fits) or (kind != "bool" and isinstance(value, bool)):
            raise self._refused(node, f"column {name} holds a {kind}, it cannot be compared with {value!r:.80}")
        return kind

    def _compared(self, node: Any, name: str, value: Any) -> Any:
        """The value that a column is compared with: of a time, nanoseconds for the text of a date."""
        if not self._columns[name].time or not isinstance(value, str):
            return value
        try:
            time = datetime.fromisoformat(value)
        except ValueError as exc:
            wanted = "expected one such as 2026-01-31 or 2026-01-31T18:00"
            raise self._refused(node, f"{value!r:.80} is no date, {wanted}") from exc
        since = time.replace(tzinfo=time.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000

    def _column_and_value(self, node: Any, name: str, sign: str, value: Any) -> str:
        value = self._compared(node, name, value)
        if self._columns[name].type == "tags":
            if sign not in {"==", "!="}:
                raise self._refused(node, _OF_TAGS)
            return self._tagged(self._words(node, [value]), sign == "==")
        match self._check_type(node, name, value):
            case "string":
                if not value and sign in {"==", "!="}:
                    return self._missing(name) if sign == "==" else self._present(name)
                if name == USER_TAGS and sign in {"==", "!="}:
                    return self._tagged(f"{name} like {user_tag_pattern(value)}", sign == "==")
                written = f"{name} {sign} {literal(value)}"
                return written if sign in {"==", ">"} else self._where_present(name, written)
            case "bool":
                if sign not in {"==", "!="}:
                    raise self._refused(node, f"column {name} holds a bool, compare it with == or !=")
                wanted = value == (sign == "==")
                added = self._columns[name].kind == "added"
                return f"{name} == {str(wanted).lower() if added else int(wanted)}"
            case "float":
                return self._number(name, sign, _float(value))
        return self._whole(name, sign, Fraction(value))

    def _number(self, name: str, sign: str, number: str) -> str:
        written = f"{name} {sign} {number}"
        return self._where_present(name, written) if sign in {"<", "<=", "!="} else written

    def _whole(self, name: str, sign: str, value: Fraction) -> str:
        """An int column beside any number, in whole numbers of 64 bits."""
        if value.denominator != 1:
            if sign in {"==", "!="}:
                return self._present(name) if sign == "!=" else _NEVER
            value = Fraction(floor(value) if sign in {"<=", ">"} else ceil(value))
        if not -_INT < value < _INT:
            holds = sign == "!=" or ((sign[0] == "<") == (value > 0) and sign != "==")
            return self._present(name) if holds else _NEVER
        return self._number(name, sign, str(int(value)))

    def _arithmetic(self, node: Any, computed: tuple[str, str, int], sign: str, value: Any) -> str:
        name, operation, number = computed
        if type(value) is not int or max(abs(value), abs(number)) >= 2**62:
            raise self._refused(node, "arithmetic is compared with a whole number of 62 bits")
        if operation in "+-":  # solved, so that all signs of comparison work
            return self._whole(name, sign, Fraction(value - number if operation == "+" else value + number))
        if operation == "*" and number > 0:
            return self._whole(name, sign, Fraction(value, number))
        if sign not in {"==", "!="} or number <= 0:
            raise self._refused(
                node, "products, quotients and remainders by numbers above 0 are compared with == or !="
            )
        if self._columns[name].kind == "added":
            raise self._refused(node, "Milvus cannot divide a column that was added later")
        return self._where_present(name, f"{name} {operation} {number} {sign} {value}")

    def _among(self, node: Any, positive: bool) -> str:
        column, negated, listed = node.children
        name, positive = self._column(column), positive == (negated is None)
        if self._columns[name].type == "tags":
            words = [value_of(token, self._text) for token in members(listed)]
            return self._tagged(self._words(listed, words), positive) if words else _NEVER if positive else _ALWAYS
        if name == USER_TAGS and (tags := [value_of(token, self._text) for token in members(listed)]):
            wanted = " or ".join(f"{name} like {user_tag_pattern(tag)}" for tag in tags if isinstance(tag, str))
            return self._tagged(wanted, positive) if wanted else _NEVER
        column, written, empty = self._columns[name], [], False
        for token in members(listed):
            value: Any = self._compared(token, name, value_of(token, self._text))
            match self._check_type(token, name, value):
                case "string":
                    empty |= not value
                    written += [literal(value)] if value else []
                case "bool":
                    written.append(str(value).lower() if column.kind == "added" else str(int(value)))
                case "float":
                    written.append(_float(value))
                case "int":
                    written += [str(int(value))] if value == int(value) and -_INT < value < _INT else []
        found = f"{name} {'in' if positive else 'not in'} [{', '.join(dict.fromkeys(written))}]"
        if positive:
            parts = [found] * bool(written) + [self._missing(name)] * empty
            return " or ".join(parts) or _NEVER
        return self._where_present(name, found) if written else self._present(name)

    def _like(self, node: Any, positive: bool) -> str:
        column, negated, token = node.children
        name, positive = self._column(column), positive == (negated is None)
        if self._columns[name].type == "tags":
            raise self._refused(column, _OF_TAGS)
        if self._columns[name].type != "string":
            raise self._refused(column, f"like is for texts, column {name} holds a {self._columns[name].type}")
        pattern = characters(token, self._text, "\\\"'%_")
        wild = [not escaped and char in "%_" for char, escaped in pattern]
        fixed = "".join(char for (char, _), free in zip(pattern, wild, strict=True) if not free)
        signs = "".join(char for (char, _), free in zip(pattern, wild, strict=True) if free)
        if not signs:
            return self._column_and_value(token, name, "==" if positive else "!=", fixed)
        if set(signs) == {"%"} and not fixed:
            return self._present(name) if positive else _NEVER
        if set(signs) == {"%"} and not any(wild[: len(fixed)]) and ord(fixed[-1]) not in _WITHOUT_NEXT:
            # A prefix is a range: escapes in it confuse Milvus Lite.
            low, end = literal(fixed), literal(fixed[:-1] + chr(ord(fixed[-1]) + 1))
            if positive:
                return f"{name} >= {low} and {name} < {end}"
            return self._where_present(name, f"{name} < {low} or {name} >= {end}")
        special = set(fixed) & set("%_\\")
        if self._lite and (not fixed or not positive or (special and not wild[0])):
            raise self._refused(
                token,
                "Milvus Lite can do this with neither a negated pattern, one of wildcards only, nor an escape in one "
                "that does not begin with %",
            )
        escaped = ("\\" + char if not free and char in "%_\\" else char
                   for (char, _), free in zip(pattern, wild, strict=True))  # fmt: skip
        written = f"{name} like {literal(''.join(escaped))}"
        return written if positive else self._where_present(name, f"not ({written})")


_WITHOUT_NEXT = {0xD7FF, 0x10FFFF, 9, 12}
"""Characters whose next one is none, or a line end, which no literal holds."""


def _float(value: float) -> str:
    """A number as text, within those that columns hold."""
    return repr(float(max(LEAST_FLOAT, min(-LEAST_FLOAT, value))))
