"""Columns of tables as fields: their names, the types of their cells, and which table columns fill which fields."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mg_milvus.errors import SchemaError
from mg_milvus.ingest.columns import TableColumns, field_name, find_columns
from mg_milvus.schema.models import ExtraField

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = (ExtraField(name="label", type="string"), ExtraField(name="price", type="float"))


def columns_of(path: Path, rows: list[dict[str, Any]]) -> TableColumns:
    file = path / "t.jsonl"
    file.write_text("\n".join(json.dumps({"path": f"{n}.jpg"} | row) for n, row in enumerate(rows)) + "\n")
    return find_columns(file, (), None, ("coarse",))


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("price", "price"),
        ("Price (EUR)", "Price_EUR"),
        ("Größe", "Grosse"),
        ("prénom", "prenom"),
        ("2nd price", "_2nd_price"),
        ("id", "id_"),
        ("Width", "Width"),
        ("width", "width_"),
        ("score", "score_"),
        ("like", "like_"),
        ("ISO", "ISO_"),
        ("regions", "regions_"),
        ("价格", ""),
        ("  ", ""),
        ("12", ""),
        ("a" * 300, "a" * 190),
    ],
)
def test_names_that_milvus_takes(header: str, name: str) -> None:
    assert field_name(header) == name


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["yes", "No", ""], "bool"),
        (["true", "FALSE"], "bool"),
        ([True, None, False], "bool"),
        (["1", "0", "1"], "int"),
        ([1, "-7"], "int"),
        ([2**63 - 1], "int"),
        (["1", "2.5", "-1e3", ".5"], "float"),
        ([1, 2.5], "float"),
        ([2**63], "float"),
        (["yes", "maybe"], "string"),
        (["1", "a"], "string"),
        (["007", "1"], "string"),
        (["+49", "1"], "string"),
        (["1,5"], "string"),
        (["nan", "inf"], "string"),
        (["1_000"], "string"),
        (["9223372036854775808"], "string"),
        (["1e999"], "string"),
        (["-"], "string"),
        (["."], "string"),
        (["e5"], "string"),
    ],
)
def test_the_narrowest_type_that_holds_all_cells(cells: list[Any], kind: str, tmp_path: Path) -> None:
    found = columns_of(tmp_path, [{"x": cell} for cell in cells])
    assert [(field.name, field.type, field.default) for field in found.new] == [("x", kind, None)]
    assert found.headers == {"x": "x"}


def test_columns_that_are_no_field_are_passed_over_with_the_reason(tmp_path: Path) -> None:
    rows = [
        {"empty": "", "tags": ["a"], "mixed": 1, "long": "é" * 32_768, "ok": 1, "价格": 2, "a b": 1, "a_b": 2,
         "coarse": 3},
        {"empty": None, "tags": ["b"], "mixed": "a", "long": "", "ok": 2},
    ]  # fmt: skip
    found = columns_of(tmp_path, rows)
    assert found.headers == {"ok": "ok", "a_b": "a b", "coarse_": "coarse"}
    assert dict(found.passed_over) == {
        "empty": "it has no values",
        "tags": "its cells are not all text, all numbers, or all yes and no",
        "mixed": "its cells are not all text, all numbers, or all yes and no",
        "long": "a text has more than 65,535 bytes",
        "价格": "its name has no letter from a to z: rename it",
        "a_b": "'a b' is the column 'a_b' already: rename it",
    }
    with pytest.raises(SchemaError, match=r"has no column to store beside its paths \('tags': its cells"):
        columns_of(tmp_path, [{"tags": ["a"]}])


def test_texts_get_room_to_grow(tmp_path: Path) -> None:
    rows = [{"short": "a", "long": "a" * 1000, "longest": "a" * 20_000}]
    lengths = {field.name: field.max_length for field in columns_of(tmp_path, rows).new}
    assert lengths == {"short": 1024, "long": 4000, "longest": 65_535}


def test_parquet_has_dates_missing_numbers_and_bytes(tmp_path: Path) -> None:
    table = {
        "path": ["a.jpg", "b.jpg"], "day": [datetime.date(2024, 5, 6), None], "weight": [float("nan"), 1.5],
        "image": [b"\xff", b"\xd8"], "tags": [["a"], ["b"]],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = find_columns(tmp_path / "t.parquet", (), None, ())
    assert [(field.name, field.type) for field in found.new] == [("day", "string"), ("weight", "float")]
    assert [column for column, _ in found.passed_over] == ["image", "tags"]


def test_fields_of_the_collection_keep_their_types(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,price,Colour,labels\na.jpg,5,7,x\n")
    found = find_columns(tmp_path / "t.csv", FIELDS, None, ())
    assert found.headers == {"price": "price", "Colour": "Colour", "labels": "labels"}
    assert [(field.name, field.type) for field in found.new] == [("Colour", "int"), ("labels", "string")]
    assert found.near == {"labels": "label"}
    types = {record.name: (record.type, record.new, record.near) for record in found.records(FIELDS)}
    assert types == {"price": ("float", False, ""), "Colour": ("int", True, ""), "labels": ("string", True, "label")}


def test_a_schema_says_which_columns_are_taken(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,price,label,more\na.jpg,5,x,1\n")
    found = find_columns(tmp_path / "t.csv", FIELDS, ["label"], ())
    assert found.headers == {"price": "price", "label": "label"}
    assert found.passed_over == (("more", "the schema has no such field"),)
    with pytest.raises(SchemaError, match="no column for the schema's field 'lable'; did you mean 'label'"):
        find_columns(tmp_path / "t.csv", FIELDS, ["lable"], ())
