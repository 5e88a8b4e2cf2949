"""Codes of regions in files: encoded, loaded, exported and moved, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mg_milvus import errors
from mg_milvus.bulk.encode import EncodeOptions, encode
from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.schema.models import Schema
from mg_milvus.store.milvus import open_store
from tests.conftest import make_photos
from tests.images import collage
from tests.in_process import mgm
from tests.integration.test_bulk import damaged, everything, parts, table
from tests.servers import lite_server

REGIONS, BYTES = 4 + 9, 8
SCHEMA = "encoder: {heads: fixed}\nregions: {bits: 64, scales: [{size: 0.7, grid: 2}, {size: 0.5, grid: 3}]}\n"
NAMES = [f"{number:02}.png" for number in range(10)]


def regions(uri: str | Path) -> dict[str, tuple[int, bytes]]:
    """Region id -> scale and code, as Milvus has them in the companion collection."""
    store = open_store(MilvusConfig(str(uri), collection="images"))
    try:
        rows = store._client.query("images_regions", filter="scale >= 0", output_fields=["id", "scale", "code"])
        return {row["id"]: (row["scale"], row["code"][0]) for row in rows}
    finally:
        store.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """``photos/`` of 10 collages, ``schema.yaml``, ``one.db`` of an ingest, and ``codes/`` of two shards."""
    folder = tmp_path_factory.mktemp("regions")
    (folder / "photos").mkdir()
    for number, name in enumerate(NAMES):
        collage(number).save(folder / "photos" / name)
    (folder / "schema.yaml").write_text(SCHEMA)
    common = ("photos", "--schema", "schema.yaml")
    assert mgm("ingest", *common, "--uri", "one.db", cwd=folder).returncode == 0
    for shard in ("1/2", "2/2"):
        done = mgm(
            "encode", *common, "--encoder", "builtin", "--out", "codes", "--shard", shard, "--rows-per-file", "3",
            "--batch-size", "3", cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def test_an_image_and_its_regions_are_one_row_of_the_file(home):
    found = regions(home / "one.db")
    assert len(found) == 10 * REGIONS
    rows = table(home / "codes")
    assert pq.read_schema(parts(home / "codes")[0]).field("$regions").type == pa.list_(pa.uint8())
    for name in NAMES:
        key = image_id(str(home / "photos" / name))
        assert bytes(rows[key]["$regions"]) == b"".join(found[f"{key}:{number}"][1] for number in range(REGIONS))


def test_loaded_shards_are_what_one_ingest_makes(home):
    assert mgm("load", "codes", "--uri", "two.db", cwd=home).returncode == 0
    assert everything(str(home / "two.db")) == everything(str(home / "one.db"))
    assert regions(home / "two.db") == regions(home / "one.db")
    with ImageIndex.open(home / "two.db") as two, ImageIndex.open(home / "one.db") as one:
        detail = collage(7).crop((120, 0, 240, 80))
        hits = two.query(detail, regions="contains")
        assert len(hits) == 10
        assert all(hit.box is not None for hit in hits)
        assert hits == one.query(detail, regions="contains")
        assert two.load(home / "codes").rows == 10
    assert regions(home / "two.db") == regions(home / "one.db")
    done = mgm("doctor", "--uri", "two.db", "--json", cwd=home)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["regions"]["message"] == f"{10 * REGIONS} codes of regions, in step with the images"


def test_export_and_load_move_regions_to_a_server_exactly(home, tmp_path, monkeypatch):
    monkeypatch.setattr("mg_milvus.bulk.dataset.BYTES_PER_FILE", 500)  # several files
    monkeypatch.setattr("mg_milvus.store.milvus._ROWS_A_CALL", 4)
    with ImageIndex.open(home / "one.db") as here, lite_server(tmp_path / "server.db") as server:
        assert here.export(tmp_path / "backup").files > 1
        assert mgm("load", "backup", "--uri", server.uri, cwd=tmp_path).returncode == 0
        assert everything(server.uri) == everything(str(home / "one.db"))
        assert regions(server.uri) == regions(home / "one.db")
        with ImageIndex.open(server.uri) as there:
            assert there.schema == here.schema
            detail = collage(3).crop((0, 80, 120, 160))
            options = {"weights": {"coarse": 1, "regions": 2}, "k": 10}
            assert there.query(detail, **options) == here.query(detail, **options)
            there.export(tmp_path / "again")
    assert table(tmp_path / "again") == table(tmp_path / "backup")
    assert {key: row["$regions"] for key, row in table(tmp_path / "backup").items()} == {
        key: row["$regions"] for key, row in table(home / "codes").items()
    }


def test_a_run_that_was_stopped_goes_on(home, tmp_path):
    def stop(progress):
        if progress.done >= 4:
            raise KeyboardInterrupt

    options = EncodeOptions(schema=Schema.load(home / "schema.yaml"), settings=Settings(batch_size=2))
    settings = {"out": tmp_path / "codes", "encoder": "builtin", "options": options}
    assert encode(home / "photos", progress=stop, **settings).interrupted
    report = encode(home / "photos", **settings)
    assert (report.unchanged, report.encoded) == (4, 6)
    assert {key: row["$regions"] for key, row in table(tmp_path / "codes").items()} == {
        key: row["$regions"] for key, row in table(home / "codes").items()
    }


def test_an_encoder_fitted_for_a_schema_is_the_same_on_every_machine(tmp_path):
    make_photos(tmp_path / "photos")
    (tmp_path / "schema.yaml").write_text(SCHEMA.replace("fixed", "adapt"))
    done = mgm("fit", "photos", "--schema", "schema.yaml", "--out", "mine.safetensors", "--json", cwd=tmp_path)
    fitted = json.loads(done.stdout)["fingerprint"]
    report = encode(
        tmp_path / "photos/disc", out=tmp_path / "codes", encoder=tmp_path / "mine.safetensors",
        options=EncodeOptions(schema=Schema.load(tmp_path / "schema.yaml")),
    )  # fmt: skip
    # Its head of regions is taken as it is: what is fitted twice could differ in the last bit.
    assert report.fingerprint == fitted
    assert load_encoder(tmp_path / "mine.safetensors").bits["regions"] == 64
    done = mgm("fit", "photos", "--schema", "regions", "--bits", "coarse=32", "--out", "x.safetensors", cwd=tmp_path)
    assert (done.returncode, "give --bits or --schema" in done.stderr) == (2, True)
    done = mgm("fit", "photos", "--schema", "regions", "--method", "lsh", "--out", "x.safetensors", cwd=tmp_path)
    assert (done.returncode, "regions have adaptive heads only" in done.stderr) == (1, True)


def test_regions_of_the_wrong_length_are_refused(home, tmp_path):
    folder = tmp_path / "codes"
    folder.mkdir()
    for file in (home / "codes").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    part = parts(folder)[0]
    values = pq.read_table(part)["$regions"].to_pylist()
    damaged(part, "$regions", pa.array([values[0][:-8], *values[1:]], pa.list_(pa.uint8())))
    with (
        ImageIndex.open(tmp_path / "x.db") as index,
        pytest.raises(errors.CodeFileError, match=f"a code of .regions is not {REGIONS * BYTES} bytes long"),
    ):
        index.load(folder)


def test_collections_with_other_regions_are_refused(home, tmp_path):
    (tmp_path / "other.yaml").write_text(SCHEMA.replace("grid: 3", "grid: 4"))
    for schema, told in ((tmp_path / "other.yaml", "regions.scales"), ("default", "regions is")):
        with ImageIndex.open("memory:", schema=schema) as index, pytest.raises(errors.SchemaMismatchError) as raised:
            index.load(home / "codes")
        assert told in str(raised.value)


def test_an_export_lacks_nothing(home, tmp_path):
    (tmp_path / "x.db").write_bytes((home / "one.db").read_bytes())
    key = image_id(str(home / "photos" / NAMES[4]))
    store = open_store(MilvusConfig(str(tmp_path / "x.db"), collection="images"))
    store._client.delete("images_regions", filter=f'id == "{key}:5"')
    whole = store.regions.codes([key, image_id(str(home / "photos" / NAMES[5]))])
    assert [len(code) for code in whole.values()] == [REGIONS * BYTES]
    store.close()
    with (
        ImageIndex.open(tmp_path / "x.db") as index,
        pytest.raises(errors.StoreError, match=f"{NAMES[4]} lacks codes of its regions"),
    ):
        index.export(tmp_path / "out")
    # And the remedy that the message names.
    assert mgm("ingest", home / "photos", "--uri", "x.db", cwd=tmp_path).returncode == 0
    with ImageIndex.open(tmp_path / "x.db") as index:
        assert index.export(tmp_path / "whole").rows == 10
    assert np.all([len(row["$regions"]) == REGIONS * BYTES for row in table(tmp_path / "whole").values()])
