"""The project's own networks: ``mgnet``, ResNet-18's shape at a quarter of its size, and ``smallnet`` for thumbnails.

``mgnet``: two basic blocks a stage (He et al. 2015), a stem of one 3x3 convolution of stride 2 without max pooling, and
average-pool shortcuts (ResNet-D, He et al. 2018), so that small images keep their detail.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.weights import BFLOAT16
from mg_milvus.errors import EncoderError, WeightsNotFoundError
from mg_milvus.files import open_plain

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.encoder.weights import Weights


WIDTH = 40
"""Channels of the first stage; each later stage has twice as many as the one before."""


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (n, inputs, h, w) -> (n, outputs, h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.conv2 = _conv(outputs, outputs)
        shortcut: list[nn.Module] = []
        if stride > 1:
            shortcut.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if inputs != outputs:
            shortcut += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class MgNet(nn.Module):
    """Four stages at 1/2, 1/4, 1/8 and 1/16 of the input: (n, 3, h, w) -> {stage: (n, c, h', w')}."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, width, 2), nn.ReLU())
        self.stage1 = self._stage(width, width, 1)
        self.stage2 = self._stage(width, 2 * width, 2)
        self.stage3 = self._stage(2 * width, 4 * width, 2)
        self.stage4 = self._stage(4 * width, 8 * width, 2)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {"stage1": self.stage1(self.stem(x))}
        maps["stage2"] = self.stage2(maps["stage1"])
        maps["stage3"] = self.stage3(maps["stage2"])
        maps["stage4"] = self.stage4(maps["stage3"])
        return maps


class SmallNet(nn.Module):
    """Three stages at 1/2, 1/4 and 1/8 of the input, for 32 pixels: (n, 3, h, w) -> {stage: (n, c, h', w')}.

    Seven 3x3 convolutions, the first of each stage followed by max pooling, begun as identities as far as channels
    allow (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024).
    """

    def __init__(self, widths: tuple[int, int, int] = (64, 256, 256), stem: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, stem), nn.GELU())
        self.stage1 = self._stage(stem, widths[0])
        self.stage2 = self._stage(widths[0], widths[1])
        self.stage3 = self._stage(widths[1], widths[2])

    @staticmethod
    def _stage(inputs: int, outputs: int) -> nn.Sequential:
        first, second = _conv(inputs, outputs), _conv(outputs, outputs)
        for convolution, channels in ((first[0], inputs), (second[0], outputs)):
            nn.init.dirac_(cast("torch.Tensor", convolution.weight).data[:channels])
        return nn.Sequential(first[0], nn.MaxPool2d(2), first[1], nn.GELU(), *second, nn.GELU())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {"stage1": self.stage1(self.stem(x))}
        maps["stage2"] = self.stage2(maps["stage1"])
        maps["stage3"] = self.stage3(maps["stage2"])
        return maps


OWN: dict[str, type[nn.Module]] = {"mgnet": MgNet, "smallnet": SmallNet}
"""Networks of this project; all others are torchvision's."""


def build(name: str) -> nn.Module:
    """The network of a backbone with untrained weights."""
    find_backbone(name)
    if name in OWN:
        return OWN[name]()
    from torchvision.models import get_model  # takes two seconds, and mgnet does not need it

    return cast("nn.Module", get_model(name, weights=None))


def extractor(name: str, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module (n, 3, h, w) float32 -> {stage: (n, c, h', w')}, in evaluation mode, channels last in memory.

    Raises:
        EncoderError: the weights are not of this backbone.
    """
    row = find_backbone(name)
    network = build(name).eval()
    try:
        network.load_state_dict({key: value.float() if value.is_floating_point() else value
                                 for key, value in weights.items()})  # fmt: skip
    except RuntimeError as error:
        raise EncoderError(
            f"these weights do not fit the backbone {name}: {str(error).splitlines()[-1].strip()}"
        ) from error
    if name not in OWN:  # the own networks return their stages themselves
        from torchvision.models.feature_extraction import create_feature_extractor

        network = create_feature_extractor(network, return_nodes={stage: stage for stage in row.stages}).eval()
    channels_last: nn.Module = network.requires_grad_(False).to(memory_format=torch.channels_last)
    return channels_last


def as_tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """Convert arrays to tensors of the same types."""
    return {name: _as_tensor(values) for name, values in weights.items()}


def _as_tensor(values: NDArray[Any]) -> torch.Tensor:
    if values.dtype == BFLOAT16:
        return torch.from_numpy(values["bfloat16"].astype(np.int16)).view(torch.bfloat16)
    return torch.tensor(values)


def as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Convert tensors to arrays of the same types."""
    return {name: _as_array(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}


def _as_array(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def channels_first(maps: torch.Tensor, layout: str) -> torch.Tensor:
    """Transpose a stage's output from the layout of its backbone to (n, c, h, w)."""
    if layout == "nhwc":
        return maps.permute(0, 3, 1, 2)
    if layout == "tokens":
        count, tokens, channels = maps.shape
        side = math.isqrt(tokens - 1)
        return maps[:, 1:].transpose(1, 2).reshape(count, channels, side, side)
    return maps


def pretrained(name: str) -> dict[str, torch.Tensor]:
    """torchvision's weights of a backbone, from its cache or downloaded into it.

    Raises:
        WeightsNotFoundError: not in the cache, and no network.
    """
    find_backbone(name)
    if name in OWN:
        raise EncoderError(f"torchvision has no weights for {name}; the encoder 'builtin' is mgnet with its weights")
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise WeightsNotFoundError(
            f"the weights of {name} are not on this machine and cannot be fetched ({error}): download {weights.url} "
            f"and put it into {cache}, or use the encoder 'builtin', which works offline"
        ) from error
    return state


def read_weights(file: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a state dictionary from a ``.safetensors`` file or a PyTorch file (with ``weights_only``).

    Raises:
        EncoderError: not readable as such.
    """
    try:
        with open_plain(file) as opened:
            if Path(file).suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(file)
            state = torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds
        raise EncoderError(f"{file} is not a file of weights: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise EncoderError(f"{file} holds a {type(state).__name__}, expected a state dictionary")
    return state
