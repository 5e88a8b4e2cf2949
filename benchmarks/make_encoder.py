"""Make the heads, statistics and activation ranges that ship for a network with ImageNet weights.

    python benchmarks/make_encoder.py tiny-imagenet/train [--backbone efficientnet_lite0] [--name builtin]

Writes NAME.safetensors (heads and statistics; the network's weights come from their package) and
BACKBONE.ranges.json (between which values each activation lies, for 8 bits) into mg_milvus/encoder/weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from mg_milvus.encoder import file
from mg_milvus.encoder.load import untrained_encoder
from mg_milvus.encoder.onnx_graph import PIXELS, backbone_graph
from mg_milvus.encoder.onnx_runtime import RANGES_FILE, OnnxEncoder
from mg_milvus.images.discover import discover, text_path
from mg_milvus.schema.models import Schema
from mg_milvus.training.export import fit_statistics, sample_of

WEIGHTS = Path(__file__).parent.parent / "mg_milvus" / "encoder" / "weights"
SHARE = 1e-5
"""Share of the values of linear layers that may lie outside their range at each end: a few extreme ones would make the
steps coarse for all others."""


def activation_ranges(encoder: OnnxEncoder, images: list[Image.Image]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each activation, over the images."""
    import onnxruntime  # after mg_milvus, which keeps it from reporting

    state = encoder.state
    session = onnxruntime.InferenceSession(
        backbone_graph(encoder.backbone, state.backbone, (), inside=True), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    lows, highs = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for image in images:
        maps = session.run(names, {"images": encoder.prepare(image)[None]})
        ends = np.array([np.quantile(values, (SHARE, 1 - SHARE)) for values in maps])
        lows, highs = np.minimum(lows, ends[:, 0]), np.maximum(highs, ends[:, 1])
    ranges = {
        name.removeprefix("inside "): (round(float(low), 4), round(float(high), 4))
        for name, low, high in zip(names, lows, highs, strict=True)
    }
    return ranges | {PIXELS: (-127 / 128, 1.0)}  # steps of exactly one level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--name", default="builtin", help="of the encoder file")
    parser.add_argument("--images", type=int, default=4000, help="for the statistics")
    parser.add_argument("--edited", type=int, default=1000, help="of them also as edited copies")
    parser.add_argument("--ranges", type=int, default=200, help="images for the activation ranges")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    files = sorted(text_path(found.path) for found in discover([options.folder], print))
    chosen = np.random.default_rng(1).permutation(len(files))[: options.images]
    images = [Image.open(files[place]).convert("RGB") for place in chosen]
    exact = OnnxEncoder(untrained_encoder(options.backbone, None, device="cpu").state, device="cpu")
    ranges = activation_ranges(exact, images[: options.ranges])
    fingerprint = exact.state.configuration.backbone_fingerprint
    path = options.out / RANGES_FILE.format(backbone=options.backbone)
    path.write_text(json.dumps({"backbone_fingerprint": fingerprint, "ranges": ranges}, indent=0) + "\n")
    print(f"{len(ranges)} ranges of {fingerprint}: {path}", flush=True)
    fitted = fit_statistics(exact, sample_of(exact, images), Schema().bits, edited=options.edited)
    path = options.out / f"{options.name}.safetensors"
    path.write_bytes(file.to_bytes(fitted.state, with_backbone=False))
    whole = len(fitted.to_bytes())
    print(f"{fitted.fingerprint}: {path}, {path.stat().st_size / 1e6:.1f} MB, with the network {whole / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
