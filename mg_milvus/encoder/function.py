"""A function of the user's, images to float features, as the network of an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
from PIL import Image

from mg_milvus.encoder.backbones import FUNCTION, Backbone
from mg_milvus.encoder.base import MICRO_BATCH, HashEncoder, resize
from mg_milvus.encoder.file import Configuration, EncoderState
from mg_milvus.encoder.pooling import Pooling
from mg_milvus.encoder.taps import OUTPUT
from mg_milvus.errors import EncoderError, EncoderMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from mg_milvus.encoder.base import Features, Pixels
    from mg_milvus.schema.models import Scale

FeatureFunction: TypeAlias = "Callable[[Sequence[Image.Image]], ArrayLike]"
"""RGB images, of about 512 * 512 pixels at most -> (n, d) floats, an image's row the same in every batch."""

_SIDE = 512
_PROBE = "probe"
_LEAST_COSINE = 0.99
"""Of the features of the probe images; other machines compute the same function a little differently."""


class FunctionEncoder(HashEncoder):
    """An ``Encoder`` whose features a function of the user's computes; every granularity hashes the same vector."""

    def __init__(self, state: EncoderState, function: FeatureFunction) -> None:
        self.function = function
        super().__init__(state, device="cpu")

    def __reduce__(self) -> tuple[object, ...]:
        return FunctionEncoder, (self.state, self.function)

    @property
    def runtime(self) -> str:
        return "a Python function"

    def prepare(self, image: Image.Image) -> Pixels:
        scale = min(1.0, _SIDE / (image.width * image.height) ** 0.5)
        return resize(image, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))

    def features(self, images: Sequence[Pixels]) -> Features:
        starts = range(0, len(images), MICRO_BATCH)
        chunks = [_features(self.function, images[start : start + MICRO_BATCH], self.row) for start in starts]
        found = np.concatenate(chunks) if chunks else np.empty((0, self.row.channels[0]), np.float32)
        return dict.fromkeys(self.state.heads or self.state.configuration.poolings, found)

    def _features(self, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:  # noqa: ARG002 - none
        return dict.fromkeys(names, _features(self.function, list(images), self.row))

    def _like(self, state: EncoderState) -> Self:
        return type(self)(state, self.function)

    def _lend_network(self, other: Self) -> None:
        other.function = self.function


def function_encoder(function: FeatureFunction) -> FunctionEncoder:
    """An encoder without heads over a function; they are fitted at the first ingest.

    Raises:
        EncoderError: the function does not give a row of finite numbers for each image.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    probe = _features(function, _probe_images(), None)
    row = Backbone(
        f"{FUNCTION}:{name}"[:190], (OUTPUT,), (probe.shape[1],), side=_SIDE, multiple=0, average=True
    )  # fmt: skip
    configuration = Configuration(
        backbone=row.name, backbone_fingerprint=FUNCTION, side=_SIDE, network=row,
        poolings={
            "coarse": Pooling(stages=(OUTPUT,), smoothing=4),
            "mid": Pooling(stages=(OUTPUT,), smoothing=2),
            "fine": Pooling(stages=(OUTPUT,)),
        },
    )  # fmt: skip
    state = EncoderState(configuration=configuration, backbone={_PROBE: probe}, heads={}, statistics={})
    return FunctionEncoder(state, function)


def with_function(state: EncoderState, given: FunctionEncoder | None) -> FunctionEncoder:
    """The encoder of a state whose features a function computes, with the function that is given.

    Raises:
        EncoderError: none is given.
        EncoderMismatchError: it computes other features than the one that the heads were fitted on.
    """
    row = state.configuration.row
    if given is None:
        raise EncoderError(
            f"the features of this encoder come from a Python function, '{row.name.partition(':')[2]}': give it with "
            "ImageIndex.open(encoder=...)"
        )
    expected, found = state.backbone.get(_PROBE), given.state.backbone[_PROBE]
    if expected is None or expected.shape != found.shape or (expected * found).sum(axis=1).min() < _LEAST_COSINE:
        raise EncoderMismatchError(
            f"the given function '{given.row.name.partition(':')[2]}' computes other features than "
            f"'{row.name.partition(':')[2]}', which filled the collection: give that one"
        )
    return FunctionEncoder(state, given.function)


def _features(function: FeatureFunction, images: Sequence[Pixels], row: Backbone | None) -> NDArray[np.float32]:
    """Features (n, d) of length 1, or zeros.

    Raises:
        EncoderError: the function gives something else.
    """
    found = np.asarray(function([Image.fromarray(each.transpose(1, 2, 0)) for each in images]))
    width = found.shape[-1] if row is None and found.ndim else row and row.channels[0]
    if found.shape != (len(images), width) or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise EncoderError(
            f"the function for features gave {found.dtype} of the shape {found.shape} for {len(images)} images, "
            f"expected finite floats ({len(images)}, {width or 'd'})"
        )
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (found / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def _probe_images() -> list[Pixels]:
    """Two images that tell functions apart: a gradient and random blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8), (3, 128, 128))
    return [np.ascontiguousarray(ramp), np.ascontiguousarray(blocks)]
