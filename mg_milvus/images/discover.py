"""Discovery of image files in folders; unreadable ones are reported and skipped."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from pathspec import GitIgnoreSpec

from mg_milvus.errors import ImageError
from mg_milvus.files import disk_path, read_plain
from mg_milvus.images.files import head_of, read_file
from mg_milvus.images.kinds import unread_kind
from mg_milvus.records import Failure, PassedOver

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif"}
)
"""Lower-case endings of the files to take from folders; others are taken if their first bytes are those of an image."""

EXCLUDED = frozenset({"@eadir", "#recycle", "$recycle.bin", "__macosx", ".thumbnails", "lost+found"})
"""Folders, in lower case, that systems make beside images for previews and deleted files."""

IGNORE_FILE = ".mgmignore"
"""Name of the files that say, in the lines of gitignore, what an ingest leaves out of their folder."""
_MOST_IGNORE = 2**20
"""Bytes of such a file, at most."""

_URI = "file://"

_Identity = tuple[int, int]
"""st_dev and st_ino, which identify a folder under all its names."""

_FileIdentity = tuple[_Identity, str]
"""The folder and the name in it, which identify a directory entry however its path is written."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image file.

    Attributes:
        path: its absolute path, as ``path_text`` writes it.
        size: in bytes; -1 when it is known only after reading.
        mtime_ns: modification time, nanoseconds since the epoch.
    """

    path: str
    size: int
    mtime_ns: int

    def read(self) -> bytes:
        """Its content.

        Raises:
            ImageError: it cannot be read.
        """
        return read_file(text_path(self.path))


@dataclass(slots=True)
class Tally:
    """Counts what a walk passes over, by kind."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, kind: str, remedy: str = "") -> None:
        """Count one."""
        self.counts[kind, remedy] += 1

    def records(self) -> tuple[PassedOver, ...]:
        """The counts, those with a remedy first, then the most frequent."""
        order = sorted(self.counts.items(), key=lambda own: (not own[0][1], -own[1], own[0]))
        return tuple(PassedOver(kind, count, remedy) for (kind, remedy), count in order)


def path_text(path: str | os.PathLike[str]) -> str:
    """The absolute path as valid UTF-8; links are not resolved.

    A path that is not valid UTF-8 becomes its percent-encoded ``file://`` URI. ``text_path`` is the inverse.
    """
    absolute = os.path.abspath(path)
    try:
        absolute.encode("utf-8")
    except UnicodeEncodeError:
        return _URI + quote(os.fsencode(absolute))
    return absolute


def text_path(text: str) -> Path:
    """The inverse of ``path_text``; bytes that are not UTF-8 become surrogates, as ``open`` expects."""
    if text.startswith(_URI):
        return Path(os.fsdecode(unquote_to_bytes(text.removeprefix(_URI))))
    return Path(text)


def is_under(path: str, folders: Sequence[str]) -> bool:
    """Whether a path is one of the folders or lies in one of them; all as ``path_text`` writes them."""
    inside = os.fsencode(text_path(path))
    tops = [os.fsencode(text_path(folder)) for folder in folders]
    return any(inside == top or inside.startswith(top.rstrip(b"/") + b"/") for top in tops)


def is_url(text: str) -> bool:
    """Whether a text is a URL, ``scheme://…``, and not a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def image_id(path: str) -> str:
    """Primary key of the image at ``path`` (as ``path_text`` writes it): 32 hex digits, BLAKE2b-128 of its UTF-8."""
    return hashlib.blake2b(path.encode("utf-8"), digest_size=16).hexdigest()


def content_hash(data: bytes) -> str:
    """Hash of a file's content for its row: 32 hex digits, BLAKE2b-128."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Ignore:
    """Patterns of gitignore, and the folder that they are relative to."""

    folder: str
    spec: GitIgnoreSpec

    @classmethod
    def of(cls, folder: str, lines: Sequence[str]) -> Ignore:
        """Parse patterns.

        Raises:
            ImageError: one is none.
        """
        for line in lines:
            try:
                GitIgnoreSpec.from_lines([line])
            except ValueError:
                raise ImageError(f"{line!r} is no pattern of gitignore, expected such as '*.png' or 'old/'") from None
        return cls(folder, GitIgnoreSpec.from_lines(lines))

    def decides(self, path: str, *, folder: bool) -> bool | None:
        """Whether a path is left out (True) or taken again (False) by the last pattern that matches; None: by none."""
        relative = os.path.relpath(path, self.folder)
        if not folder:
            return self.spec.check_file(relative).include
        # Its own check does not let "!*/" after "*" take folders again, as git does.
        matching = (pattern for pattern in reversed(self.spec.patterns) if pattern.include is not None)
        return next((pattern.include for pattern in matching if pattern.match_file(relative + "/")), None)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a walk takes.

    Attributes:
        suffixes: lower-case endings of the files to take from folders.
        inside: a folder; whatever lies outside of it when all links are followed is a failure. Checked for each folder
            and file when the walk reaches it.
        exclude: patterns of gitignore, relative to each source folder; of what they match nothing is taken.
    """

    suffixes: Collection[str] = SUFFIXES
    inside: str | os.PathLike[str] | None = None
    exclude: Sequence[str] = ()


def discover(
    sources: Sequence[str | os.PathLike[str]], on_failure: Callable[[Failure], None], rules: Rules | None = None,
    passed: Tally | None = None,
) -> Iterator[Found]:  # fmt: skip
    """Yield the image files in folders, and the files among the sources.

    Every file comes once, however often its folder is given or linked to. Sources come in the given order, a folder's
    entries sorted by name. Links to folders are followed last, so that an image is found by its own path whenever that
    is among the sources. A file with another suffix is taken if its first bytes are those of an image. Hidden entries
    (``.name``), folders of ``EXCLUDED``, what a file ``.mgmignore`` of a folder on the way leaves out, and all other
    files are passed over, and counted, unless they are sources themselves. Memory grows with the number of folders, not
    of files.

    Args:
        sources: folders and files.
        on_failure: called with each folder and file that cannot be accessed; the walk continues.
        rules: see ``Rules``.
        passed: counts what is passed over; emptied when the walk begins.

    Raises:
        ImageError: a source does not exist, or is neither a folder nor a file, or a pattern is none. Raised before any
            work.
    """
    rules = rules or Rules()
    Ignore.of("", rules.exclude)
    named: set[_FileIdentity] = set()
    todo: list[tuple[str, bool]] = []
    for source in sources:
        path = disk_path(source)
        folder = _is_folder(path, source)
        if not folder:
            identity = _file_identity(path)
            if identity in named:
                continue
            named.add(identity)
        todo.append((path, folder))
    passed = Tally() if passed is None else passed
    passed.counts.clear()
    return _Walk(named, on_failure, rules, passed).run(todo)


def _is_folder(path: str, source: str | os.PathLike[str]) -> bool:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ImageError(f"{os.fspath(source)!r} does not exist: expected a folder or an image file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{os.fspath(source)!r} cannot be read: {_reason(error)}") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise ImageError(f"{os.fspath(source)!r} is neither a folder nor a file: expected a folder or an image file")
    return stat.S_ISDIR(mode)


def _file_identity(path: str) -> _FileIdentity:
    folder, name = os.path.split(path)
    return _identity(os.stat(folder)), name


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


_Folder = tuple[str, tuple[Ignore, ...]]
"""A folder to walk, and the patterns that hold in it, those of the outermost folder first."""


class _Walk:
    """The state of one walk."""

    def __init__(
        self, named: set[_FileIdentity], on_failure: Callable[[Failure], None], rules: Rules, passed: Tally
    ) -> None:
        self._named = named
        self._on_failure = on_failure
        self._suffixes = rules.suffixes
        self._inside = None if rules.inside is None else os.path.realpath(rules.inside)
        self._exclude = rules.exclude
        self._passed = passed
        self._entered: set[_Identity] = set()
        self._linked: deque[_Folder] = deque()

    def run(self, todo: list[tuple[str, bool]]) -> Iterator[Found]:
        """Visit (path, is it a folder) in order, then the folders behind links."""
        for path, folder in todo:
            top = path if folder else os.path.dirname(path)
            ignores = (Ignore.of(top, self._exclude),) if self._exclude else ()
            if folder:
                yield from self._folder((path, ignores))
            elif not self._excludes(path, ignores, folder=False):
                yield from self._file(path)
        while self._linked:
            yield from self._folder(self._linked.popleft())

    def _folder(self, top: _Folder) -> Iterator[Found]:
        # An explicit stack: folders can be nested deeper than Python allows recursion.
        stack = [self._entries(top)]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif isinstance(entry, tuple):
                stack.append(self._entries(entry))
            else:
                yield entry

    def _entries(self, opened: _Folder) -> Iterator[Found | _Folder]:
        """Yield the files of one folder, and its subfolders."""
        folder, ignores = opened
        if self._leads_out(folder):
            return
        try:
            identity = _identity(os.stat(folder))
            if identity in self._entered:
                return
            self._entered.add(identity)
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda e: e.name)
        except OSError as error:
            self._fail(folder, f"the folder cannot be read: {_reason(error)}")
            return
        if any(entry.name == IGNORE_FILE for entry in entries):
            ignores += self._ignores_of(folder)
        for entry in entries:
            if entry.name.lower() in EXCLUDED and entry.is_dir():
                self._passed.add(f"folder {entry.name}")
            elif entry.name == IGNORE_FILE:
                continue
            elif entry.name.startswith("."):
                self._passed.add("hidden")
            elif ignores and self._excludes(entry.path, ignores, folder=entry.is_dir()):
                continue
            elif entry.is_dir(follow_symlinks=False):
                yield entry.path, ignores
            elif entry.is_symlink() and os.path.isdir(entry.path):
                self._linked.append((entry.path, ignores))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                self._fail(entry.path, "is a link to nothing")
            elif (identity, entry.name) not in self._named and self._takes(entry):
                yield from self._file(entry.path)

    def _ignores_of(self, folder: str) -> tuple[Ignore, ...]:
        """The patterns of a folder's own ``.mgmignore``; a file that cannot be read is a failure."""
        file = os.path.join(folder, IGNORE_FILE)
        if self._leads_out(file):
            return ()
        try:
            text = read_plain(file, _MOST_IGNORE).decode("utf-8-sig", "surrogateescape")
            return (Ignore.of(folder, text.splitlines()),)
        except (ImageError, OSError) as error:
            self._fail(file, f"is passed over: {error if isinstance(error, ImageError) else _reason(error)}")
            return ()

    def _excludes(self, path: str, ignores: tuple[Ignore, ...], *, folder: bool) -> bool:
        """Whether the innermost patterns that match leave a path out, which is counted."""
        verdicts = (ignore.decides(path, folder=folder) for ignore in reversed(ignores))
        left_out = next((verdict for verdict in verdicts if verdict is not None), False)
        if left_out:
            self._passed.add("excluded folders" if folder else "excluded files")
        return left_out

    def _takes(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is taken, by its name or else by its first bytes; counts it otherwise."""
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in self._suffixes:
            return True
        kind = suffix.encode("utf-8", "replace").decode() or "files without an ending"
        if not entry.is_file():
            self._passed.add("pipes, sockets and devices")
            return False
        if self._inside is not None and self._leads_out(entry.path):
            return False
        try:
            unread = unread_kind(head_of(entry.path))
        except ImageError as error:
            self._fail(entry.path, str(error))
            return False
        if unread is None:
            return True
        self._passed.add(kind, unread)
        return False

    def _leads_out(self, path: str) -> bool:
        """Whether a path lies outside of ``inside``, which is reported as a failure."""
        if self._inside is None or is_under(os.path.realpath(path), [self._inside]):
            return False
        self._fail(path, f"is a link that leads out of {self._inside}")
        return True

    def _file(self, path: str) -> Iterator[Found]:
        if self._leads_out(path):
            return
        try:
            status = os.stat(path)
        except OSError as error:
            self._fail(path, f"cannot be read: {_reason(error)}")
            return
        if stat.S_ISREG(status.st_mode):
            yield Found(path_text(path), status.st_size, status.st_mtime_ns)
        else:
            self._fail(path, "is not a regular file")

    def _fail(self, path: str, reason: str) -> None:
        self._on_failure(Failure(path_text(path), reason))
