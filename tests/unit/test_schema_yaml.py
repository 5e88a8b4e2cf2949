"""YAML in and out, line-accurate messages, the presets, and the JSON Schema of editors."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mg_milvus.errors import SchemaError
from mg_milvus.schema.models import (
    RESERVED_FIELDS,
    EncoderSettings,
    ExtraField,
    FusionSettings,
    Granularity,
    RegionScale,
    RegionSettings,
    Schema,
    StorageSettings,
    json_schema,
)
from mg_milvus.schema.yaml import commented_yaml, presets

PRESET_NAMES = "expected one of default, compact, precise, regions, regions-precise, server"
PRESETS = Path(__file__).parents[2] / "schemas"


def problems_of(text: str) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        Schema.from_yaml(text, "s.yaml")
    return str(caught.value).splitlines()


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "my schema.yaml"
    file.write_text(
        "granularities:\n"
        "  - {name: coarse, bits: 32, weight: 2}\n"
        "  - {name: fine, bits: 128, mmap: true}\n"
        "fields:\n"
        "  - name: label\n"
        "    type: string\n"
        "    default: größe\n",
        encoding="utf-8",
    )
    schema = Schema.load(file)
    assert schema.bits == {"coarse": 32, "fine": 128}
    assert schema.weights == {"coarse": 2.0, "fine": 1.0}
    assert schema.granularities[1].mmap is True
    assert schema.fields[0].default == "größe"
    assert schema.collection == "images"
    assert schema == Schema.load(str(file))


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(b"\xef\xbb\xbfcollection: a\r\nversion: 1\r\n")
    assert Schema.load(file).collection == "a"


def test_all_problems_are_reported_with_their_lines() -> None:
    text = """\
granularities:
  - name: coarse
    bits: 64
  - name: fine
    bitz: 256
    weight: -1
  - name: mid
    bits: 12
    mmap: maybe
storag:
  index: auto
storage:
  index: hnsw

  nlist: "64"
  consistency: eventual
fusion:
fields:
  - 3
  - type: strin
collection: on
"""
    assert problems_of(text) == [
        "s.yaml:4: granularities[1].bits: is missing; it has no default",
        "s.yaml:5: granularities[1].bitz: unknown key; did you mean 'bits'?",
        "s.yaml:6: granularities[1].weight: got -1, expected 0 or more",
        "s.yaml:8: granularities[2].bits: got 12, expected a multiple of 8",
        "s.yaml:9: granularities[2].mmap: got 'maybe', expected true or false",
        "s.yaml:10: storag: unknown key; did you mean 'storage'?",
        "s.yaml:13: storage.index: got 'hnsw', expected 'auto', 'BIN_FLAT', 'BIN_IVF_FLAT' or 'HNSW'; "
        "did you mean 'HNSW'?",
        "s.yaml:15: storage.nlist: got '64', expected a whole number",
        "s.yaml:16: storage.consistency: got 'eventual', expected 'Strong', 'Session', 'Bounded' or 'Eventually'; "
        "did you mean 'Eventually'?",
        "s.yaml:17: fusion: has no value, expected a mapping (lines of 'key: value'); "
        "remove the key to take the default",
        "s.yaml:19: fields[0]: got 3, expected a mapping (lines of 'key: value')",
        "s.yaml:20: fields[1].name: is missing; it has no default",
        "s.yaml:20: fields[1].type: got 'strin', expected 'string', 'int', 'float' or 'bool'; did you mean 'string'?",
        "s.yaml:21: collection: got true, expected text; put it in quotes",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("verzion: 1", "s.yaml:1: verzion: unknown key; did you mean 'version'?"),
        (
            "\n\nencoder: {colour: red}",
            "s.yaml:3: encoder.colour: unknown key; expected one of name, heads",
        ),
        ("version: 2", "s.yaml:1: version: got 2, expected 1"),
        ("granularities: []", "s.yaml:1: granularities: got a list, expected at least 1 item, not 0"),
        ("granularities: {a: 8}", "s.yaml:1: granularities: got a mapping, expected a list"),
        ("encoder: builtin", "s.yaml:1: encoder: got 'builtin', expected a mapping (lines of 'key: value')"),
        ("encoder: {name: ''}", "s.yaml:1: encoder.name: got '', expected at least 1 character"),
        ("fusion:\n  rrf_k: 0", "s.yaml:2: fusion.rrf_k: got 0, expected 1 or more"),
        ("fusion:\n  depth: 16385", "s.yaml:2: fusion.depth: got 16385, expected 16384 or less"),
        ("fusion:\n  depth: 1.5", "s.yaml:2: fusion.depth: got 1.5, expected a whole number"),
        ("collection: [a]", "s.yaml:1: collection: got a list, expected text"),
        (
            "storage:\n  index: auto\n  nlist: 16",
            "s.yaml:3: storage.nlist: nprobe 32 is more than nlist 16; expected nprobe to be nlist or less",
        ),
        (
            "fields:\n- name: taken\n  type: string\n  default: 2024-01-01",
            "s.yaml:4: fields[0].default: got the date 2024-01-01, expected a value of type string like the field's; "
            "put it in quotes",
        ),
        (
            "fields:\n- name: taken\n  type: string\n  default: 2024-99-99",
            "s.yaml:4: not valid YAML: a value is not a valid timestamp",
        ),
        (
            "granularities:\n- {name: a, bits: 8}\n- {name: b, bits: 8}\n- name: a\n  bits: 16",
            "s.yaml:4: granularities[2].name: 'a' is already the name of granularities[0]; choose another name",
        ),
        (
            "version: 1\ncollection: a\nversion: 1",
            "s.yaml:3: not valid YAML: a key appears twice, first in line 1; remove one",
        ),
        ("? [a, b]\n: 1", "s.yaml:1: not valid YAML: a key is a list or a mapping, expected a name"),
        ("- coarse", "s.yaml:1: got a list, expected a mapping (lines of 'key: value')"),
        ("\nimages", "s.yaml:2: got 'images', expected a mapping (lines of 'key: value')"),
        ("", "s.yaml: is empty, expected a schema; 'mgm schema init' writes one to start from"),
        ("# only a comment\n", "s.yaml: is empty, expected a schema; 'mgm schema init' writes one to start from"),
        (
            "a: [1,\nb",
            "s.yaml:2: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        ),
        ("a: b: c", "s.yaml:1: not valid YAML: mapping values are not allowed here"),
        (
            "encoder:\n\tname: a",
            "s.yaml:2: not valid YAML: while scanning for the next token, found character '\\t' that cannot start any "
            "token",
        ),
        (
            "version: 1\n---\nversion: 1",
            "s.yaml:2: not valid YAML: expected a single document in the stream, but found another document",
        ),
        ("version: 1\ncollection: a\x00b", "s.yaml:2: character U+0000 is not allowed in YAML; remove it"),
        ("collection: \x1b[31m", "s.yaml:1: character U+001B is not allowed in YAML; remove it"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, message: str) -> None:
    assert problems_of(text) == [message]


@pytest.mark.parametrize(
    "text",
    [
        "encoder: !!python/object/apply:os.system ['false']",
        "encoder: {name: !!python/name:os.system ''}",
        "encoder: !mine {name: a}",
        "encoder: {name: !!binary aGVsbG8=}",
        "fields: !!set {a, b}",
        "!!map [a]",
    ],
)
def test_tags_are_refused(text: str) -> None:
    assert problems_of(text) == ["s.yaml:1: not valid YAML: tags (!name) are not allowed; remove it"]


@pytest.mark.parametrize("text", ["version: !!int ''", "version: !!int x", "a: !!bool maybe", "a: !!timestamp today"])
def test_values_that_are_not_of_their_tag_are_refused(text: str) -> None:
    kind = text.partition("!!")[2].partition(" ")[0]
    assert problems_of(text) == [f"s.yaml:1: not valid YAML: a value is not a valid {kind}"]


def test_a_problem_stays_on_one_line_whatever_the_file_holds() -> None:
    (problem,) = problems_of('"a\\nb": 1')
    assert problem.startswith(r"s.yaml:1: 'a\nb': unknown key; expected one of version")
    (problem,) = problems_of(f"? {'x ' * 2000}\n: 1")
    assert len(problem) < 300


def test_a_file_that_is_no_schema_does_not_flood_the_terminal() -> None:
    problems = problems_of("".join(f"key{i}: {i}\n" for i in range(100)))
    assert len(problems) == 21
    assert problems[19].startswith("s.yaml:20: key19: unknown key")
    assert problems[20] == "s.yaml: ... and 80 more problems"


@pytest.mark.parametrize(
    ("number", "reason"),
    [("9" * 5000, "a value is not a valid int"), ("0x" + "9" * 5000, "a number has more than 64 bits")],
)
def test_huge_numbers_are_refused(number: str, reason: str) -> None:
    assert problems_of(f"granularities: [{{name: a, bits: {number}}}]") == [f"s.yaml:1: not valid YAML: {reason}"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(i + 1)}: &{chr(i + 1)} [{', '.join([f'*{chr(i)}'] * 9)}]\n" for i in range(ord("a"), ord("i"))
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "s.yaml:2: not valid YAML: aliases (*name) are not allowed; write the value out"),
        ("&a [*a]", "s.yaml:1: not valid YAML: aliases (*name) are not allowed; write the value out"),
        ("[" * 50_000, "s.yaml:1: not valid YAML: more than 16 levels deep"),
        ("a: {" * 10_000, "s.yaml:1: not valid YAML: more than 16 levels deep"),
    ],
)
def test_bombs_are_refused_cheaply(text: str, message: str) -> None:
    start = time.process_time()
    assert problems_of(text) == [message]
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("compac", "'compac' is neither a schema file nor a preset; did you mean 'compact'?"),
        (
            "no/such.yaml",
            f"'no/such.yaml' is neither a schema file nor a preset; {PRESET_NAMES}",
        ),
        (
            ".",
            f"'.' is neither a schema file nor a preset; {PRESET_NAMES}",
        ),
        (
            "",
            f"'' is neither a schema file nor a preset; {PRESET_NAMES}",
        ),
    ],
)
def test_a_source_that_is_nothing_names_the_presets(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SchemaError) as caught:
        Schema.load(source)
    assert str(caught.value) == message


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("version: 1\n# größe\n".encode("latin-1"))
    with pytest.raises(SchemaError) as caught:
        Schema.load(file)
    assert str(caught.value) == f"{file}:2: not UTF-8; save the file as UTF-8 text"
    file.write_bytes(b"# " + b"x" * 70_000)
    with pytest.raises(SchemaError, match="more than 65536 bytes, expected a page of YAML"):
        Schema.load(file)
    with pytest.raises(SchemaError, match=r"cannot be read: .*null byte"):
        Schema.load("a\0b")
    with pytest.raises(SchemaError, match=r"cannot be read: .*expected a YAML file or a preset"):
        Schema.load(file / "below.yaml")


def test_a_file_with_a_presets_name_is_reached_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("compact").write_text("collection: mine")
    assert Schema.load("compact").collection == "images"
    assert Schema.load("./compact").collection == "mine"


def test_the_presets() -> None:
    assert list(presets()) == ["default", "compact", "precise", "regions", "regions-precise", "server"]
    assert all(10 < len(purpose) < 110 for purpose in presets().values())
    assert Schema.load("default") == Schema()
    assert Schema.load("compact").bits == {"coarse": 32, "mid": 48, "fine": 48}
    assert Schema.load("compact").bytes_per_image == 16
    assert Schema.load("precise").bits == {"coarse": 128, "mid": 256, "fine": 512}
    server = Schema.load("server")
    assert server.storage == StorageSettings(
        index="BIN_IVF_FLAT", nlist=4096, nprobe=64, shards=2, replicas=2, consistency="Bounded"
    )
    assert [g.mmap for g in server.granularities] == [None, None, True]


@pytest.mark.parametrize("name", ["default", "compact", "precise", "regions", "regions-precise", "server"])
def test_a_presets_text(name: str) -> None:
    stored = (PRESETS / f"{name}.yaml").read_text()
    assert stored.startswith("# yaml-language-server: $schema=./mgm.schema.json\n")
    assert presets()[name].startswith(f"{Schema.load(name).bytes_per_image} bytes an image")

    first, _, rest = commented_yaml(name).partition("\n")
    assert stored.endswith(rest)
    uri = first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(Path(url2pathname(urlsplit(uri).path)).read_text()) == json_schema()

    # The example in the comments is a schema too, once its `# ` is taken away.
    example = re.sub(r"^# ((fields:|  ).*)$", r"\1", rest, flags=re.MULTILINE)
    example = example.replace("  # partition_key", "  partition_key")
    assert [(f.name, f.type) for f in Schema.from_yaml(example).fields] == [
        ("label", "string"),
        ("year", "int"),
        ("published", "bool"),
    ]


def test_an_unknown_preset_has_no_text() -> None:
    with pytest.raises(SchemaError, match="'servr' is not a preset; did you mean 'server'"):
        commented_yaml("servr")


def test_the_json_schema_is_the_one_in_the_repository() -> None:
    """After a change of the models, write it anew with `json.dumps(json_schema(), indent=2)` and a newline."""
    assert (PRESETS / "mgm.schema.json").read_text() == json.dumps(json_schema(), indent=2) + "\n"


def test_the_json_schema_describes_every_setting_and_refuses_others() -> None:
    described = json_schema()
    for model in (described, *described["$defs"].values()):
        assert model["additionalProperties"] is False
        for setting in model["properties"].values():
            part = described["$defs"].get(setting.get("$ref", "").removeprefix("#/$defs/"), {})
            assert setting.get("description") or part["description"]
    assert described["$defs"]["Granularity"]["required"] == ["name", "bits"]
    bits = described["$defs"]["Granularity"]["properties"]["bits"]
    assert (bits["minimum"], bits["maximum"], bits["multipleOf"]) == (8, 4096, 8)


def test_yaml_holds_every_setting_by_its_name() -> None:
    data = yaml.safe_load(Schema().to_yaml())
    assert list(data) == ["version", "collection", "encoder", "granularities", "fusion", "fields", "storage"]
    assert data["granularities"][0] == {"name": "coarse", "bits": 64, "weight": 2.5}
    assert data["storage"]["consistency"] == "Strong"


MILVUS_WORDS = {"in", "or", "and", "not", "like", "null", "true", "false", "exists", "rowid", "rank", "ranks"}
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name not in RESERVED_FIELDS | {"score", "query"} and name.casefold() not in MILVUS_WORDS
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
defaults: dict[str, st.SearchStrategy[Any]] = {
    "string": texts,
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
}


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    all_names = draw(st.lists(names, min_size=1, max_size=12, unique=True))
    count = draw(st.integers(1, min(10, len(all_names))))
    weights = st.floats(0, 1e300).map(lambda w: w or 1.0)
    granularities = tuple(
        Granularity(
            name=name,
            bits=8 * draw(st.integers(1, 512)),
            weight=draw(weights),
            mmap=draw(st.sampled_from([None, True, False])),
        )
        for name in all_names[:count]
    )
    fields = []
    for name in all_names[count:]:
        kind: Any = draw(st.sampled_from(sorted(defaults)))
        fields.append(ExtraField(name=name, type=kind, default=draw(st.none() | defaults[kind])))
    keys = [f.name for f in fields if f.type in ("string", "int")]
    nlist = draw(st.integers(1, 65_536))
    return Schema(
        collection=draw(names.filter(lambda name: not name.endswith(("_encoder", "_regions", "_tuned")))),
        encoder=EncoderSettings(name=draw(texts.filter(bool)), heads=draw(st.sampled_from(["adapt", "fixed"]))),
        granularities=granularities,
        fusion=FusionSettings(rrf_k=draw(st.integers(1, 16_384)), method=draw(st.sampled_from(["rank", "server"]))),
        regions=draw(st.sampled_from([None, RegionSettings(bits=64, scales=(RegionScale(size=0.35, grid=3),))])),
        fields=tuple(fields),
        storage=StorageSettings(
            index=draw(st.sampled_from(["auto", "HNSW"])),
            nlist=nlist,
            nprobe=draw(st.integers(1, nlist)),
            partition_key=draw(st.sampled_from([None, *keys])),
        ),
    )


@given(schemas())
@settings(deadline=None)
def test_a_schema_survives_yaml(schema: Schema) -> None:
    assert Schema.from_yaml(schema.to_yaml()) == schema


@given(schemas())
@settings(deadline=None, max_examples=30)
def test_a_schema_survives_json(schema: Schema) -> None:
    """As it is kept in the description of a collection."""
    assert Schema.model_validate(json.loads(schema.model_dump_json())) == schema


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_is_a_schema_or_a_schema_error(text: str) -> None:
    try:
        schema = Schema.from_yaml(text)
    except SchemaError as error:
        assert all(line.startswith("<text>:") for line in str(error).splitlines())  # noqa: PT017
    else:
        assert isinstance(schema, Schema)
