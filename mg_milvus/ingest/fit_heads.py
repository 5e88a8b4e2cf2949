"""The first ingest into a new collection: fit the hash heads on a sample, keep the encoder, make the collection."""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mg_milvus.encoder.load import load_encoder, untrained_encoder
from mg_milvus.errors import EncoderError, ImageError
from mg_milvus.files import write_whole
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
from mg_milvus.images.discover import discover, image_id
from mg_milvus.ingest.pipeline import Settings, Writer, code_bytes, read_images
from mg_milvus.records import Failure, Progress
from mg_milvus.schema.models import Schema
from mg_milvus.schema.regions import REGIONS
from mg_milvus.session import encoder_of, keep_encoder
from mg_milvus.store.base import Description

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mg_milvus.encoder.base import Encoder, Features
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest.metrics import Tally
    from mg_milvus.ingest.pipeline import FieldsOf, Prepared
    from mg_milvus.store.base import Store


SAMPLE_SIZE = 5_000
"""Images looked at, at most, to fit hash heads."""
FEWEST_TO_FIT = 50
"""With fewer images the heads that ship are better than fitted ones."""
_SEED = 7
_ROWS = 500
"""Rows of the sample that are written in one call."""


def reservoir(files: Iterable[Found], size: int) -> tuple[list[Found], int]:
    """A uniform random sample of at most ``size`` files, in their order, and the number of all (Vitter 1985)."""
    chosen: list[tuple[int, Found]] = []
    randomness = random.Random(_SEED)  # noqa: S311  (reproducible, not secret)
    count = 0
    for count, found in enumerate(files, start=1):
        if len(chosen) < size:
            chosen.append((count, found))
        elif (place := randomness.randrange(count)) < size:
            chosen[place] = (count, found)
    return [found for _, found in sorted(chosen, key=lambda pair: pair[0])], count


def sample_features(
    files: Sequence[Found], encoder: Encoder, settings: Settings, report: Callable[[int], None]
) -> tuple[list[Prepared], Features]:
    """Read and encode a sample up to the features.

    Args:
        files: the sample.
        encoder: its features do not depend on its heads.
        settings: see ``Settings``.
        report: told the number of files read so far.

    Returns:
        What was read, without pixels, failures included; features (n, d) of those n that did not fail, in order.
    """
    read: list[Prepared] = []
    chunks: list[Features] = []
    with closing(read_images(((found, None) for found in files), encoder, settings)) as images:
        while batch := list(islice(images, settings.batch_size)):
            pixels = [image.pixels for image in batch if image.pixels is not None]
            if pixels:
                with settings.metrics.time("encode"):
                    chunks.append(encoder.features(pixels))
                settings.metrics.count_encoded(len(pixels))
            read += [replace(image, pixels=None) for image in batch]
            report(len(read))
    return read, {g: np.concatenate([chunk[g] for chunk in chunks]) for g in (chunks[0] if chunks else {})}


def first_ingest(
    store: Store,
    base: Encoder,
    schema: Schema,
    sample: Sequence[Found],
    settings: Settings,
    *,
    fields_of: FieldsOf,
    tally: Tally,
    report: Callable[[Progress], None],
    device: str,
) -> tuple[Encoder, Description, set[str]]:
    """Make the collection and ingest the sample that the heads are fitted on, which is read and encoded once.

    When another client makes the collection meanwhile, its encoder is used and the sample is left to the main pass.

    Returns:
        The collection's encoder and description, and the ids of the files that are dealt with.
    """
    base = base.with_regions(schema.regions.windows if schema.regions else ())
    bits = schema.code_bits
    base.check(bits)
    if schema.encoder.heads == "fixed" or len(sample) < FEWEST_TO_FIT:
        encoder = base.with_bits(bits)
        keep_encoder(store, encoder)
        recorded = store.create(Description(schema, encoder.fingerprint, 0, encoder.backbone))
        return _settled(store, encoder, recorded, device), recorded, set()

    read, features = sample_features(
        sample, base, settings,
        lambda done: report(Progress("reading a sample to fit the hash heads", done, len(sample), 0)),
    )  # fmt: skip
    good = [image for image in read if image.failure is None]
    adapted = len(good) >= FEWEST_TO_FIT
    encoder = base.adapted(features, bits) if adapted else base.with_bits(bits)
    keep_encoder(store, encoder)
    recorded = store.create(Description(schema, encoder.fingerprint, encoder.adapted_on, encoder.backbone))
    if recorded.fingerprint != encoder.fingerprint:
        return _settled(store, encoder, recorded, device), recorded, set()

    tally.failures += [Failure(p.found.path, p.failure) for p in read if p.failure is not None]
    codes = encoder.codes(features) if good else {}
    rows = (p.row(code_bytes(codes, place), fields_of(p.found, None)) for place, p in enumerate(good))
    with Writer(store, tally, lambda: report(tally.progress("encoding")), settings.metrics) as writer:
        while batch := list(islice(rows, _ROWS)):
            writer.put(batch, added=len(batch), updated=0, unchanged=0)
    return encoder, recorded, {image_id(p.found.path) for p in read}


def _settled(store: Store, encoder: Encoder, recorded: Description, device: str) -> Encoder:
    """The encoder the collection remembers: ours, or that of a client who was faster."""
    if recorded.fingerprint == encoder.fingerprint:
        return encoder
    store.drop_encoder(encoder.fingerprint)
    return encoder_of(store, recorded.fingerprint, device=device)


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit did.

    Attributes:
        fingerprint: of the encoder made.
        images: that the heads were fitted on.
        failures: files that could not be read.
        seconds: wall time.
        bytes: size of the file.
    """

    fingerprint: str
    images: int
    failures: tuple[Failure, ...]
    seconds: float
    bytes: int


def fit_encoder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backbone: str = "builtin",
    bits: Mapping[str, int] | None = None,
    schema: Schema | None = None,
    sample: int = SAMPLE_SIZE,
    weights: str | os.PathLike[str] | None = None,
    method: Literal["adaptive", "itq", "lsh"] = "adaptive",
    device: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[Progress], None] | None = None,
) -> FitReport:
    """Fit hash heads over a backbone to images, and write the encoder file.

    Args:
        folder: images like those to be searched.
        out: the file to write, whole or not at all.
        backbone: ``builtin``, an encoder file (whose network is used), or a name of the table in
            ``encoder/backbones.py``.
        bits: granularity -> code length; default: the schema's.
        schema: what the codes are for; with its regions, unless ``bits`` are given. Default: the default schema.
        sample: images looked at, at most.
        weights: the backbone's weights; default: torchvision's pretrained ones.
        method: ``adaptive`` heads, which every collection fits again to its own images; or, to compare with, those of
            PCA and ITQ, or random hyperplanes (LSH), which collections keep as they are.
        device: where the backbone runs.
        batch_size: images per batch.
        workers: decoding threads.
        max_pixels: larger images are refused.
        progress: called after each batch.

    Raises:
        EncoderError: unknown backbone or granularity, or weights that do not fit.
        WeightsNotFoundError: pretrained weights are asked for and not to be had.
        ImageError: the folder does not exist, or has too few images.
    """
    started = time.perf_counter()
    schema = schema or Schema()
    lengths = schema.code_bits if bits is None else bits
    if backbone == "builtin":
        if weights is not None:
            raise EncoderError("the built-in encoder has its weights; name a backbone (mgnet) to use others")
        base = load_encoder("builtin", device=device)
    elif Path(backbone).suffix == ".safetensors":
        base = load_encoder(backbone, device=device)
    else:
        base = untrained_encoder(backbone, weights, device=device)
    base = base.with_regions(schema.regions.windows if schema.regions and REGIONS in lengths else ())
    base.check(lengths)
    if base.regions and method != "adaptive":
        raise EncoderError(f"regions have adaptive heads only, not those of {method}: take a schema without 'regions'")
    failures: list[Failure] = []
    chosen, _ = reservoir(discover([folder], failures.append), sample)
    told = progress or (lambda _: None)
    read, features = sample_features(
        chosen, base, Settings(batch_size, workers, max_pixels),
        lambda done: told(Progress("reading images to fit the hash heads", done, len(chosen), len(failures))),
    )  # fmt: skip
    failures += [Failure(image.found.path, image.failure) for image in read if image.failure is not None]
    good = sum(image.failure is None for image in read)
    if good < FEWEST_TO_FIT:
        raise ImageError(
            f"{folder} has {good} readable images, expected at least {FEWEST_TO_FIT} to fit hash heads; add more, or "
            "use the encoder 'builtin' as it is"
        )
    encoder = base.adapted(features, lengths) if method == "adaptive" else base.baseline(features, lengths, method)
    if encoder is base:
        raise EncoderError(
            f"the hash heads of {backbone} were trained and are kept; only the methods itq and lsh replace them"
        )
    data = encoder.to_bytes()
    try:
        write_whole(Path(out), data)
    except OSError as error:
        raise EncoderError(f"the encoder cannot be written to {out}: {error.strerror}") from error
    return FitReport(encoder.fingerprint, good, tuple(failures), time.perf_counter() - started, len(data))
