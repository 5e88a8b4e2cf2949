"""``mgm load --bucket``: a folder of codes into a server by import jobs, which read files from the server's bucket.

An import adds rows and replaces none. So it is for collections that are empty, and gets the newest row of each picture
only. The files have exactly the columns of their collection, those of regions apart; they are removed when the jobs are
done. Regions come first: a picture that is there has its regions.
"""

from __future__ import annotations

import secrets
import time
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from mg_milvus.bulk.finished import superseded
from mg_milvus.bulk.import_api import MOST_FILES, ImportApi
from mg_milvus.bulk.parquet import pictures_file, regions_file
from mg_milvus.bulk.remote import bucket as bucket_of
from mg_milvus.errors import CodeFileError, PictureError, StoreError
from mg_milvus.hits import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mg_milvus.bulk.folder import CodeFolder
    from mg_milvus.connection import Connection
    from mg_milvus.store import Row

ROWS_A_FILE = 100_000
BYTES_A_FILE = 64 << 20
"""Pictures, and bytes of their codes, of one file, at most."""
_SECONDS = 1.0
"""Between two questions about a job."""
_PATIENCE = 120.0
"""Seconds until rows that were imported must be seen."""


class Importer:
    """The way into one server by import jobs."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        """Nothing is asked or written yet.

        Args:
            connection: to the server.
            bucket: URL of a folder in the bucket that the server keeps its own files in.

        Raises:
            UnsupportedError: it is no server.
            CodeFileError: the URL is no bucket's.
        """
        self._connection = connection
        self._api = ImportApi(connection.uri, *connection.access)
        self._upload = _Upload(bucket, f"import-{secrets.token_hex(8)}")

    def load(self, codes: CodeFolder, parts: Sequence[str], report: Callable[[Progress], None]) -> int:
        """Import these parts of a folder of codes into the collection, which is there and empty; the number of rows.

        Raises:
            StoreError: the collection is not empty, a job is at work or failed, or rows are missing afterwards.
            CodeFileError: the bucket cannot be written, or the folder is damaged.
            UnsupportedError: the server has no import jobs.
        """
        store, regions = self._connection.store, self._connection.existing().schema.parts
        self._check_empty()
        old = superseded(_ids(codes, parts))
        total = len(old) - int(old.sum())
        pictures, of_regions = self._write(_newest(codes, parts, old.tolist()), total, report)
        if regions is not None:
            self._run(f"{store.collection}_parts", of_regions, report)
        self._run(store.collection, pictures, report)
        store.indexes.refresh()
        _see(store.count, total, store.collection)
        if regions is not None:
            _see(store.regions.count, total * regions.regions, f"{store.collection}_parts")
        self._upload.remove()
        return total

    def _check_empty(self) -> None:
        """Refuse a collection that has rows, or gets some: an import would make second rows of the same ids."""
        store, parts = self._connection.store, self._connection.existing().schema.parts
        # In this order: a job that ends between the two questions has left rows.
        for name in (store.collection, *([f"{store.collection}_parts"] if parts else [])):
            for job in self._api.at_work(name):
                raise StoreError(f"the import job {job} into '{name}' is still at work: wait until it is done")
        if there := store.count() + (store.regions.count() if parts else 0):
            raise StoreError(
                f"'{store.collection}' has {there:,} rows already, and an import replaces none: leave --bucket out, or "
                "load into another --collection (after an import that failed, mgm doctor --repair removes what it left)"
            )

    def _write(
        self, rows: Iterator[Row], total: int, report: Callable[[Progress], None]
    ) -> tuple[list[str], list[str]]:
        """Upload all rows; the files of pictures, and of regions, as the server names them."""
        schema = self._connection.existing().schema
        pictures, regions = [], []
        enough, done = min(ROWS_A_FILE, max(1, BYTES_A_FILE // schema.bytes_per_picture)), 0
        while some := list(islice(rows, enough)):
            pictures.append(self._upload.write(f"pictures-{done:012}.parquet", pictures_file(some, schema)))
            if schema.parts is not None:
                regions.append(self._upload.write(f"regions-{done:012}.parquet", regions_file(some, schema.parts)))
            done += len(some)
            report(Progress("uploading", done, total, 0))
        return pictures, regions

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
        except PictureError as error:
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


def _ids(codes: CodeFolder, parts: Sequence[str]) -> Iterator[str]:
    for name in parts:
        with codes.part(name) as part:
            yield from (key for key, _, _ in part.stamps())


def _newest(codes: CodeFolder, parts: Sequence[str], old: list[bool]) -> Iterator[Row]:
    """The rows that no later one of the same picture supersedes."""
    place = 0
    for name in parts:
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
