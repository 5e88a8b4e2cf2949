"""The network that is trained: a backbone, its poolings, and a hash layer per granularity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.networks import channels_first, extractor
from mg_milvus.encoder.torch_runtime import pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.encoder.pooling import Pooling


class HashLayer(nn.Module):
    """Features (n, d) -> relaxed codes (n, bits): a linear map, each bit centred and scaled over the batch.

    Batch normalisation without parameters keeps bits balanced (Hoe et al. 2021), and its running mean is the threshold.
    """

    def __init__(self, inputs: int, bits: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, bits, bias=False)
        self.norm = nn.BatchNorm1d(bits, affine=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        relaxed: torch.Tensor = self.norm(self.linear(features))
        return relaxed


class HashingNetwork(nn.Module):
    """Images (n, 3, h, w) -> features and relaxed codes of every granularity.

    ``bits`` names the granularities with a hash layer. ``classifiers`` are plain linear layers on the features of a
    granularity, for the softmax losses: granularity -> number of labels.
    """

    def __init__(
        self,
        backbone: str,
        weights: Mapping[str, torch.Tensor],
        poolings: Mapping[str, Pooling],
        bits: Mapping[str, int],
        classifiers: Mapping[str, int],
    ) -> None:
        super().__init__()
        row = find_backbone(backbone)
        self._layout = row.layout
        self.poolings = dict(poolings)
        self.backbone = extractor(backbone, weights).requires_grad_(True)
        with torch.inference_mode():
            self.widths = {n: f.shape[1] for n, f in self.features(torch.zeros(2, 3, row.side, row.side)).items()}
        self.heads = nn.ModuleDict({name: HashLayer(self.widths[name], length) for name, length in bits.items()})
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
