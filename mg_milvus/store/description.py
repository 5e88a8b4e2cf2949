"""The JSON that collections keep in their descriptions, and how they are told from other people's collections."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mg_milvus.display import one_line
from mg_milvus.errors import ForeignCollectionError, UnsupportedError
from mg_milvus.schema import FusionSettings, Schema
from mg_milvus.store import Description

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
MOST_BYTES = 64 << 10
"""Of a description, in UTF-8. Servers keep 1,024 bytes unless set otherwise, Milvus Lite any number."""
_MOST_DEPTH = 16
_MOST_ADAPTED = 2**53
_LONGEST_BACKBONE = 200
COMPANIONS = {
    "encoder_of": "keeps the encoders of",
    "tuned_of": "remembers the weights of",
    "regions_of": "holds the regions of",
}
"""Key in the description of a collection that is kept beside another -> what it does for that one."""


def encode_description(description: Description) -> str:
    """The JSON kept in the collection. All settings are written: later versions may have other defaults.

    Raises:
        UnsupportedError: it is longer than what is read again.
    """
    text = json.dumps(
        {
            "mg_milvus": FORMAT,
            "schema": description.schema.model_dump(mode="json"),
            "fingerprint": description.fingerprint,
            "adapted_on": description.adapted_on,
            "backbone": description.backbone,
        },
        separators=(",", ":"),
    )
    if len(text) > MOST_BYTES:  # it is ASCII
        raise UnsupportedError(
            f"the schema takes {len(text):,} bytes in the collection's description, at most {MOST_BYTES:,} are kept: "
            "use fewer fields, or shorter defaults"
        )
    return text


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
    passed over, and so is one that nothing like it was ever written in.
    """
    parsed = own_description(text)
    if parsed is None or parsed.get("fingerprint") != description.fingerprint:
        return description
    try:
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
        given = one_line(", ".join(map(str, weights)))
        raise ValueError(f"weights for {given}, expected one for each of {', '.join(description.schema.bits)}")
    plain = description.schema.model_dump()
    plain["granularities"] = [g | {"weight": weights[g["name"]]} for g in plain["granularities"]]
    plain["fusion"] = fusion.model_dump()
    return replace(description, schema=Schema.model_validate(plain))


def own_description(text: str) -> dict[str, Any] | None:
    """The JSON object of a collection, or of one beside it, made by any mg-milvus; None for anything else.

    Every client of the server can write any text there: what is longer or deeper than all that is written here, and
    numbers that are none, are anything else.
    """
    if len(text) > MOST_BYTES:
        return None
    try:
        parsed = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    own = isinstance(parsed, dict) and type(parsed.get("mg_milvus")) is int and _depth(parsed) <= _MOST_DEPTH
    return parsed if own else None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _depth(value: object) -> int:
    """How many lists and objects lie within each other."""
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def is_fingerprint(text: object) -> bool:
    """Whether it is 16 hexadecimal digits, as every encoder's fingerprint; it becomes a file's name and a filter."""
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{16}", text) is not None


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
            other = one_line(str(parsed[key]))
            raise ForeignCollectionError(f"collection '{collection}' {what} '{other}': choose another name")
    remedy = "upgrade mg-milvus here"
    if parsed["mg_milvus"] != FORMAT:
        made = one_line(str(parsed["mg_milvus"]), 20)
        raise UnsupportedError(f"collection '{collection}' has format {made}, this mg-milvus reads {FORMAT}: {remedy}")
    try:
        found = Description(
            Schema.model_validate(parsed["schema"]), parsed["fingerprint"], parsed["adapted_on"], parsed["backbone"]
        )
        _check(found)
    except (ValidationError, KeyError, ValueError) as exc:
        reason = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
        raise UnsupportedError(
            f"the description of collection '{collection}' cannot be read ({one_line(reason, 400)}): {remedy}, or "
            "choose another collection if something else has written it"
        ) from exc
    return found


def _check(found: Description) -> None:
    """Raise ValueError unless what stands beside the schema is what ``encode_description`` writes."""
    if not is_fingerprint(found.fingerprint):
        raise ValueError(f"the fingerprint is {_shown(found.fingerprint)}, expected 16 hexadecimal digits")
    if type(found.adapted_on) is not int or not 0 <= found.adapted_on <= _MOST_ADAPTED:
        raise ValueError(f"adapted_on is {_shown(found.adapted_on)}, expected a number of pictures")
    if type(found.backbone) is not str or len(found.backbone) > _LONGEST_BACKBONE:
        raise ValueError(f"the backbone is {_shown(found.backbone)}, expected a name")


def _shown(value: object) -> str:
    return one_line(repr(value), 60)
