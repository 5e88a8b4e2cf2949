"""Backbones in torch: the project's own networks from their table of layers, torchvision's, and their weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.imagenet import PACKAGES, imagenet_network
from mg_milvus.encoder.layers import OWN, network_of
from mg_milvus.encoder.weights import BFLOAT16
from mg_milvus.errors import EncoderError, WeightsNotFoundError
from mg_milvus.files import open_plain

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from mg_milvus.encoder.layers import Layer
    from mg_milvus.encoder.weights import Weights


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu6": F.relu6,
    "gelu": F.gelu,
    "none": lambda x: x,
}


class _ConvNorm(nn.Module):
    """One row of the table: see ``layers.Layer``."""

    def __init__(self, layer: Layer, epsilon: float) -> None:
        super().__init__()
        self._layer = layer
        self.conv = nn.Conv2d(
            layer.inputs, layer.outputs, layer.kernel, layer.stride, groups=layer.groups, bias=False
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(layer.outputs, eps=epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = (_same_padding(side, self._layer) for side in x.shape[2:])
        if any((*height, *width)):
            x = F.pad(x, (*width, *height))
        x = self.conv(x)
        if self._layer.pool > 1:
            x = F.max_pool2d(x, self._layer.pool)
        x = self.norm(x)
        return _ACTIVATIONS[self._layer.activation](x)


def _same_padding(side: int, layer: Layer) -> tuple[int, int]:
    """Places of TensorFlow's "SAME" padding before and after a side."""
    places = max(0, (-(-side // layer.stride) - 1) * layer.stride + layer.kernel - side)
    return places // 2, places - places // 2


class OwnNetwork(nn.Module):
    """A network of ``layers.py``: (n, 3, h, w) -> {stage of the backbone's row: (n, c, h', w')}."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        network = network_of(backbone)
        self._layers = network.layers
        self._stages = find_backbone(backbone).stages
        self._shortcuts = frozenset(layer.shortcut for layer in network.layers)
        for layer in network.layers:
            self.add_module(layer.name, _ConvNorm(layer, network.epsilon))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}
        for layer in self._layers:
            x = self.get_submodule(layer.name)(x)
            if layer.shortcut:
                x = x + kept[layer.shortcut]
            if layer.name in self._stages or layer.name in self._shortcuts:
                kept[layer.name] = x
        return {stage: kept[stage] for stage in self._stages}


def build(name: str) -> nn.Module:
    """The network of a backbone with untrained weights."""
    find_backbone(name)
    if name in OWN:
        network = OwnNetwork(name)
        if name == "smallnet":
            _begin_as_identities(network)
        return network
    from torchvision.models import get_model  # takes two seconds, and the own networks do not need it

    return cast("nn.Module", get_model(name, weights=None))


def _begin_as_identities(network: OwnNetwork) -> None:
    """Initialise all convolutions but the stem's as identities, as far as their channels allow (Jordan 2024)."""
    for name, module in network.named_children():
        if name != "stem":
            kernel = cast("_ConvNorm", module).conv.weight.data
            nn.init.dirac_(kernel[: kernel.shape[1]])


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
    """A stage's output as (n, c, h, w): from the layout of its backbone, from tokens (n, t, c), or vectors (n, c)."""
    if maps.ndim == 2:
        return maps[:, :, None, None]
    if maps.ndim == 3:
        count, tokens, channels = maps.shape
        side = math.isqrt(tokens)
        return maps[:, tokens - side * side :].transpose(1, 2).reshape(count, channels, side, side)
    return maps.permute(0, 3, 1, 2) if layout == "nhwc" else maps


def pretrained(name: str) -> dict[str, torch.Tensor]:
    """ImageNet weights of a backbone: of its package, or torchvision's, from its cache or downloaded into it.

    Raises:
        WeightsNotFoundError: not in the cache, and no network.
    """
    find_backbone(name)
    if name in PACKAGES:
        return as_tensors(imagenet_network(name)[0])
    if name in OWN:
        raise EncoderError(f"there are no pretrained weights of {name}: train it with --init scratch")
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
