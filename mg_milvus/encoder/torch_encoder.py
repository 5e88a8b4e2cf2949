"""The encoder on torch: device and precision."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from mg_milvus.encoder import lanes
from mg_milvus.encoder.backbones import as_tensors, channels_first, extractor
from mg_milvus.encoder.device import has_bfloat16, resolve_device
from mg_milvus.encoder.hash_encoder import HashEncoder
from mg_milvus.encoder.heads import read, read_regions
from mg_milvus.encoder.table import IMAGENET_MEAN, IMAGENET_STD, find_backbone
from mg_milvus.regions import windows
from mg_milvus.schema_parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mg_milvus.encoder import Features, Pixels
    from mg_milvus.encoder.artefact import Parts
    from mg_milvus.regions import Scale


class TorchEncoder(HashEncoder):
    """An ``Encoder`` whose backbone runs in torch.

    On CPUs with instructions for matrices of bfloat16 (AMX), and on CUDA, the backbone runs in bfloat16 autocast:
    features then differ by 0.4 % from float32, and one bit in 900 flips (photographs, never more than 3 in a
    granularity). One machine always gives one picture one code.
    """

    def __init__(self, parts: Parts, *, device: str = "auto") -> None:
        self._device = resolve_device(device)
        super().__init__(parts, device=str(self._device))

    @property
    def runtime(self) -> str:
        return "torch"

    @cached_property
    def _network(self) -> torch.nn.Module:
        return extractor(self.backbone, as_tensors(self.parts.backbone)).to(self._device)

    def _lend_network(self, other: Self) -> None:
        other.__dict__["_network"] = self._network

    @property
    def _pictures_at_once(self) -> int:
        return lanes.PICTURES if self._device.type == "cpu" else super()._pictures_at_once

    def _each(self, work: Callable[[Sequence[int]], Features], chunks: Sequence[Sequence[int]]) -> Iterable[Features]:
        if self._device.type != "cpu":
            return super()._each(work, chunks)
        _ = self._network  # built once, before several lanes ask for it
        return lanes.in_lanes(work, chunks)

    def _features(self, pictures: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        count = len(pictures)
        if count == 1:
            # A convolution of one picture takes another code path in oneDNN, whose float32 rounding differs.
            pictures = np.repeat(pictures, 2, axis=0)
        with torch.inference_mode():
            x = torch.from_numpy(pictures).to(self._device).to(memory_format=torch.channels_last).float() / 255
            x = (x - _constant(IMAGENET_MEAN, self._device)) / _constant(IMAGENET_STD, self._device)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=has_bfloat16(self._device)):
                maps = self._network(x)
            layout = find_backbone(self.backbone).layout
            maps = {stage: channels_first(output, layout) for stage, output in maps.items()}
            readings = self.parts.configuration.readings
            found: Features = {name: read(maps, readings[name])[:count].numpy() for name in names}
            if regions:
                # There are many of them, and in half precision they take half the memory while heads are fitted.
                found[PARTS] = read_regions(maps, readings[PARTS], windows(regions))[:count].half().numpy()
            return found


def _constant(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
