"""Backbones in onnxruntime: the project's own, by default on CPUs, and those of ONNX files; ``OnnxEncoder``."""

from __future__ import annotations

import json
import math
import os
import sys
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from mg_milvus.encoder.base import HashEncoder
from mg_milvus.encoder.classifier import TAGS
from mg_milvus.encoder.layers import OWN
from mg_milvus.encoder.onnx_graph import backbone_graph
from mg_milvus.encoder.pooling import pool, pool_regions
from mg_milvus.errors import EncoderError, MissingPackageError
from mg_milvus.schema.models import REGIONS, windows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

    from mg_milvus.encoder.base import Features, Pixels
    from mg_milvus.encoder.file import Configuration, EncoderState
    from mg_milvus.encoder.onnx_graph import Ranges
    from mg_milvus.encoder.weights import Weights
    from mg_milvus.schema.models import Scale


RUNTIMES = ("onnx-int8", "onnx", "torch")
RUNTIME_VARIABLE = "MGM_RUNTIME"
"""Environment variable with one of ``RUNTIMES``, so that tests can force each: onnxruntime in 8 bits or in float32, or
torch. Without it the device and the CPU decide. Codes of different runtimes differ in a few bits."""
RANGES_FILE = "{backbone}.ranges.json"
"""Beside the shipped heads: the fingerprint of a backbone's weights, and the range of each activation."""
_INSTRUCTIONS = {"avx512_vnni", "avx_vnni"}


def forced_runtime() -> str | None:
    """The runtime that ``RUNTIME_VARIABLE`` forces, None for the default.

    Raises:
        EncoderError: it has another value.
    """
    runtime = os.environ.get(RUNTIME_VARIABLE)
    if runtime and runtime not in RUNTIMES:
        raise EncoderError(f"{RUNTIME_VARIABLE} is '{runtime}', expected {', '.join(RUNTIMES)}, or nothing")
    return runtime or None


def ranges_of(configuration: Configuration) -> Ranges | None:
    """Activation ranges for 8 bits, known for ImageNet weights only; None: compute in float32."""
    if configuration.backbone not in OWN:
        return None
    forced = forced_runtime()
    if forced != "onnx-int8" and (forced or not has_fast_int8()):
        return None
    file = resources.files("mg_milvus.encoder") / "weights" / RANGES_FILE.format(backbone=configuration.backbone)
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    ranges: Ranges = content["ranges"]
    return ranges if content["backbone_fingerprint"] == configuration.backbone_fingerprint else None


@cache
def has_fast_int8() -> bool:
    """Whether the CPU has instructions for 8-bit dot products (VNNI), according to Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _INSTRUCTIONS.isdisjoint(flags.split())


# From 1.29 on onnxruntime sends telemetry unless it finds this variable when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices of the GPU drivers of NVIDIA, of AMD, and of either under WSL."""
_ERRORS_ONLY = 3
_IMAGES = 8
"""Images per forward pass: the activations of more do not fit into a CPU's cache, and take 20 MB an image."""


def onnx_runs(backbone: str, device: str) -> bool:
    """Whether onnxruntime runs a backbone on a device: the project's own backbones on CPUs.

    ``auto`` is a CPU on Linux without a GPU driver, which can be known without importing torch.
    """
    if backbone not in OWN or device not in {"auto", "cpu"}:
        return False
    if forced := forced_runtime():
        return forced != "torch"
    return device == "cpu" or (sys.platform == "linux" and not any(Path(file).exists() for file in _GPUS))


def _onnxruntime() -> ModuleType:
    """The package, set to log errors only.

    Raises:
        MissingPackageError: it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f"onnxruntime, which runs the encoder on CPUs, cannot be imported ({error}): "
            "pip install --force-reinstall onnxruntime"
        ) from error
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    module: ModuleType = onnxruntime
    return module


IMAGES_INPUT = "images"
"""Name of a graph's input: (n, 3, h, w) uint8."""
GRAPH = "graph"
"""Name of the graph of an ONNX file among the weights of an encoder."""


def open_session(graph: bytes) -> InferenceSession:
    """Load a graph on as many threads as there are cores.

    Raises:
        MissingPackageError: onnxruntime cannot be imported.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or _cores())
    # Spinning threads would take cores from the decoding of the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in other files are refused: a graph that a server sends could name any file here.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _load_network(configuration: Configuration, backbone: Weights, tagged: tuple[str, ...]) -> InferenceSession:
    if configuration.row.library:
        return _session_of_file(configuration, backbone)
    pooled = (stage for pooling in configuration.poolings.values() for stage in pooling.stages)
    stages = sorted({*pooled, *tagged})
    return open_session(backbone_graph(configuration.backbone, backbone, stages, ranges_of(configuration)))


def _session_of_file(configuration: Configuration, backbone: Weights) -> InferenceSession:
    try:
        session = open_session(backbone[GRAPH].tobytes())
        offered = {each.name for each in session.get_outputs()}
        if missing := sorted(set(configuration.row.stages) - offered):
            raise KeyError(missing[0])
    except Exception as error:  # onnxruntime raises many kinds
        reason = (str(error).splitlines() or [""])[0]
        raise EncoderError(
            f"the graph of {configuration.backbone} cannot be run ({reason}): make the encoder again"
        ) from error
    return session


class OnnxEncoder(HashEncoder):
    """An ``Encoder`` whose backbone runs in onnxruntime.

    The built-in network computes in 8 bits on CPUs with VNNI, in a third of the time; one code bit in 100 then differs
    from float32 (photographs, at most 10 bits of a granularity), and search is as good. Other networks compute in
    float32, where one bit in half a million differs from torch (photographs; benchmarks/encode_rate.py). The code of an
    image does not depend on its batch.
    """

    def __init__(self, state: EncoderState, *, device: str = "auto") -> None:
        _onnxruntime()  # fail early
        super().__init__(state, device=device)
        self._network = cache(partial(_load_network, state.configuration, state.backbone, self._tagged_stage))

    @property
    def runtime(self) -> str:
        return f"onnxruntime, {'float32' if ranges_of(self.state.configuration) is None else '8 bits'}"

    @property
    def _session(self) -> InferenceSession:
        return self._network()

    @property
    def _images_at_once(self) -> int:
        if not self.row.library:
            return _IMAGES
        fixed = self._session.get_inputs()[0].shape[0]
        return fixed if isinstance(fixed, int) else _IMAGES

    def _lend_network(self, other: Self) -> None:
        other._network = self._network  # loaded by the first of both that computes

    def _features(self, images: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        poolings = self.state.configuration.poolings
        read = [*names, *([REGIONS] if regions else [])]
        tagged = self._tagged_stage if names else ()
        stages = sorted({*tagged, *(stage for name in read for stage in poolings[name].stages)})
        outputs = self._session.run(stages, {IMAGES_INPUT: images})
        if self.row.library:
            outputs = [channels_first(output.astype(np.float32, copy=False), self.row.layout) for output in outputs]
        maps = dict(zip(stages, outputs, strict=True))
        features: Features = {name: pool(maps, poolings[name]) for name in names}
        for stage in tagged:
            flat = maps[stage].reshape(*maps[stage].shape[:2], -1)
            features[TAGS] = flat @ np.full(flat.shape[2], 1 / flat.shape[2], np.float32)  # five times as fast as mean
        if regions:
            # Regions are many: half precision halves their memory while heads are fitted.
            features[REGIONS] = pool_regions(maps, poolings[REGIONS], windows(regions)).astype(np.float16)
        return features


def channels_first(maps: NDArray[np.float32], layout: str) -> NDArray[np.float32]:
    """As ``networks.channels_first``, in numpy."""
    if maps.ndim == 2:
        return maps[:, :, None, None]
    if maps.ndim == 3:
        count, tokens, channels = maps.shape
        side = math.isqrt(tokens)
        return maps[:, tokens - side * side :].transpose(0, 2, 1).reshape(count, channels, side, side)
    return maps.transpose(0, 3, 1, 2) if layout == "nhwc" else maps


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
