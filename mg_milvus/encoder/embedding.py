"""An encoder with the interface of pymilvus' model functions, for collections that are not made by this package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mg_milvus.encoder.file import BUILTIN
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.decode import opening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.encoder.base import Encoder, Pixels
    from mg_milvus.images.decode import ImageSource

_BATCH = 64


class ImageEmbeddingFunction:
    """Images to the codes of one granularity, as pymilvus' model functions turn texts to vectors.

    The codes are bytes for a ``BINARY_VECTOR`` field of ``dim`` bits with the metric ``HAMMING``.
    """

    def __init__(
        self, encoder: Encoder | str | os.PathLike[str] = BUILTIN, granularity: str = "mid", *, device: str = "auto"
    ) -> None:
        """Load an encoder.

        Args:
            encoder: ``builtin``, an encoder file, or an ``Encoder``.
            granularity: whose codes are made.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Raises:
            EncoderError: not an encoder, or it has no such granularity.
        """
        if isinstance(encoder, str | os.PathLike):
            encoder = load_encoder(encoder if isinstance(encoder, str) else Path(encoder), device=device)
        encoder.check({granularity: 8})
        self._encoder = encoder.with_bits({granularity: encoder.bits[granularity]})
        self._granularity = granularity

    @property
    def dim(self) -> int:
        """Bits of a code."""
        return self._encoder.bits[self._granularity]

    def __call__(self, images: Sequence[ImageSource]) -> list[bytes]:
        """Codes of images, in order; see ``encode_documents``."""
        return self.encode_documents(images)

    def encode_documents(self, images: Sequence[ImageSource]) -> list[bytes]:
        """Codes of images that are to be found, dim / 8 bytes each, in order.

        Args:
            images: as ``ImageIndex.query`` takes them: paths, encoded bytes, PIL images, arrays or tensors.

        Raises:
            ImageError: an image cannot be read.
        """
        codes: list[bytes] = []
        for start in range(0, len(images), _BATCH):
            prepared = [self._prepared(image) for image in images[start : start + _BATCH]]
            codes += [code.tobytes() for code in self._encoder.encode(prepared)[self._granularity]]
        return codes

    def encode_queries(self, queries: Sequence[ImageSource]) -> list[bytes]:
        """Codes of images to search with: those of ``encode_documents``."""
        return self.encode_documents(queries)

    def _prepared(self, image: ImageSource) -> Pixels:
        with opening(image, least=self._encoder.side) as decoded:
            return self._encoder.prepare(decoded.image)
