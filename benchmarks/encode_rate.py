"""How fast the built-in network encodes, in torch and in onnxruntime, and which bits of the codes differ.

    python benchmarks/encode_rate.py FOLDER [--images 256] [--rounds 5] [--threads 1,2] [--json FILE]

Prepared images, in batches of 32, no decoding. The sides take turns, batch by batch: torch in float32 (what codes are
compared with), torch with batch normalisation folded into the convolutions, torch in bfloat16, onnxruntime in float32,
and in 8 bits where this CPU has instructions for them. Heads are the shipped ones.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from result_file import write_result
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mg_milvus.encoder import onnx_runtime, torch_runtime
from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.onnx_runtime import OnnxEncoder
from mg_milvus.encoder.torch_runtime import TorchEncoder
from mg_milvus.images.decode import decode
from mg_milvus.images.discover import discover, text_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mg_milvus.codes import Codes
    from mg_milvus.encoder.file import Parts

BATCH = 32


def folded(module: nn.Module) -> nn.Module:
    """The network with every batch normalisation folded into the convolution before it."""
    for child in module.children():
        folded(child)
    if isinstance(module, nn.Sequential):
        for place in range(len(module) - 1):
            first, second = module[place], module[place + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[place], module[place + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return module


@contextmanager
def precision(*, bfloat16: bool) -> Iterator[None]:
    """bfloat16 in torch, or not, whatever this machine is good at."""
    kept = torch_runtime.has_bfloat16
    torch_runtime.has_bfloat16 = lambda _: bfloat16
    yield
    torch_runtime.has_bfloat16 = kept


def in_onnx(parts: Parts, *, eight_bits: bool) -> OnnxEncoder:
    """An encoder in onnxruntime whose network is built, in this precision."""
    kept = onnx_runtime.has_fast_int8
    onnx_runtime.has_fast_int8 = lambda: eight_bits
    made = OnnxEncoder(parts, device="cpu")
    made.encode([np.zeros((3, made.side, made.side), np.uint8)])
    onnx_runtime.has_fast_int8 = kept
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = [text_path(found.path) for found in discover([options.folder], print)]
    files = files[:: max(1, len(files) // options.images)][: options.images]
    parts = load_encoder(device="cpu").parts  # type: ignore[attr-defined]
    result: dict[str, dict[str, dict[str, float]]] = {}
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # onnxruntime's, too
        plain, fused = TorchEncoder(parts, device="cpu"), TorchEncoder(parts, device="cpu")
        fused.__dict__["_network"] = folded(copy.deepcopy(plain._network)).requires_grad_(False)
        prepared = [plain.prepare(decode(file.read_bytes(), least=plain.side).image) for file in files]
        batches = [prepared[start : start + BATCH] for start in range(0, len(prepared), BATCH)]

        def half(batch: list[np.ndarray], encoder: TorchEncoder = plain) -> dict[str, Codes]:
            with precision(bfloat16=True):
                return encoder.encode(batch)

        sides: dict[str, Callable[[list[np.ndarray]], dict[str, Codes]]] = {
            "torch": plain.encode, "torch, folded": fused.encode, "torch, bfloat16": half,
            "onnxruntime, float32": in_onnx(parts, eight_bits=False).encode,
        }  # fmt: skip
        if onnx_runtime.has_fast_int8():
            sides["onnxruntime, 8 bits"] = in_onnx(parts, eight_bits=True).encode
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        codes: dict[str, list[dict[str, Codes]]] = {name: [] for name in sides}
        with precision(bfloat16=False):
            for encode in sides.values():
                encode(batches[0])
            for number in range(options.rounds):
                taken = dict.fromkeys(sides, 0.0)
                for batch in batches:
                    for name, encode in sides.items():
                        started = time.perf_counter()
                        found = encode(batch)
                        taken[name] += time.perf_counter() - started
                        if number == 0:
                            codes[name].append(found)
                for name, value in taken.items():
                    seconds[name].append(value)
        rows: dict[str, dict[str, float]] = {}
        for name in sides:
            pairs = [(a[g], b[g]) for a, b in zip(codes["torch"], codes[name], strict=True) for g in a]
            differing = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in pairs)
            rows[name] = {
                "images/s": round(len(files) / statistics.median(seconds[name]), 1),
                "x torch": round(statistics.median(map(float.__truediv__, seconds["torch"], seconds[name])), 2),
                "bits of 10,000 that differ": round(1e4 * differing / sum(8 * a.size for a, _ in pairs), 2),
            }
        print(f"\n{len(files)} images, {threads} threads" + "".join(f"{key:>28}" for key in rows["torch"]))
        for name, row in rows.items():
            print(f"{name:24}" + "".join(f"{value:28}" for value in row.values()))
        result[f"{threads} threads"] = rows
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
