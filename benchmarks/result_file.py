"""A file of figures that says where they come from: command, date, machine, versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "mg-milvus", "numpy", "Pillow", "torch", "torchvision", "onnxruntime", "pymilvus", "milvus-lite", "grpcio",
    "imagededup", "faiss-cpu", "hnswlib", "usearch", "ranx",
)  # fmt: skip
FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx512_vpopcntdq", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16",
    "i8mm",
)  # fmt: skip
"""What the kernels used here ask a processor for."""


def write_result(file: Path, figures: Any) -> None:
    """Write figures, which JSON can hold, with what one needs to judge them and to measure them again."""
    result = {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "figures": figures,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def command() -> str:
    """As it was called, but for the folders of this machine."""
    script, *rest = sys.argv
    words = [f"benchmarks/{Path(script).name}", *(Path(word).name if "/" in word else word for word in rest)]
    return " ".join(["python", *words])


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, what the processor can do, operating system."""
    known = _processor()
    flags = known.get("flags", known.get("features", "")).split()
    return {
        "processor": known.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "features": [name for name in FEATURES if name in flags],
        "system": f"{_system()}, {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python, the packages that are there, and the commit if this is a checkout ("-dirty": with changes)."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    here = Path(__file__).parent
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return found | ({"commit": told.stdout.strip()} if told.returncode == 0 else {})


def _processor() -> dict[str, str]:
    """What Linux says of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.release()}"
