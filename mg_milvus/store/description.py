"""The JSON that a collection keeps in its description, and how it is told from other people's collections."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from mg_milvus.errors import ForeignCollectionError, UnsupportedError
from mg_milvus.schema import Schema
from mg_milvus.store import Description

FORMAT = 1


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


def own_description(text: str) -> dict[str, Any] | None:
    """The JSON object of a collection or companion made by mg-milvus of any version; None for anything else."""
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
    if "encoder_of" in parsed:
        raise ForeignCollectionError(
            f"collection '{collection}' keeps the encoders of '{parsed['encoder_of']}': choose another name"
        )
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
