"""The network that is trained: a backbone, its poolings, and a hash layer per granularity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.networks import channels_first, extractor
from mg_milvus.encoder.torch_runtime import pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.encoder.pooling import Pooling
    from mg_milvus.training.config import HashLayerKind, TrainingConfiguration


NORM_EPSILON = 1e-5


class HashLayer(nn.Module):
    """Features (n, d) of length 1 -> relaxed codes (n, bits).

    Args:
        inputs: d.
        bits: code length.
        kind: ``standardised``: a linear map and batch normalisation without parameters, which keeps bits balanced;
            ``batch_norm``: the same with parameters, as Hoe et al. 2021 have it; ``linear``: a linear map with an
            offset. The papers' layers read activations whose squares have a mean about 1, and their rates are meant
            for those: the last two multiply features by the root of d, which gives them just that.
    """

    scale: torch.Tensor

    def __init__(self, inputs: int, bits: int, kind: HashLayerKind = "standardised") -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0 if kind == "standardised" else inputs**0.5))
        self.linear = nn.Linear(inputs, bits, bias=kind == "linear")
        self.norm: nn.Module = nn.Identity()
        if kind != "linear":
            self.norm = nn.BatchNorm1d(bits, eps=NORM_EPSILON, affine=kind == "batch_norm")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        relaxed: torch.Tensor = self.norm(self.linear(self.scale * features))
        return relaxed


def half_spaces(weights: Mapping[str, torch.Tensor], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a hash layer computes once it is trained: bit k of x is 1 where ``projection[k] @ x > threshold[k]``.

    Args:
        weights: the state of a ``HashingNetwork``.
        name: of the granularity.

    Returns:
        projection (bits, d), threshold (bits,).
    """
    start = f"heads.{name}."
    layer = {k.removeprefix(start): v.double().cpu().numpy() for k, v in weights.items() if k.startswith(start)}
    projection = layer["linear.weight"] * layer["scale"]
    if "norm.running_mean" not in layer:
        return projection, -layer["linear.bias"]
    if "norm.weight" not in layer:
        return projection, layer["norm.running_mean"]
    gain = layer["norm.weight"] / np.sqrt(layer["norm.running_var"] + NORM_EPSILON)
    return projection * gain[:, None], layer["norm.running_mean"] * gain - layer["norm.bias"]


class HashingNetwork(nn.Module):
    """Images (n, 3, h, w) -> features and relaxed codes of every granularity.

    Every granularity whose codes are trained has a hash layer. ``classifiers`` are plain linear layers on the features
    of a granularity, for the softmax losses: granularity -> number of labels.
    """

    def __init__(
        self,
        configuration: TrainingConfiguration,
        weights: Mapping[str, torch.Tensor],
        poolings: Mapping[str, Pooling],
        classifiers: Mapping[str, int],
    ) -> None:
        super().__init__()
        backbone = configuration.backbone
        row = find_backbone(backbone)
        self._layout = row.layout
        self.poolings = dict(poolings)
        self.backbone = extractor(backbone, weights).requires_grad_(True)
        with torch.inference_mode():
            self.widths = {n: f.shape[1] for n, f in self.features(torch.zeros(2, 3, row.side, row.side)).items()}
        self.heads = nn.ModuleDict({
            name: HashLayer(self.widths[name], length, configuration.hash_layer)
            for name, length in configuration.trained.items()
        })  # fmt: skip
        self.classifiers = nn.ModuleDict({
            # The norm lifts features of length 1 to a scale on which a softmax can be sure of itself.
            name: nn.Sequential(nn.BatchNorm1d(self.widths[name]), nn.Linear(self.widths[name], labels))
            for name, labels in classifiers.items()
        })  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Images -> (relaxed codes, class scores): granularity -> (n, bits) and (n, labels) float32."""
        features = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.hashed(features)

    def hashed(self, features: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Features -> (relaxed codes, class scores), as ``forward``."""
        codes = {name: head(features[name]) for name, head in self.heads.items()}
        return codes, {name: layer(features[name]) for name, layer in self.classifiers.items()}

    def features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images -> granularity -> (n, d) float32; ``widths`` has each d."""
        maps = {stage: channels_first(found, self._layout) for stage, found in self.backbone(x).items()}
        return {name: pool(maps, pooling).to(x.device) for name, pooling in self.poolings.items()}
