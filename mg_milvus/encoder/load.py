"""Loading encoders: by name, from a file or from bytes, on the runtime that fits the device."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_milvus.encoder.backbones import FUNCTION, find_backbone, library_of
from mg_milvus.encoder.base import HashEncoder
from mg_milvus.encoder.file import (
    BUILTIN,
    MAX_BYTES,
    SHIPPED,
    Configuration,
    EncoderState,
    check_numbers,
    default_poolings,
    from_bytes,
    pretrained_weights,
)
from mg_milvus.encoder.weights import weights_fingerprint
from mg_milvus.errors import EncoderError
from mg_milvus.files import read_plain

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mg_milvus.encoder.backbones import Backbone
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.encoder.classifier import Classifier


def load_encoder(source: str | Path | bytes = BUILTIN, *, device: str = "auto", base: Encoder | None = None) -> Encoder:
    """Load an encoder: one of ``SHIPPED`` (they work offline), an encoder file, or a file's bytes.

    Args:
        source: name, path or content.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        base: an encoder whose backbone a heads-only file may share; default: the ImageNet weights on this machine.

    Raises:
        EncoderError: not an encoder file, or damaged; the message says which.
        WeightsNotFoundError: a heads-only file whose backbone is not on this machine.
        MissingPackageError: onnxruntime cannot be imported.
    """
    shared = base.state if isinstance(base, HashEncoder) else None
    if isinstance(source, bytes):
        return _made(from_bytes(source, "the encoder", shared), device, base)
    if source in SHIPPED:
        shipped = resources.files("mg_milvus.encoder") / "weights" / f"{source}.safetensors"
        return make_encoder(from_bytes(shipped.read_bytes(), f"the encoder '{source}'"), device)
    path = Path(source)
    if not path.is_file():
        raise EncoderError(f"there is no encoder file {path}; give '{BUILTIN}' or a .safetensors file made by mgm fit")
    try:
        data = read_plain(path, MAX_BYTES)
    except OSError as error:
        raise EncoderError(f"the encoder file {path} cannot be read: {error.strerror}") from error
    return _made(from_bytes(data, str(path), shared), device, base)


def _made(state: EncoderState, device: str, base: Encoder | None) -> HashEncoder:
    """The encoder of a state; the function of one that has a function for a network is that of ``base``."""
    if state.configuration.row.library != FUNCTION:
        return make_encoder(state, device)
    from mg_milvus.encoder.function import FunctionEncoder, with_function

    return with_function(state, base if isinstance(base, FunctionEncoder) else None)


def untrained_encoder(
    backbone: str, weights: str | os.PathLike[str] | None, *, taps: Sequence[str] = (), device: str = "auto"
) -> HashEncoder:
    """A backbone without hash heads: ``adapted`` fits heads and statistics from a sample alone.

    Args:
        backbone: a name of the table in ``backbones.py``, or a network of one of its ``LIBRARIES``.
        weights: a file with its weights (``.safetensors``, or PyTorch's); None: the pretrained ones.
        taps: layers of a library's network to pool, early to late; none: those that are found.
        device: as for ``load_encoder``.

    Raises:
        EncoderError: no such backbone, or the weights do not fit it.
        MissingPackageError: its library is not installed.
        WeightsNotFoundError: no file was given and the pretrained weights cannot be fetched.
    """
    row, arrays, classifier = _described(backbone, weights, taps)
    check_numbers(arrays, f"the weights {weights or backbone}")
    configuration = Configuration(
        backbone=row.name,
        backbone_fingerprint=weights_fingerprint(arrays),
        side=row.side,
        poolings=default_poolings(row),
        network=row if row.library else None,
    )
    state = EncoderState(
        configuration=configuration, backbone=arrays, heads={}, statistics={}, classifier=classifier
    )  # fmt: skip
    return make_encoder(state, device)


def _described(
    backbone: str, weights: str | os.PathLike[str] | None, taps: Sequence[str]
) -> tuple[Backbone, dict[str, NDArray[Any]], Classifier | None]:
    """Description, weights and classifier, if it has one, of a backbone; see ``untrained_encoder``."""
    if library_of(backbone) == "onnx":
        from mg_milvus.encoder.onnx_file import load_onnx_file

        if weights is not None:
            raise EncoderError(f"{backbone} has its weights with it; leave --weights out")
        return *load_onnx_file(backbone, taps), None
    from mg_milvus.encoder.networks import as_arrays, read_weights

    if library_of(backbone):
        from mg_milvus.encoder.libraries import load_library_model

        row, tensors = load_library_model(backbone, None if weights is None else read_weights(weights), taps)
        return row, as_arrays(tensors), None
    row = find_backbone(backbone)
    return row, *(pretrained_weights(row) if weights is None else (as_arrays(read_weights(weights)), None))


def make_encoder(state: EncoderState, device: str) -> HashEncoder:
    """The encoder of a state: in onnxruntime where it runs the backbone on the device, else in torch."""
    from mg_milvus.encoder.onnx_runtime import OnnxEncoder, onnx_runs

    if state.configuration.row.library == "onnx":
        if device not in {"auto", "cpu"}:
            raise EncoderError(f"{state.configuration.backbone} runs in onnxruntime on the CPU; leave --device out")
        return OnnxEncoder(state, device=device)
    if onnx_runs(state.configuration.backbone, device):
        return OnnxEncoder(state, device=device)
    from mg_milvus.encoder.torch_runtime import TorchEncoder

    return TorchEncoder(state, device=device)
