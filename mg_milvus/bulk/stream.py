"""Files in, rows with codes out, in order: what one machine does, and each worker of a cluster; what may be skipped."""

from __future__ import annotations

import re
from array import array
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.bulk.remote import without_query
from mg_milvus.bulk.sources import images_in
from mg_milvus.errors import CodeFileError
from mg_milvus.images.discover import Tally, image_id
from mg_milvus.ingest.pipeline import code_bytes, read_images, stored_tags
from mg_milvus.records import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Encoder
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest.pipeline import PreparedImage, Settings
    from mg_milvus.store.base import Row


_AT_ONCE = 1 << 16
"""Keys that are compared at a time."""


def superseded(ids: Iterable[str]) -> NDArray[np.bool_]:
    """Whether a later row has the same id: (n,) in the order of the rows. At most 32 bytes of memory a row.

    Raises:
        CodeFileError: a text is not an id.
    """
    keys = _keys(ids)
    order = np.argsort(keys, kind="stable")
    old = np.zeros(len(keys), np.bool_)
    for start in range(0, len(keys), _AT_ONCE):  # copies of all keys would take twice their memory
        some = order[start : start + _AT_ONCE + 1]
        old[some[:-1]] = keys[some[1:]] == keys[some[:-1]]
    return old


def _keys(ids: Iterable[str]) -> NDArray[np.bytes_]:
    """Ids as an array (n,) of 16 bytes each."""
    data = bytearray()
    for key in ids:
        if not re.fullmatch("[0-9a-f]{32}", key):
            raise CodeFileError(f"{key!r} is not the id of an image: expected 32 hexadecimal digits")
        data += bytes.fromhex(key)
    return np.frombuffer(data, "S16")


class EncodedImages:
    """The images in the files of one shard: 32 bytes of memory an image."""

    def __init__(self, stamps: Iterable[tuple[str, int, int]]) -> None:
        """Read id, size and mtime_ns of each row in the order of the files; of equal ids the last row counts."""
        values = array("q")

        def ids() -> Iterator[str]:
            for key, size, mtime_ns in stamps:
                values.extend((size, mtime_ns))
                yield key

        keys = _keys(ids())
        order = np.argsort(keys, kind="stable")
        self._keys, self._stamps = keys[order], np.frombuffer(values, np.int64).reshape(-1, 2)[order]

    def has(self, file: Found) -> bool:
        """Whether an image is encoded in its present state: same time, and same size where that is known."""
        key = _keys([image_id(file.path)])[0]
        place = int(np.searchsorted(self._keys, key, side="right")) - 1
        if place < 0 or self._keys[place] != key:
            return False
        size, mtime_ns = self._stamps[place]
        return bool(file.size in (-1, size) and file.mtime_ns == mtime_ns)


@dataclass(slots=True)
class Skipped:
    """What encoding gave no row for.

    Attributes:
        unchanged: images that are encoded already.
        failures: images, and files of images, that could not be read; URLs without their query.
        passed: counts what folders, buckets and archives hold that is not taken.
    """

    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)
    passed: Tally = field(default_factory=Tally)

    def add_failure(self, failure: Failure) -> None:
        """Add one, without the query of its URL: reports and logs are public."""
        self.failures.append(Failure(without_query(failure.path), failure.reason))


@dataclass(frozen=True, slots=True)
class Work:
    """What files are encoded with.

    Attributes:
        encoder: of all shards.
        settings: batch size, decoding threads, largest image.
        known: images that are encoded already.
    """

    encoder: Encoder
    settings: Settings
    known: EncodedImages


def encode_files(files: Iterable[Found], work: Work, skipped: Skipped) -> Iterator[list[Row]]:
    """Encode the images among files and inside of them.

    Args:
        files: see ``sources.files_of_shard``.
        work: see ``Work``.
        skipped: updated.

    Yields:
        The rows of one batch of images, in order, without values of extra fields.

    Raises:
        MissingPackageError: a file needs a package that is not installed.
    """

    def todo() -> Iterator[tuple[Found, frozenset[str]]]:
        for image in images_in(files, skipped.add_failure, skipped.passed):
            if work.known.has(image):
                skipped.unchanged += 1
            else:
                yield image, frozenset()

    with closing(read_images(todo(), work.encoder, work.settings)) as images:
        while batch := list(islice(images, work.settings.batch_size)):
            yield _rows(batch, work.encoder, skipped)


def _rows(batch: Sequence[PreparedImage], encoder: Encoder, skipped: Skipped) -> list[Row]:
    """The rows of the readable images."""
    for image in batch:
        if image.failure is not None:
            skipped.add_failure(Failure(image.file.path, image.failure))
    good = [image for image in batch if image.pixels is not None]
    if not good:
        return []
    codes, tags, _ = encoder.encode_and_tag([image.pixels for image in good if image.pixels is not None])
    return [image.row(code_bytes(codes, place), {}, stored_tags(tags, place)) for place, image in enumerate(good)]
