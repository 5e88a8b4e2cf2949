"""An ingest as a whole: first pass, main pass, pruning; repair of images and regions out of step."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mg_milvus.errors import ImageError, QueryError, StoreError
from mg_milvus.images.discover import Found, content_hash
from mg_milvus.images.paths import stored_path
from mg_milvus.ingest.fit_heads import SAMPLE_SIZE, first_ingest, random_sample
from mg_milvus.ingest.moves import Moves
from mg_milvus.ingest.pipeline import IngestRun, Settings, changed_files, ingest_files, missing_files
from mg_milvus.results import IngestReport
from mg_milvus.schema.models import split_id

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from mg_milvus.ingest.pipeline import FieldsOf
    from mg_milvus.records import Failure, Progress
    from mg_milvus.schema.models import ExtraField, Schema
    from mg_milvus.session import Session
    from mg_milvus.store.base import Store

    Files = Callable[[Callable[[Failure], None]], Iterator[Found]]
    OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """Images and regions that do not match, after a crash or a change by another program.

    Attributes:
        orphans: ids of images that have regions and no row.
        incomplete: ids of images some of whose regions are missing.
    """

    orphans: frozenset[str] = frozenset()
    incomplete: frozenset[str] = frozenset()


def find_out_of_step(store: Store, schema: Schema, *, thorough: bool = False) -> OutOfStep:
    """Find images and regions that do not match.

    Args:
        store: holds the collection.
        schema: the collection's.
        thorough: compare all ids. Otherwise only when the numbers of rows differ, as they do after a crash: regions are
            written before their images and deleted after them, so a crash leaves too many regions, never too few.
    """
    if schema.regions is None:
        return OutOfStep()
    if not thorough and store.regions.count() == schema.regions.count * store.count():
        return OutOfStep()
    regions: Counter[str] = Counter()
    for ids in store.regions.scan():
        regions.update(split_id(region)[0] for region in ids)
    images = {row_id for rows in store.values(("id",)) for (row_id,) in rows}
    return OutOfStep(
        frozenset(regions.keys() - images),
        frozenset(image for image in images if regions[image] != schema.regions.count),
    )


def delete_orphans(store: Store, out_of_step: OutOfStep) -> None:
    """Delete regions without an image. Incomplete images are encoded again by the next ingest."""
    if out_of_step.orphans:
        store.regions.delete(sorted(out_of_step.orphans))


@dataclass(frozen=True, slots=True)
class Source:
    """Files to ingest.

    Attributes:
        files: walks the files, reporting failures to its argument; called twice: for a sample, and for the main pass.
        fields_of: extra fields of a file, given its row if there is one.
        prune: folders whose rows are deleted when their file no longer exists.
        new_fields: fields that the collection lacks, to be added to it.
    """

    files: Files
    fields_of: FieldsOf
    prune: Sequence[str | os.PathLike[str]] = ()
    new_fields: Sequence[ExtraField] = ()


def run_ingest(
    session: Session,
    source: Source,
    settings: Settings,
    *,
    dry_run: bool = False,
    progress: OnProgress | None = None,
) -> IngestReport:
    """Bring the rows of files up to date; see ``ImageIndex.ingest``.

    Args:
        session: the collection, which may not exist yet.
        source: see ``Source``.
        settings: see ``Settings``.
        dry_run: only count what would be done.
        progress: called after each batch.
    """
    if settings.batch_size < 1 or (settings.workers is not None and settings.workers < 1):
        raise QueryError(
            f"batch_size is {settings.batch_size} and workers is {settings.workers}, expected both to be 1 or more"
        )
    ingest = _Ingest(session, source, settings, progress or (lambda _: None))
    tally = ingest.run.tally
    started = time.perf_counter()
    interrupted = False
    try:
        ingest.compare() if dry_run else ingest.ingest()
        if source.prune:
            ingest.prune(dry_run=dry_run)
        settings.metrics.end(success=True)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        settings.metrics.end(success=False)
    return IngestReport(
        tally.total, tally.added, tally.updated, tally.unchanged, ingest.removed, tuple(tally.failures),
        time.perf_counter() - started, ingest.adapted_on, interrupted, dry_run,
        tally.moved, ingest.away, notes=tuple(tally.notes), later=tally.later, far=tally.far,
    )  # fmt: skip


class _Ingest:
    """The steps of an ingest, and their counts."""

    def __init__(self, session: Session, source: Source, settings: Settings, progress: OnProgress) -> None:
        self._session, self._source = session, source
        self.run = IngestRun(session, settings, source.fields_of, progress)
        settings.metrics.tally = self.run.tally
        self.removed = 0
        self.away = 0
        self._moved: set[str] = set()
        self.adapted_on = 0

    def ingest(self) -> None:
        """Make the collection if there is none, and bring its rows up to date."""
        session, tally = self._session, self.run.tally
        sample, tally.total = random_sample(self._source.files(lambda _: None), SAMPLE_SIZE)
        done: set[str] = set()
        recorded = session.description()
        if sample:
            session.add_fields(self._source.new_fields)
        if recorded is not None and recorded.schema.regions is not None:
            session.store.create(recorded)  # a first ingest that was killed may have left it without its regions
        if recorded is None and sample:
            encoder, description, done = first_ingest(self.run, sample)
            session.remember(description, encoder)
            if not done:  # another client may have created it, with other fields
                session.add_fields(self._source.new_fields)
            self.adapted_on = description.adapted_on if done else 0
        files = self._source.files(tally.failures.append)
        if not sample:
            for _ in files:  # without a single image, too, the walk reports failures
                pass
            return
        out_of_step = find_out_of_step(session.store, session.schema)
        delete_orphans(session.store, out_of_step)
        moves = None if recorded is None else Moves(session.store, out_of_step.incomplete)
        ingest_files(replace(self.run, moves=moves), session.encoder, files, done, out_of_step.incomplete)

    def compare(self) -> None:
        """Compare files with rows; nothing is written, and read only what may be the file of a row that moves."""
        tally = self.run.tally
        files = self._source.files(tally.failures.append)
        if self._session.description() is None:
            tally.added = tally.total = sum(1 for _ in files)
            return
        moves = Moves(self._session.store)
        for file, row in changed_files(replace(self.run, moves=moves), self._count(files)):
            moved = row is None and _has_moved(moves, file)
            tally.moved += moved
            tally.added += row is None and not moved
            tally.updated += row is not None
        self._moved = moves.taken

    def prune(self, *, dry_run: bool) -> None:
        """Delete the rows whose file no longer exists.

        Raises:
            StoreError: the folders hold no image at all, as when a disk is not mounted.
        """
        if self._session.description() is None:
            return
        for gone, away in missing_files(self.run.store, self._source.prune):
            ids = [i for i in gone if i not in self._moved]
            self.away += len(away)
            if (ids or away) and not self.run.tally.total:
                raise StoreError(
                    f"{stored_path(self._source.prune[0])} holds no image any more, so --prune would remove all its "
                    "rows; nothing was removed. Is the disk mounted? Otherwise use mgm delete --filter"
                )
            removed = len(ids) if dry_run else self.run.store.delete(ids)
            self.removed += removed
            self.run.settings.metrics.count_removed(removed)

    def _count(self, files: Iterator[Found]) -> Iterator[Found]:
        for file in files:
            self.run.tally.total += 1
            yield file


def _has_moved(moves: Moves, file: Found) -> bool:
    try:
        return bool(moves.hashes(file)) and moves.take(file, content_hash(file.read())) is not None
    except (ImageError, OSError):
        return False  # the ingest itself reports it
