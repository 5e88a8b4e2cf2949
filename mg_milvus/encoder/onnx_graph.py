"""The project's own networks as ONNX graphs, made of an encoder's weights; ``network.py`` says what they are.

Batch normalisation is folded into the convolution before it (Jacob et al., CVPR 2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mg_milvus.encoder.onnx_file import Graph
from mg_milvus.encoder.table import IMAGENET_MEAN, IMAGENET_STD
from mg_milvus.encoder.weights import single
from mg_milvus.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from mg_milvus.encoder.weights import Weights

    Ranges = Mapping[str, tuple[float, float]]

_EPSILON = 1e-5
"""That of torch's ``BatchNorm2d``."""
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


class _Maps(NamedTuple):
    """Feature maps in the graph, and the step between their values where they are rounded to 8 bits."""

    name: str
    channels: int
    step: float = 0.0


class _Layers:
    """Layers by the names of their weights, each of which is taken once."""

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
        """A convolution, with the batch normalisation after it if one is named."""
        kernel, inputs = self._take(f"{name}.weight"), [x.name]
        if kernel.ndim != 4 or kernel.shape[1] != x.channels:
            raise ValueError(f"{name}.weight has the shape {kernel.shape}, and its input {x.channels} channels")
        if norm is None:
            inputs.append(self.graph.constant(kernel))
        else:
            scale, shift = self._norm(norm, len(kernel))
            inputs += self._constants(kernel * scale[:, None, None, None], shift, x.step)
        side = kernel.shape[2]
        made = self.graph.add(
            "Conv", *inputs, kernel_shape=(side, side), strides=(stride, stride), pads=(side // 2,) * 4
        )
        return _Maps(made, len(kernel))

    def _constants(self, kernel: NDArray[np.float32], shift: NDArray[np.float32], step: float) -> list[str]:
        """Kernel and shift of a convolution, in 8 and 32 bits where its input has 8: each channel by its largest."""
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
            made = self.each("Relu", x) if rectified else x
            self.values[name] = made.name
            return made
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
        """What a channel is multiplied with, and what is then added; worked out in double precision."""
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
"""Backbone -> what makes its graph; torchvision's networks have none and run in torch."""


def backbone_graph(
    name: str, weights: Weights, stages: Mapping[str, int], ranges: Ranges | None = None, *, inside: bool = False
) -> bytes:
    """The ONNX model of a backbone: ``pictures`` (n, 3, h, w) uint8 -> its stages (n, c, h', w') float32.

    Args:
        name: a key of ``NETWORKS``.
        weights: names and values as the network in torch has them.
        stages: channels of each stage that is given out.
        ranges: lowest and highest of the values inside of the network, which are then rounded to 8 bits, and its
            weights likewise (Jacob et al., CVPR 2018); None: float32.
        inside: give those values out as well, by the names that ``ranges`` has.

    Raises:
        EncoderError: the weights are not of this backbone.
    """
    layers = _Layers(weights, ranges)
    try:
        found = NETWORKS[name](layers, layers.pixels("pictures"))
        layers.check_used()
        if any(found[stage].channels != channels for stage, channels in stages.items()):
            raise ValueError(f"its stages have {[maps.channels for maps in found.values()]} channels")
    except (KeyError, ValueError, IndexError) as error:
        raise EncoderError(f"these weights do not fit the backbone {name}: {error}") from error
    for stage in stages:
        layers.graph.give(found[stage].name, stage)
    sizes: dict[str, tuple[str | int, ...]] = {
        stage: ("n", channels, f"{stage} h", f"{stage} w") for stage, channels in stages.items()
    }
    for value in layers.values if inside else ():
        layers.graph.give(layers.values[value], f"inside {value}")
        sizes[f"inside {value}"] = ("n", f"{value} c", f"{value} h", f"{value} w")
    return layers.graph.model({"pictures": ("n", 3, "h", "w")}, sizes)
