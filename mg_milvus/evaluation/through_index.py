"""The same metrics through a real index: ingest the database, run the queries, score the results."""

from __future__ import annotations

import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.config import MilvusConfig
from mg_milvus.errors import QueryError
from mg_milvus.evaluation.metrics import SAME_CLASS, RankingScores, score_rankings
from mg_milvus.evaluation.scoring import FUSED, recipes_of
from mg_milvus.images.discover import text_path
from mg_milvus.index import ImageIndex
from mg_milvus.records import Progress
from mg_milvus.search.query import MAX_DEPTH
from mg_milvus.store.milvus import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Encoder
    from mg_milvus.evaluation.encoded import Setup
    from mg_milvus.evaluation.report import Details
    from mg_milvus.images.discover import Found
    from mg_milvus.records import Hit
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.query import QueryOptions

BATCH = 32
"""Queries in one call."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the collection is created; None: a temporary Milvus Lite file. ``depth``: None for all rows."""

    milvus: MilvusConfig | None = None
    depth: int | None = None


def depth_of(place: Place, rows: int, ks: Sequence[int]) -> int:
    """Candidates to retrieve by each granularity: the depth, at most the rows of the database and what Milvus returns.

    Raises:
        QueryError: that is less than the largest rank to report.
    """
    depth = min(place.depth or rows, rows, MAX_DEPTH)
    if depth < min(max(ks), rows):
        raise QueryError(f"depth is {depth}, expected at least {max(ks)}, the largest rank that is reported")
    return depth


def evaluate_index(
    details: Details,
    database: Sequence[Found],
    setup: Setup,
    place: Place,
    ks: Sequence[int],
) -> dict[str, Any]:
    """Ingest the database into a collection of its own, ask it, score what it returns, and drop it again.

    A query that is itself in the database runs through ``ImageIndex.like``, the others with ``query_many``. Results
    are requested until the tie at the last rank of ``ks`` is whole, so ties count as in memory.

    Args:
        details: of the evaluation in memory.
        database: the images to ingest, in their order.
        setup: the encoder before its heads are fitted, the schema of the collection, settings of the ingest.
        place: where it is made.
        ks: ranks of P@k and R@k.

    Returns:
        ``granularities`` and ``fused``, each name -> ``precision`` and ``recall``; ``depth``; ``same_encoder``, whether
        the ingest fitted the same heads; ``largest_difference`` of a metric from the one in memory.

    Raises:
        QueryError: ``depth`` is smaller than the largest k.
        StoreError: Milvus failed.
    """
    depth = depth_of(place, len(details.database), ks)
    most = min(max(ks), len(details.database))
    metrics: dict[str, Any] = {"depth": depth, "granularities": {}, "fused": {}}
    differences = []
    schema, settings, progress = setup.schema, setup.settings, setup.progress
    with _collection(schema, setup.encoder, place) as index:
        index.ingest(
            *(text_path(found.path) for found in database), batch_size=settings.batch_size, workers=settings.workers,
            max_pixels=settings.max_pixels, progress=progress,
        )  # fmt: skip
        metrics["same_encoder"] = index.info().fingerprint == details.fingerprint
        known: list[tuple[QueryOptions, RankingScores]] = []
        for number, (name, options) in enumerate(_rankings(schema).items()):
            scores = next((found for used, found in known if used == options), None)
            if scores is None:
                report = _reporter(progress, number, len(details.scores), len(details.queries))
                bits = {granularity: codes.shape[1] * 8 for granularity, codes in details.database_codes.items()}
                ranking = _IndexRanking(index, options | {"depth": depth}, bits, most)
                blocks = _blocks(ranking, details, report)
                scores = score_rankings(blocks, ks=ks, relevant_from=SAME_CLASS)
                known.append((options, scores))
            part, plain = ("fused", name.removeprefix(FUSED)) if name.startswith(FUSED) else ("granularities", name)
            in_memory = details.scores[name].ranking
            metrics[part][plain] = {}
            for metric in ("precision", "recall"):
                values = getattr(scores, metric)
                metrics[part][plain][metric] = {str(k): round(value, 6) for k, value in values.items()}
                differences += [abs(value - getattr(in_memory, metric)[k]) for k, value in values.items()]
    metrics["largest_difference"] = round(max(differences), 6)
    return metrics


@contextmanager
def _collection(schema: Schema, base: Encoder, place: Place) -> Iterator[ImageIndex]:
    """An index on a collection that is gone afterwards, whatever happens."""
    name = f"mgm_eval_{uuid.uuid4().hex[:12]}"
    schema = schema.model_copy(update={"collection": name})
    with tempfile.TemporaryDirectory(prefix="mgm-eval-") as folder:
        config = replace(place.milvus or MilvusConfig(str(Path(folder) / "eval.db")), collection=name)
        try:
            with ImageIndex.from_config(config, schema, base) as index:
                yield index
        finally:
            store = open_store(config)
            try:
                store.drop()
            finally:
                store.close()


def _rankings(schema: Schema) -> dict[str, QueryOptions]:
    """Name, as in the scores -> how to ask."""
    found: dict[str, QueryOptions] = {name: {"weights": {name: 1.0}, "fusion": "rank"} for name in schema.bits}
    for name, recipe in recipes_of(schema).items():
        found[FUSED + name] = {"weights": recipe.weights, "fusion": recipe.method}
    return found


@dataclass(frozen=True, slots=True)
class _IndexRanking:
    """One ranking of the index. ``bits``: granularity -> code length; ``least``: results that are needed."""

    index: ImageIndex
    options: QueryOptions
    bits: Mapping[str, int]
    least: int

    def position(self, hit: Hit) -> tuple[float, float]:
        """What orders results before their ids do, as in ``fusion.fuse``."""
        weights = sorted((self.options["weights"] or {}).items())
        nearness = sum(weight * (1 - hit.distances[name] / self.bits[name]) for name, weight in weights)
        return round(hit.score, 12), round(nearness, 12)

    def results(self, queries: Sequence[Found], column: Mapping[str, int]) -> list[list[Hit]]:
        """The results of each query, as many as it takes for the tie at rank ``least`` to be whole."""
        depth = self.options.get("depth") or MAX_DEPTH
        k = min(depth, 2 * self.least)
        while True:
            options: QueryOptions = self.options | {"k": k}
            others = [query for query in queries if query.path not in column]
            of_others = iter(self.index.query_many([text_path(query.path) for query in others], **options))
            results: list[list[Hit]] = [
                self.index.like(query.path, **options) if query.path in column else next(of_others) for query in queries
            ]
            cut = any(
                len(hits) == k and self.position(hits[-1]) == self.position(hits[self.least - 1]) for hits in results
            )
            if not cut or k == depth:
                return results
            k = min(depth, 2 * k)


def _blocks(
    ranking: _IndexRanking, details: Details, report: Callable[[int], None]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
    """Results of the index as distances: the number of the tie, and one large number for what it did not return."""
    column = {found.path: place for place, found in enumerate(details.database)}
    for start in range(0, len(details.queries), BATCH):
        part = slice(start, min(start + BATCH, len(details.queries)))
        results = ranking.results(details.queries[part], column)
        distances = np.full((len(results), len(column)), len(column), np.int32)
        for own, hits in zip(distances, results, strict=True):
            for number, (_, tied) in enumerate(groupby(hits, key=ranking.position)):
                own[[column[hit.path] for hit in tied]] = number
        report(part.stop)
        yield distances, details.relevance_of(part)


def _reporter(
    progress: Callable[[Progress], None] | None, number: int, rankings: int, queries: int
) -> Callable[[int], None]:
    total = rankings * queries
    return lambda done: (
        progress(Progress("querying the index", number * queries + done, total, 0)) if progress else None
    )
