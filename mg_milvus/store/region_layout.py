"""What the rows of regions hold, and what can be looked for among them. Pure: shared by every store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.errors import QueryError, StoreError
from mg_milvus.regions import region_id, scale_of
from mg_milvus.store.layout import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.schema_parts import PartsSettings
    from mg_milvus.store import Row
    from mg_milvus.store.layout import Record

CODE = "code"
NO_REGIONS = "this collection has no codes of regions; ingest with a schema that has a section 'parts'"


def region_records(rows: Sequence[Row], parts: PartsSettings) -> list[Record]:
    """The records of the regions of pictures; rows without region codes give none.

    Raises:
        StoreError: a row's codes have another length than the schema's.
    """
    size, scales = parts.bits // 8, scale_of(parts.windows).tolist()
    records = []
    for row in rows:
        if not row.parts:
            continue
        if len(row.parts) != parts.bytes_per_picture:
            raise StoreError(
                f"row {row.id}: {len(row.parts)} bytes of region codes, expected {parts.regions} times {size}"
            )
        records += [
            {"id": region_id(row.id, number), "scale": scale, CODE: row.parts[number * size : (number + 1) * size]}
            for number, scale in enumerate(scales)
        ]
    return records


def check_region_id(text: str, regions: int) -> None:
    """Raise ValueError unless it is the id of one of a picture's regions, which come in this number."""
    picture, _, number = text.rpartition(":")
    if not picture or not re.fullmatch("[0-9]{1,6}", number) or int(number) >= regions:
        raise ValueError(f"{text!r} is not the id of a region")


def parts_of(pictures: Sequence[str], found: Mapping[str, bytes], regions: int) -> dict[str, bytes]:
    """Picture id -> the codes of all its regions, one behind the other; pictures that lack some are left out.

    Args:
        pictures: their ids.
        found: region id -> code.
        regions: of a picture.
    """
    whole = {}
    for picture in pictures:
        codes = [found.get(region_id(picture, number)) for number in range(regions)]
        there = [code for code in codes if code is not None]
        if len(there) == regions:
            whole[picture] = b"".join(there)
    return whole


def check_details(parts: PartsSettings, scale: int, codes: Codes, depth: int) -> None:
    """Raise QueryError unless these codes can be looked for among the regions of this scale."""
    if not 0 <= scale < len(parts.scales):
        raise QueryError(f"there is no scale {scale}, expected 0 to {len(parts.scales) - 1}")
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != parts.bits // 8:
        raise QueryError(
            f"codes of regions are {codes.dtype} of shape {codes.shape}, expected uint8 of (n, {parts.bits // 8})"
        )
    if not 1 <= depth <= MAX_DEPTH:
        raise QueryError(f"{depth} regions were asked for, expected 1 to {MAX_DEPTH}")
