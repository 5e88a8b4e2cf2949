"""Images and the codes of their regions, kept in step."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg_milvus.errors import QueryError, StoreError
from mg_milvus.images.discover import Found, image_id, path_text, text_path
from mg_milvus.ingest.fit_heads import SAMPLE_SIZE, first_ingest, reservoir
from mg_milvus.ingest.metadata import default_values
from mg_milvus.ingest.metrics import Tally
from mg_milvus.ingest.pipeline import Settings, gone, ingest_files, stale
from mg_milvus.records import Failure, Progress
from mg_milvus.results import IngestReport
from mg_milvus.schema.regions import split_id

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from mg_milvus.ingest.pipeline import FieldsOf
    from mg_milvus.schema.models import Schema
    from mg_milvus.session import Connection
    from mg_milvus.store.base import Store

    Files = Callable[[Callable[[Failure], None]], Iterator[Found]]


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """What a crash, or another program, left behind.

    Attributes:
        orphans: ids of images that have regions and no row.
        incomplete: ids of images whose regions are not all there.
    """

    orphans: frozenset[str] = frozenset()
    incomplete: frozenset[str] = frozenset()


def out_of_step(store: Store, schema: Schema, *, thorough: bool = False) -> OutOfStep:
    """Find what does not fit together.

    Args:
        store: where the collection is.
        schema: the collection's.
        thorough: read all ids. Otherwise only when the numbers of rows do not fit, which a crash cannot hide: regions
            are written before their images and deleted after them, so it leaves too many and never too few.
    """
    if schema.regions is None:
        return OutOfStep()
    if not thorough and store.regions.count() == schema.regions.count * store.count():
        return OutOfStep()
    regions: Counter[str] = Counter()
    for some in store.regions.scan():
        regions.update(split_id(region)[0] for region in some)
    images = {row.id for rows in store.scan() for row in rows}
    return OutOfStep(
        frozenset(regions.keys() - images),
        frozenset(image for image in images if regions[image] != schema.regions.count),
    )


def mend(store: Store, found: OutOfStep) -> None:
    """Delete the regions without an image. Incomplete ones are for an ingest to encode again."""
    if found.orphans:
        store.regions.delete(sorted(found.orphans))


def run_ingest(
    connection: Connection,
    files: Files,
    settings: Settings,
    fields_of: FieldsOf,
    *,
    prune: Sequence[str | os.PathLike[str]] = (),
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> IngestReport:
    """Bring the rows of files up to date; see ``ImageIndex.ingest``.

    Args:
        connection: to the collection, or to where it will be made.
        files: walks the files; called twice: to count and sample them, then to do them.
        settings: see ``Settings``.
        fields_of: the extra fields of a file, given its row if there is one.
        prune: folders whose rows are deleted when their file is gone.
        dry_run: only say what would be done.
        progress: called after each batch.
    """  # fmt: skip
    if settings.batch_size < 1 or (settings.workers is not None and settings.workers < 1):
        raise QueryError(
            f"batch_size is {settings.batch_size} and workers is {settings.workers}, expected both to be 1 or more"
        )
    run = _Run(connection, files, settings, fields_of, progress or (lambda _: None))
    started = time.perf_counter()
    interrupted = False
    try:
        run.dry() if dry_run else run.wet()
        if prune:
            run.prune(prune, dry_run=dry_run)
        settings.metrics.end(success=True)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        settings.metrics.end(success=False)
    tally = run.tally
    return IngestReport(
        tally.total, tally.added, tally.updated, tally.unchanged, run.removed, tuple(tally.failures),
        time.perf_counter() - started, run.adapted_on, interrupted, dry_run,
    )  # fmt: skip


def run_refit(
    connection: Connection, to: str, settings: Settings, *, progress: Callable[[Progress], None] | None = None
) -> IngestReport:
    """Ingest the images of a collection into a new one; see ``ImageIndex.refit``."""
    store, schema = connection.store, connection.existing().schema
    new = connection.beside(to, schema.model_copy(update={"collection": to}))
    try:
        if new.description() is not None:
            raise QueryError(f"there is a collection '{to}' already; choose another name, or fill it with mgm ingest")

        def fields_of(found: Found, _: object) -> Mapping[str, Any]:
            if not schema.fields:
                return {}
            key = image_id(found.path)
            row = store.fetch([key]).get(key)
            return default_values(schema.fields) if row is None else row.fields

        return run_ingest(new, lambda on_failure: _files_of(store, on_failure), settings, fields_of, progress=progress)
    finally:
        new.close()


class _Run:
    """The steps of an ingest, and what they have done so far."""

    def __init__(
        self, connection: Connection, files: Files, settings: Settings, fields_of: FieldsOf,
        progress: Callable[[Progress], None],
    ) -> None:  # fmt: skip
        self._connection, self._files, self._settings, self._fields_of = connection, files, settings, fields_of
        self._progress = progress
        self.tally = settings.metrics.tally = Tally()
        self.removed = 0
        self.adapted_on = 0

    def wet(self) -> None:
        sample, self.tally.total = reservoir(self._files(lambda _: None), SAMPLE_SIZE)
        handled: set[str] = set()
        recorded = self._connection.description()
        if recorded is not None and recorded.schema.regions is not None:
            self._connection.store.create(recorded)  # a kill in the first ingest can leave it without its regions
        if recorded is None and sample:
            encoder, description, handled = first_ingest(
                self._connection.store, self._connection.base_encoder(), self._connection.schema, sample,
                self._settings, fields_of=self._fields_of, tally=self.tally, report=self._progress,
                device=self._connection.device,
            )  # fmt: skip
            self._connection.made(description, encoder)
            self.adapted_on = description.adapted_on if handled else 0
        # Also without a single image: what could not be walked is reported here.
        found = self._files(self.tally.failures.append)
        if not sample:
            for _ in found:
                pass
            return
        store, schema = self._connection.store, self._connection.schema
        broken = out_of_step(store, schema)
        mend(store, broken)
        ingest_files(
            store, self._connection.encoder, found, self._settings, fields_of=self._fields_of,
            skip=handled, tally=self.tally, report=self._report, incomplete=broken.incomplete,
        )  # fmt: skip

    def dry(self) -> None:
        """Compare files with rows; nothing is read or written."""
        files = self._files(self.tally.failures.append)
        if self._connection.description() is None:
            self.tally.added = self.tally.total = sum(1 for _ in files)
            return
        for _, row in stale(
            self._connection.store, self._counted(files), fields_of=self._fields_of, skip=frozenset(),
            tally=self.tally, report=self._report,
        ):  # fmt: skip
            self.tally.added += row is None
            self.tally.updated += row is not None

    def prune(self, roots: Sequence[str | os.PathLike[str]], *, dry_run: bool) -> None:
        """Delete the rows whose file is gone.

        Raises:
            StoreError: the folders hold no image at all any more, which looks more like a disk that is not mounted.
        """
        if self._connection.description() is None:
            return
        store = self._connection.store
        for ids in gone(store, roots):
            if ids and not self.tally.total:
                raise StoreError(
                    f"{path_text(roots[0])} holds no image any more, so --prune would remove all its rows; nothing "
                    "was removed. Is the disk mounted? Otherwise use mgm delete --filter"
                )
            removed = len(ids) if dry_run else store.delete(ids)
            self.removed += removed
            self._settings.metrics.count_removed(removed)

    def _counted(self, files: Iterator[Found]) -> Iterator[Found]:
        for found in files:
            self.tally.total += 1
            yield found

    def _report(self) -> None:
        self._progress(self.tally.progress("encoding"))


def _files_of(store: Store, on_failure: Callable[[Failure], None]) -> Iterator[Found]:
    """The files of all rows, as they are now."""
    for rows in store.scan():
        for row in rows:
            try:
                status = text_path(row.path).stat()
            except OSError as error:
                on_failure(Failure(row.path, error.strerror or str(error)))
                continue
            yield Found(row.path, status.st_size, status.st_mtime_ns)
