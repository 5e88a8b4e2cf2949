"""Images: made ready, encoded, ingested, ranked, and asked with from a cold shell."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import torch
from ingest_rate import bare, ingested
from painted_scenes import KINDS
from PIL import Image
from torchvision.models import resnet18

from mg_milvus.encoder.load import load_encoder
from mg_milvus.evaluation.evaluate import evaluate
from mg_milvus.images.decode import decode
from mg_milvus.images.discover import discover, text_path
from mg_milvus.index import ImageIndex

if TYPE_CHECKING:
    from pathlib import Path

    from mg_milvus.encoder.base import Encoder
    from short.turns import Turns

EACH, TOGETHER = 12, 32
CAMERA = (4000, 3000)
SHORT_STARTS = 4


def ratios(turns: Turns, work: Path, folder: Path | None) -> dict[str, float]:
    """With a labelled folder of the user's own, or with painted scenes."""
    folder = folder or painted(work / "scenes")
    encoder = load_encoder()
    files = [text_path(found.path) for found in discover([folder], print)]
    return {
        "making ready": prepared(turns, encoder, files[0]),
        "encoding": encoding(turns, encoder, files),
        "ingest": ingest(turns, encoder, folder, files),
        "precision": precision(folder),
        "cold query": cold_query(turns, work, folder, files[0]),
    }


def painted(folder: Path) -> Path:
    for kind, paint in KINDS.items():
        (folder / kind).mkdir(parents=True)
        for number in range(EACH):
            paint(random.Random(f"{kind} {number}")).save(folder / kind / f"{number:02}.jpg", quality=90)
    return folder


def prepared(turns: Turns, encoder: Encoder, file: Path) -> float:
    """A photograph of 12 megapixels to the encoder's size, beside Pillow's plain way."""
    buffer = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").resize(CAMERA, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    size = (round(encoder.side * CAMERA[0] / CAMERA[1]), encoder.side)
    return turns.times_as_fast(
        lambda: encoder.prepare(decode(data, least=encoder.side).image),
        lambda: Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BICUBIC),
    )


def encoding(turns: Turns, encoder: Encoder, files: list[Path]) -> float:
    """A batch to codes, beside the pass of a ResNet-18 of torchvision over as many pixels."""
    images = [encoder.prepare(decode(file.read_bytes(), least=encoder.side).image) for file in files[:TOGETHER]]
    one = [image for image in images if image.shape == images[0].shape]
    network = resnet18(weights=None).eval().to(memory_format=torch.channels_last)
    pixels = torch.rand(len(one), *one[0].shape).to(memory_format=torch.channels_last)

    def plain() -> None:
        with torch.inference_mode():
            network(pixels)

    return turns.times_as_fast(lambda: encoder.encode(one), plain)


def ingest(turns: Turns, encoder: Encoder, folder: Path, files: list[Path]) -> float:
    """A first ingest into Milvus Lite, beside decoding and encoding the same files and nothing else."""
    bare(files, encoder)  # the first pass is slower
    return turns.once_each(lambda: ingested(folder, encoder), lambda: bare(files, encoder))


def precision(folder: Path) -> float:
    """mAP of the fused codes over that of the float features: no time, the same on every run."""
    figures = evaluate(folder).to_json()
    found: float = figures["fused"]["rank"]["map"] / figures["float"]["map"]
    return found


def cold_query(turns: Turns, work: Path, folder: Path, image: Path) -> float:
    """``mgm query`` in a new process, beside a Python that imports numpy."""
    uri = work / "cold.db"
    with ImageIndex.open(uri) as index:
        index.ingest(folder)
    environment = os.environ | {"XDG_CACHE_HOME": str(work / "cache")}

    def call(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, env=environment, stdout=subprocess.DEVNULL)

    def ours() -> None:
        call("-m", "mg_milvus", "query", str(image), "--uri", str(uri))

    def short() -> None:
        for _ in range(SHORT_STARTS):
            call("-c", "import numpy")

    ours()  # reads the programs from the disk, and the encoder from Milvus into the cache
    short()
    return turns.once_each(ours, short) / SHORT_STARTS
