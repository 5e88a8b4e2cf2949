"""Which pictures are asked for, and which are searched: the protocols of evaluation.

Deep hashing papers use CIFAR-10 in two ways. ``cifar10-1`` (Lai et al., CVPR 2015, and most since): all 60,000 pictures
in one pool, 100 of each class are queries (1,000), the other 59,000 the database. ``cifar10-2`` (as in GreedyHash,
NeurIPS 2018): the test part is the queries (10,000), the training part the database (50,000).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from mg_milvus.errors import LabelError, PictureError, QueryError
from mg_milvus.labels import Labelled, Level, read_labelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mg_milvus.hits import Failure

    PathLike = str | os.PathLike[str]
    Failed = Callable[[Failure], None]

Protocol = Literal["leave-one-out", "split", "cifar10-1", "cifar10-2", "copies"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)

CIFAR_PARTS = ("train", "test")
CIFAR_QUERIES = 100
"""Queries of each class in ``cifar10-1``."""
CIFAR_CLASS = 6_000
"""Pictures of each class in CIFAR-10: of smaller classes the same share becomes queries."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What is asked and what is searched.

    Attributes:
        about: the protocol in words, with its sizes.
        pictures: all pictures of both parts, each once.
        queries: (q,) rows of ``pictures``, ascending.
        database: (n,) rows of ``pictures``, ascending. A row may be in both: the query is then no candidate for itself.
    """

    about: str
    pictures: Labelled
    queries: NDArray[np.intp]
    database: NDArray[np.intp]

    def without(self, broken: NDArray[np.bool_]) -> Parts:
        """The same parts without the pictures marked in (n,) bool.

        Raises:
            PictureError: one part has none left.
        """
        place = np.cumsum(~broken) - 1
        queries, database = (place[rows[~broken[rows]]] for rows in (self.queries, self.database))
        if not len(queries) or not len(database):
            raise PictureError("none of the pictures of the database, or none of the queries, can be read")
        return Parts(self.about, self.pictures.subset(np.flatnonzero(~broken)), queries, database)


def read_parts(
    folder: PathLike,
    *,
    protocol: str = "leave-one-out",
    queries: PathLike | None = None,
    labels: PathLike | None = None,
    share: float = 0.1,
    seed: int = 0,
    failed: Failed = lambda _: None,
) -> Parts:
    """Find the pictures of a protocol other than ``copies``, and their labels.

    Args:
        folder: the labelled pictures; with ``queries`` the database alone.
        protocol: one of ``PROTOCOLS``.
        queries: a folder of labelled queries; the protocol is then a split into these two.
        labels: a table of labels, for both folders.
        share: ``split`` without ``queries``: this part of each class becomes queries, at least one of two or more.
        seed: of the pictures that become queries.
        failed: told of what cannot be read.

    Raises:
        PictureError: a folder is not there, or a part is empty.
        LabelError: no labels, or only one class.
        QueryError: an argument is not one of these.
    """
    if protocol not in PROTOCOLS or protocol == "copies":
        raise QueryError(f"the protocol is '{protocol}', expected {', '.join(PROTOCOLS)}")
    if queries is not None:
        if protocol not in {"leave-one-out", "split"}:
            raise QueryError(f"{protocol} has queries of its own; leave the folder of queries out, or the protocol")
        about = f"split: the pictures of {os.fspath(queries)} are asked, those of {os.fspath(folder)} are the database"
        parts = _two_folders(about, folder, queries, labels, failed)
    elif protocol == "leave-one-out":
        pictures = read_labelled(folder, labels, failed)
        every = np.arange(len(pictures))
        parts = Parts("leave-one-out: each picture is asked against all others", pictures, every, every)
    elif protocol == "split":
        if not 0 < share < 1:
            raise QueryError(f"the share of queries is {share}, expected more than 0 and less than 1, such as 0.1")
        parts = _split(
            read_labelled(folder, labels, failed), lambda size: round(size * share), seed,
            f"split: {share:.0%} of each class are queries (seed {seed}), the rest is the database",
        )  # fmt: skip
    elif protocol == "cifar10-1":
        pool = _cifar_pool(folder, labels, failed)
        parts = _split(
            pool, lambda size: min(CIFAR_QUERIES, round(size * CIFAR_QUERIES / CIFAR_CLASS)), seed,
            f"cifar10-1: {CIFAR_QUERIES} pictures of each class of {CIFAR_CLASS:,} (the same share of smaller ones) "
            f"are queries (seed {seed}), the rest is the database",
        )  # fmt: skip
    else:
        train, test = _cifar_folders(folder)
        about = "cifar10-2: test/ holds the queries, train/ the database"
        parts = _two_folders(about, train, test, labels, failed)
    _check(parts, folder)
    return parts


def _check(parts: Parts, folder: PathLike) -> None:
    for name, rows in (("database", parts.database), ("set of queries", parts.queries)):
        if not len(rows):
            raise PictureError(f"the {name} of {os.fspath(folder)!r} has no pictures; expected folders of pictures")
    classes = parts.pictures.classes
    if classes is None:
        raise LabelError(
            f"the pictures of {os.fspath(folder)!r} have no labels; put them into a folder for each class, give a "
            "table with --labels, or use --protocol copies, which needs none"
        )
    used = {label for own in classes.members for label in own}
    if len(used) < 2:
        raise LabelError(
            f"all pictures of {os.fspath(folder)!r} are of one class, '{classes.names[min(used)]}'; "
            "expected at least two"
        )


def _two_folders(about: str, database: PathLike, queries: PathLike, labels: PathLike | None, failed: Failed) -> Parts:
    first, second = read_labelled(database, labels, failed), read_labelled(queries, labels, failed)
    if first.pictures and second.pictures and (first.classes is None) != (second.classes is None):
        bare = os.fspath(database if first.classes is None else queries)
        raise LabelError(f"the pictures of {bare!r} have no labels, those of the other folder have; label both")
    place = {picture.path: row for row, picture in enumerate(first.pictures)}
    new = [row for row, picture in enumerate(second.pictures) if picture.path not in place]
    place |= {second.pictures[row].path: len(first) + i for i, row in enumerate(new)}
    pictures = _joined(first, second.subset(new))
    asked = np.array(sorted(place[picture.path] for picture in second.pictures), np.intp)
    return Parts(about, pictures, asked, np.arange(len(first)))


def _joined(first: Labelled, second: Labelled) -> Labelled:
    """The pictures of both, under the names of both."""
    classes = _joined_level(first.classes, second.classes)
    groups = classes
    if first.groups is not first.classes or second.groups is not second.classes:
        groups = _joined_level(first.groups, second.groups)
    return Labelled(first.pictures + second.pictures, classes, groups)


def _joined_level(first: Level | None, second: Level | None) -> Level | None:
    if first is None or second is None:
        return first or second
    names = tuple(sorted({*first.names, *second.names}))
    index = {name: i for i, name in enumerate(names)}
    members = [
        tuple(sorted(index[level.names[label]] for label in own)) for level in (first, second) for own in level.members
    ]
    return Level(names, tuple(members))


def _split(pictures: Labelled, wanted: Callable[[int], int], seed: int, about: str) -> Parts:
    """Of each class (a picture's first), ``wanted(size)`` pictures become queries: at least one, and one stays."""
    every = np.arange(len(pictures))
    if pictures.classes is None:
        return Parts(about, pictures, every, every)
    random = np.random.default_rng(seed)
    asked = np.zeros(len(pictures), np.bool_)
    ids = pictures.classes.ids()
    for label in np.unique(ids):
        own = np.flatnonzero(ids == label)
        count = min(max(1, wanted(len(own))), len(own) - 1)
        asked[random.permutation(own)[:count]] = True
    return Parts(about, pictures, every[asked], every[~asked])


def _cifar_folders(folder: PathLike) -> tuple[Path, Path]:
    train, test = (Path(folder) / name for name in CIFAR_PARTS)
    if not (train.is_dir() and test.is_dir()):
        raise PictureError(
            f"{os.fspath(folder)!r} has no folders train/ and test/ with a folder for each class in them, as cifar10-2 "
            "expects; give the queries with --queries instead"
        )
    return train, test


def _cifar_pool(folder: PathLike, labels: PathLike | None, failed: Failed) -> Labelled:
    """All pictures of train/ and test/ together, or those of a folder without these two."""
    if all((Path(folder) / name).is_dir() for name in CIFAR_PARTS):
        train, test = _cifar_folders(folder)
        return _two_folders("", train, test, labels, failed).pictures
    return read_labelled(folder, labels, failed)
