"""The project's own backbones in onnxruntime, the default on CPUs: the ONNX graph, 8-bit rounding, ``OnnxEncoder``.

The ONNX file is written directly as protocol buffers, with the field numbers of ``onnx.proto3``: the ``onnx`` package
would add 30 MB for these few lines.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from mg_milvus.encoder.backbones import IMAGENET_MEAN, IMAGENET_STD, find_backbone
from mg_milvus.encoder.base import HashEncoder
from mg_milvus.encoder.pooling import pool, pool_regions
from mg_milvus.encoder.weights import single
from mg_milvus.errors import EncoderError, MissingPackageError
from mg_milvus.schema.models import REGIONS, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from numpy.typing import ArrayLike, NDArray
    from onnxruntime import InferenceSession

    from mg_milvus.encoder.base import Features, Pixels
    from mg_milvus.encoder.file import EncoderState
    from mg_milvus.encoder.weights import Weights
    from mg_milvus.schema.models import Scale

    Attribute = int | Sequence[int]
    Shape = Sequence[str | int]
    Ranges = Mapping[str, tuple[float, float]]


OPSET = 20
"""The first with ``Gelu``; onnxruntime has it since 1.17."""
_IR_VERSION = 9
_FLOAT32, _UINT8 = 1, 2
_ELEMENTS = {"float32": _FLOAT32, "uint8": _UINT8, "int8": 3, "int32": 6}
_INT, _INTS = 2, 7
_LENGTH = 2
"""Wire type of length-delimited fields."""


@dataclass(slots=True)
class Graph:
    """An ONNX graph under construction; every operator has one output, whose name ``add`` returns."""

    _nodes: list[bytes] = field(default_factory=list)
    _constants: list[bytes] = field(default_factory=list)

    def constant(self, values: NDArray[Any]) -> str:
        """Add a tensor of weights; returns its name."""
        name = f"c{len(self._constants)}"
        about = (
            b"".join(_number(1, size) for size in values.shape)
            + _number(2, _ELEMENTS[values.dtype.name])
            + _text(8, name)
        )
        self._constants.append(_field(5, about, _field(9, np.ascontiguousarray(values).tobytes())))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Attribute) -> str:
        """Add an operator; returns the name of its output."""
        output = f"v{len(self._nodes)}"
        self._add(operator, inputs, output, attributes)
        return output

    def give(self, value: str, output: str) -> None:
        """Make a value an output of the graph, under another name."""
        self._add("Identity", (value,), output, {})

    def _add(self, operator: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Attribute]) -> None:
        content = b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(4, operator)
        content += b"".join(_field(5, _attribute(name, value)) for name, value in attributes.items())
        self._nodes.append(_field(1, content))

    def model(self, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> bytes:
        """The ONNX file; names and shapes of uint8 inputs and float32 outputs, with text for sizes that vary."""
        values = [_field(11, _value(name, _UINT8, shape)) for name, shape in inputs.items()]
        values += [_field(12, _value(name, _FLOAT32, shape)) for name, shape in outputs.items()]
        graph = _field(7, *self._nodes, _text(2, "backbone"), *self._constants, *values)
        return _number(1, _IR_VERSION) + graph + _field(8, _number(2, OPSET))


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT)
    return _text(1, name) + b"".join(_number(8, one) for one in value) + _number(20, _INTS)


def _value(name: str, element: int, shape: Shape) -> bytes:
    """Name and type of an input or an output."""
    sizes = (_number(1, size) if isinstance(size, int) else _text(2, size) for size in shape)
    tensor = _number(1, element) + _field(2, *(_field(1, size) for size in sizes))
    return _text(1, name) + _field(2, _field(1, tensor))


def _varint(number: int) -> bytes:
    """A non-negative integer, seven bits per byte, lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _number(key: int, value: int) -> bytes:
    return _varint(key << 3) + _varint(value)


def _field(key: int, *content: bytes) -> bytes:
    return b"".join((_varint(key << 3 | _LENGTH), _varint(sum(map(len, content))), *content))


def _text(key: int, value: str) -> bytes:
    return _field(key, value.encode())


_EPSILON = 1e-5
"""That of torch's ``BatchNorm2d``."""
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


class _Maps(NamedTuple):
    """Feature maps in the graph; ``step`` is the quantisation step where they are rounded to 8 bits, else 0."""

    name: str
    channels: int
    step: float = 0.0


class _Layers:
    """Adds layers by the names of their weights, each of which is used once."""

    def __init__(self, weights: Weights, ranges: Ranges | None = None) -> None:
        self.graph = Graph()
        self.values: dict[str, str] = {}
        self._ranges = ranges
        self._left = {name: values for name, values in weights.items() if not name.endswith("num_batches_tracked")}

    def __contains__(self, name: str) -> bool:
        return f"{name}.weight" in self._left

    def check_used(self) -> None:
        """Raise KeyError if there are weights that no layer has taken."""
        if self._left:
            raise KeyError(min(self._left))

    def convolution(self, x: _Maps, name: str, norm: str | None = None, stride: int = 1) -> _Maps:
        """A convolution with the batch normalisation ``norm`` folded in, if named."""
        kernel, inputs = self._take(f"{name}.weight"), [x.name]
        if kernel.ndim != 4 or kernel.shape[1] != x.channels:
            raise ValueError(f"{name}.weight has the shape {kernel.shape}, and its input {x.channels} channels")
        if norm is None:
            inputs.append(self.graph.constant(kernel))
        else:
            scale, shift = self._norm(norm, len(kernel))
            inputs += self._constants(kernel * scale[:, None, None, None], shift, x.step)
        side = kernel.shape[2]
        output = self.graph.add(
            "Conv", *inputs, kernel_shape=(side, side), strides=(stride, stride), pads=(side // 2,) * 4
        )
        return _Maps(output, len(kernel))

    def _constants(self, kernel: NDArray[np.float32], shift: NDArray[np.float32], step: float) -> list[str]:
        """Kernel and shift of a convolution; in 8 and 32 bits, scaled per channel, when its input has 8."""
        if not step:
            return [self.graph.constant(kernel), self.graph.constant(shift)]
        scale = np.maximum(np.abs(kernel).max(axis=(1, 2, 3)) / 127, np.float32(1e-9))
        rounded = np.rint(kernel / scale[:, None, None, None]).astype(np.int8)
        whole = scale.astype(np.float64) * step
        limit = 2**31 - 1
        shifts = np.rint(np.clip(shift / whole, -limit, limit)).astype(np.int32)
        return [self._read_back(rounded, scale), self._read_back(shifts, whole.astype(np.float32))]

    def _read_back(self, values: NDArray[Any], scale: NDArray[np.float32]) -> str:
        names = [self.graph.constant(part) for part in (values, scale, np.zeros(len(scale), values.dtype))]
        return self.graph.add("DequantizeLinear", *names, axis=0)

    def rounded(self, x: _Maps, name: str, *, rectified: bool = False) -> _Maps:
        """Values as they are, or rounded to 8 bits between the ends of their range, where ranges are given.

        ``rectified``: none below 0. Rounding does that by itself when the range begins at 0.
        """
        if self._ranges is None:
            output = self.each("Relu", x) if rectified else x
            self.values[name] = output.name
            return output
        lowest, highest = self._ranges[name]
        lowest, highest = min(lowest, 0.0), max(highest, 1e-6)
        step = np.float32((highest - lowest) / 255)
        zero = np.uint8(np.clip(np.rint(-lowest / step), 0, 255))
        scale = [self.graph.constant(np.asarray(part)) for part in (step, zero)]
        coded = self.graph.add("QuantizeLinear", x.name, *scale)
        return _Maps(self.graph.add("DequantizeLinear", coded, *scale), x.channels, float(step))

    def norm(self, x: _Maps, name: str) -> _Maps:
        """A batch normalisation by itself."""
        scale, shift = self._norm(name, x.channels)
        scaled = self.graph.add("Mul", x.name, self._channels(scale))
        return _Maps(self.graph.add("Add", scaled, self._channels(shift)), x.channels)

    def each(self, operator: str, *inputs: _Maps, **attributes: int | tuple[int, ...]) -> _Maps:
        """An operator that keeps the channels."""
        return _Maps(self.graph.add(operator, *(x.name for x in inputs), **attributes), inputs[0].channels)

    def pixels(self, name: str) -> _Maps:
        """Pixels of a named input, normalised by the same steps as in torch."""
        shares = self.graph.add("Div", self.graph.add("Cast", name, to=1), self._channels([255.0]))
        centred = self.graph.add("Sub", shares, self._channels(IMAGENET_MEAN))
        return _Maps(self.graph.add("Div", centred, self._channels(IMAGENET_STD)), 3)

    def _take(self, name: str) -> NDArray[np.float32]:
        return single(self._left.pop(name))

    def _norm(self, name: str, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and shift of each channel, computed in double precision."""
        weight, bias, mean, variance = (self._take(f"{name}.{part}").astype(np.float64) for part in _STATISTICS)
        if any(values.shape != (channels,) for values in (weight, bias, mean, variance)):
            raise ValueError(f"{name} has the shape {weight.shape}, expected {channels} channels")
        scale = weight / np.sqrt(variance + _EPSILON)
        return scale.astype(np.float32), (bias - mean * scale).astype(np.float32)

    def _channels(self, values: ArrayLike) -> str:
        return self.graph.constant(np.asarray(values, np.float32).reshape(-1, 1, 1))


def _mgnet(layers: _Layers, x: _Maps) -> dict[str, _Maps]:
    x = layers.rounded(x, "pixels")
    x = layers.rounded(layers.convolution(x, "stem.0", "stem.1", stride=2), "stem", rectified=True)
    stages = {}
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        for block in (f"{stage}.0", f"{stage}.1"):
            shortcut, stride = x, 1
            if f"{block}.shortcut.1" in layers:
                stride = 2
                shortcut = layers.each(
                    "AveragePool", x, kernel_shape=(2, 2), strides=(2, 2), ceil_mode=1, count_include_pad=0
                )
                shortcut = layers.rounded(shortcut, f"{block}.pool")
                shortcut = layers.convolution(shortcut, f"{block}.shortcut.1", f"{block}.shortcut.2")
                shortcut = layers.rounded(shortcut, f"{block}.shortcut")
            inner = layers.convolution(x, f"{block}.conv1.0", f"{block}.conv1.1", stride)
            inner = layers.rounded(inner, f"{block}.conv1", rectified=True)
            inner = layers.rounded(layers.convolution(inner, f"{block}.conv2.0", f"{block}.conv2.1"), f"{block}.conv2")
            x = layers.rounded(layers.each("Add", inner, shortcut), block, rectified=True)
        stages[stage] = x
    return stages


def _smallnet(layers: _Layers, x: _Maps) -> dict[str, _Maps]:
    x = layers.each("Gelu", layers.convolution(x, "stem.0", "stem.1"))
    stages = {}
    for stage in ("stage1", "stage2", "stage3"):
        x = layers.each("MaxPool", layers.convolution(x, f"{stage}.0"), kernel_shape=(2, 2), strides=(2, 2))
        x = layers.each("Gelu", layers.norm(x, f"{stage}.2"))
        x = layers.each("Gelu", layers.convolution(x, f"{stage}.4", f"{stage}.5"))
        stages[stage] = x
    return stages


NETWORKS: dict[str, Callable[[_Layers, _Maps], dict[str, _Maps]]] = {"mgnet": _mgnet, "smallnet": _smallnet}
"""Backbone -> function that adds its layers; torchvision's networks run in torch only."""


def backbone_graph(
    name: str, weights: Weights, stages: Mapping[str, int], ranges: Ranges | None = None, *, inside: bool = False
) -> bytes:
    """The ONNX model of a backbone: ``images`` (n, 3, h, w) uint8 -> its stages (n, c, h', w') float32.

    Args:
        name: a key of ``NETWORKS``.
        weights: names and values as the network in torch has them.
        stages: output stage -> channels.
        ranges: lowest and highest value of each activation, to compute in 8 bits (Jacob et al., CVPR 2018); None:
            float32.
        inside: output the activations as well, by the names in ``ranges``.

    Raises:
        EncoderError: the weights are not of this backbone.
    """
    layers = _Layers(weights, ranges)
    try:
        outputs = NETWORKS[name](layers, layers.pixels("images"))
        layers.check_used()
        if any(outputs[stage].channels != channels for stage, channels in stages.items()):
            raise ValueError(f"its stages have {[maps.channels for maps in outputs.values()]} channels")
    except (KeyError, ValueError, IndexError) as error:
        raise EncoderError(f"these weights do not fit the backbone {name}: {error}") from error
    for stage in stages:
        layers.graph.give(outputs[stage].name, stage)
    sizes: dict[str, tuple[str | int, ...]] = {
        stage: ("n", channels, f"{stage} h", f"{stage} w") for stage, channels in stages.items()
    }
    for value in layers.values if inside else ():
        layers.graph.give(layers.values[value], f"inside {value}")
        sizes[f"inside {value}"] = ("n", f"{value} c", f"{value} h", f"{value} w")
    return layers.graph.model({"images": ("n", 3, "h", "w")}, sizes)


RUNTIMES = ("onnx-int8", "onnx", "torch")
RUNTIME_VARIABLE = "MGM_RUNTIME"
"""Environment variable with one of ``RUNTIMES``, so that tests can force each: onnxruntime in 8 bits or in float32, or
torch. Without it the device and the CPU decide. Codes of different runtimes differ in a few bits."""
RANGES_FILE = "builtin.ranges.json"
"""Beside the weights: the fingerprint of the backbone, and the range of each activation."""
_INSTRUCTIONS = {"avx512_vnni", "avx_vnni"}


def forced_runtime() -> str | None:
    """The runtime that ``RUNTIME_VARIABLE`` forces, None for the default.

    Raises:
        EncoderError: it has another value.
    """
    runtime = os.environ.get(RUNTIME_VARIABLE)
    if runtime and runtime not in RUNTIMES:
        raise EncoderError(f"{RUNTIME_VARIABLE} is '{runtime}', expected {', '.join(RUNTIMES)}, or nothing")
    return runtime or None


def ranges_of(backbone_fingerprint: str) -> Ranges | None:
    """Activation ranges for 8 bits, known for the built-in backbone only; None: compute in float32."""
    forced = forced_runtime()
    if forced != "onnx-int8" and (forced or not has_fast_int8()):
        return None
    content = json.loads((resources.files("mg_milvus.encoder") / "weights" / RANGES_FILE).read_text())
    ranges: Ranges = content["ranges"]
    return ranges if content["backbone_fingerprint"] == backbone_fingerprint else None


@cache
def has_fast_int8() -> bool:
    """Whether the CPU has instructions for 8-bit dot products (VNNI), according to Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _INSTRUCTIONS.isdisjoint(flags.split())


# From 1.29 on onnxruntime sends telemetry unless it finds this variable when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices of the GPU drivers of NVIDIA, of AMD, and of either under WSL."""
_ERRORS_ONLY = 3


def onnx_runs(backbone: str, device: str) -> bool:
    """Whether onnxruntime runs a backbone on a device: the project's own backbones on CPUs.

    ``auto`` is a CPU on Linux without a GPU driver, which can be known without importing torch.
    """
    if backbone not in NETWORKS or device not in {"auto", "cpu"}:
        return False
    if forced := forced_runtime():
        return forced != "torch"
    return device == "cpu" or (sys.platform == "linux" and not any(Path(file).exists() for file in _GPUS))


def _onnxruntime() -> ModuleType:
    """The package, set to log errors only.

    Raises:
        MissingPackageError: it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f"onnxruntime, which runs the encoder on CPUs, cannot be imported ({error}): "
            "pip install --force-reinstall onnxruntime"
        ) from error
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    module: ModuleType = onnxruntime
    return module


class OnnxEncoder(HashEncoder):
    """An ``Encoder`` whose backbone runs in onnxruntime.

    The built-in network computes in 8 bits on CPUs with VNNI, in a third of the time; one code bit in 100 then differs
    from float32 (photographs, at most 10 bits of a granularity), and search is as good. Other networks compute in
    float32, where one bit in half a million differs from torch (photographs; benchmarks/encode_rate.py). The code of an
    image does not depend on its batch.
    """

    def __init__(self, state: EncoderState, *, device: str = "auto") -> None:
        self._onnxruntime = _onnxruntime()
        super().__init__(state, device=device)

    @property
    def runtime(self) -> str:
        ranges = ranges_of(self.state.configuration.backbone_fingerprint)
        return f"onnxruntime, {'float32' if ranges is None else '8 bits'}"

    @cached_property
    def _session(self) -> InferenceSession:
        row = find_backbone(self.backbone)
        stages = dict(zip(row.stages, row.channels, strict=True))
        ranges = ranges_of(self.state.configuration.backbone_fingerprint)
        graph = backbone_graph(self.backbone, self.state.backbone, stages, ranges)
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or _cores())
        # Spinning threads would take cores from the decoding of the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return self._onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def _lend_network(self, other: Self) -> None:
        other.__dict__["_session"] = self._session

    def _features(self, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        stages = find_backbone(self.backbone).stages
        maps = dict(zip(stages, self._session.run(stages, {"images": images}), strict=True))
        poolings = self.state.configuration.poolings
        features: Features = {name: pool(maps, poolings[name]) for name in names}
        if regions:
            # Regions are many: half precision halves their memory while heads are fitted.
            features[REGIONS] = pool_regions(maps, poolings[REGIONS], windows(regions)).astype(np.float16)
        return features


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
