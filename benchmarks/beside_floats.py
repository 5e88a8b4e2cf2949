"""Codes beside the float features of the same network, and beside the least that Milvus Lite writes for these codes.

    python benchmarks/beside_floats.py [--rows 20000] [--dimensions 1280] [--json FILE]

Three sides in one run, in turn: exact search of one FLOAT_VECTOR with the file's name, as Milvus' image search
tutorials do it; what an ingest of mg-milvus writes, and its query of three granularities with fusion; and as the floor
a collection of key, path and the three codes only, with the three bare searches. Seconds are those of processors, of
this process and of Milvus Lite together, so that what else the machine does hardly counts. Values are synthetic.

Last, the bytes of every field in a row of the file, as Milvus Lite has written it.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from processes import engine_pid, file_size, memory
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import schema_pb2
from result_file import write_result
from short.turns import spent
from side_by_side.floats import Binary, OneVector, batches, name_of, row_id
from side_by_side.measuring import show
from synthetic import synthetic_codes

from mg_milvus.codes import signs
from mg_milvus.schema.models import Schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from mg_milvus.codes import Codes

DEPTH, QUERIES = 100, 40


class Least:
    """Key, path and codes in Milvus Lite, through pymilvus alone."""

    def __init__(self, file: Path, schema: Schema) -> None:
        self.file, self.client = file, MilvusClient(str(file))
        columns, indexes = self.client.create_schema(), self.client.prepare_index_params()
        columns.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
        columns.add_field("path", DataType.VARCHAR, max_length=1024)
        for name, bits in schema.bits.items():
            columns.add_field(name, DataType.BINARY_VECTOR, dim=bits)
            indexes.add_index(name, index_type="BIN_FLAT", metric_type="HAMMING")
        self.client.create_collection("images", schema=columns, index_params=indexes)

    def insert(self, start: int, codes: dict[str, Codes]) -> None:
        rows = [{"id": row_id(n), "path": name_of(n)} for n in range(start, start + len(next(iter(codes.values()))))]
        for name, own in codes.items():
            for row, code in zip(rows, own, strict=True):
                row[name] = code.tobytes()
        self.client.upsert("images", rows)

    def search(self, codes: dict[str, Codes]) -> None:
        for name, code in codes.items():
            self.client.search(
                "images", [code[0].tobytes()], limit=DEPTH, anns_field=name, output_fields=["path"],
                search_params={"metric_type": "HAMMING"},
            )  # fmt: skip

    def close(self) -> None:
        self.client.close()


def taken(action: Callable[[], Any]) -> float:
    """Seconds of processors."""
    start = spent()
    action()
    return spent() - start


def compare(work: Path, rows: int, dimensions: int) -> dict[str, Any]:
    """Side -> its figures, and the bytes of a row's fields."""
    random, schema = np.random.default_rng(0), Schema()
    codes = synthetic_codes(rows, schema, seed=1)
    floats = random.standard_normal((1000, dimensions)).astype(np.float32)
    sides: dict[str, Any] = {
        "floats": OneVector(work / "floats.db", dimensions, "FLAT"),
        "mg-milvus": Binary(work / "binary.db", schema),
        "floor": Least(work / "least.db", schema),
    }
    empty = {name: (file_size(side.file), memory(engine_pid(side.file), "RssAnon")) for name, side in sides.items()}
    written, asked = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
    for part in batches(rows):
        own = {name: values[part] for name, values in codes.items()}
        some = np.roll(floats, part.start)[: part.stop - part.start]
        for name, side in sides.items():
            values = some if name == "floats" else own
            written[name] += taken(lambda side=side, values=values, start=part.start: side.insert(start, values))
    for turn in range(QUERIES + 1):
        own = {name: values[[random.integers(rows)]] for name, values in codes.items()}
        real = {name: signs(code) for name, code in own.items()}
        for name, value in {"floats": floats[turn], "mg-milvus": real, "floor": own}.items():
            seconds = taken(lambda side=sides[name], value=value: side.search(value))
            asked[name] += seconds if turn else 0.0
    table = {}
    for name, side in sides.items():
        size, held = empty[name]
        table[name] = {
            "file bytes": (file_size(side.file) - size) / rows,
            "memory bytes": (memory(engine_pid(side.file), "RssAnon") - held) * 2**20 / rows,
            "written us": 1e6 * written[name] / rows,
            "query ms": 1000 * asked[name] / QUERIES,
        }
    for side in sides.values():
        side.close()
    ratios = {name: {key: table["floats"][key] / value for key, value in own.items()} for name, own in table.items()}
    return {"rows": rows, "dimensions": dimensions, "sides": table, "floats over": ratios,
            "bytes of a row": row_bytes(sides["mg-milvus"].file)}  # fmt: skip


def row_bytes(file: Path) -> dict[str, int]:
    """Field -> bytes that a row has for it, values, names and marks; and the row's key and place in SQLite's table."""
    with closing(sqlite3.connect(file)) as database:
        database.text_factory = bytes
        key, data = database.execute("SELECT milvus_id, data FROM images LIMIT 1").fetchone()
    found: dict[str, int] = {}
    place = 0
    while place < len(data) and data[place] == 0x0A:  # field 1, bytes: the fields of the row
        size, start = _number(data, place + 1)
        field = schema_pb2.FieldData.FromString(data[start : start + size])
        found[field.field_name] = start + size - place
        place = start + size
    return found | {"key in the table": len(key)}


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of protobuf's, seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=1280, help="of the float features")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(Path(folder), options.rows, options.dimensions)
    columns = ["file bytes", "memory bytes", "written us", "query ms"]
    show(f"{options.rows:,} rows, each", columns, figures["sides"])
    show("floats over", columns, figures["floats over"])
    show("bytes of a row", ["bytes"], {name: {"bytes": size} for name, size in figures["bytes of a row"].items()})
    if options.json:
        write_result(options.json, figures)


if __name__ == "__main__":
    main()
