"""Differences between two schemas, and what each means for a collection that is already filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mg_milvus.schema.models import Schema


Consequence = Literal["none", "reload", "re-ingest"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that differs.

    Attributes:
        key: ``granularities.fine.bits``; granularities and extra fields go by name.
        old: value in the old schema, None where it has none.
        new: value in the new schema, None where it has none.
        consequence: ``none``: the stored rows stay valid. ``reload``: Milvus must rebuild an index or reload the
            collection, the codes stay. ``re-ingest``: the images must be encoded into a new collection.
        reason: one sentence.
    """

    key: str
    old: Any
    new: Any
    consequence: Consequence
    reason: str


_AT_QUERY = "applies at query time; stored rows are unaffected"
_COLUMNS = "Milvus fixes the columns of a collection at its creation"
_INDEX = "the index is rebuilt from the stored codes"
_LENGTH = "codes of different lengths cannot be compared"

# `*` stands for the name of a granularity or extra field, `+` for that of a new extra field.
CONSEQUENCES: dict[str, tuple[Consequence, str]] = {
    "version": ("re-ingest", "another version of the format needs another collection"),
    "collection": ("re-ingest", "another name is another collection, which needs its own ingest"),
    "encoder.name": ("re-ingest", "codes of different encoders cannot be compared"),
    "encoder.heads": ("re-ingest", "codes of different hash heads cannot be compared"),
    "granularities": ("none", "the order of granularities has no effect on queries"),
    "granularities.*": ("re-ingest", f"{_COLUMNS}; weight 0 leaves a granularity out of queries"),
    "granularities.*.bits": ("re-ingest", _LENGTH),
    "granularities.*.weight": ("none", f"{_AT_QUERY} (--weights)"),
    "granularities.*.mmap": ("reload", "the codes stay; Milvus must reload the field to map it"),
    "regions": ("re-ingest", "codes of regions are computed at ingest"),
    "regions.bits": ("re-ingest", _LENGTH),
    "regions.weight": ("none", f"{_AT_QUERY} (--weights)"),
    "regions.scales": ("re-ingest", "different regions have different codes"),
    "fusion.method": ("none", f"{_AT_QUERY} (--fusion)"),
    "fusion.rrf_k": ("none", f"{_AT_QUERY} (--rrf-k)"),
    "fusion.depth": ("none", f"{_AT_QUERY} (--depth)"),
    "fields": ("none", "the order of extra fields has no effect on queries"),
    "fields.*": ("re-ingest", _COLUMNS),
    "fields.+": ("none", "the next ingest adds the column; images have no value in it until a table names them"),
    "fields.*.type": ("re-ingest", _COLUMNS),
    "fields.*.default": ("re-ingest", "stored rows keep the old default"),
    "fields.*.max_length": ("re-ingest", _COLUMNS),
    "storage.index": ("reload", _INDEX),
    "storage.nlist": ("reload", _INDEX),
    "storage.nprobe": ("none", _AT_QUERY),
    "storage.m": ("reload", _INDEX),
    "storage.ef_construction": ("reload", _INDEX),
    "storage.ef": ("none", _AT_QUERY),
    "storage.shards": ("re-ingest", "Milvus fixes the number of shards of a collection at its creation"),
    "storage.replicas": ("reload", "the rows stay; Milvus must reload the collection with that many copies"),
    "storage.consistency": ("none", _AT_QUERY),
    "storage.partition_key": ("re-ingest", "Milvus places a row by its partition key when the row is written"),
}
"""Setting of the schema -> consequence of a change, and the reason."""


def difference(old: Schema, new: Schema) -> list[Difference]:
    """List the differences in the order of the schema; empty exactly when the schemas are equal."""
    return [
        Difference(key, before, after, *CONSEQUENCES[pattern])
        for key, pattern, before, after in _changes(old.model_dump(), new.model_dump(), "", "")
    ]


def _changes(old: dict[str, Any], new: dict[str, Any], key: str, pattern: str) -> Iterator[tuple[str, str, Any, Any]]:
    """Walk two mappings with the same keys; yield (key, its pattern, old, new) where they differ."""
    for name in old:
        before, after = old[name], new[name]
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changes(before, after, f"{key}{name}.", f"{pattern}{name}.")
        elif isinstance(before, tuple) and name != "scales":  # whose items have no names
            yield from _changes_of_named(before, after, f"{key}{name}", f"{pattern}{name}")
        else:
            yield f"{key}{name}", f"{pattern}{name}", before, after


def _changes_of_named(
    old: tuple[dict[str, Any], ...], new: tuple[dict[str, Any], ...], key: str, pattern: str
) -> Iterator[tuple[str, str, Any, Any]]:
    """Like ``_changes`` for two lists of mappings, matched by their name."""
    before, after = {item["name"]: item for item in old}, {item["name"]: item for item in new}
    for name in before | after:
        if name in before and name in after:
            yield from _changes(before[name], after[name], f"{key}.{name}.", f"{pattern}.*.")
        else:
            is_new = name not in before and f"{pattern}.+" in CONSEQUENCES
            yield f"{key}.{name}", f"{pattern}.{'+' if is_new else '*'}", before.get(name), after.get(name)
    if [n for n in before if n in after] != [n for n in after if n in before]:
        yield key, pattern, list(before), list(after)
