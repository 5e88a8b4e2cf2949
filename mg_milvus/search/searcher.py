"""Ask a store: a checked query -> candidates of every field -> one ranking -> hits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.errors import QueryError
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS, crop, opening
from mg_milvus.records import Hit
from mg_milvus.results import Hits
from mg_milvus.schema.regions import REGIONS, box_of, windows
from mg_milvus.search.explain import Explanation, explained
from mg_milvus.search.fusion import fuse, shared_ranks
from mg_milvus.search.query import MAX_DEPTH, Query
from mg_milvus.search.retrieve import Candidates, Trace, candidates, exact_distances

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from mg_milvus.codes import Codes
    from mg_milvus.encoder.base import Encoder, Pixels
    from mg_milvus.images.decode import Decoded, ImageSource
    from mg_milvus.records import Box
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.query import Regions
    from mg_milvus.store.base import Row, Store


LEAST_DETAIL = 8
"""Pixels that a detail has on each side, at least: less shows nothing that could be found."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A query image, ready to be encoded.

    Attributes:
        pixels: of the whole or of the part that was asked with, in the encoder's size.
        width: of the whole image, upright, in pixels.
        height: of the whole image, upright, in pixels.
        details: what to look for among the regions, as RGB images.
    """

    pixels: Pixels
    width: int
    height: int
    details: Sequence[Image.Image] = ()


def prepared(
    encoder: Encoder,
    image: ImageSource,
    box: Box | None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    regions: Regions | None = None,
) -> Prepared:
    """A query image, or the part of it in ``box`` (x, y, width, height), ready for the encoder.

    With ``regions``, the details come from the box and the encoder sees the whole image.

    Raises:
        ImageError: it cannot be read, or has more than ``max_pixels``.
        QueryError: the box does not lie inside it, or is too small to look for.
    """
    with opening(image, least=None if box else encoder.side, max_pixels=max_pixels) as decoded:
        return _prepared(encoder, decoded, box, regions)


def _prepared(encoder: Encoder, decoded: Decoded, box: Box | None, regions: Regions | None) -> Prepared:
    part = decoded.image if box is None else crop(decoded, box)
    if regions is None:
        return Prepared(encoder.prepare(part), decoded.width, decoded.height)
    width, height = (decoded.width, decoded.height) if box is None else box[2:]
    if min(width, height) < LEAST_DETAIL:
        raise QueryError(
            f"a detail of {width}x{height} pixels shows too little to be found; expected at least {LEAST_DETAIL} "
            "pixels on each side"
        )
    details = [part]
    if regions == "overlap":
        boxes = (box_of(window, *part.size) for window in windows(encoder.regions))
        details = [part.crop((x, y, x + w, y + h)) for x, y, w, h in boxes]
    return Prepared(encoder.prepare(decoded.image), decoded.width, decoded.height, details)


def encoded(encoder: Encoder, images: Sequence[Prepared]) -> dict[str, Codes]:
    """Codes of query images as ``ask`` wants them; (n, details, scales, bits / 8) uint8 under ``regions``."""
    codes = encoder.encode([image.pixels for image in images])
    codes.pop(REGIONS, None)
    if all(image.details for image in images):
        details = encoder.encode_region_images([detail for image in images for detail in image.details])
        codes[REGIONS] = details.reshape(len(images), -1, *details.shape[1:])
    return codes


def checked_codes(schema: Schema, codes: Mapping[str, bytes | Codes]) -> dict[str, Codes]:
    """Codes of one image as ``ask`` wants them: granularity -> (1, bits / 8) uint8, for all of the schema.

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
    store: Store, schema: Schema, codes: Mapping[str, Codes], query: Query, without: Sequence[str] = ()
) -> list[Hits]:
    """Ask with codes, one list of hits per query, best first.

    Args:
        store: where the collection is.
        schema: the collection's.
        codes: granularity -> (n, bits / 8) uint8, for all of the schema; those for regions as ``encoded`` makes them.
        query: how to ask.
        without: ids to leave out of the results.
    """
    if query.fusion == "server":
        return _ask_server(store, schema, codes, query, without, Trace())
    return [ranked(found, schema, query) for found in candidates(store, schema, codes, query, without)]


def explain(
    store: Store, schema: Schema, codes: Mapping[str, Codes], query: Query, trace: Trace,
    without: Sequence[str] = (),
) -> Explanation:  # fmt: skip
    """Ask as ``ask`` does, one query, and tell how the answer came about.

    Args:
        store: as for ``ask``.
        schema: as for ``ask``.
        codes: of one query.
        query: as for ``ask``.
        trace: begun before the query was encoded, so that it knows what that took.
        without: as for ``ask``.
    """
    if query.fusion == "server":
        hits = _ask_server(store, schema, codes, query, without, trace)[0]
        return explained(hits, None, schema, query, trace)
    found = candidates(store, schema, codes, query, without, trace)[0]
    with trace.timed("fusion"):
        hits = ranked(found, schema, query)
    return explained(hits, found, schema, query, trace, without)


def ranked(found: Candidates, schema: Schema, query: Query) -> Hits:
    """The best k of the candidates that a granularity with a weight has found, as ``ask`` gives them."""
    kept = [i for i, finders in enumerate(found.found_by) if not query.weights.keys().isdisjoint(finders)]
    rows = [found.rows[i] for i in kept]
    distances = {name: values[kept] for name, values in found.distances.items()}
    fused = fuse(
        [row.id for row in rows], distances,
        bits=query.largest(schema), weights=query.weights,
        method="score" if query.fusion == "score" else "rank", rrf_k=query.rrf_k,
    )  # fmt: skip
    boxes = [found.boxes[i] for i in kept]
    return Hits(_hits(rows, fused.order[: query.k], fused.scores, distances, fused.ranks, boxes), query.largest(schema))


def _ask_server(
    store: Store, schema: Schema, codes: Mapping[str, Codes], query: Query, without: Sequence[str],
    trace: Trace,
) -> list[Hits]:  # fmt: skip
    trace.plan = ("server", "the server fuses by itself, in one call")
    with trace.timed("search"):
        answers = store.hybrid(
            {name: codes[name] for name in query.weights}, query.weights,
            k=min(query.k + len(without), MAX_DEPTH), depth=query.depth, rrf_k=query.rrf_k,
            where=query.where,
        )  # fmt: skip
    with trace.timed("fetch"):
        rows = store.fetch(list(dict.fromkeys(key for answer in answers for key, _ in answer)), tuple(schema.bits))
    left_out = set(without)
    results = []
    for place, answer in enumerate(answers):
        kept = [(rows[key], score) for key, score in answer if key in rows and key not in left_out][: query.k]
        there = [row for row, _ in kept]
        distances = exact_distances([row.codes for row in there], codes, schema.bits, place)
        ranks = {name: shared_ranks(values) for name, values in distances.items()}
        scores = np.array([score for _, score in kept])
        hits = _hits(there, range(len(kept)), scores, distances, ranks, [None] * len(kept))
        results.append(Hits(hits, query.largest(schema)))
    return results


def _hits(
    rows: Sequence[Row],
    order: Iterable[int] | NDArray[np.intp],
    scores: NDArray[np.float64],
    distances: Mapping[str, NDArray[np.int32]],
    ranks: Mapping[str, NDArray[np.float64]],
    boxes: Sequence[Box | None],
) -> list[Hit]:
    return [
        Hit(
            rank, rows[i].id, rows[i].path, float(scores[i]),
            {name: int(values[i]) for name, values in distances.items()},
            {name: float(values[i]) for name, values in ranks.items()},
            {"size": rows[i].size, "mtime_ns": rows[i].mtime_ns, "width": rows[i].width, "height": rows[i].height,
             "content_hash": rows[i].content_hash, **rows[i].fields},
            boxes[i],
        )
        for rank, i in enumerate(order, start=1)
    ]  # fmt: skip
