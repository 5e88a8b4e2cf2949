"""Rows of a folder that was moved or renamed: to the new paths, with their codes, regions and fields."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mg_milvus.errors import ImageError, NotIndexedError
from mg_milvus.images.discover import image_id, path_text, text_path
from mg_milvus.images.paths import Disks, Folders, stored_path
from mg_milvus.ingest.moves import moved_to, regions_of
from mg_milvus.records import Progress
from mg_milvus.results import RelocateReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from mg_milvus.session import Session

_BATCH = 500
"""Rows that are written in one call."""


def run_relocate(
    session: Session, old: str | os.PathLike[str], new: str | os.PathLike[str], progress: Callable[[Progress], None]
) -> RelocateReport:
    """Move the rows under a folder; see ``ImageIndex.relocate``. A row is written before it is deleted at its old path.

    Raises:
        ImageError: ``new`` does not exist.
        NotIndexedError: no row lies in ``old``.
    """
    store, schema, disks = session.store, session.existing().schema, Disks()
    place, folders = stored_path(new), Folders([old], disks)
    if not os.path.exists(text_path(place)):
        raise ImageError(f"{os.fspath(new)!r} does not exist: expected the folder or file where the images are now")
    targets: dict[str, str] = {}
    for rows in store.scan():
        for row in rows:
            rest = folders.rest(row.path)
            if rest is not None:
                targets[row.id] = stored_path(os.path.join(text_path(place), rest) if rest != "." else text_path(place))
    if not targets:
        raise NotIndexedError(
            f"no image of '{session.collection}' lies in {path_text(folders.given[0])}; paths are as they were ingested"
        )
    elsewhere = {i: path for i, path in targets.items() if i != image_id(path)}
    moving = [(i, path) for i, path in elsewhere.items() if disks.state(path) in {"here", "changed"}]
    moved, claimed = 0, set[str]()
    for start in range(0, len(moving), _BATCH):
        batch = moving[start : start + _BATCH]
        occupied = store.fetch([image_id(path) for _, path in batch])
        free: dict[str, str] = {}
        for i, path in batch:
            if image_id(path) not in occupied and path not in claimed:
                free[i] = path
                claimed.add(path)
        rows_of = store.fetch(list(free), tuple(schema.bits))
        regions = regions_of(store, rows_of, regions=schema.regions is not None)
        if rows_of:
            store.upsert([moved_to(row, free[i], regions.get(i, b"")) for i, row in rows_of.items()])
            store.delete(list(rows_of))
        moved += len(rows_of)
        progress(Progress("moving rows", start + len(batch), len(moving), 0))
    return RelocateReport(moved, len(elsewhere) - len(moving), len(moving) - moved)
