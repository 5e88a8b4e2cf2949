"""``Searcher``: codes and a checked query -> hits. It retrieves candidates, fuses their rankings, and makes hits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import pack
from mg_milvus.errors import QueryError
from mg_milvus.records import VERDICTS, Hit
from mg_milvus.results import Hits
from mg_milvus.schema.models import FINE, REGIONS, TEXT
from mg_milvus.schema.tags import readable, with_user_tags
from mg_milvus.search.chance import FEWEST
from mg_milvus.search.explain import Contribution, Explanation, FieldResult, Trace
from mg_milvus.search.fusion import Fused, Fusion, fuse, lead, lead_score, shared_ranks
from mg_milvus.search.query import MAX_DEPTH
from mg_milvus.search.retrieve import Candidates, SearchRequest, differing_bits, exact_distances, retrieve, stacked
from mg_milvus.search.verdicts import NEIGHBOURS, Judgement, judge, remark
from mg_milvus.store.base import HybridSearch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import QueryCodes, RealCodes
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.chance import Chance
    from mg_milvus.search.query import Query
    from mg_milvus.store.base import Row, Store


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Everything that a search with one query image returns.

    Attributes:
        query: the checked query.
        hits: best first.
        candidates: what they were chosen from; None when the server fused.
        judgement: what the candidates are to the query image; None where chance is not known, and without candidates.
        rows: candidate's id -> row without codes: of ``search_all_granularities`` those of all, else of the hits.
    """

    query: Query
    hits: Hits
    candidates: Candidates | None
    judgement: Judgement | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Ranking:
    """The order of one query image's candidates.

    Attributes:
        candidates: all of them.
        used: (n) which of them take part.
        fused: of these n.
        judgement: on all of them.
    """

    candidates: Candidates
    used: Sequence[int]
    fused: Fused
    judgement: Judgement | None

    def ids(self) -> list[str]:
        """(n) ids, best first."""
        return [self.candidates.ids[self.used[i]] for i in self.fused.order.tolist()]


class Searcher:
    """Searches one collection. Its methods may be called from several threads at once."""

    def __init__(self, store: Store, schema: Schema, chance: Chance | None = None) -> None:
        """Search a store.

        Args:
            store: holds the collection.
            schema: the collection's.
            chance: the distances of random pairs; None: they are not known, and hits have no verdicts.
        """
        self._store, self._schema, self._chance = store, schema, chance

    def search(self, codes: QueryCodes, query: Query, exclude: Sequence[str] = ()) -> list[Hits]:
        """Search with n query images.

        Args:
            codes: see ``QueryCodes``, for every granularity of the schema; of regions, where the query has them.
            query: the checked options.
            exclude: ids to leave out of the results.

        Returns:
            At most ``k`` hits for each query image, best first.
        """
        return [result.hits for result in self._search(SearchRequest(codes, query, exclude))]

    def search_one(self, codes: QueryCodes, query: Query, exclude: Sequence[str] = ()) -> SearchResult:
        """Search with one query image; arguments as for ``search``."""
        return self._search(SearchRequest(codes, query, exclude))[0]

    def search_together(
        self, terms: Sequence[tuple[QueryCodes, float]], query: Query, exclude: Sequence[str] = ()
    ) -> Hits:
        """Search with several query images at once, and words: one ranking over images and granularities.

        The candidates are those of the images with a positive weight, and of the words. All have their exact distances
        to every image, and the score is the sum over images and granularities of weight of the image * weight of the
        granularity * the fusion's term; it does not depend on the order of the images. Words are one more term, with
        their own weight * that of all images with a positive one. With the profile auto, what stands out as the same
        image as one of them comes first.

        Args:
            terms: codes of one image each, and its weight; one below 0 pushes down what is near to it, and without
                words at least one is above 0.
            query: the checked options, without regions; not fused by the server.
            exclude: ids to leave out of the results.

        Returns:
            At most ``k`` hits, best first, with the distances and ranks of the nearest image with a positive weight,
            and of the words.
        """
        ordered = sorted(terms, key=lambda term: (*(term[0][name].tobytes() for name in self._schema.bits), term[1]))
        codes = {name: np.concatenate([own[name] for own, _ in ordered]) for name in self._schema.bits}
        wanted = [i for i, (_, weight) in enumerate(ordered) if weight > 0]
        sought = {name: values[wanted] for name, values in codes.items()} if wanted else {}
        request = SearchRequest(sought, query if wanted else query.text_only(), exclude)
        retrieved = self._retrieve(request)
        codes_of = {key: own for each in retrieved for key, own in zip(each.ids, each.codes, strict=True)}
        weighted = {
            key
            for each in retrieved
            for key, names in zip(each.ids, each.retrieved_by, strict=True)
            if not query.weights.keys().isdisjoint(names)
        }
        # Behind them stands what only verdicts need.
        ids, count, bits = sorted(codes_of, key=lambda key: key not in weighted), len(weighted), self._schema.bits
        stored = stacked([codes_of[key] for key in ids], bits)
        distances = [exact_distances(stored, codes, i) for i in range(len(ordered))]
        differing = [differing_bits(stored, codes, i) for i in range(len(ordered))]
        compared = differing if query.fusion == "chance" else distances
        names = {(i, name): f"{i} {name}" for i in range(len(ordered)) for name in bits}
        ranked = {key: compared[i][name] for (i, name), key in names.items()}
        weights = {key: ordered[i][1] * query.weights.get(name, 0.0) for (i, name), key in names.items()}
        of_images = sum(ordered[i][1] for i in wanted)
        said: dict[str, NDArray[Any]] = {}
        if query.words is not None:
            of_words = {
                key: pair
                for each in retrieved
                for key, *pair in zip(each.ids, each.distances[TEXT], each.differing[TEXT], strict=True)
            }
            ranked[TEXT], said[TEXT] = np.array([of_words[key] for key in ids], np.float64).reshape(len(ids), 2).T
            weights[TEXT] = query.weights[TEXT] * (of_images or 1.0)
        fused = fuse(
            ids[:count], {key: values[:count] for key, values in ranked.items()}, weights=weights,
            bits={key: bits[name] for (_, name), key in names.items()} | query.max_distances(self._schema),
            fusion=self._fusion(query, {key: name for (_, name), key in names.items()}),
        )  # fmt: skip
        hits = []
        nearest_of = {name: np.min([differing[i][name] for i in wanted], axis=0) for name in bits if wanted}
        judgement = self._judge(nearest_of) if wanted else None
        if query.auto and judgement is not None:
            best = {name: np.min([fused.ranks[names[i, name]] for i in wanted], axis=0) for name in judgement.leading}
            total = sum(query.weights.values()) * of_images
            leading = {name: own[:count] for name, own in judgement.leading.items()}
            fused = lead(replace(fused, ranks=fused.ranks | best), leading, total, query.rrf_k)
        order = fused.order.tolist()
        rows = self._rows([[ids[place] for place in order]], query.k)
        there = (place for place in order if ids[place] in rows)
        for rank, place in enumerate(islice(there, query.k), start=1):
            row = rows[ids[place]]
            nearest = {
                name: min(wanted, key=[own[name][place] for own in compared].__getitem__) for name in bits if wanted
            }
            bits_off = {name: int(differing[i][name][place]) for name, i in nearest.items()}
            ranks = {name: float(fused.ranks[names[i, name]][place]) for name, i in nearest.items()}
            hits.append(Hit(
                rank, row.id, row.path, float(fused.scores[place]),
                bits_off | {name: round(float(values[place])) for name, values in said.items()},
                ranks | {name: float(fused.ranks[name][place]) for name in said},
                _row_fields(row), **_verdict(judgement, place),
            ))  # fmt: skip
        return self._answer(hits, query)

    def explain(
        self, codes: QueryCodes, query: Query, exclude: Sequence[str] = (), trace: Trace | None = None
    ) -> Explanation:
        """Search with one query image, and explain the scores; arguments as for ``search``.

        ``trace`` may already hold the steps before the search, such as encoding.
        """
        request = SearchRequest(codes, query, exclude, trace or Trace())
        (result,) = self._search(request)
        return _explanation(result, request, query.max_distances(self._schema))

    def search_all_granularities(self, codes: QueryCodes, query: Query, exclude: Sequence[str] = ()) -> SearchResult:
        """Search with one query image, and return the candidates of every granularity, whatever its weight.

        They can be ranked again with any weights without another search. Regions are searched when
        the query has them. Without codes these are the candidates of the words alone. Arguments as for ``search``.

        Raises:
            QueryError: the query leaves the fusion to the server.
        """
        if query.fusion == "server":
            raise QueryError("candidates need fusion 'rank' or 'score', got 'server': query with one of the two")
        names = [*self._schema.bits, *([REGIONS] if query.regions else [])]
        every = replace(query, weights=dict.fromkeys(names, 1.0)) if codes else query
        (candidates,) = retrieve(self._store, self._schema, SearchRequest(codes, every, exclude))
        rows = self._store.fetch(candidates.ids)
        ranking = self._rank(candidates, query)
        return SearchResult(query, self._hits(ranking, query, rows), candidates, ranking.judgement, rows)

    def _search(self, request: SearchRequest) -> list[SearchResult]:
        """Retrieve and fuse, for each query image."""
        query = request.query
        if query.needs_chance and self._chance is None:
            raise QueryError(
                "fusion 'chance', min and max_chance need what an ingest measures of at least "
                f"{FEWEST} images, and this collection lacks it: query without them, or run mgm ingest again"
            )
        if query.fusion == "server":
            return [SearchResult(query, hits, None) for hits in self._hybrid_search(request)]
        candidates = self._retrieve(request)
        with request.trace.timed("fusion"):
            rankings = [self._rank(own, query) for own in candidates]
        with request.trace.timed("fetch"):
            rows = self._rows([own.ids() for own in rankings], query.k)
        return [
            SearchResult(query, self._hits(own, query, rows), own.candidates, own.judgement, rows) for own in rankings
        ]

    def _retrieve(self, request: SearchRequest) -> list[Candidates]:
        """The candidates of each query image, and where hits get verdicts the nearest on ``fine``, whatever its weight.

        What a hit is depends on these, and so not on the weights. Without a weight they take no part in the ranking.
        """
        query = request.query
        if self._chance is not None and FINE in request.codes and FINE not in query.weights:
            request = replace(request, query=replace(query, weights={**query.weights, FINE: 0.0}))
        return retrieve(self._store, self._schema, request)

    def _rows(self, orders: Sequence[Sequence[str]], count: int) -> dict[str, Row]:
        """The rows, without codes, of the first ``count`` ids of each order that have one.

        An image that was deleted since it was retrieved has none, and the next one takes its place.
        """
        rows: dict[str, Row] = {}
        gone: set[str] = set()
        while wanted := dict.fromkeys(
            key for own in orders for key in islice((i for i in own if i not in gone), count) if key not in rows
        ):
            rows |= self._store.fetch(list(wanted))
            gone |= wanted.keys() - rows.keys()
        return rows

    def _rank(self, candidates: Candidates, query: Query) -> _Ranking:
        """Order those candidates that a granularity with a weight retrieved, or that lead."""
        names = [*self._schema.bits, *([REGIONS] if query.regions == "contains" else [])]
        # Of words without an image there are no distances.
        distances = {name: candidates.differing[name] for name in names if name in candidates.differing}
        fine = candidates.distances.get(FINE)
        judgement = self._judge(distances, detail=REGIONS in query.weights, fine=fine) if distances else None
        leading = judgement.leading if query.auto and judgement is not None else {}
        used = [
            i
            for i, names in enumerate(candidates.retrieved_by)
            if not query.weights.keys().isdisjoint(names) or any(own[i] for own in leading.values())
        ]
        # Chance is that of Hamming distances.
        compared = candidates.differing if query.fusion == "chance" else candidates.distances
        fused = fuse(
            [candidates.ids[i] for i in used], {name: values[used] for name, values in compared.items()},
            bits=query.max_distances(self._schema), weights=query.weights, fusion=self._fusion(query),
        )  # fmt: skip
        if leading:
            chosen = {name: own[used] for name, own in leading.items()}
            fused = lead(fused, chosen, sum(query.weights.values()), query.rrf_k)
        return _Ranking(candidates, used, fused, judgement)

    def _judge(
        self, distances: Mapping[str, NDArray[Any]], *, detail: bool = False, fine: NDArray[Any] | None = None
    ) -> Judgement | None:
        return None if self._chance is None else judge(distances, self._chance, detail=detail, fine=fine)

    def _fusion(self, query: Query, names: Mapping[str, str] | None = None) -> Fusion:
        """The fusion of a query; ``names``: what the granularities are called in it -> granularity."""
        if query.fusion != "chance" or self._chance is None:
            return Fusion("score" if query.fusion == "score" else "rank", query.rrf_k)
        counts = self._chance.counts
        named = counts if names is None else {key: counts[name] for key, name in names.items()}
        return Fusion("chance", query.rrf_k, replace(self._chance, counts=named))

    def _answer(self, hits: Sequence[Hit], query: Query) -> Hits:
        """The hits that ``min`` and ``max_chance`` let pass, and a remark where none is related."""
        least = len(VERDICTS) if query.least is None else VERDICTS.index(query.least)
        passed = [
            hit
            for hit in hits
            if hit.verdict is None
            or (VERDICTS.index(hit.verdict) <= least and _smallest(hit, query) <= query.max_chance)
        ]
        # Of the regions, where they are what is asked for, nobody knows what chance looks like.
        said = "" if REGIONS in query.weights else remark([hit.verdict for hit in hits])
        if hits and not passed:
            said = said.partition(";")[0] or "no hit is near enough"
            said += "; without min and max_chance the nearest are shown"
        said = "; ".join(filter(None, (said, query.note)))
        return Hits(passed, query.max_distances(self._schema), said)

    def _hits(self, ranking: _Ranking, query: Query, rows: Mapping[str, Row]) -> Hits:
        """The best ``k`` of a ranking that have a row."""
        candidates, fused, judgement = ranking.candidates, ranking.fused, ranking.judgement
        hits: list[Hit] = []
        for i in fused.order.tolist():
            place = ranking.used[i]
            if len(hits) == query.k:
                break
            if (row := rows.get(candidates.ids[place])) is None:
                continue
            verdict = _verdict(judgement, place)
            # Searched without a weight, the regions say something about the image only that stands out on them.
            names = [n for n in fused.ranks if n != REGIONS or REGIONS in (*query.weights, verdict.get("lead"))]
            hits.append(Hit(
                len(hits) + 1, row.id, row.path, float(fused.scores[i]),
                {name: round(float(candidates.differing[name][place])) for name in names},
                {name: float(fused.ranks[name][i]) for name in names},
                _row_fields(row), candidates.box(row) if REGIONS in names else None, **verdict,
            ))  # fmt: skip
        return self._answer(hits, query)

    def _hybrid_search(self, request: SearchRequest) -> list[Hits]:
        """Let the server fuse, then compute the exact distances of its results; ranks are among these results."""
        codes, query, trace = request.codes, request.query, request.trace
        with trace.timed("search"):
            k = min(query.k + len(request.exclude), MAX_DEPTH)
            search = HybridSearch(query.weights, k, query.depth, query.rrf_k, query.where)
            results = self._store.hybrid({name: pack(_whole(codes[name])) for name in query.weights}, search)
        bits = self._schema.bits
        near: list[list[str]] = [[] for _ in results]
        with trace.timed("fetch"):
            if self._chance is not None and FINE in bits:  # what a hit is depends on them
                count = NEIGHBOURS + len(request.exclude)
                found = self._store.nearest(FINE, pack(_whole(codes[FINE])), count, query.where)
                near = [list(own.ids) for own in found]
            keys = [
                key for own, others in zip(results, near, strict=True) for key in (*(key for key, _ in own), *others)
            ]
            rows = self._store.fetch(list(dict.fromkeys(keys)), tuple(bits))
        exclude, all_hits = set(request.exclude), []
        for i, result in enumerate(results):
            scores = {key: score for key, score in result if key in rows and key not in exclude}
            own = [rows[key] for key in scores][: query.k]
            known = {*scores, *exclude}
            others = [rows[key] for key in list(scores)[query.k :]]
            others += [rows[key] for key in near[i] if key in rows and key not in known]
            distances = differing_bits(stacked([row.codes for row in (*own, *others)], bits), codes, i)
            ranks = {name: shared_ranks(values[: len(own)]) for name, values in distances.items()}
            judgement = self._judge(distances)
            hits = [
                Hit(
                    place + 1, row.id, row.path, float(scores[row.id]),
                    {name: int(values[place]) for name, values in distances.items()},
                    {name: float(values[place]) for name, values in ranks.items()},
                    _row_fields(row), **_verdict(judgement, place),
                )
                for place, row in enumerate(own)
            ]  # fmt: skip
            all_hits.append(self._answer(hits, query))
        return all_hits


def _whole(codes: RealCodes) -> RealCodes:
    """The codes (n, bits) of the whole images, without views."""
    return codes if codes.ndim == 2 else codes[:, 0]


def _verdict(judgement: Judgement | None, place: int) -> dict[str, Any]:
    """What a hit has of the judgement on its query's candidates."""
    return {} if judgement is None else judgement.of(place)


def _smallest(hit: Hit, query: Query) -> float:
    """The chance on the granularity of the query where it is smallest; 1 for regions only."""
    return min((chance for name, chance in hit.chance.items() if name in query.weights), default=1.0)


def _row_fields(row: Row) -> dict[str, Any]:
    """The fields of a row that a hit has besides its id and path."""
    return {
        "size": row.size, "mtime_ns": row.mtime_ns, "taken": row.taken, "width": row.width, "height": row.height,
        "content_hash": row.content_hash, "tags": readable(row.tags), **with_user_tags(row.fields),
    }  # fmt: skip


def _explanation(result: SearchResult, request: SearchRequest, bits: Mapping[str, int]) -> Explanation:
    """Explain a result by its candidates and trace; ``bits`` are the largest possible distances."""
    query, hits, candidates, trace = result.query, result.hits, result.candidates, request.trace
    total, exclude = trace.total(), set(request.exclude)
    ids = {
        name: [key for key in own if key not in exclude]
        for name, (_, own) in trace.results.items()
        if name != FINE or FINE in query.weights  # else it was searched for the verdicts
    }
    positions = {name: {key: place for place, key in enumerate(own, 1)} for name, own in ids.items()}
    places = {} if candidates is None else {key: i for i, key in enumerate(candidates.ids)}
    fields = {}
    for name in (name for name in bits if name in query.weights):
        own = [places[key] for key in ids.get(name, ()) if key in places]
        distances = [] if candidates is None else np.rint(candidates.differing[name][own]).astype(int).tolist()
        fields[name] = FieldResult(
            weight=query.weights[name],
            bits=bits[name],
            depth=trace.results[name][0] if name in ids else None,
            candidates=len(ids[name]) if name in ids else None,
            nearest=min(distances, default=None),
            farthest=max(distances, default=None),
            seconds=trace.seconds.get(f"search {name}"),
        )
    exact = {} if candidates is None else candidates.distances
    count = None if candidates is None else len(set().union(*ids.values()) & places.keys())
    contributions = [
        {
            name: Contribution(
                distance,
                positions.get(name, {}).get(hit.id),
                hit.ranks[name],
                _score(hit, name, query, float(exact[name][places[hit.id]]) / bits[name]) if exact else None,
            )
            for name, distance in hit.distances.items()
        }
        for hit in hits
    ]
    return Explanation(
        hits, query, fields, count, contributions,
        trace.seconds, total,
    )  # fmt: skip


def _score(hit: Hit, name: str, query: Query, distance: float) -> float | None:
    """The granularity's term of the fused score; the distance is a share of the largest possible one."""
    weight = query.weights.get(name)
    if query.auto and hit.lead == name:
        own = (weight or 0.0) / (query.rrf_k + hit.ranks[name])
        return own + float(lead_score(name, hit.ranks[name], sum(query.weights.values()), query.rrf_k))
    if weight is None:
        return None
    if query.fusion == "chance":
        return -weight * math.log10(hit.chance[name])
    if query.fusion == "score":
        return weight * (1 - distance)
    return weight / (query.rrf_k + hit.ranks[name])
