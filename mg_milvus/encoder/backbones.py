"""The table of backbones: name -> network, stages to read, input size. Networks come from torchvision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from mg_milvus.encoder.network import MgNet, SmallNet
from mg_milvus.errors import EncoderError, WeightsNotFoundError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Backbone:
    """One row of the table.

    Attributes:
        name: as users write it, and torchvision's name for the model.
        stages: nodes of the network to read, early to late; a module's name means its output.
        channels: of each stage.
        side: input pixels: the area of an input picture is about side * side.
        multiple: input width and height are multiples of this, and so the aspect of the picture is kept; 0 for a
            network that takes squares only.
        layout: order of a stage's output: channels first, channels last, or a sequence of tokens with a class token.
    """

    name: str
    stages: tuple[str, ...]
    channels: tuple[int, ...]
    side: int = 224
    multiple: int = 32
    layout: Literal["nchw", "nhwc", "tokens"] = "nchw"


BACKBONES: dict[str, Backbone] = {
    row.name: row
    for row in (
        Backbone("mgnet", ("stage2", "stage3", "stage4"), (80, 160, 320), side=112, multiple=16),
        Backbone("smallnet", ("stage1", "stage2", "stage3"), (64, 256, 256), side=32, multiple=8),
        Backbone("resnet18", ("layer2", "layer3", "layer4"), (128, 256, 512)),
        Backbone("resnet50", ("layer2", "layer3", "layer4"), (512, 1024, 2048)),
        Backbone("mobilenet_v3_small", ("features.3", "features.8", "features.12"), (24, 48, 576)),
        Backbone("mobilenet_v3_large", ("features.6", "features.12", "features.16"), (40, 112, 960)),
        Backbone("efficientnet_b0", ("features.3", "features.5", "features.8"), (40, 112, 1280)),
        Backbone(
            "regnet_y_400mf",
            ("trunk_output.block2", "trunk_output.block3", "trunk_output.block4"),
            (104, 208, 440),
        ),
        Backbone("convnext_tiny", ("features.3", "features.5", "features.7"), (192, 384, 768)),
        Backbone(
            "vit_b_16",
            tuple(f"encoder.layers.encoder_layer_{layer}" for layer in (5, 8, 11)),
            (768, 768, 768),
            multiple=0,
            layout="tokens",
        ),
        Backbone("swin_t", ("features.3", "features.5", "features.7"), (192, 384, 768), layout="nhwc"),
    )
}


OWN: dict[str, type[nn.Module]] = {"mgnet": MgNet, "smallnet": SmallNet}
"""Networks of this project; all others are torchvision's."""


def find_backbone(name: str) -> Backbone:
    """The row of the table.

    Raises:
        EncoderError: no such backbone.
    """
    if name not in BACKBONES:
        raise EncoderError(f"unknown backbone '{name}'; known are {', '.join(BACKBONES)}")
    return BACKBONES[name]


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
        if Path(file).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds
        raise EncoderError(f"{file} is not a file of weights: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise EncoderError(f"{file} holds a {type(state).__name__}, expected a state dictionary")
    return state
