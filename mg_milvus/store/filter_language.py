"""The language of filters: read whole or not at all, checked against the columns, and written anew for Milvus.

Milvus Lite ignores what it does not understand, and some patterns end its process; so it gets no text of a user.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from fractions import Fraction
from functools import cache
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING, Any

from mg_milvus.errors import FilterError
from mg_milvus.files import one_line
from mg_milvus.store.filters import literal, validate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lark import Lark, Token, Tree

_GRAMMAR = r"""
?start: or_
?or_: and_ (_OR and_)*
?and_: not_ (_AND not_)*
?not_: _NOT not_ -> negation
     | comparison
?comparison: sum
     | sum (COMPARE sum)+ -> compare
     | sum [NOT] _IN "[" [value ("," value)* [","]] "]" -> among
     | sum [NOT] _LIKE STRING -> like
     | sum _IS [NOT] _NULL -> null
?sum: product
     | sum SIGN product -> arithmetic
?product: unary
     | product FACTOR unary -> arithmetic
?unary: atom
     | SIGN unary -> sign
?value: NUMBER | STRING | BOOL | SIGN value -> sign
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
NUMBER: /(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?(?![\w.])/
STRING: /"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/s
%ignore /\s+/
"""
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_NEGATED = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_DIGITS, _AROUND, _INT = 100, 60, 2**63


@cache
def _parser() -> Lark:
    from lark import Lark

    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True)


def render(where: str | None, types: Mapping[str, str], *, lite: bool) -> str:
    """Write a filter anew, as Milvus Lite or a server reads it.

    Args:
        where: the filter, or None.
        types: column -> "string", "int", "float" or "bool".
        lite: whether it is for Milvus Lite.

    Returns:
        The same condition; empty for an empty filter.

    Raises:
        FilterError: it is not in the language, names no column, or compares different types; the place is marked.
    """
    text = validate(where, lite=lite)
    if not text.strip():
        return ""
    return _Writer(text, types, lite).condition(parse(text), positive=True)


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
        reason = "it ends too early" if at >= len(text) else "it cannot be read from here on"
        if isinstance(exc, UnexpectedCharacters) and text[at : at + 1] == "=":
            reason = "write == to compare"
        raise _error(text, at, reason) from None


def _error(text: str, at: int, reason: str) -> FilterError:
    before, after = text[max(0, at - _AROUND) : at], text[at : at + _AROUND]
    return FilterError(one_line(f"filter, character {at + 1}: {reason}: {before} --> {after}", 900))


class _Writer:
    """Writes conditions without ``not``, which Milvus Lite cannot read: negations move down to the comparisons."""

    def __init__(self, text: str, types: Mapping[str, str], lite: bool) -> None:
        self._text, self._types, self._lite = text, types, lite

    def condition(self, node: Any, positive: bool) -> str:
        """One condition, or its negation."""
        kind = getattr(node, "data", None)
        match kind:
            case "or_" | "and_":
                word = " or " if (kind == "or_") == positive else " and "
                return word.join(f"({self.condition(child, positive)})" for child in node.children)
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
                return self._constant(name, negated == positive)
        raise self._refused(node, "a comparison was expected, such as width >= 800")

    def _refused(self, node: Any, reason: str) -> FilterError:
        meta = getattr(node, "meta", node)
        return _error(self._text, getattr(meta, "start_pos", 0) or 0, reason)

    def _constant(self, name: str, value: bool) -> str:
        """A condition on a column that always, or never, holds."""
        match self._types[name]:
            case "string":
                return f'{name} >= ""' if value else f'{name} < ""'
            case "bool":
                return f"{name} == true {'or' if value else 'and'} {name} == false"
        return f"{name} == {name}" if value else f"{name} != {name}"

    def _column(self, node: Any) -> str:
        if getattr(node, "data", None) == "call":
            raise self._refused(node, f"{node.children[0]}() is for array and JSON columns, this collection has none")
        if getattr(node, "type", None) != "NAME":
            raise self._refused(node, "the name of a column was expected")
        name = str(node)
        if name not in self._types:
            near = get_close_matches(name, self._types, n=3, cutoff=0.5)
            names = ", ".join([*near, *(known for known in self._types if known not in near)])
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
            if first == second or self._numeric(first) != self._numeric(second) or "bool" in (
                self._types[first], self._types[second]
            ):  # fmt: skip
                raise self._refused(right, f"{first} cannot be compared with {second}")
            return f"{first} {sign} {second}"
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

    def _numeric(self, name: str) -> bool:
        return self._types[name] in {"int", "float"}

    def _operand(self, node: Any) -> str | tuple[str, str, int] | list[Any]:
        """A column's name, (column, sign, number), or a list of one value."""
        if getattr(node, "data", None) == "arithmetic":
            left, sign, right = node.children
            if "arithmetic" in (getattr(left, "data", None), getattr(right, "data", None)):
                # Not by recursion: a sum may have thousands of terms.
                raise self._refused(node, "Milvus computes one int column and one whole number, such as width % 2 == 0")
            first, second = self._operand(left), self._operand(right)
            if isinstance(first, list) and isinstance(second, str) and str(sign) in "+*":
                first, second = second, first
            whole = isinstance(second, list) and type(second[0]) is int
            if not isinstance(first, str) or self._types[first] != "int" or not whole:
                raise self._refused(node, "Milvus computes one int column and one whole number, such as width % 2 == 0")
            return first, str(sign), second[0]  # type: ignore[index]
        if getattr(node, "type", None) in {"NUMBER", "STRING", "BOOL"} or getattr(node, "data", None) == "sign":
            return [self._value(node)]
        return self._column(node)

    def _value(self, node: Any) -> str | int | float | bool:
        if getattr(node, "data", None) == "sign":
            value = self._value(node.children[1])
            if isinstance(value, str | bool):
                raise self._refused(node, "a sign stands before a number")
            return -value if node.children[0] == "-" else value
        match getattr(node, "type", None):
            case "BOOL":
                return node.lower() == "true"
            case "STRING":
                return "".join(char for char, _ in self._characters(node, "\\\"'"))
            case "NUMBER":
                if len(node) > _DIGITS:
                    raise self._refused(node, f"a number has at most {_DIGITS} digits")
                number = int(node) if node.isdigit() else float(node)
                if not isfinite(number):
                    raise self._refused(node, "the number is too large")
                return number
        raise self._refused(node, "a value was expected")

    def _characters(self, node: Any, escaped: str) -> list[tuple[str, bool]]:
        """The characters of a string literal, and whether each was written with a backslash."""
        found = []
        for match in re.finditer(r"\\(.)|.", node[1:-1], re.DOTALL):
            char = match[1] if match[1] is not None else match[0]
            if match[1] is not None and char not in escaped:
                place = (node.start_pos or 0) + 1 + match.start()
                raise _error(self._text, place, f"the escape \\{char} is not known, write \\\\ for a backslash")
            found.append((char, match[1] is not None))
        return found

    def _column_and_value(self, node: Any, name: str, sign: str, value: Any) -> str:
        kind = self._types[name]
        fits = {"string": str, "bool": bool}.get(kind, (int, float))
        if not isinstance(value, fits) or (kind != "bool" and isinstance(value, bool)):
            raise self._refused(node, f"column {name} holds a {kind}, it cannot be compared with {value!r:.80}")
        match kind:
            case "string":
                return f"{name} {sign} {literal(value)}"
            case "bool":
                if sign not in {"==", "!="}:
                    raise self._refused(node, f"column {name} holds a bool, compare it with == or !=")
                return f"{name} {sign} {str(value).lower()}"
            case "float":
                number = float(value) if abs(value) < 1e308 else 1e308 if value > 0 else -1e308
                return f"{name} {sign} {number!r}"
        return self._whole(name, sign, Fraction(value))

    def _whole(self, name: str, sign: str, value: Fraction) -> str:
        """An int column beside any number, in whole numbers of 64 bits."""
        if value.denominator != 1:
            if sign in {"==", "!="}:
                return self._constant(name, sign == "!=")
            value = Fraction(floor(value) if sign in {"<=", ">"} else ceil(value))
        if not -_INT < value < _INT:
            return self._constant(name, sign == "!=" or ((sign[0] == "<") == (value > 0) and sign != "=="))
        return f"{name} {sign} {int(value)}"

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
        return f"{name} {operation} {number} {sign} {value}"

    def _among(self, node: Any, positive: bool) -> str:
        column, negated, *values = node.children
        name, positive = self._column(column), positive == (negated is None)
        sign, word = ("==", " or ") if positive else ("!=", " and ")
        members = [value for value in values if value is not None]
        if not members:
            return self._constant(name, not positive)
        parts = [self._column_and_value(value, name, sign, self._value(value)) for value in members]
        if any(not part.startswith(f"{name} {sign} ") for part in parts) or self._types[name] == "bool":
            return word.join(dict.fromkeys(f"({part})" for part in parts))
        written = ", ".join(part.removeprefix(f"{name} {sign} ") for part in parts)
        return f"{name} {'in' if positive else 'not in'} [{written}]"

    def _like(self, node: Any, positive: bool) -> str:
        column, negated, token = node.children
        name, positive = self._column(column), positive == (negated is None)
        if self._types[name] != "string":
            raise self._refused(column, f"like is for texts, column {name} holds a {self._types[name]}")
        pattern = self._characters(token, "\\\"'%_")
        wild = [not escaped and char in "%_" for char, escaped in pattern]
        fixed = "".join(char for (char, _), free in zip(pattern, wild, strict=True) if not free)
        signs = "".join(char for (char, _), free in zip(pattern, wild, strict=True) if free)
        if not signs:
            return f"{name} {'==' if positive else '!='} {literal(fixed)}"
        if set(signs) == {"%"} and not fixed:
            return self._constant(name, positive)
        if set(signs) == {"%"} and not any(wild[: len(fixed)]) and ord(fixed[-1]) not in {0xD7FF, 0x10FFFF, 9, 12}:
            end = literal(
                fixed[:-1] + chr(ord(fixed[-1]) + 1)
            )  # a prefix is a range: escapes in it confuse Milvus Lite
            low, high = f"{name} >= {literal(fixed)}", f"{name} < {end}"
            return f"{low} and {high}" if positive else f"{name} < {literal(fixed)} or {name} >= {end}"
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
        return written if positive else f"not ({written})"
