"""Where images may come from: lists, tars, Parquet tables, the web, buckets; hostile ones among them."""

from __future__ import annotations

import http.server
import io
import os
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mg_milvus import errors
from mg_milvus.bulk import remote
from mg_milvus.bulk.dataset import CodeFolder, Shard
from mg_milvus.bulk.encode import EncodeOptions, encode
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import Tally, image_id
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.records import Failure
from mg_milvus.schema.models import Schema
from tests.found_images import images
from tests.images import encoded, image, save_image
from tests.in_process import mgm
from tests.integration.test_bulk import table

JPEGS = [encoded(image(seed), "JPEG") for seed in range(6)]


def tar_of(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    return path


def found(*sources: object, shard: str = "1/1") -> tuple[dict[str, bytes], dict[str, str]]:
    """Path -> bytes of what there is, and path -> reason of what cannot be had."""
    failures = []
    there = {one.path: one.read() for one in images(sources, Shard.parse(shard), failures.append, allow_private=True)}
    return there, {failure.path: failure.reason for failure in failures}


@contextmanager
def web(folder: Path):
    """The URL of a web server over a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def bucket(monkeypatch):
    """``memory://``, which fsspec has for tests, as if it were a bucket's protocol."""
    monkeypatch.setitem(remote.BUCKETS, "memory", "fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_every_local_source_through_the_command(tmp_path):
    (tmp_path / "in").mkdir()
    save_image(tmp_path / "in/plain.jpg", 1)
    shots = tar_of(
        tmp_path / "in/shots.tar",
        {"000.jpg": JPEGS[0], "000.json": b"{}", "000.txt": b"a caption", "sub/001.jpg": JPEGS[1], "bad.jpg": b"no"},
    )
    # As img2dataset writes them: the table beside the tar tells about it, the other one has the images.
    pq.write_table(pa.table({"key": ["000"], "url": ["http://x"]}), tmp_path / "in/shots.parquet")
    table_of = pa.table({"jpg": [JPEGS[2], None], "key": ["0", "1"], "status": ["success", "failed_to_download"]})
    pq.write_table(table_of, tmp_path / "in/0.parquet")
    (tmp_path / "lists").mkdir()
    save_image(tmp_path / "lists/listed.png", 2)
    (tmp_path / "lists/some.txt").write_text("listed.png\n\nmissing.png\nftp://x/y.jpg\n")
    done = mgm("encode", "in", "lists/some.txt", "--encoder", "builtin", "--out", "codes", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    rows = {row["path"]: row for row in table(tmp_path / "codes").values()}
    assert set(rows) == {
        f"{tmp_path}/in/plain.jpg", f"{shots}#000.jpg", f"{shots}#sub/001.jpg", f"{tmp_path}/in/0.parquet#0",
        f"{tmp_path}/lists/listed.png",
    }  # fmt: skip
    member = rows[f"{shots}#sub/001.jpg"]
    assert (member["id"], member["size"]) == (image_id(f"{shots}#sub/001.jpg"), len(JPEGS[1]))
    assert (member["mtime_ns"], member["width"], member["height"]) == (1_700_000_000 * 10**9, 64, 48)
    report = done.stdout
    assert "shard 1/1: 9 seen: 5 encoded into 1 files, 0 unchanged, 4 failed" in report
    assert f"{shots}#bad.jpg: is not an image that can be read" in report
    assert f"{tmp_path}/in/0.parquet#1: has no bytes in the column 'jpg'" in report
    assert "some.txt, line 3: missing.png: No such file or directory" in report
    assert (
        "some.txt, line 4: ftp://x/y.jpg: has the protocol ftp://, expected one of abfs, az, gcs, gs, http, " in report
    )


def test_codes_do_not_depend_on_where_an_image_lies(tmp_path):
    encoder = load_encoder()
    names = [f"{number}.jpg" for number in range(6)]
    (tmp_path / "folder").mkdir()
    for name, data in zip(names, JPEGS, strict=True):
        (tmp_path / "folder" / name).write_bytes(data)
    tar_of(tmp_path / "a.tar", dict(zip(names, JPEGS, strict=True)))
    images = [{"bytes": data, "path": None} for data in JPEGS]
    pq.write_table(pa.table({"image": images, "label": list(range(6))}), tmp_path / "a.parquet", row_group_size=4)
    codes = []
    for number, source in enumerate(("folder", "a.tar", "a.parquet")):
        encode(tmp_path / source, out=tmp_path / f"out{number}", encoder=encoder)
        rows = sorted(table(tmp_path / f"out{number}").values(), key=lambda row: str(row["path"]))
        codes.append([(row["content_hash"], row["coarse"], row["mid"], row["fine"]) for row in rows])
    assert len(codes[0]) == 6
    assert codes[0] == codes[1] == codes[2]
    # And a run over a tar goes on like any other.
    again = encode(tmp_path / "a.tar", out=tmp_path / "out1", encoder=encoder)
    assert (again.encoded, again.unchanged) == (0, 6)


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2024, 5, 6, 7, 8, 10)), data, method)
    return path


MIXED = {
    "a.jpg": JPEGS[0],
    "no ending": JPEGS[1],
    "photo.own": encoded(image(2), "PNG"),
    "a.json": b"{}",
    "a.txt": b"a caption",
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ".hidden.jpg": JPEGS[3],
    "__MACOSX/._a.jpg": JPEGS[4],
    "folder/b.JPG": JPEGS[5],
}


@pytest.mark.parametrize("pack", [tar_of, zip_of, partial(zip_of, method=zipfile.ZIP_STORED)])
def test_members_are_taken_by_their_content_and_the_others_counted(pack, tmp_path):
    path = pack(tmp_path / ("a.tar" if pack is tar_of else "a.zip"), MIXED)
    passed, failures = Tally(), []
    there = {one.path: (one.read(), one.mtime_ns) for one in images([path], Shard(), failures.append, passed=passed)}
    taken = ("a.jpg", "no ending", "photo.own", "folder/b.JPG")
    assert {name: data for name, (data, _) in there.items()} == {f"{path}#{name}": MIXED[name] for name in taken}
    assert failures == []
    assert {(record.kind, record.count, record.remedy) for record in passed.records()} == {
        (".json", 1, ""), (".txt", 1, ""), ("hidden", 1, ""), ("in __MACOSX", 1, ""),
        (".svg", 1, "a drawing (SVG), not read; export as PNG first"),
    }  # fmt: skip
    seconds = {mtime // 10**9 for _, mtime in there.values()}
    assert seconds == ({1_700_000_000} if pack is tar_of else {1_714_979_290})  # 2024-05-06 07:08:10


def test_what_an_encode_passes_over_is_said(tmp_path):
    tar_of(tmp_path / "a.tar", MIXED)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.md").write_text("x")
    done = mgm("encode", "sub", "a.tar", "--encoder", "builtin", "--out", "codes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 seen: 4 encoded" in done.stdout
    assert "Passed over: 1 .svg (a drawing (SVG), not read; export as PNG first), 1 .json, 1 .md, 1 .txt" in done.stdout


def test_hostile_zips_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_milvus.bulk.archives.MAX_BYTES", 10_000)
    path = zip_of(tmp_path / "evil.zip", {"../../escape.jpg": JPEGS[0], "big.jpg": bytes(10_001), "cut.jpg": JPEGS[1]})
    data = bytearray(path.read_bytes())
    place = data.index(b"cut.jpg") + len("cut.jpg")
    data[place + 50 : place + 60] = bytes(10)
    path.write_bytes(data)
    there, failed = {}, []
    for one in images([path], Shard(), failed.append):
        try:
            there[one.path] = one.read()
        except errors.ImageError as error:
            failed.append(Failure(one.path, str(error)))
    assert there == {f"{path}#../../escape.jpg": JPEGS[0]}
    reasons = {failure.path: failure.reason for failure in failed}
    assert reasons[f"{path}#big.jpg"] == "has 10001 bytes, at most 10000 are read"
    assert reasons[f"{path}#cut.jpg"].startswith("is damaged in the zip: ")
    locked = bytearray(zip_of(path, {"a.jpg": JPEGS[0], "b": JPEGS[1]}).read_bytes())
    for directory in (place for place in range(len(locked)) if locked[place : place + 4] == b"PK\x01\x02"):
        locked[directory + 8] |= 1  # says that it is encrypted
    path.write_bytes(locked)
    failed = []
    (only,) = images([path], Shard(), failed.append)
    with pytest.raises(errors.ImageError, match="is encrypted in the zip: unpack it first"):
        only.read()
    assert [(failure.path, failure.reason) for failure in failed] == [
        (f"{path}#b", "is encrypted in the zip: unpack it first")
    ]
    other = zip_of(path, {"a.jpg": JPEGS[0]}, zipfile.ZIP_LZMA)
    with pytest.raises(errors.ImageError, match="is compressed by method 14, expected deflate"):
        next(iter(images([other], Shard(), failed.append))).read()
    for content in (
        b"",
        b"PK\x03\x04" + bytes(100),
        bytes(data[:-30]),
        bytes(data[:-22]) + b"PK\x05\x06" + b"\xff" * 18,
    ):
        path.write_bytes(content)
        there, reasons = found(path)
        assert there == {}
        assert reasons[str(path)].startswith("is not a zip, or damaged: "), content
        assert "\n" not in reasons[str(path)]


def test_a_tar_or_table_is_of_one_shard_with_all_that_is_in_it(tmp_path):
    for number in range(40):
        tar_of(tmp_path / f"{number}.tar", {"a.jpg": JPEGS[0], "b.jpg": JPEGS[1]})
    shards = [set(found(tmp_path, shard=f"{number}/3")[0]) for number in (1, 2, 3)]
    assert [len(shard) % 2 for shard in shards] == [0, 0, 0]
    assert sum(map(len, shards)) == len(set.union(*shards)) == 80
    assert all(shards)
    for number, shard in enumerate(shards):
        assert {int(image_id(path.partition("#")[0]), 16) % 3 for path in shard} == {number}


def test_a_hostile_tar_writes_nothing_and_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_milvus.bulk.archives.MAX_BYTES", 10_000)
    members = {
        "../../escape.jpg": JPEGS[0],
        "/etc/absolute.jpg": JPEGS[1],
        ".hidden.jpg": JPEGS[2],
        "big.jpg": bytes(10_001),
    }
    path = tar_of(tmp_path / "evil.tar", members)
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            link = tarfile.TarInfo(f"{int(kind)}.jpg")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
    before = sorted(os.listdir(tmp_path)), os.path.exists("/etc/absolute.jpg")
    there, failed = found(path)
    assert there == {f"{path}#../../escape.jpg": JPEGS[0], f"{path}#/etc/absolute.jpg": JPEGS[1]}
    assert failed.pop(f"{path}#big.jpg") == "has 10001 bytes, at most 10000 are read"
    assert set(failed) == {f"{path}#{int(kind)}.jpg" for kind in (b"1", b"2", b"3", b"5")}
    assert {reason.partition(" in the tar")[0] for reason in failed.values()} == {
        "is a link, a device or a sparse file"
    }
    assert (sorted(os.listdir(tmp_path)), os.path.exists("/etc/absolute.jpg")) == before


def header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """One block of a tar, with a right checksum."""
    block = bytearray(
        name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8 + kind
    )
    block += b"\0" * 100 + b"ustar\00000" + b"\0" * 247
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(b"long", b"77777777777\0", b"L"), "a header claims 8589934592 bytes"),
        (header(b"pax", b"77777777777\0", b"x"), "a header claims 8589934592 bytes"),
        # Negative sizes: such members would lead back to themselves for ever.
        (header(b"a.txt", b"\xff" * 10 + b"\xfc\x00", b"0") * 4, "its headers point backwards"),
        (header(b"pax", b"\xff" * 10 + b"\xfc\x00", b"x") * 4, "a header claims -1024 bytes"),
        (b"\x1f\x8b" + bytes(600), "is not an uncompressed tar"),
        (b"", "is not an uncompressed tar"),
    ],
)
def test_a_lying_tar_neither_fills_the_memory_nor_loops(tmp_path, content, reason):
    path = tmp_path / "evil.tar"
    path.write_bytes(content + bytes(1024) if content else b"")
    begin = time.monotonic()
    there, failed = found(path)
    assert time.monotonic() - begin < 10
    assert there == {}
    assert reason in failed[str(path)]


def test_a_cut_tar_gives_what_is_whole(tmp_path):
    path = tar_of(tmp_path / "cut.tar", {"0.jpg": JPEGS[0], "1.jpg": JPEGS[1]})
    path.write_bytes(path.read_bytes()[: 512 + -(-len(JPEGS[0]) // 512) * 512 + 512 + 100])
    failures = []
    members = list(images([path], Shard(), failures.append))
    assert members[0].read() == JPEGS[0]
    with pytest.raises(errors.ImageError, match=f"is cut off after 100 of {len(JPEGS[1])} bytes"):
        members[1].read()
    assert [failure.path for failure in failures] == [str(path)]


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"image": [{"bytes": JPEGS[0], "path": "a.jpg"}], "mask": [b"x"]}, "image"),
        ({"jpg": [JPEGS[0]], "md5": [b"x"]}, "jpg"),
        ({"photo": [JPEGS[0]], "caption": ["x"]}, "photo"),
        ({"photo": pa.array([JPEGS[0]], pa.large_binary())}, "photo"),
    ],
)
def test_which_column_holds_the_images(tmp_path, columns, name):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    assert found(path) == ({f"{path}#0": JPEGS[0]}, {}), name


def test_tables_without_images_and_damaged_ones_are_listed(tmp_path):
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"b": [b"x"], "c": [b"x"]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    there, failed = found(tmp_path)
    assert there == {}
    reasons = [failed[f"{tmp_path}/{name}.parquet"] for name in "abc"]
    assert reasons[0].startswith("has no column of images ('caption'): expected one named image, jpg, ")
    assert reasons[1].startswith("has several binary columns ('b', 'c'): ")
    assert reasons[2].startswith("is damaged: ")


def test_the_web(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "a.jpg").write_bytes(JPEGS[0])
    (site / "b").write_bytes(JPEGS[1])
    tar_of(site / "c.tar", {"d.jpg": JPEGS[2]})
    with web(site) as url:
        (site / "list.txt").write_text(f"{url}/a.jpg?x=1\n{url}/gone.jpg\na.jpg\n")
        (tmp_path / "mine.txt").write_text(f"{url}/b\n")
        there, failures, lost = {}, [], {}
        for one in images(
            [f"{url}/c.tar", tmp_path / "mine.txt", f"{url}/list.txt"], Shard(), failures.append, allow_private=True
        ):
            try:
                there[one.path] = one.read()
            except errors.ImageError as error:
                lost[one.path] = str(error)
        assert lost == {f"{url}/gone.jpg": "cannot be fetched: HTTP Error 404: File not found"}
        assert there == {f"{url}/c.tar#d.jpg": JPEGS[2], f"{url}/b": JPEGS[1], f"{url}/a.jpg?x=1": JPEGS[0]}
        assert [(failure.path, failure.reason[:20]) for failure in failures] == [
            (f"{url}/list.txt, line 3", "'a.jpg' is not a URL")
        ]
        options = EncodeOptions(allow_private=True)
        report = encode(f"{url}/list.txt", out=tmp_path / "codes", encoder=load_encoder(), options=options)
        assert (report.encoded, len(report.failures)) == (1, 2)
        row = next(iter(table(tmp_path / "codes").values()))
        assert (row["id"], row["size"], row["mtime_ns"]) == (image_id(f"{url}/a.jpg?x=1"), len(JPEGS[0]), 0)
        # What is loaded can be asked for by its URL.
        with ImageIndex.open(tmp_path / "x.db") as index:
            index.load(tmp_path / "codes")
            assert index.path(f"{url}/a.jpg?x=1") == f"{url}/a.jpg?x=1"


def test_an_image_from_the_web_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    (tmp_path / "a.jpg").write_bytes(bytes(1001))
    with web(tmp_path) as url, pytest.raises(errors.ImageError, match="is longer than 0 MiB"):
        remote.fetch(f"{url}/a.jpg", allow_private=True)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host/a.jpg", "has the protocol ftp://"),
        ("file:///etc/passwd", "has the protocol file://"),
        ("http://me:secret@host/a.jpg", "holds a password"),
        ("s3://a::file:///etc/passwd", "has the protocol s3"),
    ],
)
def test_urls_that_are_not_taken(url, reason):
    with pytest.raises(errors.ImageError, match=reason):
        found(url)


def test_a_bucket_that_machines_share(bucket, tmp_path):
    encoder = load_encoder()
    for number, data in enumerate(JPEGS):
        bucket.pipe_file(f"/shop/{'deep/' if number % 2 else ''}{number}.jpg", data)
    bucket.pipe_file("/shop/notes.md", b"no image")
    with tar_of(tmp_path / "a.tar", {"a.jpg": JPEGS[0]}).open("rb") as tar:
        bucket.pipe_file("/shop/a.tar", tar.read())
    for number in (1, 2):
        options = EncodeOptions(shard=Shard(number, 2), rows_per_file=2, settings=Settings(batch_size=2))
        encode("memory://shop", out="memory://codes", encoder=encoder, options=options)
    again = encode("memory://shop", out="memory://codes", encoder=encoder, options=options)
    assert again.encoded == 0
    assert len(CodeFolder("memory://codes").files()) > 2
    with ImageIndex.open(tmp_path / "x.db") as index:
        assert index.load("memory://codes").rows == 7
        paths = {row.path for rows in index.session.store.scan() for row in rows}
        index.export("memory://backup/x")
    expected = {f"memory:///shop/{'deep/' if n % 2 else ''}{n}.jpg" for n in range(6)} | {"memory:///shop/a.tar#a.jpg"}
    assert {path.replace("memory://shop", "memory:///shop") for path in paths} == expected
    with ImageIndex.open(tmp_path / "y.db") as index:
        assert index.load("memory://backup/x").rows == 7
    with pytest.raises(errors.ImageError, match="cannot be listed"):
        encode("memory://nothing", out="memory://other", encoder=encoder)


def test_metadata_of_urls_and_members(bucket, tmp_path):
    bucket.pipe_file("/shop/0.jpg", JPEGS[0])
    tar = tar_of(tmp_path / "a.tar", {"a.jpg": JPEGS[1]})
    (tmp_path / "schema.yaml").write_text("fields: [{name: caption, type: string}]\n")
    (tmp_path / "captions.csv").write_text(
        "path,caption\nmemory://shop/0.jpg,one\nmemory:///shop/0.jpg,one\na.tar#a.jpg,two\n"
    )
    encode(
        "memory://shop", tar, out=tmp_path / "codes", encoder=load_encoder(),
        options=EncodeOptions(schema=Schema.load(tmp_path / "schema.yaml"), metadata=tmp_path / "captions.csv"),
    )  # fmt: skip
    assert sorted(str(row["caption"]) for row in table(tmp_path / "codes").values()) == ["one", "two"]
