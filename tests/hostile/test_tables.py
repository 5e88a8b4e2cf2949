"""Parquet files of a few kilobytes that unfold to gigabytes, and marks of code folders that lie."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mg_milvus import errors
from mg_milvus.bulk.dataset import CodeFolder, Shard
from mg_milvus.bulk.encode import encode
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.metadata import read_metadata
from mg_milvus.schema.models import ExtraField
from tests.conftest import make_photos
from tests.found_images import images
from tests.in_process import mgm
from tests.waiting import PATIENCE

FIELDS = (ExtraField(name="kind", type="string", default=""),)
UNFOLDED = 32 << 20


def repeated(value: str | bytes, rows: int) -> pa.Array:
    """A column that is one value in the file, and as many as one likes in memory."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def write(file: Path, use_dictionary: bool = True, **columns: object) -> Path:
    pq.write_table(
        pa.table(columns), file, compression="zstd", store_schema=False, use_dictionary=use_dictionary,
        write_statistics=False,
    )  # fmt: skip
    assert file.stat().st_size < 100_000
    return file


def one_list(kind: pa.DataType) -> pa.Array:
    """A cell of many zeros, which are a few bytes in the file."""
    return pa.ListArray.from_arrays(pa.array([0, 1 << 22], pa.int32()), pa.array(np.zeros(1 << 22), kind))


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of one cell of text and one of an image, which are huge."""
    return write(
        tmp_path_factory.mktemp("huge") / "t.parquet", use_dictionary=False,
        path=["a.jpg"], kind=["x" * UNFOLDED], jpg=[bytes(UNFOLDED)],
    )  # fmt: skip


def test_a_huge_cell_is_refused_before_it_is_read(huge: Path) -> None:
    with pytest.raises(errors.SchemaError, match=r"the column 'kind' would expand from [\d,]+ bytes to 33,5") as caught:
        read_metadata(huge, FIELDS, [str(huge.parent)])
    assert "\n" not in str(caught.value)
    failures: list = []
    assert list(images([huge], Shard(), failures.append)) == []
    assert [failure.path for failure in failures] == [str(huge)]
    assert "the column 'jpg' would expand from" in failures[0].reason


def test_a_cell_that_is_a_huge_list_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", path=["a.jpg"], kind=one_list(pa.int8()))
    with pytest.raises(errors.SchemaError, match="the column 'kind' has 4,194,304 values in 1 rows"):
        read_metadata(file, FIELDS, [str(tmp_path)])


MEASURE = """
import sys
from pathlib import Path
import pyarrow.parquet
from mg_milvus.bulk.dataset import Shard
from tests.found_images import images
from mg_milvus.errors import SchemaError
from mg_milvus.ingest.metadata import read_metadata
from mg_milvus.schema.models import ExtraField

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10

file, before = Path(sys.argv[1]), peak()
try:
    read_metadata(file, (ExtraField(name="kind", type="string", default=""),), [str(file.parent)])
except SchemaError as error:
    assert "row 1, column 'kind'" in str(error), error
    print(peak() - before)
print(sum(1 for _ in images([file], Shard(), print)), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads /proc")
def test_a_dictionary_that_is_repeated_fits_into_memory(tmp_path: Path) -> None:
    """The file says that it holds a megabyte, and that is so: 1,000 rows of it are a gigabyte in each column."""
    rows, size = 1000, 1 << 20
    file = write(
        tmp_path / "t.parquet", path=[f"{row}.jpg" for row in range(rows)], kind=repeated("x" * size, rows),
        jpg=repeated(bytes(size), rows),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, file], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    text, (found, both) = int(done.stdout.split()[0]), map(int, done.stdout.split()[1:])
    assert found == rows
    assert text < 600
    assert both < 600


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    encode(make_photos(folder / "photos", 1), out=folder / "codes", encoder="builtin")
    return folder / "codes"


def changed(codes: Path, folder: Path, **columns: pa.Array) -> Path:
    """The same folder, its part of one row with these columns in it."""
    folder.mkdir()
    for file in codes.iterdir():
        if file.suffix != ".parquet":
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        table = pq.read_table(file).slice(0, 1)
        for name, column in columns.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(name), column)
        numbers = [f"{name}.list.element" for name in columns]
        pq.write_table(table, folder / file.name, compression="zstd", use_dictionary=numbers)
        assert (folder / file.name).stat().st_size < 100_000
    return folder


def test_files_of_codes_that_unfold_are_refused_before_they_are_read(codes: Path, tmp_path: Path) -> None:
    folders = {
        changed(codes, tmp_path / "code", fine=one_list(pa.uint8())): "the column 'fine' has 4,194,304 values",
        changed(codes, tmp_path / "text", path=pa.array(["x" * (32 << 20)])): "the column 'path' would expand from",
    }
    for folder, message in folders.items():
        done = mgm("load", folder, "--partial", "--uri", "memory:", cwd=tmp_path)
        assert (done.returncode, message in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr


MARKS = {
    "deep": "[" * 100_000,
    "digits": '{"files": {"a": ' + "9" * 10_000 + "}}",
    "a fraction": '{"files": {"a": 1.5}}',
    "less than none": '{"files": {"a": -1}}',
    "no numbers": '{"files": {"a": "many"}}',
    "infinite": '{"files": {"a": 1e999}}',
    "a list": "[]",
    "files in a list": '{"files": ["a"]}',
    "nothing": "{}",
    "null": "null",
    "no text": "\udcff",
    "huge": json.dumps({"mg_milvus": 1, "files": {}, "more": "x" * (33 << 20)}),
}


@pytest.mark.parametrize("kind", MARKS)
def test_marks_of_shards_that_lie_are_damaged(kind: str, codes: Path, tmp_path: Path) -> None:
    folder = changed(codes, tmp_path / "codes")
    (folder / "shard-0001-of-0001.json").write_bytes(MARKS[kind].encode(errors="surrogateescape"))
    with pytest.raises(errors.CodeFileError, match=r"shard-0001-of-0001.json is damaged: run mgm encode") as caught:
        CodeFolder(folder).finished(Shard())
    assert "\n" not in str(caught.value)
    with ImageIndex.open("memory:") as index, pytest.raises(errors.CodeFileError):
        index.load(folder)
