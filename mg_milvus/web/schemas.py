"""Requests and responses of the API: query parameters, codes as text, results as JSON."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mg_milvus.bulk.lists import row_values
from mg_milvus.duplicates.hits import VERIFIED
from mg_milvus.errors import QueryError
from mg_milvus.records import MINIMA, VERDICTS
from mg_milvus.schema.models import FINE, REGIONS, TEXT
from mg_milvus.search.query import MAX_DEPTH
from mg_milvus.search.query_image import VIEWS
from mg_milvus.web.limits import check_filter

if TYPE_CHECKING:
    from mg_milvus.codes import QueryCodes
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.query import QueryOptions
    from mg_milvus.search.searcher import SearchResult
    from mg_milvus.store.base import Row


BOX = Field(
    min_length=4, max_length=4,
    description="x, y, width, height in pixels of the image: the best matching region. Missing when the query has no "
    "regions, or no region of this image is among the nearest: then its distance on regions is a lower bound.",
)  # fmt: skip
VERDICT = Field(description=f"{', '.join(VERDICTS)}; missing where the collection has too few images to tell.")
CHANCE = Field(description="The share of random pairs of the collection's images that are as near.")
LEAD = Field(description="The granularity on which it stands out; with the profile auto it then comes first.")
ID_PATTERN = r"^[0-9a-f]{32}$"
MAX_TERMS = 16
"""Images that a query is made of, of each kind."""
RowIdText = Annotated[str, Field(pattern=ID_PATTERN)]


class HitResponse(BaseModel):
    """One hit, as ``mgm query --json`` prints it; the row's other fields stand beside these."""

    model_config = ConfigDict(extra="allow")

    rank: int
    id: str
    path: str
    score: float
    distances: dict[str, int]
    ranks: dict[str, float]
    box: Annotated[list[int] | None, BOX] = None
    verdict: Annotated[str | None, VERDICT] = None
    confidence: Annotated[float | None, Field(description="Probability that it is of the query's kind, or nearer.")] = (
        None
    )
    chance: Annotated[dict[str, float] | None, CHANCE] = None
    lead: Annotated[str | None, LEAD] = None


class Candidate(BaseModel):
    """A candidate, with everything needed to rank it; the row's other fields stand beside these."""

    model_config = ConfigDict(extra="allow")

    id: str
    path: str
    distances: Annotated[dict[str, float], Field(description="Bits that differ; of regions not a whole number.")]
    ranked_by: Annotated[dict[str, float], Field(description=(
        "The distances that rank it, in bits: each counts as much as the query image is sure of it."
    ))]  # fmt: skip
    retrieved_by: Annotated[list[str], Field(description="The granularities whose search returned it.")]
    box: Annotated[list[int] | None, BOX] = None
    verdict: Annotated[str | None, VERDICT] = None
    confidence: Annotated[float | None, Field(description="Probability that it is of the query's kind, or nearer.")] = (
        None
    )
    chance: Annotated[dict[str, float] | None, CHANCE] = None
    lead: Annotated[str | None, LEAD] = None


class TermInfo(BaseModel):
    """One of several query images: an indexed one, or codes."""

    id: str | None
    codes: str
    weight: Annotated[float, Field(description="1: like this; -1: unlike this.")]


class QueryInfo(BaseModel):
    """The query image. ``codes`` repeats the query without the image; empty for words alone, and for several images."""

    id: str | None
    codes: str
    width: int
    height: int
    crop: list[int] | None
    terms: Annotated[list[TermInfo] | None, Field(description="Of several images: each of them, as it was given.")] = (
        None
    )


class VerificationResponse(BaseModel):
    """What a query image is to an indexed one, by their pixels."""

    id: str
    verdict: Annotated[str, Field(description=(
        "identical file, same image, edited, same object, similar, different; or why the image cannot be looked at."
    ))]  # fmt: skip
    box: Annotated[list[int] | None, Field(description=(
        "x, y, width, height of what the query image shows, in pixels of the indexed image; for the first four."
    ))]  # fmt: skip


class Info(BaseModel):
    """The index, as ``mgm info --json`` prints it."""

    uri: str
    server: str
    collection: str
    rows: int
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    fingerprint: str
    backbone: str
    heads: str
    bytes_per_image: int
    advice: list[str]


class QueryResponse(BaseModel):
    """The results of a query; ``candidates`` only on request."""

    query: QueryInfo
    k: int
    depth: int
    fusion: str
    rrf_k: int
    weights: dict[str, float]
    regions: Annotated[str | None, Field(description="contains or overlap; null: regions have no weight.")]
    bits: Annotated[dict[str, int], Field(description="The largest distance on each granularity that was compared.")]
    hits: list[HitResponse]
    remark: Annotated[str | None, Field(description="A sentence where no hit is related to the query image.")] = None
    candidates: list[Candidate] | None = None
    seconds: float


class QueryParameters(BaseModel):
    """The options of a query, from the address."""

    k: Annotated[int, Field(ge=1, le=MAX_DEPTH, description="Number of results.")] = 10
    weights: Annotated[str | None, Field(description="Weight of each granularity: coarse=1,fine=3")] = None
    profile: Annotated[
        str | None, Field(description="Named weights: auto (the default), category, object, instance, balanced.")
    ] = None
    granularity: Annotated[str | None, Field(description="Search this granularity only.")] = None
    fusion: Annotated[str | None, Field(description="rank, score, chance, or server.")] = None
    rrf_k: Annotated[int | None, Field(ge=1, le=MAX_DEPTH, description="The constant in weight / (rrf_k + rank).")] = (
        None
    )
    depth: Annotated[
        int | None, Field(ge=1, le=MAX_DEPTH, description="Candidates retrieved from each granularity.")
    ] = None
    filter: Annotated[str | None, Field(description="A Milvus expression on the rows: width >= 800")] = None
    cluster: Annotated[str | None, Field(max_length=200, description=(
        "Only images of this cluster: its number, name or label from /api/clusters."
    ))] = None  # fmt: skip
    regions: Annotated[str | None, Field(description=(
        "Search the regions of the images: contains (images that contain what the image, or the crop, shows, and "
        "where), or overlap (images that share something with it). Needs an image or an id, and a schema with regions."
    ))] = None  # fmt: skip
    text: Annotated[str | None, Field(description=(
        "Words for what the images show: one more ranking in the fusion; or the query, without an image."
    ))] = None  # fmt: skip
    min: Annotated[str | None, Field(description=(
        f"Leave out hits whose verdict is less: {', '.join(MINIMA)}. Candidates are always all."
    ))] = None  # fmt: skip
    max_chance: Annotated[float | None, Field(description=(
        "Leave out hits that are as near as a larger share of random pairs: 0.001"
    ))] = None  # fmt: skip
    crop: Annotated[str | None, Field(description=(
        "Search with this crop: X,Y,W,H in pixels. In a query with regions, the regions search with the crop and the "
        "other granularities with the whole image; a schema with regions searches them only, unless weights are given."
    ))] = None  # fmt: skip
    views: Annotated[bool | None, Field(description=(
        "Search fine with the middle and the corners of the image, too, which finds what is framed or in a collage; by "
        "default with the profile instance. Not with candidates."
    ))] = None  # fmt: skip
    candidates: Annotated[bool, Field(description=(
        "Also return every candidate with its distances. Not with several images."
    ))] = False  # fmt: skip
    like: Annotated[list[RowIdText], Field(
        max_length=MAX_TERMS, description="Indexed images that hits should be like, too: one answer to all images.",
    )] = []  # fmt: skip
    unlike: Annotated[list[RowIdText], Field(
        max_length=MAX_TERMS, description="Indexed images that push down what is near to them.",
    )] = []  # fmt: skip
    unlike_codes: Annotated[list[str], Field(
        max_length=MAX_TERMS, description="As unlike: query.codes of earlier responses.",
    )] = []  # fmt: skip

    def options(self) -> QueryOptions:
        """The options, as ``ImageIndex`` takes them.

        Raises:
            QueryError: the crop or the weights are malformed.
            FilterError: the filter is too expensive for the page.
        """
        check_filter(self.filter)
        return {
            "k": self.k, "weights": _parse_weights(self.weights) if self.weights else None,
            "profile": self.profile or None, "granularity": self.granularity or None, "fusion": self.fusion or None,
            "rrf_k": self.rrf_k, "depth": self.depth, "filter": self.filter or None, "cluster": self.cluster or None,
            "regions": self.regions or None,
            "text": self.text or None, "min": self.min or None, "max_chance": self.max_chance,
            "crop": parse_crop(self.crop) if self.crop else None,
            "views": False if self.candidates else self.views,  # candidates are ranked again with any weights
        }  # fmt: skip


class VerifyParameters(BaseModel):
    """What to verify."""

    ids: Annotated[str, Field(
        pattern=rf"^[0-9a-f]{{32}}(,[0-9a-f]{{32}}){{0,{VERIFIED - 1}}}$",
        description="Up to ten indexed images: ID,ID,...",
    )]  # fmt: skip
    crop: Annotated[str | None, Field(description="Compare with this crop of the image: X,Y,W,H in pixels.")] = None

    def box(self) -> tuple[int, int, int, int] | None:
        """The crop.

        Raises:
            QueryError: it is malformed.
        """
        return parse_crop(self.crop) if self.crop else None


class IndexedVerifyParameters(VerifyParameters):
    """What to verify, with an indexed image as the query image."""

    id: Annotated[str, Field(pattern=ID_PATTERN, description="An indexed image.")]


class IndexedQueryParameters(QueryParameters):
    """The options of a query without an image, and what to search with."""

    id: Annotated[str | None, Field(pattern=ID_PATTERN, description="An indexed image.")] = None
    codes: Annotated[list[str], Field(
        max_length=MAX_TERMS, description="query.codes of an earlier response; of several, one answer to all images.",
    )] = []  # fmt: skip


def parse_crop(text: str) -> tuple[int, int, int, int]:
    """A box of the address.

    Raises:
        QueryError: it is malformed.
    """
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise QueryError(f"crop '{text}' is not X,Y,W,H: four whole numbers in pixels, such as 40,60,200,150") from None
    return x, y, width, height


def _parse_weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            weights[name] = float(number)
        except ValueError:
            raise QueryError(f"weights '{text}' are not GRANULARITY=NUMBER,...: such as coarse=1,fine=3") from None
    return weights


def encode_codes(codes: QueryCodes, fingerprint: str) -> str:
    """What one image is searched with as text for an address, with the fingerprint of the encoder that made it."""
    whole = [values.reshape(1, -1, values.shape[-1])[:, 0] for values in codes.values()]
    views = [values[:, 1:] for values in codes.values() if values.ndim == 3]
    packed = b"".join(values.astype(np.int8).tobytes() for values in (*whole, *views))
    return f"{fingerprint}.{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"


def decode_codes(text: str, schema: Schema, fingerprint: str) -> QueryCodes:
    """What ``encode_codes`` wrote: granularity -> (1, bits), and of one with views (1, views, bits).

    Raises:
        QueryError: they are damaged, or another encoder's.
    """
    maker, _, packed = text.partition(".")
    if maker != fingerprint:
        raise QueryError(
            f"these codes were made by the encoder '{maker[:32]}', this collection was filled by {fingerprint}: query "
            "with the image itself"
        )
    try:
        padded = packed + "=" * (-len(packed) % 4)
        data = np.frombuffer(base64.b64decode(padded, altchars="-_", validate=True), np.int8)
    except (binascii.Error, ValueError):
        data = np.empty(0, np.int8)
    ends = np.cumsum(list(schema.bits.values()))
    views = len(VIEWS) * schema.bits.get(FINE, 0)
    if len(data) not in (ends[-1], ends[-1] + views):
        raise QueryError(f"the codes hold {len(data)} bytes, expected {ends[-1]}: copy them whole")
    *parts, seen = np.split(data.astype(np.float32), ends)
    codes = {name: part[None] for name, part in zip(schema.bits, parts, strict=True)}
    if len(seen):
        codes[FINE] = np.concatenate([codes[FINE], seen.reshape(len(VIEWS), -1)])[None]
    return codes


def row_fields(row: Row) -> dict[str, Any]:
    """A row without codes, its fields as in a hit."""
    return row_values(row)


def result_fields(result: SearchResult, schema: Schema, *, with_candidates: bool) -> dict[str, Any]:
    """A result as plain data, without ``seconds`` and the query image; see ``QueryResponse``."""
    query, candidates, judgement = result.query, result.candidates, result.judgement
    compared = {*query.weights} if {*query.weights} == {TEXT} else {*schema.bits, *query.weights}
    response: dict[str, Any] = {
        "k": query.k, "depth": query.depth, "fusion": query.fusion, "rrf_k": query.rrf_k,
        "weights": dict(query.weights), "regions": query.regions if REGIONS in query.weights else None,
        "bits": {name: bits for name, bits in query.max_distances(schema).items() if name in compared},
        "hits": [hit.as_dict() for hit in result.hits], "remark": result.hits.remark or None,
    }  # fmt: skip
    if with_candidates and candidates is not None:
        judged = [{} if judgement is None else judgement.of(i) for i in range(len(candidates.ids))]
        shown = {name: values.tolist() for name, values in candidates.differing.items() if name in compared}
        exact = {name: values.tolist() for name, values in candidates.distances.items() if name in compared}
        response["candidates"] = [
            row_fields(result.rows[key])
            | {
                "distances": {name: values[i] for name, values in shown.items()},
                "ranked_by": {name: values[i] for name, values in exact.items()},
                "retrieved_by": candidates.retrieved_by[i],
            }
            | (
                {"box": list(box)}
                if (box := candidates.box(result.rows[key])) and REGIONS in (*compared, judged[i].get("lead"))
                else {}
            )
            | judged[i]
            for i, key in enumerate(candidates.ids)
            if key in result.rows  # others were deleted since
        ]
    return response
