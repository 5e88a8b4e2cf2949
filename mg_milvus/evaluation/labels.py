"""Labels of images, from the folders they lie in or from a table: what training, evaluation and tuning learn from.

A label is a path: ``vehicle/sports_car``. The whole of it is the image's class, its first part the group. An image
may have several labels, in a table only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from mg_milvus.errors import LabelError
from mg_milvus.images.discover import discover, path_text
from mg_milvus.ingest.metadata import PATH_COLUMNS, listed, read_table, shown
from mg_milvus.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from mg_milvus.images.discover import Found


LABEL_COLUMNS = ("label", "labels", "class", "classes")
"""The column that holds the labels: the first of these that is there."""
SEPARATOR = "|"
"""Between several labels in one cell."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the hierarchy.

    Attributes:
        names: of the labels, sorted; of columns of a split list in their order.
        members: for each image the indices into ``names``, ascending; at least one, but for images of split lists.
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    @property
    def several(self) -> bool:
        """Whether an image may have more than one label, or none."""
        return any(len(own) != 1 for own in self.members)

    def ids(self) -> NDArray[np.int64]:
        """The first label of each image: (n,)."""
        return np.array([own[0] for own in self.members], np.int64)

    def one_hot(self) -> NDArray[np.bool_]:
        """All labels: (n, len(names))."""
        found = np.zeros((len(self.members), len(self.names)), np.bool_)
        for row, own in enumerate(self.members):
            found[row, list(own)] = True
        return found


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images and their labels.

    Attributes:
        images: in the order of their paths.
        classes: the whole labels; None: the images have no labels.
        groups: their first parts; the same object as ``classes`` when no label has more than one part.
    """

    images: tuple[Found, ...]
    classes: Level | None
    groups: Level | None

    def __len__(self) -> int:
        return len(self.images)

    def by_path(self) -> dict[str, tuple[str, ...]]:
        """Path of an image -> its whole labels.

        Raises:
            LabelError: the images have none.
        """
        if self.classes is None:
            raise LabelError("the images have no labels: expected a folder for each label, or a table of them")
        names, members = self.classes.names, self.classes.members
        return {image.path: tuple(names[i] for i in own) for image, own in zip(self.images, members, strict=True)}

    def subset(self, rows: Sequence[int] | NDArray[np.intp]) -> Labelled:
        """These images, in this order; the names of the labels stay as they are."""
        chosen = [int(row) for row in rows]

        def of(level: Level | None) -> Level | None:
            return level and Level(level.names, tuple(level.members[row] for row in chosen))

        classes = of(self.classes)
        groups = classes if self.groups is self.classes else of(self.groups)
        return Labelled(tuple(self.images[row] for row in chosen), classes, groups)


def read_labelled(
    folder: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    failed: Callable[[Failure], None] = lambda _: None,
) -> Labelled:
    """Find the images of a folder and their labels.

    Args:
        folder: without ``labels``, its folders are the labels, nested ones a hierarchy.
        labels: a table (CSV, JSON lines, Parquet) with a column of paths, relative to the folder or to the table, and
            a column ``label``; several labels of an image are divided by ``|``, or are a list.
        failed: called with images without a label among others that have one, and with folders that cannot be read;
            they are left out.

    Raises:
        ImageError: there is no such folder.
        LabelError: the table does not fit the images.
        SchemaError: the table cannot be read.
    """
    found = sorted(discover([folder], failed), key=lambda image: image.path)
    if labels is None:
        root = path_text(folder).rstrip("/") + "/"
        own = [tuple(filter(None, [os.path.dirname(image.path.removeprefix(root))])) for image in found]
        remedy = "it lies beside the label folders"
    else:
        own = _table(os.fspath(labels), os.fspath(folder), found)
        remedy = f"{os.fspath(labels)} has no row for it"
    if not any(own):
        return Labelled(tuple(found), None, None)
    if labels is None:
        for empty in _empty_folders(os.fspath(folder)):
            failed(Failure(path_text(empty), "a label folder without an image: it teaches nothing"))
    kept = [(image, names) for image, names in zip(found, own, strict=True) if names]
    for image, names in zip(found, own, strict=True):
        if not names:
            failed(Failure(image.path, f"no label: {remedy}"))
    classes = _level([names for _, names in kept])
    groups = classes
    if any("/" in name for name in classes.names):
        groups = _level([tuple({name.partition("/")[0] for name in names}) for _, names in kept])
    return Labelled(tuple(image for image, _ in kept), classes, groups)


def _empty_folders(root: str) -> list[str]:
    """Folders below ``root``, hidden ones aside, in which nothing lies."""
    empty = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if not below and not files and folder != root:
            empty.append(folder)
    return empty


def _level(labels: Sequence[tuple[str, ...]]) -> Level:
    names = tuple(sorted({name for own in labels for name in own}))
    index = {name: i for i, name in enumerate(names)}
    return Level(names, tuple(tuple(sorted(index[name] for name in own)) for own in labels))


def _table(file: str, folder: str, found: Sequence[Found]) -> list[tuple[str, ...]]:
    """The labels of each image in the table; () for those without a row."""
    table = read_table(file, {*PATH_COLUMNS, *LABEL_COLUMNS})
    path_column = next((name for name in PATH_COLUMNS if name in table.columns), None)
    label_column = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if path_column is None or label_column is None:
        raise LabelError(
            f"{file!r} has the columns {listed(table.columns)}; expected one of paths "
            f"({', '.join(PATH_COLUMNS)}) and one of labels ({', '.join(LABEL_COLUMNS)})"
        )
    place = {image.path: row for row, image in enumerate(found)}
    bases = [Path(os.path.abspath(folder)), Path(os.path.abspath(file)).parent]
    labels: list[tuple[str, ...]] = [()] * len(found)
    example = ""
    for number, record in table.rows:
        path = record.get(path_column)
        if not is_path(path):
            raise LabelError(f"{file!r}, {table.unit} {number}: {shown(path)} is not the path of an image")
        keys = (path, *(path_text(os.path.normpath(base / path)) for base in bases))
        row = next((place[key] for key in keys if key in place), None)
        if row is None:
            example = example or path
        else:
            labels[row] = _names(record.get(label_column), f"{file!r}, {table.unit} {number}")
    if found and not any(labels):
        raise LabelError(
            f"no row of {file!r} is about an image in {folder} (the first names {shown(example)}); expected paths "
            "relative to that folder or to the table's own"
        )
    return labels


def is_path(cell: object) -> TypeGuard[str]:
    """Whether a cell can be the path of a file: text, and not of halves of characters, which JSON can hold."""
    try:
        return isinstance(cell, str) and bool(os.fsencode(cell))
    except UnicodeEncodeError:
        return False


def _names(cell: Any, place: str) -> tuple[str, ...]:
    """The labels in one cell: text divided by ``|``, a number, or a list of these."""
    cells = cell if isinstance(cell, list) else str(cell).split(SEPARATOR) if cell is not None else []
    names = tuple(dict.fromkeys(str(name).strip().strip("/") for name in cells))
    if not names or not all(names):
        raise LabelError(f"{place}: {shown(cell)} is not a label; expected text as in vehicle/car, or a|b for several")
    return names
