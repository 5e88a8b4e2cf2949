"""What an encoder should know of regions before it sees a collection: their moments, and what a cut-out changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mg_milvus.encoder.fit import Statistics, edit_covariance, statistics
from mg_milvus.images.edits import recompressed
from mg_milvus.regions import box_of, scale_of, windows
from mg_milvus.schema_parts import PARTS, PartsSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.encoder.torch_encoder import TorchEncoder

QUALITY = 60
"""JPEG quality of the details."""
_SAMPLE = 20_000
_BATCH = 64


def region_statistics(encoder: TorchEncoder, pictures: Sequence[Image.Image]) -> Statistics:
    """Moments of the features of regions, and of how those of a detail differ from those of its window.

    A detail lies anywhere in a picture; it is compared with the nearest window of its size, as a search will do.

    Args:
        encoder: its heads play no part.
        pictures: of any kind. Those smaller than the encoder's input are joined, four in one: enlarged ones would lack
            the detail that regions are about.
    """
    scales = PartsSettings().windows
    reading = encoder.with_regions(scales)
    scenes = _scenes(pictures, encoder.side)
    chunks = [scenes[start : start + _BATCH] for start in range(0, len(scenes), _BATCH)]
    whole = np.concatenate([reading.features([encoder.prepare(s) for s in chunk])[PARTS] for chunk in chunks])
    whole = whole.astype(np.float32)
    all_windows, places = windows(scales), scale_of(scales)
    random = np.random.default_rng(1)
    moved = []
    for place, (size, _) in enumerate(scales):
        corners = random.uniform(0, 1 - size, (len(scenes), 2))
        own = np.flatnonzero(places == place)
        nearest = own[((all_windows[own, :2] - corners[:, None]) ** 2).sum(axis=2).argmin(axis=1)]
        details = [_cut(scene, corner, size) for scene, corner in zip(scenes, corners, strict=True)]
        seen = np.concatenate(
            [reading.detail_features(details[start : start + _BATCH]) for start in range(0, len(details), _BATCH)]
        )
        moved.append(seen[:, place].astype(np.float32) - whole[np.arange(len(scenes)), nearest])
    rows = whole.reshape(-1, whole.shape[2])
    moments = statistics(rows[random.permutation(len(rows))[:_SAMPLE]])
    return Statistics(moments.mean, moments.factor, edit_covariance(np.concatenate(moved)))


def _cut(scene: Image.Image, corner: np.ndarray, size: float) -> Image.Image:
    left, top, width, height = box_of(np.array([*corner, size, size]), *scene.size)
    return recompressed(scene.crop((left, top, left + width, top + height)), quality=QUALITY)


def _scenes(pictures: Sequence[Image.Image], side: int) -> list[Image.Image]:
    """Large pictures as they are; of small ones, every four beside and below each other."""
    large = [picture for picture in pictures if picture.width * picture.height >= side * side]
    small = [picture for picture in pictures if picture.width * picture.height < side * side]
    joined = []
    for start in range(0, len(small) - 3, 4):
        four = small[start : start + 4]
        width, height = four[0].size
        scene = Image.new("RGB", (2 * width, 2 * height))
        for place, picture in enumerate(four):
            scene.paste(picture.resize((width, height)), (place % 2 * width, place // 2 * height))
        joined.append(scene)
    return large + joined
