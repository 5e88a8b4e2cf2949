"""Schemas as text: YAML in and out with line numbers, the presets, and the JSON Schema for editors."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from mg_milvus.errors import SchemaError
from mg_milvus.files import open_plain
from mg_milvus.schema.errors import Location, Model, explain, shown, suggestion, written

if TYPE_CHECKING:
    import os
    from typing import BinaryIO


M = TypeVar("M", bound=Model)

_LIMIT = 64 * 1024
"""Bytes of the largest file that is read."""

_DEPTH = 16
"""Nested lists and mappings; a schema needs three levels."""

_MAX_PROBLEMS = 20
"""Problems listed at once; a file that is not a schema at all has thousands."""

_SCALARS = {"null", "bool", "int", "float", "str", "timestamp"}

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
        return parse(_text_of(stream, str(source)), str(source), model)


def parse(text: str, name: str, model: type[M]) -> M:
    """Read a model from YAML text; see ``Schema.from_yaml``."""
    document = _Document(text, name)
    if document.data is None and not document.problems:
        raise SchemaError(f"{name}: is empty, expected a schema; 'mgm schema init' writes one to start from")
    try:
        if isinstance(document.data, dict):
            schema = model.model_validate(document.data)
        else:
            document.add((), f"got {shown(document.data)}, expected a mapping (lines of 'key: value')")
    except ValidationError as error:
        for problem in explain(error, model):
            document.add(problem.location, problem.sentence)
    if document.problems:
        raise document.error()
    return schema


def read_yaml(file: str | os.PathLike[str]) -> Any:
    """Read the plain data of a YAML file of settings; see ``parse_yaml``."""
    try:
        stream = open_plain(file)
    except (OSError, ValueError) as error:
        raise SchemaError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        return parse_yaml(stream, str(file))


def parse_yaml(stream: BinaryIO, name: str) -> Any:
    """Read the plain data of an open YAML file under the limits of schemas; None for an empty file.

    Raises:
        SchemaError: it cannot be read, or holds aliases, tags, or more than a page. The message names the line and
            none of its values: one may be a password.
    """
    document = _Document(_text_of(stream, name), name)
    if document.problems:
        raise SchemaError(f"line {min(document.problems)[0]} holds a value, a key or a tag that cannot be used")
    return document.data


def _text_of(stream: BinaryIO, name: str) -> str:
    try:
        data = stream.read(_LIMIT + 1)
    except OSError as error:
        raise SchemaError(f"{name}: cannot be read: {error.strerror or error}") from error
    if len(data) > _LIMIT:
        raise SchemaError(f"{name}: more than {_LIMIT} bytes, expected a page of YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SchemaError(f"{name}:{line}: not UTF-8; save the file as UTF-8 text") from error


def dump(schema: Model) -> str:
    """Write a model as YAML text, with every setting."""
    plain = schema.model_dump(mode="json", exclude_none=True)
    text: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    # YAML leaves direction characters as they are; text that holds them is in double quotes, where escapes are read.
    return "".join(char if char.isprintable() or char == "\n" else f"\\U{ord(char):08x}" for char in text)


class _Dumper(yaml.SafeDumper):
    """Puts text that is not printable in double quotes: YAML reads other line separators back as spaces."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)


class _Loader(yaml.SafeLoader):
    """Refuses aliases and deep nesting, which schemas never need and hostile files are made of."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed; write the value out", problem_mark=mark
            )
        if self.depth == _DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {_DEPTH} levels deep", problem_mark=mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Document:
    """YAML text as plain data, with the line of every key and list item.

    Attributes:
        data: mappings, lists and scalars; None for an empty text.
        problems: (line, sentence) of everything wrong so far.
    """

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._lines: dict[Location, int] = {}
        self._reported: set[Location] = set()
        self.problems: list[tuple[int, str]] = []
        try:
            self._loader = _Loader(text)
            root = self._loader.get_single_node()
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            sentence = f"character U+{ord(text[error.position]):04X} is not allowed in YAML; remove it"
            raise SchemaError(f"{name}:{line}: {sentence}") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            sentence = ", ".join(part for part in (error.context, error.problem) if part)
            raise SchemaError(f"{name}:{mark.line + 1 if mark else 1}: not valid YAML: {sentence}") from error
        self.data = self._plain(root, ()) if root else None

    def add(self, location: Location, sentence: str) -> None:
        """Note the first problem of a location, at its line or that of the nearest location around it."""
        if location in self._reported:
            return
        self._reported.add(location)
        present = location
        while present not in self._lines:
            present = present[:-1]
        self._note(self._lines[present], f"{written(location)}: {sentence}" if location else sentence)

    def error(self) -> SchemaError:
        """All problems in one exception, a line each, in the order of the file."""
        lines = [f"{self._name}:{line}: {sentence}" for line, sentence in sorted(self.problems, key=lambda p: p[0])]
        if len(lines) > _MAX_PROBLEMS:
            lines[_MAX_PROBLEMS:] = [f"{self._name}: ... and {len(lines) - _MAX_PROBLEMS} more problems"]
        return SchemaError("\n".join(lines))

    def _note(self, line: int, sentence: str) -> None:
        self.problems.append((line, sentence))

    def _plain(self, node: yaml.Node, location: Location) -> Any:
        self._lines.setdefault(location, node.start_mark.line + 1)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._plain(item, (*location, i)) for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
            self.add(location, f"the tag {shown(node.tag)} is not allowed; remove it")
            return None
        try:
            value = self._loader.construct_object(node)
        except (ValueError, OverflowError):
            self.add(location, f"got {shown(node.value)}, which is not a valid {kind}")
            return None
        if isinstance(value, int) and value.bit_length() > 64:
            self.add(location, "got a huge number, expected one of at most 64 bits")
            return None
        return value

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._note(line, "got a list or mapping as a key, expected a name")
                continue
            key = key_node.value
            where = (*location, key)
            if key in plain:
                self._note(line, f"{written(where)}: appears twice, first in line {self._lines[where]}; remove one")
                continue
            self._lines[where] = line
            plain[key] = self._plain(value_node, where)
        return plain


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
    """Preset -> one line that says what it is for; ``default`` first, then by name."""
    first_lines = {name: re.search(rf"^# {name}: (.+)$", commented_yaml(name), re.M) for name in _preset_names()}
    return {name: found[1] if found else "" for name, found in first_lines.items()}


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
