"""What each picture should find: those that share a label with it, or those that a file of pairs names."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import LabelError
from mg_milvus.images.discover import discover, path_text
from mg_milvus.labels import Labelled, is_path, read_labelled
from mg_milvus.metadata.tables import listed, read_table, shown
from mg_milvus.metrics import NOT_A_CANDIDATE, SAME_CLASS, relevance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from mg_milvus.hits import Failure
    from mg_milvus.labels import Level

COLUMNS = ("query", "wanted")
"""Of a file of pairs."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Pictures, and what each of them should find among the others.

    Attributes:
        labelled: the pictures; pictures that share a class want each other.
        pairs: picture -> the pictures it wants, as rows of ``labelled``, instead of labels; None: the labels decide.
    """

    labelled: Labelled
    pairs: Mapping[int, frozenset[int]] | None = None

    def subset(self, rows: NDArray[np.intp]) -> Wanted:
        """Only these pictures, in this order."""
        if self.pairs is None:
            return Wanted(self.labelled.subset(rows))
        place = {int(row): number for number, row in enumerate(rows)}
        kept = {place[query]: found & place.keys() for query, found in self.pairs.items() if query in place}
        pairs = {query: frozenset(place[row] for row in found) for query, found in kept.items() if found}
        return Wanted(self.labelled.subset(rows), pairs)

    def queries(self) -> NDArray[np.intp]:
        """The pictures that want something: rows, ascending."""
        if self.pairs is not None:
            return np.array(sorted(self.pairs), np.intp)
        shared = self._classes.one_hot()
        return np.flatnonzero((shared & (shared.sum(axis=0) > 1)).any(axis=1))

    def strata(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """The class of each of these pictures; all the same where there are none: (q,)."""
        return np.zeros(len(rows), np.int64) if self.pairs is not None else self._classes.ids()[rows]

    def relevance(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """What these pictures want: (q, n) uint8 as ``metrics.relevance`` grades it; 255 for the picture itself."""
        if self.pairs is not None:
            grades = np.zeros((len(rows), len(self.labelled)), np.uint8)
            for own, query in zip(grades, rows, strict=True):
                own[list(self.pairs[int(query)])] = SAME_CLASS
        else:
            classes = _ids(self._classes)
            level = self.labelled.groups
            groups = None if level is None or level is self.labelled.classes else _ids(level)
            grades = relevance(classes[rows], classes, None if groups is None else groups[rows], groups)
        grades[np.arange(len(rows)), rows] = NOT_A_CANDIDATE
        return grades

    @property
    def _classes(self) -> Level:
        if self.labelled.classes is None:
            raise LabelError("the pictures have no labels, expected folders of labels, a table of labels or pairs")
        return self.labelled.classes


def _ids(level: Level) -> NDArray[Any]:
    return level.one_hot() if level.several else level.ids()


def wanted_by_labels(
    folder: str | os.PathLike[str], labels: str | os.PathLike[str] | None, failed: Callable[[Failure], None]
) -> Wanted:
    """Read labels, as ``read_labelled`` does.

    Raises:
        LabelError: there are none, or all pictures have the same.
    """
    found = read_labelled(folder, labels, failed)
    if found.classes is None:
        raise LabelError(
            f"{os.fspath(folder)!r} has no labels: expected a folder for each label in it; or give a table with "
            "--labels, or wanted pairs with --pairs"
        )
    if len(found.classes.names) < 2:
        raise LabelError(
            f"all {len(found)} pictures have the label {found.classes.names[0]!r}, expected two labels or more"
        )
    return Wanted(found)


def wanted_by_pairs(
    folder: str | os.PathLike[str], pairs: str | os.PathLike[str], failed: Callable[[Failure], None]
) -> Wanted:
    """Read a table with the columns ``query`` and ``wanted``, a row for each pair.

    Args:
        folder: the pictures that queries choose from; those of the pairs are among them.
        pairs: CSV, JSON lines or Parquet; paths are relative to the folder or to the table, and ``wanted`` may be a
            list of them. A query may have several rows.
        failed: told of folders that cannot be read.

    Raises:
        LabelError: a pair names no picture of the folder, or the same one twice.
        SchemaError: the table cannot be read.
    """
    pictures = tuple(sorted(discover([folder], failed), key=lambda picture: picture.path))
    place = {picture.path: row for row, picture in enumerate(pictures)}
    file = os.fspath(pairs)
    bases = [Path(os.path.abspath(folder)), Path(os.path.abspath(file)).parent]
    table = read_table(file, COLUMNS)
    if not set(COLUMNS) <= set(table.columns):
        raise LabelError(f"{file!r} has the columns {listed(table.columns)}; expected query and wanted")

    def row_of(path: object, where: str) -> int:
        keys = [path, *(path_text(os.path.normpath(base / path)) for base in bases)] if is_path(path) else []
        row = next((place[key] for key in keys if key in place), None)
        if row is None:
            raise LabelError(
                f"{where}: {shown(path)} is no picture in {os.fspath(folder)}; expected a path relative to that folder "
                "or to the table's own"
            )
        return row

    found: dict[int, set[int]] = defaultdict(set)
    for number, record in table.rows:
        where = f"{file!r}, {table.unit} {number}"
        query, cell = row_of(record.get("query"), where), record.get("wanted")
        wanted = {row_of(path, where) for path in (cell if isinstance(cell, list) else [cell])}
        if query in wanted:
            raise LabelError(f"{where}: {shown(record['query'])} wants itself, expected another picture")
        found[query] |= wanted
    if not any(found.values()):
        raise LabelError(f"{file!r} names no pairs, expected a row with query and wanted for each")
    return Wanted(Labelled(pictures, None, None), {query: frozenset(rows) for query, rows in found.items() if rows})
