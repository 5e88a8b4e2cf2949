"""The pipeline: discover -> decode -> encode -> upsert, with bounded queues.

Worker threads decode, the caller's thread encodes, and one more thread writes a batch to the store meanwhile. Memory
does not depend on the number of images.
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
from mg_milvus.images.decode import decoding
from mg_milvus.images.discover import Found, content_hash, image_id
from mg_milvus.images.files import MAX_BYTES, reading
from mg_milvus.images.paths import Disks, Folders
from mg_milvus.ingest.metrics import IngestMetrics, Tally
from mg_milvus.ingest.moves import Moves, moved_to, regions_of
from mg_milvus.records import Failure, Note, Progress
from mg_milvus.schema.models import REGIONS
from mg_milvus.schema.tags import from_elements
from mg_milvus.store.base import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Any

    from mg_milvus.codes import Codes
    from mg_milvus.encoder.base import Encoder, Pixels
    from mg_milvus.encoder.classifier import Tags
    from mg_milvus.session import Session
    from mg_milvus.store.base import Store

    FieldsOf = Callable[[Found, "Row | None"], "Mapping[str, Any]"]


_LOOKUP = 512
"""Files whose rows are fetched in one call."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run the pipeline.

    Attributes:
        batch_size: images per batch.
        workers: decoding threads; None: one per core.
        max_pixels: the largest image to decode; None: as ``images.limits.pixel_limit``.
        metrics: of this ingest.
    """

    batch_size: int = 64
    workers: int | None = None
    max_pixels: int | None = None
    metrics: IngestMetrics = field(default_factory=IngestMetrics, compare=False)


@dataclass(frozen=True, slots=True)
class IngestRun:
    """What the steps of one ingest share.

    Attributes:
        session: the collection, which may not exist yet.
        settings: see ``Settings``.
        fields_of: extra fields of a file, given its row if there is one.
        progress: called after each batch.
        tally: counts and failures, updated by the steps.
        moves: rows whose file may be elsewhere now; None where there are no rows yet.
    """

    session: Session
    settings: Settings
    fields_of: FieldsOf
    progress: Callable[[Progress], None]
    tally: Tally = field(default_factory=Tally)
    moves: Moves | None = None

    @property
    def store(self) -> Store:
        """The store, opened at first use."""
        return self.session.store

    def report(self) -> None:
        """Call ``progress`` with the counts so far."""
        self.progress(self.tally.progress("encoding"))


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image file that was read: with pixels for the encoder, or unchanged (without pixels), or failed."""

    file: Found
    content_hash: str = ""
    pixels: Pixels | None = None
    width: int = 0
    height: int = 0
    failure: str | None = None
    note: str = ""
    taken: int | None = None

    def row(self, codes: Mapping[str, bytes], fields: Mapping[str, Any], tags: Sequence[int]) -> Row:
        """The row to store; ``codes`` holds those of its regions, if any, under ``regions``."""
        whole = {name: code for name, code in codes.items() if name != REGIONS}
        return Row(
            image_id(self.file.path), self.file.path, self.file.size, self.file.mtime_ns, self.width, self.height,
            self.content_hash, whole, fields, codes.get(REGIONS, b""), tags,
            self.file.mtime_ns if self.taken is None else self.taken,
        )  # fmt: skip


def read_images(
    files: Iterable[tuple[Found, AbstractSet[str]]], encoder: Encoder, settings: Settings
) -> Generator[PreparedImage]:
    """Read and prepare files in worker threads, in order, a few batches ahead of the consumer.

    Args:
        files: each with the content hashes that have a row already, its own or one to move; those are not decoded.
        encoder: prepares the images.
        settings: batch size and threads.
    """
    pool = ThreadPoolExecutor(settings.workers or os.cpu_count(), "mgm-decode")
    waiting: deque[Future[PreparedImage]] = deque()
    metrics = settings.metrics

    def read(file: Found, known: AbstractSet[str]) -> PreparedImage:
        with metrics.time("decode"):
            image = _read(file, known, encoder, settings.max_pixels)
        metrics.queue("decode", -1)
        metrics.queue("encode", 1)
        return image

    def first() -> PreparedImage:
        image = waiting.popleft().result()
        metrics.queue("encode", -1)
        return image

    try:
        for file, known in files:
            metrics.queue("decode", 1)
            waiting.append(pool.submit(read, file, known))
            if len(waiting) >= 3 * settings.batch_size:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)
        metrics.clear_queues()


@dataclass(frozen=True, slots=True)
class Counts:
    """What a batch of rows is, in numbers of images, and ids of the rows that it replaces at another path."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    moved_from: Sequence[str] = ()


class Writer:
    """Upserts rows in a thread, one batch in flight, and counts them when the store has acknowledged them.

    A context manager: leaving it waits for the batch in flight.
    """

    def __init__(self, run: IngestRun) -> None:
        self._run, self._metrics = run, run.settings.metrics
        self._pool = ThreadPoolExecutor(1, "mgm-upsert")
        self._flight: tuple[Future[None], Counts] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._wait()
        except StoreError:
            # The first exception is the cause; one of the batch in flight would hide it.
            if kind is None:
                raise
        finally:
            self._pool.shutdown()

    def put(self, rows: Sequence[Row], counts: Counts) -> None:
        """Send rows after waiting for the batch before; they are counted when the store has acknowledged them.

        Rows that moved are deleted at their old path afterwards: a crash leaves both.
        """
        self._wait()
        self._metrics.queue("upsert", len(rows))
        self._flight = (self._pool.submit(self._upsert, rows, counts.moved_from), counts)

    def _upsert(self, rows: Sequence[Row], moved_from: Sequence[str]) -> None:
        try:
            with self._metrics.time("upsert"):
                self._run.store.upsert(rows)
                if moved_from:
                    self._run.store.delete(moved_from)
            self._metrics.count_written(len(rows))
        finally:
            self._metrics.queue("upsert", -len(rows))

    def _wait(self) -> None:
        """Wait for the batch in flight."""
        flight, self._flight = self._flight, None
        if flight is not None:
            written, counts = flight
            written.result()
            tally = self._run.tally
            tally.added += counts.added
            tally.updated += counts.updated
            tally.unchanged += counts.unchanged
            tally.moved += len(counts.moved_from)
            self._run.report()


def changed_files(
    run: IngestRun,
    files: Iterable[Found],
    skip: AbstractSet[str] = frozenset(),
    incomplete: AbstractSet[str] = frozenset(),
) -> Iterator[tuple[Found, Row | None]]:
    """Yield the files to ingest, with their row (without codes) if they have one; count the others as unchanged.

    A file changed when its row differs in size, modification time or fields.

    Args:
        run: see ``IngestRun``.
        files: the files to compare with their rows.
        skip: ids to leave out.
        incomplete: ids of images some of whose regions are missing: given with no content hash, to be encoded again.
    """
    todo = (file for file in files if image_id(file.path) not in skip)
    while chunk := list(islice(todo, _LOOKUP)):
        rows = run.store.fetch([image_id(file.path) for file in chunk])
        changed: list[tuple[Found, Row | None]] = []
        for file in chunk:
            row = rows.get(image_id(file.path))
            same_file = row is not None and (row.size, row.mtime_ns) == (file.size, file.mtime_ns)
            if image_id(file.path) in incomplete:
                # Encoded again, with the fields that it has.
                changed.append((file, None if row is None else replace(row, content_hash="")))
            elif row is not None and same_file and _same(row.fields, run.fields_of(file, row)):
                run.tally.unchanged += 1
            else:
                changed.append((file, row))
        if run.moves is not None:
            run.moves.look_up([file for file, row in changed if row is None])
        run.report()
        yield from changed


def missing_files(store: Store, roots: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield, in batches, ids of the rows under the given folders whose file is gone, and of those that may be away."""
    disks = Disks()
    folders = Folders(roots, disks)
    for rows in store.scan():
        states = {row.id: disks.state(row.path) for row in rows if folders.holds(row.path)}
        yield [i for i, state in states.items() if state == "gone"], [i for i in states if states[i] == "away"]


def ingest_files(
    run: IngestRun,
    encoder: Encoder,
    files: Iterable[Found],
    skip: AbstractSet[str],
    incomplete: AbstractSet[str] = frozenset(),
) -> None:
    """Bring the rows of ``files`` up to date.

    Args:
        run: of a collection that exists.
        encoder: the collection's.
        files: the files to ingest.
        skip: ids to leave out.
        incomplete: ids of images some of whose regions are missing.
    """
    before: dict[str, Row] = {}
    names = tuple(name for name in encoder.bits if name != REGIONS)

    def known_hashes() -> Iterator[tuple[Found, AbstractSet[str]]]:
        for file, row in changed_files(run, files, skip, incomplete):
            if row is not None:
                before[row.id] = row
                yield file, {row.content_hash}
            elif run.moves is not None and image_id(file.path) not in incomplete:
                yield file, run.moves.hashes(file)
            else:
                yield file, frozenset()

    metrics = run.settings.metrics
    with closing(read_images(known_hashes(), encoder, run.settings)) as images, Writer(run) as writer:
        while batch := list(islice(images, run.settings.batch_size)):
            moved, batch = _find_moved(run, encoder, batch, before)
            for image in batch:
                if image.failure is not None:
                    run.tally.failures.append(Failure(image.file.path, image.failure))
                    before.pop(image_id(image.file.path), None)
            new = [image for image in batch if image.pixels is not None]
            run.tally.notes += [Note(image.file.path, image.note) for image in new if image.note]
            same = [image for image in batch if image.pixels is None and image.failure is None]
            codes: dict[str, Codes] = {}
            tags: Tags | None = None
            if new:
                with metrics.time("encode"):
                    codes, tags, far = encoder.encode_and_tag([i.pixels for i in new if i.pixels is not None])
                if far is not None:
                    run.tally.later += len(far)
                    run.tally.far += int(far.sum())
                metrics.count_encoded(len(new))
            rows, updated, unchanged = [], 0, 0
            for place, image in enumerate(new):
                old = before.pop(image_id(image.file.path), None)
                updated += old is not None
                fields = run.fields_of(image.file, old)
                rows.append(image.row(code_bytes(codes, place), fields, stored_tags(tags, place)))
            existing = run.store.fetch([image_id(image.file.path) for image in same], names) if same else {}
            for image in same:
                row = existing.get(image_id(image.file.path))
                before.pop(image_id(image.file.path), None)
                if row is None:
                    reason = "its row was deleted by another client meanwhile; ingest again"
                    run.tally.failures.append(Failure(image.file.path, reason))
                    continue
                fields = run.fields_of(image.file, row)
                unchanged += (same_fields := _same(fields, row.fields))
                updated += not same_fields
                rows.append(replace(row.at_time(image.file.size, image.file.mtime_ns), fields=fields))
            added = len(rows) - updated - unchanged
            if rows or moved:
                writer.put([*rows, *moved.values()], Counts(added, updated, unchanged, list(moved)))


def _find_moved(
    run: IngestRun, encoder: Encoder, batch: Sequence[PreparedImage], before: Mapping[str, Row]
) -> tuple[dict[str, Row], list[PreparedImage]]:
    """The rows that files of a batch had at another path, by their old ids, at the new one; and the other images."""
    known = [
        (image, run.moves.take(image.file, image.content_hash))
        for image in batch
        if run.moves is not None
        and image.pixels is None
        and image.failure is None
        and image_id(image.file.path) not in before
    ]
    if not known:
        return {}, list(batch)
    names = tuple(name for name in encoder.bits if name != REGIONS)
    rows = run.store.fetch([row.id for _, row in known if row is not None], names)
    regions = regions_of(run.store, rows, regions=run.session.schema.regions is not None)
    moved: dict[str, Row] = {}
    others = {id(image): image for image in batch}
    for image, row in known:
        if row is not None and row.id in regions:
            del others[id(image)]
            new = moved_to(rows[row.id], image.file.path, regions[row.id])
            fields = run.fields_of(image.file, new)
            moved[row.id] = replace(new.at_time(image.file.size, image.file.mtime_ns), fields=fields)
        else:  # one more copy than there are rows to move
            others[id(image)] = _read(image.file, frozenset(), encoder, run.settings.max_pixels)
    return moved, list(others.values())


def _same(fields: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether two rows have the same values; a column that one of them lacks is a missing value."""
    return all(fields.get(name) == others.get(name) for name in fields.keys() | others.keys())


def stored_tags(tags: Tags | None, place: int) -> tuple[int, ...]:
    """The tags of one image of a batch, as a row has them."""
    return () if tags is None else from_elements(tags[place].tolist())


def code_bytes(codes: Mapping[str, Codes], place: int) -> dict[str, bytes]:
    """The codes of one image of a batch as bytes, those of its regions concatenated."""
    return {name: values[place].tobytes() for name, values in codes.items()}


def _read(file: Found, known: AbstractSet[str], encoder: Encoder, max_pixels: int | None) -> PreparedImage:
    try:
        with reading.held(min(max(file.size, 0), MAX_BYTES)):
            data = file.read()
            if file.size < 0:
                file = replace(file, size=len(data))
            hashed = content_hash(data)
            if hashed in known:
                return PreparedImage(file, hashed)
            with decoding(data, least=encoder.side, max_pixels=max_pixels) as decoded:
                pixels = encoder.prepare(decoded.image)
                return PreparedImage(
                    file, hashed, pixels, decoded.width, decoded.height, None, decoded.note, decoded.taken
                )
    except (ImageError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return PreparedImage(file, failure=reason)
