"""``tune``: learn the weights of the fusion from labelled images, by cross-validation.

The procedure is a coordinate search over a grid. From equal weights, each weight in turn takes the value of ``WEIGHTS``
that is best for the goal, then ``rrf_k`` the best of ``RRF_KS``, until a whole round changes nothing. The queries are
dealt into folds; for each fold the search runs on the other folds, and its result is scored on that fold. The learned
setting (a search on all queries) is written only if the mean gain over equal weights on the unseen folds exceeds one
standard error, and the current weights score lower.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mg_milvus.codes import hamming
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import QueryError, SchemaError
from mg_milvus.evaluation.encoded import Setup, encode_labelled, with_heads
from mg_milvus.evaluation.metrics import CLASS_GAIN, GROUP_GAIN, NOT_A_CANDIDATE, SAME_CLASS, SAME_GROUP
from mg_milvus.evaluation.protocols import GroundTruth, relevance_from_labels, relevance_from_pairs
from mg_milvus.evaluation.scoring import Recipe, fused_keys
from mg_milvus.files import write_whole
from mg_milvus.schema.models import Schema
from mg_milvus.session import Session

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.config import MilvusConfig
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.evaluation.encoded import Encoded
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest.pipeline import Settings
    from mg_milvus.records import Failure, Progress

    PathLike = str | os.PathLike[str]


Goal = Literal["map", "recall@1", "ndcg"]
Floats = NDArray[np.float64]
Keys = NDArray[Any]
Relevance = NDArray[np.uint8]

GOALS: tuple[Goal, ...] = get_args(Goal)
"""``map``: mean average precision over the whole ranking. ``recall@1``: the share of queries whose first result is
relevant. ``ndcg``: NDCG of the first ``NDCG_AT`` results."""
NDCG_AT = 100
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
RRF_KS = (5, 20, 60, 200, 1000)
MIN_GAIN = 1e-4
"""A smaller gain of the goal is treated as none."""
QUERIES = 1000
MIN_QUERIES = 100
MAX_DISTANCES = 250_000_000
"""Distances held at once, 2 bytes each; for very large folders fewer queries are used, but at least ``MIN_QUERIES``."""
QUERIES_PER_FOLD = 2
"""Fewest queries in a fold."""

_SEED = 7
_BLOCK = 64
"""Queries whose distances are computed at once."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Weights of the granularities, in the order of ``Queries.bits`` and the largest 1, and ``rrf_k``."""

    weights: tuple[float, ...]
    rrf_k: int

    @classmethod
    def normalized(cls, weights: Sequence[float], rrf_k: int) -> Setting:
        """The setting with the same ranking and 1 for its largest weight; weights are rounded to 3 decimals."""
        top = max(weights)
        return cls(tuple(round(weight / top, 3) for weight in weights), rrf_k)


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries, their distances to all candidates, and the relevance of each candidate.

    Attributes:
        distances: granularity -> (q, n) unsigned integers, Hamming distances in bits.
        bits: granularity -> code length.
        relevance: (q, n) uint8: 2 relevant, 1 same group (counts for ``ndcg`` only), 0 not relevant, 255 not a
            candidate, like the query itself. Every query has a relevant candidate.
        strata: (q,) the class of each query; folds hold equal shares of each.
    """

    distances: Mapping[str, NDArray[np.unsignedinteger[Any]]]
    bits: Mapping[str, int]
    relevance: Relevance
    strata: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.relevance)

    def goal_values(self, goal: Goal, recipes: Sequence[Recipe]) -> Floats:
        """The goal of every query, ranked by each recipe with all images as candidates: (recipes, q) in 0 .. 1."""
        measure = GOAL_FUNCTIONS[goal]
        values = np.empty((len(recipes), len(self)))
        for query, grades in enumerate(self.relevance):
            candidates = grades != NOT_A_CANDIDATE
            distances = {name: own[query][candidates] for name, own in self.distances.items()}
            keys = fused_keys(distances, self.bits, recipes)
            values[:, query] = [measure(row, grades[candidates]) for row in keys]
        return values


def expected_average_precision(keys: Keys, grades: Relevance) -> float:
    """Average precision, expected over the orders inside ties (McSherry and Najork, ECIR 2008).

    That at the end of a tie a search would improve by breaking ties with noise.

    Args:
        keys: (n,) of the candidates, smaller is nearer.
        grades: (n,) uint8; 2 is relevant.
    """
    ordered, relevant = np.sort(keys), np.sort(keys[grades == SAME_CLASS])
    before, relevant_before = np.searchsorted(ordered, relevant), np.searchsorted(relevant, relevant)
    size = np.searchsorted(ordered, relevant, side="right") - before
    relevant_in_tie = np.searchsorted(relevant, relevant, side="right") - relevant_before
    harmonic = _harmonic(len(keys))
    inverse = harmonic[before + size] - harmonic[before]
    crowding = (relevant_in_tie - 1) / np.maximum(size - 1, 1)
    precision = (relevant_before + 1) * inverse + crowding * (size - (before + 1) * inverse)
    return float(np.mean(precision / size))


@lru_cache(maxsize=2)
def _harmonic(count: int) -> Floats:
    """Harmonic numbers 0, 1, 1 + 1/2 ...: (count + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, count + 1))])


def expected_recall_at_1(keys: Keys, grades: Relevance) -> float:
    """The probability that the first result is relevant; arguments as in ``expected_average_precision``."""
    return float(np.mean(grades[keys == keys.min()] == SAME_CLASS))


def expected_ndcg(keys: Keys, grades: Relevance) -> float:
    """NDCG of the first ``NDCG_AT`` results; arguments as in ``expected_average_precision``."""
    gains = np.select([grades == SAME_CLASS, grades == SAME_GROUP], [CLASS_GAIN, GROUP_GAIN], 0)
    count = min(NDCG_AT, len(keys))
    discounts = 1 / np.log2(np.arange(2, count + 2))
    first = np.flatnonzero(keys <= np.partition(keys, count - 1)[count - 1])
    first = first[np.argsort(keys[first], kind="stable")]
    _, tie = np.unique(keys[first], return_inverse=True)
    mean = np.bincount(tie, gains[first]) / np.bincount(tie)
    return float(mean[tie][:count] @ discounts) / float(np.sort(gains)[::-1][:count] @ discounts)


GOAL_FUNCTIONS: dict[Goal, Callable[[Keys, Relevance], float]] = {
    "map": expected_average_precision,
    "recall@1": expected_recall_at_1,
    "ndcg": expected_ndcg,
}


def deal_folds(strata: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Deal queries into folds of equal size, each stratum evenly: (q,) from 0 to folds - 1; always the same.

    Raises:
        QueryError: there are too few queries.
    """
    if folds < 2 or len(strata) < QUERIES_PER_FOLD * folds:
        raise QueryError(
            f"there are {len(strata)} queries for {folds} folds, expected at least 2 folds and {QUERIES_PER_FOLD} "
            "queries in each; give more images that belong together, or fewer folds"
        )
    shuffled = np.random.default_rng(_SEED).permutation(len(strata))
    by_stratum = shuffled[np.argsort(strata[shuffled], kind="stable")]
    numbers = np.empty(len(strata), np.int64)
    numbers[by_stratum] = np.arange(len(strata)) % folds
    return numbers


@dataclass(frozen=True, slots=True)
class Tuning:
    """The learned setting, and its value on queries that it was not learned from.

    Attributes:
        goal: see ``GOALS``.
        queries: number of queries.
        candidates: number of images that each query ranks.
        weights: granularity -> learned weight; the largest is 1.
        rrf_k: learned; unchanged for score fusion.
        equal: the goal with equal weights and the current rrf_k.
        before: the goal with the current weights and rrf_k.
        tuned: mean over the folds, each with a setting learned from the others.
        gains: ``tuned`` less ``equal``, fold by fold.
    """

    goal: Goal
    queries: int
    candidates: int
    weights: dict[str, float]
    rrf_k: int
    equal: float
    before: float
    tuned: float
    gains: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Mean gain over equal weights on unseen queries."""
        return float(np.mean(self.gains))

    @property
    def standard_error(self) -> float:
        """Standard error of the gain, over the folds."""
        return float(np.std(self.gains, ddof=1) / np.sqrt(len(self.gains)))

    @property
    def better(self) -> bool:
        """Whether the gain over equal weights exceeds one standard error, and the current weights score lower."""
        return self.gain > max(self.standard_error, MIN_GAIN) and self.tuned > self.before


def learn(queries: Queries, schema: Schema, goal: Goal, folds: int) -> Tuning:
    """Learn weights and ``rrf_k``, and measure them by cross-validation.

    Args:
        queries: of two granularities or more.
        schema: with the current weights and fusion; fusion by the server is tuned as rank fusion.
        goal: what to maximize.
        folds: of the cross-validation.

    Raises:
        QueryError: there are too few queries.
    """
    method: Literal["rank", "score"] = "score" if schema.fusion.method == "score" else "rank"
    known: dict[Setting, Floats] = {}

    def values(*settings: Setting) -> list[Floats]:
        """The goal of every query, by each setting: (q,) each."""
        new = [setting for setting in dict.fromkeys(settings) if setting not in known]
        weights = [dict(zip(queries.bits, setting.weights, strict=True)) for setting in new]
        recipes = [
            Recipe(method, {name: weight for name, weight in own.items() if weight}, setting.rrf_k)
            for own, setting in zip(weights, new, strict=True)
        ]
        if new:
            known.update(zip(new, queries.goal_values(goal, recipes), strict=True))
        return [known[setting] for setting in settings]

    def search(chosen: NDArray[np.bool_]) -> Setting:
        """The coordinate search on some of the queries."""
        best, start = equal, None
        while start != best:
            start = best
            for coordinate in range(len(queries.bits) + (method == "rank")):
                options = [best, *_options(best, coordinate)]
                means = [round(float(own[chosen].mean()), 9) for own in values(*options)]
                option = int(np.argmax(means))
                if means[option] - means[0] > MIN_GAIN:
                    best = options[option]
        return best

    fold_of = deal_folds(queries.strata, folds)
    equal = Setting((1.0,) * len(queries.bits), schema.fusion.rrf_k)
    current = Setting.normalized([schema.weights[name] for name in queries.bits], schema.fusion.rrf_k)
    parts = [fold_of == number for number in range(folds)]
    tuned = np.array([values(search(~part))[0][part].mean() for part in parts])
    with_equal, before = (np.array([own[part].mean() for part in parts]) for own in values(equal, current))
    learned = search(np.ones(len(queries), np.bool_))
    return Tuning(
        goal, len(queries), queries.relevance.shape[1], dict(zip(queries.bits, learned.weights, strict=True)),
        learned.rrf_k, float(with_equal.mean()), float(before.mean()), float(tuned.mean()),
        tuple((tuned - with_equal).tolist()),
    )  # fmt: skip


def _options(setting: Setting, coordinate: int) -> list[Setting]:
    """The settings that differ in one weight or, as the last coordinate, in ``rrf_k``; larger weights first."""
    if coordinate == len(setting.weights):
        return [Setting(setting.weights, rrf_k) for rrf_k in RRF_KS]
    before, after = setting.weights[:coordinate], setting.weights[coordinate + 1 :]
    grid = [(*before, weight, *after) for weight in reversed(WEIGHTS)]
    return [Setting.normalized(weights, setting.rrf_k) for weights in grid if any(weights)]


def sample_queries(truth: GroundTruth, codes: Mapping[str, Codes], limit: int) -> Queries:
    """Draw at most ``limit`` queries at random, always the same, and compute their distances to all images.

    Args:
        truth: which images are relevant to which.
        codes: granularity -> (n, bits / 8) uint8, in the order of the images.
        limit: most queries.
    """
    images = len(truth.labelled) * len(codes)
    limit = min(limit, max(MIN_QUERIES, MAX_DISTANCES // max(images, 1)))
    rows = np.sort(np.random.default_rng(_SEED).permutation(truth.queries())[:limit])
    distances = {name: np.empty((len(rows), len(own)), np.uint16) for name, own in codes.items()}
    for name, own in codes.items():
        for start in range(0, len(rows), _BLOCK):
            distances[name][start : start + _BLOCK] = hamming(own[rows[start : start + _BLOCK]], own)
    bits = {name: own.shape[1] * 8 for name, own in codes.items()}
    return Queries(distances, bits, truth.relevance(rows), truth.strata(rows))


@dataclass(frozen=True, slots=True)
class TuneReport:
    """The outcome of ``tune``.

    Attributes:
        tuning: the learned setting, and its value on unseen queries.
        old: the schema before.
        new: the tuned schema; the old one where nothing was changed.
        file: the schema file that was written, if one was.
        collection: the collection whose record was changed, if one was.
        failures: images that could not be read or have no label.
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
            "learned": {"weights": tuning.weights, "rrf_k": tuning.rrf_k},
            "old": {"weights": self.old.weights, "rrf_k": self.old.fusion.rrf_k},
            "new": {"weights": self.new.weights, "rrf_k": self.new.fusion.rrf_k},
            "file": self.file, "collection": self.collection,
            "failures": [{"path": failure.path, "reason": failure.reason} for failure in self.failures],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """The schema or collection to tune.

    Attributes:
        schema: a preset or a schema file; without ``out`` the file is written in place, without its comments.
        out: the schema file to write.
        milvus: the collection whose record is changed; None: no collection.
        encoder: the encoder of the images; default: the collection's encoder, or else the schema's.
        device: where it runs.
    """

    schema: PathLike | None = None
    out: PathLike | None = None
    milvus: MilvusConfig | None = None
    encoder: str | Path | None = None
    device: str = "auto"


def tune(  # noqa: PLR0913 - public: keyword options of the command
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
    """Learn weights and ``rrf_k`` of the fusion, and write them where they are better than equal weights.

    They are written when the gain over equal weights on unseen folds exceeds one standard error, and when the current
    weights score lower; otherwise nothing changes. Fusion by the server is tuned as rank fusion.

    Args:
        folder: images, encoded as the collection's (or, without one, a new collection's) would be. They need not be
            in the collection.
        target: the schema and the collection.
        labels: a table of labels; default: the folders are the labels.
        pairs: a table of relevant pairs instead of labels, see ``relevance_from_pairs``.
        goal: one of ``GOALS``.
        folds: of the cross-validation over queries.
        queries: most images used as queries, drawn at random.
        settings: batch size, decoding threads, largest image.
        progress: called after each batch.

    Raises:
        QueryError: an unknown goal, too few queries for the folds, or only one granularity.
        LabelError: labels or pairs are missing, or do not fit the images.
        SchemaError: the schema cannot be read or written.
        CollectionNotFoundError: there is no such collection.
    """
    if goal not in GOALS:
        raise QueryError(f"goal is '{goal}', expected {', '.join(GOALS)}")
    if labels is not None and pairs is not None:
        raise QueryError("labels and pairs exclude each other; give one of them")
    failures: list[Failure] = []
    with closing(_OpenTarget(target)) as opened:
        before = opened.schema  # a wrong target and too few queries are refused before the images are encoded
        if pairs is None:
            truth = relevance_from_labels(folder, labels, failures.append)
        else:
            truth = relevance_from_pairs(folder, pairs, failures.append)
        deal_folds(np.zeros(min(len(truth.queries()), queries), np.int64), folds)
        encoded = encode_labelled(truth.labelled, opened.encoder, settings, progress)
        codes = opened.codes(encoded, truth.labelled.images)
        truth = truth.subset(np.flatnonzero(~encoded.broken))
        tuning = learn(sample_queries(truth, codes, queries), before, goal, folds)
        new, file, collection = opened.write(tuning) if tuning.better else (before, None, None)
        return TuneReport(tuning, before, new, file, collection, (*failures, *encoded.failures))


class _OpenTarget:
    """A target's schema, encoder and session. Nothing is opened before it is needed."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._given = None if target.schema is None else Schema.load(str(target.schema))
        self._file = _file_to_write(target)
        self._session: Session | None = None
        if target.milvus is not None:
            self._session = Session(target.milvus, self._given, target.encoder, target.device)

    @cached_property
    def schema(self) -> Schema:
        """The collection's schema; without a collection the given one.

        Raises:
            CollectionNotFoundError: there is no such collection.
            QueryError: it has only one granularity.
        """
        if self._session is None:
            schema = self._given or Schema()
        else:
            self._session.existing()
            schema = self._session.schema
        if len(schema.bits) < 2:
            only = next(iter(schema.bits))
            raise QueryError(f"the only granularity is {only}, expected two or more to weigh against each other")
        return schema

    @cached_property
    def encoder(self) -> Encoder:
        """The collection's encoder; without a collection the one that a new collection would start from."""
        if self._session is not None:
            return self._session.encoder
        encoder = load_encoder(self._target.encoder or self.schema.encoder.name, device=self._target.device)
        encoder.check(self.schema.bits)
        return encoder

    def codes(self, encoded: Encoded, images: Sequence[Found]) -> dict[str, Codes]:
        """The codes that the collection's encoder, or a first ingest of these images, gives."""
        encoder = self.encoder
        if self._session is None:
            encoder, _ = with_heads(Setup(encoder, self.schema), encoded.features, encoded.read, images)
        return encoder.codes(encoded.features)

    def write(self, tuning: Tuning) -> tuple[Schema, str | None, str | None]:
        """Write the learned setting; return the tuned schema, and the file and the collection that were written."""
        new = _tuned(self.schema, tuning)
        if self._session is not None:
            self._session.store.retune(new.weights, new.fusion)
        if self._file is not None:
            text = _tuned(self._given or self.schema, tuning).to_yaml()
            try:
                write_whole(self._file, text.encode())
            except OSError as error:
                raise SchemaError(f"{self._file} cannot be written: {error.strerror}; choose another --out") from error
        collection = None if self._session is None else self._session.collection
        return new, None if self._file is None else str(self._file), collection

    def close(self) -> None:
        """Close the session, if there is one."""
        if self._session is not None:
            self._session.close()


def _file_to_write(target: Target) -> Path | None:
    """The schema file to write, if any.

    Raises:
        SchemaError: a preset without ``out``, or a folder that does not exist.
    """
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
    fusion = schema.fusion.model_copy(update={"rrf_k": tuning.rrf_k})
    return schema.model_copy(update={"granularities": granularities, "fusion": fusion})
