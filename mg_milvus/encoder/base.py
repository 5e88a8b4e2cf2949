"""Images to codes: the ``Encoder`` protocol and ``load_encoder``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from PIL import Image

from mg_milvus.codes import pack
from mg_milvus.encoder import file
from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.hash_heads import (
    BASELINES,
    Head,
    ManifoldHead,
    Statistics,
    augmentation_covariance,
    fit_head,
    fit_manifold_head,
    shipped_head,
    statistics,
)
from mg_milvus.errors import EncoderError
from mg_milvus.schema.regions import REGIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.schema.regions import Scale

    Pixels = NDArray[np.uint8]
    Features = dict[str, NDArray[np.floating]]
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from threadpoolctl import ThreadpoolController

    from mg_milvus.encoder.hash_heads import Matrix


class Encoder(Protocol):
    """Backbone, hash heads and preprocessing in one. Safe to use from several threads."""

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
        """Granularity -> code length in bits, for every granularity this encoder offers."""

    @property
    def adapted_on(self) -> int:
        """Images of the user's collection that the heads were fitted on; 0 for shipped heads."""

    @property
    def side(self) -> int:
        """Pixels that the smaller side of an image needs at most; decoders may reduce it down to this."""

    @property
    def regions(self) -> tuple[Scale, ...]:
        """Size and grid of the windows that get codes of their own, under ``regions``; empty: none do."""

    def prepare(self, image: Image.Image) -> Pixels:
        """An RGB image of any size -> (3, h, w) uint8 of the network's size. Pure CPU work, for worker threads."""

    def features(self, images: Sequence[Pixels]) -> Features:
        """Prepared images -> granularity -> (n, d) float32 features, before hashing. Shapes may be mixed.

        Under ``regions`` are those of the regions, (n, r, d) float16, from the same pass.
        """

    def codes(self, features: Features) -> dict[str, Codes]:
        """Features -> granularity -> (n, bits / 8) uint8 codes; (n, r, bits / 8) of the regions."""

    def encode(self, images: Sequence[Pixels]) -> dict[str, Codes]:
        """``codes(features(images))``. The code of an image does not depend on the others in the batch."""

    def encode_region_images(self, images: Sequence[Image.Image]) -> Codes:
        """RGB images of details -> (n, scales, bits / 8) uint8, a code for each size of window.

        A detail is read at the size that a window has inside an image: what a network sees depends on the scale.
        """

    def check(self, bits: Mapping[str, int]) -> None:
        """Refuse granularities that this encoder does not offer, before any work is done for them.

        Raises:
            EncoderError: one of them is unknown.
        """

    def with_regions(self, scales: Sequence[Scale]) -> Encoder:
        """The same encoder with codes for these windows, or for none. Their head comes with ``adapted``, ``with_bits``.

        Raises:
            EncoderError: its network has no place for them.
        """

    def with_bits(self, bits: Mapping[str, int]) -> Encoder:
        """The same backbone with the shipped statistics' heads for these granularities and code lengths."""

    def adapted(self, sample: Features, bits: Mapping[str, int]) -> Encoder:
        """The same backbone with heads fitted on a sample of features (n, d) of the collection to come."""

    def baseline(self, sample: Features, bits: Mapping[str, int], method: str) -> Encoder:
        """The same backbone with heads of a known method, ``itq`` or ``lsh``, fitted on features (n, d) for good."""

    def to_bytes(self, limit: int | None = None) -> bytes:
        """The encoder file. Longer than ``limit`` bytes: heads only, with the backbone's fingerprint."""


def resized(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """An RGB image -> (3, h, w) uint8 of this width and height."""
    made = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(made).transpose(2, 0, 1))


def input_size(size: tuple[int, int], side: float, multiple: int) -> tuple[int, int]:
    """Width and height of the network's input for an image of ``size``.

    The area is about side * side and the aspect is kept, between 1:2 and 2:1, as multiples of ``multiple`` allow; there
    are few different sizes, so that images can share a batch. A ``multiple`` of 0 gives the square.
    """
    if not multiple:
        return round(side), round(side)
    stretch = min(max((size[0] / size[1]) ** 0.5, 0.5**0.5), 2**0.5)
    return (
        max(1, round(side * stretch / multiple)) * multiple,
        max(1, round(side / stretch / multiple)) * multiple,
    )


def one_core() -> AbstractContextManager[Any]:
    """While this context lasts: for the whole process, or for this thread alone where the library can do that."""
    manager: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return manager


@cache
def _libraries() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController  # takes a while: not for a single query

    return ThreadpoolController()


MICRO_BATCH = 32
"""Images per forward pass: larger ones are no faster on a CPU and take more memory."""
REGIONS_SAMPLE = 20_000
"""Regions that their head is fitted on, at most."""
_SEED = 7
_HASHED_AT_ONCE = 8192
WHOLE = ((1.0, 1),)
"""The one window that is the whole image."""


class HashEncoder(ABC):
    """An ``Encoder`` made of ``EncoderState``; see the protocol for the methods. Subclasses run the backbone."""

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
        """See the protocol."""
        return self.state.configuration.side

    @property
    def regions(self) -> tuple[Scale, ...]:
        return self.state.configuration.regions

    def prepare(self, image: Image.Image) -> Pixels:
        return resized(image, input_size(image.size, self.side, find_backbone(self.backbone).multiple))

    def features(self, images: Sequence[Pixels]) -> Features:
        whole = [name for name in self.state.heads or self.state.configuration.poolings if name != REGIONS]
        return self._in_batches(images, whole, self.regions)

    def _in_batches(self, images: Sequence[Pixels], names: Sequence[str], regions: Sequence[Scale]) -> Features:
        """Features of these granularities, and of the regions if there are some; images of one shape together."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(images):
            rows_of.setdefault(image.shape, []).append(row)
        size = self._images_at_once
        chunks = [rows[start : start + size] for rows in rows_of.values() for start in range(0, len(rows), size)]

        def features_of(chunk: Sequence[int]) -> Features:
            return self._features(np.stack([images[row] for row in chunk]), names, regions)

        found: Features = {}
        for chunk, of_chunk in zip(chunks, self._each(features_of, chunks), strict=True):
            for name, values in of_chunk.items():
                found.setdefault(name, np.empty((len(images), *values.shape[1:]), values.dtype))[chunk] = values
        return found

    @property
    def _images_at_once(self) -> int:
        """Images per forward pass."""
        return MICRO_BATCH

    def _each(self, work: Callable[[Sequence[int]], Features], chunks: Sequence[Sequence[int]]) -> Iterable[Features]:
        """Do the work of each chunk, the results in order; where it pays, several side by side."""
        return map(work, chunks)

    @abstractmethod
    def _features(self, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        """Features (n, d) float32 of images (n, 3, h, w) uint8 of one shape; see ``_in_batches``."""

    @abstractmethod
    def _lend_network(self, other: Self) -> None:
        """Let another encoder over the same backbone use this one's network, which takes a while to build."""

    def codes(self, features: Features) -> dict[str, Codes]:
        return {name: _hashed(head, features[name]) for name, head in self.state.heads.items()}

    def encode_region_images(self, images: Sequence[Image.Image]) -> Codes:
        return _hashed(self.state.heads[REGIONS], self.region_image_features(images))

    def region_image_features(self, images: Sequence[Image.Image]) -> Matrix:
        """Features of details (n, scales, d) float16, each seen at the size of that scale's windows."""
        step = max(1, find_backbone(self.backbone).multiple // 2)
        inputs = [
            resized(image, input_size(image.size, self.side * size, step))
            for image in images
            for size, _ in self.regions
        ]
        found = self._in_batches(inputs, (), WHOLE)[REGIONS]
        return found.reshape(len(images), len(self.regions), -1)

    def encode(self, images: Sequence[Pixels]) -> dict[str, Codes]:
        features = self.features(images)
        if len(images) == 1:
            return self.codes(features)
        with one_core():
            return self.codes(features)

    def with_regions(self, scales: Sequence[Scale]) -> Self:
        if tuple(scales) == self.regions:
            return self
        if scales:
            self._check_known(REGIONS, self.state.configuration.poolings)
            if not find_backbone(self.backbone).multiple:
                raise EncoderError(
                    f"{self.backbone} takes images of one size only, and regions are asked for at several: take "
                    "another encoder, or leave 'regions' out of the schema"
                )
        kept = {name: head for name, head in self.state.heads.items() if name != REGIONS}
        made = self._with_heads(kept, self.adapted_on)
        configuration = made.state.configuration.model_copy(update={"regions": tuple(scales)})
        return made._like(made.state.model_copy(update={"configuration": configuration}))

    def with_bits(self, bits: Mapping[str, int]) -> Self:
        self.check(bits)
        if dict(bits) == dict(self.bits):
            return self
        if self.state.configuration.fixed:
            self._check_lengths(bits)
        kept = {name: self.state.heads[name] for name in bits if self.bits.get(name) == bits[name]}
        made = {name: shipped_head(self._moments(name), bits[name]) for name in bits if name not in kept}
        return self._with_heads(
            {name: (kept | made)[name] for name in bits}, 0 if self.state.configuration.fixed else self.adapted_on
        )

    def adapted(self, sample: Features, bits: Mapping[str, int]) -> Self:
        self.check(bits)
        fixed = self.state.configuration.fixed
        if fixed and REGIONS not in bits:
            return self.with_bits(bits)
        if fixed:
            self._check_lengths(bits)
        shipped = self.state.statistics

        def head(name: str) -> Head | ManifoldHead:
            if fixed and name != REGIONS:
                return self.state.heads[name]
            with one_core():
                return self._fitted(name, sample[name], bits[name])

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
        moments = {name: statistics(values) for name, values in sample.items() if name != REGIONS}
        state = self.state.model_copy(update={"heads": heads, "statistics": moments})
        return type(self)(state, device=self.device)

    def baseline(self, sample: Features, bits: Mapping[str, int], method: str) -> Self:
        """The same backbone with the heads of a known method, fitted once and kept by every collection.

        Args:
            sample: granularity -> (n, d) features.
            bits: granularity -> code length.
            method: a name of ``BASELINES``.
        """
        self.check(bits)
        heads = {name: BASELINES[method](sample[name], length) for name, length in bits.items()}
        made = self if self.state.statistics else self.with_statistics(sample, bits)
        configuration = made.state.configuration.model_copy(
            update={"adapted_on": len(next(iter(sample.values()))), "fixed": True}
        )
        state = made.state.model_copy(update={"configuration": configuration, "heads": heads})
        return type(self)(state, device=self.device)

    def with_statistics(self, sample: Features, bits: Mapping[str, int], moved: Features | None = None) -> Self:
        """The same backbone to ship: statistics of these features, and heads for images of which nothing is known.

        Args:
            sample: granularity -> (n, d) features of many different images.
            bits: granularity -> code length.
            moved: granularity -> (m, d) features of edited images minus those of the same images unedited; where
                given, heads spend few bits on what edits change.
        """
        self.check(bits)
        moved = moved or {}
        made: dict[str, Statistics] = {}
        for name, values in sample.items():
            moments = statistics(values)
            nuisance = augmentation_covariance(moved[name]) if name in moved else None
            made[name] = Statistics(moments.mean, moments.factor, nuisance)
        heads = {name: shipped_head(made[name], length) for name, length in bits.items()}
        state = self.state.model_copy(update={"heads": heads, "statistics": made})
        return type(self)(state, device=self.device)

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
        """Fixed hash functions cannot be made longer or shorter; those of regions are never fixed."""
        for name, length in bits.items():
            if name != REGIONS and length != self.bits[name]:
                raise EncoderError(
                    f"this encoder was made for {self.bits[name]} bits of '{name}', the schema asks for {length}; "
                    f"write {self.bits[name]} into the schema, or make the encoder again with --bits {name}={length}"
                )

    def _moments(self, name: str) -> Statistics:
        if name not in self.state.statistics:
            raise EncoderError(
                f"this encoder brings no statistics for '{name}', whose head must be fitted: ingest more images at "
                "first, or use the encoder 'builtin'"
            )
        return self.state.statistics[name]

    def _fitted(self, name: str, sample: Matrix, bits: int) -> Head | ManifoldHead:
        """A head of one granularity, of the kind that its pooling asks for."""
        if name == REGIONS:
            rows = sample.reshape(-1, sample.shape[-1])
            some = np.random.default_rng(_SEED).permutation(len(rows))[:REGIONS_SAMPLE]
            sample = rows[np.sort(some)].astype(np.float32)
        shipped, steps = self.state.statistics.get(name), self.state.configuration.poolings[name].smoothing
        return fit_manifold_head(sample, bits, shipped, steps) if steps else fit_head(sample, bits, shipped)

    def _with_heads(self, heads: Mapping[str, Head | ManifoldHead], adapted_on: int) -> Self:
        configuration = self.state.configuration.model_copy(
            update={"adapted_on": adapted_on, "ancestors": (*self.ancestors, self.fingerprint)}
        )
        return self._like(self.state.model_copy(update={"configuration": configuration, "heads": heads}))

    def _like(self, state: file.EncoderState) -> Self:
        """Another encoder over the same network."""
        made = type(self)(state, device=self.device)
        self._lend_network(made)
        return made


def _hashed(head: Head | ManifoldHead, features: Matrix) -> Codes:
    """Features (..., d) -> (..., bits / 8) uint8; a block at a time, because heads compute in double precision."""
    flat = features.reshape(-1, features.shape[-1])
    starts = range(0, max(len(flat), 1), _HASHED_AT_ONCE)
    packed = np.concatenate([pack(head(flat[start : start + _HASHED_AT_ONCE])) for start in starts])
    return packed.reshape(*features.shape[:-1], -1)
