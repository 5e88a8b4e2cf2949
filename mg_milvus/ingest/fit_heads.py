"""Fitting hash heads on a sample of images: at the first ingest into a collection, or into an encoder file."""

from __future__ import annotations

import hashlib
import heapq
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mg_milvus import session
from mg_milvus.encoder.backbones import EXTRAS, LIBRARIES, library_of
from mg_milvus.encoder.classifier import TAGS
from mg_milvus.encoder.file import BUILTIN
from mg_milvus.encoder.load import load_encoder, untrained_encoder
from mg_milvus.errors import EncoderError, ImageError, LabelError
from mg_milvus.files import write_whole
from mg_milvus.images.discover import discover, image_id
from mg_milvus.ingest.pipeline import Counts, Settings, Writer, code_bytes, read_images, stored_tags
from mg_milvus.records import Failure, Note, Progress
from mg_milvus.schema.models import REGIONS, Schema
from mg_milvus.session import encoder_of, keep_encoder
from mg_milvus.store.base import Description

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Encoder, Features
    from mg_milvus.images.discover import Found
    from mg_milvus.ingest.pipeline import IngestRun, PreparedImage


SAMPLE_SIZE = 5_000
"""Images that hash heads are fitted on, at most."""
FEWEST_TO_FIT = 50
"""Fewest images to fit heads on; with fewer, the shipped heads are better."""
LEARNING = ("coarse", "mid")
"""Granularities that learn labels: the first parts beside the whole of them, and the whole alone."""
FAR_SHARE = 0.3
FEWEST_FAR = 50
"""Heads should be fitted again when so many later images, and this share of them, are unlike the first: on photographs
and thumbnails 0.05 to 0.22 of later images of the kinds that there were are, and 0.45 to 0.99 of new kinds."""
_ROWS = 500
"""Rows of the sample to write in one call."""


def random_sample(files: Iterable[Found], size: int) -> tuple[list[Found], int]:
    """A random sample of at most ``size`` files, in their order, and the number of all.

    Those whose size and name have the smallest hashes: in whatever order and folder the files come, they are the same.
    """
    count = 0

    def keyed() -> Iterator[tuple[bytes, str, int, Found]]:
        nonlocal count
        for count, file in enumerate(files, start=1):
            own = f"{file.size} {file.path.rpartition('/')[2]}".encode(errors="surrogatepass")
            yield hashlib.blake2b(own, digest_size=8).digest(), file.path, count, file

    chosen = heapq.nsmallest(size, keyed(), key=lambda entry: entry[:3])
    return [file for *_, file in sorted(chosen, key=lambda entry: entry[2])], count


def by_content(images: Sequence[PreparedImage]) -> tuple[NDArray[np.intp], int]:
    """An order of images that does not depend on theirs, so that heads fitted in it do not, either.

    Args:
        images: those that could be read.

    Returns:
        (n,) rows by content hash, one of each content first, then the copies; and the number of different contents.
    """
    hashes = np.array([image.content_hash for image in images])
    _, first = np.unique(hashes, return_index=True)
    copies = np.setdiff1d(np.arange(len(images)), first)
    return np.concatenate([first, copies]), len(first)


def sample_features(
    files: Sequence[Found], encoder: Encoder, settings: Settings, report: Callable[[int], None]
) -> tuple[list[PreparedImage], Features]:
    """Read images and compute their features.

    Args:
        files: the images.
        encoder: its heads do not matter.
        settings: see ``Settings``.
        report: called with the number of files read so far.

    Returns:
        The images without pixels, failures included; features (n, d) of the n that did not fail, in order.
    """
    read: list[PreparedImage] = []
    chunks: list[Features] = []
    with closing(read_images(((file, frozenset[str]()) for file in files), encoder, settings)) as images:
        while batch := list(islice(images, settings.batch_size)):
            pixels = [image.pixels for image in batch if image.pixels is not None]
            if pixels:
                with settings.metrics.time("encode"):
                    chunks.append(encoder.features(pixels))
                settings.metrics.count_encoded(len(pixels))
            read += [replace(image, pixels=None) for image in batch]
            report(len(read))
    return read, {g: np.concatenate([chunk[g] for chunk in chunks]) for g in (chunks[0] if chunks else {})}


def first_ingest(run: IngestRun, sample: Sequence[Found]) -> tuple[Encoder, Description, set[str]]:
    """Create the collection and ingest the sample that the heads are fitted on, which is read and encoded once.

    When another client creates the collection meanwhile, its encoder is used and the sample is left to the main pass.

    Returns:
        The collection's encoder and description, and the ids of the files that are ingested or have failed.
    """
    store, schema = run.store, run.session.schema
    base = run.session.base_encoder().with_regions(schema.regions.windows if schema.regions else ())
    bits = schema.code_bits
    base.check(bits)
    store.check(schema)
    images: list[PreparedImage] = []
    features: Features = {}
    if schema.encoder.heads != "fixed" and len(sample) >= FEWEST_TO_FIT:
        images, features = sample_features(
            sample, base, run.settings,
            lambda done: run.progress(Progress("reading a sample to fit the hash heads", done, len(sample), 0)),
        )  # fmt: skip
    good = [image for image in images if image.failure is None]
    order, distinct = by_content(good)
    good = [good[row] for row in order]
    for name, values in features.items():
        features[name] = values[order]
    contents = {name: values[:distinct] for name, values in features.items()}
    encoder = base.adapted(contents, bits) if distinct >= FEWEST_TO_FIT else base.with_bits(bits)
    # A function has no heads of its own: those that its encoder has now were fitted to this collection, too.
    adapted_on = (encoder.adapted_on if base.bits else distinct) if images else 0
    keep_encoder(store, encoder)
    recorded = store.create(Description(schema, encoder.fingerprint, adapted_on, encoder.backbone, run.session.added))
    if recorded.fingerprint != encoder.fingerprint:
        store.drop_encoder(encoder.fingerprint)
        return encoder_of(store, recorded.fingerprint, device=run.session.device), recorded, set()

    run.tally.failures += [Failure(image.file.path, image.failure) for image in images if image.failure is not None]
    run.tally.notes += [Note(image.file.path, image.note) for image in good if image.note]
    codes = encoder.codes(features) if good else {}
    rows = (
        image.row(code_bytes(codes, place), run.fields_of(image.file, None), stored_tags(features.get(TAGS), place))
        for place, image in enumerate(good)
    )
    with Writer(run) as writer:
        while batch := list(islice(rows, _ROWS)):
            writer.put(batch, Counts(added=len(batch)))
    return encoder, recorded, {image_id(image.file.path) for image in images}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How to fit an encoder.

    Attributes:
        backbone: ``builtin``, an encoder file (whose network is used), a name of the table in
            ``encoder/backbones.py``, or a network of one of its ``LIBRARIES``.
        weights: the backbone's weights; None: those of ImageNet, or the library's.
        taps: layers of a library's network to pool, early to late; none: those that are found.
        bits: granularity -> code length; None: the schema's.
        schema: what the codes are for; with its regions, unless ``bits`` are given.
        method: ``adaptive`` heads, which every collection fits again to its own images; or, to compare with, those of
            PCA and ITQ, or random hyperplanes (LSH), which collections use unchanged.
        labels: path of an image -> its labels, such as ``vehicle/car``, which ``coarse`` and ``mid`` learn, ``coarse``
            their first parts, too; other images are left out. None: without labels.
        sample: images to fit on, at most.
        device: where the backbone runs.
        settings: batch size, decoding threads, largest image.
    """

    backbone: str = BUILTIN
    weights: str | os.PathLike[str] | None = None
    taps: tuple[str, ...] = ()
    bits: Mapping[str, int] | None = None
    schema: Schema = field(default_factory=Schema)
    method: Literal["adaptive", "itq", "lsh"] = "adaptive"
    labels: Mapping[str, Sequence[str]] | None = None
    sample: int = SAMPLE_SIZE
    device: str = "auto"
    settings: Settings = field(default_factory=Settings)

    @property
    def lengths(self) -> Mapping[str, int]:
        """Granularity -> code length."""
        return self.schema.code_bits if self.bits is None else self.bits

    def base_encoder(self) -> Encoder:
        """The encoder whose heads are to be fitted, with the schema's regions.

        Raises:
            EncoderError: unknown backbone or granularity, or weights that do not fit.
            WeightsNotFoundError: pretrained weights are needed and cannot be fetched.
        """
        base: Encoder
        if self.backbone == BUILTIN and self.weights is not None:
            raise EncoderError("the built-in encoder has its weights; name a backbone to use others")
        if library_of(self.backbone):
            base = untrained_encoder(self.backbone, self.weights, taps=self.taps, device=self.device)
        elif self.taps:
            raise EncoderError(f"layers to tap are named for {', '.join(LIBRARIES.values())}; leave --taps out")
        elif self.backbone == BUILTIN or Path(self.backbone).suffix == ".safetensors":
            base = load_encoder(self.backbone, device=self.device)
        else:
            base = untrained_encoder(self.backbone, self.weights, device=self.device)
        regions = self.schema.regions if REGIONS in self.lengths else None
        base = base.with_regions(regions.windows if regions else ())
        base.check(self.lengths)
        if self.labels is not None and self.method != "adaptive":
            raise EncoderError(f"labels teach adaptive heads only, not those of {self.method}; leave --method out")
        if self.labels is not None and not set(LEARNING) & self.lengths.keys():
            raise EncoderError(f"labels teach {' and '.join(LEARNING)} only, and these codes have neither")
        if base.regions and self.method != "adaptive":
            raise EncoderError(
                f"regions have adaptive heads only, not those of {self.method}: take a schema without 'regions'"
            )
        return base


@dataclass(frozen=True, slots=True)
class FitReport:
    """Result of a fit.

    Attributes:
        fingerprint: of the new encoder.
        images: number that the heads were fitted on, copies not counted.
        failures: files that could not be read.
        seconds: wall time.
        bytes: size of the file.
        clients_need: what a client of a collection with this encoder must have besides the URI, because the file is
            too large to be kept whole in Milvus; empty: nothing.
        labels: granularity -> number of labels that it has learned.
    """

    fingerprint: str
    images: int
    failures: tuple[Failure, ...]
    seconds: float
    bytes: int
    clients_need: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)


def fit_encoder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: FitOptions | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> FitReport:
    """Fit hash heads over a backbone to images, and write the encoder file.

    Args:
        folder: images like those to be searched.
        out: the file to write, atomically.
        options: default: adaptive heads over the built-in backbone for the default schema.
        progress: called after each batch.

    Raises:
        EncoderError: unknown backbone or granularity, or weights that do not fit.
        WeightsNotFoundError: pretrained weights are needed and cannot be fetched.
        ImageError: the folder does not exist, or has too few images.
        LabelError: all labels are the same.
    """
    started = time.perf_counter()
    options = options or FitOptions()
    base, lengths = options.base_encoder(), options.lengths
    failures: list[Failure] = []
    found = discover([folder], failures.append)
    if options.labels is not None:
        found = (image for image in found if image.path in options.labels)
    chosen, _ = random_sample(found, options.sample)
    report = progress or (lambda _: None)
    images, features = sample_features(
        chosen, base, options.settings,
        lambda done: report(Progress("reading images to fit the hash heads", done, len(chosen), len(failures))),
    )  # fmt: skip
    failures += [Failure(image.file.path, image.failure) for image in images if image.failure is not None]
    readable = [image for image in images if image.failure is None]
    order, good = by_content(readable)
    if good < FEWEST_TO_FIT:
        raise ImageError(
            f"{folder} has {good} different readable images, expected at least {FEWEST_TO_FIT} to fit hash heads; add "
            "more, or use the encoder 'builtin' as it is"
        )
    features = {name: values[order[:good]] for name, values in features.items()}
    taught: dict[str, NDArray[np.bool_]] = {}
    if options.labels is not None:
        names = [options.labels[readable[row].file.path] for row in order[:good]]
        taught = {name: own for name, own in _one_hot(names).items() if name in lengths}
        base, features = base.with_labels(features, taught)
    adaptive = options.method == "adaptive"
    encoder = base.adapted(features, lengths) if adaptive else base.baseline(features, lengths, options.method)
    if encoder is base:
        raise EncoderError(
            f"the hash heads of {options.backbone} were trained and are kept; only the methods itq and lsh replace them"
        )
    data = encoder.to_bytes()
    try:
        write_whole(Path(out), data)
    except OSError as error:
        raise EncoderError(f"the encoder cannot be written to {out}: {error.strerror}") from error
    needed = _needed(options, out) if len(data) > session.WHOLE_FILE_LIMIT else ""
    return FitReport(
        encoder.fingerprint, good, tuple(failures), time.perf_counter() - started, len(data), needed,
        {name: own.shape[1] for name, own in taught.items()},
    )  # fmt: skip


def _one_hot(labels: Sequence[Sequence[str]]) -> dict[str, NDArray[np.bool_]]:
    """Granularity -> (n, m) which of the labels that it learns each image has.

    Raises:
        LabelError: all images have the same.
    """
    taught = {}
    first = [{*own, *(label.partition("/")[0] for label in own)} for own in labels]
    for name, known in zip(LEARNING, (first, [set(own) for own in labels]), strict=True):
        every = sorted(set().union(*known))
        if len(set(map(frozenset, known))) > 1:
            taught[name] = np.array([[label in own for label in every] for own in known])
    if not taught:
        raise LabelError(f"all images have the labels {', '.join(labels[0])}, expected at least two different ones")
    return taught


def heads_in_words(description: Description, rows: int, later: int, far: int) -> tuple[str, tuple[str, ...]]:
    """What the hash heads of a collection were fitted on, and advice, in sentences.

    Args:
        description: the collection's.
        rows: images in it.
        later: images that were encoded after the heads had been fitted to others.
        far: of these, images unlike those.
    """
    fitted = description.adapted_on
    heads = f"adapted on {fitted} images" if fitted else "shipped"
    if later and fitted:
        heads += f"; {far} of {later} later ones ({far / later:.0%}) are unlike those"
    advice = ""
    if description.schema.encoder.heads == "adapt" and rows >= FEWEST_TO_FIT:
        if not fitted:
            advice = f"the hash heads are the shipped ones; mgm refit would fit them to {rows} images"
        elif far >= max(FEWEST_FAR, FAR_SHARE * later):
            advice = (
                f"{far} of {later} later images are unlike the {fitted} that the hash heads were fitted on and are "
                "found less well; mgm refit would fit them to all"
            )
        elif fitted < SAMPLE_SIZE and rows >= 4 * fitted:
            advice = f"the hash heads were fitted on {fitted} of {rows} images; mgm refit would help"
    return heads, (advice,) if advice else ()


def _needed(options: FitOptions, out: str | os.PathLike[str]) -> str:
    """What clients need of a network that is too large for Milvus: this file, or what others can have, too."""
    library, _, place = options.backbone.partition(":")
    if (
        options.weights is not None
        or Path(options.backbone).suffix == ".safetensors"
        or (place and Path(place).exists())
    ):
        return str(out)
    if library_of(options.backbone):
        return f"{out}, or pip install 'mg-milvus[{EXTRAS[library]}]' and the weights of {options.backbone}"
    return f"{out}, or the ImageNet weights of {options.backbone}"
