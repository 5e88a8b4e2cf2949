"""Milvus Lite: this package beside bare pymilvus, codes beside floats, and ways of asking beside each other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pymilvus import DataType, MilvusClient
from side_by_side.floats import Binary, OneVector, repeated_codes, repeated_floats, row

from mg_milvus.codes import signs
from mg_milvus.schema.models import REGIONS, Schema
from mg_milvus.search.query import Query
from mg_milvus.search.searcher import Searcher
from mg_milvus.store.rows import Layout
from short.turns import ratio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mg_milvus.codes import Codes
    from short.turns import Side, Turns

ROWS, BATCH, WITH_PARTS = 20_000, 500, 2000
DIMENSIONS = 1280
DEPTH, TOGETHER = 100, 8
PARTS_SCHEMA = "version: 1\nregions: {bits: 128, scales: [{size: 0.7, grid: 2}, {size: 0.5, grid: 3}]}"


class Bare:
    """The same columns and codes through pymilvus alone, as its examples do it."""

    def __init__(self, file: Path, schema: Schema) -> None:
        self.client = MilvusClient(str(file))
        self.layout = Layout(schema)
        columns = self.client.create_schema()
        for column in self.layout.columns:
            if column.type == "string":
                columns.add_field(
                    column.name, DataType.VARCHAR, max_length=column.max_bytes, is_primary=column.name == "id"
                )
            elif column.type == "shorts":
                capacity = column.max_bytes // 2
                columns.add_field(column.name, DataType.ARRAY, element_type=DataType.INT16, max_capacity=capacity)
            else:
                columns.add_field(column.name, DataType.INT64)
        indexes = self.client.prepare_index_params()
        for name, bits in schema.bits.items():
            columns.add_field(name, DataType.BINARY_VECTOR, dim=bits)
            indexes.add_index(name, index_type="BIN_FLAT", metric_type="HAMMING")
        self.client.create_collection("bare", schema=columns, index_params=indexes)

    def upsert(self, records: list[dict[str, Any]]) -> None:
        self.client.upsert("bare", records)

    def ask(self, codes: dict[str, Codes]) -> None:
        """A search for each code, then the rows of all that they find."""
        ids: set[str] = set()
        for name, value in codes.items():
            (found,) = self.client.search(
                "bare", [value[0].tobytes()], limit=DEPTH, anns_field=name, search_params={"metric_type": "HAMMING"}
            )
            ids.update(hit["id"] for hit in found)
        for known in self.client.query("bare", ids=list(ids), output_fields=self.layout.output_fields(tuple(codes))):
            dict(known)  # pymilvus cuts codes out of the answer as rows are read


def ratios(turns: Turns, work: Path, _folder: Path | None) -> dict[str, float]:
    random = np.random.default_rng(0)
    schema = Schema()
    codes = clustered(schema.bits, ROWS, random)
    binary, bare = Binary(work / "binary.db", schema), Bare(work / "bare.db", schema)
    upsert = ratio(upserts(binary, bare, codes))
    found = asked(turns, binary, bare, codes, random) | {"upsert": upsert}
    binary.store.close()
    bare.client.close()
    return found | beside_floats(turns, codes, work, random) | {"details": details(turns, work, random)}


def upserts(binary: Binary, bare: Bare, codes: dict[str, Codes]) -> Iterator[tuple[Side, Side]]:
    """Batches of new rows for both sides, until all ``ROWS`` are there."""
    for start in range(0, ROWS, BATCH):
        rows = [row(n, {name: values[n] for name, values in codes.items()}) for n in range(start, start + BATCH)]
        records = bare.layout.records(rows)
        yield partial(binary.store.upsert, rows), partial(bare.upsert, records)


def clustered(bits: dict[str, int], rows: int, random: np.random.Generator) -> dict[str, Codes]:
    """Codes around 500 centres, as images of some kinds have them."""
    centres = {name: random.integers(0, 256, (500, length // 8), np.uint8) for name, length in bits.items()}
    return {name: repeated_codes(values, rows, random) for name, values in centres.items()}


def real(codes: dict[str, Codes]) -> dict[str, Any]:
    """Codes as a search takes them."""
    return {name: signs(values) for name, values in codes.items()}


def asked(
    turns: Turns, binary: Binary, bare: Bare, codes: dict[str, Codes], random: np.random.Generator
) -> dict[str, float]:
    """A query beside the bare calls that it takes in the plainest way, and beside other ways to ask."""
    searcher = Searcher(binary.store, binary.schema)
    full = Query.of(binary.schema, {"k": 10, "depth": DEPTH})

    def some(how_many: int = 1) -> dict[str, Codes]:
        chosen = random.integers(0, ROWS, how_many)
        return {name: values[chosen] for name, values in codes.items()}

    def one_by_one() -> None:
        for _ in range(TOGETHER):
            searcher.search(real(some()), full)

    return {
        "query": turns.times_as_fast(lambda: searcher.search(real(some()), full), lambda: bare.ask(some())),
        "queries together": turns.times_as_fast(lambda: searcher.search(real(some(TOGETHER)), full), one_by_one),
    }


def beside_floats(turns: Turns, codes: dict[str, Codes], work: Path, random: np.random.Generator) -> dict[str, float]:
    """What an ingest writes of an image beside one vector of floats and the name: time, a query, bytes."""
    vectors = repeated_floats(random.standard_normal((500, DIMENSIONS)).astype(np.float32), ROWS, random)
    floats, binary = OneVector(work / "floats.db", DIMENSIONS, "FLAT"), Binary(work / "beside.db", Schema())
    empty = [side.file.stat().st_size for side in (binary, floats)]

    def inserts(part: slice) -> tuple[Side, Side]:
        return (
            lambda: binary.insert(part.start, {name: values[part] for name, values in codes.items()}),
            lambda: floats.insert(part.start, vectors[part]),
        )

    written = ratio(inserts(slice(start, start + BATCH)) for start in range(0, ROWS, BATCH))
    grown = [side.file.stat().st_size - before for side, before in zip((binary, floats), empty, strict=True)]
    asked = turns.times_as_fast(
        lambda: binary.search(real({name: values[[random.integers(ROWS)]] for name, values in codes.items()})),
        lambda: floats.search(vectors[random.integers(ROWS)]),
    )
    binary.close()
    floats.close()
    return {
        "writing beside floats": written,
        "query beside floats": asked,
        "bytes beside floats": grown[1] / grown[0],
    }


def details(turns: Turns, work: Path, random: np.random.Generator) -> float:
    """A query for a detail beside one for whole images, in the same index."""
    schema = Schema.from_yaml(PARTS_SCHEMA)
    assert schema.regions
    binary = Binary(work / "parts.db", schema)
    codes = clustered(schema.bits, WITH_PARTS, random)
    regions = clustered({REGIONS: schema.regions.bits}, WITH_PARTS * schema.regions.count, random)[REGIONS]
    own = regions.reshape(WITH_PARTS, -1)
    for start in range(0, WITH_PARTS, BATCH):
        binary.store.upsert([
            replace(row(n, {name: values[n] for name, values in codes.items()}), region_codes=own[n].tobytes())
            for n in range(start, start + BATCH)
        ])  # fmt: skip
    whole = Query.of(schema, {})
    detail = Query.of(schema, {"regions": "contains"})

    def ask(query: Query) -> None:
        asked = {name: signs(values[[random.integers(WITH_PARTS)]]) for name, values in codes.items()}
        scales = random.integers(0, len(regions), len(schema.regions.scales if schema.regions else ()))
        Searcher(binary.store, schema).search(asked | {REGIONS: signs(regions[scales])[None]}, query)

    found = turns.times_as_fast(lambda: ask(detail), lambda: ask(whole))
    binary.store.close()
    return found
