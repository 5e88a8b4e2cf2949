"""The models: what they accept, what they refuse, and what a change of each setting costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mg_milvus.errors import SchemaError
from mg_milvus.schema.diff import CONSEQUENCES, difference
from mg_milvus.schema.models import (
    PROFILES,
    EncoderSettings,
    ExtraField,
    FusionSettings,
    Granularity,
    RegionScale,
    RegionSettings,
    Schema,
    StorageSettings,
)

TWO = ({"name": "coarse", "bits": 64}, {"name": "fine", "bits": 256})


def test_defaults() -> None:
    schema = Schema()
    assert schema.bits == {"coarse": 64, "mid": 128, "fine": 256}
    assert schema.weights == {"coarse": 2.5, "mid": 1.0, "fine": 0.1}
    assert schema.bytes_per_image == 56
    assert all(set(weights) == set(schema.bits) for weights in PROFILES.values())


def test_schemas_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Schema().collection = "other"


@pytest.mark.parametrize("bits", [8, 16, 4096])
def test_bits_at_the_bounds_are_accepted(bits: int) -> None:
    assert Granularity(name="g", bits=bits).bits == bits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 0}, "Granularity.bits: got 0, expected 8 or more"),
        ({"bits": 12}, "Granularity.bits: got 12, expected a multiple of 8"),
        ({"bits": 4104}, "Granularity.bits: got 4104, expected 4096 or less"),
        ({"bits": True}, "Granularity.bits: got true, expected a whole number"),
        ({"bits": "64"}, "Granularity.bits: got '64', expected a whole number"),
        ({"bits": 8, "weight": -0.5}, "Granularity.weight: got -0.5, expected 0 or more"),
        ({"bits": 8, "weight": float("inf")}, "Granularity.weight: got inf, expected a finite number"),
        ({"bits": 8, "bitz": 8}, "Granularity.bitz: unknown key; did you mean 'bits'?"),
        ({}, "Granularity.bits: is missing; it has no default"),
    ],
)
def test_a_wrong_part_made_in_python_is_a_schema_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        Granularity(name="coarse", **values)
    assert str(caught.value) == message


def test_errors_of_nested_values_say_where_they_are() -> None:
    with pytest.raises(SchemaError) as caught:
        Schema(granularities=(Granularity(name="a", bits=8), {"name": "b", "bits": 9}))
    assert str(caught.value) == "Schema.granularities[1].bits: got 9, expected a multiple of 8"


def problems_of(**values: Any) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        Schema(**values)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", ["id", "path", "size", "mtime_ns", "taken", "width", "height", "content_hash"])
def test_columns_that_every_row_has_are_not_free(name: str) -> None:
    said = f"'{name}' is a column that every row has; choose another name"
    assert problems_of(granularities=({"name": name, "bits": 8},)) == [f"Schema.granularities[0].name: {said}"]
    assert problems_of(fields=({"name": name, "type": "int"},)) == [f"Schema.fields[0].name: {said}"]


@pytest.mark.parametrize("name", ["in", "LIKE", "not", "array_length", "RowID", "Timestamp", "null"])
def test_words_of_milvus_are_not_names(name: str) -> None:
    """Measured on Milvus Lite: filters on such columns fail, and a filter on `array_length` ends its process."""
    said = f"Schema.fields[0].name: '{name}' is a reserved word of Milvus; choose another name"
    assert problems_of(fields=({"name": name, "type": "int"},)) == [said]


@pytest.mark.parametrize("name", ["score", "rank", "query", "distances", "ranks"])
def test_an_extra_field_cannot_hide_a_part_of_a_result(name: str) -> None:
    said = f"Schema.fields[0].name: '{name}' is a key of every result; choose another name"
    assert problems_of(fields=({"name": name, "type": "int"},)) == [said]


@pytest.mark.parametrize("name", ["", "9a", "a b", "a-b", "ä", "a\n", "a" * 201])
def test_names_are_what_milvus_takes(name: str) -> None:
    (problem,) = problems_of(collection=name)
    assert "expected a name: letters, digits and underscores" in problem


@pytest.mark.parametrize(("name", "ending"), [("images_encoder", "_encoder"), ("a_regions", "_regions")])
def test_names_of_companions_are_kept(name: str, ending: str) -> None:
    (problem,) = problems_of(collection=name)
    assert problem.startswith(f"Schema.collection: got '{name}', but names ending in '{ending}'")


def test_several_problems_are_all_reported() -> None:
    assert problems_of(
        granularities=({"name": "a", "bits": 8, "weight": 0}, {"name": "a", "bits": 8, "weight": 0}),
        fields=({"name": "a", "type": "float"},),
        storage={"partition_key": "a"},
    ) == [
        "Schema.granularities[1].name: 'a' is already the name of granularities[0]; choose another name",
        "Schema.fields[0].name: 'a' is already the name of granularities[0]; choose another name",
        "Schema.granularities: every weight is 0, expected at least one above 0",
        "Schema.storage.partition_key: got 'a', expected an extra field of type string or int "
        "(there is none: add one under 'fields')",
    ]


def test_one_weight_above_zero_is_enough() -> None:
    schema = Schema(granularities=(Granularity(name="a", bits=8, weight=0), Granularity(name="b", bits=8, weight=0.1)))
    assert schema.weights == {"a": 0.0, "b": 0.1}


@pytest.mark.parametrize("kind", ["string", "int"])
def test_a_partition_key_is_a_string_or_int_field(kind: Any) -> None:
    schema = Schema(fields=(ExtraField(name="owner", type=kind),), storage=StorageSettings(partition_key="owner"))
    assert schema.storage.partition_key == "owner"


@pytest.mark.parametrize("kind", ["float", "bool"])
def test_a_partition_key_is_no_float_or_bool_field(kind: str) -> None:
    fields = ({"name": "owner", "type": kind}, {"name": "label", "type": "string"})
    (problem,) = problems_of(fields=fields, storage={"partition_key": "owner"})
    assert problem.endswith("got 'owner', expected an extra field of type string or int (label)")


def test_nprobe_is_at_most_nlist() -> None:
    assert StorageSettings(nlist=32, nprobe=32).nprobe == 32
    with pytest.raises(SchemaError, match=r"nprobe: nprobe 33 is more than nlist 32"):
        StorageSettings(nlist=32, nprobe=33)
    with pytest.raises(SchemaError, match=r"nlist: nprobe 32 is more than nlist 16"):
        StorageSettings(nlist=16)


@pytest.mark.parametrize(
    ("kind", "default"),
    [("string", ""), ("string", "ä" * 512), ("int", -(2**63)), ("int", 2**63 - 1), ("float", 0.5), ("bool", False)],
)
def test_defaults_of_the_fields_type_are_accepted(kind: Any, default: Any) -> None:
    field = ExtraField(name="f", type=kind, default=default)
    assert field.default == default
    assert type(field.default) is type(default)


def test_a_whole_number_is_a_float_default() -> None:
    assert type(ExtraField(name="f", type="float", default=3).default) is float


@pytest.mark.parametrize(
    ("kind", "default", "message"),
    [
        ("string", 3, "got 3, expected a value of type string like the field's; put it in quotes"),
        ("int", "3", "got '3', expected a value of type int"),
        ("int", 3.0, "got 3.0, expected a value of type int"),
        ("int", True, "got true, expected a value of type int"),
        ("int", 2**63, "expected a number that fits into 64 bits"),
        ("float", float("nan"), "got nan, expected a finite number"),
        ("float", False, "got false, expected a value of type float"),
        ("bool", 0, "got 0, expected a value of type bool"),
        ("string", "\ud800", "expected text without lone surrogates"),
        ("string", "ä" * 513, "takes 1026 bytes, expected at most max_length 1024; shorten it or raise the limit"),
    ],
)
def test_defaults_of_another_type_are_refused(kind: Any, default: Any, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        ExtraField(name="f", type=kind, default=default)
    assert str(caught.value).startswith("ExtraField.default: ")
    assert message in str(caught.value)


def test_importing_the_schema_loads_nothing_heavy() -> None:
    program = "import sys, mg_milvus.schema.models; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "torchvision", "pymilvus", "milvus_lite", "typer", "rich", "numpy", "PIL", "yaml"]
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def leaves(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Every setting of a model, written as the keys of the table of consequences are."""
    found = set()
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        parts = [k for k in (annotation, *get_args(annotation)) if isinstance(k, type) and issubclass(k, BaseModel)]
        if not parts:
            found.add(prefix + name)
        elif parts[0] is annotation:
            found |= leaves(annotation, f"{prefix}{name}.")
        elif type(None) in get_args(annotation):  # a section that may be left out
            found |= {prefix + name} | leaves(parts[0], f"{prefix}{name}.")
        elif "name" not in parts[0].model_fields:  # a list whose items have no names: compared as one value
            found.add(prefix + name)
        else:
            named = f"{prefix}{name}.*"
            found |= {prefix + name, named} | (leaves(parts[0], f"{named}.") - {f"{named}.name"})
    return found


def test_every_setting_has_a_consequence() -> None:
    assert set(CONSEQUENCES) == leaves(Schema) | {"fields.+"}


BASE = Schema(
    granularities=(Granularity(name="coarse", bits=64), Granularity(name="fine", bits=256)),
    fields=(ExtraField(name="label", type="string", default=""), ExtraField(name="year", type="int")),
)


def test_differences_of_regions() -> None:
    plain, parts = Schema(), Schema(regions=RegionSettings())
    assert [(d.key, d.consequence) for d in difference(plain, parts)] == [("regions", "re-ingest")]
    assert [(d.key, d.consequence) for d in difference(parts, plain)] == [("regions", "re-ingest")]
    other = Schema(regions=RegionSettings(bits=64, weight=2.0, scales=(RegionScale(size=0.5, grid=3),)))
    assert [(d.key, d.consequence) for d in difference(parts, other)] == [
        ("regions.bits", "re-ingest"),
        ("regions.weight", "none"),
        ("regions.scales", "re-ingest"),
    ]


def test_the_bytes_of_regions_count() -> None:
    schema = Schema(regions=RegionSettings(bits=128, scales=(RegionScale(size=0.5, grid=3),)))
    assert schema.regions is not None
    assert schema.regions.count == 9
    assert schema.regions.bytes_per_image == 9 * 16
    assert schema.bytes_per_image == 56 + 9 * 16
    assert schema.code_bits == {"coarse": 64, "mid": 128, "fine": 256, "regions": 128}


def test_too_many_regions_are_refused() -> None:
    with pytest.raises(SchemaError, match="there are 272 regions, expected at most 256; use smaller grids"):
        RegionSettings(scales=(RegionScale(size=0.2, grid=16), RegionScale(size=0.4, grid=4)))


def test_parts_is_no_name_of_a_granularity() -> None:
    with pytest.raises(SchemaError, match="write a section 'regions' instead"):
        Schema(granularities=(Granularity(name="regions", bits=64),))


def changed(**values: Any) -> Schema:
    return Schema.model_validate(BASE.model_dump() | values)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (BASE, []),
        (changed(collection="b"), [("collection", "images", "b", "re-ingest")]),
        (changed(encoder={"heads": "fixed"}), [("encoder.heads", "adapt", "fixed", "re-ingest")]),
        (changed(encoder={"name": "my.safetensors"}), [("encoder.name", "builtin", "my.safetensors", "re-ingest")]),
        (
            changed(granularities=({"name": "coarse", "bits": 64, "weight": 2}, {"name": "fine", "bits": 512})),
            [
                ("granularities.coarse.weight", 1.0, 2.0, "none"),
                ("granularities.fine.bits", 256, 512, "re-ingest"),
            ],
        ),
        (
            changed(granularities=({"name": "coarse", "bits": 64}, {"name": "fine", "bits": 256, "mmap": True})),
            [("granularities.fine.mmap", None, True, "reload")],
        ),
        (
            changed(granularities=({"name": "fine", "bits": 256}, {"name": "coarse", "bits": 64})),
            [("granularities", ["coarse", "fine"], ["fine", "coarse"], "none")],
        ),
        (
            changed(granularities=({"name": "mid", "bits": 128}, {"name": "fine", "bits": 256})),
            [
                (
                    "granularities.coarse",
                    {"name": "coarse", "bits": 64, "weight": 1.0, "mmap": None},
                    None,
                    "re-ingest",
                ),
                ("granularities.mid", None, {"name": "mid", "bits": 128, "weight": 1.0, "mmap": None}, "re-ingest"),
            ],
        ),
        (
            changed(fusion={"method": "score", "rrf_k": 10, "depth": 50}),
            [
                ("fusion.method", "rank", "score", "none"),
                ("fusion.rrf_k", 60, 10, "none"),
                ("fusion.depth", 100, 50, "none"),
            ],
        ),
        (
            changed(fields=({"name": "label", "type": "string", "default": "x"}, {"name": "year", "type": "float"})),
            [("fields.label.default", "", "x", "re-ingest"), ("fields.year.type", "int", "float", "re-ingest")],
        ),
        (
            changed(storage={"index": "HNSW", "replicas": 2, "ef": 64, "consistency": "Bounded", "shards": 2}),
            [
                ("storage.index", "auto", "HNSW", "reload"),
                ("storage.ef", 128, 64, "none"),
                ("storage.shards", 1, 2, "re-ingest"),
                ("storage.replicas", 1, 2, "reload"),
                ("storage.consistency", "Strong", "Bounded", "none"),
            ],
        ),
        (
            changed(storage={"nlist": 2048, "nprobe": 8, "partition_key": "year"}),
            [
                ("storage.nlist", 1024, 2048, "reload"),
                ("storage.nprobe", 32, 8, "none"),
                ("storage.partition_key", None, "year", "re-ingest"),
            ],
        ),
    ],
)
def test_differences_and_what_they_cost(new: Schema, expected: list[tuple[str, Any, Any, str]]) -> None:
    found = difference(BASE, new)
    assert [(d.key, d.old, d.new, d.consequence) for d in found] == expected
    assert all(d.reason for d in found)


small_schemas = st.builds(
    lambda encoder, granularities, fields, depth: Schema(
        encoder=EncoderSettings(heads=encoder),
        granularities=tuple(Granularity(name=n, bits=b) for n, b in granularities.items()),
        fields=tuple(ExtraField(name=n, type="int", default=d) for n, d in fields.items()),
        fusion=FusionSettings(depth=depth),
    ),
    st.sampled_from(["adapt", "fixed"]),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([8, 16]), min_size=1),
    st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from([0, 1]), max_size=2),
    st.sampled_from([1, 2]),
)


@given(small_schemas, small_schemas)
@settings(deadline=None)
def test_nothing_differs_exactly_when_schemas_are_equal(old: Schema, new: Schema) -> None:
    assert (difference(old, new) == []) == (old == new)
