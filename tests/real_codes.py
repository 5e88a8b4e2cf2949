"""The distances of a query image from stored codes, by the definition: a bit counts as much as it is sure of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mg_milvus.index import ImageIndex


def real_code(index: ImageIndex, file: Path, granularity: str) -> list[int]:
    """What the hash head says of an image, the largest value as 127, the others rounded away from 0."""
    encoder = index.session.encoder
    with Image.open(file) as image:
        features = encoder.features([encoder.prepare(image.convert("RGB"))])[granularity]
    values = [float(value) for value in encoder.state.heads[granularity](features)[0].astype("float32")]
    largest = max(map(abs, values))
    return [int(math.copysign(math.ceil(abs(value) / largest * 127), value)) for value in values]


def distance(code: Sequence[int], stored: Sequence[int]) -> float:
    """Of a real code to the zeros and ones of a stored one: the sizes where they differ, over the mean size."""
    differing = sum(abs(value) for value, bit in zip(code, stored, strict=True) if (value > 0) != bool(bit))
    return differing / (sum(map(abs, code)) / len(code))
