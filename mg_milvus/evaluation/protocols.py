"""Protocols of evaluation: which images are queries, which the database, and which the heads are fitted on.

Those of papers have names, ``PUBLISHED``. Deep hashing papers use CIFAR-10 in two ways. ``cifar10-1`` (Lai et al., CVPR
2015, and most since): all 60,000 images in one pool, 100 of each class are queries (1,000), the other 59,000 the
database. ``cifar10-2`` (as in GreedyHash, NeurIPS 2018): the test part is the queries (10,000), the training part the
database (50,000). ``zero-shot`` (Sablayrolles et al., How should we evaluate supervised hashing?, ICASSP 2017): nothing
is learned from the classes that are searched; three quarters of the classes are seen in training, queries and database
are of the others.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mg_milvus.errors import ImageError, LabelError, QueryError
from mg_milvus.evaluation.labels import Labelled, Level, is_path, read_labelled
from mg_milvus.evaluation.lists import read_lists
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, SAME_CLASS, relevance
from mg_milvus.images.discover import discover, path_text
from mg_milvus.ingest.metadata import listed, read_table, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.records import Failure

    PathLike = str | os.PathLike[str]
    Failed = Callable[[Failure], None]


Protocol = Literal[
    "leave-one-out", "split", "zero-shot", "cifar10-1", "cifar10-2", "imagenet100", "nus-wide-21", "coco", "copies"
]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)


@dataclass(frozen=True, slots=True)
class Published:
    """A protocol of the literature.

    Attributes:
        source: where it is described.
        queries: number of them there.
        database: number of images there.
        map_at: the last rank of its mAP; None: all.
    """

    source: str
    queries: int
    database: int
    map_at: int | None = None


PUBLISHED = {
    "cifar10-1": Published("Lai et al., CVPR 2015", 1_000, 59_000),
    "cifar10-2": Published("Su et al., GreedyHash, NeurIPS 2018", 10_000, 50_000),
    "imagenet100": Published("Cao et al., HashNet, ICCV 2017", 5_000, 128_503, 1_000),
    "nus-wide-21": Published("Li et al., DPSH, IJCAI 2016", 2_100, 193_734, 5_000),
    "coco": Published("Cao et al., HashNet, ICCV 2017", 5_000, 117_218, 5_000),
}
"""Two images are relevant to each other where they share a label, in all of them."""
DRAWN = ("split", "zero-shot", "cifar10-1", "copies")
"""Protocols in which a seed chooses something."""

PART_FOLDERS = ("train", "test")
LISTS = ("train.txt", "database.txt", "test.txt")
"""Names of the lists in the folder of a published data set; the first may be missing."""
CIFAR_QUERIES = 100
"""Queries of each class in ``cifar10-1``."""
CIFAR_CLASS = 6_000
"""Images of each class in CIFAR-10: of smaller classes the same share becomes queries."""
SEEN = 0.75
"""Share of the classes that ``zero-shot`` learns from."""


@dataclass(frozen=True, slots=True)
class Split:
    """The queries and the database of an evaluation.

    Attributes:
        about: the protocol in words.
        images: all images, each once.
        queries: (q,) rows of ``images``, ascending.
        database: (n,) rows of ``images``, ascending. A row may be in both: the query is then no candidate for itself.
        training: (t,) rows of ``images`` that heads are fitted on, ascending; None: the database.
        seen: names of the classes that may be learned from, where others are searched; else None.
    """

    about: str
    images: Labelled
    queries: NDArray[np.intp]
    database: NDArray[np.intp]
    training: NDArray[np.intp] | None = None
    seen: tuple[str, ...] | None = None

    @property
    def to_fit(self) -> NDArray[np.intp]:
        """Rows of the images that the heads are fitted on."""
        return self.database if self.training is None else self.training

    def without(self, broken: NDArray[np.bool_]) -> Split:
        """The same split without the images marked in (n,) bool.

        Raises:
            ImageError: one part has none left.
        """
        place = np.cumsum(~broken) - 1

        def kept(rows: NDArray[np.intp]) -> NDArray[np.intp]:
            return place[rows[~broken[rows]]]

        queries, database = kept(self.queries), kept(self.database)
        if not len(queries) or not len(database):
            raise ImageError("none of the images of the database, or none of the queries, can be read")
        training = None if self.training is None else kept(self.training)
        images = self.images.subset(np.flatnonzero(~broken))
        return replace(self, images=images, queries=queries, database=database, training=training)


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How labelled images are divided into queries and a database.

    Attributes:
        protocol: one of ``PROTOCOLS``.
        queries: a folder of labelled queries; the protocol is then a split into these two.
        lists: files of ``lists.read_lists``, ``database,test`` or ``train,database,test``, in place of ``queries``.
        labels: a table of labels, for both folders.
        share: ``split`` and ``zero-shot`` without ``queries``: this share of each class becomes queries, at least
            one of two or more.
        seen: ``zero-shot``: the share of the classes that is seen, or a text file of their names, one a line.
        seed: of the random choice of queries and of seen classes.
    """

    protocol: str = "leave-one-out"
    queries: PathLike | None = None
    lists: Sequence[PathLike] = ()
    labels: PathLike | None = None
    share: float = 0.1
    seen: PathLike | float = SEEN
    seed: int = 0


def read_split(folder: PathLike, options: SplitOptions = SplitOptions(), failed: Failed = lambda _: None) -> Split:
    """Find the images of a protocol other than ``copies``, and their labels.

    Args:
        folder: the labelled images; with ``queries`` the database alone.
        options: the protocol and its settings.
        failed: called with each image that cannot be read.

    Raises:
        ImageError: a folder is not there, or a part is empty.
        LabelError: no labels, or only one class, or lists that do not fit.
        QueryError: an argument is not one of these.
    """
    protocol, queries, labels = options.protocol, options.queries, options.labels
    if protocol not in PROTOCOLS or protocol == "copies":
        raise QueryError(f"the protocol is '{protocol}', expected {', '.join(PROTOCOLS)}")
    if options.lists and (queries is not None or labels is not None):
        raise QueryError("the lists name the queries and their labels; leave --queries and --labels out")
    if (queries is not None or options.lists) and protocol == "zero-shot":
        raise QueryError("zero-shot has queries of its own, those of unseen classes; leave queries and lists out")
    if queries is not None and protocol in PUBLISHED:
        raise QueryError(f"{protocol} has queries of its own; leave the folder of queries out, or the protocol")
    if queries is not None:
        about = f"split: the images of {os.fspath(queries)} query those of {os.fspath(folder)}"
        split = _two_folders(about, folder, queries, labels, failed)
    elif options.lists:
        split = _listed(folder, options, failed)
    elif protocol == "leave-one-out":
        images = read_labelled(folder, labels, failed)
        every = np.arange(len(images))
        split = Split("leave-one-out: each image is a query against all others", images, every, every)
    elif protocol == "split":
        split = _split(
            read_labelled(folder, labels, failed), _share_of(options.share), options.seed,
            f"split: {options.share:.0%} of each class are queries, the rest is the database",
        )  # fmt: skip
    elif protocol == "zero-shot":
        split = _zero_shot(read_labelled(folder, labels, failed), options)
    elif protocol == "cifar10-1":
        pool = _cifar_pool(folder, labels, failed)
        split = _split(
            pool, lambda size: min(CIFAR_QUERIES, round(size * CIFAR_QUERIES / CIFAR_CLASS)), options.seed,
            f"cifar10-1: {CIFAR_QUERIES} images of each class of {CIFAR_CLASS:,} (the same share of smaller ones) "
            "are queries, the rest is the database",
        )  # fmt: skip
    else:
        split = _published_parts(folder, options, failed)
    _check(split, folder)
    return replace(split, about=split.about + _other_sizes(protocol, split))


def _other_sizes(protocol: str, split: Split) -> str:
    """What to say where a published protocol has other sizes than in its source."""
    own = PUBLISHED.get(protocol)
    if own is None or (own.queries, own.database) == (len(split.queries), len(split.database)):
        return ""
    return (
        f"; NOT the sizes of {own.source}, which has {own.queries:,} queries against {own.database:,} images, here "
        f"{len(split.queries):,} against {len(split.database):,}"
    )


def _check(split: Split, folder: PathLike) -> None:
    for name, rows in (("database", split.database), ("set of queries", split.queries)):
        if not len(rows):
            raise ImageError(f"the {name} of {os.fspath(folder)!r} has no images; expected folders of images")
    classes = split.images.classes
    if classes is None:
        raise LabelError(
            f"the images of {os.fspath(folder)!r} have no labels; put them into a folder for each class, give a "
            "table with --labels, or use --protocol copies, which needs none"
        )
    used = {label for own in classes.members for label in own}
    if len(used) < 2:
        raise LabelError(
            f"all images of {os.fspath(folder)!r} are of one class, '{classes.names[min(used)]}'; expected at least two"
        )


def _two_folders(about: str, database: PathLike, queries: PathLike, labels: PathLike | None, failed: Failed) -> Split:
    first, second = read_labelled(database, labels, failed), read_labelled(queries, labels, failed)
    if first.images and second.images and (first.classes is None) != (second.classes is None):
        bare = os.fspath(database if first.classes is None else queries)
        raise LabelError(f"the images of {bare!r} have no labels, those of the other folder have; label both")
    place = {image.path: row for row, image in enumerate(first.images)}
    new = [row for row, image in enumerate(second.images) if image.path not in place]
    place |= {second.images[row].path: len(first) + i for i, row in enumerate(new)}
    images = _joined(first, second.subset(new))
    query_rows = np.array(sorted(place[image.path] for image in second.images), np.intp)
    return Split(about, images, query_rows, np.arange(len(first)))


def _published_parts(folder: PathLike, options: SplitOptions, failed: Failed) -> Split:
    """A data set whose parts are given, by lists in its folder or by folders."""
    lists = [Path(folder) / name for name in LISTS]
    if all(file.is_file() for file in lists[1:]):
        if options.labels is not None:
            raise QueryError(f"the lists in {os.fspath(folder)} have the labels; leave --labels out")
        return _listed(folder, replace(options, lists=[file for file in lists if file.is_file()]), failed)
    train, test = _part_folders(folder, options.protocol)
    about = f"{options.protocol}: test/ holds the queries, train/ the database"
    return _two_folders(about, train, test, options.labels, failed)


def _listed(folder: PathLike, options: SplitOptions, failed: Failed) -> Split:
    parts = read_lists(folder, options.lists, failed)
    *training, database, queries = parts.rows
    name = "split" if options.protocol == "leave-one-out" else options.protocol
    *first, of_database, of_queries = (os.path.basename(os.fspath(file)) for file in options.lists)
    about = f"{name}: the images of {of_queries} query those of {of_database}"
    about += f", heads are fitted on those of {first[0]}" if first else ""
    about += f"; {parts.repeated:,} lines repeat an image" if parts.repeated else ""
    return Split(about, parts.images, queries, database, training[0] if training else None)


def _zero_shot(images: Labelled, options: SplitOptions) -> Split:
    """Heads from seen classes, queries and database from the others; an image of both kinds plays no part."""
    classes, every = images.classes, np.arange(len(images))
    if classes is None:
        return Split("", images, every, every)
    seen = _seen_classes(classes.names, options)
    is_seen = np.array([name in seen for name in classes.names])
    seen_labels = np.array([is_seen[list(own)].sum() for own in classes.members])
    labels = np.array([len(own) for own in classes.members])
    pool = np.flatnonzero(seen_labels == 0)
    mixed = int(((seen_labels > 0) & (seen_labels < labels)).sum())
    inside = _split(images.subset(pool), _share_of(options.share), options.seed, "")
    about = (
        f"zero-shot: heads are fitted on {len(seen)} classes, {options.share:.0%} of each of the other "
        f"{len(classes.names) - len(seen)} query the rest of them"
    )
    about += f"; {mixed:,} images of both kinds of classes play no part" if mixed else ""
    training = np.flatnonzero(seen_labels == labels)
    return Split(about, images, pool[inside.queries], pool[inside.database], training, tuple(sorted(seen)))


def _seen_classes(names: Sequence[str], options: SplitOptions) -> frozenset[str]:
    """The classes to learn from: at least one, and at least two are left.

    Raises:
        LabelError: there are fewer than three classes, or a file names another one, or too many.
        QueryError: the share is none, or the file cannot be read.
    """
    if isinstance(options.seen, int | float):
        if not 0 < options.seen < 1:
            raise QueryError(f"the share of seen classes is {options.seen}, expected more than 0 and less than 1")
        if len(names) < 3:
            raise LabelError(
                f"there are {len(names)} classes, expected at least three: one to learn from, two to search"
            )
        count = min(max(1, round(len(names) * options.seen)), len(names) - 2)
        return frozenset(np.random.default_rng(options.seed).permutation(sorted(names))[:count].tolist())
    file = os.fspath(options.seen)
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(
            f"the list of seen classes {file!r} cannot be read: {error}; name a UTF-8 text file"
        ) from error
    seen = frozenset(filter(None, (line.strip() for line in lines)))
    unknown = sorted(seen - set(names))
    if unknown or not seen or len(names) - len(seen) < 2:
        what = f"names {unknown[0]!r}, which is no class" if unknown else f"names {len(seen)} of {len(names)} classes"
        raise LabelError(f"{file!r} {what}; expected at least one, such as {names[0]!r}, and two that it does not name")
    return seen


def _share_of(share: float) -> Callable[[int], int]:
    """Size of a class -> its number of queries."""
    if not 0 < share < 1:
        raise QueryError(f"the share of queries is {share}, expected more than 0 and less than 1, such as 0.1")
    return lambda size: round(size * share)


def _joined(first: Labelled, second: Labelled) -> Labelled:
    """The images of both, under the names of both."""
    classes = _joined_level(first.classes, second.classes)
    groups = classes
    if first.groups is not first.classes or second.groups is not second.classes:
        groups = _joined_level(first.groups, second.groups)
    return Labelled(first.images + second.images, classes, groups)


def _joined_level(first: Level | None, second: Level | None) -> Level | None:
    if first is None or second is None:
        return first or second
    names = tuple(sorted({*first.names, *second.names}))
    index = {name: i for i, name in enumerate(names)}
    members = [
        tuple(sorted(index[level.names[label]] for label in own)) for level in (first, second) for own in level.members
    ]
    return Level(names, tuple(members))


def _split(images: Labelled, queries_of: Callable[[int], int], seed: int, about: str) -> Split:
    """Of each class (an image's first), ``queries_of(size)`` images become queries: at least one, and one stays."""
    every = np.arange(len(images))
    if images.classes is None:
        return Split(about, images, every, every)
    random = np.random.default_rng(seed)
    is_query = np.zeros(len(images), np.bool_)
    ids = images.classes.ids()
    for label in np.unique(ids):
        own = np.flatnonzero(ids == label)
        count = min(max(1, queries_of(len(own))), len(own) - 1)
        is_query[random.permutation(own)[:count]] = True
    return Split(about, images, every[is_query], every[~is_query])


def _part_folders(folder: PathLike, protocol: str) -> tuple[Path, Path]:
    train, test = (Path(folder) / name for name in PART_FOLDERS)
    if not (train.is_dir() and test.is_dir()):
        raise ImageError(
            f"{os.fspath(folder)!r} has no folders train/ and test/ with a folder for each class in them, nor lists "
            f"database.txt and test.txt, as {protocol} expects; give the queries with --queries, or lists with --lists"
        )
    return train, test


def _cifar_pool(folder: PathLike, labels: PathLike | None, failed: Failed) -> Labelled:
    """All images of train/ and test/ together, or those of a folder without these two."""
    if all((Path(folder) / name).is_dir() for name in PART_FOLDERS):
        train, test = _part_folders(folder, "cifar10-1")
        return _two_folders("", train, test, labels, failed).images
    return read_labelled(folder, labels, failed)


PAIR_COLUMNS = ("query", "relevant")
"""Columns of a table of relevant pairs."""


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Images, and which of the others are relevant to each.

    Attributes:
        labelled: the images; images that share a class are relevant to each other.
        pairs: image -> the images relevant to it, as rows of ``labelled``, instead of labels; None: the labels decide.
    """

    labelled: Labelled
    pairs: Mapping[int, frozenset[int]] | None = None

    def subset(self, rows: NDArray[np.intp]) -> GroundTruth:
        """Only these images, in this order."""
        if self.pairs is None:
            return GroundTruth(self.labelled.subset(rows))
        place = {int(row): number for number, row in enumerate(rows)}
        kept = {place[query]: found & place.keys() for query, found in self.pairs.items() if query in place}
        pairs = {query: frozenset(place[row] for row in found) for query, found in kept.items() if found}
        return GroundTruth(self.labelled.subset(rows), pairs)

    def queries(self) -> NDArray[np.intp]:
        """The images with a relevant other one: rows, ascending."""
        if self.pairs is not None:
            return np.array(sorted(self.pairs), np.intp)
        shared = self._classes.one_hot()
        return np.flatnonzero((shared & (shared.sum(axis=0) > 1)).any(axis=1))

    def strata(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """The class of each of these images; all the same where there are none: (q,)."""
        return np.zeros(len(rows), np.int64) if self.pairs is not None else self._classes.ids()[rows]

    def relevance(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Relevance of all images to these: (q, n) uint8, see ``metrics.relevance``; 255 for the image itself."""
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
            raise LabelError("the images have no labels, expected folders of labels, a table of labels or pairs")
        return self.labelled.classes


def _ids(level: Level) -> NDArray[Any]:
    return level.one_hot() if level.several else level.ids()


def relevance_from_labels(
    folder: str | os.PathLike[str], labels: str | os.PathLike[str] | None, failed: Callable[[Failure], None]
) -> GroundTruth:
    """Read labels, as ``read_labelled`` does.

    Raises:
        LabelError: there are none, or all images have the same.
    """
    found = read_labelled(folder, labels, failed)
    if found.classes is None:
        raise LabelError(
            f"{os.fspath(folder)!r} has no labels: expected a folder for each label in it; or give a table with "
            "--labels, or relevant pairs with --pairs"
        )
    if len(found.classes.names) < 2:
        raise LabelError(
            f"all {len(found)} images have the label {found.classes.names[0]!r}, expected two labels or more"
        )
    return GroundTruth(found)


def relevance_from_pairs(
    folder: str | os.PathLike[str], pairs: str | os.PathLike[str], failed: Callable[[Failure], None]
) -> GroundTruth:
    """Read a table with the columns ``query`` and ``relevant``, a row for each pair.

    Args:
        folder: the images that queries choose from; those of the pairs are among them.
        pairs: CSV, JSON lines or Parquet; paths are relative to the folder or to the table, and ``relevant`` may be a
            list of them. A query may have several rows.
        failed: called with folders that cannot be read.

    Raises:
        LabelError: a pair names no image of the folder, or the same one twice.
        SchemaError: the table cannot be read.
    """
    images = tuple(sorted(discover([folder], failed), key=lambda image: image.path))
    place = {image.path: row for row, image in enumerate(images)}
    file = os.fspath(pairs)
    bases = [Path(os.path.abspath(folder)), Path(os.path.abspath(file)).parent]
    table = read_table(file, PAIR_COLUMNS)
    if not set(PAIR_COLUMNS) <= set(table.columns):
        raise LabelError(f"{file!r} has the columns {listed(table.columns)}; expected query and relevant")

    def row_of(path: object, where: str) -> int:
        keys = [path, *(path_text(os.path.normpath(base / path)) for base in bases)] if is_path(path) else []
        row = next((place[key] for key in keys if key in place), None)
        if row is None:
            raise LabelError(
                f"{where}: {shown(path)} is no image in {os.fspath(folder)}; expected a path relative to that folder "
                "or to the table's own"
            )
        return row

    found: dict[int, set[int]] = defaultdict(set)
    for number, record in table.rows:
        where = f"{file!r}, {table.unit} {number}"
        query, cell = row_of(record.get("query"), where), record.get("relevant")
        relevant = {row_of(path, where) for path in (cell if isinstance(cell, list) else [cell])}
        if query in relevant:
            raise LabelError(
                f"{where}: {shown(record['query'])} is given as relevant to itself, expected another image"
            )
        found[query] |= relevant
    if not any(found.values()):
        raise LabelError(f"{file!r} names no pairs, expected a row with query and relevant for each")
    return GroundTruth(Labelled(images, None, None), {query: frozenset(rows) for query, rows in found.items() if rows})
