"""Images as features and codes, with the hash heads that an ingest of the database would use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.errors import ImageError
from mg_milvus.ingest.fit_heads import FEWEST_TO_FIT, SAMPLE_SIZE, by_content, random_sample, sample_features
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.records import Failure, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Encoder, Features
    from mg_milvus.evaluation.labels import Labelled
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest.pipeline import PreparedImage
    from mg_milvus.schema.models import Schema


@dataclass(frozen=True, slots=True)
class Setup:
    """What an evaluation of any protocol needs.

    Attributes:
        encoder: as loaded, before its heads are fitted.
        schema: granularities, weights, heads.
        sample: images that the heads are fitted on, at most.
        settings: batch size, threads, largest image.
        progress: called after each batch.
    """

    encoder: Encoder
    schema: Schema
    sample: int = SAMPLE_SIZE
    settings: Settings = field(default_factory=Settings)
    progress: Callable[[Progress], None] | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """Labelled images and their features.

    Attributes:
        labelled: those that could be read.
        features: granularity -> (n, d) float32, before hashing, in the order of ``labelled``.
        failures: those that could not be read, which are left out.
        broken: (n,) bool of all images: which of them could not be read.
        read: those of ``labelled``, with their content hashes.
    """

    labelled: Labelled
    features: Features
    failures: tuple[Failure, ...]
    broken: NDArray[np.bool_]
    read: tuple[PreparedImage, ...]


def encode_labelled(
    labelled: Labelled,
    encoder: Encoder,
    settings: Settings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Encoded:
    """Read images and encode them up to the features.

    Args:
        labelled: the images; labels are not looked at.
        encoder: its heads play no part.
        settings: batch size, decoding threads, largest image; default: the ingest's.
        progress: called after each batch.

    Raises:
        ImageError: not one of them can be read.
    """
    report = progress or (lambda _: None)
    read, features = sample_features(
        labelled.images, encoder, settings or Settings(),
        lambda done: report(Progress("encoding", done, len(labelled), 0)),
    )  # fmt: skip
    failures = tuple(Failure(image.file.path, image.failure) for image in read if image.failure is not None)
    if len(failures) == len(read):
        raise ImageError(f"none of the {len(read)} images can be read" + (f": {failures[0].reason}" if read else ""))
    broken = np.array([image.failure is not None for image in read])
    kept = labelled.subset(np.flatnonzero(~broken)) if failures else labelled
    return Encoded(kept, features, failures, broken, tuple(image for image in read if image.failure is None))


def with_heads(
    setup: Setup, features: Features, readable: Sequence[PreparedImage], database: Sequence[Found]
) -> tuple[Encoder, int]:
    """The encoder with the hash heads that a first ingest of a database gives it.

    Args:
        setup: the encoder, the schema with its code lengths and kind of heads, and the size of the sample.
        features: granularity -> (n, d) of ``readable``.
        readable: images of the database that could be read, in its order.
        database: all its images, in the order of the ingest; the sample is drawn from these, as the ingest draws it.

    Returns:
        The encoder, and the number of images that its heads were fitted on: 0 for its own.

    Raises:
        EncoderError: the encoder does not offer one of the granularities.
    """
    encoder, bits = setup.encoder, setup.schema.bits
    encoder.check(bits)
    chosen = {found.path for found in random_sample(database, setup.sample)[0]}
    rows = np.array([row for row, image in enumerate(readable) if image.file.path in chosen], np.intp)
    order, distinct = by_content([readable[row] for row in rows])
    rows = rows[order[:distinct]]
    # As the first ingest decides it.
    if setup.schema.encoder.heads == "fixed" or len(rows) < FEWEST_TO_FIT:
        return encoder.with_bits(bits), 0
    fitted = encoder.adapted({name: values[rows] for name, values in features.items()}, bits)
    # Trained heads are never fitted again.
    return fitted, 0 if fitted.fingerprint == encoder.with_bits(bits).fingerprint else len(rows)


def heads_text(fitted_on: int) -> str:
    """Where the heads come from, for people."""
    return f"adapted on {fitted_on} images" if fitted_on else "the encoder's own"
