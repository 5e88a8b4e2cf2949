"""Split lists as deep hashing papers publish them: which images are learned from, searched, and queries.

A line is a path and its labels, ``path 0 1 0 ...`` (a column for each class, as HashNet and CSQ publish them) or ``path
label``. The paths are often those of the authors' machines: the longest end of a path that is a file below the folder
is meant.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mg_milvus.errors import LabelError, QueryError
from mg_milvus.evaluation.labels import Labelled, Level
from mg_milvus.files import one_line, read_plain
from mg_milvus.images.discover import Found, path_text
from mg_milvus.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    PathLike = str | os.PathLike[str]
    Failed = Callable[[Failure], None]

LARGEST = 1 << 30
"""Bytes of a list, at most."""
_SHOWN = 80
"""Characters of a line in a message."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The images of split lists.

    Attributes:
        images: of all lists, each once, in the order of their paths. An image without a label, as NUS-WIDE has them, is
            relevant to nothing.
        rows: for each list its rows of ``images``, ascending.
        repeated: lines that name an image of the same list again.
    """

    images: Labelled
    rows: tuple[NDArray[np.intp], ...]
    repeated: int


class _Entry(NamedTuple):
    """A line: where it is, the path as written, and the names of its labels; a column's is its number from 0."""

    where: str
    path: str
    labels: tuple[str, ...]


class _List(NamedTuple):
    """A file: its folder, the number of columns of labels (0: one label by its name), and its lines."""

    folder: str
    columns: int
    entries: list[_Entry]


def read_lists(folder: PathLike, files: Sequence[PathLike], failed: Failed) -> Parts:
    """Read split lists and find their images.

    Args:
        folder: the images; paths are relative to it, or to the list, or end like a file in the folder.
        files: two, ``database,test``, or three, ``train,database,test``.
        failed: called with each image that is not there; it is left out.

    Raises:
        LabelError: a line is none, lists have different columns, an image has two different labels, or none is there.
        QueryError: there are not two or three lists, or one cannot be read.
    """
    if len(files) not in {2, 3}:
        raise QueryError(f"there are {len(files)} lists, expected database,test or train,database,test")
    lists = [_read(os.fspath(file)) for file in files]
    columns = {own.columns for own in lists}
    if len(columns) > 1:
        raise LabelError(
            f"the lists have {', '.join(str(own.columns or 'no') for own in lists)} columns of labels; expected the "
            "same classes in each"
        )
    top = os.path.abspath(folder)
    found: dict[str, tuple[Found, _Entry]] = {}
    members: list[set[str]] = []
    missing: dict[str, None] = {}
    repeated = 0
    for own in lists:
        paths: set[str] = set()
        for entry in own.entries:
            image = _image(entry.path, top, own.folder)
            if image is None:
                missing.setdefault(entry.path)
                continue
            _, first = found.setdefault(image.path, (image, entry))
            if first.labels != entry.labels:
                raise LabelError(
                    f"{entry.where}: the labels of {one_line(entry.path)!r} differ from those at {first.where}; "
                    "expected the same in all lists"
                )
            repeated += image.path in paths
            paths.add(image.path)
        members.append(paths)
    if not found:
        raise LabelError(
            f"no image of the lists is in {os.fspath(folder)!r} (the first is {one_line(lists[0].entries[0].path)!r}); "
            "expected paths that end like a file in that folder"
        )
    for path in missing:
        failed(Failure(path, f"a list names it, and no file in {os.fspath(folder)} is called so"))
    order = sorted(found)
    place = {path: row for row, path in enumerate(order)}
    level = _level([found[path][1].labels for path in order], columns.pop())
    images = Labelled(tuple(found[path][0] for path in order), level, level)
    return Parts(images, tuple(np.array(sorted(place[path] for path in paths), np.intp) for paths in members), repeated)


def _read(file: str) -> _List:
    try:
        text = read_plain(file, LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise QueryError(f"the list {file!r} cannot be read: {error.strerror}; name a text file") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"the list {file!r} is not UTF-8 at byte {error.start}; save it as UTF-8 text") from error
    lines = [(f"{file!r}, line {number}", line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(where, line) for where, line in lines if line]
    if not lines:
        raise LabelError(f"the list {file!r} is empty; expected a line with a path and its labels for each image")
    words = lines[0][1].split()
    flags = next((count for count, word in enumerate(reversed(words)) if word not in {"0", "1"}), len(words))
    columns = flags if flags > 1 else 0
    expected = f"a path and {columns} columns of 0 and 1" if columns else "a path and a label"
    entries = []
    for where, line in lines:
        path, *labels = line.rsplit(None, columns or 1)
        if len(labels) != (columns or 1) or (columns and not {"0", "1"}.issuperset(labels)):
            raise LabelError(f"{where}: {one_line(line, _SHOWN)!r} is not {expected}, as the first line is")
        names = [str(column) for column, flag in enumerate(labels) if flag == "1"] if columns else labels
        entries.append(_Entry(where, path, tuple(names)))
    return _List(os.path.dirname(os.path.abspath(file)), columns, entries)


def _level(labels: Sequence[tuple[str, ...]], columns: int) -> Level:
    names = [str(column) for column in range(columns)] or sorted({name for own in labels for name in own})
    index = {name: number for number, name in enumerate(names)}
    return Level(tuple(names), tuple(tuple(index[name] for name in own) for own in labels))


def _image(path: str, folder: str, beside: str) -> Found | None:
    """The file that a path of a list in the folder ``beside`` means, the longest end first; None: there is none."""
    names = [name for name in path.split("/") if name not in {"", "."}]
    places = [os.path.join(folder, *names[first:]) for first in range(len(names))]
    return next(filter(None, map(_file, [*places, os.path.join(beside, path)])), None)


def _file(path: str) -> Found | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    path = os.path.normpath(path)
    return Found(path_text(path), status.st_size, status.st_mtime_ns) if os.path.isfile(path) else None
