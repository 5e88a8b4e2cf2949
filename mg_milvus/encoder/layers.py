"""The project's own networks as tables of layers: torch's modules and ONNX graphs are both built from these tables.

EfficientNet-Lite: the networks of Tan and Le ("EfficientNet", ICML 2019) without squeeze-and-excitation, with ReLU6,
and with a stem and a head that are not scaled, so that 8 bits suffice for their activations. ``smallnet`` is for
thumbnails (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from mg_milvus.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution without bias and what follows it: pooling, batch normalisation, activation, a shortcut.

    Padding is TensorFlow's "SAME": the output has ceil(side / stride) places, and of an odd number of padded places
    the larger half lies at the right and at the bottom.

    Attributes:
        name: unique in its network; the weights are NAME.conv.weight and NAME.norm.*.
        inputs: channels of the layer before, whose output it reads.
        outputs: channels.
        kernel: side of the kernel.
        stride: of the convolution.
        groups: of the convolution; as many as ``inputs`` for a depthwise one.
        pool: side and stride of the max pooling before the normalisation, 1 for none.
        activation: of the normalised values.
        shortcut: the earlier layer whose output is added at the end.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    pool: int = 1
    activation: Literal["relu6", "gelu", "none"] = "relu6"
    shortcut: str | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """Layers, each reading the output of the one before, and the epsilon of their batch normalisations."""

    layers: tuple[Layer, ...]
    epsilon: float


_STAGES = ((1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 2, 3), (6, 112, 5, 1, 3), (6, 192, 5, 2, 4),
           (6, 320, 3, 1, 1))  # fmt: skip
"""Table 1 of the paper, without stem and head: expansion, channels, kernel, stride of the first block, blocks."""
_STEM, _HEAD = 32, 1280


def _scaled(channels: int, width: float) -> int:
    """Channels times ``width``, to the nearest multiple of 8 that is not below 90 % of it."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def efficientnet_lite(width: float, depth: float) -> Network:
    """EfficientNet-Lite, scaled; the first and the last stage keep their single block."""
    layers = [Layer("stem", 3, _STEM, kernel=3, stride=2)]
    number = 0
    for place, (expansion, channels, kernel, first_stride, blocks) in enumerate(_STAGES):
        outputs = _scaled(channels, width)
        repeats = blocks if place in {0, len(_STAGES) - 1} else math.ceil(depth * blocks)
        for repeat in range(repeats):
            layers += _inverted_residual(
                number, layers[-1], outputs, expansion, (kernel, 1 if repeat else first_stride)
            )
            number += 1
    return Network((*layers, Layer("head", layers[-1].outputs, _HEAD)), epsilon=1e-3)


def _inverted_residual(
    number: int, before: Layer, outputs: int, expansion: int, kernel_and_stride: tuple[int, int]
) -> list[Layer]:
    """A block (Sandler et al., "MobileNetV2", CVPR 2018): expansion, depthwise convolution, linear projection."""
    kernel, stride = kernel_and_stride
    inputs = before.outputs
    wide = inputs * expansion
    expand = [Layer(f"block{number}_expand", inputs, wide)] if expansion > 1 else []
    shortcut = before.name if stride == 1 and inputs == outputs else None
    return [
        *expand,
        Layer(f"block{number}_depthwise", wide, wide, kernel=kernel, stride=stride, groups=wide),
        Layer(f"block{number}_project", wide, outputs, activation="none", shortcut=shortcut),
    ]


def smallnet() -> Network:
    """A stem and three stages at 1/2, 1/4 and 1/8 of the input; the first convolution of each stage is pooled."""
    layers = [Layer("stem", 3, 32, kernel=3, activation="gelu")]
    for stage, channels in enumerate((64, 256, 256), start=1):
        for name, inputs, pool in ((f"stage{stage}_first", layers[-1].outputs, 2), (f"stage{stage}", channels, 1)):
            layers.append(Layer(name, inputs, channels, kernel=3, pool=pool, activation="gelu"))
    return Network(tuple(layers), epsilon=1e-5)


_NETWORKS: dict[str, Callable[[], Network]] = {
    "efficientnet_lite0": lambda: efficientnet_lite(1.0, 1.0),
    "efficientnet_lite1": lambda: efficientnet_lite(1.0, 1.1),
    "efficientnet_lite2": lambda: efficientnet_lite(1.1, 1.2),
    "smallnet": smallnet,
}
OWN = frozenset(_NETWORKS)
"""Backbones whose layers are described here; all others are torchvision's."""


@cache
def network_of(backbone: str) -> Network:
    """The layers of one of the project's own networks.

    Raises:
        EncoderError: it is not one of ``OWN``.
    """
    if backbone not in OWN:
        raise EncoderError(f"the layers of {backbone} are not described here; expected one of {', '.join(sorted(OWN))}")
    return _NETWORKS[backbone]()
