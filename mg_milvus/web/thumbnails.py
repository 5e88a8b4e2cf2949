"""Small pictures of large ones, kept on disk."""

from __future__ import annotations

import io
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mg_milvus.encoder.files import write_whole
from mg_milvus.images.decode import open_picture
from mg_milvus.images.discover import text_path

if TYPE_CHECKING:
    from mg_milvus.store import Row

SIDES = (240, 480, 1600)
"""Longest sides in pixels that can be asked for: few, so that the cache stays small."""

QUALITY = 82
_HASH = re.compile(r"[0-9a-f]{32}")
MOST_BYTES = 1_000_000_000
"""What the cache may take; the thumbnails unused for longest go first."""


class Thumbnails:
    """JPEGs of indexed pictures, cached by the content of the picture. Safe to use from several threads."""

    def __init__(self, folder: Path | None, max_pixels: int) -> None:
        """``folder`` is made when needed; None: nothing is kept."""
        self._folder, self._max_pixels = folder, max_pixels

    def of(self, row: Row, side: int) -> bytes:
        """The thumbnail of a row.

        Raises:
            PictureError: the file is gone or cannot be read.
        """
        key = row.content_hash
        file = None
        if self._folder is not None and _HASH.fullmatch(key):  # a row is data, and could name any file
            file = self._folder / key[:2] / f"{key}-{side}.jpg"
        if file is not None:
            with suppress(OSError):
                data = file.read_bytes()
                os.utime(file)
                return data
        data = self._made(row, side)
        if file is not None:
            with suppress(OSError):  # a full disk costs time, not the page
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, data)
        return data

    def trim(self, most: int = MOST_BYTES) -> None:
        """Remove those unused for longest until the rest takes at most so many bytes."""
        if self._folder is None:
            return
        known = []
        for file in self._folder.glob("*/*.jpg"):
            with suppress(OSError):
                status = file.stat()
                known.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in known)
        for _, size, file in sorted(known):
            if total <= most:
                return
            file.unlink(missing_ok=True)
            total -= size

    def _made(self, row: Row, side: int) -> bytes:
        decoded = open_picture(text_path(row.path), least=side, max_pixels=self._max_pixels)
        picture = decoded.picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        return buffer.getvalue()


def default_folder() -> Path:
    """Where thumbnails are kept: under ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mg-milvus" / "thumbnails"
