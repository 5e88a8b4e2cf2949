"""Near-duplicates of one picture that need not be indexed, without reading the index as a whole."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.duplicates import DuplicateReport
from mg_milvus.duplicates.calibration import FINE, SAMPLE, Calibration, calibrated
from mg_milvus.duplicates.grouping import grouped
from mg_milvus.duplicates.pairs import as_words
from mg_milvus.errors import QueryError
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import path_text, picture_id, text_path
from mg_milvus.store import Row
from mg_milvus.store.layout import MAX_DEPTH

if TYPE_CHECKING:
    import os

    from mg_milvus.duplicates.question import Question
    from mg_milvus.encoder import Encoder
    from mg_milvus.schema import Schema
    from mg_milvus.store import Store

_FIRST_DEPTH = 128


def find_duplicates_of(
    store: Store, schema: Schema, encoder: Encoder, picture: str | os.PathLike[str], question: Question
) -> DuplicateReport:
    """Find the rows that are near to a picture file; see ``ImageIndex.duplicates``.

    Reads a sample of the rows, and the picture's neighbours by Milvus' own search: exact on Milvus Lite, as exact as
    the schema's ``nprobe`` or ``ef`` on servers, and 16,384 rows at most.
    """
    started = time.perf_counter()
    own = _row_of(encoder, picture)
    indexed = own.id in store.fetch([own.id])
    count = store.count() - indexed
    if count < 1:
        raise QueryError(
            f"there is no {'other ' if indexed else ''}picture in '{schema.collection}' to compare "
            f"{own.path} with; add some with mgm ingest"
        )
    calibration = _calibrated(store, schema, count)
    radius = question.radius(calibration, count, 1)
    rows = [row for row in _neighbours(store, schema, own, radius) if _passes(own, row, calibration)]
    distances = np.array([_distance(own, row, FINE) for row in rows], np.int64)
    distance = question.chosen(calibration, count, np.bincount(distances, minlength=radius + 1))
    near = [] if distance is None else [row for row, d in zip(rows, distances, strict=True) if d <= distance]
    groups = () if distance is None or not near else (
        grouped([own, *near], distance, calibration.limits, question.keep),
    )  # fmt: skip
    expected = None if calibration.tail is None or distance is None else float(calibration.tail.rates[distance] * count)
    return DuplicateReport(
        count, count, distance, calibration.limits, question.precision if question.distance is None else None,
        len(near), expected, question.keep, groups, time.perf_counter() - started,
    )  # fmt: skip


def _row_of(encoder: Encoder, picture: str | os.PathLike[str]) -> Row:
    """The row that the file would have."""
    path = path_text(picture)
    file = text_path(path)
    with opening(file, least=encoder.side) as decoded:
        pixels, width, height = encoder.prepare(decoded.picture), decoded.width, decoded.height
    status = file.stat()
    codes = encoder.encode([pixels])
    return Row(
        picture_id(path), path, status.st_size, status.st_mtime_ns, width, height, "",
        {name: values[0].tobytes() for name, values in codes.items()},
    )  # fmt: skip


def _calibrated(store: Store, schema: Schema, count: int) -> Calibration:
    """Ids are hashes, so those below a bound are a random sample."""
    bound = round(SAMPLE / count * 16**8)
    where = f'id < "{bound:08x}"' if bound < 16**8 else None
    rows = [row for rows in store.scan(where, tuple(schema.bits)) for row in rows]
    words = {
        name: as_words(np.frombuffer(b"".join(row.codes[name] for row in rows), np.uint8).reshape(len(rows), bits // 8))
        for name, bits in schema.bits.items()
    }
    return calibrated(words, schema.bits)


def _neighbours(store: Store, schema: Schema, own: Row, radius: int) -> list[Row]:
    """The other rows within the radius on ``fine``, with their codes."""
    code = np.frombuffer(own.codes[FINE], np.uint8)[None]
    depth = _FIRST_DEPTH
    while True:
        found = store.nearest(FINE, code, depth)[0]
        if len(found.ids) < depth or found.distances[-1] > radius or depth == MAX_DEPTH:
            break
        depth = min(8 * depth, MAX_DEPTH)
    ids = [i for i, d in zip(found.ids, found.distances, strict=True) if d <= radius and i != own.id]
    return list(store.fetch(ids, tuple(schema.bits)).values())


def _distance(left: Row, right: Row, granularity: str) -> int:
    codes = [np.frombuffer(row.codes[granularity], np.uint8)[None] for row in (left, right)]
    return int(hamming(*codes)[0, 0])


def _passes(own: Row, row: Row, calibration: Calibration) -> bool:
    return all(_distance(own, row, name) <= limit for name, limit in calibration.limits.items())
