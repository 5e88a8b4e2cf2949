"""Pictures and the codes of their regions, kept in step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg_milvus.regions import split_id

if TYPE_CHECKING:
    from mg_milvus.schema import Schema
    from mg_milvus.store import Store


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """What a crash, or another program, left behind.

    Attributes:
        orphans: ids of pictures that have regions and no row.
        incomplete: ids of pictures whose regions are not all there.
    """

    orphans: frozenset[str] = frozenset()
    incomplete: frozenset[str] = frozenset()


def out_of_step(store: Store, schema: Schema) -> OutOfStep:
    """Find what does not fit together. When the two numbers of rows fit, nothing else is looked at."""
    if schema.parts is None or store.regions.count() == schema.parts.regions * store.count():
        return OutOfStep()
    regions: Counter[str] = Counter()
    for some in store.regions.scan():
        regions.update(split_id(region)[0] for region in some)
    pictures = {row.id for rows in store.scan() for row in rows}
    return OutOfStep(
        frozenset(regions.keys() - pictures),
        frozenset(picture for picture in pictures if regions[picture] != schema.parts.regions),
    )


def mend(store: Store, found: OutOfStep) -> None:
    """Delete the regions without a picture. Incomplete ones are for an ingest to encode again."""
    if found.orphans:
        store.regions.delete(sorted(found.orphans))
