"""Files and folders that are for one user of the machine only, whatever the umask says.

What another user may have put in the way, in a shared folder such as /tmp, is refused: a link, a pipe, their own file.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE = 0o600
FOLDER = 0o700
UMASK = 0o077


def open_private(file: Path, flags: int, also: int | None = None) -> int:
    """A descriptor of a regular file of this user's own, which is made, if ``flags`` say so, for this user only.

    The rights of a file that is there already stay as they are.

    Args:
        file: is not followed where it is a link, nor waited for where it is a pipe.
        flags: for ``os.open``.
        also: the number of another user whose file it may be.

    Raises:
        OSError: it cannot be opened, or is something else; ``strerror`` says what.
    """
    try:
        descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE)
    except OSError as exc:
        raise _refusal(file, exc) from exc
    found = os.fstat(descriptor)
    reason = None
    if not stat.S_ISREG(found.st_mode):
        reason = "it is not a regular file"
    elif found.st_uid not in {os.geteuid(), also}:
        reason = _of_another(found.st_uid)
    if reason is not None:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, reason, str(file))
    return descriptor


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user only. One that is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    folder.mkdir(FOLDER, exist_ok=True)


def _refusal(file: Path, exc: OSError) -> OSError:
    if exc.errno in {errno.ELOOP, errno.EMLINK}:
        return OSError(exc.errno, "it is a link", str(file))
    if isinstance(exc, PermissionError):
        with suppress(OSError):
            owner = file.lstat().st_uid
            if owner != os.geteuid():
                return PermissionError(exc.errno, _of_another(owner), str(file))
    return exc


def _of_another(owner: int) -> str:
    import pwd

    name = f"user {owner}"
    with suppress(KeyError):
        name = pwd.getpwuid(owner).pw_name
    return f"it belongs to another user, {name}"
