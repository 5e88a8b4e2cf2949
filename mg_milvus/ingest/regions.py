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


def out_of_step(store: Store, schema: Schema, *, thorough: bool = False) -> OutOfStep:
    """Find what does not fit together.

    Args:
        store: where the collection is.
        schema: the collection's.
        thorough: read all ids. Otherwise only when the numbers of rows do not fit, which a crash cannot hide: regions
            are written before their pictures and deleted after them, so it leaves too many and never too few.
    """
    if schema.parts is None:
        return OutOfStep()
    if not thorough and store.regions.count() == schema.parts.regions * store.count():
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
