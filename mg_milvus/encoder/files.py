"""Encoder files, and others, on disk. Without torch, so that commands which encode nothing start fast."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from mg_milvus.private import FILE, make_folder

if TYPE_CHECKING:
    from pathlib import Path


def write_private(file: Path, data: bytes) -> None:
    """``write_whole`` for this user of the machine only, with the folders that are missing.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    make_folder(file.parent)
    write_whole(file, data, FILE)


def write_whole(file: Path, data: bytes, rights: int = 0o666) -> None:
    """Write a file whole or not at all: a reader, or a crash, also of the machine, never meets half of it.

    Args:
        file: is replaced where it is there.
        data: all that is to be in it.
        rights: of the file, of which the umask takes some.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    part = file.with_name(f".{file.name}-{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, rights), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
