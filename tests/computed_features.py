"""Features and hash heads that were already computed in this run of the tests.

Most tests ingest the same few folders: two thirds of an ingest is the forward pass, and most of the rest is fitting the
heads. The key of a pass holds everything that it depends on: the backbone's weights, the runtime, what is pooled how,
and the pixels of the batch, to the bit; that of a head the sample of features, the statistics that ship, the number of
bits and the smoothing. So a change of any of them is computed. Workers, and the processes of ``tests/forked.py``, share
a folder of files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from mg_milvus.encoder.base import HashEncoder
from mg_milvus.encoder.onnx_runtime import OnnxEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mg_milvus.encoder.base import Features, Pixels
    from mg_milvus.encoder.hash_heads import DiffusionHead, Head, Matrix
    from mg_milvus.schema.models import Scale

Value = TypeVar("Value")

VARIABLE = "TESTS_COMPUTED_FEATURES"
"""Environment variable with the folder; without it everything is computed."""

_compute, _fit = OnnxEncoder._features, HashEncoder._fit_head
_described: WeakKeyDictionary[OnnxEncoder, str] = WeakKeyDictionary()


def install(folder: str | None) -> None:
    """Let encoders of the built-in networks look into a folder first; None: let them compute everything again."""
    if folder is None:
        OnnxEncoder._features = _compute  # type: ignore[method-assign]
        HashEncoder._fit_head = _fit  # type: ignore[method-assign]
        return

    def features(self: OnnxEncoder, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        if self.row.library:
            return _compute(self, images, names, regions)
        file = Path(folder, _key(self, images, names, regions))
        return _kept(file, lambda: _compute(self, images, names, regions))

    def fit_head(self: HashEncoder, name: str, sample: Matrix, bits: int) -> Head | DiffusionHead:
        digest = hashlib.blake2b(f"{name} {bits} {self.state.configuration.poolings[name].smoothing}".encode())
        digest.update(pickle.dumps((sample, self.state.statistics.get(name)), protocol=5))
        return _kept(Path(folder, digest.hexdigest()), lambda: _fit(self, name, sample, bits))

    OnnxEncoder._features = features  # type: ignore[method-assign]
    HashEncoder._fit_head = fit_head  # type: ignore[method-assign]


def _kept(file: Path, compute: Callable[[], Value]) -> Value:
    with contextlib.suppress(OSError):
        found: Value = pickle.loads(file.read_bytes())
        return found
    found = compute()
    with contextlib.suppress(OSError):  # of a test that allows itself nothing
        _write(file, pickle.dumps(found, protocol=5))
    return found


def _key(encoder: OnnxEncoder, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> str:
    if encoder not in _described:
        configuration = encoder.state.configuration
        poolings = {name: pooling.model_dump() for name, pooling in configuration.poolings.items()}
        weights = configuration.backbone_fingerprint
        _described[encoder] = f"{encoder.backbone} {weights} {encoder.runtime} {poolings} {encoder._tagged_stage}"
    digest = hashlib.blake2b(f"{_described[encoder]} {names} {regions} {images.shape} {images.dtype}".encode())
    digest.update(images.tobytes())
    return digest.hexdigest()


def _write(file: Path, content: bytes) -> None:
    """A whole file or none, whenever the process is killed."""
    handle, name = tempfile.mkstemp(dir=file.parent)
    with open(handle, "wb") as opened:
        opened.write(content)
    os.replace(name, file)
