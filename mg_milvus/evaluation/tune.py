"""What queries want, how a setting of fusion ranks it, and how good that is. Pure numpy, no I/O."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mg_milvus.codes import hamming
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import QueryError, SchemaError
from mg_milvus.evaluation.encoded import encode_labelled, with_heads
from mg_milvus.evaluation.metrics import CLASS_GAIN, GROUP_GAIN, NOT_A_CANDIDATE, SAME_CLASS, SAME_GROUP
from mg_milvus.evaluation.protocols import wanted_by_labels, wanted_by_pairs
from mg_milvus.files import write_whole
from mg_milvus.schema.models import Schema
from mg_milvus.search.fusion import shared_ranks
from mg_milvus.session import Connection

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.config import Tls
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.evaluation.encoded import Encoded
    from mg_milvus.evaluation.protocols import Wanted
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest.pipeline import Settings
    from mg_milvus.records import Failure, Progress

    PathLike = str | os.PathLike[str]


Goal = Literal["map", "recall@1", "ndcg"]
Method = Literal["rank", "score"]
Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
Relevance = NDArray[np.uint8]

GOALS: tuple[Goal, ...] = get_args(Goal)
"""``map``: mean average precision over the whole ranking. ``recall@1``: the share of queries whose first result is
wanted. ``ndcg``: NDCG of the first ``NDCG_AT`` results."""
NDCG_AT = 100

_LAST = np.float32(-1)
"""The score of what is no candidate."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is learned.

    Attributes:
        weights: of the granularities, in the order of ``Queries.bits``; the largest is 1.
        rrf_k: the constant of rank fusion; score fusion does without.
    """

    weights: tuple[float, ...]
    rrf_k: int

    @classmethod
    def of(cls, weights: tuple[float, ...], rrf_k: int) -> Setting:
        """The setting that ranks alike and has 1 for its largest weight, rounded to what people can read."""
        top = max(weights)
        return cls(tuple(round(weight / top, 3) for weight in weights), rrf_k)


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries, their distances to all candidates, and what they want.

    Attributes:
        distances: granularity -> (q, n) unsigned integers, Hamming distances in bits.
        bits: granularity -> code length.
        relevance: (q, n) uint8: 2 wanted, 1 same group (counts for ``ndcg`` only), 0 not, 255 no candidate, like the
            query itself. Every query wants something.
    """

    distances: Mapping[str, NDArray[np.unsignedinteger[Any]]]
    bits: Mapping[str, int]
    relevance: Relevance
    _ranks: dict[str, Scores] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, bits in self.bits.items():
            # The ranks in a row depend on the distance alone: one entry for each distance that there can be.
            table = np.empty((len(self.relevance), bits + 1), np.float32)
            for row, own, grades in zip(table, self.distances[name], self.relevance, strict=True):
                counts = np.bincount(own[grades != NOT_A_CANDIDATE], minlength=bits + 1)
                row[:] = np.cumsum(counts) - counts + (counts + 1) / 2
            self._ranks[name] = table

    def __len__(self) -> int:
        return len(self.relevance)

    def scores(self, setting: Setting, method: Method) -> Iterator[Scores]:
        """Fuse, as ``mg_milvus.search.fusion.fuse`` does with all images as candidates.

        Yields:
            For each query (n,) float32, higher is nearer; what is no candidate has -1.
        """
        used = self._used(setting)
        tables: dict[str, Scores] = {}
        for name, weight in used.items():
            if method == "rank":
                tables[name] = np.float32(weight) / (np.float32(setting.rrf_k) + self._ranks[name])
            else:
                line = weight * (1 - np.arange(self.bits[name] + 1) / self.bits[name])
                tables[name] = np.broadcast_to(line.astype(np.float32), (len(self), len(line)))
        for query, grades in enumerate(self.relevance):
            fused = sum(table[query][self.distances[name][query]] for name, table in tables.items())
            yield np.where(grades == NOT_A_CANDIDATE, _LAST, fused)

    def scores_at(self, setting: Setting, method: Method, depth: int) -> Iterator[Floats]:
        """Like ``scores``, with ``depth`` candidates of each granularity and ranks in their union, as a query has.

        The other images follow behind, in the order of ``scores``: whoever asks for more results gets more depth.
        """
        used = self._used(setting)
        for query, whole in enumerate(self.scores(setting, method)):
            known = np.flatnonzero(self.relevance[query] != NOT_A_CANDIDATE)
            own = {name: self.distances[name][query] for name in used}
            nearest = [known[np.argsort(values[known], kind="stable")[:depth]] for values in own.values()]
            union = np.unique(np.concatenate(nearest))
            row = whole.astype(np.float64)
            if method == "rank":
                ranks = {name: shared_ranks(values[union]) for name, values in own.items()}
                row[union] = sum(weight / (setting.rrf_k + ranks[name]) for name, weight in used.items())
            row[union] += len(used)  # above all others, for no weight and no part of a score is more than 1
            yield row

    def _used(self, setting: Setting) -> dict[str, float]:
        return {name: weight for name, weight in zip(self.bits, setting.weights, strict=True) if weight > 0}


def goals_of(goal: Goal, scores: Iterable[Scores | Floats], relevance: Relevance) -> Floats:
    """The goal of every query: (q,) from 0 to 1, as an expectation over the orders inside ties.

    ``metrics`` takes the precision of mAP at a tie's end instead. That is no goal to learn by: it grows where
    ties are broken by noise.
    """
    measure = {"map": _average_precision, "recall@1": _first, "ndcg": _ndcg}[goal]
    return np.array([measure(row, grades) for row, grades in zip(scores, relevance, strict=True)])


def _average_precision(scores: Scores | Floats, grades: Relevance) -> float:
    """Expected over the orders inside ties (McSherry and Najork, ECIR 2008)."""
    ordered, wanted = np.sort(scores), np.sort(scores[grades == SAME_CLASS])

    def above(values: NDArray[Any], side: Literal["left", "right"]) -> NDArray[np.intp]:
        """How many are above each wanted one; from the left, its own tie is counted too."""
        return len(values) - np.searchsorted(values, wanted, side=side)

    before, found_before = above(ordered, "right"), above(wanted, "right")
    size, found = above(ordered, "left") - before, above(wanted, "left") - found_before
    harmonic = _harmonic(len(scores))
    inverse = harmonic[before + size] - harmonic[before]
    crowding = (found - 1) / np.maximum(size - 1, 1)
    precision = (found_before + 1) * inverse + crowding * (size - (before + 1) * inverse)
    return float(np.mean(precision / size))


@lru_cache(maxsize=2)
def _harmonic(count: int) -> Floats:
    """Harmonic numbers 0, 1, 1 + 1/2 ...: (count + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, count + 1))])


def _first(scores: Scores | Floats, grades: Relevance) -> float:
    return float(np.mean(grades[scores == scores.max()] == SAME_CLASS))


def _ndcg(scores: Scores | Floats, grades: Relevance) -> float:
    gains = np.select([grades == SAME_CLASS, grades == SAME_GROUP], [CLASS_GAIN, GROUP_GAIN], 0)
    count = min(NDCG_AT, len(scores))
    discounts = 1 / np.log2(np.arange(2, count + 2))
    first = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    first = first[np.argsort(-scores[first], kind="stable")]
    _, tie = np.unique(-scores[first], return_inverse=True)
    mean = np.bincount(tie, gains[first]) / np.bincount(tie)
    return float(mean[tie][:count] @ discounts) / float(np.sort(gains)[::-1][:count] @ discounts)


RRF_KS = (5, 20, 60, 200, 1000)
DEPTHS = (50, 100, 200, 500, 1000)
DEPTH_LOSS = 0.001
"""So much of the goal, or a standard error of the difference if that is more, is noise where depths are compared."""
QUERIES_PER_FOLD = 2
"""With fewer there is nothing to tell chance from gain by."""

_STAGES = ((0.0, 0.25, 4.0), (0.5, 2.0), (0.8, 1.25))
"""What one weight is multiplied by, coarse steps first."""
_STEP = 1e-4
"""A step that gains less is not worth it."""
_SEED = 7


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was learned, and what it is worth on queries that it was not learned from.

    Attributes:
        goal: see ``GOALS``.
        queries: asked.
        candidates: images that a query chooses from.
        weights: granularity -> learned weight; the largest is 1.
        rrf_k: learned; as before in score fusion.
        depth: the smallest of ``DEPTHS`` that orders the results as well as the best of them, within noise; as before
            where there are too few images to tell.
        equal: the goal with equal weights and the old rrf_k.
        before: the goal with the old weights and rrf_k.
        tuned: mean over the folds, each with weights learned from the others.
        gains: ``tuned`` less ``equal``, fold by fold.
    """

    goal: Goal
    queries: int
    candidates: int
    weights: dict[str, float]
    rrf_k: int
    depth: int
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
        return _standard_error(np.array(self.gains))

    @property
    def better(self) -> bool:
        """Whether the gain over equal weights is beyond one standard error, and the old weights do not do as well."""
        return self.gain > max(self.standard_error, _STEP) and self.tuned > self.before


def folds_of(strata: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Deal queries into folds of equal size, each stratum evenly: (q,) from 0 to folds - 1; always the same.

    Args:
        strata: (q,) the class of each query.
        folds: how many.

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
    dealt = np.empty(len(strata), np.int64)
    dealt[by_stratum] = np.arange(len(strata)) % folds
    return dealt


def learn(
    queries: Queries,
    goal: Goal,
    folds: NDArray[np.int64],
    *,
    weights: Mapping[str, float],
    rrf_k: int,
    depth: int,
    method: Method = "rank",
) -> Tuning:
    """Learn weights, ``rrf_k`` and ``depth``, and what they are worth on queries they were not learned from.

    Args:
        queries: at least two granularities.
        goal: what to make large.
        folds: (q,) as ``folds_of`` deals them.
        weights: granularity -> weight so far.
        rrf_k: so far; equal weights are tried with it.
        depth: so far.
        method: of the fusion; the method itself stays.
    """
    trials = _Trials(queries, goal, method)
    equal = Setting((1.0,) * len(queries.bits), rrf_k)
    before = Setting.of(tuple(weights[name] for name in queries.bits), rrf_k)
    numbers = range(int(folds.max()) + 1)
    unseen = [trials.of(trials.best(equal, folds != number))[folds == number].mean() for number in numbers]

    def over_folds(values: Floats) -> Floats:
        return np.array([values[folds == number].mean() for number in numbers])

    learned = trials.best(equal, np.ones(len(queries), bool))
    return Tuning(
        goal=goal,
        queries=len(queries),
        candidates=queries.relevance.shape[1],
        weights=dict(zip(queries.bits, learned.weights, strict=True)),
        rrf_k=learned.rrf_k,
        depth=_depth(queries, goal, method, learned, over_folds) or depth,
        equal=float(over_folds(trials.of(equal)).mean()),
        before=float(over_folds(trials.of(before)).mean()),
        tuned=float(np.mean(unseen)),
        gains=tuple((np.array(unseen) - over_folds(trials.of(equal))).tolist()),
    )


class _Trials:
    """Every setting is tried once, on all queries, and remembered."""

    def __init__(self, queries: Queries, goal: Goal, method: Method) -> None:
        self._queries, self._goal, self._method = queries, goal, method
        self._tried: dict[Setting, Floats] = {}

    def of(self, setting: Setting) -> Floats:
        """The goal of every query: (q,)."""
        if setting not in self._tried:
            scores = self._queries.scores(setting, self._method)
            self._tried[setting] = goals_of(self._goal, scores, self._queries.relevance)
        return self._tried[setting]

    def best(self, start: Setting, chosen: NDArray[np.bool_]) -> Setting:
        """The best setting for the chosen queries that steps uphill lead to; of equals the nearest to equal weights.

        A step has to gain more than its standard error over these queries.
        """
        here = start
        for factors in _STAGES:
            while True:
                steps = sorted(_steps(here, factors, self._method), key=_unevenness)
                place = int(np.argmax([round(self.of(step)[chosen].mean(), 9) for step in steps]))
                gains = (self.of(steps[place]) - self.of(here))[chosen]
                if gains.mean() <= max(_standard_error(gains), _STEP):
                    break
                here = steps[place]
        return here


def _steps(setting: Setting, factors: tuple[float, ...], method: Method) -> set[Setting]:
    """The settings that one step leads to: another weight, or another ``rrf_k``."""
    found = {Setting(setting.weights, rrf_k) for rrf_k in RRF_KS if method == "rank"}
    for place, weight in enumerate(setting.weights):
        values = [weight * factor for factor in factors] if weight else [0.25, 1.0]
        changed = [(*setting.weights[:place], value, *setting.weights[place + 1 :]) for value in values]
        found |= {Setting.of(weights, setting.rrf_k) for weights in changed if any(weights)}
    return found - {setting}


def _unevenness(setting: Setting) -> tuple[float, tuple[float, ...], int]:
    """0 for equal weights; then what makes the order of settings the same in every run."""
    shares = np.array(setting.weights) / sum(setting.weights)
    return round(float(np.abs(shares - 1 / len(shares)).sum()), 9), setting.weights, setting.rrf_k


def _depth(
    queries: Queries, goal: Goal, method: Method, setting: Setting, over_folds: Callable[[Floats], Floats]
) -> int | None:
    """The smallest of ``DEPTHS`` that is as good as the best, within noise; None: too few images to tell."""
    # A depth that takes most of the images says nothing about larger collections.
    depths = [depth for depth in DEPTHS if 2 * depth <= queries.relevance.shape[1]]
    reached = [
        over_folds(goals_of(goal, queries.scores_at(setting, method, depth), queries.relevance)) for depth in depths
    ]
    if not reached:
        return None
    best = max(reached, key=np.mean)
    return next(
        depth
        for depth, values in zip(depths, reached, strict=True)
        if (best - values).mean() <= max(_standard_error(best - values), DEPTH_LOSS)
    )


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


QUERIES = 1000
_TUNING_SEED = 7
_CELLS = 250_000_000
"""Distances held at once, 2 bytes each; of very many images fewer are asked for."""
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
        encoder: what encodes the images; default: the collection's encoder, or else the schema's.
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
        folder: images, encoded as the collection's (or, without one, a new collection's) would be. They need not be
            in the collection.
        target: the schema and the collection.
        labels: a table of labels; default: the folders are the labels.
        pairs: a table of wanted pairs instead of labels, see ``wanted_by_pairs``.
        goal: one of ``GOALS``.
        folds: of the cross-validation over queries.
        queries: at most so many images ask, drawn at random.
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
    with closing(_Place(target)) as place:
        before = place.schema  # refused before the long work, like too few queries
        if pairs is None:
            wanted = wanted_by_labels(folder, labels, failures.append)
        else:
            wanted = wanted_by_pairs(folder, pairs, failures.append)
        folds_of(np.zeros(min(len(wanted.queries()), queries), np.int64), folds)
        encoded = encode_labelled(wanted.labelled, place.encoder, settings, progress)
        codes = place.codes(encoded, wanted.labelled.images)
        wanted = wanted.subset(np.flatnonzero(~encoded.broken))
        tuning = learn_from(wanted, codes, before, goal, folds=folds, queries=queries)
        new, file, collection = place.write(tuning) if tuning.better else (before, None, None)
        return TuneReport(tuning, before, new, file, collection, (*failures, *encoded.failures))


def learn_from(
    wanted: Wanted, codes: Mapping[str, Codes], schema: Schema, goal: Goal, *, folds: int, queries: int = QUERIES
) -> Tuning:
    """Learn from codes that are there already.

    Args:
        wanted: what each image should find.
        codes: granularity -> (n, bits / 8) uint8, in the order of the images.
        schema: with the weights and the fusion so far.
        goal: one of ``GOALS``.
        folds: of the cross-validation.
        queries: at most so many images ask.

    Raises:
        QueryError: too few images want something.
    """
    asking = wanted.queries()
    cells = len(wanted.labelled) * len(schema.bits)
    limit = min(queries, max(_FEWEST_QUERIES, _CELLS // max(cells, 1)))
    chosen = np.sort(np.random.default_rng(_TUNING_SEED).permutation(asking)[:limit])
    dealt = folds_of(wanted.strata(chosen), folds)
    distances = {name: _distances(codes[name], chosen) for name in schema.bits}
    method: Method = "score" if schema.fusion.method == "score" else "rank"
    return learn(
        Queries(distances, schema.bits, wanted.relevance(chosen)), goal, dealt, weights=schema.weights,
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

    def codes(self, encoded: Encoded, images: Sequence[Found]) -> dict[str, Codes]:
        """Codes as the collection has them, or as a first ingest of these images would make them."""
        encoder = self.encoder
        if self._connection is None:
            encoder, _ = with_heads(
                encoder, encoded.features, encoded.labelled.images, images, self.schema.bits,
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
