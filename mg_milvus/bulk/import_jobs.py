"""Import jobs of a Milvus server, over its REST API (since 2.4): start one, ask how far it is.

``pymilvus.bulk_writer`` has the same three requests, but cannot be imported without the client libraries of two object
storages. Here they are made with the standard library.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from mg_milvus.bulk.dataset import images_file, regions_file
from mg_milvus.bulk.encode import superseded
from mg_milvus.bulk.remote import bucket as bucket_of
from mg_milvus.config import Tls, hide
from mg_milvus.errors import AuthenticationError, CodeFileError, ImageError, StoreError, UnsupportedError
from mg_milvus.files import one_line
from mg_milvus.records import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from http.client import HTTPResponse

    from mg_milvus.bulk.dataset import CodeFolder
    from mg_milvus.config import MilvusConfig
    from mg_milvus.session import Session
    from mg_milvus.store.base import Row


MOST_FILES = 1_000
"""Files of one job; servers take 1,024."""
_MOST_BYTES = 16 << 20
"""Of an answer; that of 1,024 jobs, each with its files, is a tenth of it."""
_AT_WORK = {"Pending", "Importing", "InProgress"}


@dataclass(frozen=True, slots=True)
class Job:
    """How far a job is.

    Attributes:
        state: "Pending", "Importing", "Completed" or "Failed".
        percent: done, 0 to 100.
        reason: why it failed.
    """

    state: str
    percent: int
    reason: str

    @property
    def at_work(self) -> bool:
        """Whether the server still has to do with it."""
        return self.state in _AT_WORK


class ImportApi:
    """The import jobs of one server."""

    def __init__(self, config: MilvusConfig) -> None:
        """A path in the URI names the database, as for pymilvus.

        Raises:
            UnsupportedError: it is no server's.
        """
        uri, tls = config.uri, config.tls
        url = urlsplit(uri)
        if url.scheme not in {"http", "https", "tcp"} or not url.hostname:
            shown = uri.rpartition("@")[2]
            raise UnsupportedError(f"import jobs are a server's, and {shown} is none: leave --bucket out")
        self._base = base_url(f"https://{uri.partition('://')[2]}" if tls else uri)
        self._opener = build_opener(_Encrypted(tls or Tls()), _NoRedirects())
        self._token, self._timeout = config.token, config.timeout
        self._database = {"dbName": url.path.strip("/")} if url.path.strip("/") else {}

    def at_work(self, collection: str) -> list[str]:
        """The ids of the jobs into a collection that are not done."""
        url, told = self._post("list", {"collectionName": collection})
        with self._reading(url):
            return [_id(job) for job in told.get("records") or () if job.get("state") in _AT_WORK]

    def start(self, collection: str, files: Sequence[str]) -> str:
        """Start a job; its id.

        Args:
            collection: that gets the rows.
            files: paths in the server's bucket, of Parquet files with exactly its columns.
        """
        url, told = self._post("create", {"collectionName": collection, "files": [[file] for file in files]})
        with self._reading(url):
            return _id(told)

    def job(self, job_id: str) -> Job:
        """How far a job is."""
        url, told = self._post("describe", {"jobId": job_id})
        with self._reading(url):
            percent = min(100, max(0, int(told.get("progress") or 0)))
            return Job(self._line(str(told["state"]), 40), percent, self._line(str(told.get("reason") or "")))

    def _post(self, verb: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Where it was asked, and the data of the answer.

        Raises:
            AuthenticationError: the token is wrong.
            UnsupportedError: nothing there speaks this API.
            StoreError: the server refused.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = json.dumps(self._database | body).encode()
        url = f"{self._base}/v2/vectordb/jobs/import/{verb}"
        with self._reading(url):
            request = Request(url, data, headers)  # noqa: S310 - http(s) only
            with self._opener.open(request, timeout=self._timeout) as answer:
                text = answer.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise ValueError(f"it answers with more than {_MOST_BYTES:,} bytes")
            told = json.loads(text)
            if told["code"] == 0:
                return url, dict(told["data"])
            code, message = self._line(str(told["code"]), 40), self._line(str(told.get("message")))
        raise StoreError(f"the server refuses an import job ({code}): {message}")

    @contextmanager
    def _reading(self, url: str) -> Iterator[None]:
        """Around asking at a URL and taking the answer apart: whatever is wrong with it becomes an error of ours."""
        try:
            yield
        except HTTPError as error:
            if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise AuthenticationError(f"{self._base} refuses the token: give the right --token") from error
            raise UnsupportedError(f"{url} answers {error.code} {self._line(error.reason)}: {_REMEDY}") from error
        except (
            OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError
        ) as error:  # fmt: skip
            reason = self._line(str(getattr(error, "reason", error))) or type(error).__name__
            raise UnsupportedError(f"{url} cannot be asked ({reason}): {_REMEDY}") from error

    def _line(self, said: str, most: int = 500) -> str:
        return one_line(hide(said, self._token), most)


def _id(job: dict[str, Any]) -> str:
    """The id of a job, which goes into messages and the next queries.

    Raises:
        ValueError, KeyError: it has none as servers give them.
    """
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", job_id := str(job["jobId"])):
        raise ValueError(f"{job_id!r} is not the id of a job")
    return job_id


class _NoRedirects(HTTPRedirectHandler):
    """No server of Milvus redirects, and the token would go wherever the answer says."""

    def redirect_request(self, *_: Any) -> None:
        """What urllib calls to ask again elsewhere; without another request the answer is an error."""


class _Encrypted(HTTPSHandler):
    """TLS with the user's own certificates, and another name in the server's."""

    def __init__(self, tls: Tls) -> None:
        super().__init__()
        self._tls = tls

    def https_open(self, request: Request) -> HTTPResponse:
        """What urllib calls for ``https://``."""
        return self.do_open(partial(_EncryptedConnection, self._tls), request)


class _EncryptedConnection(HTTPSConnection):
    def __init__(self, tls: Tls, host: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._tls = tls

    def connect(self) -> None:
        HTTPConnection.connect(self)
        self.sock = self._tls.context().wrap_socket(self.sock, server_hostname=self._tls.server_name or self.host)


_REMEDY = "import jobs need a Milvus server from 2.4 on; without --bucket, mgm load needs none"


def base_url(uri: str) -> str:
    """Where the REST API of the server at a URI is: the same port, without the database and the password."""
    url = urlsplit(uri)
    return f"{'https' if url.scheme == 'https' else 'http'}://{url.netloc.rpartition('@')[2]}"


ROWS_A_FILE = 100_000
BYTES_A_FILE = 64 << 20
"""Images, and bytes of their codes, of one file, at most."""
_SECONDS = 1.0
"""Between two queries about a job."""
_PATIENCE = 120.0
"""Seconds until rows that were imported must be seen."""


class Importer:
    """The way into one server by import jobs."""

    def __init__(self, session: Session, bucket: str) -> None:
        """Nothing is asked or written yet.

        Args:
            session: a collection of the server.
            bucket: URL of a folder in the bucket that the server keeps its own files in.

        Raises:
            UnsupportedError: it is no server.
            CodeFileError: the URL is no bucket's.
        """
        self._session = session
        self._api = ImportApi(session.config)
        self._upload = _Upload(bucket, f"import-{secrets.token_hex(8)}")

    def load(self, codes: CodeFolder, files: Sequence[str], report: Callable[[Progress], None]) -> int:
        """Import these files of a folder of codes into the collection, which is there and empty; the number of rows.

        Raises:
            StoreError: the collection is not empty, a job is at work or failed, or rows are missing afterwards.
            CodeFileError: the bucket cannot be written, or the folder is damaged.
            UnsupportedError: the server has no import jobs.
        """
        store, settings = self._session.store, self._session.existing().schema.regions
        self._check_empty()
        old = superseded(_ids(codes, files))
        total = len(old) - int(old.sum())
        images, of_regions = self._write(_newest(codes, files, old.tolist()), total, report)
        if settings is not None:
            self._run(f"{store.collection}_regions", of_regions, report)
        self._run(store.collection, images, report)
        store.indexes.refresh()
        _see(store.count, total, store.collection)
        if settings is not None:
            _see(store.regions.count, total * settings.count, f"{store.collection}_regions")
        self._upload.remove()
        return total

    def _check_empty(self) -> None:
        """Refuse a collection that has rows, or gets some: an import would make second rows of the same ids."""
        store, settings = self._session.store, self._session.existing().schema.regions
        # In this order: a job that ends between the two queries has left rows.
        for name in (store.collection, *([f"{store.collection}_regions"] if settings else [])):
            for job in self._api.at_work(name):
                raise StoreError(f"the import job {job} into '{name}' is still at work: wait until it is done")
        if there := store.count() + (store.regions.count() if settings else 0):
            raise StoreError(
                f"'{store.collection}' has {there:,} rows already, and an import replaces none: leave --bucket out, or "
                "load into another --collection (after an import that failed, mgm doctor --repair removes what it left)"
            )

    def _write(
        self, rows: Iterator[Row], total: int, report: Callable[[Progress], None]
    ) -> tuple[list[str], list[str]]:
        """Upload all rows; the files of images, and of regions, as the server names them."""
        schema = self._session.existing().schema
        images, regions = [], []
        enough, done = min(ROWS_A_FILE, max(1, BYTES_A_FILE // schema.bytes_per_image)), 0
        while some := list(islice(rows, enough)):
            images.append(self._upload.write(f"images-{done:012}.parquet", images_file(some, schema)))
            if schema.regions is not None:
                regions.append(self._upload.write(f"regions-{done:012}.parquet", regions_file(some, schema.regions)))
            done += len(some)
            report(Progress("uploading", done, total, 0))
        return images, regions

    def _run(self, collection: str, files: Sequence[str], report: Callable[[Progress], None]) -> None:
        """Import files, and wait for it."""
        for start in range(0, len(files), MOST_FILES):
            job_id = self._api.start(collection, files[start : start + MOST_FILES])
            while (job := self._api.job(job_id)).at_work:
                report(Progress(f"importing into {collection} (percent)", job.percent, 100, 0))
                time.sleep(_SECONDS)
            if job.state != "Completed":
                self._upload.remove()
                raise StoreError(f"the import job {job_id} into '{collection}' ended as {job.state}: {job.reason}")


class _Upload:
    """A folder of one's own in the server's bucket."""

    def __init__(self, url: str, name: str) -> None:
        try:
            self._system, path = bucket_of(url)
        except ImageError as error:
            raise CodeFileError(f"--bucket {error}") from error
        self._folder = f"{path.rstrip('/')}/{name}"

    def write(self, name: str, data: bytes) -> str:
        """Write a file; its path in the bucket, as the server names it."""
        path = f"{self._folder}/{name}"
        with self._guarded("written"):
            self._system.pipe_file(path, data)
        return path.lstrip("/").partition("/")[2]

    def remove(self) -> None:
        """Remove the files, where there are some."""
        with self._guarded("cleared, remove it by hand"):
            if self._system.exists(self._folder):
                self._system.rm(self._folder, recursive=True)

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each protocol's library has exceptions of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CodeFileError(f"{self._folder} cannot be {what}: {reason}") from error


def _ids(codes: CodeFolder, files: Sequence[str]) -> Iterator[str]:
    for name in files:
        with codes.part(name) as part:
            yield from (key for key, _, _ in part.stamps())


def _newest(codes: CodeFolder, files: Sequence[str], old: list[bool]) -> Iterator[Row]:
    """The rows that no later one of the same image supersedes."""
    place = 0
    for name in files:
        with codes.part(name) as part:
            for rows in part.read():
                yield from (row for number, row in enumerate(rows, place) if not old[number])
                place += len(rows)


def _see(count: Callable[[], int], expected: int, name: str) -> None:
    """Wait until a collection has its rows.

    Raises:
        StoreError: it has not.
    """
    end = time.monotonic() + _PATIENCE
    while (there := count()) != expected:
        if time.monotonic() > end:
            raise StoreError(
                f"'{name}' has {there:,} rows after the import, expected {expected:,}: look at the server's log, then "
                "mgm load without --bucket, which adds what is missing"
            )
        time.sleep(_SECONDS)
