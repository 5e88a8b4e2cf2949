"""Images to codes: the ``Encoder`` protocol and ``load_encoder``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.file import (
    _MOST_BYTES,
    BUILTIN,
    Configuration,
    Contents,
    _pretrained,
    check_numbers,
    default_readings,
    from_bytes,
)
from mg_milvus.encoder.weights import weights_fingerprint
from mg_milvus.errors import EncoderError
from mg_milvus.files import read_plain

if TYPE_CHECKING:
    import os

    from mg_milvus.encoder.base import Encoder, HashEncoder


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
    return load(source, device=device, base=base)


def load(source: str | Path | bytes, *, device: str = "auto", base: Encoder | None = None) -> HashEncoder:
    """See ``mg_milvus.encoder.load.load_encoder``."""
    from mg_milvus.encoder.base import HashEncoder

    shared = base.contents.backbone if isinstance(base, HashEncoder) else None
    if isinstance(source, bytes):
        return made(from_bytes(source, "the encoder", shared), device)
    if source == BUILTIN:
        file = resources.files("mg_milvus.encoder") / "weights" / "builtin.safetensors"
        return made(from_bytes(file.read_bytes(), "the built-in encoder"), device)
    path = Path(source)
    if not path.is_file():
        raise EncoderError(f"there is no encoder file {path}; give '{BUILTIN}' or a .safetensors file made by mgm fit")
    try:
        data = read_plain(path, _MOST_BYTES)
    except OSError as error:
        raise EncoderError(f"the encoder file {path} cannot be read: {error.strerror}") from error
    return made(from_bytes(data, str(path), shared), device)


def made(contents: Contents, device: str) -> HashEncoder:
    """The encoder of these contents, on onnxruntime where it can be, else on torch."""
    from mg_milvus.encoder.onnx_runtime import OnnxEncoder, onnx_runs

    if onnx_runs(contents.configuration.backbone, device):
        return OnnxEncoder(contents, device=device)
    from mg_milvus.encoder.torch_runtime import TorchEncoder

    return TorchEncoder(contents, device=device)


def untrained(backbone: str, weights: str | os.PathLike[str] | None, *, device: str = "auto") -> HashEncoder:
    """See ``mg_milvus.encoder.load.untrained_encoder``."""
    from mg_milvus.encoder.networks import as_arrays, read_weights

    row = find_backbone(backbone)
    arrays = _pretrained(backbone) if weights is None else as_arrays(read_weights(weights))
    check_numbers(arrays, f"the weights {weights or backbone}")
    configuration = Configuration(
        backbone=backbone,
        backbone_fingerprint=weights_fingerprint(arrays),
        side=row.side,
        readings=default_readings(backbone),
    )
    return made(Contents(configuration=configuration, backbone=arrays, heads={}, statistics={}), device)
