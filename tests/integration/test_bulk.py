"""Encode, load and export as a user meets them: the command, real files, Milvus Lite."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mg_milvus import errors
from mg_milvus.bulk.dataset import Shard
from mg_milvus.bulk.encode import EncodeOptions, encode
from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.schema.models import Schema
from mg_milvus.store.milvus import open_store
from tests.cli.test_cli import ENVIRONMENT
from tests.conftest import kind_of_image, make_photos
from tests.forked import MGM
from tests.in_process import mgm
from tests.servers import lite_server
from tests.waiting import wait_until

SCHEMA = """
encoder: {heads: fixed}
fields:
  - {name: caption, type: string, default: none}
  - {name: year, type: int}
"""


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def table(folder: Path) -> dict[str, dict[str, object]]:
    """Id -> row of all parts, as pyarrow alone reads them."""
    rows = [row for part in parts(folder) for row in pq.read_table(part).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {str(row["id"]): row for row in rows}


def everything(uri: str, collection: str = "images") -> dict[str, object]:
    """Id -> row of a collection, with codes and fields."""
    store = open_store(MilvusConfig(uri, collection=collection))
    try:
        description = store.describe()
        return {row.id: row for rows in store.scan(granularities=tuple(description.schema.bits)) for row in rows}
    finally:
        store.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """``photos/`` (30 good, 1 broken), ``schema.yaml``, ``one.db`` of an ingest, and ``codes/`` of two shards."""
    folder = tmp_path_factory.mktemp("bulk")
    make_photos(folder / "photos", per_kind=10)
    (folder / "photos" / "broken.jpg").write_bytes(b"no image")
    (folder / "schema.yaml").write_text(SCHEMA)
    (folder / "captions.csv").write_text("path,caption,year\nphotos/disc/03.jpg,a red disc,1999\n")
    common = ("photos", "--schema", "schema.yaml", "--metadata", "captions.csv", "--json")
    ingested = mgm("ingest", *common, "--uri", "one.db", cwd=folder)
    assert ingested.returncode == 3, ingested.stderr
    for number in (1, 2):
        done = mgm("encode", *common, "--encoder", "builtin", "--out", "codes", "--shard", f"{number}/2", cwd=folder)
        (folder / f"{number}.json").write_text(done.stdout)
        (folder / f"{number}.code").write_text(str(done.returncode))
    return folder


def test_shards_share_the_images_out(home):
    reports = [json.loads((home / f"{number}.json").read_text()) for number in (1, 2)]
    ids = [
        {
            row["id"]
            for part in parts(home / "codes")
            if part.name.startswith(name)
            for row in pq.read_table(part).to_pylist()
        }
        for name in ("shard-0001-of-0002-", "shard-0002-of-0002-")
    ]
    expected = {image_id(str(path)): path for path in (home / "photos").rglob("*/*.jpg")}
    assert ids[0] | ids[1] == set(expected)
    assert not ids[0] & ids[1]
    for number, own in enumerate(ids):
        assert {int(key, 16) % 2 for key in own} == {number}
        assert reports[number]["encoded"] == len(own)
    # The broken image is of one shard only, which lists it.
    codes = sorted((home / f"{number}.code").read_text() for number in (1, 2))
    assert codes == ["0", "3"]
    assert [Path(f["path"]).name for r in reports for f in r["failures"]] == ["broken.jpg"]


def test_the_file_is_what_milvus_imports(home):
    file = pq.ParquetFile(parts(home / "codes")[0])
    types = {field.name: field.type for field in file.schema_arrow}
    assert types == {
        "id": pa.string(), "path": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64(), "taken": pa.int64(),
        "width": pa.int64(), "height": pa.int64(), "content_hash": pa.string(), "tags": pa.int64(),
        "caption": pa.string(), "year": pa.int64(),
        "coarse": pa.list_(pa.uint8()), "mid": pa.list_(pa.uint8()), "fine": pa.list_(pa.uint8()),
    }  # fmt: skip
    row = file.read().to_pylist()[0]
    assert [len(row[name]) for name in ("coarse", "mid", "fine")] == [8, 16, 32]
    told = json.loads(file.metadata.metadata[b"mg_milvus"])
    assert told["fingerprint"] == load_encoder().fingerprint
    assert told["schema"]["fields"][0]["name"] == "caption"


def test_loaded_shards_are_what_one_ingest_makes(home):
    done = mgm("load", "codes", "--uri", "two.db", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 30
    assert done.stderr.startswith("loading: ")
    ingested, loaded = everything(str(home / "one.db")), everything(str(home / "two.db"))
    assert len(ingested) == 30
    assert loaded == ingested
    assert loaded[image_id(str(home / "photos/disc/03.jpg"))].fields == {"caption": "a red disc", "year": 1999}
    with ImageIndex.open(home / "two.db") as two, ImageIndex.open(home / "one.db") as one:
        # The encoder came along: a query needs nothing but the URI.
        image = home / "photos/disc/03.jpg"
        assert two.query(image, k=30) == one.query(image, k=30)
        assert two.load(home / "codes").rows == 30
    assert everything(str(home / "two.db")) == ingested


def test_export_and_load_move_a_collection_to_a_server_exactly(home, tmp_path):
    file = shutil.copy(home / "one.db", tmp_path / "tuned.db")
    with ImageIndex.open(file) as index:
        index.session.store.retune({"coarse": 3, "mid": 1, "fine": 0.5}, index.schema.fusion)
    assert mgm("export", "backup", "--uri", "tuned.db", cwd=tmp_path).returncode == 0
    with lite_server(tmp_path / "server.db") as server:
        done = mgm("load", "backup", "--uri", server.uri, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("30 rows loaded into 'images' at http://127.0.0.1:")
        assert everything(server.uri) == everything(str(file))
        with ImageIndex.open(file) as here, ImageIndex.open(server.uri) as there:
            assert there.schema == here.schema
            assert there.schema.weights == {"coarse": 3, "mid": 1, "fine": 0.5}
            image = home / "photos/blocks/02.jpg"
            assert there.query(image, k=30) == here.query(image, k=30)
            assert there.info().fingerprint == here.info().fingerprint
            there.export(tmp_path / "again")
            with pytest.raises(errors.CodeFileError, match="backup has files of codes already: choose an empty folder"):
                here.export(tmp_path / "backup")
    assert table(tmp_path / "again") == table(tmp_path / "backup")


def test_a_killed_run_goes_on_and_no_half_file_counts(home, tmp_path):
    command = [
        "encode",
        home / "photos",
        "--encoder",
        "builtin",
        "--out",
        "codes",
        "--rows-per-file",
        "4",
        "--batch-size",
        "4",
    ]
    running = subprocess.Popen([MGM, *command], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=-1)
    wait_until(lambda: len(parts(tmp_path / "codes")) >= 2, "two files of codes are written", pause=0.005)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    before = {part.name: part.read_bytes() for part in parts(tmp_path / "codes")}
    survived = len(table(tmp_path / "codes"))
    assert 8 <= survived < 30
    # What a run that is killed while it writes leaves behind:
    (tmp_path / "codes" / f".{next(iter(before))}-0123456789ab").write_bytes(b"PAR1 half of a file")
    unfinished = mgm("load", "codes", cwd=tmp_path)
    assert unfinished.returncode == 1
    assert "codes is not finished, it lacks the shards 1/1" in unfinished.stderr
    assert not (tmp_path / "mgm.db").exists()
    done = mgm(*command, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 3  # the broken image
    assert (report["unchanged"], report["encoded"], report["failed"]) == (survived, 30 - survived, 1)
    assert {name: (tmp_path / "codes" / name).read_bytes() for name in before} == before
    assert list((tmp_path / "codes").glob(".*")) == []
    columns = ("path", "size", "content_hash", "coarse", "mid", "fine")
    got, expected = table(tmp_path / "codes"), table(home / "codes")
    assert {k: [r[c] for c in columns] for k, r in got.items()} == {
        k: [r[c] for c in columns] for k, r in expected.items()
    }


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin")


@pytest.fixture
def codes(home, tmp_path) -> Path:
    """A copy of ``codes/`` to damage."""
    return Path(shutil.copytree(home / "codes", tmp_path / "codes"))


def refusal(folder: Path, uri: object, **options) -> str:
    """What loading says; nothing is made or changed by it."""
    before = everything(str(uri)) if Path(str(uri)).exists() else None
    with ImageIndex.open(str(uri)) as index, pytest.raises(errors.MgMilvusError) as raised:
        index.load(folder, **options)
    assert (everything(str(uri)) if Path(str(uri)).exists() else None) == before
    return f"{type(raised.value).__name__}: {raised.value}"


@pytest.mark.parametrize("keep", [0, 3, 1000, -9])
def test_a_truncated_file_is_refused(codes, tmp_path, keep):
    part = parts(codes)[0]
    part.write_bytes(part.read_bytes()[:keep])
    assert refusal(codes, tmp_path / "x.db").startswith(f"CodeFileError: {part} is damaged or was cut off (")


def test_a_flipped_bit_is_noticed(codes, tmp_path):
    part = parts(codes)[0]
    column = next(
        c for i in range(99) if (c := pq.ParquetFile(part).metadata.row_group(0).column(i)).path_in_schema == "path"
    )
    data = bytearray(part.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 5] ^= 4  # behind the page's header
    part.write_bytes(data)
    with (
        ImageIndex.open(tmp_path / "x.db") as index,
        pytest.raises(errors.CodeFileError, match="damaged or was cut off"),
    ):
        index.load(codes)


def test_what_is_lost_is_named(codes, tmp_path):
    lost = parts(codes)[1]
    lost.unlink()
    assert f"CodeFileError: {codes} has lost {lost.name}: restore it" in refusal(codes, tmp_path / "x.db")
    (codes / "shard-0002-of-0002.json").unlink()
    assert f"{codes} is not finished, it lacks the shards 2/2: run mgm encode" in refusal(codes, tmp_path / "x.db")
    with ImageIndex.open(tmp_path / "y.db") as index:
        report = index.load(codes, partial=True)
        assert report.rows == index.count() == pq.read_metadata(parts(codes)[0]).num_rows


def test_other_files_are_no_codes(codes, tmp_path):
    part = parts(codes)[0]
    foreign = pq.read_table(part).replace_schema_metadata(None)
    pq.write_table(foreign, part)
    assert "is Parquet, but not a file of codes" in refusal(codes, tmp_path / "x.db")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"CodeFileError: {empty} has no files of codes" in refusal(empty, tmp_path / "x.db")


def damaged(part: Path, name: str, column: pa.Array) -> None:
    """Write a part again with another column of the same type."""
    old = pq.read_table(part)
    pq.write_table(old.set_column(old.schema.get_field_index(name), old.schema.field(name), column), part)


def test_codes_of_the_wrong_length_are_refused(codes, tmp_path):
    part = parts(codes)[0]
    values = pq.read_table(part)["mid"].to_pylist()
    damaged(part, "mid", pa.array([values[0][:-1], *values[1:]], pa.list_(pa.uint8())))
    with (
        ImageIndex.open(tmp_path / "x.db") as index,
        pytest.raises(errors.CodeFileError, match="a code of mid is not 16"),
    ):
        index.load(codes)
    damaged(part, "mid", pa.array([None, *values[1:]], pa.list_(pa.uint8())))
    with ImageIndex.open(tmp_path / "x.db") as index, pytest.raises(errors.CodeFileError, match="mid has empty cells"):
        index.load(codes)


def test_tags_that_cannot_be_are_refused(codes, tmp_path):
    part = parts(codes)[0]
    values = pq.read_table(part)["tags"].to_pylist()
    damaged(part, "tags", pa.array([7, *values[1:]]))
    says = "the tags are 7, which leaves 7 by 2111 and 7 by 31: encode it again"
    with ImageIndex.open(tmp_path / "x.db") as index, pytest.raises(errors.CodeFileError, match=says):
        index.load(codes)


def test_codes_of_another_encoder_or_schema_are_refused(home, tmp_path, encoder, codes):
    other = tmp_path / "other"
    one = encoder.features([encoder.prepare(kind_of_image("disc", 0))])
    noise = np.random.default_rng(0)
    features = {name: values + noise.normal(size=(60, values.shape[1])) for name, values in one.items()}
    stranger = encoder.adapted({name: some.astype(np.float32) for name, some in features.items()}, encoder.bits)
    schema = Schema.load(home / "schema.yaml")
    encode(home / "photos/disc", out=other, encoder=stranger, options=EncodeOptions(schema=schema))
    target = tmp_path / "one.db"
    shutil.copy(home / "one.db", target)
    told = refusal(other, target)
    assert told.startswith(f"EncoderMismatchError: the codes in {other} are of the encoder {stranger.fingerprint}, ")
    assert f"'images' was filled by {encoder.fingerprint}" in told
    plain = tmp_path / "plain"
    encode(home / "photos/disc", out=plain, encoder=encoder)
    assert refusal(plain, target).startswith(
        f"SchemaMismatchError: the codes in {plain} do not fit into collection 'images'"
    )
    # One folder takes the codes of one encoder, and one count of shards.
    with pytest.raises(errors.CodeFileError, match=f"holds codes of the encoder {encoder.fingerprint}, yours is"):
        encode(home / "photos", out=codes, encoder=stranger, options=EncodeOptions(schema=schema, shard=Shard(1, 2)))
    with pytest.raises(errors.CodeFileError, match="use the same count on all machines"):
        encode(home / "photos", out=codes, encoder=encoder, options=EncodeOptions(schema=schema, shard=Shard(1, 3)))
    with pytest.raises(errors.CodeFileError, match="was made with another schema or encoder"):
        encode(home / "photos", out=codes, encoder=encoder, options=EncodeOptions(shard=Shard(1, 2)))
    # Also when somebody puts two folders into one.
    for part in parts(other):
        shutil.copy(part, codes / part.name.replace("shard-0001-of-0001", "shard-0002-of-0002"))
    assert f"has codes of the encoder {stranger.fingerprint}, " in refusal(codes, tmp_path / "x.db")


def test_a_wrong_encoder_file_beside_the_codes_is_refused(codes, tmp_path, encoder):
    kept = codes / f"encoder-{encoder.fingerprint}.safetensors"
    kept.unlink()
    assert f"codes of the encoder {encoder.fingerprint}, but no {kept.name}: put it there" in refusal(
        codes, tmp_path / "x.db"
    )
    kept.write_bytes(encoder.with_bits({"coarse": 64}).to_bytes())
    assert "put the right file there" in refusal(codes, tmp_path / "x.db")


def test_encode_asks_for_the_one_encoder(home, tmp_path):
    done = mgm("encode", home / "photos", "--out", "codes", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("mgm: no encoder is given, expected the one that all shards share: fit it")
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/4"], "there is no shard 0/4"),
        (["--shard", "5/4"], "there is no shard 5/4"),
        (["--shard", "half"], "'half' is not a shard: expected NUMBER/COUNT"),
        (["--schema", "compact"], "has 64 bits of 'coarse', the schema asks for 32: make one with mgm fit"),
    ],
)
def test_bad_options(home, tmp_path, options, message):
    done = mgm("encode", home / "photos", "--out", "codes", "--encoder", "builtin", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("options", [{"rows_per_file": 0}, {"settings": Settings(0)}, {"settings": Settings(8, -1)}])
def test_options_below_one_are_refused(options):
    with pytest.raises(errors.QueryError, match="expected 1 or more"):
        EncodeOptions(**options)


def test_a_changed_image_is_encoded_again_and_its_new_row_wins(tmp_path, encoder):
    folder = make_photos(tmp_path / "photos", per_kind=2)
    encode(folder, out=tmp_path / "codes", encoder=encoder)
    shutil.copy(folder / "disc/00.jpg", folder / "stripes/00.jpg")
    report = encode(folder, out=tmp_path / "codes", encoder=encoder)
    assert (report.encoded, report.unchanged, report.files) == (1, 5, 1)
    with ImageIndex.open(tmp_path / "x.db") as index:
        assert index.load(tmp_path / "codes").rows == 7
        assert index.count() == 6
        nearest = index.query(folder / "disc/00.jpg", k=2)
        assert [sum(hit.distances.values()) for hit in nearest] == [0, 0]
        index.export(tmp_path / "backup")
    assert len(table(tmp_path / "backup")) == 6


def test_ctrl_c_keeps_what_was_encoded(tmp_path, encoder):
    folder = make_photos(tmp_path / "photos", per_kind=4)

    options = EncodeOptions(settings=Settings(batch_size=2))

    def stop(progress):
        if progress.done >= 4:
            raise KeyboardInterrupt

    report = encode(folder, out=tmp_path / "codes", encoder=encoder, options=options, progress=stop)
    assert report.interrupted
    assert report.encoded == len(table(tmp_path / "codes")) == 4
    assert not (tmp_path / "codes/shard-0001-of-0001.json").exists()
    report = encode(folder, out=tmp_path / "codes", encoder=encoder)
    assert (report.unchanged, report.encoded, report.interrupted) == (4, 8, False)


def test_loading_takes_the_storage_settings_of_a_given_schema(codes, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(SCHEMA + "storage: {consistency: Bounded}\nfusion: {depth: 50}\ncollection: holidays\n")
    with ImageIndex.open(tmp_path / "x.db", schema=mine) as index:
        assert index.load(codes).collection == "holidays"
    with ImageIndex.open(tmp_path / "x.db") as index:
        assert (index.collection, index.schema.storage.consistency, index.schema.fusion.depth) == (
            "holidays",
            "Bounded",
            50,
        )
    mine.write_text(SCHEMA.replace("year", "decade"))
    with (
        ImageIndex.open(tmp_path / "y.db", schema=mine) as index,
        pytest.raises(errors.SchemaMismatchError, match="fields"),
    ):
        index.load(codes)


def test_there_is_nothing_to_export(tmp_path):
    with ImageIndex.open(tmp_path / "x.db") as index, pytest.raises(errors.CollectionNotFoundError):
        index.export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
