"""Encoder files, and others, on disk. Without torch, so that commands which encode nothing start fast."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(file: Path, data: bytes) -> None:
    """Write a file whole or not at all: a reader, or a crash, also of the machine, never meets half of it.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    part = file.with_name(f".{file.name}-{secrets.token_hex(6)}")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
