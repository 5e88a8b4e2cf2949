"""Names that strangers chose, shown to people: they cannot steer a terminal or a page, nor pose as other names.

File names, labels, values of fields and names of collections may hold control characters, turn the direction of text
around, or break lines. What is printed, and what templates show, goes through here.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import tempfile
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import PurePath
    from typing import BinaryIO


_JOINERS = "\u200c\u200d"
"""Format characters that emoji and several scripts are written with; all others are escaped."""


def escape_controls(text: str) -> str:
    """Text on one line that cannot steer a terminal: control and direction characters and stray bytes are escaped."""
    return "".join(char if char.isprintable() or char in _JOINERS else _escape(char) for char in text)


def one_line(text: str, most: int = 200) -> str:
    """What a stranger said, within a sentence: printable, on one line, of at most about ``most`` characters."""
    # What is cut off is never looked at: it may be megabytes.
    return escape_controls(" ".join(text[: 4 * most].split()))[:most] + ("…" if len(text) > most else "")


_LONG = re.compile(r"(?<!\S)'[^']{500,}'|\S{500,}")


def shorten_long(text: str) -> str:
    """A sentence whose quoted names and words of 500 characters and more have lost their middle."""
    return _LONG.sub(lambda found: f"{found[0][:150]}…{found[0][-150:]}", text)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def shown(value: object) -> object:
    """What a template writes for a value: plain text becomes printable; markup and numbers stay as they are."""
    return escape_controls(value) if type(value) is str else value


def file_link(path: PurePath) -> str:
    """The ``file://`` URI of an absolute path of this machine; empty for any other.

    ``//host/share`` is absolute, too, but some systems would ask that host for it, with the user's name and password.
    """
    try:
        return path.as_uri() if path.is_absolute() and not str(path).startswith("//") else ""
    except UnicodeEncodeError:  # no file system has such a name
        return ""


def disk_path(path: str | os.PathLike[str]) -> str:
    """The absolute path, each name spelled as the disk has it; what does not exist stays as it is given.

    Links stay, but for one before ``..``, which leads out of the folder behind it. Where a name does not exist, one
    that differs in the Unicode normal form only is meant; on a disk that ignores case or form, the name it lists.
    """
    text = os.fsdecode(path)
    done = "/" if os.path.isabs(text) else os.getcwd()
    parts = [part for part in text.split("/") if part not in {"", "."}]
    for place, part in enumerate(parts):
        if part == "..":
            done = os.path.dirname(os.path.realpath(done) if os.path.islink(done) else done)
            continue
        name = _name_on_disk(done, part)
        if name is None:
            return os.path.normpath(os.path.join(done, *parts[place:]))
        done = os.path.join(done, name)
    return done


def _name_on_disk(folder: str, name: str) -> str | None:
    """The entry of a folder that a name means; None when there is none, or the folder cannot be read."""
    path = os.path.join(folder, name)
    others = {name.swapcase(), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))} - {name}
    exists = os.path.lexists(path)
    if exists and not any(os.path.lexists(os.path.join(folder, other)) for other in others):
        return name
    if not exists and name.isascii():
        return None
    try:
        names = os.listdir(folder)
    except OSError:
        return name if exists else None
    if name in names:
        return name
    same = sorted((other for other in names if plain_name(other) == plain_name(name)), key=str)
    if exists:
        folded = plain_name(name).casefold()
        alike = (other for other in names if plain_name(other).casefold() == folded)
        same = [other for other in alike if os.path.samefile(os.path.join(folder, other), path)] or [name]
    return same[0] if same else None


def plain_name(text: str) -> str:
    """A name or path in the normal form that names are compared in: NFC."""
    return unicodedata.normalize("NFC", text)


def expand_home(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ``~`` replaced, if the home folder is known; as it is otherwise."""
    return Path(os.path.expanduser(path))


def cache_folder(name: str) -> Path:
    """Folder ``name`` of this package's caches: under ``$XDG_CACHE_HOME``, else ``~/.cache``.

    A user without a home folder has one of their own beside the temporary files.
    """
    home = expand_home("~")
    base = os.environ.get("XDG_CACHE_HOME") or (home / ".cache" if home.is_absolute() else None)
    if base is None:
        base = Path(tempfile.gettempdir()) / f"mg-milvus-cache-{os.geteuid()}"
    return Path(base) / "mg-milvus" / name


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; the checks hold for the opened file, even if its name is replaced.

    Raises:
        OSError: it cannot be opened, or is a pipe, a socket or a device, whose reading may block or never end.
    """
    _check_plain(os.stat(path).st_mode, path)  # before opening it: opening some devices has effects
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _check_plain(os.fstat(descriptor).st_mode, path)  # the name may have been replaced
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_plain(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, expected a plain file", os.fspath(path))


_MOST_LINKS = 40
"""Links on one path, as Linux limits them."""


def resolve_trusted(path: Path) -> Path:
    """``path.resolve()``, for paths whose links nobody else chose.

    In a folder that everybody can write to, any user can create a link under a name that is expected there. Linux with
    ``fs.protected_symlinks`` refuses to follow it; ``resolve`` follows it before Linux is asked.

    Returns:
        The absolute path without links; its last parts need not exist.

    Raises:
        PermissionError: a link in such a folder belongs neither to this user, the owner of the folder, nor root.
        OSError: the links go round in circles.
    """
    path = path.absolute()
    resolved, parts, links = Path(path.anchor), list(reversed(path.parts[1:])), 0
    while parts:
        part = parts.pop()
        if part == "..":
            resolved = resolved.parent
            continue
        candidate = resolved / part
        try:
            found = candidate.lstat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found is None or not stat.S_ISLNK(found.st_mode):
            resolved = candidate
            continue
        folder = resolved.stat()
        if folder.st_mode & stat.S_IWOTH and found.st_uid not in {os.geteuid(), folder.st_uid, 0}:
            reason = f"{_of_another(found.st_uid)}, and is a link in a folder that everybody can write to"
            raise PermissionError(errno.EPERM, reason, str(candidate))
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = Path(os.readlink(candidate))
        resolved = Path(target.anchor) if target.is_absolute() else resolved
        parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    return resolved


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


FILE = 0o600
FOLDER = 0o700
UMASK = 0o077


def open_private(file: Path, flags: int, also: int | None = None) -> int:
    """Open a regular file of this user; if ``flags`` create it, then for this user only.

    An existing file keeps its mode.

    Args:
        file: its path; links are not followed, and pipes do not block.
        flags: for ``os.open``.
        also: uid of another permitted owner.

    Returns:
        The file descriptor.

    Raises:
        OSError: it cannot be opened, or is not such a file; ``strerror`` gives the reason.
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
    """Create a folder and its missing parents, for this user only. Existing ones keep their mode.

    Raises:
        OSError: it cannot be created.
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


def write_private(file: Path, data: bytes) -> None:
    """``write_whole`` for this user only; missing folders are created.

    Raises:
        OSError: it cannot be written; an existing file stays unchanged.
    """
    make_folder(file.parent)
    write_whole(file, data, FILE)


def write_whole(file: Path, data: bytes, rights: int = 0o666) -> None:
    """Write a file atomically: neither a reader nor a crash, even of the machine, leaves or sees a part of it.

    Args:
        file: replaced if it exists.
        data: its content.
        rights: mode of the file, reduced by the umask.

    Raises:
        OSError: it cannot be written, or is a folder, a pipe or a device; an existing file stays unchanged.
    """
    with suppress(FileNotFoundError):
        _check_plain(os.stat(file).st_mode, file)  # root would replace /dev/null by a file
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


_FEW_FILES = 64
"""Open files that a process and the engine of Milvus Lite need at least."""


def limits_note() -> str:
    """A sentence's end about limits of this process that keep programs from working; empty without such limits."""
    try:
        import resource
    except ImportError:  # Windows has none
        return ""
    files, size = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE))
    if 0 <= files < _FEW_FILES:
        return f"; this process may open {files} files, raise the limit (ulimit -n)"
    if size != resource.RLIM_INFINITY:
        return f"; files of this process may have {size:,} bytes, raise the limit (ulimit -f)"
    return ""
