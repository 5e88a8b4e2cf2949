"""Small pictures of large ones, kept on disk."""

from __future__ import annotations

import io
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mg_milvus.encoder.files import write_private
from mg_milvus.images.decode import decoding
from mg_milvus.images.discover import text_path
from mg_milvus.web.files import ingested_content

if TYPE_CHECKING:
    from mg_milvus.store import Row

SIDES = (240, 480, 1600)
"""Longest sides in pixels that can be asked for: few, so that the cache stays small."""

QUALITY = 82
_HASH = re.compile(r"[0-9a-f]{32}")
MOST_BYTES = 1_000_000_000
"""What the cache may take; the thumbnails unused for longest go first."""
MOST_DAYS = 30
"""How long an unused thumbnail is kept."""


class Thumbnails:
    """JPEGs of indexed pictures, cached by the content of the picture. Safe to use from several threads."""

    def __init__(self, folder: Path | None, max_pixels: int) -> None:
        """``folder`` is made when needed; None: nothing is kept."""
        self._folder, self._max_pixels = folder, max_pixels

    def of(self, row: Row, side: int) -> bytes:
        """The thumbnail of a row whose file is there, and is what was ingested.

        Raises:
            PictureError: the file is gone, cannot be read, or has another content. What was kept of its content is
                removed when it is gone.
        """
        file = self._file(row.content_hash, side)
        data = _known(file) if self._is_unchanged(row) else None
        if data is not None:
            return data
        with ingested_content(row) as (_, content):  # the same content may have another time, as copies have
            data = _known(file)
            if data is not None:
                return data
            data = self._made(content, side)
        if file is not None:
            with suppress(OSError):  # a full disk costs time, not the page
                write_private(file, data)
        return data

    def usage(self) -> tuple[int, int]:
        """How many thumbnails are kept, and their bytes."""
        sizes = [size for _, size, _ in self._kept()]
        return len(sizes), sum(sizes)

    def clear(self) -> None:
        """Remove all thumbnails that are kept; one that cannot be removed goes on to count in ``usage``."""
        for *_, file in self._kept():
            with suppress(OSError):
                file.unlink()

    def trim(self, most: int = MOST_BYTES) -> None:
        """Remove those unused for ``MOST_DAYS``, and those unused for longest until the rest takes at most ``most``."""
        known = sorted(self._kept())
        total = sum(size for _, size, _ in known)
        oldest = time.time() - MOST_DAYS * 86_400
        for used, size, file in known:
            if total <= most and used >= oldest:
                return
            file.unlink(missing_ok=True)
            total -= size

    def _kept(self) -> list[tuple[float, int, Path]]:
        """When each was used last, in seconds since the epoch; its bytes; its file."""
        known = []
        for file in self._folder.glob("*/*.jpg") if self._folder is not None else ():
            with suppress(OSError):
                status = file.stat()
                known.append((status.st_mtime, status.st_size, file))
        return known

    def _file(self, content_hash: str, side: int) -> Path | None:
        """Where a thumbnail is kept, if it is: a row is data, and could name any file."""
        if self._folder is None or not _HASH.fullmatch(content_hash):
            return None
        return self._folder / content_hash[:2] / f"{content_hash}-{side}.jpg"

    def _is_unchanged(self, row: Row) -> bool:
        """Whether the file looks as when it was ingested; when it is gone, its thumbnails go, too."""
        try:
            status = text_path(row.path).stat()
        except (OSError, ValueError):
            for side in SIDES:
                file = self._file(row.content_hash, side)
                if file is not None:
                    with suppress(OSError):
                        file.unlink()
            return False
        return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (row.size, row.mtime_ns)

    def _made(self, content: bytes, side: int) -> bytes:
        with decoding(content, least=side, max_pixels=self._max_pixels) as decoded:
            picture = decoded.picture.copy()
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        return buffer.getvalue()


def _known(file: Path | None) -> bytes | None:
    """A thumbnail that is kept, which is now used once more."""
    if file is not None:
        with suppress(OSError):
            data = file.read_bytes()
            os.utime(file)
            return data
    return None


def default_folder() -> Path:
    """Where thumbnails are kept: under ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mg-milvus" / "thumbnails"
