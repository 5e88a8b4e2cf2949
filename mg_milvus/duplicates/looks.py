"""What is read of an image to compare it with others: a look, which is cheap and kept of many, and its details.

Local features are SIFT (Lowe 2004): few, at a small size, for the look; more, at a larger size, for the details.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mg_milvus.images.decode import decoding
from mg_milvus.images.files import content_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

DETAIL = 1024
"""Longer side in pixels at which aligned images are compared: the text of a page can be read."""
READABLE = 300
"""Longer side in pixels below which text cannot be read: small pages are copies only if all of their windows agree."""
_LOOK_SIDE, _LOOK_POINTS = 192, 128
"""Longer side in pixels, and number, of the local features of a look. They cost a fifth of those of the details."""
_POINTS_SIDE, _POINTS = 512, 600
"""The same of the details."""
_THUMB = 32
_BLANK = 3.0
"""Standard deviation, in grey levels, below which an image is blank: a lens cap, a black frame, an empty page."""
_RATIO = 0.8
"""A match is kept when the second nearest descriptor is farther by this factor (Lowe's ratio test)."""
_SHADED = 0.014
"""Share of softly shaded pixels from which an image is no page."""
_FLAT = 0.45
"""Share of the commonest tone from which a small image is a page: when it is reduced, letters become shades."""


@cache
def opencv() -> Any:
    """OpenCV, on one thread: pairs are compared in parallel."""
    import cv2

    cv2.setNumThreads(1)
    return cv2


@dataclass(frozen=True, slots=True)
class KeyPoints:
    """Local features of an image.

    Attributes:
        points: (n, 2) float32 x, y in pixels of the details.
        descriptors: (n, 128) uint8 SIFT descriptors.
    """

    points: Array
    descriptors: Array

    def __len__(self) -> int:
        return len(self.points)

    def mirrored(self) -> KeyPoints:
        """The same points with the descriptors that they have in the mirrored image, without computing them anew.

        Rows and directions of the descriptors are reversed.
        """
        cells = self.descriptors.reshape(-1, 4, 4, 8)[:, ::-1][..., np.arange(8, 0, -1) % 8]
        return KeyPoints(self.points, np.ascontiguousarray(cells).reshape(-1, 128))

    def matches(self, other: KeyPoints) -> tuple[Array, Array]:
        """Points of these and of other features that match by Lowe's ratio test, (m, 2) each."""
        if len(self) < 1 or len(other) < 2:
            return self.points[:0], other.points[:0]
        a, b = self.descriptors.astype(np.float32), other.descriptors.astype(np.float32)
        squares = (b * b).sum(1)[None] - 2 * (a @ b.T) + (a * a).sum(1)[:, None]
        rows, nearest = np.arange(len(squares)), squares.argmin(1)
        first = squares[rows, nearest]
        squares[rows, nearest] = np.inf
        chosen = np.flatnonzero(first < _RATIO**2 * squares.min(1))
        return self.points[chosen], other.points[nearest[chosen]]


def _features(grey: Array, side: int, most: int) -> KeyPoints:
    """At most so many features of an image, found at a longer side of at most so many pixels."""
    height, width = grey.shape
    scale = min(1.0, side / max(width, height))
    small = grey
    if scale < 1:
        small = opencv().resize(grey, None, fx=scale, fy=scale, interpolation=opencv().INTER_AREA)
    keypoints, descriptors = opencv().SIFT_create(most).detectAndCompute(small, None)
    points: Array = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    points = (points + 0.5) * (np.array([width, height], np.float32) / small.shape[::-1]) - 0.5
    return KeyPoints(points, np.zeros((0, 128), np.uint8) if descriptors is None else descriptors.astype(np.uint8))


class Detail:
    """What a verdict is given from; features and kind are computed once, when they are asked for.

    Args:
        pixels: gives the pixels of ``pixels_of``, which few images at a time can have in memory.
    """

    def __init__(self, pixels: Callable[[], Array]) -> None:
        self._pixels = pixels

    @property
    def grey(self) -> Array:
        """(h, w) uint8 pixels, at most ``DETAIL`` a side."""
        return self._pixels()

    @cached_property
    def features(self) -> KeyPoints:
        """Enough local features to align images exactly."""
        return _features(self.grey, _POINTS_SIDE, _POINTS)

    @cached_property
    def page(self) -> bool:
        """Whether it is paper, a screen or a drawing, mostly of one flat tone: a few strokes are what it is about."""
        return _is_page(self.grey)


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of an image to tell at once that another one is different; 22 kB.

    Attributes:
        content: hash of the file's bytes.
        size: width and height of the details, in pixels.
        thumb: (32, 32) float32 grey, zero mean and unit variance; the whole image, squeezed.
        features: a few, found at a small size.
        blank: nothing is to be seen.
    """

    content: bytes
    size: tuple[int, int]
    thumb: Array
    features: KeyPoints
    blank: bool


def read_pixels(path: str | os.PathLike[str]) -> tuple[bytes, Array]:
    """Read an image file: the hash of its content, and its pixels.

    Raises:
        ImageError: it cannot be read.
    """
    with content_of(path) as data:
        content = blake2b(data, digest_size=16).digest()
        with decoding(data, least=DETAIL // 2) as decoded:
            return content, pixels_of(decoded.image)


def pixels_of(image: Image.Image) -> Array:
    """The grey pixels of an image, (h, w) uint8, at most ``DETAIL`` a side."""
    image, scale = image.convert("L"), DETAIL / max(image.size)
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
    return np.asarray(image)


def look(content: bytes, grey: Array) -> Look:
    """Look at an image; see ``read_pixels``."""
    height, width = grey.shape
    thumb = opencv().resize(grey, (_THUMB, _THUMB), interpolation=opencv().INTER_AREA).astype(np.float32)
    thumb = (thumb - thumb.mean()) / max(float(thumb.std()), 1e-3)
    blank = float(opencv().GaussianBlur(grey, (0, 0), 1.5).std()) < _BLANK
    return Look(content, (width, height), thumb, _features(grey, _LOOK_SIDE, _LOOK_POINTS), blank)


def _is_page(grey: Array) -> bool:
    """Whether an image is paper, a screen or a drawing: flat tones and strokes, hardly a shade between them."""
    if max(grey.shape) < READABLE:
        counts = np.bincount(grey.ravel(), minlength=256)
        return bool(np.convolve(counts, np.ones(17), "same").max() > _FLAT * grey.size)
    soft = opencv().GaussianBlur(grey, (0, 0), 1.0)
    spread = opencv().absdiff(opencv().dilate(soft, np.ones((5, 5))), opencv().erode(soft, np.ones((5, 5))))
    flat = spread <= 10
    counts = np.bincount(soft[flat], minlength=256)
    toned = np.zeros(256, bool)
    for _ in range(4):
        tone = int(np.convolve(np.where(toned, 0, counts), np.ones(9), "same").argmax())
        toned[max(0, tone - 5) : tone + 6] = True
    shaded = (spread <= 40) & ~toned[soft]
    return bool(flat.mean() > 0.25 and shaded.mean() < _SHADED) or _two_tones(np.bincount(grey.ravel(), minlength=256))


def _two_tones(counts: Array) -> bool:
    """Whether nearly all pixels are nearly black or nearly white: codes, stamps, fax."""
    return bool(counts[:24].sum() + counts[232:].sum() > 0.85 * counts.sum())
