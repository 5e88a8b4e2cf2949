"""The public surface: ``__all__``, docs/api.md, the signatures and the docstrings name the same things."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import pytest

import mg_milvus
from mg_milvus import errors

API = Path(__file__).parent.parent / "docs" / "api.md"
ERRORS = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
NAMES = sorted(set(mg_milvus.__all__) - ERRORS - {"__version__"})

INTERNAL = {"Encoded", "Session", "Query", "QueryImage", "Row", "SearchResult", "Settings"}
"""Types in public signatures that only the package itself uses."""


def functions(name: str) -> Iterator[tuple[str, Callable[..., object]]]:
    """A public function, or the public methods and properties of a public class, with their full names."""
    value = getattr(mg_milvus, name)
    if not inspect.isclass(value):
        yield name, value
        return
    for own, member in vars(value).items():
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        plain = plain.fget if isinstance(plain, property) else plain
        plain = plain.func if isinstance(plain, cached_property) else plain
        if not own.startswith("_") and inspect.isfunction(plain):
            yield f"{name}.{own}", plain


def section(docstring: str, title: str) -> list[str]:
    """The names that a section of a Google docstring describes, in order."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    names = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*):", found[1], re.MULTILINE) if found else []
    return [name for line in names for name in line.split(", ")]


def types_of_the_package() -> set[str]:
    """The names of all public classes of the package's modules."""
    trees = (ast.parse(file.read_bytes()) for file in Path(mg_milvus.__file__).parent.rglob("*.py"))
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"}


def test_the_page_documents_what_is_exported() -> None:
    documented = re.findall(r"^::: mg_milvus\.(\w+)$", API.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == set(NAMES) | {"errors"}
    assert set(mg_milvus.__all__) >= ERRORS


@pytest.mark.parametrize("name", NAMES)
def test_everything_public_has_a_docstring(name: str) -> None:
    value = getattr(mg_milvus, name)
    assert value.__doc__, name
    assert not value.__doc__.startswith(f"{name}("), f"{name} has only the docstring that dataclasses make"
    inherited = {"model_config"}
    assert [own for own, member in functions(name) if not member.__doc__ and own not in inherited] == []


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_describe_the_parameters_that_there_are(name: str) -> None:
    for own, function in functions(name):
        described = section(function.__doc__ or "", "Args")
        if described:
            parameters = inspect.signature(function).parameters.values()
            stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
            expected = [stars.get(p.kind, "") + p.name for p in parameters if p.name not in {"self", "cls"}]
            assert described == expected, own


@pytest.mark.parametrize("name", [name for name in NAMES if dataclasses.is_dataclass(getattr(mg_milvus, name))])
def test_docstrings_describe_the_fields_that_there_are(name: str) -> None:
    value = getattr(mg_milvus, name)
    described = section(value.__doc__, "Attributes")
    assert set(described) == {field.name for field in dataclasses.fields(value) if field.name[0] != "_"}


def test_every_option_of_a_query_is_described() -> None:
    described = section(mg_milvus.QueryOptions.__doc__ or "", "Attributes")
    assert described == list(mg_milvus.QueryOptions.__annotations__)


def test_every_type_in_a_public_signature_is_public() -> None:
    own_types = types_of_the_package()
    assert {"ImageIndex", "Hits"} <= own_types
    hidden = {
        f"{own}: {word}"
        for name in NAMES
        for own, function in functions(name)
        for annotation in inspect.get_annotations(function).values()
        for word in re.findall(r"\w+", str(annotation))
        if word in own_types - set(mg_milvus.__all__) - INTERNAL
        and inspect.isclass(function.__globals__.get(word, type))  # not an alias of the same name
    }
    assert sorted(hidden) == []
