"""Import codes through a server's import jobs: upload files to its bucket, start jobs over its REST API (since 2.4).

``pymilvus.bulk_writer`` has the same three requests, but its import needs the client libraries of two object storages.
Here they are made with the standard library.
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
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from mg_milvus.bulk.dataset import BucketFolder, folder_errors, images_file, regions_file, rows_per_file
from mg_milvus.bulk.stream import superseded
from mg_milvus.config import Tls, hide, is_loopback
from mg_milvus.errors import AuthenticationError, CodeFileError, ImageError, StoreError, UnsupportedError
from mg_milvus.files import one_line
from mg_milvus.records import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from http.client import HTTPResponse

    import numpy as np
    from numpy.typing import NDArray

    from mg_milvus.bulk.dataset import CodeFolder
    from mg_milvus.config import MilvusConfig
    from mg_milvus.session import Session
    from mg_milvus.store.base import Row


FILES_PER_JOB = 1_000
"""Most files of one job; servers accept 1,024."""
_MAX_RESPONSE_BYTES = 16 << 20
"""Size of the largest response; that of 1,024 jobs with their files has a tenth of it."""
_POLL_SECONDS = 1.0
"""Seconds between two requests for the state of a job."""
_COUNT_TIMEOUT = 120.0
"""Most seconds until imported rows are visible."""
_SILENT_FOR = 300.0
"""Most seconds without an answer about a job, which goes on meanwhile."""
_PORT = 19_530
_ENDED = frozenset({"Completed", "Failed"})
"""States in which a job stays; versions have different names for those on the way there."""
_GOOD = frozenset({0, 200})
"""Codes of success: 200 up to 2.4.2, 0 since."""
_REMEDY = "import jobs need a Milvus server from 2.4 on; without --bucket, mgm load needs none"


@dataclass(frozen=True, slots=True)
class Job:
    """State of an import job.

    Attributes:
        state: "Completed", "Failed", or one on the way there: "Pending", "Importing" ...
        percent: progress, 0 to 100.
        reason: why it failed.
    """

    state: str
    percent: int
    reason: str

    @property
    def is_running(self) -> bool:
        """Whether it is pending or running: in any state, unless it is an end or no word."""
        return self.state not in _ENDED and re.fullmatch("[A-Za-z]{1,40}", self.state) is not None


class ImportApi:
    """The import jobs of one server."""

    def __init__(self, config: MilvusConfig, rest: str | None = None) -> None:
        """Make no request yet. A path in the URI names the database, as for pymilvus.

        Args:
            config: of the server.
            rest: address of its REST API, where that is not the URI's. With TLS that Milvus itself ends, the two
                cannot share a port.

        Raises:
            UnsupportedError: the URI is not that of a server.
        """
        uri, tls = config.uri, config.tls
        url = urlsplit(uri)
        if url.scheme not in {"http", "https", "tcp"} or not url.hostname:
            raise UnsupportedError(f"import jobs need a server, got {uri.rpartition('@')[2]}: omit --bucket")
        self._base = base_url(rest or (f"https://{uri.partition('://')[2]}" if tls else uri))
        # Without a proxy on the way to this machine; elsewhere those of the environment.
        own = (ProxyHandler({}),) if is_loopback(self._base) else ()
        self._opener = build_opener(_TlsHandler(tls or Tls()), _NoRedirects(), *own)
        self._token, self._timeout = config.token, config.timeout
        self._database = {"dbName": url.path.strip("/")} if url.path.strip("/") else {}

    def running(self, collection: str) -> list[str]:
        """Ids of the pending and running jobs of a collection."""
        url, data = self._post("list", {"collectionName": collection})
        with self._reading(url):
            return [_id(job) for job in data.get("records") or () if job.get("state") not in _ENDED]

    def start(self, collection: str, files: Sequence[str]) -> str:
        """Start a job; returns its id.

        Args:
            collection: to import into.
            files: paths in the server's bucket, of Parquet files with exactly the columns of the collection.
        """
        url, data = self._post("create", {"collectionName": collection, "files": [[file] for file in files]})
        with self._reading(url):
            return _id(data)

    def job(self, job_id: str) -> Job:
        """The state of a job."""
        url, data = self._post("get_progress", {"jobId": job_id})  # "describe" is of 2.4.13 and later only
        with self._reading(url):
            percent = min(100, max(0, int(data.get("progress") or 0)))
            return Job(self._line(str(data["state"]), 40), percent, self._line(str(data.get("reason") or "")))

    def _post(self, verb: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The URL of the request, and the data of the response.

        Raises:
            AuthenticationError: the token is wrong.
            UnsupportedError: the server does not have this API.
            StoreError: the server refused the request.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = json.dumps(self._database | body).encode()
        url = f"{self._base}/v2/vectordb/jobs/import/{verb}"
        with self._reading(url):
            request = Request(url, data, headers)  # noqa: S310 - http(s) only
            with self._opener.open(request, timeout=self._timeout) as response:
                text = response.read(_MAX_RESPONSE_BYTES + 1)
            if len(text) > _MAX_RESPONSE_BYTES:
                raise ValueError(f"the response has more than {_MAX_RESPONSE_BYTES:,} bytes")
            content = json.loads(text)
            if content["code"] in _GOOD:
                return url, dict(content["data"])
            code, message = self._line(str(content["code"]), 40), self._line(str(content.get("message")))
        raise StoreError(f"the server refused an import job ({code}): {message}")

    @contextmanager
    def _reading(self, url: str) -> Iterator[None]:
        """Around a request and the parsing of its response: turn every failure into an MgMilvusError."""
        try:
            yield
        except HTTPError as error:
            if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise AuthenticationError(f"{self._base} refused the token: give the right --token") from error
            raise UnsupportedError(f"{url} answers {error.code} {self._line(error.reason)}: {_REMEDY}") from error
        except (
            OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError
        ) as error:  # fmt: skip
            reason = self._line(str(getattr(error, "reason", error))) or type(error).__name__
            tls = (
                " (with TLS that Milvus itself ends, REST has a port of its own: give --rest)"
                if self._base.startswith("https:")
                else ""
            )
            raise UnsupportedError(f"the request to {url} failed ({reason}): {_REMEDY}{tls}") from error

    def _line(self, text: str, most: int = 500) -> str:
        return one_line(hide(text, self._token), most)


def _id(job: dict[str, Any]) -> str:
    """The id of a job, for messages and further requests.

    Raises:
        ValueError, KeyError: it is missing or malformed.
    """
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", job_id := str(job["jobId"])):
        raise ValueError(f"{job_id!r} is not the id of a job")
    return job_id


class _NoRedirects(HTTPRedirectHandler):
    """Refuses redirects: Milvus sends none, and the token would be sent to their target."""

    def redirect_request(self, *_: Any) -> None:
        """Called by urllib; without a new request the response is an error."""


class _TlsHandler(HTTPSHandler):
    """TLS with the certificates and the server name of a ``Tls``."""

    def __init__(self, tls: Tls) -> None:
        super().__init__()
        self._tls = tls

    def https_open(self, request: Request) -> HTTPResponse:
        """Called by urllib for ``https://``."""
        return self.do_open(partial(_TlsConnection, self._tls), request)


class _TlsConnection(HTTPSConnection):
    def __init__(self, tls: Tls, host: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._tls = tls

    def connect(self) -> None:
        HTTPConnection.connect(self)
        self.sock = self._tls.context().wrap_socket(self.sock, server_hostname=self._tls.server_name or self.host)


def base_url(uri: str) -> str:
    """URL of the REST API of a server: the same port, 19530 if there is none, without database and password.

    Raises:
        UnsupportedError: the URI has no host, or its port is no number.
    """
    url = urlsplit(uri)
    try:
        port = url.port or _PORT
    except ValueError:
        port = 0
    if not url.hostname or not port or url.scheme not in {"http", "https", "tcp"}:
        raise UnsupportedError(f"'{hide(uri, url.password)}' is no address of a REST API: expected http://host:19530")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{'https' if url.scheme == 'https' else 'http'}://{host}:{port}"


@dataclass(frozen=True, slots=True)
class ImportPlace:
    """Where the server imports from.

    Attributes:
        bucket: URL of a folder in the bucket where the server keeps its own files.
        rest: address of its REST API; None: as the server's URI.
    """

    bucket: str
    rest: str | None = None


class Importer:
    """Imports codes into one server."""

    def __init__(self, session: Session, place: ImportPlace) -> None:
        """Make no request yet.

        Args:
            session: a collection of the server.
            place: its bucket.

        Raises:
            UnsupportedError: the session is not with a server.
            CodeFileError: the URL is not that of a bucket.
        """
        self._session = session
        self._api = ImportApi(session.config, place.rest)
        try:
            self._uploads = BucketFolder(place.bucket, f"import-{secrets.token_hex(8)}")
        except ImageError as error:
            raise CodeFileError(f"--bucket {error}") from error

    def load(self, codes: CodeFolder, files: Sequence[str], report: Callable[[Progress], None]) -> int:
        """Import files of a folder of codes into the collection, which exists and is empty; returns the number of rows.

        Raises:
            StoreError: the collection is not empty, a job is running or failed, or rows are missing afterwards.
            CodeFileError: the bucket cannot be written, or the folder is damaged.
            UnsupportedError: the server has no import jobs.
        """
        store, settings = self._session.store, self._session.existing().schema.regions
        self._check_empty()
        old = superseded(_ids(codes, files))
        total = len(old) - int(old.sum())
        images, regions = self._upload(_newest(codes, files, old), total, report)
        if settings is not None:
            self._run(f"{store.collection}_regions", regions, report)
        self._run(store.collection, images, report)
        store.indexes.refresh()
        _wait_for_rows(store.count, total, store.collection)
        if settings is not None:
            _wait_for_rows(store.regions.count, total * settings.count, f"{store.collection}_regions")
        self._remove_uploads()
        return total

    def _check_empty(self) -> None:
        """Refuse a collection with rows or running jobs: an import would add second rows of the same ids."""
        store, settings = self._session.store, self._session.existing().schema.regions
        # Jobs first: a job that ends between the two requests has left rows.
        for name in (store.collection, *([f"{store.collection}_regions"] if settings else [])):
            for job in self._api.running(name):
                raise StoreError(f"the import job {job} into '{name}' is still running: wait for its end")
        if existing := store.count() + (store.regions.count() if settings else 0):
            raise StoreError(
                f"'{store.collection}' has {existing:,} rows already, and an import replaces none: omit --bucket, or "
                "load into another --collection (after a failed import, mgm doctor --repair removes its rows)"
            )

    def _upload(
        self, rows: Iterator[Row], total: int, report: Callable[[Progress], None]
    ) -> tuple[list[str], list[str]]:
        """Upload all rows; returns the paths of the files of images, and of regions, in the bucket."""
        schema = self._session.existing().schema
        images, regions = [], []
        done = 0
        while chunk := list(islice(rows, rows_per_file(schema))):
            images.append(self._write(f"images-{done:012}.parquet", images_file(chunk, schema)))
            if schema.regions is not None:
                regions.append(self._write(f"regions-{done:012}.parquet", regions_file(chunk, schema.regions)))
            done += len(chunk)
            report(Progress("uploading", done, total, 0))
        return images, regions

    def _run(self, collection: str, files: Sequence[str], report: Callable[[Progress], None]) -> None:
        """Import files, and wait until all jobs have completed."""
        for start in range(0, len(files), FILES_PER_JOB):
            job_id = self._api.start(collection, files[start : start + FILES_PER_JOB])
            while (job := self._job(job_id, collection)).is_running:
                report(Progress(f"importing into {collection} (percent)", job.percent, 100, 0))
                time.sleep(_POLL_SECONDS)
            if job.state != "Completed":
                self._remove_uploads()
                raise StoreError(f"the import job {job_id} into '{collection}' ended as {job.state}: {job.reason}")

    def _job(self, job_id: str, collection: str) -> Job:
        """The state of a job; a server that is away for a moment goes on with it when it is back."""
        end = time.monotonic() + _SILENT_FOR
        while True:
            try:
                return self._api.job(job_id)
            except AuthenticationError:
                raise
            except StoreError as error:
                if time.monotonic() > end:
                    raise StoreError(
                        f"nothing is heard of the import job {job_id} into '{collection}', which may still run "
                        f"({error}): its files stay in {self._uploads.path}; when it has ended, run mgm load again "
                        "without --bucket, which adds what is missing"
                    ) from error
                time.sleep(_POLL_SECONDS)

    def _write(self, name: str, data: bytes) -> str:
        """Upload a file; returns its path in the bucket, as the server names it."""
        with folder_errors(self._uploads.path, "written"):
            self._uploads.write(name, data)
        return f"{self._uploads.path}/{name}".lstrip("/").partition("/")[2]

    def _remove_uploads(self) -> None:
        with folder_errors(self._uploads.path, "removed, remove it by hand"):
            self._uploads.remove_all()


def _ids(codes: CodeFolder, files: Sequence[str]) -> Iterator[str]:
    for name in files:
        with codes.part(name) as part:
            yield from (key for key, _, _ in part.stamps())


def _newest(codes: CodeFolder, files: Sequence[str], old: NDArray[np.bool_]) -> Iterator[Row]:
    """The newest row of each image; ``old`` marks the others."""
    place = 0
    for name in files:
        with codes.part(name) as part:
            for rows in part.read():
                yield from (row for number, row in enumerate(rows, place) if not old[number])
                place += len(rows)


def _wait_for_rows(count: Callable[[], int], expected: int, name: str) -> None:
    """Wait until the imported rows of a collection are visible.

    Raises:
        StoreError: they are not, in time.
    """
    end = time.monotonic() + _COUNT_TIMEOUT
    while (existing := count()) != expected:
        if time.monotonic() > end:
            raise StoreError(
                f"'{name}' has {existing:,} rows after the import, expected {expected:,}: see the server's log, then "
                "run mgm load without --bucket, which adds the missing rows"
            )
        time.sleep(_POLL_SECONDS)
