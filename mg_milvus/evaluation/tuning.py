"""``mgm tune``: weights of fusion, learned from labelled pictures or wanted pairs, into a schema and a collection."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.connection import Connection
from mg_milvus.encoder import load_encoder
from mg_milvus.encoder.files import write_whole
from mg_milvus.errors import QueryError, SchemaError
from mg_milvus.evaluation.encoded import encode_labelled, with_heads
from mg_milvus.evaluation.learning import folds_of, learn
from mg_milvus.evaluation.questions import GOALS, Questions
from mg_milvus.evaluation.wanted import wanted_by_labels, wanted_by_pairs
from mg_milvus.schema import Schema

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.encoder import Encoder
    from mg_milvus.evaluation.encoded import Encoded
    from mg_milvus.evaluation.learning import Tuning
    from mg_milvus.evaluation.questions import Goal, Method
    from mg_milvus.evaluation.wanted import Wanted
    from mg_milvus.hits import Failure, Progress
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest import Settings
    from mg_milvus.store.access import Tls

    PathLike = str | os.PathLike[str]

QUERIES = 1000
_SEED = 7
_CELLS = 250_000_000
"""Distances held at once, 2 bytes each; of very many pictures fewer are asked for."""
_FEWEST_QUERIES = 100
_ROWS = 64
"""Queries whose distances are computed at once."""


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What a tuning did.

    Attributes:
        tuning: what was learned, and what it is worth.
        old: the schema before.
        new: the schema as tuned; the old one where nothing was changed.
        file: the schema file that was written, if one was.
        collection: the collection whose record was changed, if one was.
        failures: pictures that could not be read or have no label.
    """

    tuning: Tuning
    old: Schema
    new: Schema
    file: str | None
    collection: str | None
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        tuning = self.tuning
        return {
            "goal": tuning.goal, "queries": tuning.queries, "candidates": tuning.candidates,
            "folds": len(tuning.gains), "equal": round(tuning.equal, 6), "before": round(tuning.before, 6),
            "tuned": round(tuning.tuned, 6), "gain": round(tuning.gain, 6),
            "standard_error": round(tuning.standard_error, 6), "gains": [round(gain, 6) for gain in tuning.gains],
            "better": tuning.better,
            "learned": {"weights": tuning.weights, "rrf_k": tuning.rrf_k, "depth": tuning.depth},
            "old": _settings(self.old), "new": _settings(self.new),
            "file": self.file, "collection": self.collection,
            "failures": [{"path": failure.path, "reason": failure.reason} for failure in self.failures],
        }  # fmt: skip


def _settings(schema: Schema) -> dict[str, Any]:
    return {"weights": schema.weights, "rrf_k": schema.fusion.rrf_k, "depth": schema.fusion.depth}


@dataclass(frozen=True, slots=True)
class Target:
    """What is tuned.

    Attributes:
        schema: a preset or a schema file; without ``out`` the file is written in place, without its comments.
        out: the schema file to write.
        uri: where the collection is whose record is changed; None: no collection.
        token: as in ``ImageIndex.open``, like all that follows.
        collection: its name.
        timeout: seconds.
        encoder: what encodes the pictures; default: the collection's encoder, or else the schema's.
        device: where it runs.
        tls: certificates.
    """

    schema: PathLike | None = None
    out: PathLike | None = None
    uri: str | None = None
    token: str | None = None
    collection: str | None = None
    timeout: float = 10.0
    encoder: str | Path | None = None
    device: str = "auto"
    tls: Tls | None = None


def tune(
    folder: PathLike,
    target: Target,
    *,
    labels: PathLike | None = None,
    pairs: PathLike | None = None,
    goal: Goal = "map",
    folds: int = 5,
    queries: int = QUERIES,
    settings: Settings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TuneReport:
    """Learn weights, ``rrf_k`` and ``depth`` of the fusion, and write them where they are better than equal weights.

    They are written when the gain over equal weights on unseen folds is more than one standard error, and when the
    weights so far do not do as well; otherwise everything stays as it is. Fusion by the server is tuned as rank fusion.

    Args:
        folder: pictures, encoded as the collection's (or, without one, a new collection's) would be. They need not be
            in the collection.
        target: the schema and the collection.
        labels: a table of labels; default: the folders are the labels.
        pairs: a table of wanted pairs instead of labels, see ``wanted_by_pairs``.
        goal: one of ``GOALS``.
        folds: of the cross-validation over queries.
        queries: at most so many pictures ask, drawn at random.
        settings: batch size, decoding threads, largest picture.
        progress: called after each batch.

    Raises:
        QueryError: an unknown goal, too few queries for the folds, or only one granularity.
        LabelError: labels or pairs are missing, or do not fit the pictures.
        SchemaError: the schema cannot be read or written.
        CollectionNotFoundError: there is no such collection.
    """
    if goal not in GOALS:
        raise QueryError(f"goal is '{goal}', expected {', '.join(GOALS)}")
    if labels is not None and pairs is not None:
        raise QueryError("labels and pairs exclude each other; give one of them")
    failures: list[Failure] = []
    with closing(_Place(target)) as place:
        before = place.schema  # refused before the long work, like too few queries
        if pairs is None:
            wanted = wanted_by_labels(folder, labels, failures.append)
        else:
            wanted = wanted_by_pairs(folder, pairs, failures.append)
        folds_of(np.zeros(min(len(wanted.queries()), queries), np.int64), folds)
        encoded = encode_labelled(wanted.labelled, place.encoder, settings, progress)
        codes = place.codes(encoded, wanted.labelled.pictures)
        wanted = wanted.subset(np.flatnonzero(~encoded.broken))
        tuning = learn_from(wanted, codes, before, goal, folds=folds, queries=queries)
        new, file, collection = place.write(tuning) if tuning.better else (before, None, None)
        return TuneReport(tuning, before, new, file, collection, (*failures, *encoded.failures))


def learn_from(
    wanted: Wanted, codes: Mapping[str, Codes], schema: Schema, goal: Goal, *, folds: int, queries: int = QUERIES
) -> Tuning:
    """Learn from codes that are there already.

    Args:
        wanted: what each picture should find.
        codes: granularity -> (n, bits / 8) uint8, in the order of the pictures.
        schema: with the weights and the fusion so far.
        goal: one of ``GOALS``.
        folds: of the cross-validation.
        queries: at most so many pictures ask.

    Raises:
        QueryError: too few pictures want something.
    """
    asking = wanted.queries()
    cells = len(wanted.labelled) * len(schema.bits)
    limit = min(queries, max(_FEWEST_QUERIES, _CELLS // max(cells, 1)))
    chosen = np.sort(np.random.default_rng(_SEED).permutation(asking)[:limit])
    dealt = folds_of(wanted.strata(chosen), folds)
    distances = {name: _distances(codes[name], chosen) for name in schema.bits}
    method: Method = "score" if schema.fusion.method == "score" else "rank"
    return learn(
        Questions(distances, schema.bits, wanted.relevance(chosen)), goal, dealt, weights=schema.weights,
        rrf_k=schema.fusion.rrf_k, depth=schema.fusion.depth, method=method,
    )  # fmt: skip


def _distances(codes: Codes, rows: NDArray[np.intp]) -> NDArray[np.uint16]:
    found = np.empty((len(rows), len(codes)), np.uint16)
    for start in range(0, len(rows), _ROWS):
        found[start : start + _ROWS] = hamming(codes[rows[start : start + _ROWS]], codes)
    return found


class _Place:
    """The schema as it is, where it came from and where it goes. Nothing is opened before it is needed."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._given = None if target.schema is None else Schema.load(str(target.schema))
        self._file = _file_to_write(target)
        self._connection: Connection | None = None
        if target.uri is not None:
            self._connection = Connection(
                target.uri, collection=target.collection, token=target.token, timeout=target.timeout,
                device=target.device, schema=self._given, encoder=target.encoder, tls=target.tls,
            )  # fmt: skip

    @cached_property
    def schema(self) -> Schema:
        """The collection's, with the weights and the fusion of a given one; without a collection that one.

        Raises:
            CollectionNotFoundError: there is no such collection.
            QueryError: it has only one granularity.
        """
        if self._connection is None:
            schema = self._given or Schema()
        else:
            self._connection.existing()
            schema = self._connection.schema
        if len(schema.bits) < 2:
            only = next(iter(schema.bits))
            raise QueryError(f"the only granularity is {only}: there is nothing to weigh; expected two or more")
        return schema

    @cached_property
    def encoder(self) -> Encoder:
        """The collection's; without a collection the one that a new one would start from."""
        if self._connection is not None:
            return self._connection.encoder
        encoder = load_encoder(self._target.encoder or self.schema.encoder.name, device=self._target.device)
        encoder.check(self.schema.bits)
        return encoder

    def codes(self, encoded: Encoded, pictures: Sequence[Found]) -> dict[str, Codes]:
        """Codes as the collection has them, or as a first ingest of these pictures would make them."""
        encoder = self.encoder
        if self._connection is None:
            encoder, _ = with_heads(
                encoder, encoded.features, encoded.labelled.pictures, pictures, self.schema.bits,
                heads=self.schema.encoder.heads,
            )  # fmt: skip
        return encoder.codes(encoded.features)

    def write(self, tuning: Tuning) -> tuple[Schema, str | None, str | None]:
        """Write what was learned; the tuned schema, the file and the collection that were written."""
        new = _tuned(self.schema, tuning)
        if self._connection is not None:
            self._connection.store.retune(new.weights, new.fusion)
        if self._file is not None:
            text = _tuned(self._given or self.schema, tuning).to_yaml()
            try:
                write_whole(self._file, text.encode())
            except OSError as error:
                raise SchemaError(f"{self._file} cannot be written: {error.strerror}; choose another --out") from error
        collection = None if self._connection is None else self._connection.collection
        return new, None if self._file is None else str(self._file), collection

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()


def _file_to_write(target: Target) -> Path | None:
    """The schema file that is to be written; refused early when it cannot be."""
    file = Path(target.out or target.schema or "") if target.out or target.schema else None
    if file is not None and target.out is None and not file.is_file():
        raise SchemaError(f"'{target.schema}' is a preset, which stays as it is; say where to write with --out FILE")
    if file is not None and not file.absolute().parent.is_dir():
        raise SchemaError(
            f"{file} cannot be written: there is no folder {file.absolute().parent}; choose another --out"
        )
    return file


def _tuned(schema: Schema, tuning: Tuning) -> Schema:
    granularities = tuple(g.model_copy(update={"weight": tuning.weights[g.name]}) for g in schema.granularities)
    fusion = schema.fusion.model_copy(update={"rrf_k": tuning.rrf_k, "depth": tuning.depth})
    return schema.model_copy(update={"granularities": granularities, "fusion": fusion})
