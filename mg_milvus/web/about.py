"""What the page needs to know before it asks anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mg_milvus.errors import CollectionNotFoundError
from mg_milvus.schema import PROFILES
from mg_milvus.schema_parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.web.state import State


def about(shared: State) -> dict[str, Any]:
    """The collection, how it is asked unless told otherwise, and what this page may do, as plain data."""
    schema, settings = shared.index.schema, shared.settings
    exists = shared.index.exists
    return {
        "collection": shared.index.collection, "rows": rows(shared), "bits": schema.code_bits,
        "weights": schema.weights | ({PARTS: schema.parts.weight} if schema.parts else {}),
        "profiles": _profiles(schema.weights) | ({PARTS: {PARTS: 1.0}} if schema.parts else {}),
        "fusion": schema.fusion.model_dump(),
        "fields": [{"name": field.name, "type": field.type} for field in schema.fields],
        "values": shared.browser.values() if exists else {},
        "can_delete": not settings.read_only,
        "can_upload": not settings.read_only and settings.upload_folder is not None,
        "folders": [] if settings.read_only else [str(folder) for folder in settings.ingest_folders],
        "max_upload_bytes": settings.max_upload_bytes,
    }  # fmt: skip


def rows(shared: State) -> int:
    """Pictures in the collection; 0 when there is none."""
    try:
        return shared.index.count()
    except CollectionNotFoundError:
        return 0


def _profiles(weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Profile -> weights of all granularities; those that would ask nothing of this collection are left out."""
    found = {
        profile: {name: named.get(name, weight) for name, weight in weights.items()}
        for profile, named in PROFILES.items()
    }
    return {profile: chosen for profile, chosen in found.items() if any(chosen.values())}
