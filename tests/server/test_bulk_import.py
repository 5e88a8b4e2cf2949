"""``mgm load --bucket``: import jobs, against a server of the test's own that does what Milvus' documentation says.

It speaks the three requests of ``/v2/vectordb/jobs/import`` and refuses what they do not have. Its jobs read the files
from the bucket (fsspec's ``memory://``) and *insert* their rows into Milvus Lite over TCP, without looking for the same
ids, as imports do.
"""

from __future__ import annotations

import http.server
import io
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from mg_milvus import errors
from mg_milvus.bulk import dataset, import_jobs, remote, stream
from mg_milvus.bulk.encode import EncodeOptions, encode
from mg_milvus.bulk.stream import superseded
from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.load import load_encoder
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.schema.models import Schema
from mg_milvus.store.milvus import open_store
from mg_milvus.store.rows import COPY, Layout
from tests.conftest import make_photos
from tests.images import collage
from tests.in_process import mgm
from tests.integration.test_bulk import everything
from tests.integration.test_bulk_regions import REGIONS, SCHEMA, regions
from tests.servers import lite_server

COLUMNS = {
    "images": [
        "id",
        "path",
        "size",
        "mtime_ns",
        "taken",
        "width",
        "height",
        "content_hash",
        "tags",
        "coarse",
        "mid",
        "fine",
    ],
    "images_regions": ["id", "scale", "code"],
}


class Milvus:
    """The import jobs of a server whose rows are kept by Milvus Lite at ``uri``."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.requests: list[tuple[str, dict, str | None]] = []
        self.jobs: dict[str, dict] = {}
        self.failing = ""
        self.silences = 0

    def answer(self, verb: str, body: dict, token: str | None) -> tuple[int, dict]:
        self.requests.append((verb, body, token))
        if token != "Bearer root:Milvus":
            return 401, {}
        if verb == "list":
            assert body.keys() == {"collectionName"}
            of = [job for job in self.jobs.values() if job["collectionName"] == body["collectionName"]]
            return 200, {"code": 0, "data": {"records": of}}
        if verb == "create":
            assert body.keys() == {"collectionName", "files"}
            assert all(isinstance(group, list) and len(group) == 1 for group in body["files"])
            job = {"jobId": str(448761313698322011 + len(self.jobs)), "state": "Pending", "progress": 0, **body}
            self.jobs[job["jobId"]] = job
            return 200, {"code": 200, "data": {"jobId": job["jobId"]}}  # as up to 2.4.2
        assert verb == "get_progress"
        if self.silences:
            self.silences -= 1
            return 503, {}
        job = self.jobs[body["jobId"]]
        if job["state"] == "Pending":
            job |= {"state": "Sorting", "progress": 40}  # a state that only some versions have
        elif job["state"] == "Sorting":
            if self.failing == job["collectionName"]:
                job |= {"state": "Failed", "reason": "no space left"}
            else:
                self._import(job["collectionName"], [file for group in job["files"] for file in group])
                job |= {"state": "Completed", "progress": 100}
        return 200, {"code": 0, "data": {key: value for key, value in job.items() if key != "files"}}

    def _import(self, collection: str, files: list[str]) -> None:
        store = open_store(MilvusConfig(self.uri, collection="images"))
        layout = Layout(store.describe().schema)
        for file in files:
            table = pq.read_table(io.BytesIO(fsspec.filesystem("memory").cat_file(f"/a-bucket/{file}")))
            assert table.schema.names == COLUMNS[collection]
            rows = table.to_pylist()
            for row in rows:
                row |= {key: bytes(value) for key, value in row.items() if isinstance(value, list) and key != "tags"}
                if collection == "images":  # what Milvus Lite has, and a server has not
                    row[COPY] = layout.copied(row)
            store._client.insert(collection, rows)
        store.close()


@pytest.fixture
def milvus(tmp_path, monkeypatch):
    """A server, its REST API and its bucket ``memory://a-bucket``."""
    monkeypatch.setitem(remote.BUCKETS, "memory", "fsspec")
    monkeypatch.setattr(import_jobs, "_POLL_SECONDS", 0.01)
    with lite_server(tmp_path / "server.db") as lite, rest(Milvus(lite.uri)) as (server, url):
        monkeypatch.setattr(import_jobs, "base_url", lambda _: url)
        yield server
    fsspec.filesystem("memory").store.clear()


@contextmanager
def rest(server: Milvus):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            prefix, _, verb = self.path.rpartition("/")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = prefix == "/v2/vectordb/jobs/import" and verb in {"list", "create", "get_progress"}
            code, told = server.answer(verb, body, self.headers["Authorization"]) if known else (404, {})
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, *_: object) -> None:
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()


@pytest.fixture(scope="module")
def codes(tmp_path_factory) -> Path:
    """The codes of six collages with regions; one of them was changed and encoded again."""
    folder = tmp_path_factory.mktemp("import")
    (folder / "photos").mkdir()
    for number in range(6):
        collage(number).save(folder / "photos" / f"{number}.png")
    (folder / "schema.yaml").write_text(SCHEMA)
    settings = {"out": folder / "codes", "encoder": load_encoder()}
    options = EncodeOptions(schema=Schema.load(folder / "schema.yaml"), rows_per_file=4, settings=Settings(2))
    encode(folder / "photos", options=options, **settings)
    collage(17).save(folder / "photos" / "1.png")
    assert encode(folder / "photos", options=options, **settings).encoded == 1
    return folder / "codes"


def opened(server: Milvus, token: str = "root:Milvus") -> ImageIndex:
    return ImageIndex.open(server.uri, token=token)


def test_an_import_makes_what_upserts_make(milvus, codes, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "ROWS_PER_FILE", 4)
    monkeypatch.setattr(import_jobs, "FILES_PER_JOB", 1)
    with ImageIndex.open(tmp_path / "plain.db") as index:
        index.load(codes)
    stages = []
    milvus.silences = 2  # a server that is away for a moment
    with opened(milvus) as index:
        report = index.load(codes, bucket="memory://a-bucket/mgm", progress=lambda p: stages.append((p.stage, p.done)))
        assert report.rows == 6
        # A row for each image, although the folder has an older one of one of them, which an import would keep.
        assert index.count() == 6
    assert everything(milvus.uri) == everything(str(tmp_path / "plain.db"))
    assert regions(milvus.uri) == regions(tmp_path / "plain.db")
    assert len(regions(milvus.uri)) == 6 * REGIONS
    created = [body for verb, body, _ in milvus.requests if verb == "create"]
    assert [body["collectionName"] for body in created] == ["images_regions"] * 2 + ["images"] * 2
    (file,) = created[0]["files"][0]
    assert file.startswith("mgm/import-")
    assert fsspec.filesystem("memory").find("/a-bucket") == []
    assert ("uploading", 6) in stages
    assert ("importing into images (percent)", 40) in stages


def test_rows_that_are_there_are_not_made_twice(milvus, codes):
    with opened(milvus) as index:
        index.load(codes)
        with pytest.raises(errors.StoreError, match=f"'images' has {6 + 6 * REGIONS} rows already, and an import re"):
            index.load(codes, bucket="memory://a-bucket/mgm")
        index.delete([row.id for rows in index.session.store.scan() for row in rows])
        milvus.jobs["7"] = {"jobId": "7", "collectionName": "images_regions", "state": "Importing"}
        with pytest.raises(errors.StoreError, match="the import job 7 into 'images_regions' is still running"):
            index.load(codes, bucket="memory://a-bucket/mgm")
    assert [verb for verb, _, _ in milvus.requests if verb != "list"] == []
    assert fsspec.filesystem("memory").find("/") == []


def test_an_import_that_fails_says_why_and_can_be_done_again(milvus, codes):
    milvus.failing = "images"
    with opened(milvus) as index:
        with pytest.raises(errors.StoreError, match="into 'images' ended as Failed: no space left"):
            index.load(codes, bucket="memory://a-bucket")
        assert fsspec.filesystem("memory").find("/a-bucket") == []
        assert (index.count(), index.session.store.regions.count()) == (0, 6 * REGIONS)
        # What the message of the next import names: without the bucket, or after a repair.
        with pytest.raises(errors.StoreError, match="mgm doctor --repair removes its rows"):
            index.load(codes, bucket="memory://a-bucket")
        from mg_milvus.ingest.run import delete_orphans, find_out_of_step

        delete_orphans(index.session.store, find_out_of_step(index.session.store, index.schema))
        milvus.failing = ""
        assert index.load(codes, bucket="memory://a-bucket").rows == 6
        assert (index.count(), index.session.store.regions.count()) == (6, 6 * REGIONS)


def test_a_job_that_goes_on_is_not_called_failed(milvus, codes, monkeypatch):
    monkeypatch.setattr(import_jobs, "_SILENT_FOR", 0.05)
    milvus.silences = 10**9
    with opened(milvus) as index, pytest.raises(errors.StoreError, match=r"\d+ into 'images_regions', which may still"):
        index.load(codes, bucket="memory://a-bucket")
    assert fsspec.filesystem("memory").find("/a-bucket") != []


def test_an_address_of_its_own_for_rest(milvus, codes, monkeypatch):
    addresses = []
    here = import_jobs.base_url  # the fixture's
    monkeypatch.setattr(import_jobs, "base_url", lambda uri: addresses.append(uri) or here(uri))
    with opened(milvus) as index:
        index.load(codes, bucket="memory://a-bucket", rest="https://rest.example:8080")
    assert addresses == ["https://rest.example:8080"]


def test_wrong_tokens_and_places_are_refused(milvus, codes, tmp_path, monkeypatch):
    with opened(milvus, "root:wrong") as index, pytest.raises(errors.AuthenticationError) as raised:
        index.load(codes, bucket="memory://a-bucket")
    assert "wrong" not in str(raised.value)
    with opened(milvus) as index, pytest.raises(errors.CodeFileError, match="--bucket 'bucket/x' is not a folder"):
        index.load(codes, bucket="bucket/x")
    with (
        ImageIndex.open(tmp_path / "x.db") as index,
        pytest.raises(errors.UnsupportedError, match=r"import jobs need a server, got .*x.db: omit --bucket"),
    ):
        index.load(codes, bucket="memory://a-bucket")
    done = mgm("load", codes, "--bucket", "memory://a-bucket", "--uri", "x.db", cwd=tmp_path)
    assert (done.returncode, done.stderr.startswith("mgm: import jobs need a server, got x.db")) == (1, True)
    assert not (tmp_path / "x.db").exists()
    monkeypatch.setattr(import_jobs, "base_url", lambda uri: uri)  # Milvus Lite's own port speaks no REST
    with (
        opened(milvus) as index,
        pytest.raises(errors.UnsupportedError, match=r"the request to .* failed .* from 2.4 on"),
    ):
        index.load(codes, bucket="memory://a-bucket")


def test_the_api_of_a_uri():
    assert import_jobs.base_url("http://me:secret@host:19530/shop") == "http://host:19530"
    assert import_jobs.base_url("tcp://host:19530") == "http://host:19530"
    assert import_jobs.base_url("https://host") == "https://host:19530"
    assert import_jobs.base_url("http://[::1]:8080/shop") == "http://[::1]:8080"
    for wrong in ("host:19530", "http://", "http://host:x", "s3://bucket"):
        with pytest.raises(errors.UnsupportedError, match="is no address of a REST API"):
            import_jobs.base_url(wrong)
    assert import_jobs.ImportApi(MilvusConfig("http://host:19530/shop"))._database == {"dbName": "shop"}


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_superseded_rows(monkeypatch, at_once):
    monkeypatch.setattr(stream, "_AT_ONCE", at_once)
    ids = [f"{number:032x}" for number in (5, 2**64, 5, 7, 5)]
    assert superseded(ids).tolist() == [True, False, True, False, False]
    assert superseded([]).tolist() == []
    with pytest.raises(errors.CodeFileError, match="'zz' is not the id of an image"):
        superseded(["zz"])


def test_without_regions(milvus, tmp_path):
    encode(make_photos(tmp_path / "photos", 1), out=tmp_path / "codes", encoder="builtin")
    with opened(milvus) as index:
        assert index.load(tmp_path / "codes", bucket="memory://a-bucket").rows == index.count() == 3
    assert {body["collectionName"] for _, body, _ in milvus.requests if "collectionName" in body} == {"images"}
