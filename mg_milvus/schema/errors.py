"""Validation errors of a schema as sentences: location, actual value, expected value."""

from __future__ import annotations

import datetime
import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_core import InitErrorDetails, PydanticCustomError

from mg_milvus.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails


Location = tuple[int | str, ...]
"""Keys and list positions from the root to a value: ("granularities", 1, "bits")."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem and its location."""

    location: Location
    sentence: str


def format_location(location: Location) -> str:
    """Format a location as ``granularities[1].bits``; empty for the root."""
    parts = (f"[{p}]" if isinstance(p, int) else f".{p if p.isidentifier() else format_value(p)}" for p in location)
    return "".join(parts).removeprefix(".")


def suggestion(word: str, valid: Iterable[str]) -> str:
    """Return ``did you mean 'bits'?``, or the list of valid words when none is similar."""
    by_folded = {v.casefold(): v for v in valid}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return f"did you mean '{by_folded[near[0]]}'?" if near else f"expected one of {', '.join(by_folded.values())}"


def format_value(value: object) -> str:
    """Format a value as in YAML, shortened; lists and mappings by their kind only."""
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


def field_error(sentence: str) -> PydanticCustomError:
    """Make the exception that a field validator raises."""
    return PydanticCustomError("schema", "{sentence}", {"sentence": sentence})


def model_error(title: str, problems: Iterable[Problem]) -> ValidationError:
    """Make the exception that a model validator raises for several problems, each with its location."""
    errors = [InitErrorDetails(type=field_error(p.sentence), loc=p.location, input=None) for p in problems]
    return ValidationError.from_exception_data(title, errors)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a mapping (lines of 'key: value')",
    "string_pattern_mismatch": "a name: letters, digits and underscores, not starting with a digit, at most 200",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:g} or less",
}
"""Type of a pydantic error -> the expected value, where pydantic's message is unclear."""


def _sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    match kind:
        case "schema":
            return str(context["sentence"])
        case "missing":
            return "is missing; it has no default"
        case "extra_forbidden":
            *parents, key = error["loc"]
            return f"unknown key; {suggestion(str(key), _model_at(model, parents).model_fields)}"
    # pydantic writes "Input should be a multiple of 8" or "Tuple should have at least 1 item after validation, not 0".
    own = re.sub(r"^\w+ should (be |have )?| after validation", "", error["msg"])
    expected = "expected " + _EXPECTED.get(kind, own).format(**context)
    if value is None:
        return f"has no value, {expected}; remove the key to take the default"
    if kind == "literal_error" and isinstance(value, str):
        near = suggestion(value, re.findall("'([^']*)'", context["expected"]))
        return f"got {format_value(value)}, {expected}" + (f"; {near}" if near.startswith("did you mean") else "")
    quotes = "; put it in quotes" if kind == "string_type" and not isinstance(value, dict | list) else ""
    return f"got {format_value(value)}, {expected}{quotes}"


def _model_at(model: type[BaseModel], keys: Iterable[int | str]) -> type[BaseModel]:
    for key in keys:
        if isinstance(key, str):
            annotation = model.model_fields[key].annotation
            kinds = (annotation, *get_args(annotation))
            model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return model


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """List the problems of a failed validation of ``model``, in the order of its fields."""
    details = error.errors(include_url=False)
    # pydantic counts valid items only, so a list whose items are all invalid is also reported as too short.
    parents = {e["loc"][:length] for e in details for length in range(len(e["loc"]))}
    return [
        Problem(e["loc"], _sentence(e, model)) for e in details if e["type"] != "too_short" or e["loc"] not in parents
    ]


class _RaisesSchemaError(ModelMetaclass):
    """Makes ``Granularity(bits=7)`` raise a ``SchemaError``; nested plain data is validated without this call."""

    def __call__(cls: type[Any], *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - this is a metaclass
        try:
            return type.__call__(cls, *args, **kwargs)
        except ValidationError as error:
            problems = [f"{cls.__name__}.{format_location(p.location)}: {p.sentence}" for p in problems_of(error, cls)]
            raise SchemaError("\n".join(problems)) from error


class Model(BaseModel, metaclass=_RaisesSchemaError):
    """Base of the schema's models: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
