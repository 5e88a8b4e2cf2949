"""Shared fixtures: folders of small pictures in three kinds, and an encoder cache of the test's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PER_KIND = 20
KINDS = ("disc", "stripes", "blocks")


def kind_of_picture(kind: str, seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture of one of three kinds; those of a kind differ in colours, place and scale."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    width, height = size
    y, x = np.mgrid[:height, :width]
    if kind == "disc":
        centre = random.uniform(0.3, 0.7, 2) * (width, height)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (random.uniform(0.2, 0.35) * height * 1.2) ** 2
    elif kind == "stripes":
        inside = ((x + y * random.uniform(-0.3, 0.3)) // random.integers(5, 10)) % 2 == 0
    else:
        inside = ((x // random.integers(12, 20)) + (y // random.integers(12, 20))) % 2 == 0
    colours = random.integers(0, 256, (2, 3))
    noise = random.normal(0, 6, (height, width, 3))
    pixels = np.where(inside[..., None], colours[0], colours[1]) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_photos(folder: Path, per_kind: int = PER_KIND) -> Path:
    """``folder/KIND/NN.jpg``, ``per_kind`` of each of the three kinds."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(per_kind):
            kind_of_picture(kind, number).save(folder / kind / f"{number:02}.jpg", quality=92)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 pictures in three folders: enough to fit heads on."""
    return make_photos(tmp_path / "photos")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees encoders or settings of another, or of the person who runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in ("URI", "TOKEN", "COLLECTION", "DEVICE", "SCHEMA", "BATCH_SIZE", "WORKERS", "ENCODER", "DEBUG"):
        monkeypatch.delenv(f"MGM_{name}", raising=False)
