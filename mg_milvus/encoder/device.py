"""What torch has to run on here."""

from __future__ import annotations

import torch

from mg_milvus.errors import EncoderError


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
