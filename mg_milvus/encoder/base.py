"""Images to codes: the ``Encoder`` protocol, and ``HashEncoder``, which runs a backbone and hashes its features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
from PIL import Image

from mg_milvus.codes import pack
from mg_milvus.encoder import file
from mg_milvus.encoder.classifier import TAGS, tags_of
from mg_milvus.encoder.hash_heads import (
    BASELINES,
    EDIT_FLOOR,
    DiffusionHead,
    Head,
    Statistics,
    augmentation_covariance,
    fit_diffusion_head,
    fit_head,
    shipped_head,
    statistics,
)
from mg_milvus.encoder.label_map import fit_label_map
from mg_milvus.encoder.taps import OUTPUT
from mg_milvus.errors import EncoderError
from mg_milvus.schema.models import QUERY_PASSES, REGIONS, query_scales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from threadpoolctl import ThreadpoolController

    from mg_milvus.codes import Codes, RealCodes
    from mg_milvus.encoder.backbones import Backbone
    from mg_milvus.encoder.classifier import Tags
    from mg_milvus.encoder.hash_heads import Matrix
    from mg_milvus.schema.models import Scale

    Pixels = NDArray[np.uint8]
    Features = dict[str, NDArray[Any]]


class Encoded(NamedTuple):
    """What one forward pass gives of n images.

    Attributes:
        codes: granularity -> (n, bits / 8) uint8; (n, r, bits / 8) of the regions.
        tags: see ``classifier.tags_of``; None without a classifier.
        far: (n,) bool: which images are unlike those that the heads were fitted on, by the granularity that is
            smoothed most; None where no head is smoothed.
    """

    codes: dict[str, Codes]
    tags: Tags | None
    far: NDArray[np.bool_] | None


class Encoder(Protocol):
    """Backbone, hash heads and preprocessing. Safe to use from several threads."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over weights and configuration."""

    @property
    def ancestors(self) -> tuple[str, ...]:
        """Fingerprints of the encoders that this one was adapted from, oldest first."""

    @property
    def backbone(self) -> str:
        """Name of the backbone."""

    @property
    def runtime(self) -> str:
        """What runs the backbone, ``torch`` or ``onnxruntime``, and in what precision."""

    @property
    def bits(self) -> Mapping[str, int]:
        """Granularity -> code length in bits, for every granularity of this encoder."""

    @property
    def adapted_on(self) -> int:
        """Images of the user's collection that the heads were fitted on; 0 for shipped heads."""

    @property
    def side(self) -> int:
        """Pixels of the shorter side that suffice; decoders may reduce images to this size."""

    @property
    def has_tags(self) -> bool:
        """Whether it has a classifier, which names what images show."""

    @property
    def text_granularity(self) -> str | None:
        """The granularity that texts are compared on; None without a text tower."""

    def text_code(self, text: str) -> RealCodes:
        """A text -> its real code (1, bits) float32 on ``text_granularity``.

        Raises:
            QueryError: the text is longer than the tower reads.
            EncoderError: the tower of this machine is another one than the encoder was made with.
            MissingPackageError: its library is not installed.
            WeightsNotFoundError: its weights are not on this machine and cannot be fetched.
        """

    @property
    def regions(self) -> tuple[Scale, ...]:
        """Size and grid of the windows that get codes of their own, under ``regions``; empty: none."""

    def prepare(self, image: Image.Image) -> Pixels:
        """Resize an RGB image of any size -> (3, h, w) uint8. Pure CPU work, for worker threads."""

    def features(self, images: Sequence[Pixels]) -> Features:
        """Prepared images -> granularity -> (n, d) float32 features, before hashing. Shapes may be mixed.

        ``regions`` has those of the regions, (n, r, d) float16, from the same forward pass; ``tags``, of an encoder
        with a classifier, the tags that ``classifier.tags_of`` returns.
        """

    def codes(self, features: Features) -> dict[str, Codes]:
        """Features -> granularity -> (n, bits / 8) uint8 codes; (n, r, bits / 8) of the regions."""

    def real_codes(self, features: Features) -> dict[str, RealCodes]:
        """Features -> granularity -> (n, bits) float32 real codes; those of the regions are left out."""

    def encode(self, images: Sequence[Pixels]) -> dict[str, Codes]:
        """``codes(features(images))``. The code of an image does not depend on the others in the batch."""

    def encode_and_tag(self, images: Sequence[Pixels]) -> Encoded:
        """``encode``, with the tags and with what is far, from the same forward pass."""

    def region_codes(self, images: Sequence[Image.Image]) -> RealCodes:
        """RGB images of regions -> (n, scales, bits) float32 real codes, one for each size of window.

        Each image is shrunk to the size that a window has inside an image, because features depend on the scale.
        """

    def shared_region_codes(self, images: Sequence[Image.Image]) -> RealCodes:
        """RGB images -> (n, m, bits) float32 real codes of the m windows of ``query_scales``, pass by pass."""

    def check(self, bits: Mapping[str, int]) -> None:
        """Refuse granularities that this encoder does not have.

        Raises:
            EncoderError: one of them is unknown.
        """

    def with_regions(self, scales: Sequence[Scale]) -> Encoder:
        """The same encoder with codes for these windows, or for none; ``adapted`` or ``with_bits`` adds their head.

        Raises:
            EncoderError: its network takes images of one size only, or pools no stages for regions.
        """

    def with_bits(self, bits: Mapping[str, int]) -> Encoder:
        """The same backbone with heads of these lengths, made from the shipped statistics."""

    def adapted(self, sample: Features, bits: Mapping[str, int]) -> Encoder:
        """The same backbone with heads fitted on a sample of a collection's features (n, d)."""

    def with_labels(self, sample: Features, labels: Mapping[str, NDArray[np.bool_]]) -> tuple[Encoder, Features]:
        """The same backbone with features that labels have taught, and those of the sample; ``adapted`` fits heads.

        Args:
            sample: granularity -> (n, d) features of labelled images.
            labels: granularity -> (n, m) which labels each of them has.

        Raises:
            EncoderError: this one has learned labels already, or its heads are fixed.
        """

    def baseline(self, sample: Features, bits: Mapping[str, int], method: str) -> Encoder:
        """The same backbone with the heads of a baseline, ``itq`` or ``lsh``, fitted on features (n, d) and fixed."""

    def to_bytes(self, limit: int | None = None) -> bytes:
        """The encoder file; without the backbone's weights when it would be longer than ``limit`` bytes."""


def resize(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """Resize an RGB image to a width and height -> (3, h, w) uint8."""
    resized = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def input_size(size: tuple[int, int], side: float, multiple: int) -> tuple[int, int]:
    """Width and height of the network's input for an image of ``size``.

    The area is about side * side; the aspect is kept between 1:2 and 2:1, rounded to multiples of ``multiple``. So
    there are few different sizes, and images can share a batch. A ``multiple`` of 0 gives a square.
    """
    if not multiple:
        return round(side), round(side)
    stretch = min(max((size[0] / size[1]) ** 0.5, 0.5**0.5), 2**0.5)
    return (
        max(1, round(side * stretch / multiple)) * multiple,
        max(1, round(side / stretch / multiple)) * multiple,
    )


def one_core() -> AbstractContextManager[Any]:
    """A context in which numpy's BLAS uses one core: in the whole process, or in this thread where the library can."""
    manager: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return manager


@cache
def _libraries() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController  # slow to import, and not needed for a single query

    return ThreadpoolController()


MICRO_BATCH = 32
"""Images per forward pass: more are no faster on a CPU and take more memory."""
REGIONS_SAMPLE = 20_000
"""Regions that the regions' head is fitted on, at most."""
_SEED = 7
_HASH_BLOCK = 8192
"""Rows to hash at a time: heads compute in double precision."""
_TEXTS_KEPT = 64
WHOLE = ((1.0, 1),)
"""A single window, the whole image."""


class HashEncoder(ABC):
    """An ``Encoder`` with an ``EncoderState``; see the protocol for the methods. Subclasses run the backbone."""

    device: str
    """Where the backbone runs, as ``load_encoder`` takes it."""

    def __init__(self, state: file.EncoderState, *, device: str = "auto") -> None:
        self.state = state
        self.device = device
        self.fingerprint = file.fingerprint(state)

    @property
    def ancestors(self) -> tuple[str, ...]:
        return self.state.configuration.ancestors

    @property
    def backbone(self) -> str:
        return self.state.configuration.backbone

    @property
    def row(self) -> Backbone:
        """The backbone's description."""
        return self.state.configuration.row

    @property
    @abstractmethod
    def runtime(self) -> str: ...

    @property
    def bits(self) -> Mapping[str, int]:
        return {name: head.bits for name, head in self.state.heads.items()}

    @property
    def adapted_on(self) -> int:
        return self.state.configuration.adapted_on

    @property
    def side(self) -> int:
        return self.state.configuration.side

    @property
    def has_tags(self) -> bool:
        return self.state.classifier is not None

    @property
    def _tagged_stage(self) -> tuple[str, ...]:
        """The stage that the classifier reads, if there is one."""
        return self.row.stages[-1:] if self.has_tags else ()

    @cached_property
    def _classifier(self) -> NDArray[np.float32]:
        assert self.state.classifier is not None  # noqa: S101  (the callers ask has_tags)
        return self.state.classifier.matrix()

    @property
    def text_granularity(self) -> str | None:
        poolings = self.state.configuration.poolings
        hashing = [
            name
            for name in self.state.heads
            if OUTPUT in poolings[name].stages
            and poolings[name].kind == "pyramid"  # linear in the vector
            and name not in self.state.labels  # which are not
        ]
        if self.row.texts is None or not hashing:
            return None
        return max(hashing, key=lambda name: self.state.heads[name].bits)

    def text_code(self, text: str) -> RealCodes:
        return self._text_codes(text)

    @cached_property
    def _text_codes(self) -> Callable[[str], RealCodes]:
        """Text to code; the last ones are kept, as a query asks more than once."""
        from mg_milvus.encoder.libraries import load_text_tower  # torch

        name, texts = self.text_granularity, self.row.texts
        if name is None or texts is None:
            raise EncoderError(f"{self.backbone} has no text tower")
        tower, head, stages = load_text_tower(self.row), self.state.heads[name], self._stages(name)
        mean = np.array(texts.mean)

        @lru_cache(_TEXTS_KEPT)
        def code(text: str) -> RealCodes:
            # Of the other stages that are pooled, a text says nothing: there it does not deviate.
            deviation = [np.zeros(channels) for _, channels in stages]
            deviation[[stage for stage, _ in stages].index(OUTPUT)] = tower([text])[0] - mean
            return head.of_deviations(np.concatenate(deviation)[None] / len(stages) ** 0.5).astype(np.float32)

        return code

    def _stages(self, name: str) -> list[tuple[str, int]]:
        """The stages that a granularity pools, with their channels."""
        channels = dict(zip(self.row.stages, self.row.channels, strict=True))
        return [(stage, channels[stage]) for stage in self.state.configuration.poolings[name].stages]

    @property
    def regions(self) -> tuple[Scale, ...]:
        return self.state.configuration.regions

    def prepare(self, image: Image.Image) -> Pixels:
        return resize(image, input_size(image.size, self.side, self.row.multiple))

    def features(self, images: Sequence[Pixels]) -> Features:
        whole = [name for name in self.state.heads or self.state.configuration.poolings if name != REGIONS]
        features = self._in_batches(images, whole, self.regions)
        if TAGS in features:  # of all images at once: the classifier's weights are more than a cache holds
            features[TAGS] = tags_of(features[TAGS], self._classifier)
        return self._taught(features)

    def _taught(self, features: Features) -> Features:
        """Features with what labels have taught their granularities."""
        labels = self.state.labels
        return {name: labels[name](values) if name in labels else values for name, values in features.items()}

    def _in_batches(self, images: Sequence[Pixels], names: Sequence[str], regions: Sequence[Scale]) -> Features:
        """Features of granularities ``names``, and of windows ``regions``; images of the same shape share batches."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(images):
            rows_of.setdefault(image.shape, []).append(row)
        size = self._images_at_once
        chunks = [rows[start : start + size] for rows in rows_of.values() for start in range(0, len(rows), size)]

        def features_of(chunk: Sequence[int]) -> Features:
            return self._features(np.stack([images[row] for row in chunk]), names, regions)

        features: Features = {}
        for chunk, of_chunk in zip(chunks, self._map(features_of, chunks), strict=True):
            for name, values in of_chunk.items():
                features.setdefault(name, np.empty((len(images), *values.shape[1:]), values.dtype))[chunk] = values
        return features

    @property
    def _images_at_once(self) -> int:
        """Images per forward pass."""
        return MICRO_BATCH

    def _map(self, work: Callable[[Sequence[int]], Features], chunks: Sequence[Sequence[int]]) -> Iterable[Features]:
        """Apply ``work`` to each chunk, the results in order, in parallel where that is faster."""
        return map(work, chunks)

    @abstractmethod
    def _features(self, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        """Features (n, d) float32 of images (n, 3, h, w) uint8; see ``_in_batches``.

        With ``_tagged_stage``, under ``TAGS`` the averages (n, c) float32 of that stage over all places.
        """

    @abstractmethod
    def _lend_network(self, other: Self) -> None:
        """Share the network, which is slow to build, with another encoder over the same backbone."""

    def codes(self, features: Features) -> dict[str, Codes]:
        return {name: _hash(head, features[name]) for name, head in self.state.heads.items()}

    def real_codes(self, features: Features) -> dict[str, RealCodes]:
        heads = {name: head for name, head in self.state.heads.items() if name != REGIONS}
        return {name: _real_codes(head, features[name]) for name, head in heads.items()}

    def region_codes(self, images: Sequence[Image.Image]) -> RealCodes:
        return _real_codes(self.state.heads[REGIONS], self.region_image_features(images))

    def shared_region_codes(self, images: Sequence[Image.Image]) -> RealCodes:
        step = max(1, self.row.multiple // 2)
        features = []
        for size, scales in zip(QUERY_PASSES, query_scales(self.regions), strict=True):
            # The size and aspect of an ingest, and multiples of these.
            stored = [input_size(image.size, self.side, self.row.multiple) for image in images]
            inputs = [
                resize(image, (round(size * width / step) * step, round(size * height / step) * step))
                for image, (width, height) in zip(images, stored, strict=True)
            ]
            features.append(self._in_batches(inputs, (), scales)[REGIONS])
        return _real_codes(self.state.heads[REGIONS], np.concatenate(features, axis=1))

    def region_image_features(self, images: Sequence[Image.Image]) -> Matrix:
        """Features of images of regions (n, scales, d) float16, each resized to that scale's windows."""
        step = max(1, self.row.multiple // 2)
        inputs = [
            resize(image, input_size(image.size, self.side * size, step))
            for image in images
            for size, _ in self.regions
        ]
        features = self._in_batches(inputs, (), WHOLE)[REGIONS]
        return features.reshape(len(images), len(self.regions), -1)

    def encode(self, images: Sequence[Pixels]) -> dict[str, Codes]:
        return self.encode_and_tag(images).codes

    def encode_and_tag(self, images: Sequence[Pixels]) -> Encoded:
        features = self.features(images)
        tags: Tags | None = features.pop(TAGS, None)
        if len(images) == 1:
            return Encoded(self.codes(features), tags, self._far(features))
        with one_core():
            return Encoded(self.codes(features), tags, self._far(features))

    def _far(self, features: Features) -> NDArray[np.bool_] | None:
        poolings = self.state.configuration.poolings
        smoothed = {n: head for n, head in self.state.heads.items() if isinstance(head, DiffusionHead)}
        name = max(smoothed, key=lambda n: poolings[n].smoothing, default=None)
        return None if name is None else smoothed[name].is_far(features[name])

    def with_regions(self, scales: Sequence[Scale]) -> Self:
        if tuple(scales) == self.regions:
            return self
        if scales:
            self._check_known(REGIONS, self.state.configuration.poolings)
            if not self.row.multiple:
                raise EncoderError(
                    f"{self.backbone} takes images of one size only, and regions need several: take "
                    "another encoder, or leave 'regions' out of the schema"
                )
        heads = {name: head for name, head in self.state.heads.items() if name != REGIONS}
        encoder = self._with_heads(heads, self.adapted_on)
        configuration = encoder.state.configuration.model_copy(update={"regions": tuple(scales)})
        return encoder._like(encoder.state.model_copy(update={"configuration": configuration}))

    def with_bits(self, bits: Mapping[str, int]) -> Self:
        self.check(bits)
        if dict(bits) == dict(self.bits):
            return self
        if self.state.configuration.fixed:
            self._check_lengths(bits)
        heads = {
            name: self.state.heads[name] if self.bits.get(name) == length else shipped_head(self._moments(name), length)
            for name, length in bits.items()
        }
        return self._with_heads(heads, 0 if self.state.configuration.fixed else self.adapted_on)

    def adapted(self, sample: Features, bits: Mapping[str, int]) -> Self:
        self.check(bits)
        fixed = self.state.configuration.fixed
        if fixed and REGIONS not in bits:
            return self.with_bits(bits)
        if fixed:
            self._check_lengths(bits)
        shipped = self.state.statistics

        def head(name: str) -> Head | DiffusionHead:
            if fixed and name != REGIONS:
                return self.state.heads[name]
            with one_core():
                return self._fit_head(name, sample[name], bits[name])

        try:
            with one_core(), ThreadPoolExecutor(len(bits), "mgm-fit") as pool:
                heads = dict(zip(bits, pool.map(head, bits), strict=True))
        except ValueError as error:
            raise EncoderError(
                f"hash heads cannot be fitted: {error}; expected images that differ and a trained backbone"
            ) from error
        count = 0 if fixed else len(next(iter(sample.values())))
        if shipped:
            return self._with_heads(heads, count)
        whole = {name: values for name, values in sample.items() if name not in {REGIONS, TAGS}}
        moments = {name: self._statistics(name, values) for name, values in whole.items()}
        state = self.state.model_copy(update={"heads": heads, "statistics": moments})
        return self._like(state)

    def with_labels(self, sample: Features, labels: Mapping[str, NDArray[np.bool_]]) -> tuple[Self, Features]:
        if self.state.labels or self.state.configuration.fixed:
            state = "has learned labels already" if self.state.labels else "has heads that are kept as they are"
            raise EncoderError(f"the encoder {self.fingerprint} {state}; give the network itself to teach it labels")
        maps = {name: fit_label_map(sample[name], own) for name, own in labels.items()}
        moments, heads = dict(self.state.statistics), dict(self.state.heads)
        for name, learned in maps.items():
            if name in moments:  # else ``adapted`` makes them
                # Cluster centres of other images still stand for what the labelled ones do not show.
                moments[name] = self._statistics(name, learned(np.concatenate([sample[name], moments[name].centres()])))
            if name in heads:
                heads[name] = shipped_head(moments[name], heads[name].bits)
        taught = self._like(self.state.model_copy(update={"labels": maps, "statistics": moments, "heads": heads}))
        return taught, taught._taught(sample)

    def baseline(self, sample: Features, bits: Mapping[str, int], method: str) -> Self:
        """The same backbone with the fixed heads of a baseline.

        Args:
            sample: granularity -> (n, d) features.
            bits: granularity -> code length.
            method: a name of ``BASELINES``.
        """
        self.check(bits)
        heads = {name: BASELINES[method](sample[name], length) for name, length in bits.items()}
        encoder = self if self.state.statistics else self.with_statistics(sample, bits)
        configuration = encoder.state.configuration.model_copy(
            update={"adapted_on": len(next(iter(sample.values()))), "fixed": True}
        )
        state = encoder.state.model_copy(update={"configuration": configuration, "heads": heads})
        return self._like(state)

    def with_statistics(self, sample: Features, bits: Mapping[str, int], moved: Features | None = None) -> Self:
        """The same backbone with statistics of these features, and heads made from them.

        Args:
            sample: granularity -> (n, d) features of many different images.
            bits: granularity -> code length.
            moved: granularity -> (m, d) features of augmented images minus those of the originals; heads down-weight
                the directions that augmentation changes.
        """
        self.check(bits)
        moved = moved or {}
        all_moments: dict[str, Statistics] = {}
        for name, values in sample.items():
            if name == TAGS:
                continue
            nuisance = augmentation_covariance(moved[name]) if name in moved else None
            all_moments[name] = replace(self._statistics(name, values), nuisance=nuisance, floor=EDIT_FLOOR)
        heads = {name: shipped_head(all_moments[name], length) for name, length in bits.items()}
        state = self.state.model_copy(update={"heads": heads, "statistics": all_moments})
        return self._like(state)

    def to_bytes(self, limit: int | None = None) -> bytes:
        whole = file.to_bytes(self.state)
        if limit is None or len(whole) <= limit:
            return whole
        return file.to_bytes(self.state, with_backbone=False)

    def check(self, bits: Mapping[str, int]) -> None:
        offered = [name for name in self.state.configuration.poolings if name != REGIONS or self.regions]
        for name in bits:
            self._check_known(name, offered)

    @staticmethod
    def _check_known(name: str, offered: Iterable[str]) -> None:
        if name not in offered:
            raise EncoderError(f"this encoder has no granularity '{name}'; it offers {', '.join(offered)}")

    def _check_lengths(self, bits: Mapping[str, int]) -> None:
        """Refuse other lengths of fixed heads; those of regions are never fixed."""
        for name, length in bits.items():
            if name != REGIONS and length != self.bits[name]:
                raise EncoderError(
                    f"this encoder was made for {self.bits[name]} bits of '{name}', the schema asks for {length}; "
                    f"write {self.bits[name]} into the schema, or make the encoder again with --bits {name}={length}"
                )

    def _moments(self, name: str) -> Statistics:
        if name not in self.state.statistics:
            raise EncoderError(
                f"this encoder has no statistics for '{name}', whose head must be fitted: ingest more images at "
                "first, or use the encoder 'builtin'"
            )
        return self.state.statistics[name]

    def _statistics(self, name: str, values: Matrix) -> Statistics:
        """Moments of one granularity's features, with cluster centres where heads are smoothed."""
        return statistics(values, clusters=self.state.configuration.poolings[name].smoothing > 0)

    def _fit_head(self, name: str, sample: Matrix, bits: int) -> Head | DiffusionHead:
        """Fit the head of one granularity: with smoothing a ``DiffusionHead``, else a ``Head``."""
        if name == REGIONS:
            rows = sample.reshape(-1, sample.shape[-1])
            chosen = np.random.default_rng(_SEED).permutation(len(rows))[:REGIONS_SAMPLE]
            sample = rows[np.sort(chosen)].astype(np.float32)
        shipped, steps = self.state.statistics.get(name), self.state.configuration.poolings[name].smoothing
        return fit_diffusion_head(sample, bits, shipped, steps) if steps else fit_head(sample, bits, shipped)

    def _with_heads(self, heads: Mapping[str, Head | DiffusionHead], adapted_on: int) -> Self:
        configuration = self.state.configuration.model_copy(
            update={"adapted_on": adapted_on, "ancestors": (*self.ancestors, self.fingerprint)}
        )
        return self._like(self.state.model_copy(update={"configuration": configuration, "heads": heads}))

    def _like(self, state: file.EncoderState) -> Self:
        """An encoder with another state over the same network."""
        encoder = type(self)(state, device=self.device)
        self._lend_network(encoder)
        return encoder


def _real_codes(head: Head | DiffusionHead, features: Matrix) -> RealCodes:
    """Features (..., d) -> (..., bits) float32."""
    values = head(features.reshape(-1, features.shape[-1])).astype(np.float32)
    return values.reshape(*features.shape[:-1], -1)


def _hash(head: Head | DiffusionHead, features: Matrix) -> Codes:
    """Hash features (..., d) -> (..., bits / 8) uint8, a block at a time."""
    flat = features.reshape(-1, features.shape[-1])
    starts = range(0, max(len(flat), 1), _HASH_BLOCK)
    packed = np.concatenate([pack(head(flat[start : start + _HASH_BLOCK])) for start in starts])
    return packed.reshape(*features.shape[:-1], -1)
