"""Indexes side by side: mg-milvus, Milvus Lite with one vector an image, and libraries with an index in memory.

The images' float features and codes are repeated with a little noise until there are enough rows; the images themselves
are the queries. Floats are those that the network ends with, by cosine. ``one code`` is all granularities in a row, 448
bits by Hamming distance: what a user would give a library that knows no granularities. Queries to mg-milvus are real
codes, as in the product.

- ``added us``: to index a row and to save it; features and codes are there already.
- ``query ms``: ten hits. Both in processor time, with one thread where that can be said, of this process and of Milvus
  Lite; the systems take turns.
- ``memory bytes`` and ``disk bytes`` an image; of the SQLite file memory is that of the vectors a query has loaded.
- ``recall@10``: how many of the ten are as near as the exact ten by the same measure; not of mg-milvus, whose measure
  is the fused one.
- ``mAP``: leave-one-out among the images as they are, all of them ranked, of exact searches.
"""

from __future__ import annotations

import ctypes
import gc
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import faiss
import hnswlib
import numpy as np
import usearch.index
from processes import engine_pid, file_size, memory
from short.turns import spent

from mg_milvus.codes import hamming, in_steps
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, SAME_CLASS, score_rankings
from side_by_side.floats import Binary, K, OneVector, name_of, repeated_codes, repeated_floats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Encoder
    from mg_milvus.schema.models import Schema

    Make = Callable[[Path, int, int], Any]

OWN = "mg-milvus"
QUERIES, TOGETHER = 50, 10
"""Queries that are timed, and how many of them between two readings of the clock."""
LINKS, NPROBE, TRAINED = 16, 16, 40
"""Links of a graph's node; lists that IVF looks at; rows that it wants for each list."""
FLOATS = "coarse"
"""The granularity whose features are those that the network ends with, which users take."""
RATIOS = ("added us", "query ms", "memory bytes", "disk bytes")
ROUNDING = 1e-5


class System(Protocol):
    """An index of rows 0, 1 ..."""

    file: Path

    def fill(self, values: Any) -> None:
        """Index all rows and save them."""

    def search(self, query: Any) -> Sequence[int]:
        """The ``k`` nearest rows of one query, nearest first."""

    def close(self) -> None: ...


class Library:
    """An index in this process's memory; ``k`` hits a query."""

    def __init__(self, file: Path, dimensions: int, k: int) -> None:
        self.file, self.dimensions, self.k = file, dimensions, k

    def close(self) -> None:
        """Nothing is open."""


class FaissFlat(Library):
    def fill(self, values: NDArray[np.uint8]) -> None:
        self.index = self.made(len(values))
        if not self.index.is_trained:
            self.index.train(values)
        self.index.add(values)
        faiss.write_index_binary(self.index, str(self.file))

    def made(self, _rows: int) -> Any:
        return faiss.IndexBinaryFlat(self.dimensions)

    def search(self, query: NDArray[np.uint8]) -> list[int]:
        return [row for row in self.index.search(query[None], self.k)[1][0].tolist() if row >= 0]


class FaissHnsw(FaissFlat):
    def made(self, _rows: int) -> Any:
        return faiss.IndexBinaryHNSW(self.dimensions, LINKS)


class FaissIvf(FaissFlat):
    def made(self, rows: int) -> Any:
        self.lists = faiss.IndexBinaryFlat(self.dimensions)
        index = faiss.IndexBinaryIVF(self.lists, self.dimensions, min(1024, max(1, rows // TRAINED)))
        index.nprobe = NPROBE
        return index


class UsearchExact(Library):
    """The codes themselves."""

    def fill(self, values: NDArray[np.uint8]) -> None:
        self.codes = values.copy()
        with self.file.open("wb") as file:
            np.save(file, self.codes)

    def search(self, query: NDArray[np.uint8]) -> list[int]:
        metric = usearch.index.MetricKind.Hamming
        found = usearch.index.search(self.codes, query, self.k, metric, exact=True, threads=1)
        return [int(row) for row in found.keys]


class UsearchHnsw(Library):
    def fill(self, values: NDArray[np.uint8]) -> None:
        self.index = usearch.index.Index(ndim=self.dimensions, metric="hamming", dtype="b1", connectivity=LINKS)
        self.index.add(np.arange(len(values)), values, threads=1)
        self.index.save(str(self.file))

    def search(self, query: NDArray[np.uint8]) -> list[int]:
        return [int(row) for row in self.index.search(query, self.k, threads=1).keys]


class Hnswlib(Library):
    """With the settings of its example."""

    def fill(self, values: NDArray[np.float32]) -> None:
        self.index = hnswlib.Index("cosine", self.dimensions)
        self.index.init_index(len(values), M=LINKS, ef_construction=200)
        self.index.set_num_threads(1)
        self.index.add_items(values)
        self.index.set_ef(50)
        self.index.save_index(str(self.file))

    def search(self, query: NDArray[np.float32]) -> list[int]:
        return self.index.knn_query(query, self.k)[0][0].tolist()


class Sqlite(Library):
    """As rclip does it: unit vectors in a table, and every query, a command of its own, reads all of them."""

    def fill(self, values: NDArray[np.float32]) -> None:
        self.database = sqlite3.connect(self.file)
        self.database.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, vector BLOB)")
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        rows = ((n, name_of(n), vector.tobytes()) for n, vector in enumerate(unit))
        self.database.executemany("INSERT INTO images VALUES (?, ?, ?)", rows)
        self.database.commit()
        self.loaded = unit[:0]

    def search(self, query: NDArray[np.float32]) -> list[int]:
        self.loaded = self.loaded[:0]
        ids, _, vectors = zip(*self.database.execute("SELECT id, path, vector FROM images"), strict=True)
        self.loaded = np.stack([np.frombuffer(vector, np.float32) for vector in vectors])
        return [ids[place] for place in np.argsort(-(self.loaded @ query))[: self.k]]

    def close(self) -> None:
        self.database.close()


@dataclass(frozen=True, slots=True)
class Values:
    """What is indexed or asked: of mg-milvus the codes of each granularity, floats (n, d), all bits as one code."""

    codes: Mapping[str, NDArray[Any]]
    floats: NDArray[np.float32]
    one_code: NDArray[np.uint8]

    def of(self, kind: str) -> Any:
        return getattr(self, kind)

    def query(self, kind: str, row: int) -> Any:
        """One of them."""
        values = self.of(kind)
        return {name: own[[row]] for name, own in values.items()} if kind == "codes" else values[row]


SYSTEMS: dict[str, tuple[str, bool, Make]] = {
    "Milvus Lite, floats, FLAT": ("floats", True, lambda *a: OneVector(a[0], a[1], "FLAT", a[2])),
    "Milvus Lite, floats, IVF_FLAT": ("floats", False, lambda *a: OneVector(a[0], a[1], "IVF_FLAT", a[2])),
    "SQLite and numpy, floats": ("floats", True, Sqlite),
    "hnswlib, floats": ("floats", False, Hnswlib),
    "Milvus Lite, one code, BIN_FLAT": ("one_code", True, lambda *a: OneVector(a[0], a[1], "BIN_FLAT", a[2])),
    "FAISS, one code, flat": ("one_code", True, FaissFlat),
    "FAISS, one code, IVF": ("one_code", False, FaissIvf),
    "FAISS, one code, HNSW": ("one_code", False, FaissHnsw),
    "USearch, one code, exact": ("one_code", True, UsearchExact),
    "USearch, one code, HNSW": ("one_code", False, UsearchHnsw),
}
"""System -> what it indexes, whether it searches all rows, and file, dimensions and k -> the system, empty."""


def made(name: str, file: Path, schema: Schema, values: Values, k: int) -> System:
    if name == OWN:
        return Binary(file, schema, k)
    kind, _, make = SYSTEMS[name]
    return make(file, values.floats.shape[1] if kind == "floats" else 8 * values.one_code.shape[1], k)


def kind_of(name: str) -> str:
    return "codes" if name == OWN else SYSTEMS[name][0]


def held(system: System) -> float:
    """MB that hold the index, of this process or of Milvus Lite's, and what else is there."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory(None if isinstance(system, Library) else engine_pid(system.file), "RssAnon")


def taken(system: System, action: Callable[[], Any]) -> float:
    """Seconds of processors; without Milvus Lite the finer clock, of this process alone."""
    clock = time.process_time if isinstance(system, Library) else spent
    start = clock()
    action()
    return clock() - start


def of_images(features: Mapping[str, NDArray[np.float32]], encoder: Encoder) -> tuple[Values, Values]:
    """Images as they are indexed, and as queries."""
    codes = encoder.codes(features)
    real = {name: in_steps(values) for name, values in encoder.real_codes(features).items()}
    floats, one_code = features[FLOATS], np.hstack(list(codes.values()))
    return Values(codes, floats, one_code), Values(real, floats, one_code)


def repeated(images: Values, rows: int, random: np.random.Generator) -> Values:
    codes = {name: repeated_codes(values, rows, random) for name, values in images.codes.items()}
    return Values(codes, repeated_floats(images.floats, rows, random), np.hstack(list(codes.values())))


def compare(images: Values, queries: Values, labels: NDArray[Any], schema: Schema, work: Path, rows: int) -> Any:
    """System -> figures, and the same as multiples of those of mg-milvus."""
    random = np.random.default_rng(0)
    many, chosen = repeated(images, rows, random), random.integers(len(labels), size=QUERIES).tolist()
    systems: dict[str, System] = {}
    table: dict[str, dict[str, float]] = {}
    for name in (OWN, *SYSTEMS):
        system = systems[name] = made(name, work / f"{len(systems)}.db", schema, many, K)
        before = held(system)
        seconds = taken(system, lambda name=name, system=system: system.fill(many.of(kind_of(name))))
        system.search(queries.query(kind_of(name), 0))
        table[name] = {
            "added us": 1e6 * seconds / rows,
            "memory bytes": (held(system) - before) * 2**20 / rows,
            "disk bytes": file_size(system.file) / rows,
        }
    found: dict[str, list[Sequence[int]]] = {name: [] for name in systems}
    seconds_of = dict.fromkeys(systems, 0.0)
    for start in range(0, QUERIES, TOGETHER):
        for name, system in systems.items():
            some = [queries.query(kind_of(name), row) for row in chosen[start : start + TOGETHER]]
            seconds_of[name] += taken(system, lambda n=name, s=system, q=some: found[n].extend(map(s.search, q)))
    for name, system in systems.items():
        system.close()
        table[name]["query ms"] = 1000 * seconds_of[name] / QUERIES
        if name != OWN:
            exact = [distances(kind_of(name), many, queries, row) for row in chosen]
            table[name]["recall@10"] = float(np.mean([*map(as_near, exact, found[name])]))
        if name == OWN or SYSTEMS[name][1]:
            system = made(name, work / f"all-{system.file.name}", schema, images, len(labels))
            table[name]["mAP"] = mean_average_precision(system, kind_of(name), images, queries, labels)
    own = table[OWN]
    over = {name: {key: row[key] / own[key] for key in RATIOS} for name, row in table.items()}
    return {"rows": rows, "dimensions": images.floats.shape[1], "systems": table, "over mg-milvus": over}


def distances(kind: str, rows: Values, queries: Values, row: int) -> NDArray[Any]:
    """(n,) of all rows from one query, smaller is nearer."""
    if kind == "one_code":
        return hamming(queries.one_code[[row]], rows.one_code)[0]
    query = queries.floats[row] / np.linalg.norm(queries.floats[row])
    return -(rows.floats @ query) / np.linalg.norm(rows.floats, axis=1)


def as_near(exact: NDArray[Any], found: Sequence[int]) -> float:
    """The share of K rows that are at most as far as the K-th nearest."""
    return float((exact[list(found)] <= np.partition(exact, K - 1)[K - 1] + ROUNDING).sum() / K)


def mean_average_precision(system: System, kind: str, images: Values, queries: Values, labels: NDArray[Any]) -> float:
    """Leave-one-out; a row that is not returned is farther than all others."""
    system.fill(images.of(kind))
    places = np.full((len(labels), len(labels)), len(labels), np.int64)
    for row, own in enumerate(places):
        found = system.search(queries.query(kind, row))
        own[found] = np.arange(len(found))
    system.close()
    relevance = np.where(labels[:, None] == labels[None], SAME_CLASS, 0).astype(np.uint8)
    np.fill_diagonal(relevance, NOT_A_CANDIDATE)
    return score_rankings([(places, relevance)]).map
