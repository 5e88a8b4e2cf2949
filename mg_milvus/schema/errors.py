"""What is wrong with a schema, in sentences: pydantic's errors turned into place, value got and value expected."""

from __future__ import annotations

import datetime
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_core import InitErrorDetails, PydanticCustomError

from mg_milvus.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pydantic_core import ErrorDetails


Location = tuple[int | str, ...]
"""Keys and list positions from the root to a value: ("granularities", 1, "bits")."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    location: Location
    sentence: str


def written(location: Location) -> str:
    """Write a location as people do: ``granularities[1].bits``; empty for the root."""
    parts = (f"[{p}]" if isinstance(p, int) else f".{p if p.isidentifier() else shown(p)}" for p in location)
    return "".join(parts).removeprefix(".")


def suggestion(word: str, valid: Iterable[str]) -> str:
    """``did you mean 'bits'?``, or the valid words when none is near."""
    by_folded = {v.casefold(): v for v in valid}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return f"did you mean '{by_folded[near[0]]}'?" if near else f"expected one of {', '.join(by_folded.values())}"


def shown(value: object) -> str:
    """Show a value as the user wrote it, shortened; lists and mappings by kind only."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    if isinstance(value, datetime.date):
        return f"the date {value}"
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", tuple: "a list", bytes: "binary data"}
    if kind := kinds.get(type(value)):
        return kind
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def refused(sentence: str) -> PydanticCustomError:
    """Make the exception a field validator raises; ``explain`` gives the sentence back."""
    return PydanticCustomError("schema", "{sentence}", {"sentence": sentence})


def refused_all(title: str, problems: Iterable[Problem]) -> ValidationError:
    """Make the exception a model validator raises for several problems, each at its own place."""
    errors = [InitErrorDetails(type=refused(p.sentence), loc=p.location, input=None) for p in problems]
    return ValidationError.from_exception_data(title, errors)


_EXPECTED: dict[str, str] = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a mapping (lines of 'key: value')",
    "finite_number": "a finite number",
    "string_unicode": "text without lone surrogates",
    "string_too_short": "at least {min_length} character(s)",
    "string_pattern_mismatch": "a name: letters, digits and underscores, not starting with a digit, at most 200",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "multiple_of": "a multiple of {multiple_of}",
}


def _bounded_length(ctx: Mapping[str, Any]) -> str:
    bound = f"at least {ctx['min_length']}" if "min_length" in ctx else f"at most {ctx['max_length']}"
    return f"got {ctx['actual_length']} items, expected {bound}"


def _literal(value: object, ctx: Mapping[str, Any]) -> str:
    # pydantic writes the choices as "'auto', 'BIN_FLAT' or 'HNSW'".
    choices = [c.strip("'") for c in str(ctx["expected"]).replace(" or ", ", ").split(", ")]
    if isinstance(value, str) and "did you mean" in (hint := suggestion(value, choices)):
        return f"got {shown(value)}, expected one of {', '.join(choices)}; {hint}"
    return f"got {shown(value)}, expected {'one of ' if len(choices) > 1 else ''}{', '.join(choices)}"


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    for part in location:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            kinds = (annotation, *get_args(annotation))
            model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return model


def _sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    kind, value, location = error["type"], error["input"], error["loc"]
    ctx = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in error.get("ctx", {}).items()}
    special: dict[str, Callable[[], str]] = {
        "schema": lambda: str(ctx["sentence"]),
        "missing": lambda: "is missing; it has no default",
        "extra_forbidden": lambda: (
            f"unknown key; {suggestion(str(location[-1]), _model_at(model, location[:-1]).model_fields)}"
        ),
        "literal_error": lambda: _literal(value, ctx),
        "too_short": lambda: _bounded_length(ctx),
        "too_long": lambda: _bounded_length(ctx),
    }
    if kind in special:
        return special[kind]()
    if kind not in _EXPECTED:
        return error["msg"]
    expected = f"expected {_EXPECTED[kind].format(**ctx)}"
    if value is None:
        return f"has no value, {expected}; remove the key to take the default"
    quotes = "; put it in quotes" if kind == "string_type" and not isinstance(value, dict | list) else ""
    return f"got {shown(value)}, {expected}{quotes}"


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """List the problems of a failed validation, in the order of the model's fields.

    Args:
        error: what pydantic raised.
        model: the model that was validated; its fields are the valid names.
    """
    found = error.errors(include_url=False)
    places = [e["loc"] for e in found]
    problems = []
    for e in found:
        location = e["loc"]
        # A list whose items are all wrong is empty to pydantic, and so "too short" as well.
        if e["type"] == "too_short" and any(p != location and p[: len(location)] == location for p in places):
            continue
        problems.append(Problem(location, _sentence(e, model)))
    return problems


class _Explaining(ModelMetaclass):
    """Makes ``Granularity(bits=7)`` in Python raise a ``SchemaError``; validating plain data does not come by here."""

    def __call__(cls: type[Any], *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - this is a metaclass
        try:
            return type.__call__(cls, *args, **kwargs)
        except ValidationError as error:
            problems = [f"{cls.__name__}.{written(p.location)}: {p.sentence}" for p in explain(error, cls)]
            raise SchemaError("\n".join(problems)) from error


class Model(BaseModel, metaclass=_Explaining):
    """The base of the schema's parts: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
