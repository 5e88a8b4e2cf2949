"""Weights as numpy arrays, and the ``.safetensors`` format, without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

Weights = Mapping[str, NDArray[Any]]

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""bfloat16 as its bits, because numpy does not have the type."""

_TYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "F64": ("float64", np.dtype("<f8")),
    "F32": ("float32", np.dtype("<f4")),
    "F16": ("float16", np.dtype("<f2")),
    "BF16": ("bfloat16", BFLOAT16),
    "I64": ("int64", np.dtype("<i8")),
    "I32": ("int32", np.dtype("<i4")),
    "I16": ("int16", np.dtype("<i2")),
    "I8": ("int8", np.dtype("i1")),
    "U8": ("uint8", np.dtype("u1")),
    "BOOL": ("bool", np.dtype("?")),
}
"""Name in the format -> torch's name, numpy's type."""
_NAMES = {kind: (name, torch_name) for name, (torch_name, kind) in _TYPES.items()}


def single(values: NDArray[Any]) -> NDArray[np.float32]:
    """Weights of any type as float32."""
    if values.dtype == BFLOAT16:
        return (values["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def weights_fingerprint(weights: Weights) -> str:
    """16 hexadecimal digits over names, shapes, types and values."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        values = weights[name]
        digest.update(f"{name}:torch.{_NAMES[values.dtype][1]}:{values.shape};".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def to_safetensors(weights: Weights, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, deterministic; tensors of larger elements come first, so that all are aligned."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    names = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    end = 0
    for name in names:
        start, end = end, end + weights[name].nbytes
        kind, shape = _NAMES[weights[name].dtype][0], list(weights[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return b"".join([len(text).to_bytes(8, "little"), text, *(weights[name].tobytes() for name in names)])


def from_safetensors(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Weights and metadata of a file.

    Raises:
        ValueError: not a safetensors file, damaged, or with tensors of an unsupported type.
    """
    weights = {}
    try:
        for name, tensor in deserialize(data):  # type: ignore[no-untyped-call]
            if tensor["dtype"] not in _TYPES:
                raise ValueError(f"{name} is of the type {tensor['dtype']}, expected one of {', '.join(_TYPES)}")
            weights[name] = np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]][1]).reshape(tensor["shape"])
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    length = int.from_bytes(data[:8], "little")
    return weights, json.loads(data[8 : 8 + length]).get("__metadata__", {})
