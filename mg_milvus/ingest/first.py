"""The first ingest into a new collection: fit the hash heads on a sample, keep the encoder, make the collection."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.encoder_cache import encoder_of, keep_encoder
from mg_milvus.hits import Failure, Progress
from mg_milvus.images.discover import picture_id
from mg_milvus.ingest.pipeline import Writer, code_bytes, read_pictures
from mg_milvus.store import Description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mg_milvus.encoder import Encoder, Features
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest.pipeline import FieldsOf, Prepared, Settings, Tally
    from mg_milvus.schema import Schema
    from mg_milvus.store import Store

SAMPLE_SIZE = 5_000
"""Pictures looked at, at most, to fit hash heads."""
FEWEST_TO_FIT = 50
"""With fewer pictures the heads that ship are better than fitted ones."""
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
    with closing(read_pictures(((found, None) for found in files), encoder, settings)) as pictures:
        while batch := list(islice(pictures, settings.batch_size)):
            pixels = [picture.pixels for picture in batch if picture.pixels is not None]
            if pixels:
                with settings.meters.timed("encode"):
                    chunks.append(encoder.features(pixels))
                settings.meters.encoded(len(pixels))
            read += [replace(picture, pixels=None) for picture in batch]
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
    base = base.with_regions(schema.parts.windows if schema.parts else ())
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
    good = [picture for picture in read if picture.failure is None]
    adapted = len(good) >= FEWEST_TO_FIT
    encoder = base.adapted(features, bits) if adapted else base.with_bits(bits)
    keep_encoder(store, encoder)
    recorded = store.create(Description(schema, encoder.fingerprint, encoder.adapted_on, encoder.backbone))
    if recorded.fingerprint != encoder.fingerprint:
        return _settled(store, encoder, recorded, device), recorded, set()

    tally.failures += [Failure(p.found.path, p.failure) for p in read if p.failure is not None]
    codes = encoder.codes(features) if good else {}
    rows = (p.row(code_bytes(codes, place), fields_of(p.found, None)) for place, p in enumerate(good))
    with Writer(store, tally, lambda: report(tally.progress("encoding")), settings.meters) as writer:
        while batch := list(islice(rows, _ROWS)):
            writer.put(batch, added=len(batch), updated=0, unchanged=0)
    return encoder, recorded, {picture_id(p.found.path) for p in read}


def _settled(store: Store, encoder: Encoder, recorded: Description, device: str) -> Encoder:
    """The encoder the collection remembers: ours, or that of a client who was faster."""
    if recorded.fingerprint == encoder.fingerprint:
        return encoder
    store.drop_encoder(encoder.fingerprint)
    return encoder_of(store, recorded.fingerprint, device=device)
