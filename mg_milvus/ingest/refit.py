"""A refit: hash heads fitted again to a collection's images, and all codes made anew, beside it or in its place."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from mg_milvus.errors import EncoderError, ImageError, QueryError, StoreUnavailableError
from mg_milvus.images.discover import Found, image_id, text_path
from mg_milvus.ingest.fit_heads import FEWEST_TO_FIT, heads_in_words
from mg_milvus.ingest.metadata import default_values
from mg_milvus.ingest.run import Source, run_ingest
from mg_milvus.records import Failure, Progress
from mg_milvus.results import IngestReport
from mg_milvus.store.succession import base_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from mg_milvus.ingest.pipeline import Settings
    from mg_milvus.schema.models import Schema
    from mg_milvus.session import Session
    from mg_milvus.store.base import Description, Store

    OnProgress = Callable[[Progress], None]

_RECENT = 20_000
"""Rows whose fields are kept: more than lie between the reading of a row and the writing of its new codes."""
_ROUNDS = 20
"""How often a collection is compared with its refit, while others write to it."""
_NAMED = 10
"""Images that an error names."""


def run_refit(session: Session, to: str, settings: Settings, *, progress: OnProgress | None = None) -> IngestReport:
    """Ingest the images of a collection into a new one; see ``ImageIndex.refit``."""
    schema = session.existing().schema
    with closing(session.sibling(to, schema.model_copy(update={"collection": to}))) as new:
        if new.description() is not None:
            raise QueryError(f"there is a collection '{to}' already; choose another name, or fill it with mgm ingest")
        return run_ingest(new, _Rows(session.store, schema).source(), settings, progress=progress)


def run_refit_in_place(
    session: Session, settings: Settings, finish: Callable[[Session, IngestReport], None],
    *, progress: OnProgress | None = None,
) -> IngestReport:  # fmt: skip
    """Fill a new collection with the images of one, and let it take the place of that; see ``ImageIndex.refit``.

    Args:
        session: the collection.
        settings: see ``Settings``.
        finish: called with the new collection when it has all images, and the report, before it takes the place.
        progress: called after each batch.
    """
    session.existing()
    store = session.store
    if store.take_over():  # what an earlier refit was about to do when it was interrupted
        session.forget()
        count = store.count()
        said = "a refit that was interrupted at its end has been completed; mgm refit fits the heads again"
        return IngestReport(count, 0, 0, count, 0, (), 0.0, advice=(said,))
    own = session.existing()
    wanted = replace(own, schema=own.schema.model_copy(update={"collection": base_name(store.collection)}))
    _check(session, wanted.schema)
    rows = _Rows(store, wanted.schema)
    with closing(_begun(session, wanted)) as new:
        report = run_ingest(new, rows.source(), settings, progress=progress)
        _check_report(session, report)
        if report.interrupted:
            return report
        removed = _remove_gone(store, new.store)
        finish(new, report)
        for _ in range(_ROUNDS):
            again = run_ingest(new, rows.source(), settings, progress=progress)
            _check_report(session, again)
            if again.interrupted:
                return again
            if not again.added + again.updated + _remove_gone(store, new.store):
                new.store.take_over()
                session.forget()
                return replace(report, removed=removed)
    raise StoreUnavailableError(
        f"other programs change '{session.collection}' faster than its images can be encoded: stop them, and repeat "
        "mgm refit, which goes on"
    )


def _check(session: Session, schema: Schema) -> None:
    """Refuse what a refit cannot do, before anything is done.

    Raises:
        QueryError: the heads are not fitted to images, or there are too few.
        ImageError: files of rows are gone.
    """
    name, count = session.collection, session.store.count()
    if schema.encoder.heads != "adapt":
        raise QueryError(
            f"the hash heads of '{name}' are {schema.encoder.heads} (encoder.heads of its schema), so there is nothing "
            "to fit; mgm refit --to NAME encodes its images anew"
        )
    if count < FEWEST_TO_FIT:
        raise QueryError(f"'{name}' has {count} images, expected at least {FEWEST_TO_FIT} to fit hash heads; add more")
    gone: list[Failure] = []
    for _ in _Rows(session.store, schema).files(gone.append):
        pass
    _check_failures(session, gone)


def _check_report(session: Session, report: IngestReport) -> None:
    _check_failures(session, list(report.failures))


def _check_failures(session: Session, failures: list[Failure]) -> None:
    if failures:
        named = ", ".join(f"{failure.path} ({failure.reason})" for failure in failures[:_NAMED])
        more = f" and {len(failures) - _NAMED:,} more" if len(failures) > _NAMED else ""
        raise ImageError(
            f"{len(failures):,} images of '{session.collection}' cannot be read, so they would get no new codes: "
            f"{named}{more}; the collection stays as it is. Bring the files back, or remove their rows (mgm delete "
            "PATH, or mgm ingest FOLDER --prune where files are gone), and repeat mgm refit, which goes on"
        )


def _begun(session: Session, wanted: Description) -> Session:
    """The session of the new collection, to be filled from the beginning, or on where an earlier refit was interrupted.

    What was begun with another schema, from another encoder, or with heads for far fewer images, is made anew.
    """

    def opened() -> Session:
        new = session.sibling(session.store.refit_name, wanted.schema)
        new.added = wanted.added
        return new

    new = opened()
    new.store.begin_refit()
    recorded = new.store.describe()
    if recorded is None or _goes_on(new, recorded, wanted, session.store.count()):
        return new
    new.store.drop()
    new.close()
    return opened()


def _goes_on(new: Session, recorded: Description, wanted: Description, rows: int) -> bool:
    """Whether a refit that was interrupted has the heads that it would be given now, for so many rows."""
    if (recorded.schema, recorded.added) != (wanted.schema, wanted.added):
        return False
    if heads_in_words(recorded, rows, 0, 0)[1]:
        return False
    try:
        new.encoder.check(wanted.schema.code_bits)
    except EncoderError:
        return False
    return True


def _remove_gone(old: Store, new: Store) -> int:
    """Delete the rows of a refit which the collection has no longer; their number. All others of it are there."""
    if new.count() == old.count():
        return 0
    removed = 0
    for rows in new.scan():
        ids = [row.id for row in rows]
        there = old.fetch(ids)
        removed += new.delete([own for own in ids if own not in there])
    return removed


class _Rows:
    """The rows of a collection as files to ingest."""

    def __init__(self, store: Store, schema: Schema) -> None:
        self._store, self._schema = store, schema
        self._recent: OrderedDict[str, Mapping[str, Any]] = OrderedDict()

    def source(self) -> Source:
        """The files with their fields."""
        return Source(self.files, lambda file, _: self._fields_of(file))

    def files(self, on_failure: Callable[[Failure], None]) -> Iterator[Found]:
        """The files of all rows, with their present size and time."""
        for rows in self._store.scan():
            for row in rows:
                self._recent[row.id] = row.fields
                try:
                    status = text_path(row.path).stat()
                except OSError as error:
                    on_failure(Failure(row.path, error.strerror or str(error)))
                    continue
                yield Found(row.path, status.st_size, status.st_mtime_ns)
            while len(self._recent) > _RECENT:
                self._recent.popitem(last=False)

    def _fields_of(self, file: Found) -> Mapping[str, Any]:
        key = image_id(file.path)
        if (fields := self._recent.get(key)) is not None:
            return fields
        row = self._store.fetch([key]).get(key)
        return default_values(self._schema.fields) if row is None else row.fields
