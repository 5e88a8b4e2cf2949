"""The networks of the backbones in torch, and their weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from mg_milvus.encoder.network import MgNet, SmallNet
from mg_milvus.encoder.table import find_backbone
from mg_milvus.encoder.weights import BFLOAT16
from mg_milvus.errors import EncoderError, WeightsNotFoundError
from mg_milvus.plain_files import open_plain

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.encoder.weights import Weights

OWN: dict[str, type[nn.Module]] = {"mgnet": MgNet, "smallnet": SmallNet}
"""Networks of this project; all others are torchvision's."""


def build(name: str) -> nn.Module:
    """The network of a backbone with untrained weights."""
    find_backbone(name)
    if name in OWN:
        return OWN[name]()
    from torchvision.models import get_model  # takes two seconds, and mgnet does without

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
    if name not in OWN:  # which hand out their stages themselves
        from torchvision.models.feature_extraction import create_feature_extractor

        network = create_feature_extractor(network, return_nodes={stage: stage for stage in row.stages}).eval()
    channels_last: nn.Module = network.requires_grad_(False).to(memory_format=torch.channels_last)
    return channels_last


def as_tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """Arrays as tensors, of the same types."""
    return {name: _as_tensor(values) for name, values in weights.items()}


def _as_tensor(values: NDArray[Any]) -> torch.Tensor:
    if values.dtype == BFLOAT16:
        return torch.from_numpy(values["bfloat16"].astype(np.int16)).view(torch.bfloat16)
    return torch.tensor(values)


def as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors as arrays, of the same types."""
    return {name: _as_array(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}


def _as_array(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def channels_first(maps: torch.Tensor, layout: str) -> torch.Tensor:
    """A stage's output in the layout of its backbone -> (n, c, h, w)."""
    if layout == "nhwc":
        return maps.permute(0, 3, 1, 2)
    if layout == "tokens":
        count, tokens, channels = maps.shape
        side = math.isqrt(tokens - 1)
        return maps[:, 1:].transpose(1, 2).reshape(count, channels, side, side)
    return maps


def pretrained(name: str) -> dict[str, torch.Tensor]:
    """torchvision's own weights of a backbone, from its cache, else downloaded into it.

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
    """A state dictionary from a ``.safetensors`` file or a PyTorch file (read without unpickling code).

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
