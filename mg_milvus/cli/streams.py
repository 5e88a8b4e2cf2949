"""Standard input, output and error as a shell gives them: closed, full, of another encoding, or no terminal."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from mg_milvus.errors import ImageError
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

_CLOSED = (os.O_WRONLY, os.O_RDONLY, os.O_RDWR)
"""How the null device stands in for a closed stream: reading and writing fail as before, messages are dropped."""

_ROOM = "make room there, then run the same command again"
_LIMITS = "raise the limits of this shell (ulimit -a), or close other programs"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "give a place that can be written to",
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096)",
    errno.ENFILE: _LIMITS,
    errno.ENOMEM: _LIMITS,
    errno.EAGAIN: _LIMITS,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f unlimited)",
}


OUTPUT = "standard output"


class _Output(io.FileIO):
    """Standard output: its errors name it."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # any buffer
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, OUTPUT) from None


class _Messages(io.FileIO):
    """Standard error: what cannot be written there cannot be told anywhere, and is no reason to fail."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # any buffer
        except OSError:
            return len(memoryview(data))  # type: ignore[arg-type]


def prepare() -> None:
    """Make the three streams usable: closed ones fail when they are used, and files never take their numbers."""
    for number, flags in enumerate(_CLOSED):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stdout is None or _number(sys.stdout) == 1:
        sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout, by_line=os.isatty(1))
    if sys.stderr is None or _number(sys.stderr) == 2:
        sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr, by_line=True)
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding cannot represent must not end a run.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _text(raw: io.FileIO, replaced: TextIO | None, *, by_line: bool) -> io.TextIOWrapper:
    encoding = None if replaced is None else replaced.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, line_buffering=by_line)


def _number(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a stream in memory
        return None


def abandon_output() -> None:
    """Drop what standard output did not take; the flush at exit would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def sentence(error: OSError) -> str:
    """An error of the system in one line: what, why, and the remedy where there is one. Drops output that failed."""
    where = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    if error.filename == OUTPUT:
        abandon_output()
    why = f"{where}: {error.strerror or error}" if where else str(error.strerror or error)
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{why}; {remedy}" if remedy else why


def read_input() -> bytes:
    """The whole standard input.

    Raises:
        ImageError: it cannot be read, or is empty.
    """
    try:
        data = sys.stdin.buffer.read()
    except OSError as exc:
        raise ImageError(
            f"standard input cannot be read ({exc.strerror}): give the image's path, or mgm query - < FILE"
        ) from exc
    if not data:
        raise ImageError("standard input is empty, expected an image: mgm query - < FILE")
    return data


def print_names(names: Iterable[str | os.PathLike[str]], *, null: bool) -> None:
    """Print file names, one a line; each ends with a null byte instead if ``null`` is set.

    On a terminal they cannot steer it; elsewhere they are the bytes that the file system has.
    """
    if sys.stdout.isatty() and not null:
        for name in names:
            print(escape_controls(os.fspath(name)))
        return
    sys.stdout.flush()
    for name in names:
        sys.stdout.buffer.write(os.fsencode(name) + (b"\0" if null else b"\n"))
    sys.stdout.buffer.flush()
