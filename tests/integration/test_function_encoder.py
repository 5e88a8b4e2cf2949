"""A plain function, images to float features, given to ``ImageIndex.open``."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_milvus.errors import EncoderError, EncoderMismatchError
from mg_milvus.index import ImageIndex


def tiny_pictures(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.resize((6, 6)), np.float32).ravel() / 255 - 0.5 for image in images])


def tiny_negatives(images: list[Image.Image]) -> np.ndarray:
    return -tiny_pictures(images)


def test_a_function_is_an_encoder(tmp_path: Path, labelled_photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    with ImageIndex.open(tmp_path / "a.db", encoder=tiny_pictures) as index:
        assert index.ingest(labelled_photos).added == 60
        assert index.info().backbone == "function:tiny_pictures"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    photo = labelled_photos / "disc" / "03.jpg"
    with ImageIndex.open(tmp_path / "a.db", encoder=tiny_pictures) as index:
        again = pickle.loads(pickle.dumps(index))
        for each in (index, again):
            assert each.query(photo)[0].path == str(photo)
        again.close()
    with ImageIndex.open(tmp_path / "a.db") as index:
        assert index.like(photo, k=3)  # needs no encoder
        with pytest.raises(EncoderError, match=r"come from a Python function, 'tiny_pictures': give it"):
            index.query(photo)
    with (
        ImageIndex.open(tmp_path / "a.db", encoder=tiny_negatives) as index,
        pytest.raises(EncoderMismatchError, match=r"'tiny_negatives' computes other features than 'tiny_pictures'"),
    ):
        index.query(photo)


def test_what_a_function_gives_is_checked(tmp_path: Path) -> None:
    for function, shape in {
        lambda images: np.zeros((1, 4), np.float32): r"float32 of the shape \(1, 4\) for 2 images",
        lambda images: np.zeros((2, 4), np.int64): r"int64 of the shape \(2, 4\)",
        lambda images: np.full((2, 4), np.nan): "expected finite floats",
        lambda images: 1.0: r"of the shape \(\)",
    }.items():
        with pytest.raises(EncoderError, match=shape):
            ImageIndex.open(tmp_path / "a.db", encoder=function)
