"""When a backbone computes in 8 bits: its ranges are known, and the CPU has instructions for it (VNNI).

Without those a product of 8 bits is no faster than float32, and on some CPUs saturates.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mg_milvus.encoder.onnx_graph import Ranges

RANGES_FILE = "builtin.ranges.json"
"""Beside the weights: the fingerprint of the backbone, and the ranges of what is computed inside of it."""
_INSTRUCTIONS = {"avx512_vnni", "avx_vnni"}


def ranges_of(backbone_fingerprint: str) -> Ranges | None:
    """The ranges to round to, for the backbone that ships; None: compute in float32."""
    if not has_fast_int8():
        return None
    kept = json.loads((resources.files("mg_milvus.encoder") / "weights" / RANGES_FILE).read_text())
    found: Ranges = kept["ranges"]
    return found if kept["backbone_fingerprint"] == backbone_fingerprint else None


@cache
def has_fast_int8() -> bool:
    """Whether Linux says that the CPU has instructions for products of 8 bits."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _INSTRUCTIONS.isdisjoint(flags.split())
