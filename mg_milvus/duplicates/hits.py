"""Verify the first hits of a query on the pixels: which is the same image, or the same flat object, and where."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates.looks import DETAIL, Detail, look, pixels_of, read_pixels
from mg_milvus.duplicates.report import MARKS, VISIBLE
from mg_milvus.duplicates.verify import COPIES, Verdict, match, shows
from mg_milvus.errors import ImageError
from mg_milvus.images.decode import crop as crop_of
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import content_hash, text_path
from mg_milvus.images.files import content_of, data_uri, read_stream
from mg_milvus.images.paths import Disks
from mg_milvus.records import Verification
from mg_milvus.results import Hits
from mg_milvus.store.base import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.duplicates.looks import Array
    from mg_milvus.duplicates.verify import Match
    from mg_milvus.images.decode import ImageSource
    from mg_milvus.records import Box, Hit

VERIFIED = 10
"""Hits of a query that are verified: the first ones."""


def verify_hits(hits: Hits, image: ImageSource, crop: Box | None = None) -> Hits:
    """The hits, the first ``VERIFIED`` with what the query image, or a crop of it, is to each.

    Raises:
        ImageError: the query image cannot be read.
    """
    found = verify_rows([_row_of(hit) for hit in hits[:VERIFIED]], image, crop)
    verified = [replace(hit, verified=own) for hit, own in zip(hits, found, strict=False)]
    return Hits([*verified, *hits[VERIFIED:]], hits.bits, hits.remark)


def readable_twice(image: ImageSource) -> ImageSource:
    """The image as it is, or what a binary file gives, which can be read once.

    Raises:
        ImageError: it cannot be read.
    """
    read = getattr(image, "read", None)
    if not callable(read):
        return image
    try:
        return read_stream(read)
    except ImageError as error:
        raise ImageError(f"the {type(image).__name__} given as an image {error}") from error


def _row_of(hit: Hit) -> Row:
    known = hit.fields
    return Row(
        hit.id, hit.path, known["size"], known["mtime_ns"], known["width"], known["height"], known["content_hash"]
    )


def verify_rows(
    rows: Sequence[Row], image: ImageSource, crop: Box | None = None, max_pixels: int | None = None
) -> list[Verification]:
    """What a query image, or a crop of it, is to each of some rows.

    Args:
        rows: without their codes.
        image: the query image.
        crop: x, y, width and height in pixels of the upright query image.
        max_pixels: a larger query image is refused.

    Raises:
        ImageError: the query image cannot be read.
        QueryError: the crop does not lie inside it.
    """
    if not rows:
        return []
    content, grey = _query_pixels(image, crop, max_pixels)
    own, detail, disks = look(content, grey), Detail(lambda: grey), Disks()

    def verify(row: Row) -> Verification:
        state = disks.state(row.path, row.size, row.mtime_ns)
        if state not in VISIBLE:
            return Verification(MARKS[state])
        try:
            content, pixels = read_pixels(text_path(row.path))
        except (ImageError, OSError):
            return Verification("cannot be read")
        if content.hex() != row.content_hash:
            return Verification(MARKS["changed"])
        looks, shown = (own, look(content, pixels)), Detail(lambda: pixels)
        found = match(looks, lambda: (detail, shown))
        verdict = found.verdict
        if verdict is Verdict.SIMILAR and shows((detail, shown), found):
            verdict = Verdict.OBJECT
        box = _box(found, (detail, shown), row) if verdict in COPIES or verdict is Verdict.OBJECT else None
        return Verification(verdict.value, box)

    with ThreadPoolExecutor(os.cpu_count() or 1, "mgm-verify") as pool:
        return list(pool.map(verify, rows))


def _query_pixels(image: ImageSource, crop: Box | None, max_pixels: int | None) -> tuple[bytes, Array]:
    """Hash of the content of a query image, empty where that is no file, and its pixels; see ``read_pixels``."""
    with opening(image, least=None if crop else DETAIL // 2, max_pixels=max_pixels) as decoded:
        grey = pixels_of(decoded.image if crop is None else crop_of(decoded, crop))
    if crop is not None:
        return b"", grey
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes.fromhex(content_hash(bytes(image))), grey
    if isinstance(image, str | os.PathLike) and not (isinstance(image, str) and data_uri(image)):
        with content_of(image) as data:
            return bytes.fromhex(content_hash(data)), grey
    return b"", grey


def _box(found: Match, details: tuple[Detail, Detail], row: Row) -> Box | None:
    """Where the query image lies in an image, in pixels of the full upright image."""
    if found.alignment is None:
        return 0, 0, row.width, row.height
    (height, width), (high, wide) = (detail.grey.shape for detail in details)
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], float) - [0.5, 0.5, 0]
    ends = corners @ found.alignment.matrix.T
    points = (ends[:, :2] / ends[:, 2:] + 0.5) * [row.width / wide, row.height / high]
    left, top = np.clip(points.min(0).round(), 0, [row.width - 1, row.height - 1]).astype(int).tolist()
    right, bottom = np.clip(points.max(0).round(), 0, [row.width, row.height]).astype(int).tolist()
    return left, top, max(1, right - left), max(1, bottom - top)
