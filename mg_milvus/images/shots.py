"""The files of one shot: what a camera's sensor gave (RAW) and its JPEG, the movie of a Live Photo, sidecars.

They have one name and several endings, in one folder: ``IMG_1.HEIC``, ``IMG_1.MOV``, ``IMG_1.AAE``. A sidecar may also
have the whole name of its file: ``IMG_1.CR2.xmp``.
"""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from typing import TYPE_CHECKING

from mg_milvus.files import plain_name
from mg_milvus.images.discover import SUFFIXES, is_url, path_text, text_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RAW = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos"}
    | {".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)
MOVIES = frozenset({".mov", ".mp", ".mp4"})
SIDECARS = frozenset({".aae", ".dop", ".json", ".nksc", ".on1", ".pp3", ".thm", ".vrd", ".xmp"})
_IMAGES = SUFFIXES | {".heic", ".heif", ".hif", ".jp2", ".jxl", ".psd"}
_BINDING = RAW | MOVIES | SIDECARS
"""Endings of files that make the files of their name one shot; two images alone are two images."""


class Shots:
    """Which files belong together; folders are listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, list[str]]] = {}

    def parts(self, path: str) -> tuple[str, ...]:
        """The other files of the shot of a file, by name; all paths as ``path_text`` writes them."""
        if is_url(path) and not path.startswith("file://"):
            return ()
        folder, name = os.path.split(text_path(path))
        mates = self._names(folder).get(_key(name), [])
        bare = [mate for mate in mates if plain_name(_stem(mate)).casefold() == _key(mate)]
        own = {name}
        if any(_suffix(mate) in _BINDING for mate in bare) and (name in bare or _stem(name) in bare):
            own.update(bare)
        own |= {mate for mate in mates if _stem(mate) in own}  # IMG_1.CR2.xmp, of IMG_1.CR2
        return tuple(path_text(os.path.join(folder, mate)) for mate in sorted(own - {name}))

    def together(self, paths: Iterable[str]) -> list[list[str]]:
        """The paths that are of one shot, in groups of two or more; of each the one to look at first: no RAW."""
        names: dict[tuple[str, str], list[str]] = defaultdict(list)
        for path in paths:
            names[shot_key(path)].append(path)
        groups = []
        for some in names.values():
            rest = sorted(some, key=lambda path: (is_raw(path), path))
            while len(rest) > 1:
                parts = set(self.parts(rest[0]))
                groups.append([rest[0], *(path for path in rest[1:] if path in parts)])
                rest = [path for path in rest[1:] if path not in parts]
        return [group for group in groups if len(group) > 1]

    def spare(self, path: str, kept: str) -> bool:
        """Whether all other files of the shot of ``path`` are in that of ``kept``, with the same content.

        So must ``path`` itself be, where it is what the sensor gave and ``kept`` is made of it.
        """
        needed = [part for part in self.parts(path) if part != kept]
        if is_raw(path) and not is_raw(kept):
            needed.append(path)
        others = [other for other in self.parts(kept) if other != path]
        return all(any(_same(part, other) for other in others) for part in needed)

    def _names(self, folder: str) -> dict[str, list[str]]:
        """Key -> names in a folder, of the files that a shot may have."""
        if folder not in self._folders:
            names: dict[str, list[str]] = defaultdict(list)
            try:
                listed: Sequence[str] = os.listdir(folder)
            except OSError:
                listed = ()
            for name in listed:
                if _suffix(name) in _BINDING or _suffix(name) in _IMAGES:
                    names[_key(name)].append(name)
            self._folders[folder] = dict(names)
        return self._folders[folder]


def shot_key(path: str) -> tuple[str, str]:
    """Equal for the files of one shot, and for some others: the folder, and what their names have in common."""
    folder, name = os.path.split(text_path(path))
    return folder, _key(name)


def is_raw(path: str) -> bool:
    """Whether a path is that of a file of a camera's sensor."""
    return _suffix(text_path(path).name) in RAW


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _key(name: str) -> str:
    """What the names of one shot have in common: the name without its endings, in one form and case."""
    stem, suffix = os.path.splitext(name)
    while suffix.lower() in _BINDING or suffix.lower() in _IMAGES:
        stem, suffix = os.path.splitext(stem)
    return plain_name(stem + suffix).casefold()


def _same(path: str, other: str) -> bool:
    one, two = text_path(path), text_path(other)
    try:
        return _suffix(one.name) == _suffix(two.name) and filecmp.cmp(one, two, shallow=False)
    except OSError:
        return False
