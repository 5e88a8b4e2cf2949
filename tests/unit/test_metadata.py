from __future__ import annotations

import datetime
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mg_milvus.errors import MissingPackageError, SchemaError
from mg_milvus.ingest.metadata import read_metadata
from mg_milvus.schema.models import ExtraField

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = (
    ExtraField(name="label", type="string", default="none", max_length=8),
    ExtraField(name="year", type="int"),
    ExtraField(name="stars", type="float", default=2.5),
    ExtraField(name="seen", type="bool"),
)
DEFAULTS = {"label": "none", "year": None, "stars": 2.5, "seen": None}
CAT = {"label": "cat", "year": 1999, "stars": 4.0, "seen": True}


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="")
    return file


def read(file: Path, *roots: str) -> Any:
    return read_metadata(file, FIELDS, roots)


def refusal(file: Path, fields: tuple[ExtraField, ...] = FIELDS) -> str:
    with pytest.raises(SchemaError) as caught:
        read_metadata(file, fields, [])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def label_of(text: str, type_: str, tmp_path: Path) -> Any:
    field = ExtraField(name="x", type=type_)  # type: ignore[arg-type]
    file = write(tmp_path, "one.csv", f"path,x\n/a.jpg,{text}\n")
    return read_metadata(file, [field], []).values("/a.jpg")["x"]


# Formats


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(tmp_path: Path, delimiter: str, start: str, newline: str) -> None:
    lines = [["label", "path", "year", "stars", "seen", "extra"], ["cat", "/a.jpg", "1999", "4", "true", "?"]]
    text = start + newline.join(delimiter.join(line) for line in lines) + newline
    assert read(write(tmp_path, "m.csv", text)).values("/a.jpg") == CAT


def test_csv_quoting_commas_in_other_delimiters_and_blank_lines(tmp_path: Path) -> None:
    text = 'path;label;year;stars;seen\n\n"/a, b;\n""c"".jpg";"x;y";1;1,5;0\n'
    assert "'1,5' is not a finite number" in refusal(write(tmp_path, "m.csv", text))
    values = read(write(tmp_path, "m.csv", text.replace("1,5", "1.5"))).values('/a, b;\n"c".jpg')
    assert values == {"label": "x;y", "year": 1, "stars": 1.5, "seen": False}


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"file_name": "/a.jpg", "label": "cat", "year": 1999, "stars": 4, "seen": True, "more": [1]},
        {"file_name": "/b.jpg", "label": None},
        {"file_name": "/c.jpg", "label": "", "year": "-3", "stars": "1e2", "seen": 0},
    ]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    table = read(write(tmp_path, "m.jsonl", text))
    assert table.values("/a.jpg") == CAT
    assert table.values("/b.jpg") == DEFAULTS
    assert table.values("/c.jpg") == {"label": "none", "year": -3, "stars": 100.0, "seen": False}


def test_parquet(tmp_path: Path) -> None:
    columns = {"filename": ["/a.jpg", "/b.jpg"], "label": ["cat", None], "year": [1999, None], "stars": [4.0, None]}
    table = pa.table(columns | {"seen": [True, None], "vector": [[1.0], [2.0]]})
    pq.write_table(table, tmp_path / "m.parquet")
    metadata = read(tmp_path / "m.parquet")
    assert metadata.values("/a.jpg") == CAT
    assert metadata.values("/b.jpg") == DEFAULTS


def test_parquet_row_number_and_foreign_types(tmp_path: Path) -> None:
    field = ExtraField(name="label", type="string")
    days = [None, datetime.timedelta(1)]
    pq.write_table(pa.table({"path": ["/a.jpg", "/b.jpg"], "label": days}), tmp_path / "m.parquet")
    message = refusal(tmp_path / "m.parquet", (field,))
    assert "row 2, column 'label': datetime.timedelta(days=1) is not a string" in message
    (tmp_path / "n.parquet").write_bytes(b"PAR1 no")
    assert "n.parquet' is not a Parquet file" in refusal(tmp_path / "n.parquet")


def test_parquet_damaged_inside(tmp_path: Path) -> None:
    field = ExtraField(name="label", type="string")
    names = [f"/{number:05}.jpg" for number in range(5000)]
    pq.write_table(pa.table({"path": names, "label": names}), tmp_path / "m.parquet", compression="zstd")
    data = bytearray((tmp_path / "m.parquet").read_bytes())
    data[100:2000] = b"\xff" * 1900
    (tmp_path / "m.parquet").write_bytes(data)
    assert "is damaged after row 0" in refusal(tmp_path / "m.parquet", (field,))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mg-milvus\[parquet\]'"):
        read(tmp_path / "m.parquet")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "m.xlsx' is not a table: expected a name that ends in .csv" in refusal(tmp_path / "m.xlsx")
    for name in ("gone.csv", "gone.jsonl", "gone.parquet"):
        assert f"{name}' cannot be read: " in refusal(tmp_path / name)
    (tmp_path / "latin.csv").write_bytes(b"path,label,year,stars,seen\n/a.jpg,caf\xe9,1,1,1\n")
    assert "latin.csv' is not UTF-8 text (invalid continuation byte): save it as UTF-8" in refusal(
        tmp_path / "latin.csv"
    )
    (tmp_path / "latin.jsonl").write_bytes(b'{"path": "/a.jpg"}\n{"path": "caf\xe9.jpg"}\n')
    assert "latin.jsonl', line 2: not JSON in UTF-8" in refusal(tmp_path / "latin.jsonl")
    assert "line 1: expected one JSON object per line" in refusal(write(tmp_path, "a.jsonl", "[1]\n"))
    assert "line 2: not well-formed CSV" in refusal(write(tmp_path, "b.csv", 'path,label,year,stars,seen\n"a.jpg,1\n'))
    assert "line 3: 2 cells, expected 5" in refusal(write(tmp_path, "c.csv", "path,label,year,stars,seen\n\na.jpg,1\n"))


# Columns


def test_missing_columns_name_the_nearest(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "m.csv", "path,lable,year,stars,seen\n"))
    assert "has no column for the schema's field 'label'; did you mean 'lable'?" in message
    message = refusal(write(tmp_path, "m.csv", "path,a,b\n"))
    assert "its columns: 'path', 'a', 'b'" in message
    message = refusal(write(tmp_path, "m.csv", "image,label,year,stars,seen\n"))
    assert "has no column of paths: expected one of path, file, filename, file_name; found 'image', 'label'" in message
    assert "a name comes twice in the header: 'path', 'path'" in refusal(write(tmp_path, "m.csv", "path,path\n"))
    assert "its columns: none" in refusal(write(tmp_path, "m.csv", ""))


def test_schema_without_fields_is_told_so(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "m.csv", "path,label\n"), ())
    assert "the schema has no fields for the columns of" in message
    assert "('path', 'label'): name some under 'fields'" in message


def test_path_column_is_the_first_of_the_known_names(tmp_path: Path) -> None:
    field = ExtraField(name="filename", type="string")
    table = read_metadata(write(tmp_path, "m.csv", "filename,path\nIMG_1,/a.jpg\n"), [field], [])
    assert table.values("/a.jpg") == {"filename": "IMG_1"}
    assert table.unmatched == []


# Matching


def test_paths_match_in_every_stated_way(tmp_path: Path) -> None:
    cells = {
        "/else/where/1.jpg": "/else/where/1.jpg",  # absolute
        "sub/2.jpg": f"{tmp_path}/notes/sub/2.jpg",  # from the metadata file's folder
        "./3.jpg": f"{tmp_path}/notes/3.jpg",
        "../up/4.jpg": f"{tmp_path}/up/4.jpg",
        "d/5.jpg": "/photos/d/5.jpg",  # from the root
        "photos/6.jpg": "/photos/6.jpg",  # from the root's parent
        "7.jpg": "/single/7.jpg",  # a root that is a file
        "8.jpg": "file:///caf%E9/8.jpg",  # a folder whose name is not UTF-8
        "file:///x%FF.jpg": "file:///x%FF.jpg",
        "emo ji 🦜,\"'.jpg": "/photos/emo ji 🦜,\"'.jpg",
    }
    text = "".join(json.dumps({"path": cell, "label": str(n)}) + "\n" for n, cell in enumerate(cells))
    fields = [FIELDS[0]]
    roots = ["/photos/", "/single/7.jpg", "file:///caf%E9"]
    table = read_metadata(write(tmp_path, "notes/m.jsonl", text), fields, roots)
    assert [table.values(path)["label"] for path in cells.values()] == [str(n) for n in range(len(cells))]
    assert table.unmatched == []
    assert table.values("/other/d/5.jpg") == {"label": "none"}


def test_relative_metadata_file_and_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "m.csv", "path,label\na.jpg,one\np/b.jpg,two\nc.jpg,three\n")
    monkeypatch.chdir(tmp_path)
    table = read_metadata("m.csv", [FIELDS[0]], ["p"])
    paths = [f"{os.getcwd()}/{name}" for name in ("a.jpg", "p/b.jpg", "p/c.jpg")]
    assert [table.values(path)["label"] for path in paths] == ["one", "two", "three"]


def test_absolute_wins_and_unmatched_are_listed(tmp_path: Path) -> None:
    text = "path,label\na.jpg,relative\n/photos/a.jpg,absolute\nb.jpg,other\n"
    table = read_metadata(write(tmp_path, "m.csv", text), [FIELDS[0]], ["/photos"])
    assert table.unmatched == ["a.jpg", "/photos/a.jpg", "b.jpg"]
    assert table.values("/photos/a.jpg") == {"label": "absolute"}
    assert table.unmatched == ["a.jpg", "b.jpg"]


def test_a_second_row_for_an_image_is_refused(tmp_path: Path) -> None:
    text = "path,label\na.jpg,1\nb.jpg,2\n./a.jpg,3\n"
    message = refusal(write(tmp_path, "m.csv", text), (FIELDS[0],))
    assert "line 4: 'a.jpg' has a row already; expected one row per image" in message


@pytest.mark.parametrize("cell", ['""', "null", "7"])
def test_rows_without_a_path_are_refused(tmp_path: Path, cell: str) -> None:
    message = refusal(write(tmp_path, "m.jsonl", f'{{"path": {cell}, "label": "x"}}\n'), (FIELDS[0],))
    assert "line 1, column 'path': " in message
    assert "is not the path of an image" in message


# Values


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        ("int", "12", 12),
        ("int", " -7 ", -7),
        ("int", "9223372036854775807", 2**63 - 1),
        ("float", "12", 12.0),
        ("float", "-1.5e3", -1500.0),
        ("bool", "True", True),
        ("bool", "FALSE", False),
        ("bool", "1", True),
        ("bool", "0", False),
        ("string", "12", "12"),
        ("int", "", None),
        ("float", "", None),
        ("bool", "", None),
        ("string", "", None),
    ],
)
def test_values_of_text(tmp_path: Path, type_: str, text: str, value: object) -> None:
    got = label_of(text, type_, tmp_path)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("type_", "cell", "shown"),
    [
        ("int", '"12.0"', "'12.0' is not a whole number of 64 bits (int)"),
        ("int", "12.0", "12.0 is not a whole number"),
        ("int", "true", "True is not a whole number"),
        ("int", '"1_000"', "'1_000' is not a whole number"),
        ("int", "9223372036854775808", "9223372036854775808 is not a whole number of 64 bits"),
        ("int", '"' + "9" * 5000 + '"', "... is not a whole number"),
        ("float", '"nan"', "'nan' is not a finite number (float)"),
        ("float", "Infinity", "inf is not a finite number"),
        ("float", "false", "False is not a finite number"),
        ("float", '"1_0"', "'1_0' is not a finite number"),
        ("float", "1" + "0" * 400, "... is not a finite number"),
        ("bool", '"maybe"', "'maybe' is not true, false, yes, no, 0 or 1 (bool)"),
        ("bool", "2", "2 is not true, false, yes, no, 0 or 1"),
        ("bool", "1.0", "1.0 is not true, false, yes, no, 0 or 1"),
        ("string", "5", "5 is not a string"),
        ("string", '["a"]', "['a'] is not a string"),
        ("string", '"\\ud800"', "'\\ud800' is not a string"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, type_: str, cell: str, shown: str) -> None:
    field = ExtraField(name="x", type=type_)  # type: ignore[arg-type]
    file = write(tmp_path, "m.jsonl", f'{{"path": "/ok.jpg"}}\n{{"path": "/a.jpg", "x": {cell}}}\n')
    message = refusal(file, (field,))
    assert message.startswith(f"{str(file)!r}, line 2, column 'x': ")
    assert message.endswith(shown) or shown in message


def test_length_is_counted_in_bytes(tmp_path: Path) -> None:
    field = ExtraField(name="x", type="string", max_length=4)
    assert read_metadata(write(tmp_path, "m.csv", "path,x\na.jpg,éé\n"), [field], []).values(f"{tmp_path}/a.jpg") == {
        "x": "éé"
    }
    message = refusal(write(tmp_path, "m.csv", "path,x\na.jpg,ééé\n"), (field,))
    assert "line 2, column 'x': 'ééé' has 6 bytes, more than max_length=4" in message


def test_a_default_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "m.csv", "path,x\n")
    field = ExtraField.model_construct(name="x", type="int", default="many", max_length=9)
    assert "default of field 'x': 'many' is not a whole number" in refusal(file, (field,))
