"""Whether the file of a row is there, and whether two paths name one file or lie in one folder.

A row tells what a path held at its ingest. Disks that are not mounted and folders that cannot be read look as if files
were gone; only what is certain counts as gone, since rows are deleted for it.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mg_milvus.files import disk_path, plain_name
from mg_milvus.images.discover import is_under, is_url, path_text, text_path

if TYPE_CHECKING:
    from collections.abc import Sequence

State = Literal["here", "changed", "gone", "away", "url"]
"""State of a row's file. here: as it was at its ingest; changed: another size or time since; gone: certainly no longer
there; away: not found or not readable, and its disk may be not mounted; url: not a file of this machine."""

MOUNT_FOLDERS = ("/media", "/mnt", "/run/media", "/net", "/Volumes")
"""Folders whose subfolders are disks; below some of them, those of a user."""
FSTAB = Path("/etc/fstab")


def stored_path(path: str | os.PathLike[str]) -> str:
    """The path that the row of a file has: absolute, as the disk spells it, as ``path_text`` writes it."""
    return path_text(disk_path(path))


class Disks:
    """What is on the disks during one operation; what was found out about folders is kept for its duration."""

    def __init__(self) -> None:
        self._whole: dict[str, bool] = {}
        self._real: dict[str, str] = {}

    def state(self, path: str, size: int | None = None, mtime_ns: int = 0) -> State:
        """The state of the file at a row's path, which had this size and time; without a size it is never changed."""
        if is_url(path) and not path.startswith("file://"):
            return "url"
        try:
            status = os.stat(text_path(path))
        except (FileNotFoundError, NotADirectoryError):
            real = os.path.realpath(text_path(path))
            return "gone" if self._is_whole(os.path.dirname(real)) else "away"
        except (OSError, ValueError):
            return "away"
        if not stat.S_ISREG(status.st_mode):
            return "gone" if stat.S_ISDIR(status.st_mode) else "away"
        same = size is None or (status.st_size, status.st_mtime_ns) == (size, mtime_ns)
        return "here" if same else "changed"

    def moved(self, known: str, path: str) -> bool:
        """Whether the file of the row with the path ``known`` is at another path now, which holds the same content.

        So it is when the row's file is gone, when its folder was emptied after the file came to its new place (``mv``
        does that; the folder on which a disk is mounted keeps its time), and when the row spells the same path
        otherwise than the disk.
        """
        state = self.state(known)
        if state == "gone":
            return True
        if state == "url":
            return False
        old = text_path(known)
        if state == "away":
            try:
                folder, found = os.stat(old.parent), os.stat(text_path(path))
                empty = not os.listdir(old.parent)
            except OSError:
                return False
            return empty and folder.st_mtime_ns >= found.st_ctime_ns and not _may_be_mounted(str(old.parent))
        return known != path and stored_path(old) == path

    def identity(self, path: str) -> tuple[int, int]:
        """Device and inode of the file at a row's path, links followed: one for all its names; zeros for no file."""
        try:
            status = os.stat(text_path(path))
        except (OSError, ValueError):
            return 0, 0
        return status.st_dev, status.st_ino

    def location(self, path: str) -> str:
        """The path, its folder without links, in the normal form in which paths are compared."""
        folder, name = os.path.split(text_path(path))
        if folder not in self._real:
            self._real[folder] = _without_links(folder)
        return plain_name(path_text(os.path.join(self._real[folder], name)))

    def _is_whole(self, folder: str) -> bool:
        """Whether what is not found in a folder is certainly not there: no disk is missing on the way to it."""
        if folder not in self._whole:
            self._whole[folder] = _is_whole(folder)
        return self._whole[folder]


def _without_links(path: str | os.PathLike[str]) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # no file has this name, but a row may: it has a zero byte
        return os.fspath(path)


def _is_whole(folder: str) -> bool:
    if _may_be_mounted(folder):
        return False
    while True:
        try:
            with os.scandir(folder) as entries:
                # An empty folder may be the place of a disk that is not mounted; so may a missing one in the root.
                return folder != "/" and next(entries, None) is not None
        except (FileNotFoundError, NotADirectoryError):
            folder = os.path.dirname(folder)
        except OSError:
            return False


def _may_be_mounted(folder: str) -> bool:
    """Whether a folder belongs to a disk that the system knows and has not mounted."""
    places = [top for top in _mount_points() if f"{folder}/".startswith(f"{top.rstrip('/')}/")]
    if any(not os.path.ismount(place) for place in places):
        return True
    for top in MOUNT_FOLDERS:
        if f"{folder}/".startswith(f"{top}/"):
            parts = Path(folder).parts
            within = range(len(Path(top).parts), len(parts) + 1)
            return not any(os.path.ismount(os.path.join(*parts[:length])) for length in within)
    return False


@cache
def _mount_points() -> tuple[str, ...]:
    """The folders on which the system's table says that disks are mounted."""
    try:
        lines = FSTAB.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ()
    columns = [line.split() for line in lines if not line.lstrip().startswith("#")]
    points = [re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), row[1]) for row in columns if len(row) > 1]
    return tuple(point for point in points if point.startswith("/") and point != "/")


class Folders:
    """Folders that rows may lie in, given in any form: relative, through links, with other spellings of their names."""

    def __init__(self, folders: Sequence[str | os.PathLike[str]], disks: Disks) -> None:
        self.given = tuple(map(stored_path, folders))
        self._disks = disks
        self._forms = [form for folder in self.given for form in (plain_name(folder), disks.location(folder))]
        self._forms += [plain_name(path_text(_without_links(text_path(folder)))) for folder in self.given]

    def holds(self, path: str) -> bool:
        """Whether a row's path is one of the folders, or lies in one of them."""
        return is_under(plain_name(path), self._forms) or is_under(self._disks.location(path), self._forms)

    def rest(self, path: str) -> str | None:
        """The path from the folder on, ``.`` for the folder itself; None when it does not lie in one."""
        for form in (plain_name(path), self._disks.location(path)):
            for top in self._forms:
                if is_under(form, [top]):
                    return str(text_path(form).relative_to(text_path(top)))
        return None


def spellings(path: str | os.PathLike[str]) -> list[str]:
    """The paths that the row of a file may have, given in any form, the likeliest first."""
    stored, disks = stored_path(path), Disks()
    forms = {path_text(path), disks.location(stored)}
    if not is_url(stored):  # a name that is not UTF-8 has no other form
        folder, name = os.path.split(stored)
        forms |= {unicodedata.normalize(form, stored) for form in ("NFC", "NFD")}
        forms.add(path_text(os.path.join(_without_links(folder), name)))
    return [stored, *sorted(form for form in forms - {stored} if same_place(form, stored, disks))]


def same_place(path: str, other: str, disks: Disks) -> bool:
    """Whether two paths mean the same name in the same folder; two existing files never do because of normal forms."""
    if disks.location(path) != disks.location(other):
        return False
    files = [text_path(each) for each in (path, other)]
    return not all(map(os.path.lexists, files)) or os.path.samefile(*files)
