"""Features that onnxruntime has already computed in this run of the tests: the same images take the same network once.

Most tests ingest the same few folders, and two thirds of an ingest is the forward pass. The key holds everything that a
pass depends on: the backbone's weights, the runtime, what is pooled how, and the pixels of the batch, to the bit. So a
change of any of them is computed. Workers, and the processes of ``tests/forked.py``, share a folder of files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mg_milvus.encoder.onnx_runtime import OnnxEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.encoder.base import Features, Pixels
    from mg_milvus.schema.models import Scale

VARIABLE = "TESTS_COMPUTED_FEATURES"
"""Environment variable with the folder; without it everything is computed."""

_compute = OnnxEncoder._features
_described: WeakKeyDictionary[OnnxEncoder, str] = WeakKeyDictionary()


def install(folder: str | None) -> None:
    """Let encoders of the built-in networks look into a folder first; None: let them compute everything again."""
    if folder is None:
        OnnxEncoder._features = _compute  # type: ignore[method-assign]
        return

    def features(self: OnnxEncoder, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        if self.row.library:
            return _compute(self, images, names, regions)
        file = Path(folder, _key(self, images, names, regions))
        with contextlib.suppress(OSError):
            return pickle.loads(file.read_bytes())
        found = _compute(self, images, names, regions)
        with contextlib.suppress(OSError):  # of a test that allows itself nothing
            _write(file, pickle.dumps(found, protocol=5))
        return found

    OnnxEncoder._features = features  # type: ignore[method-assign]


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
