"""An encoder without what runs its backbone: files, batches, heads. Without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import numpy as np

from mg_milvus.codes import pack
from mg_milvus.encoder import artefact
from mg_milvus.encoder.fit import BASELINES, Head, Statistics, edit_covariance, fit_head, shipped_head, statistics
from mg_milvus.encoder.inputs import input_size, resized
from mg_milvus.encoder.manifold import ManifoldHead, fit_manifold_head
from mg_milvus.encoder.one_core import one_core
from mg_milvus.encoder.table import find_backbone
from mg_milvus.errors import EncoderError
from mg_milvus.schema_parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from PIL import Image

    from mg_milvus.codes import Codes
    from mg_milvus.encoder import Features, Pixels
    from mg_milvus.encoder.fit import Matrix
    from mg_milvus.regions import Scale

MICRO_BATCH = 32
"""Pictures per forward pass: larger ones are no faster on a CPU and take more memory."""
REGIONS_SAMPLE = 20_000
"""Regions that their head is fitted on, at most."""
_SEED = 7
_HASHED_AT_ONCE = 8192
WHOLE = ((1.0, 1),)
"""The one window that is the whole picture."""


class HashEncoder(ABC):
    """An ``Encoder`` made of ``Parts``; see the protocol for the methods. Subclasses run the backbone."""

    device: str
    """Where the backbone runs, as ``load_encoder`` takes it."""

    def __init__(self, parts: artefact.Parts, *, device: str = "auto") -> None:
        self.parts = parts
        self.device = device
        self.fingerprint = artefact.fingerprint(parts)

    @property
    def ancestors(self) -> tuple[str, ...]:
        return self.parts.configuration.ancestors

    @property
    def backbone(self) -> str:
        return self.parts.configuration.backbone

    @property
    @abstractmethod
    def runtime(self) -> str: ...

    @property
    def bits(self) -> Mapping[str, int]:
        return {name: head.bits for name, head in self.parts.heads.items()}

    @property
    def adapted_on(self) -> int:
        return self.parts.configuration.adapted_on

    @property
    def side(self) -> int:
        """See the protocol."""
        return self.parts.configuration.side

    @property
    def regions(self) -> tuple[Scale, ...]:
        return self.parts.configuration.regions

    def prepare(self, picture: Image.Image) -> Pixels:
        return resized(picture, input_size(picture.size, self.side, find_backbone(self.backbone).multiple))

    def features(self, pictures: Sequence[Pixels]) -> Features:
        whole = [name for name in self.parts.heads or self.parts.configuration.readings if name != PARTS]
        return self._in_batches(pictures, whole, self.regions)

    def _in_batches(self, pictures: Sequence[Pixels], names: Sequence[str], regions: Sequence[Scale]) -> Features:
        """Features of these granularities, and of the regions if there are some; pictures of one shape together."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, picture in enumerate(pictures):
            rows_of.setdefault(picture.shape, []).append(row)
        size = self._pictures_at_once
        chunks = [rows[start : start + size] for rows in rows_of.values() for start in range(0, len(rows), size)]

        def features_of(chunk: Sequence[int]) -> Features:
            return self._features(np.stack([pictures[row] for row in chunk]), names, regions)

        found: Features = {}
        for chunk, of_chunk in zip(chunks, self._each(features_of, chunks), strict=True):
            for name, values in of_chunk.items():
                found.setdefault(name, np.empty((len(pictures), *values.shape[1:]), values.dtype))[chunk] = values
        return found

    @property
    def _pictures_at_once(self) -> int:
        """Pictures per forward pass."""
        return MICRO_BATCH

    def _each(self, work: Callable[[Sequence[int]], Features], chunks: Sequence[Sequence[int]]) -> Iterable[Features]:
        """Do the work of each chunk, the results in order; where it pays, several side by side."""
        return map(work, chunks)

    @abstractmethod
    def _features(self, pictures: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        """Features (n, d) float32 of pictures (n, 3, h, w) uint8 of one shape; see ``_in_batches``."""

    @abstractmethod
    def _lend_network(self, other: Self) -> None:
        """Let another encoder over the same backbone use this one's network, which takes a while to build."""

    def codes(self, features: Features) -> dict[str, Codes]:
        return {name: _hashed(head, features[name]) for name, head in self.parts.heads.items()}

    def encode_details(self, pictures: Sequence[Image.Image]) -> Codes:
        return _hashed(self.parts.heads[PARTS], self.detail_features(pictures))

    def detail_features(self, pictures: Sequence[Image.Image]) -> Matrix:
        """Features of details (n, scales, d) float16, each seen at the size of that scale's windows."""
        step = max(1, find_backbone(self.backbone).multiple // 2)
        inputs = [
            resized(picture, input_size(picture.size, self.side * size, step))
            for picture in pictures
            for size, _ in self.regions
        ]
        found = self._in_batches(inputs, (), WHOLE)[PARTS]
        return found.reshape(len(pictures), len(self.regions), -1)

    def encode(self, pictures: Sequence[Pixels]) -> dict[str, Codes]:
        features = self.features(pictures)
        if len(pictures) == 1:
            return self.codes(features)
        with one_core():
            return self.codes(features)

    def with_regions(self, scales: Sequence[Scale]) -> Self:
        if tuple(scales) == self.regions:
            return self
        if scales:
            self._check_known(PARTS, self.parts.configuration.readings)
            if not find_backbone(self.backbone).multiple:
                raise EncoderError(
                    f"{self.backbone} takes pictures of one size only, and regions are asked for at several: take "
                    "another encoder, or leave 'parts' out of the schema"
                )
        kept = {name: head for name, head in self.parts.heads.items() if name != PARTS}
        made = self._with_heads(kept, self.adapted_on)
        configuration = made.parts.configuration.model_copy(update={"regions": tuple(scales)})
        return made._like(made.parts.model_copy(update={"configuration": configuration}))

    def with_bits(self, bits: Mapping[str, int]) -> Self:
        self.check(bits)
        if dict(bits) == dict(self.bits):
            return self
        if self.parts.configuration.fixed:
            self._check_lengths(bits)
        kept = {name: self.parts.heads[name] for name in bits if self.bits.get(name) == bits[name]}
        made = {name: shipped_head(self._moments(name), bits[name]) for name in bits if name not in kept}
        return self._with_heads(
            {name: (kept | made)[name] for name in bits}, 0 if self.parts.configuration.fixed else self.adapted_on
        )

    def adapted(self, sample: Features, bits: Mapping[str, int]) -> Self:
        self.check(bits)
        fixed = self.parts.configuration.fixed
        if fixed and PARTS not in bits:
            return self.with_bits(bits)
        if fixed:
            self._check_lengths(bits)
        shipped = self.parts.statistics

        def head(name: str) -> Head | ManifoldHead:
            if fixed and name != PARTS:
                return self.parts.heads[name]
            with one_core():
                return self._fitted(name, sample[name], bits[name])

        try:
            with one_core(), ThreadPoolExecutor(len(bits), "mgm-fit") as pool:
                heads = dict(zip(bits, pool.map(head, bits), strict=True))
        except ValueError as error:
            raise EncoderError(
                f"hash heads cannot be fitted: {error}; expected pictures that differ and a trained backbone"
            ) from error
        count = 0 if fixed else len(next(iter(sample.values())))
        if shipped:
            return self._with_heads(heads, count)
        moments = {name: statistics(values) for name, values in sample.items() if name != PARTS}
        parts = self.parts.model_copy(update={"heads": heads, "statistics": moments})
        return type(self)(parts, device=self.device)

    def baseline(self, sample: Features, bits: Mapping[str, int], method: str) -> Self:
        """The same backbone with the heads of a known method, fitted once and kept by every collection.

        Args:
            sample: granularity -> (n, d) features.
            bits: granularity -> code length.
            method: a name of ``BASELINES``.
        """
        self.check(bits)
        heads = {name: BASELINES[method](sample[name], length) for name, length in bits.items()}
        made = self if self.parts.statistics else self.with_statistics(sample, bits)
        configuration = made.parts.configuration.model_copy(
            update={"adapted_on": len(next(iter(sample.values()))), "fixed": True}
        )
        parts = made.parts.model_copy(update={"configuration": configuration, "heads": heads})
        return type(self)(parts, device=self.device)

    def with_statistics(self, sample: Features, bits: Mapping[str, int], moved: Features | None = None) -> Self:
        """The same backbone to ship: statistics of these features, and heads for pictures of which nothing is known.

        Args:
            sample: granularity -> (n, d) features of many different pictures.
            bits: granularity -> code length.
            moved: granularity -> (m, d) features of edited pictures minus those of the same pictures unedited; where
                given, heads spend few bits on what edits change.
        """
        self.check(bits)
        moved = moved or {}
        made: dict[str, Statistics] = {}
        for name, values in sample.items():
            moments = statistics(values)
            nuisance = edit_covariance(moved[name]) if name in moved else None
            made[name] = Statistics(moments.mean, moments.factor, nuisance)
        heads = {name: shipped_head(made[name], length) for name, length in bits.items()}
        parts = self.parts.model_copy(update={"heads": heads, "statistics": made})
        return type(self)(parts, device=self.device)

    def to_bytes(self, limit: int | None = None) -> bytes:
        whole = artefact.to_bytes(self.parts)
        if limit is None or len(whole) <= limit:
            return whole
        return artefact.to_bytes(self.parts, with_backbone=False)

    def check(self, bits: Mapping[str, int]) -> None:
        offered = [name for name in self.parts.configuration.readings if name != PARTS or self.regions]
        for name in bits:
            self._check_known(name, offered)

    @staticmethod
    def _check_known(name: str, offered: Iterable[str]) -> None:
        if name not in offered:
            raise EncoderError(f"this encoder has no granularity '{name}'; it offers {', '.join(offered)}")

    def _check_lengths(self, bits: Mapping[str, int]) -> None:
        """Fixed hash functions cannot be made longer or shorter; those of regions are never fixed."""
        for name, length in bits.items():
            if name != PARTS and length != self.bits[name]:
                raise EncoderError(
                    f"this encoder was made for {self.bits[name]} bits of '{name}', the schema asks for {length}; "
                    f"write {self.bits[name]} into the schema, or make the encoder again with --bits {name}={length}"
                )

    def _moments(self, name: str) -> Statistics:
        if name not in self.parts.statistics:
            raise EncoderError(
                f"this encoder brings no statistics for '{name}', whose head must be fitted: ingest more pictures at "
                "first, or use the encoder 'builtin'"
            )
        return self.parts.statistics[name]

    def _fitted(self, name: str, sample: Matrix, bits: int) -> Head | ManifoldHead:
        """A head of one granularity, of the kind that its reading asks for."""
        if name == PARTS:
            rows = sample.reshape(-1, sample.shape[-1])
            some = np.random.default_rng(_SEED).permutation(len(rows))[:REGIONS_SAMPLE]
            sample = rows[np.sort(some)].astype(np.float32)
        shipped, steps = self.parts.statistics.get(name), self.parts.configuration.readings[name].smoothing
        return fit_manifold_head(sample, bits, shipped, steps) if steps else fit_head(sample, bits, shipped)

    def _with_heads(self, heads: Mapping[str, Head | ManifoldHead], adapted_on: int) -> Self:
        configuration = self.parts.configuration.model_copy(
            update={"adapted_on": adapted_on, "ancestors": (*self.ancestors, self.fingerprint)}
        )
        return self._like(self.parts.model_copy(update={"configuration": configuration, "heads": heads}))

    def _like(self, parts: artefact.Parts) -> Self:
        """Another encoder over the same network."""
        made = type(self)(parts, device=self.device)
        self._lend_network(made)
        return made


def _hashed(head: Head | ManifoldHead, features: Matrix) -> Codes:
    """Features (..., d) -> (..., bits / 8) uint8; a block at a time, because heads compute in double precision."""
    flat = features.reshape(-1, features.shape[-1])
    starts = range(0, max(len(flat), 1), _HASHED_AT_ONCE)
    packed = np.concatenate([pack(head(flat[start : start + _HASHED_AT_ONCE])) for start in starts])
    return packed.reshape(*features.shape[:-1], -1)
