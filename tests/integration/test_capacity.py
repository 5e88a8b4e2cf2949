"""``mgm plan``: arithmetic worked out by hand, and its predictions against a real file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pymilvus import DataType

from mg_milvus import errors
from mg_milvus.bulk import dataset
from mg_milvus.capacity import Assumptions, plan
from mg_milvus.config import MilvusConfig
from mg_milvus.images.discover import image_id
from mg_milvus.schema.models import ExtraField, Granularity, Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.collections import _TYPES
from mg_milvus.store.milvus import MilvusStore
from mg_milvus.store.rows import Layout
from tests.in_process import mgm

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_bytes_of_the_default_schema():
    made = plan(1_000_000_000)
    (held,) = made.collections
    assert held.fields == {
        "id": 32, "path": 60, "size": 8, "mtime_ns": 8, "taken": 8, "width": 8, "height": 8, "content_hash": 32,
        "tags": 8, "coarse": 8, "mid": 16, "fine": 32,
    }  # fmt: skip
    # A list of BIN_IVF_FLAT has a code and a number of 8 bytes a row.
    assert made.index == {"coarse": 16e9, "mid": 24e9, "fine": 40e9}
    # 2**30 // 228 rows fit into a segment of 1 GiB: 4,709,393, of which a billion has 213.
    assert held.segments == 213
    assert held.nlist == round(4 * 4_709_393**0.5)
    assert made.encode_hours == pytest.approx(1e9 / 81 / 3600)
    assert plan(10**9, None, Assumptions(machines=4, images_per_second=1000)).encode_hours == pytest.approx(
        1e9 / 4000 / 3600
    )
    # 14 + name + value bytes a column, 106 a row: 551, 25 of them for tags; the copy of 56 bytes of codes is 76 of
    # text, 14 + 6 + 76 bytes. Of 647, 6 fit into a page of 4,096.
    # In the index over the keys, 32 bytes and 9 more a row, in pages that are full to three quarters.
    assert made.lite_file == pytest.approx(1e9 * (4096 / 6 + 41 / 0.75))


def test_the_rates_are_those_that_were_measured():
    figures = json.loads((RESULTS / "encode_cost.json").read_text())["figures"]
    measured = {preset: figures[preset]["images/s of two cores"] for preset in ("default", "regions", "precise")}
    for preset, rate in measured.items():
        assert plan(1000, Schema.load(preset)).images_per_second == pytest.approx(rate, rel=0.02), preset
    own = Schema.model_validate({"encoder": {"name": "mine.safetensors"}})
    assert plan(1000, own).images_per_second == plan(1000).images_per_second
    assert "the rate is that of the encoder 'builtin'" in plan(1000, own).notes[-1]
    assert "the rate is that of the encoder 'large'" in plan(1000, Schema.load("precise")).notes[-1]
    given = plan(1000, None, Assumptions(images_per_second=7))
    assert given.images_per_second == 7
    assert not any("the rate is" in note for note in given.notes)


def test_fields_replicas_mmap_and_index_count():
    types = {"caption": "string", "year": "int", "price": "float", "sold": "bool"}
    wide = Schema(fields=tuple(ExtraField(name=name, type=kind) for name, kind in types.items()))
    fields = plan(10, wide, Assumptions(text_bytes=200)).collections[0].fields
    # Milvus counts 8 bytes of INT64 and DOUBLE, 1 of INT8, which holds a bool and -1 for none (EstimateSizePerRecord).
    assert {name: fields[name] for name in types} == {"caption": 200, "year": 8, "price": 8, "sold": 1}
    columns = {column.name: column.type for column in Layout(wide).columns}
    assert _TYPES[columns["sold"]] == DataType.INT8
    plain, twice = Schema(), Schema.model_validate({"storage": {"replicas": 2}})
    assert plan(1000, twice).server_memory == 2 * plan(1000, plain).server_memory
    mapped = Schema.model_validate({"granularities": [{"name": "fine", "bits": 256, "mmap": True}]})
    held = Schema.model_validate({"granularities": [{"name": "fine", "bits": 256}]})
    assert plan(1000, held).server_disk == 0
    assert plan(1000, mapped).server_disk == 1000 * (32 + 8)
    assert plan(1000, held).server_memory > plan(1000, mapped).server_memory
    flat = Schema.model_validate({"storage": {"index": "BIN_FLAT"}})
    assert plan(1000, flat).index["fine"] == 32_000


def test_what_to_change_when_it_does_not_fit():
    schema = Schema.model_validate({"storage": {"replicas": 2}, "fields": [{"name": "caption", "type": "string"}]})
    made = plan(10**8, schema, Assumptions(memory=64e9))
    assert made.server_memory > 64e9
    told = [change.what.partition(":")[0] for change in made.changes]
    assert told == [
        "mmap",
        "mmap",
        "mmap",
        "replicas",
        "no fields of your own",
        "the granularities of the preset compact (encode again)",
    ]
    assert all(change.memory < made.server_memory for change in made.changes)
    assert made.changes[0].disk == 10**8 * 40 * 2
    assert f"or {-(-made.server_memory // 64e9):.0f} query nodes" in made.notes[0]
    roomy = plan(10**6, None, Assumptions(memory=64e9))
    assert (roomy.changes, roomy.notes[0]) == ((), "it fits into the memory of the server")


@pytest.mark.parametrize("bad", [{"machines": 0}, {"memory": -1.0}, {"path_bytes": 0}, {"text_bytes": -1}])
def test_numbers_that_make_no_sense(bad):
    with pytest.raises(errors.QueryError, match=f"{next(iter(bad))} is .*, expected a number above 0"):
        plan(10, None, Assumptions(**bad))
    with pytest.raises(errors.QueryError, match="images is 0"):
        plan(0)


ROWS = 3_000


@pytest.mark.parametrize(
    "schema",
    [
        Schema(),
        Schema(granularities=(Granularity(name="fine", bits=2048),)),
        Schema(fields=(ExtraField(name="caption", type="string"), ExtraField(name="year", type="int"))),
        Schema.model_validate({"regions": {"bits": 64, "scales": [{"size": 0.5, "grid": 3}]}}),
    ],
    ids=["default", "one long code", "own fields", "regions"],
)
def test_predictions_hold_on_milvus_lite(tmp_path, schema):
    """Within 15 % at 3,000 rows; benchmarks/capacity.py does the same up to a million, memory included."""
    random = np.random.default_rng(0)
    store = MilvusStore(MilvusConfig(str(tmp_path / "mgm.db"), collection="images"))
    description = Description(schema, "0" * 16)
    store.create(description)
    rows = []
    for _ in range(ROWS):
        path = f"/data/{random.bytes(40).hex()}"[:56] + ".jpg"
        own = {"caption": random.bytes(40).hex()[:80], "year": int(random.integers(2**40, 2**60))}
        numbers = random.integers((20_000, 10**18, 300, 300), (2_000_000, 2 * 10**18, 6000, 6000))
        codes = {name: random.bytes(bits // 8) for name, bits in schema.bits.items()}
        fields = {field.name: own[field.name] for field in schema.fields}
        parts = random.bytes(schema.regions.bytes_per_image) if schema.regions else b""
        tags = [*random.integers(0, 30_000, 2).tolist(), int(random.integers(30_000, 31_560))]
        rows.append(Row(image_id(path), path, *map(int, numbers), random.bytes(16).hex(), codes, fields, parts, tags))
    store.upsert(rows)
    store.close()
    made = plan(ROWS, schema, Assumptions(text_bytes=80))
    assert made.lite_file == pytest.approx((tmp_path / "mgm.db").stat().st_size, rel=0.15)
    assert made.codes_folder == pytest.approx(len(dataset.to_parquet(rows, description)), rel=0.15)


def test_the_command(tmp_path):
    done = mgm("plan", "--images", "1e9", "--memory", "64GB", "--schema", "server", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1,000,000,000 images, 228 bytes each: id 32, path 60, ")
    assert lines[3].startswith("Milvus Lite      737 GB file, ")
    assert "To fit into the memory, one of:" in lines
    done = mgm("plan", "--images", "2,000", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["images"] == 2000
    for bad in (("--images", "many"), ("--images", "10", "--memory", "64 gallons"), ("--images", "1GB")):
        done = mgm("plan", *bad, cwd=tmp_path)
        assert done.returncode == 2
        assert "is not a number above 0, such as" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_regions_are_counted_by_hand():
    schema = Schema.model_validate(
        {"regions": {"bits": 128, "scales": [{"size": 0.7, "grid": 2}, {"size": 0.5, "grid": 3}]}}
    )
    made, plain = plan(1000, schema), plan(1000, Schema())  # too few for an index over the keys
    images, regions = made.collections
    assert images == plain.collections[0]
    # 13 regions an image; ids of 32 digits, a colon and the number: ten of one digit, three of two.
    assert regions.rows == 13_000
    assert regions.fields == {"id": 33 + 16 / 13, "scale": 8, "code": 16}
    # The key twice, 74 bytes a row, 14 and the name for each column, 1 byte for the scale: 212; 19 fit into a page.
    assert made.lite_file - plain.lite_file == pytest.approx(13_000 * 4096 / 19)
    assert made.codes_folder - plain.codes_folder == 13_000 * 16
    assert made.index == plain.index | {"regions": 13_000 * (16 + 8)}
    assert made.server_memory - plain.server_memory == pytest.approx(1.3 * 13_000 * (92 + 33 + 33 + 16 / 13 + 8 + 24))
    assert made.encode_hours > plain.encode_hours
    assert "no regions: no search for details" in [
        change.what for change in plan(10**8, schema, Assumptions(memory=1e9)).changes
    ]
