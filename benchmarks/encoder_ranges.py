"""Measure between which values the network that ships computes, so that it can do so in 8 bits.

    python benchmarks/encoder_ranges.py tiny-imagenet/val [--images 150]

Writes ``builtin.ranges.json`` beside the encoder's weights: the lowest and the highest value of every feature map
that is rounded, over some images. To be run again when the weights change.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path

import numpy as np

from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.onnx_runtime import RANGES_FILE, backbone_graph
from mg_milvus.images.decode import decode
from mg_milvus.images.discover import discover, text_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=150)
    options = parser.parse_args()
    encoder = load_encoder(device="cpu")
    parts = encoder.parts  # type: ignore[attr-defined]
    import onnxruntime  # after mg_milvus, which keeps it from reporting

    session = onnxruntime.InferenceSession(
        backbone_graph(parts.configuration.backbone, parts.backbone, {}, inside=True),
        providers=["CPUExecutionProvider"],
    )
    names = [output.name for output in session.get_outputs()]
    files = sorted(text_path(found.path) for found in discover([options.folder], print))
    lows, highs = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for file in files[:: max(1, len(files) // options.images)][: options.images]:
        image = encoder.prepare(decode(file.read_bytes(), least=encoder.side).image)
        maps = session.run(names, {"images": image[None]})
        lows = np.minimum(lows, [values.min() for values in maps])
        highs = np.maximum(highs, [values.max() for values in maps])
    ranges = {
        name.removeprefix("inside "): (round(float(low), 3), round(float(high), 3))
        for name, low, high in zip(names, lows, highs, strict=True)
    }
    kept = {"backbone_fingerprint": parts.configuration.backbone_fingerprint, "ranges": ranges}
    with resources.as_file(resources.files("mg_milvus.encoder.base") / "weights" / RANGES_FILE) as file:
        file.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{len(ranges)} ranges of {kept['backbone_fingerprint']} written to {file}")


if __name__ == "__main__":
    main()
