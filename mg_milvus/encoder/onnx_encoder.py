"""The encoder on onnxruntime: the project's own networks on a CPU, without the seconds that importing torch takes."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from mg_milvus.encoder.hash_encoder import HashEncoder
from mg_milvus.encoder.onnx_graph import NETWORKS, backbone_graph
from mg_milvus.encoder.readings import read, read_regions
from mg_milvus.encoder.rounding import ranges_of
from mg_milvus.encoder.table import find_backbone
from mg_milvus.regions import windows
from mg_milvus.schema_parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxruntime import InferenceSession

    from mg_milvus.encoder import Features, Pixels
    from mg_milvus.regions import Scale

# From 1.29 on it tells its maker what runs, over the network, unless it finds this when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What the drivers of NVIDIA, of AMD, and of either under Windows' Linux put there."""
_ERRORS_ONLY = 3


def onnx_runs(backbone: str, device: str) -> bool:
    """Whether onnxruntime is here and runs this backbone on this device: one of our own, on a CPU.

    ``auto`` is a CPU on a Linux without the driver of a GPU, which can be told without torch.
    """
    if backbone not in NETWORKS or device not in {"auto", "cpu"}:
        return False
    if device == "auto" and (sys.platform != "linux" or any(Path(file).exists() for file in _GPUS)):
        return False
    try:
        import onnxruntime
    except ImportError:  # not installed, or its libraries do not load: torch does it
        return False
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    return True


class OnnxEncoder(HashEncoder):
    """An ``Encoder`` whose backbone runs in onnxruntime.

    The network that ships computes in 8 bits where the CPU is fast at that, in a third of the time; one bit of a code
    in 100 then differs from float32 (photographs, never more than 10 in a granularity), and codes find as well. All
    others compute in float32.

    In float32 codes are those of torch but for one bit in half a million (photographs; benchmarks/encode_rate.py), and
    those of torch in bfloat16 as that is to float32. A picture by itself gives the code that it gives in a batch.
    """

    @property
    def runtime(self) -> str:
        ranges = ranges_of(self.parts.configuration.backbone_fingerprint)
        return f"onnxruntime, {'float32' if ranges is None else '8 bits'}"

    @cached_property
    def _session(self) -> InferenceSession:
        import onnxruntime

        row = find_backbone(self.backbone)
        stages = dict(zip(row.stages, row.channels, strict=True))
        ranges = ranges_of(self.parts.configuration.backbone_fingerprint)
        graph = backbone_graph(self.backbone, self.parts.backbone, stages, ranges)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or _cores())
        # Waiting threads would take the cores from those that decode the next pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def _lend_network(self, other: Self) -> None:
        other.__dict__["_session"] = self._session

    def _features(self, pictures: Pixels, names: Sequence[str], regions: Sequence[Scale]) -> Features:
        stages = find_backbone(self.backbone).stages
        maps = dict(zip(stages, self._session.run(stages, {"pictures": pictures}), strict=True))
        readings = self.parts.configuration.readings
        found: Features = {name: read(maps, readings[name]) for name in names}
        if regions:
            # There are many of them, and in half precision they take half the memory while heads are fitted.
            found[PARTS] = read_regions(maps, readings[PARTS], windows(regions)).astype(np.float16)
        return found


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
