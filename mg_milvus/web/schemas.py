"""A query over the wire: its options, its codes, and its answer as JSON."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import Depends
from fastapi import Query as QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from mg_milvus.errors import QueryError
from mg_milvus.search.query import MAX_DEPTH
from mg_milvus.web.limits import check_filter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.records import Hit
    from mg_milvus.schema.models import Schema
    from mg_milvus.search.query import Query, QueryOptions
    from mg_milvus.search.retrieve import Candidates
    from mg_milvus.store.base import Row


Box = tuple[int, int, int, int]
BOX = Field(
    min_length=4, max_length=4,
    description="x, y, width, height in its pixels: where the detail was found. Missing where regions were not asked, "
    "or none of this image is among the nearest: then its distance on regions is at least the one told.",
)  # fmt: skip


class HitAnswer(BaseModel):
    """One hit, as ``mgm query --json`` prints it; the row's other fields stand beside these."""

    model_config = ConfigDict(extra="allow")

    rank: int
    id: str
    path: str
    score: float
    distances: dict[str, int]
    ranks: dict[str, float]
    box: Annotated[list[int] | None, BOX] = None


class Candidate(BaseModel):
    """A row that one granularity or more has found, with what a page needs to rank it; row's fields as in a hit."""

    model_config = ConfigDict(extra="allow")

    id: str
    path: str
    distances: dict[str, int]
    retrieved_by: list[str]
    box: Annotated[list[int] | None, BOX] = None


class Asked(BaseModel):
    """What was asked with. ``codes`` asks the same again without the image."""

    id: str | None
    codes: str
    width: int
    height: int
    crop: list[int] | None


class Info(BaseModel):
    """What the index is, as ``mgm info --json`` prints it."""

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


class Answer(BaseModel):
    """The answer to a query; ``candidates`` only when they were asked for."""

    query: Asked
    k: int
    depth: int
    fusion: str
    rrf_k: int
    weights: dict[str, float]
    regions: Annotated[str | None, Field(description="What the regions were asked for; null: they were not.")]
    bits: Annotated[dict[str, int], Field(description="The largest distance on each granularity that was compared.")]
    hits: list[HitAnswer]
    candidates: list[Candidate] | None = None
    seconds: float


def box(
    crop: Annotated[str | None, QueryParameter(description=(
        "Ask with this part: X,Y,W,H in pixels. Where regions are asked they look for it, and the other granularities "
        "see the whole image; a schema with regions asks them alone, unless weights say otherwise."
    ))] = None,
) -> Box | None:  # fmt: skip
    """The part of the image that is asked with, from the address."""
    if not crop:
        return None
    try:
        x, y, width, height = (int(part) for part in crop.split(","))
    except ValueError:
        raise QueryError(f"crop '{crop}' is not X,Y,W,H: four whole numbers in pixels, such as 40,60,200,150") from None
    return x, y, width, height


def options(
    k: Annotated[int, QueryParameter(ge=1, le=MAX_DEPTH, description="How many results.")] = 10,
    weights: Annotated[str | None, QueryParameter(description="What each granularity counts: coarse=1,fine=3")] = None,
    profile: Annotated[
        str | None, QueryParameter(description="Weights by purpose: category, object, instance, balanced.")
    ] = None,
    granularity: Annotated[str | None, QueryParameter(description="Ask this granularity only.")] = None,
    fusion: Annotated[str | None, QueryParameter(description="rank, score, or server.")] = None,
    rrf_k: Annotated[
        int | None, QueryParameter(ge=1, le=MAX_DEPTH, description="The constant in weight / (rrf_k + rank).")
    ] = None,
    depth: Annotated[
        int | None, QueryParameter(ge=1, le=MAX_DEPTH, description="Candidates asked of each granularity.")
    ] = None,
    filter: Annotated[str | None, QueryParameter(description="A Milvus expression on the rows: width >= 800")] = None,  # noqa: A002
    regions: Annotated[
        str | None,
        QueryParameter(
            description=(
                "Ask the regions of the images: detail (which contain what the image, or crop, shows, and where), "
                "or regions (which share something with it). Needs an image or an id, and a schema with regions."
            )
        ),
    ] = None,
    plan: Annotated[
        str | None,
        QueryParameter(
            description="full, cascade, or auto: by the number of images. Candidates are always those of full."
        ),
    ] = None,
    crop: Annotated[Box | None, Depends(box)] = None,
) -> QueryOptions:
    """The options of a query, from the address."""
    check_filter(filter)
    return {
        "k": k, "weights": _numbers(weights) if weights else None, "profile": profile or None,
        "granularity": granularity or None, "fusion": fusion or None, "rrf_k": rrf_k, "depth": depth,
        "filter": filter or None, "regions": regions or None, "plan": plan or None, "crop": crop,
    }  # fmt: skip


def codes_text(codes: Mapping[str, Codes], fingerprint: str) -> str:
    """Codes of one image as text for an address, with the encoder that made them."""
    packed = b"".join(value.tobytes() for value in codes.values())
    return f"{fingerprint}.{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"


def codes_from(text: str, schema: Schema, fingerprint: str) -> dict[str, Codes]:
    """The codes that ``codes_text`` wrote: granularity -> (1, bits / 8) uint8.

    Raises:
        QueryError: they are damaged, or another encoder's.
    """
    maker, _, packed = text.partition(".")
    if maker != fingerprint:
        raise QueryError(
            f"these codes were made by the encoder '{maker[:32]}', this collection was filled by {fingerprint}: ask "
            "with the image itself"
        )
    try:
        padded = packed + "=" * (-len(packed) % 4)
        data = np.frombuffer(base64.b64decode(padded, altchars="-_", validate=True), np.uint8)
    except (binascii.Error, ValueError):
        data = np.empty(0, np.uint8)
    ends = np.cumsum([bits // 8 for bits in schema.bits.values()])
    if len(data) != ends[-1]:
        raise QueryError(f"the codes hold {len(data)} bytes, expected {ends[-1]}: copy them whole")
    return {name: part[None] for name, part in zip(schema.bits, np.split(data, ends[:-1]), strict=True)}


def described(row: Row) -> dict[str, Any]:
    """A row without codes, its fields as in a hit."""
    return {
        "id": row.id, "path": row.path, "size": row.size, "mtime_ns": row.mtime_ns, "width": row.width,
        "height": row.height, "content_hash": row.content_hash, **row.fields,
    }  # fmt: skip


def answer(
    query: Query, hits: Sequence[Hit], found: Candidates | None, schema: Schema, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer as plain data, without ``seconds``; see ``Answer``."""
    compared = schema.code_bits if query.regions else schema.bits
    told: dict[str, Any] = {
        "query": dict(asked), "k": query.k, "depth": query.depth, "fusion": query.fusion,
        "rrf_k": query.rrf_k, "weights": dict(query.weights), "regions": query.regions,
        "bits": {name: most for name, most in query.max_distances(schema).items() if name in compared},
        "hits": [hit.as_dict() for hit in hits],
    }  # fmt: skip
    if found is not None:
        distances = {name: values.tolist() for name, values in found.distances.items()}
        told["candidates"] = [
            described(row)
            | {
                "distances": {name: values[i] for name, values in distances.items()},
                "retrieved_by": found.retrieved_by[i],
            }
            | ({"box": list(place)} if (place := found.boxes[i]) else {})
            for i, row in enumerate(found.rows)
        ]
    return told


def _numbers(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            found[name] = float(number)
        except ValueError:
            raise QueryError(f"weights '{text}' are not GRANULARITY=NUMBER,...: such as coarse=1,fine=3") from None
    return found
