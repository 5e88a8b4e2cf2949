"""Ask a store: options -> a checked question -> candidates of every field -> one ranking -> hits."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, cast, get_args

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.errors import QueryError
from mg_milvus.fusion import fuse, shared_ranks
from mg_milvus.hits import Hit
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS, crop, open_picture
from mg_milvus.schema import PROFILES, Schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.encoder import Encoder, Pixels
    from mg_milvus.images.decode import PictureSource
    from mg_milvus.store import Row, Store

Method = Literal["rank", "score", "server"]
_T = TypeVar("_T")
MAX_DEPTH = 16_384
"""What Milvus returns at most for one search."""


class QueryOptions(TypedDict, total=False):
    """How to ask; what is missing or None comes from the collection's schema.

    Attributes:
        k: results returned (10).
        weights: granularity -> weight in the fusion; granularities that are not named are left out.
        profile: named weights instead: category, object, instance or balanced.
        granularity: ask this one only.
        fusion: ``rank``, ``score`` or ``server``. The server's own (hybrid_search) takes one round trip, but ranks a
            picture on those granularities only that found it, breaks ties by its own order, and cannot weigh
            granularities on older servers.
        rrf_k: the constant in weight / (rrf_k + rank).
        depth: candidates asked of each granularity, at least k.
        filter: a Milvus boolean expression on the row's fields.
        crop: (x, y, width, height) in pixels of the upright query picture: ask with this part of it only.
    """

    k: int
    weights: Mapping[str, float] | None
    profile: str | None
    granularity: str | None
    fusion: str | None
    rrf_k: int | None
    depth: int | None
    filter: str | None
    crop: tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class Question:
    """Checked options: see ``QueryOptions``. ``weights`` holds positive weights only."""

    k: int
    weights: Mapping[str, float]
    fusion: Method
    rrf_k: int
    depth: int
    where: str | None

    @classmethod
    def of(cls, schema: Schema, options: QueryOptions) -> Question:
        """Check options against a schema and fill what they leave open.

        Raises:
            QueryError: an option is unknown or out of range.
        """
        unknown = sorted(set(options) - set(QueryOptions.__annotations__))
        if unknown:
            raise QueryError(f"unknown option '{unknown[0]}'{_nearest(unknown[0], QueryOptions.__annotations__)}")
        k = _within("k", options.get("k", 10), MAX_DEPTH)
        default_depth = min(max(schema.fusion.depth, k), MAX_DEPTH)
        depth = _within("depth", _or(options.get("depth"), default_depth), MAX_DEPTH)
        if depth < k:
            raise QueryError(f"depth is {depth} and k is {k}; ask for at least as many candidates as results")
        fusion = _or(options.get("fusion"), schema.fusion.method)
        if fusion not in get_args(Method):
            raise QueryError(f"fusion is '{fusion}', expected {', '.join(get_args(Method))}")
        method = cast("Method", fusion)
        rrf_k = _within("rrf_k", _or(options.get("rrf_k"), schema.fusion.rrf_k), MAX_DEPTH)
        return cls(k, _weights(schema, options), method, rrf_k, depth, options.get("filter") or None)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A query picture in the encoder's size, and the width and height in pixels of the whole picture, upright."""

    pixels: Pixels
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """What one query has to choose from.

    Attributes:
        rows: (n) rows, all different, with their codes.
        distances: granularity -> (n,) int32 Hamming distances in bits, for every granularity of the schema.
        found_by: (n) the granularities that named the row among their nearest.
    """

    rows: Sequence[Row]
    distances: Mapping[str, NDArray[np.int32]]
    found_by: Sequence[tuple[str, ...]]


def prepared(
    encoder: Encoder,
    picture: PictureSource,
    box: tuple[int, int, int, int] | None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Prepared:
    """A query picture, or the part of it in ``box`` (x, y, width, height), ready for the encoder."""
    if box is None:
        decoded = open_picture(picture, least=encoder.side, max_pixels=max_pixels)
        return Prepared(encoder.prepare(decoded.picture), decoded.width, decoded.height)
    decoded = open_picture(picture, max_pixels=max_pixels)
    return Prepared(encoder.prepare(crop(decoded, box)), decoded.width, decoded.height)


def checked_codes(schema: Schema, codes: Mapping[str, bytes | Codes]) -> dict[str, Codes]:
    """Codes of one picture as ``ask`` wants them: granularity -> (1, bits / 8) uint8, for all of the schema.

    Raises:
        QueryError: a granularity is missing, or a code has the wrong length.
    """
    asked: dict[str, Codes] = {}
    for name, bits in schema.bits.items():
        if name not in codes:
            raise QueryError(f"there is no code for '{name}'; give one for each of {', '.join(schema.bits)}")
        value = codes[name]
        code = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value).reshape(-1)
        if code.dtype != np.uint8 or len(code) != bits // 8:
            raise QueryError(f"the code for {name} has {len(code)} {code.dtype}, expected {bits // 8} uint8 bytes")
        asked[name] = code[None]
    return asked


def ask(
    store: Store, schema: Schema, codes: Mapping[str, Codes], question: Question, without: Sequence[str] = ()
) -> list[list[Hit]]:
    """Ask with codes, one list of hits per query, best first.

    Args:
        store: where the collection is.
        schema: the collection's.
        codes: granularity -> (n, bits / 8) uint8, for every granularity of the schema.
        question: how to ask.
        without: ids to leave out of the results.
    """
    if question.fusion == "server":
        return _ask_server(store, schema, codes, question, without)
    return [ranked(found, schema, question) for found in candidates(store, schema, codes, question, without)]


def candidates(
    store: Store, schema: Schema, codes: Mapping[str, Codes], question: Question, without: Sequence[str] = ()
) -> list[Candidates]:
    """What the granularities with a weight find, not ranked yet; one for each query. Arguments as for ``ask``."""
    count = len(next(iter(codes.values())))
    found: list[dict[str, list[str]]] = [{} for _ in range(count)]
    for name in question.weights:
        depth = min(question.depth + len(without), MAX_DEPTH)
        for finders, neighbours in zip(found, store.nearest(name, codes[name], depth, question.where), strict=True):
            for key in neighbours.ids:
                finders.setdefault(key, []).append(name)
    rows = store.fetch(list(dict.fromkeys(key for finders in found for key in finders)), tuple(schema.bits))
    left_out = set(without)
    results = []
    for place, finders in enumerate(found):
        # A row that was deleted between the search and the fetch is no candidate.
        there = [rows[key] for key in finders if key in rows and key not in left_out]
        distances = _distances(there, codes, schema.bits, place)
        results.append(Candidates(there, distances, [tuple(finders[row.id]) for row in there]))
    return results


def ranked(found: Candidates, schema: Schema, question: Question) -> list[Hit]:
    """The best k of the candidates that a granularity with a weight has found, as ``ask`` gives them."""
    kept = [i for i, finders in enumerate(found.found_by) if not question.weights.keys().isdisjoint(finders)]
    rows = [found.rows[i] for i in kept]
    distances = {name: values[kept] for name, values in found.distances.items()}
    fused = fuse(
        [row.id for row in rows], distances,
        bits=schema.bits, weights=question.weights,
        method="score" if question.fusion == "score" else "rank", rrf_k=question.rrf_k,
    )  # fmt: skip
    return _hits(rows, fused.order[: question.k], fused.scores, distances, fused.ranks)


def _ask_server(
    store: Store, schema: Schema, codes: Mapping[str, Codes], question: Question, without: Sequence[str]
) -> list[list[Hit]]:
    answers = store.hybrid(
        {name: codes[name] for name in question.weights}, question.weights,
        k=min(question.k + len(without), MAX_DEPTH), depth=question.depth, rrf_k=question.rrf_k, where=question.where,
    )  # fmt: skip
    rows = store.fetch(list(dict.fromkeys(key for answer in answers for key, _ in answer)), tuple(schema.bits))
    left_out = set(without)
    results = []
    for place, answer in enumerate(answers):
        kept = [(rows[key], score) for key, score in answer if key in rows and key not in left_out][: question.k]
        candidates = [row for row, _ in kept]
        distances = _distances(candidates, codes, schema.bits, place)
        ranks = {name: shared_ranks(values) for name, values in distances.items()}
        scores = np.array([score for _, score in kept])
        results.append(_hits(candidates, range(len(kept)), scores, distances, ranks))
    return results


def _distances(
    rows: Sequence[Row], codes: Mapping[str, Codes], bits: Mapping[str, int], place: int
) -> dict[str, NDArray[np.int32]]:
    """Exact distances of one query to all its candidates: granularity -> (n,)."""
    return {
        name: hamming(
            codes[name][place : place + 1],
            np.frombuffer(b"".join(row.codes[name] for row in rows), np.uint8).reshape(len(rows), bits[name] // 8),
        )[0]
        for name in bits
    }


def _hits(
    rows: Sequence[Row],
    order: Iterable[int] | NDArray[np.intp],
    scores: NDArray[np.float64],
    distances: Mapping[str, NDArray[np.int32]],
    ranks: Mapping[str, NDArray[np.float64]],
) -> list[Hit]:
    return [
        Hit(
            rank, rows[i].id, rows[i].path, float(scores[i]),
            {name: int(values[i]) for name, values in distances.items()},
            {name: float(values[i]) for name, values in ranks.items()},
            {"size": rows[i].size, "mtime_ns": rows[i].mtime_ns, "width": rows[i].width, "height": rows[i].height,
             "content_hash": rows[i].content_hash, **rows[i].fields},
        )
        for rank, i in enumerate(order, start=1)
    ]  # fmt: skip


def _weights(schema: Schema, options: QueryOptions) -> dict[str, float]:
    weights, profile, only = options.get("weights"), options.get("profile"), options.get("granularity")
    if sum(option is not None for option in (weights, profile, only)) > 1:
        raise QueryError("weights, profile and granularity exclude each other; give one of them")
    if only is not None:
        weights = {only: 1.0}
    if profile is not None:
        if profile not in PROFILES:
            raise QueryError(f"unknown profile '{profile}', expected {', '.join(PROFILES)}")
        weights = {name: PROFILES[profile].get(name, weight) for name, weight in schema.weights.items()}
        if not any(weights.values()):
            asked = ", ".join(name for name, weight in PROFILES[profile].items() if weight)
            raise QueryError(
                f"the profile '{profile}' asks {asked}, this collection has {', '.join(schema.bits)}; choose another, "
                "or give weights"
            )
    if weights is None:
        weights = schema.weights
    for name, weight in weights.items():
        if name not in schema.bits:
            raise QueryError(
                f"unknown granularity '{name}'{_nearest(name, schema.bits)}; this collection has "
                f"{', '.join(schema.bits)}"
            )
        if not (isinstance(weight, int | float) and 0 <= weight < float("inf")):
            raise QueryError(f"the weight of {name} is {weight}, expected a number that is 0 or more")
    used = {name: float(weights[name]) for name in schema.bits if weights.get(name, 0) > 0}
    if not used:
        raise QueryError("all weights are 0; give at least one granularity a weight above 0")
    return used


def _within(name: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise QueryError(f"{name} is {value!r}, expected a whole number from 1 to {most}")
    return value


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
