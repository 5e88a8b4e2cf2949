"""The backbone and its pooling in torch: devices, threads, ``TorchEncoder``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from mg_milvus.encoder.base import HashEncoder
from mg_milvus.encoder.classifier import TAGS
from mg_milvus.encoder.networks import as_tensors, channels_first, extractor
from mg_milvus.encoder.pooling import GEM_POWER, borders
from mg_milvus.errors import EncoderError
from mg_milvus.schema.models import REGIONS, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Features, Pixels
    from mg_milvus.encoder.file import EncoderState
    from mg_milvus.encoder.pooling import Pooling
    from mg_milvus.schema.models import Scale

    Job = TypeVar("Job")
    Result = TypeVar("Result")


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; ``auto`` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        EncoderError: an unknown device, or one that this machine does not have.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind = name.split(":")[0]
    if kind not in available:
        raise EncoderError(f"unknown device '{name}'; expected auto, cpu, cuda or mps")
    if not available[kind]:
        raise EncoderError(f"this machine or this build of torch has no {kind}; use --device auto or cpu")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on a device; on CPUs without matrix instructions (AMX) it is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return False


def torch_versions() -> tuple[str, str]:
    """Load torch and torchvision, and return their versions.

    Raises:
        RuntimeError, ImportError: the two were built for other versions of each other.
    """
    import torchvision.ops  # its compiled part is what fails

    return str(torch.__version__), str(torchvision.__version__)


IMAGES = 8
"""Images per forward pass in one lane on a CPU: the activations of more do not fit into its cache."""
_LANES = 8
"""Most lanes, for an ingest's batches of 64 images; with more cores each lane has several."""


def in_lanes(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterable[Result]:
    """Run torch jobs on the CPU in parallel threads, the results in order.

    A single job runs on all cores. Results do not depend on the number of lanes.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(jobs), _LANES)
    if lanes <= 1:
        return [work(job) for job in jobs]
    try:
        with ThreadPoolExecutor(lanes, "mgm-lane", torch.set_num_threads, (threads // lanes,)) as pool:
            return list(pool.map(work, jobs))
    finally:
        torch.set_num_threads(threads)  # new threads inherit the value that any thread set last


def gem(maps: torch.Tensor, power: float = GEM_POWER) -> torch.Tensor:
    """Generalised mean over places: (n, c, h, w) -> (n, c) float32. Negative activations count as 0."""
    return maps.float().clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power)


def pyramid(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """Averages in a grid of cells: (n, c, h, w) -> (n, c * cells * cells) float32."""
    return F.adaptive_avg_pool2d(maps.float(), cells).flatten(1)


def mirrored(maps: torch.Tensor, cells: int, power: float = GEM_POWER) -> torch.Tensor:
    """Generalised means in a grid, the same for a mirrored grid: (n, c, h, w) -> (n, 2 * c * cells * ceil(cells / 2)).

    First the sums of each cell of the left half, middle column included, with its mirror image, then their absolute
    differences; float32.
    """
    grid = F.adaptive_avg_pool2d(maps.float().clamp(min=1e-6).pow(power), cells).pow(1 / power)
    half = (cells + 1) // 2
    left, right = grid[..., :half], grid.flip(3)[..., :half]
    return torch.cat([left + right, (left - right).abs()], dim=1).flatten(1)


def windowed(maps: torch.Tensor, windows: NDArray[np.float64], power: float = GEM_POWER) -> torch.Tensor:
    """Generalised mean in each window: (n, c, h, w) and (r, 4) shares -> (n, r, c) float32.

    Window borders are rounded to whole places. Sums come from a summed-area table (Crow 1984) in double precision,
    because they are differences of large sums.
    """
    height, width = maps.shape[2:]
    table = F.pad(maps.float().clamp(min=1e-6).pow(power).double().cumsum(2).cumsum(3), (1, 0, 1, 0)).flatten(2)
    left, right = borders(windows[:, 0], windows[:, 2], width)
    top, bottom = borders(windows[:, 1], windows[:, 3], height)

    def corner(row: NDArray[np.int64], column: NDArray[np.int64]) -> torch.Tensor:
        return table[:, :, torch.from_numpy(row * (width + 1) + column).to(maps.device)]

    sums = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    places = torch.from_numpy((bottom - top) * (right - left)).to(maps.device)
    return (sums / places).clamp(min=1e-18).pow(1 / power).float().transpose(1, 2)


def pool_regions(maps: Mapping[str, torch.Tensor], pooling: Pooling, windows: NDArray[np.float64]) -> torch.Tensor:
    """Pool like ``pool`` with ``gem`` in each window (r, 4): (n, r, d) float32 on the CPU."""
    stages = [F.normalize(windowed(maps[stage], windows), dim=2) for stage in pooling.stages]
    return F.normalize(torch.cat(stages, dim=2), dim=2).cpu()


def pool(maps: Mapping[str, torch.Tensor], pooling: Pooling) -> torch.Tensor:
    """Pool and concatenate the stages of one granularity; each stage is scaled to length 1, then the whole.

    Args:
        maps: stage -> (n, c, h, w).
        pooling: stages and kind.

    Returns:
        (n, d) float32 on the CPU.
    """
    pool_stage: Callable[[torch.Tensor], torch.Tensor] = {
        "gem": gem,
        "pyramid": lambda x: pyramid(x, pooling.cells),
        "mirrored": lambda x: mirrored(x, pooling.cells),
    }[pooling.kind]
    stages = [F.normalize(pool_stage(maps[stage]), dim=1) for stage in pooling.stages]
    return F.normalize(torch.cat(stages, dim=1), dim=1).cpu()


class TorchEncoder(HashEncoder):
    """An ``Encoder`` whose backbone runs in torch.

    On CPUs with bfloat16 matrix instructions (AMX), and on CUDA, the backbone runs in bfloat16 autocast: features
    differ by 0.4 % from float32, and one code bit in 900 flips (photographs, at most 3 bits of a granularity). On one
    machine an image always gets the same code.
    """

    def __init__(self, state: EncoderState, *, device: str = "auto") -> None:
        self._device = resolve_device(device)
        super().__init__(state, device=str(self._device))

    @property
    def runtime(self) -> str:
        return "torch"

    @cached_property
    def _network(self) -> torch.nn.Module:
        weights = as_tensors(self.state.backbone)
        if self.row.library:
            from mg_milvus.encoder.libraries import library_extractor

            return library_extractor(self.row, weights).to(self._device)
        return extractor(self.backbone, weights).to(self._device)

    def _lend_network(self, other: Self) -> None:
        other.__dict__["_network"] = self._network

    @property
    def _images_at_once(self) -> int:
        return IMAGES if self._device.type == "cpu" else super()._images_at_once

    def _map(self, work: Callable[[Sequence[int]], Features], chunks: Sequence[Sequence[int]]) -> Iterable[Features]:
        if self._device.type != "cpu":
            return super()._map(work, chunks)
        _ = self._network  # built once, before several lanes use it
        return in_lanes(work, chunks)

    def _features(self, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        count = len(images)
        if count == 1:
            # oneDNN convolves a single image by another algorithm, whose float32 rounding differs.
            images = np.repeat(images, 2, axis=0)
        with torch.inference_mode():
            x = torch.from_numpy(images).to(self._device).to(memory_format=torch.channels_last).float() / 255
            row = self.row
            x = (x - _constant(row.mean, self._device)) / _constant(row.std, self._device)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=has_bfloat16(self._device)):
                maps = self._network(x)
            maps = {stage: channels_first(output, row.layout) for stage, output in maps.items()}
            poolings = self.state.configuration.poolings
            features: Features = {name: pool(maps, poolings[name])[:count].numpy() for name in names}
            for stage in self._tagged_stage if names else ():
                features[TAGS] = maps[stage].float().mean((2, 3))[:count].cpu().numpy()
            if regions:
                # Regions are many: half precision halves their memory while heads are fitted.
                features[REGIONS] = pool_regions(maps, poolings[REGIONS], windows(regions))[:count].half().numpy()
            return features


def _constant(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
