"""The pipeline: discover -> decode -> encode -> upsert, with bounded queues.

Decoding runs in worker threads, encoding in the caller's thread, and one batch is on its way to the store meanwhile.
The number of images in memory does not depend on the number of images to do.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Self

from mg_milvus.errors import ImageError, StoreError
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS, decoding
from mg_milvus.images.discover import Found, content_hash, image_id, is_under, path_text, text_path
from mg_milvus.images.files import MAX_BYTES, reading
from mg_milvus.ingest.metrics import IngestMetrics, Tally
from mg_milvus.records import Failure
from mg_milvus.schema.regions import REGIONS
from mg_milvus.store.base import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Any

    from mg_milvus.codes import Codes
    from mg_milvus.encoder.base import Encoder, Pixels
    from mg_milvus.store.base import Store

    FieldsOf = Callable[[Found, "Row | None"], "Mapping[str, Any]"]


_LOOKUP = 512
"""Files whose rows are looked up in one call."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run the pipeline.

    Attributes:
        batch_size: images per batch.
        workers: decoding threads; None: one a core.
        max_pixels: the largest image to decode.
        metrics: where the pipeline counts and measures what it does.
    """

    batch_size: int = 64
    workers: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    metrics: IngestMetrics = field(default_factory=IngestMetrics, compare=False)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file that was read: ready for the encoder, or known already (no pixels), or failed."""

    found: Found
    content_hash: str = ""
    pixels: Pixels | None = None
    width: int = 0
    height: int = 0
    failure: str | None = None

    def row(self, codes: Mapping[str, bytes], fields: Mapping[str, Any]) -> Row:
        """The row to store; the codes of its regions, if there are some, are among ``codes`` under ``regions``."""
        whole = {name: code for name, code in codes.items() if name != REGIONS}
        return Row(
            image_id(self.found.path), self.found.path, self.found.size, self.found.mtime_ns, self.width, self.height,
            self.content_hash, whole, fields, codes.get(REGIONS, b""),
        )  # fmt: skip


def read_images(files: Iterable[tuple[Found, str | None]], encoder: Encoder, settings: Settings) -> Generator[Prepared]:
    """Read, check and prepare files in worker threads, in order, a few batches ahead of the consumer.

    Args:
        files: each with the content hash of its row, if it has one; the same content is not decoded again.
        encoder: prepares the images.
        settings: batch size and threads.
    """
    pool = ThreadPoolExecutor(settings.workers or os.cpu_count(), "mgm-decode")
    waiting: deque[Future[Prepared]] = deque()
    metrics = settings.metrics

    def read(found: Found, known_hash: str | None) -> Prepared:
        with metrics.time("decode"):
            image = _read(found, known_hash, encoder, settings.max_pixels)
        metrics.queue("decode", -1)
        metrics.queue("encode", 1)
        return image

    def first() -> Prepared:
        image = waiting.popleft().result()
        metrics.queue("encode", -1)
        return image

    try:
        for found, known_hash in files:
            metrics.queue("decode", 1)
            waiting.append(pool.submit(read, found, known_hash))
            if len(waiting) >= 3 * settings.batch_size:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)
        metrics.clear_queues()


class Writer:
    """Upserts in a thread of its own, one batch in flight, and tallies what was acknowledged.

    A context manager: leaving it waits for the batch in flight.
    """

    def __init__(self, store: Store, tally: Tally, report: Callable[[], None], metrics: IngestMetrics) -> None:
        self._store, self._tally, self._report, self._metrics = store, tally, report, metrics
        self._pool = ThreadPoolExecutor(1, "mgm-upsert")
        self._flight: tuple[Future[None], tuple[int, int, int]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._land()
        except StoreError:
            # What stopped the work is the news, not what followed from it.
            if kind is None:
                raise
        finally:
            self._pool.shutdown()

    def put(self, rows: Sequence[Row], *, added: int, updated: int, unchanged: int) -> None:
        """Send rows; waits for those sent before. The counts are tallied when the rows have arrived."""
        self._land()
        self._metrics.queue("upsert", len(rows))
        self._flight = (self._pool.submit(self._upsert, rows), (added, updated, unchanged))

    def _upsert(self, rows: Sequence[Row]) -> None:
        try:
            with self._metrics.time("upsert"):
                self._store.upsert(rows)
            self._metrics.count_written(len(rows))
        finally:
            self._metrics.queue("upsert", -len(rows))

    def _land(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            written, (added, updated, unchanged) = flight
            written.result()
            self._tally.added += added
            self._tally.updated += updated
            self._tally.unchanged += unchanged
            self._report()


def stale(
    store: Store,
    files: Iterable[Found],
    *,
    fields_of: FieldsOf,
    skip: AbstractSet[str],
    tally: Tally,
    report: Callable[[], None],
    incomplete: AbstractSet[str] = frozenset(),
) -> Iterator[tuple[Found, Row | None]]:
    """The files that have no row, and with their row (without codes) those that differ from it in size, time or fields.

    Those whose regions are incomplete are given without their row, so that they are encoded again. The others are
    tallied as unchanged. Arguments as in ``ingest_files``.
    """
    todo = (found for found in files if image_id(found.path) not in skip)
    while chunk := list(islice(todo, _LOOKUP)):
        rows = store.fetch([image_id(found.path) for found in chunk])
        for found in chunk:
            row = rows.get(image_id(found.path))
            same_file = row is not None and (row.size, row.mtime_ns) == (found.size, found.mtime_ns)
            if image_id(found.path) in incomplete:
                yield found, None
            elif row is not None and same_file and dict(row.fields) == dict(fields_of(found, row)):
                tally.unchanged += 1
            else:
                yield found, row
        report()


def gone(store: Store, roots: Sequence[str | os.PathLike[str]]) -> Iterator[list[str]]:
    """Ids, in batches, of the rows under the given folders whose file is not there any more."""
    folders = [path_text(root) for root in roots]
    for rows in store.scan():
        yield [row.id for row in rows if is_under(row.path, folders) and not _exists(row.path)]


def ingest_files(
    store: Store,
    encoder: Encoder,
    files: Iterable[Found],
    settings: Settings,
    *,
    fields_of: FieldsOf,
    skip: AbstractSet[str],
    tally: Tally,
    report: Callable[[], None],
    incomplete: AbstractSet[str] = frozenset(),
) -> None:
    """Bring the rows of ``files`` up to date.

    Args:
        store: has the collection already.
        encoder: the collection's.
        files: what was found.
        settings: see ``Settings``.
        fields_of: the extra fields of a file, given its row if there is one.
        skip: ids that have been dealt with.
        tally: counts and failures are added here.
        report: called after each batch.
        incomplete: ids of images whose regions are not all there.
    """
    before: dict[str, Row] = {}
    names = tuple(name for name in encoder.bits if name != REGIONS)

    def known_hashes() -> Iterator[tuple[Found, str | None]]:
        for found, row in stale(
            store, files, fields_of=fields_of, skip=skip, tally=tally, report=report, incomplete=incomplete
        ):
            if row is not None:
                before[row.id] = row
            yield found, row.content_hash if row else None

    metrics = settings.metrics
    with (
        closing(read_images(known_hashes(), encoder, settings)) as images,
        Writer(store, tally, report, metrics) as writer,
    ):
        while batch := list(islice(images, settings.batch_size)):
            for image in batch:
                if image.failure is not None:
                    tally.failures.append(Failure(image.found.path, image.failure))
                    before.pop(image_id(image.found.path), None)
            new = [p for p in batch if p.pixels is not None]
            same = [p for p in batch if p.pixels is None and p.failure is None]
            codes: dict[str, Codes] = {}
            if new:
                with metrics.time("encode"):
                    codes = encoder.encode([p.pixels for p in new if p.pixels is not None])
                metrics.count_encoded(len(new))
            rows, updated, unchanged = [], 0, 0
            for place, image in enumerate(new):
                old = before.pop(image_id(image.found.path), None)
                updated += old is not None
                rows.append(image.row(code_bytes(codes, place), fields_of(image.found, old)))
            kept = store.fetch([image_id(p.found.path) for p in same], names) if same else {}
            for image in same:
                row = kept.get(image_id(image.found.path))
                before.pop(image_id(image.found.path), None)
                if row is None:
                    reason = "its row was deleted by another client meanwhile; ingest again"
                    tally.failures.append(Failure(image.found.path, reason))
                    continue
                fields = fields_of(image.found, row)
                unchanged += dict(fields) == dict(row.fields)
                updated += dict(fields) != dict(row.fields)
                rows.append(replace(row, size=image.found.size, mtime_ns=image.found.mtime_ns, fields=fields))
            if rows:
                writer.put(rows, added=len(rows) - updated - unchanged, updated=updated, unchanged=unchanged)


def code_bytes(codes: Mapping[str, Codes], place: int) -> dict[str, bytes]:
    """One image's codes out of a batch, as the store wants them; those of its regions in one."""
    return {name: values[place].tobytes() for name, values in codes.items()}


def _exists(path: str) -> bool:
    try:
        text_path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # not to be read now, which is not the same as gone
    return True


def _read(found: Found, known_hash: str | None, encoder: Encoder, max_pixels: int) -> Prepared:
    try:
        with reading.held(min(max(found.size, 0), MAX_BYTES)):
            data = found.read()
            if found.size < 0:
                found = replace(found, size=len(data))
            hashed = content_hash(data)
            if hashed == known_hash:
                return Prepared(found, hashed)
            with decoding(data, least=encoder.side, max_pixels=max_pixels) as decoded:
                return Prepared(found, hashed, encoder.prepare(decoded.image), decoded.width, decoded.height)
    except (ImageError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Prepared(found, failure=reason)
