"""What torch has to run on here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from mg_milvus.encoder.backbones import IMAGENET_MEAN, IMAGENET_STD, find_backbone
from mg_milvus.encoder.base import HashEncoder
from mg_milvus.encoder.networks import as_tensors, channels_first, extractor
from mg_milvus.encoder.pooling import GEM_POWER, borders
from mg_milvus.errors import EncoderError
from mg_milvus.schema.regions import REGIONS, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Job = TypeVar("Job")
    Result = TypeVar("Result")
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Features, Pixels
    from mg_milvus.encoder.file import Contents
    from mg_milvus.encoder.pooling import Reading
    from mg_milvus.schema.regions import Scale


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA, else Apple's MPS, else the CPU.

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
    """Whether bfloat16 is faster than float32 there: on CPUs without matrix instructions (AMX) it is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return False


def torch_versions() -> tuple[str, str]:
    """Versions of torch and torchvision, once both are loaded.

    Raises:
        RuntimeError, ImportError: the two were built for each other's other versions.
    """
    import torchvision.ops  # its compiled part is what fails

    return str(torch.__version__), str(torchvision.__version__)


IMAGES = 8
"""On a CPU, in one lane: what a network makes of more of them does not stay in its cache."""
_LANES = 8
"""At most: a batch of an ingest is 64 images. With more cores, each lane has several."""


def in_lanes(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterable[Result]:
    """What ``work`` makes of each job, in order, done by torch on the CPU side by side.

    One job alone is done by all cores together. The results do not depend on it.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(jobs), _LANES)
    if lanes <= 1:
        return [work(job) for job in jobs]
    try:
        with ThreadPoolExecutor(lanes, "mgm-lane", torch.set_num_threads, (threads // lanes,)) as pool:
            return list(pool.map(work, jobs))
    finally:
        torch.set_num_threads(threads)  # torch gives threads that begin later what was set last, by whomever


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

    Borders fall on whole places. Sums come from a summed-area table (Crow 1984), so many windows cost little more than
    one; in double precision, because they are differences of large sums.
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


def read_regions(maps: Mapping[str, torch.Tensor], reading: Reading, windows: NDArray[np.float64]) -> torch.Tensor:
    """As ``read`` with ``gem``, in each window (r, 4): (n, r, d) float32 on the CPU."""
    parts = [F.normalize(windowed(maps[stage], windows), dim=2) for stage in reading.stages]
    return F.normalize(torch.cat(parts, dim=2), dim=2).cpu()


def read(maps: Mapping[str, torch.Tensor], reading: Reading) -> torch.Tensor:
    """Pool and join the stages of one granularity; every stage has length 1, and so has the whole.

    Args:
        maps: stage -> (n, c, h, w).
        reading: which stages, and how.

    Returns:
        (n, d) float32 on the CPU.
    """
    pool: Callable[[torch.Tensor], torch.Tensor] = {
        "gem": gem,
        "pyramid": lambda x: pyramid(x, reading.cells),
        "mirrored": lambda x: mirrored(x, reading.cells),
    }[reading.pooling]
    parts = [F.normalize(pool(maps[stage]), dim=1) for stage in reading.stages]
    return F.normalize(torch.cat(parts, dim=1), dim=1).cpu()


class TorchEncoder(HashEncoder):
    """An ``Encoder`` whose backbone runs in torch.

    On CPUs with instructions for matrices of bfloat16 (AMX), and on CUDA, the backbone runs in bfloat16 autocast:
    features then differ by 0.4 % from float32, and one bit in 900 flips (photographs, never more than 3 in a
    granularity). One machine always gives one image one code.
    """

    def __init__(self, contents: Contents, *, device: str = "auto") -> None:
        self._device = resolve_device(device)
        super().__init__(contents, device=str(self._device))

    @property
    def runtime(self) -> str:
        return "torch"

    @cached_property
    def _network(self) -> torch.nn.Module:
        return extractor(self.backbone, as_tensors(self.contents.backbone)).to(self._device)

    def _lend_network(self, other: Self) -> None:
        other.__dict__["_network"] = self._network

    @property
    def _images_at_once(self) -> int:
        return IMAGES if self._device.type == "cpu" else super()._images_at_once

    def _each(self, work: Callable[[Sequence[int]], Features], chunks: Sequence[Sequence[int]]) -> Iterable[Features]:
        if self._device.type != "cpu":
            return super()._each(work, chunks)
        _ = self._network  # built once, before several lanes ask for it
        return in_lanes(work, chunks)

    def _features(self, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        count = len(images)
        if count == 1:
            # A convolution of one image takes another code path in oneDNN, whose float32 rounding differs.
            images = np.repeat(images, 2, axis=0)
        with torch.inference_mode():
            x = torch.from_numpy(images).to(self._device).to(memory_format=torch.channels_last).float() / 255
            x = (x - _constant(IMAGENET_MEAN, self._device)) / _constant(IMAGENET_STD, self._device)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=has_bfloat16(self._device)):
                maps = self._network(x)
            layout = find_backbone(self.backbone).layout
            maps = {stage: channels_first(output, layout) for stage, output in maps.items()}
            readings = self.contents.configuration.readings
            found: Features = {name: read(maps, readings[name])[:count].numpy() for name in names}
            if regions:
                # There are many of them, and in half precision they take half the memory while heads are fitted.
                found[REGIONS] = read_regions(maps, readings[REGIONS], windows(regions))[:count].half().numpy()
            return found


def _constant(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
