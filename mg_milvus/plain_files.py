"""Opening files that others may have put there: never waiting for a pipe, never reading without an end."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; what is looked at is what was opened, whatever its name leads to a moment later.

    Raises:
        OSError: it cannot be opened, or is a pipe, a socket or a device: reading one may wait for ever or never end.
    """
    _check_plain(os.stat(path).st_mode, path)  # opening some devices has effects: those are not even opened
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _check_plain(os.fstat(descriptor).st_mode, path)  # the name may lead to another file by now
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_plain(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, expected a plain file", os.fspath(path))


def read_plain(path: str | os.PathLike[str], most: int) -> bytes:
    """The whole content of a file of at most ``most`` bytes.

    Raises:
        OSError: as ``open_plain``, or it is longer.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if size > most or len(data) > most:
        raise OSError(errno.EFBIG, f"it has {max(size, len(data)):,} bytes, at most {most:,} are read", os.fspath(path))
    return data
