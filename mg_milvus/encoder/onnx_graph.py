"""ONNX graphs of the project's own networks, from their table of layers, in float32 or in 8 bits.

The ONNX file is written directly as protocol buffers, with the field numbers of ``onnx.proto3``: the ``onnx`` package
would add 30 MB for these few lines, and torch's exporter would load torch at the first ingest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.layers import network_of
from mg_milvus.encoder.weights import single
from mg_milvus.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from mg_milvus.encoder.layers import Layer
    from mg_milvus.encoder.weights import Weights

    Attribute = int | str | Sequence[int]
    Shape = Sequence[str | int]
    Ranges = Mapping[str, tuple[float, float]]


OPSET = 20
"""The first with ``Gelu``; onnxruntime has it since 1.17."""
_IR_VERSION = 9
_FLOAT32, _UINT8 = 1, 2
_ELEMENTS = {"float32": _FLOAT32, "uint8": _UINT8, "int8": 3, "int32": 6}
_INT, _STRING, _INTS = 2, 3, 7
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
    if isinstance(value, str):
        return _text(1, name) + _text(4, value) + _number(20, _STRING)
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


_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
PIXELS = "pixels"
"""Name of the normalised pixels among the ranges."""


class _Maps(NamedTuple):
    """Feature maps in the graph; ``step`` is the quantisation step where they are rounded to 8 bits, else 0."""

    name: str
    channels: int
    step: float = 0.0


class _Builder:
    """Adds layers to a graph and takes their weights, each once."""

    def __init__(self, weights: Weights, epsilon: float, ranges: Ranges | None) -> None:
        self.graph = Graph()
        self.values: dict[str, str] = {}
        self._epsilon = epsilon
        self._ranges = ranges
        self._left = {name: values for name, values in weights.items() if not name.endswith("num_batches_tracked")}
        self._six = [self.graph.constant(np.asarray(limit, np.float32)) for limit in (0, 6)]

    def check_used(self) -> None:
        """Raise KeyError if there are weights that no layer has taken."""
        if self._left:
            raise KeyError(min(self._left))

    def pixels(self, name: str, mean: ArrayLike, std: ArrayLike) -> _Maps:
        """Pixels of a named input, normalised by the same steps as in torch."""
        shares = self.graph.add("Div", self.graph.add("Cast", name, to=1), self._channels([255.0]))
        centred = self.graph.add("Sub", shares, self._channels(mean))
        return self._rounded(self.graph.add("Div", centred, self._channels(std)), 3, PIXELS)

    def layer(self, layer: Layer, x: _Maps, shortcut: _Maps | None) -> _Maps:
        """Everything of one row of the table."""
        kernel = self._take(f"{layer.name}.conv.weight")
        expected = (layer.outputs, layer.inputs // layer.groups, layer.kernel, layer.kernel)
        if kernel.shape != expected:
            raise ValueError(f"{layer.name}.conv.weight has the shape {kernel.shape}, expected {expected}")
        scale, shift = self._norm(layer)
        folded = layer.pool == 1  # a negative scale would turn the largest value into the smallest
        output = self.graph.add(
            "Conv", x.name, *self._constants(kernel * scale[:, None, None, None], shift, x.step) if folded
            else [self.graph.constant(kernel)],
            kernel_shape=(layer.kernel,) * 2, strides=(layer.stride,) * 2, group=layer.groups, auto_pad="SAME_UPPER",
        )  # fmt: skip
        if not folded:
            output = self.graph.add("MaxPool", output, kernel_shape=(layer.pool,) * 2, strides=(layer.pool,) * 2)
            scaled = self.graph.add("Mul", output, self._channels(scale))
            output = self.graph.add("Add", scaled, self._channels(shift))
        if layer.activation == "gelu":
            output = self.graph.add("Gelu", output)
        if layer.activation == "relu6" and self._ranges is None:  # rounding clips to the range by itself
            output = self.graph.add("Clip", output, *self._six)
        maps = self._rounded(output, layer.outputs, layer.name)
        if shortcut is None:
            return maps
        return self._rounded(self.graph.add("Add", maps.name, shortcut.name), layer.outputs, f"{layer.name} sum")

    def _rounded(self, value: str, channels: int, name: str) -> _Maps:
        """Values as they are, or rounded to 8 bits between the ends of their range, where ranges are given."""
        if self._ranges is None:
            self.values[name] = value
            return _Maps(value, channels)
        lowest, highest = self._ranges[name]
        lowest, highest = min(lowest, 0.0), max(highest, 1e-6)
        step = np.float32((highest - lowest) / 255)
        zero = np.uint8(np.clip(np.rint(-lowest / step), 0, 255))
        scale = [self.graph.constant(np.asarray(part)) for part in (step, zero)]
        coded = self.graph.add("QuantizeLinear", value, *scale)
        return _Maps(self.graph.add("DequantizeLinear", coded, *scale), channels, float(step))

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

    def _take(self, name: str) -> NDArray[np.float32]:
        return single(self._left.pop(name))

    def _norm(self, layer: Layer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and shift of each channel, computed in double precision."""
        name = f"{layer.name}.norm"
        weight, bias, mean, variance = (self._take(f"{name}.{part}").astype(np.float64) for part in _NORM_PARTS)
        if any(values.shape != (layer.outputs,) for values in (weight, bias, mean, variance)):
            raise ValueError(f"{name} has the shape {weight.shape}, expected {layer.outputs} channels")
        scale = weight / np.sqrt(variance + self._epsilon)
        return scale.astype(np.float32), (bias - mean * scale).astype(np.float32)

    def _channels(self, values: ArrayLike) -> str:
        return self.graph.constant(np.asarray(values, np.float32).reshape(-1, 1, 1))


def backbone_graph(
    name: str, weights: Weights, stages: Sequence[str], ranges: Ranges | None = None, *, inside: bool = False
) -> bytes:
    """The ONNX model of a backbone: ``images`` (n, 3, h, w) uint8 -> stages (n, c, h', w') float32.

    Args:
        name: one of ``layers.OWN``.
        weights: names and values as the network in torch has them.
        stages: layers to output.
        ranges: lowest and highest value of each activation, to compute in 8 bits (Jacob et al., CVPR 2018); None:
            float32.
        inside: output all activations as well, by the names of ``ranges`` after the word "inside".

    Raises:
        EncoderError: the weights are not of this backbone.
    """
    row, network = find_backbone(name), network_of(name)
    builder = _Builder(weights, network.epsilon, ranges)
    outputs: dict[str, _Maps] = {}
    x = builder.pixels("images", row.mean, row.std)
    try:
        for layer in network.layers:
            x = outputs[layer.name] = builder.layer(layer, x, outputs[layer.shortcut] if layer.shortcut else None)
        builder.check_used()
    except (KeyError, ValueError) as error:
        raise EncoderError(f"these weights do not fit the backbone {name}: {error}") from error
    for stage in stages:
        builder.graph.give(outputs[stage].name, stage)
    sizes: dict[str, Shape] = {stage: ("n", outputs[stage].channels, f"{stage} h", f"{stage} w") for stage in stages}
    for value in builder.values if inside else ():
        builder.graph.give(builder.values[value], f"inside {value}")
        sizes[f"inside {value}"] = ("n", f"{value} c", f"{value} h", f"{value} w")
    return builder.graph.model({"images": ("n", 3, "h", "w")}, sizes)
