"""Pictures to codes: the ``Encoder`` protocol and ``load_encoder``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from mg_milvus.codes import Codes
    from mg_milvus.regions import Scale

    Pixels = NDArray[np.uint8]
    Features = dict[str, NDArray[np.floating]]


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
        """Pictures of the user's collection that the heads were fitted on; 0 for shipped heads."""

    @property
    def side(self) -> int:
        """Pixels that the smaller side of a picture needs at most; decoders may reduce it down to this."""

    @property
    def regions(self) -> tuple[Scale, ...]:
        """Size and grid of the windows that get codes of their own, under ``parts``; empty: none do."""

    def prepare(self, picture: Image.Image) -> Pixels:
        """An RGB picture of any size -> (3, h, w) uint8 of the network's size. Pure CPU work, for worker threads."""

    def features(self, pictures: Sequence[Pixels]) -> Features:
        """Prepared pictures -> granularity -> (n, d) float32 features, before hashing. Shapes may be mixed.

        Under ``parts`` are those of the regions, (n, r, d) float16, from the same pass.
        """

    def codes(self, features: Features) -> dict[str, Codes]:
        """Features -> granularity -> (n, bits / 8) uint8 codes; (n, r, bits / 8) of the regions."""

    def encode(self, pictures: Sequence[Pixels]) -> dict[str, Codes]:
        """``codes(features(pictures))``. The code of a picture does not depend on the others in the batch."""

    def encode_details(self, pictures: Sequence[Image.Image]) -> Codes:
        """RGB pictures of details -> (n, scales, bits / 8) uint8, a code for each size of window.

        A detail is read at the size that a window has inside a picture: what a network sees depends on the scale.
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


def untrained_encoder(backbone: str, weights: str | os.PathLike[str] | None, *, device: str = "auto") -> Encoder:
    """A backbone without hash heads yet: ``adapted`` makes them, and the statistics, from a sample alone.

    Args:
        backbone: a name of the table in ``backbones.py``.
        weights: a file with its weights (``.safetensors``, or PyTorch's); None: torchvision's pretrained ones.
        device: as for ``load_encoder``.

    Raises:
        EncoderError: no such backbone, or the weights are not its own.
        WeightsNotFoundError: no file was given and the pretrained ones are not to be had.
    """
    from mg_milvus.encoder.artefact import untrained

    return untrained(backbone, weights, device=device)


def load_encoder(
    source: str | Path | bytes = "builtin", *, device: str = "auto", base: Encoder | None = None
) -> Encoder:
    """Load an encoder: ``builtin`` (ships with the package, works offline), an encoder file, or a file's bytes.

    Args:
        source: name, path or content.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        base: an encoder whose backbone a heads-only file may share; default: torchvision's pretrained weights.

    Raises:
        EncoderError: not an encoder file, or damaged; the message says which.
        WeightsNotFoundError: a heads-only file whose backbone is not on this machine.
    """
    from mg_milvus.encoder.artefact import load

    return load(source, device=device, base=base)
