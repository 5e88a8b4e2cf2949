"""The JSON that collections keep in their descriptions, and how they are told from other people's collections."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mg_milvus.errors import ForeignCollectionError, UnsupportedError
from mg_milvus.schema import FusionSettings, Schema
from mg_milvus.store import Description

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
COMPANIONS = {
    "encoder_of": "keeps the encoders of",
    "tuned_of": "remembers the weights of",
    "regions_of": "holds the regions of",
}
"""Key in the description of a collection that is kept beside another -> what it does for that one."""


def encode_description(description: Description) -> str:
    """The JSON kept in the collection. All settings are written: later versions may have other defaults."""
    return json.dumps(
        {
            "mg_milvus": FORMAT,
            "schema": description.schema.model_dump(mode="json"),
            "fingerprint": description.fingerprint,
            "adapted_on": description.adapted_on,
            "backbone": description.backbone,
        },
        separators=(",", ":"),
    )


def encode_companion(collection: str) -> str:
    """The JSON kept in the collection that holds the encoders of another one."""
    return json.dumps({"mg_milvus": FORMAT, "encoder_of": collection}, separators=(",", ":"))


def encode_regions(collection: str, description: Description) -> str:
    """The JSON kept in the collection that holds the regions of another one's pictures."""
    parts = description.schema.parts
    return json.dumps(
        {
            "mg_milvus": FORMAT,
            "regions_of": collection,
            "fingerprint": description.fingerprint,
            "scales": [] if parts is None else [scale.model_dump(mode="json") for scale in parts.scales],
        },
        separators=(",", ":"),
    )


def encode_tuned(collection: str, description: Description) -> str:
    """The JSON kept in the collection that remembers how another one was tuned."""
    return json.dumps(
        {
            "mg_milvus": FORMAT,
            "tuned_of": collection,
            "fingerprint": description.fingerprint,
            "weights": description.schema.weights,
            "fusion": description.schema.fusion.model_dump(mode="json"),
        },
        separators=(",", ":"),
    )


def decode_tuned(text: str, description: Description) -> Description:
    """What a collection says of itself, with what ``encode_tuned`` wrote about it.

    A record about another encoder or other granularities, such as one left behind by a collection of the same name, is
    passed over.
    """
    try:
        parsed = json.loads(text)
        if parsed["fingerprint"] != description.fingerprint:
            return description
        return tuned(description, parsed["weights"], FusionSettings.model_validate(parsed["fusion"]))
    except (ValueError, KeyError, TypeError):
        return description


def tuned(description: Description, weights: Mapping[str, float], fusion: FusionSettings) -> Description:
    """The description with other weights and another fusion.

    Args:
        description: of the collection.
        weights: granularity -> weight, for every granularity.
        fusion: as it shall be.

    Raises:
        ValueError: weights of other granularities, or that a schema cannot have.
    """
    if set(weights) != set(description.schema.bits):
        raise ValueError(
            f"weights for {', '.join(weights)}, expected one for each of {', '.join(description.schema.bits)}"
        )
    plain = description.schema.model_dump()
    plain["granularities"] = [g | {"weight": weights[g["name"]]} for g in plain["granularities"]]
    plain["fusion"] = fusion.model_dump()
    return replace(description, schema=Schema.model_validate(plain))


def own_description(text: str) -> dict[str, Any] | None:
    """The JSON object of a collection, or of one beside it, made by any mg-milvus; None for anything else."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get("mg_milvus"), int) else None


def decode_description(text: str, collection: str) -> Description:
    """Read what ``encode_description`` wrote.

    Raises:
        ForeignCollectionError: the collection was not made by mg-milvus.
        UnsupportedError: a newer mg-milvus made it.
    """
    parsed = own_description(text)
    if parsed is None:
        raise ForeignCollectionError(
            f"collection '{collection}' was not made by mg-milvus: choose another name for yours"
        )
    for key, what in COMPANIONS.items():
        if key in parsed:
            raise ForeignCollectionError(f"collection '{collection}' {what} '{parsed[key]}': choose another name")
    remedy = "upgrade mg-milvus here"
    if parsed["mg_milvus"] != FORMAT:
        raise UnsupportedError(
            f"collection '{collection}' has format {parsed['mg_milvus']}, this mg-milvus reads {FORMAT}: {remedy}"
        )
    try:
        schema = Schema.model_validate(parsed["schema"])
        return Description(schema, str(parsed["fingerprint"]), int(parsed["adapted_on"]), str(parsed["backbone"]))
    except (ValidationError, KeyError, TypeError, ValueError) as exc:
        reason = str(exc).replace("\n", " ")
        raise UnsupportedError(
            f"the description of collection '{collection}' cannot be read ({reason}): {remedy}"
        ) from exc
