"""Which images of a shard are encoded already, and which of its rows are out of date."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.bulk.dataset import CodeFolder, Shard, to_parquet
from mg_milvus.bulk.remote import without_query
from mg_milvus.bulk.sources import images
from mg_milvus.encoder.file import SHIPPED
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import CodeFileError, EncoderError, MgMilvusError, QueryError
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
from mg_milvus.images.discover import image_id, is_url, path_text
from mg_milvus.ingest.metadata import default_values, read_metadata
from mg_milvus.ingest.pipeline import Settings, code_bytes, read_images
from mg_milvus.records import Failure, Progress
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Encoder
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest.pipeline import PreparedImage
    from mg_milvus.store.base import Row

    PathLike = str | os.PathLike[str]


_ROW = np.dtype([("high", np.uint64), ("low", np.uint64), ("size", np.int64), ("mtime_ns", np.int64)])
_CHUNK = 65_536


def superseded(ids: Iterable[str]) -> NDArray[np.bool_]:
    """Whether a later row has the same id: (n,) in the order of the rows. 24 bytes of memory a row.

    Raises:
        CodeFileError: what is no id.
    """
    chunks = [np.empty((0, 2), np.uint64)]
    rest = iter(ids)
    while some := list(islice(rest, _CHUNK)):
        chunks.append(np.array([_halves(key) for key in some], np.uint64))
    table = np.concatenate(chunks)
    order = np.lexsort((table[:, 1], table[:, 0]))  # stable: those of one id stay in order
    found = np.zeros(len(table), np.bool_)
    found[order[:-1]] = (table[order[1:]] == table[order[:-1]]).all(axis=1)
    return found


def _halves(key: str) -> tuple[int, int]:
    try:
        return int(key[:16], 16), int(key[16:], 16)
    except ValueError as error:
        raise CodeFileError(f"{key!r} is not the id of an image: expected 32 hexadecimal digits") from error


class Finished:
    """The images that the files of one shard have: 32 bytes of memory an image."""

    def __init__(self, stamps: Iterable[tuple[str, int, int]]) -> None:
        """Read id, size and mtime_ns of each row, in the order of the files; of several of one id the last counts."""
        chunks, rows = [], []
        for key, size, mtime_ns in stamps:
            rows.append((*_halves(key), size, mtime_ns))
            if len(rows) == _CHUNK:
                chunks.append(np.array(rows, _ROW))
                rows = []
        table = np.concatenate([*chunks, np.array(rows, _ROW)])
        self._table = table[np.lexsort((table["low"], table["high"]))]  # stable: those of one id stay in order

    def __len__(self) -> int:
        return len(self._table)

    def has(self, key: str, found: Found) -> bool:
        """Whether an image is there as it is now: of the same size, where that is known, and the same time."""
        high, low = np.uint64(int(key[:16], 16)), np.uint64(int(key[16:], 16))
        end = int(np.searchsorted(self._table["high"], high, side="right"))
        while end and self._table["high"][end - 1] == high:
            row = self._table[end - 1]
            if row["low"] == low:
                return bool(found.size in (-1, row["size"]) and found.mtime_ns == row["mtime_ns"])
            end -= 1
        return False


ROWS_A_FILE = 20_000
"""Images of one part: what a run that is killed has to do again, at most."""


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What one run of ``encode`` did, in images of its shard.

    Attributes:
        shard: number and count.
        seen: images found, unreadable ones included.
        encoded: written by this run.
        finished: written by an earlier run, and not changed since.
        failures: images, and files of images, that could not be read.
        files: files written by this run.
        fingerprint: of the encoder.
        seconds: wall time.
        interrupted: stopped by the user; what is counted is written.
    """

    shard: Shard
    seen: int
    encoded: int
    finished: int
    failures: tuple[Failure, ...]
    files: int
    fingerprint: str
    seconds: float
    interrupted: bool = False

    @property
    def images_per_second(self) -> float:
        """Images encoded a second."""
        return self.encoded / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {
            "shard": str(self.shard), "seen": self.seen, "encoded": self.encoded, "finished": self.finished,
            "failed": len(self.failures), "failures": [{"path": f.path, "reason": f.reason} for f in self.failures],
            "files": self.files, "fingerprint": self.fingerprint, "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 1), "interrupted": self.interrupted,
        }  # fmt: skip


def encode(
    *sources: PathLike,
    out: PathLike,
    encoder: Encoder | PathLike | None = None,
    schema: Schema | PathLike | None = None,
    shard: Shard | str = "1/1",
    metadata: PathLike | None = None,
    rows_a_file: int = ROWS_A_FILE,
    batch_size: int = 64,
    workers: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    device: str = "auto",
    allow_private: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> EncodeReport:
    """Encode the images of one shard into a folder of codes, which ``ImageIndex.load`` puts into Milvus.

    Run again it goes on where it was killed or stopped: files are written whole or not at all, and what they have is
    not done again. An image that changed since is encoded anew, and its newer row wins when the folder is loaded.

    Args:
        *sources: see ``bulk.sources.images``.
        out: the folder; n machines may share it, also in a bucket.
        encoder: an encoder file, or ``builtin`` for the one that ships; taken with the heads that it has.
        schema: what the collection will hold.
        shard: this machine's share, ``2/4`` for the second of four.
        metadata: as in ``ImageIndex.ingest``.
        rows_a_file: images of one part.
        batch_size: images per batch.
        workers: decoding threads; default: one a core.
        max_pixels: larger images are refused.
        device: where the network runs.
        allow_private: http(s) URLs may lead to private, loopback and link-local addresses. A list that a stranger wrote
            would reach what only this machine can.
        progress: called after each batch.

    Raises:
        EncoderError: there is no encoder given, or it does not make the codes of the schema.
        ImageError: a source does not exist.
        CodeFileError: the folder holds other codes, is damaged, or cannot be written.
    """
    started = time.perf_counter()
    if min(batch_size, rows_a_file, workers or 1) < 1:
        raise QueryError(f"batch_size {batch_size}, rows_a_file {rows_a_file}, workers {workers}: expected 1 or more")
    shard = Shard.parse(shard) if isinstance(shard, str) else shard
    schema = schema if isinstance(schema, Schema) else Schema() if schema is None else Schema.load(str(schema))
    table = (
        read_metadata(metadata, schema.fields, [s if is_url(s) else path_text(s) for s in map(str, sources)])
        if metadata
        else None
    )
    defaults = default_values(schema.fields)
    failures: list[Failure] = []
    found = images(
        sources, shard, lambda failure: failures.append(_shown(failure)), allow_private=allow_private
    )  # fmt: skip
    codes = _encoder(encoder, schema, device)
    run = _Run(
        CodeFolder(out), shard, codes, Description(schema, codes.fingerprint, codes.adapted_on, codes.backbone),
        lambda path: defaults if table is None else table.values(path), failures, progress or (lambda _: None),
    )  # fmt: skip
    interrupted = False
    try:
        run.go(found, Settings(batch_size, workers, max_pixels), rows_a_file)
    except KeyboardInterrupt:
        interrupted = True
    return EncodeReport(
        shard, run.encoded + run.finished + len(failures), run.encoded, run.finished, tuple(failures), run.files,
        codes.fingerprint, time.perf_counter() - started, interrupted,
    )  # fmt: skip


def _shown(failure: Failure) -> Failure:
    """As it is reported and logged: without the queries of URLs."""
    return Failure(without_query(failure.path), failure.reason)


def _encoder(given: Encoder | PathLike | None, schema: Schema, device: str) -> Encoder:
    """The one encoder of all shards, with the heads it has: no machine sees all that heads could adapt to."""
    if given is None and (schema.encoder.name not in SHIPPED or schema.encoder.heads == "fixed"):
        given = schema.encoder.name
    if given is None:
        raise EncoderError(
            "no encoder is given, expected the one that all shards share: make it from a sample of the images with "
            "mgm fit SAMPLE --out mine.safetensors (and --schema, if you have one) and give --encoder mine.safetensors "
            "to each; or give --encoder builtin, whose heads fit your images less well"
        )
    base = load_encoder(str(given), device=device) if isinstance(given, str | os.PathLike) else given
    base = base.with_regions(schema.regions.windows if schema.regions else ())
    base.check(schema.code_bits)
    wrong = [name for name, bits in schema.bits.items() if base.bits.get(name) != bits]
    if wrong:
        # Heads of other lengths would be fitted here, and may come out different on another machine.
        lengths = ",".join(f"{name}={bits}" for name, bits in schema.bits.items())
        raise EncoderError(
            f"the encoder {base.fingerprint} has {base.bits.get(wrong[0])} bits of '{wrong[0]}', the schema asks for "
            f"{schema.bits[wrong[0]]}: make one with mgm fit SAMPLE --bits {lengths} --out mine.safetensors"
        )
    return base.with_bits(schema.code_bits)


class _Run:
    """One run over one shard, and what it has done so far."""

    def __init__(
        self, folder: CodeFolder, shard: Shard, encoder: Encoder, description: Description,
        fields_of: Callable[[str], Mapping[str, Any]], failures: list[Failure], report: Callable[[Progress], None],
    ) -> None:  # fmt: skip
        self._folder, self._shard, self._encoder, self._description = folder, shard, encoder, description
        self._fields_of, self._failures, self._report = fields_of, failures, report
        self.encoded = self.finished = self.files = 0

    def go(self, found: Iterator[Found], settings: Settings, rows_a_file: int) -> None:
        """Encode what is not finished; then mark the shard as finished."""
        files = self._prepare()
        rows: dict[str, Row] = {}
        try:
            with closing(read_images(self._todo(found, files), self._encoder, settings)) as read:
                while batch := list(islice(read, settings.batch_size)):
                    rows |= self._rows(batch)
                    if len(rows) >= rows_a_file:
                        self._write(rows, files)
                    self._report(Progress("encoding", self.encoded + len(rows) + self.finished, 0, len(self._failures)))
        except (KeyboardInterrupt, MgMilvusError):
            self._write(rows, files)
            raise
        self._write(rows, files)
        self._folder.finish(self._shard, files)

    def _prepare(self) -> dict[str, int]:
        """Part -> rows of what is finished, after a look at whether the folder is the right one."""
        others = [str(other) for other in self._folder.shards() if other.count != self._shard.count]
        if others:
            raise CodeFileError(
                f"{self._folder.name} has files of the shard {others[0]}, this is {self._shard}: use the same count on "
                "all machines, or another folder"
            )
        mine = self._encoder.fingerprint
        strangers = [kept for kept in self._folder.encoders() if kept != mine]
        if strangers:
            raise CodeFileError(
                f"{self._folder.name} holds codes of the encoder {strangers[0]}, yours is {mine}: give all shards the "
                "same --encoder, or use another folder"
            )
        self._folder.clean(self._shard)
        if mine not in self._folder.encoders():
            self._folder.keep_encoder(mine, self._encoder.to_bytes())
        files: dict[str, int] = {}
        for name in self._folder.files(self._shard):
            with self._folder.part(name) as part:
                if part.description != self._description:
                    raise CodeFileError(
                        f"{part.name} was made with another schema or encoder ({part.description.fingerprint}): "
                        "give the same --schema and --encoder again, or use another folder"
                    )
                files[name] = part.rows
        return files

    def _todo(self, found: Iterator[Found], files: Mapping[str, int]) -> Iterator[tuple[Found, None]]:
        finished = Finished(self._stamps(files))
        for image in found:
            if finished.has(image_id(image.path), image):
                self.finished += 1
            else:
                yield image, None

    def _stamps(self, files: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
        for name in files:
            with self._folder.part(name) as part:
                yield from part.stamps()

    def _rows(self, batch: Sequence[PreparedImage]) -> dict[str, Row]:
        """The rows of those that could be read."""
        self._failures += [_shown(Failure(p.file.path, p.failure)) for p in batch if p.failure is not None]
        good = [image for image in batch if image.pixels is not None]
        codes = self._encoder.encode([p.pixels for p in good if p.pixels is not None]) if good else {}
        rows = [p.row(code_bytes(codes, place), self._fields_of(p.file.path)) for place, p in enumerate(good)]
        return {row.id: row for row in rows}

    def _write(self, rows: dict[str, Row], files: dict[str, int]) -> None:
        """Write a part and empty ``rows``."""
        if rows:
            files[self._folder.add_part(self._shard, to_parquet(list(rows.values()), self._description))] = len(rows)
            self.encoded += len(rows)
            self.files += 1
            rows.clear()
