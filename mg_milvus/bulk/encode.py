"""Encode the images of a shard into files of codes; a later run skips the images that are already encoded."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mg_milvus.bulk.cluster import Cluster, encode_on_ray
from mg_milvus.bulk.dataset import CodeFolder, Shard, to_parquet
from mg_milvus.bulk.sources import files_of_shard
from mg_milvus.bulk.stream import EncodedImages, Skipped, Work, encode_files
from mg_milvus.encoder.file import SHIPPED
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import CodeFileError, EncoderError, MgMilvusError, QueryError
from mg_milvus.images.discover import is_url, path_text
from mg_milvus.ingest.metadata import default_values, read_metadata
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.records import Failure, PassedOver, Progress
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from mg_milvus.encoder.base import Encoder
    from mg_milvus.images.discover import Found
    from mg_milvus.store.base import Row

    PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """Options of ``encode``.

    Attributes:
        schema: of the collection that the codes are for.
        shard: the share of this machine.
        metadata: as in ``ImageIndex.ingest``.
        rows_per_file: images of one file; a killed run encodes at most as many again.
        settings: batch size, decoding threads, largest image.
        device: of the network.
        allow_private: http(s) URLs may lead to private, loopback and link-local addresses. A list from a stranger could
            then reach services that only this machine reaches.
        on: the Ray cluster whose machines encode, ``ray`` for the one that this machine belongs to (or one of this
            machine alone), ``ray://HOST:10001`` for another; None: this machine. See ``bulk.cluster``.
    """

    schema: Schema = field(default_factory=Schema)
    shard: Shard = field(default_factory=Shard)
    metadata: PathLike | None = None
    rows_per_file: int = 20_000
    settings: Settings = field(default_factory=Settings)
    device: str = "auto"
    allow_private: bool = False
    on: str | None = None

    def __post_init__(self) -> None:
        batch_size, workers = self.settings.batch_size, self.settings.workers
        if min(batch_size, self.rows_per_file, workers or 1) < 1:
            raise QueryError(
                f"batch_size {batch_size}, rows_per_file {self.rows_per_file}, workers {workers}: expected 1 or more"
            )
        if self.on is not None and self.on != "ray" and not self.on.startswith("ray://"):
            raise QueryError(f"on is '{self.on}': expected ray, or ray://HOST:10001 for a cluster elsewhere")


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """Result of one run of ``encode``, in numbers of images of its shard.

    Attributes:
        shard: number and count.
        seen: images found, unreadable ones included.
        encoded: images written by this run.
        unchanged: images written by an earlier run and not changed since.
        failures: images, and files of images, that could not be read.
        files: files written by this run.
        fingerprint: of the encoder.
        seconds: wall time.
        interrupted: stopped by the user; the images counted are written.
        passed_over: what folders, buckets and archives hold that was not taken, by kind.
    """

    shard: Shard
    seen: int
    encoded: int
    unchanged: int
    failures: tuple[Failure, ...]
    files: int
    fingerprint: str
    seconds: float
    interrupted: bool = False
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Images encoded a second."""
        return self.encoded / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """A dictionary, ready for JSON."""
        return {
            "shard": str(self.shard), "seen": self.seen, "encoded": self.encoded, "unchanged": self.unchanged,
            "failed": len(self.failures), "failures": [{"path": f.path, "reason": f.reason} for f in self.failures],
            "files": self.files, "fingerprint": self.fingerprint, "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 1), "interrupted": self.interrupted,
            "passed_over": [asdict(kind) for kind in self.passed_over],
        }  # fmt: skip


def encode(
    *sources: PathLike,
    out: PathLike,
    encoder: Encoder | PathLike | None = None,
    options: EncodeOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> EncodeReport:
    """Encode the images of one shard into a folder of codes, which ``ImageIndex.load`` loads into Milvus.

    A run that was killed or stopped can be repeated: files are written whole or not at all, and their images are
    skipped. An image that has changed since is encoded again, and its newer row wins when the folder is loaded.

    Args:
        *sources: see ``bulk.sources.files_of_shard``.
        out: the folder, which the machines of all shards may share, also in a bucket.
        encoder: an encoder file, or ``builtin`` for the one that ships; used with the heads that it has.
        options: see ``EncodeOptions``.
        progress: called after each batch.

    Raises:
        EncoderError: no encoder is given, or it does not make the codes of the schema.
        ImageError: a source does not exist.
        CodeFileError: the folder holds other codes, is damaged, or cannot be written.
        ClusterError: the Ray cluster is not there, or its workers die.
    """
    started = time.perf_counter()
    options = options or EncodeOptions()
    values_of = _metadata(options, sources)
    skipped = Skipped()
    files = files_of_shard(
        sources, options.shard, skipped.add_failure, allow_private=options.allow_private, passed=skipped.passed
    )
    used = _encoder(encoder, options.schema, options.device)
    description = Description(options.schema, used.fingerprint, used.adapted_on, used.backbone)
    run = _Run(CodeFolder(out), options, description, values_of, skipped)
    interrupted = False
    try:
        run.encode(files, used, progress or (lambda _: None))
    except KeyboardInterrupt:
        interrupted = True
    failures = skipped.failures
    return EncodeReport(
        shard=options.shard, seen=run.encoded + skipped.unchanged + len(failures), encoded=run.encoded,
        unchanged=skipped.unchanged, failures=tuple(failures), files=run.files, fingerprint=used.fingerprint,
        seconds=time.perf_counter() - started, interrupted=interrupted, passed_over=skipped.passed.records(),
    )  # fmt: skip


def _metadata(options: EncodeOptions, sources: Sequence[PathLike]) -> Callable[[str], Mapping[str, Any]]:
    """The function from the path of an image to the values of its extra fields."""
    fields, defaults = options.schema.fields, default_values(options.schema.fields)
    if options.metadata is None:
        return lambda _: defaults
    roots = [source if is_url(source) else path_text(source) for source in map(str, sources)]
    return read_metadata(options.metadata, fields, roots).values


def _encoder(given: Encoder | PathLike | None, schema: Schema, device: str) -> Encoder:
    """The encoder of all shards, with its own heads: no machine sees all images that heads could adapt to."""
    if given is None and (schema.encoder.name not in SHIPPED or schema.encoder.heads == "fixed"):
        given = schema.encoder.name
    if given is None:
        raise EncoderError(
            "no encoder is given, expected the one that all shards share: fit it to a sample of the images with mgm "
            "fit SAMPLE --out mine.safetensors (and --schema, if you have one) and give --encoder mine.safetensors to "
            "each; or give --encoder builtin, whose heads fit your images less well"
        )
    base = load_encoder(str(given), device=device) if isinstance(given, str | os.PathLike) else given
    base = base.with_regions(schema.regions.windows if schema.regions else ())
    base.check(schema.code_bits)
    wrong = [name for name, bits in schema.bits.items() if base.bits.get(name) != bits]
    if wrong:
        # Heads of other lengths would have to be fitted here, with a different result on another machine.
        lengths = ",".join(f"{name}={bits}" for name, bits in schema.bits.items())
        raise EncoderError(
            f"the encoder {base.fingerprint} has {base.bits.get(wrong[0])} bits of '{wrong[0]}', the schema asks for "
            f"{schema.bits[wrong[0]]}: make one with mgm fit SAMPLE --bits {lengths} --out mine.safetensors"
        )
    return base.with_bits(schema.code_bits)


@dataclass(slots=True)
class _Run:
    """One run over one shard, with its counts."""

    folder: CodeFolder
    options: EncodeOptions
    description: Description
    values_of: Callable[[str], Mapping[str, Any]]
    skipped: Skipped
    encoded: int = 0
    files: int = 0

    def encode(self, files: Iterator[Found], encoder: Encoder, report: Callable[[Progress], None]) -> None:
        """Encode the images that are new or changed; then mark the shard as finished."""
        parts = self._prepare(encoder)
        known = EncodedImages(stamp for name in parts for stamp in self._stamps(name))
        work = Work(encoder, self.options.settings, known)
        rows: dict[str, Row] = {}
        try:
            with closing(self._batches(files, work, report)) as batches:
                for batch in batches:
                    for row in batch:
                        rows[row.id] = replace(row, fields=self.values_of(row.path))
                        # Not by whole batches: what a run writes does not depend on where an earlier one was stopped.
                        if len(rows) == self.options.rows_per_file:
                            self._write(rows, parts)
                    done = self.encoded + len(rows) + self.skipped.unchanged
                    report(Progress("encoding", done, 0, len(self.skipped.failures)))
        except (KeyboardInterrupt, MgMilvusError):
            self._write(rows, parts)
            raise
        self._write(rows, parts)
        self.folder.finish(self.options.shard, parts)

    def _batches(self, files: Iterator[Found], work: Work, report: Callable[[Progress], None]) -> Generator[list[Row]]:
        """Rows in the order of the files, encoded here or by the workers of a cluster."""
        if self.options.on is None:
            yield from encode_files(files, work, self.skipped)
        else:
            yield from encode_on_ray(files, work, self.skipped, Cluster(self.options.on, self.options.device, report))

    def _prepare(self, encoder: Encoder) -> dict[str, int]:
        """Check that the folder belongs to this run; returns part -> rows of the existing parts of the shard."""
        shard = self.options.shard
        if others := [str(other) for other in self.folder.shards() if other.count != shard.count]:
            raise CodeFileError(
                f"{self.folder.name} has files of the shard {others[0]}, this is {shard}: use the same count on "
                "all machines, or another folder"
            )
        fingerprint = encoder.fingerprint
        encoders = self.folder.encoders()
        if different := [other for other in encoders if other != fingerprint]:
            raise CodeFileError(
                f"{self.folder.name} holds codes of the encoder {different[0]}, yours is {fingerprint}: give all "
                "shards the same --encoder, or use another folder"
            )
        self.folder.clean(shard)
        if not encoders:
            self.folder.add_encoder(fingerprint, encoder.to_bytes())
        parts: dict[str, int] = {}
        for name in self.folder.files(shard):
            with self.folder.part(name) as part:
                if part.description != self.description:
                    raise CodeFileError(
                        f"{part.name} was made with another schema or encoder ({part.description.fingerprint}): "
                        "give the same --schema and --encoder again, or use another folder"
                    )
                parts[name] = part.rows
        return parts

    def _stamps(self, name: str) -> Iterator[tuple[str, int, int]]:
        with self.folder.part(name) as part:
            yield from part.stamps()

    def _write(self, rows: dict[str, Row], parts: dict[str, int]) -> None:
        """Write the rows as another part, and clear them."""
        if rows:
            data = to_parquet(list(rows.values()), self.description)
            parts[self.folder.add_part(self.options.shard, data)] = len(rows)
            self.encoded += len(rows)
            self.files += 1
            rows.clear()
