"""Schemas as YAML text, with line numbers in errors; the presets."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from mg_milvus.errors import SchemaError
from mg_milvus.files import open_plain
from mg_milvus.schema.errors import Model, format_location, format_value, problems_of, suggestion

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import BinaryIO

    from mg_milvus.schema.errors import Location


M = TypeVar("M", bound=Model)

_MAX_BYTES = 64 * 1024
"""Size of the largest file that is read."""

_MAX_DEPTH = 16
"""Most nested lists and mappings; a schema needs three levels."""

_MAX_PROBLEMS = 20
"""Most problems in one message; a file that is not a schema at all has thousands."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset({"null", "bool", "int", "float", "str", "timestamp"})

_JSON_SCHEMA = "mgm.schema.json"


def load(source: str | Path, model: type[M]) -> M:
    """Read a model from a preset's name or a file; see ``Schema.load``."""
    names = _preset_names()
    if str(source) in names:
        return parse(commented_yaml(str(source)), f"{source}.yaml", model)
    try:
        stream = open_plain(source)
    except (FileNotFoundError, IsADirectoryError) as error:
        sentence = f"'{source}' is neither a schema file nor a preset"
        raise SchemaError(f"{sentence}; {suggestion(str(source), names)}") from error
    except (OSError, ValueError) as error:
        raise SchemaError(f"{source}: cannot be read: {error}; expected a YAML file or a preset") from error
    with stream:
        return parse(_read_text(stream, str(source)), str(source), model)


def parse(text: str, name: str, model: type[M]) -> M:
    """Read a model from YAML text; see ``Schema.from_yaml``."""
    data, root = _load(text, name)
    if root is None:
        raise SchemaError(f"{name}: is empty, expected a schema; 'mgm schema init' writes one to start from")
    first = root.start_mark.line + 1
    if not isinstance(data, dict):
        raise SchemaError(f"{name}:{first}: got {format_value(data)}, expected a mapping (lines of 'key: value')")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = {(): first} | dict(_lines(root))
        problems = []
        for problem in problems_of(error, model):
            place = problem.location
            while place not in lines:  # a missing key has the line of its mapping
                place = place[:-1]
            problems.append((lines[place], f"{format_location(problem.location)}: {problem.sentence}"))
        problems.sort(key=lambda problem: problem[0])
        messages = [f"{name}:{line}: {sentence}" for line, sentence in problems]
        if len(messages) > _MAX_PROBLEMS:
            messages[_MAX_PROBLEMS:] = [f"{name}: ... and {len(messages) - _MAX_PROBLEMS} more problems"]
        raise SchemaError("\n".join(messages)) from error


def read_yaml(file: str | os.PathLike[str]) -> Any:
    """Read the plain data of a YAML file of settings; see ``parse_yaml``."""
    try:
        stream = open_plain(file)
    except (OSError, ValueError) as error:
        raise SchemaError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        return parse_yaml(stream, str(file))


def parse_yaml(stream: BinaryIO, name: str) -> Any:
    """Read the plain data of an open YAML file, with the limits of schemas; None for an empty file.

    Raises:
        SchemaError: it is unreadable, malformed or too long. The message names the line and no value of the file, which
            may be a password.
    """
    return _load(_read_text(stream, name), name)[0]


def _read_text(stream: BinaryIO, name: str) -> str:
    try:
        data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SchemaError(f"{name}: cannot be read: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise SchemaError(f"{name}: more than {_MAX_BYTES} bytes, expected a page of YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SchemaError(f"{name}:{line}: not UTF-8; save the file as UTF-8 text") from error


def dump(schema: Model) -> str:
    """Write a model as YAML text, with every setting."""
    plain = schema.model_dump(mode="json", exclude_none=True)
    text: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    # Text with direction characters, which YAML does not escape, is in double quotes, where escapes are read.
    return "".join(char if char.isprintable() or char == "\n" else f"\\U{ord(char):08x}" for char in text)


class _Dumper(yaml.SafeDumper):
    """Writes text that is not printable in double quotes: YAML would read other line separators back as spaces."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """Builds plain data: mappings with scalar keys as text, lists and scalars.

    Aliases and deep nesting, which exhaust memory, are refused; so are tags, repeated keys and huge numbers.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise _refusal("aliases (*name) are not allowed; write the value out", mark)
        if self.depth == _MAX_DEPTH:
            raise _refusal(f"more than {_MAX_DEPTH} levels deep", mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.construct_object(item) for item in node.value]
        if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
            raise _refusal("tags (!name) are not allowed; remove it", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:  # PyYAML does not check `!!int x`
            raise _refusal(f"a value is not a valid {kind}", node.start_mark) from error
        if isinstance(value, int) and value.bit_length() > 64:
            raise _refusal("a number has more than 64 bits", node.start_mark)
        return value

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key is a list or a mapping, expected a name", key.start_mark)
            if key.value in lines:
                raise _refusal(f"a key appears twice, first in line {lines[key.value]}; remove one", key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return {key.value: self.construct_object(value) for key, value in node.value}


def _load(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """Plain data and root node of a YAML text; None and None when it is empty."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return (None if root is None else loader.construct_object(root)), root
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        sentence = f"character U+{ord(text[error.position]):04X} is not allowed in YAML; remove it"
        raise SchemaError(f"{name}:{line}: {sentence}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        sentence = ", ".join(part for part in (error.context, error.problem) if part)
        raise SchemaError(f"{name}:{mark.line + 1 if mark else 1}: not valid YAML: {sentence}") from error


def _lines(node: yaml.Node, location: Location = ()) -> Iterator[tuple[Location, int]]:
    """Line of every key and list item below a node."""
    if isinstance(node, yaml.MappingNode):
        items = [(key.value, key, value) for key, value in node.value]
    else:
        items = [(index, item, item) for index, item in enumerate(node.value)]
    for name, marked, value in items:
        yield (*location, name), marked.start_mark.line + 1
        if isinstance(value, yaml.CollectionNode):
            yield from _lines(value, (*location, name))


def _folder() -> Path:
    """Return the folder of the presets: in the installed package, or at the root of a checkout."""
    package = Path(str(files("mg_milvus")))
    for folder in (package / "schemas", package.parent / "schemas"):
        if (folder / _JSON_SCHEMA).is_file():
            return folder
    raise SchemaError(f"the presets are missing from {package / 'schemas'}; install mg-milvus again")


def _preset_names() -> list[str]:
    return sorted((p.stem for p in _folder().glob("*.yaml")), key=lambda name: (name != "default", name))


def presets() -> dict[str, str]:
    """Preset -> its purpose in one line; ``default`` first, then by name."""
    matches = {name: re.search(rf"^# {name}: (.+)$", commented_yaml(name), re.M) for name in _preset_names()}
    return {name: match[1] if match else "" for name, match in matches.items()}


def commented_yaml(preset: str) -> str:
    """Return a preset's text with its comments; the editors' first line points to the installed JSON Schema.

    Raises:
        SchemaError: no such preset.
    """
    names = _preset_names()
    if preset not in names:
        raise SchemaError(f"'{preset}' is not a preset; {suggestion(preset, names)}")
    folder = _folder()
    text = (folder / f"{preset}.yaml").read_text(encoding="utf-8")
    return text.replace(f"$schema=./{_JSON_SCHEMA}", f"$schema={(folder / _JSON_SCHEMA).as_uri()}", 1)
