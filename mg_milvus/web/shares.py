"""Query images of links that were shared: their codes and a small copy, kept for a week, within limits."""

from __future__ import annotations

import base64
import io
import json
import re
import secrets
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mg_milvus.errors import QueryError, ServeError
from mg_milvus.files import write_private
from mg_milvus.images.decode import decoding
from mg_milvus.web.limits import BusyError

if TYPE_CHECKING:
    from pathlib import Path

    from mg_milvus.codes import QueryCodes
    from mg_milvus.records import Box

PREFIX = "share."
"""What ``codes`` begin with that stand for a shared image."""
KEPT_SECONDS = 7 * 24 * 3600
MAX_SHARES = 2000
MAX_A_MINUTE = 60
SIDE = 400
"""Longest side of the small copy, in pixels."""
_NAME = re.compile(r"[A-Za-z0-9_-]{16}")


@dataclass(frozen=True, slots=True)
class Share:
    """The query image of a link.

    Attributes:
        codes: what it is searched with, that of its regions included.
        fingerprint: of the encoder that made them.
        name: of the file, for people.
        width: of the whole image, in pixels.
        height: of it.
        thumbnail: a small JPEG of the whole image.
        crop: what of it is searched with, in pixels; None: all.
    """

    codes: QueryCodes
    fingerprint: str
    name: str
    width: int
    height: int
    thumbnail: bytes
    crop: Box | None = None

    def small_crop(self) -> Box | None:
        """The crop in pixels of the small copy."""
        if self.crop is None:
            return None
        scale = min(1.0, SIDE / max(self.width, self.height))
        x, y, width, height = (round(scale * value) for value in self.crop)
        return x, y, max(1, width), max(1, height)


class Shares:
    """Shared query images, a file each. Safe to use from several threads."""

    def __init__(self, folder: Path | None) -> None:
        """``folder`` is created when needed; None: nothing is kept."""
        self._folder = folder
        self._lock = threading.Lock()
        self._made: deque[float] = deque(maxlen=MAX_A_MINUTE)

    def add(self, share: Share) -> str:
        """Keep one; its name, which cannot be guessed.

        Raises:
            ServeError: nothing is kept, or it cannot be written.
            BusyError: there were too many in the last minute.
        """
        if self._folder is None:
            raise ServeError("this server keeps no shared images: share the link with the codes")
        now = time.monotonic()
        with self._lock:
            if len(self._made) == MAX_A_MINUTE and now - self._made[0] < 60:
                raise BusyError(f"more than {MAX_A_MINUTE} images were shared in a minute: try again in a few seconds")
            self._made.append(now)
        name = secrets.token_urlsafe(12)
        codes = {
            key: [list(values.shape), base64.b64encode(values.astype(np.int8).tobytes()).decode()]
            for key, values in share.codes.items()
        }
        record = {
            "codes": codes, "fingerprint": share.fingerprint, "name": share.name[:200], "width": share.width,
            "height": share.height, "crop": share.crop, "thumbnail": base64.b64encode(share.thumbnail).decode(),
        }  # fmt: skip
        try:
            write_private(self._folder / f"{name}.json", json.dumps(record).encode())
        except OSError as error:
            raise ServeError(f"the shared image cannot be kept in {self._folder}: {error.strerror}") from error
        self._trim()
        return name

    def get(self, name: str) -> Share:
        """The shared image of a name.

        Raises:
            QueryError: there is none, or none any more.
        """
        record: dict[str, Any] | None = None
        if self._folder is not None and _NAME.fullmatch(name):
            file = self._folder / f"{name}.json"
            with suppress(OSError, ValueError):
                if time.time() - file.stat().st_mtime <= KEPT_SECONDS:
                    record = json.loads(file.read_bytes())
        if record is None:
            raise QueryError("this link has expired, images are kept for a week: search with the image itself")
        codes = {
            key: np.frombuffer(base64.b64decode(packed), np.int8).astype(np.float32).reshape(shape)
            for key, (shape, packed) in record.pop("codes").items()
        }
        crop = record.pop("crop")
        thumbnail = base64.b64decode(record.pop("thumbnail"))
        return Share(codes, thumbnail=thumbnail, crop=None if crop is None else tuple(crop), **record)

    def _trim(self) -> None:
        """Remove what is older than a week, and the oldest beyond ``MAX_SHARES``."""
        if self._folder is None:
            return
        known = []
        for file in self._folder.glob("*.json"):
            with suppress(OSError):
                known.append((file.stat().st_mtime, file))
        known.sort(reverse=True)
        oldest = time.time() - KEPT_SECONDS
        for place, (made, file) in enumerate(known):
            if place >= MAX_SHARES or made < oldest:
                with suppress(OSError):
                    file.unlink()


def small_copy(data: bytes, max_pixels: int) -> bytes:
    """A small JPEG of an image.

    Raises:
        ImageError: it cannot be read.
    """
    with decoding(data, least=SIDE, max_pixels=max_pixels) as decoded:
        image = decoded.image.copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()
