"""What differs between two schemas, and what each difference costs a collection that is already filled."""

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
        old: its value, None where it is not there.
        new: its value, None where it is not there.
        consequence: ``none``: what is stored stays right. ``reload``: Milvus must rebuild an index or load the
            collection anew, the codes stay. ``re-ingest``: the images must be encoded into a new collection.
        reason: one sentence.
    """

    key: str
    old: Any
    new: Any
    consequence: Consequence
    reason: str


_CODES = "codes of other hash heads cannot be compared with those that are stored"
_ASKED = "it acts when a query is asked; what is stored stays as it is"
_COLUMNS = "Milvus fixes the columns of a collection when it is made"
_INDEX = "the index is built again from the stored codes"

# `*` stands for the name of a granularity or extra field.
CONSEQUENCES: dict[str, tuple[Consequence, str]] = {
    "version": ("re-ingest", "another version of the format describes another collection"),
    "collection": ("re-ingest", "another name is another collection, which an ingest of its own must fill"),
    "encoder.name": ("re-ingest", "codes of two encoders cannot be compared"),
    "encoder.heads": ("re-ingest", _CODES),
    "granularities": ("none", "the order of granularities means nothing to queries"),
    "granularities.*": ("re-ingest", f"{_COLUMNS}; weight 0 leaves a granularity out of queries without that"),
    "granularities.*.bits": ("re-ingest", "codes of another length are other codes"),
    "granularities.*.weight": ("none", "weights act when a query is asked (--weights); the codes stay as they are"),
    "granularities.*.mmap": ("reload", "the codes stay; Milvus must load the field anew to map it"),
    "regions": ("re-ingest", "regions get their codes when an image is ingested"),
    "regions.bits": ("re-ingest", "codes of another length are other codes"),
    "regions.weight": ("none", "weights act when a query is asked (--weights); the codes stay as they are"),
    "regions.scales": ("re-ingest", "other regions have other codes"),
    "fusion.method": ("none", f"{_ASKED} (--fusion)"),
    "fusion.rrf_k": ("none", f"{_ASKED} (--rrf-k)"),
    "fusion.depth": ("none", f"{_ASKED} (--depth)"),
    "fusion.plan": ("none", f"{_ASKED} (--plan)"),
    "fields": ("none", "the order of extra fields means nothing to queries"),
    "fields.*": ("re-ingest", _COLUMNS),
    "fields.*.type": ("re-ingest", _COLUMNS),
    "fields.*.default": ("re-ingest", "rows already stored keep the old default"),
    "fields.*.max_length": ("re-ingest", _COLUMNS),
    "storage.index": ("reload", _INDEX),
    "storage.nlist": ("reload", _INDEX),
    "storage.nprobe": ("none", _ASKED),
    "storage.m": ("reload", _INDEX),
    "storage.ef_construction": ("reload", _INDEX),
    "storage.ef": ("none", _ASKED),
    "storage.shards": ("re-ingest", "Milvus fixes the number of shards when a collection is made"),
    "storage.replicas": ("reload", "the rows stay; Milvus must load the collection anew with that many copies"),
    "storage.consistency": ("none", _ASKED),
    "storage.partition_key": ("re-ingest", "Milvus places each row by its partition key when it is written"),
}
"""Every setting of the schema -> what a change of it costs, and why."""


def difference(old: Schema, new: Schema) -> list[Difference]:
    """List what differs, in the order of the schema; empty exactly when the schemas are equal."""
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
        elif isinstance(before, tuple) and name != "scales":  # which have no names
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
            yield f"{key}.{name}", f"{pattern}.*", before.get(name), after.get(name)
    if [n for n in before if n in after] != [n for n in after if n in before]:
        yield key, pattern, list(before), list(after)
