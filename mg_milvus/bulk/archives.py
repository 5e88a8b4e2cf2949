"""Images in tars and zips, read where they are: nothing is unpacked, and no false length fills the memory."""

from __future__ import annotations

import calendar
import io
import os
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from mg_milvus.bulk.remote import MAX_BYTES
from mg_milvus.errors import ImageError
from mg_milvus.images.discover import EXCLUDED, SUFFIXES, Found
from mg_milvus.images.kinds import HEAD, unread_kind
from mg_milvus.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from mg_milvus.images.discover import Tally

_HEADER_BYTES = 1 << 20
"""Largest read of a header of a tar, so that a false length cannot fill the memory."""
_DIRECTORY_BYTES = 1 << 28
"""Largest directory of a zip: of two million members."""
_ENCRYPTED = 1


class OpenFile:
    """A local file, read at any position from any thread; closed with its last reference."""

    def __init__(self, file: BinaryIO) -> None:
        """Duplicate the descriptor of ``file``, which may then be closed and removed."""
        self._descriptor = os.dup(file.fileno())

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``; fewer at the end of the file."""
        chunks = []
        while size > 0 and (chunk := os.pread(self._descriptor, size, start)):
            chunks.append(chunk)
            start, size = start + len(chunk), size - len(chunk)
        return b"".join(chunks)

    def __del__(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Member(Found):
    """An image at ``start`` in a file."""

    file: OpenFile
    start: int

    def read(self) -> bytes:
        """See ``Found``."""
        data = self.file.read(self.start, self.size)
        if len(data) < self.size:
            raise ImageError(f"is cut off after {len(data)} of {self.size} bytes")
        return data


def in_tar(container: Found, file: BinaryIO, on_failure: Callable[[Failure], None], passed: Tally) -> Iterator[Member]:
    """The images in a tar, in its order: members whose ending, or else whose first bytes, are those of an image.

    Args:
        container: the tar.
        file: the same, open.
        on_failure: called with members that are not plain files or too long, and when the tar is damaged.
        passed: counts the other members, hidden ones, and those of folders of previews.
    """
    opened = OpenFile(file)
    count = 0
    try:
        with tarfile.open(fileobj=_TarReader(opened), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members = []  # otherwise all members stay in memory
                count += 1
                place, size = member.offset_data, member.size
                head = partial(opened.read, place, max(0, min(size, HEAD))) if member.isreg() else bytes
                if not _takes(member.name, head, passed, folder=member.isdir()):
                    continue
                path = f"{container.path}#{_text(member.name)}"
                if not member.isreg() or member.issparse():
                    on_failure(Failure(path, "is a link, a device or a sparse file in the tar, expected a plain file"))
                elif not 0 <= size <= MAX_BYTES:
                    on_failure(Failure(path, f"has {size} bytes, at most {MAX_BYTES} are read"))
                else:
                    yield Member(path, size, _nanoseconds(member.mtime), opened, place)
    except (tarfile.TarError, ImageError, ValueError, OverflowError, RecursionError) as error:
        # tarfile recurses for each long name or extended header that precedes another one.
        reason = "nested headers" if isinstance(error, RecursionError) else error
        on_failure(Failure(container.path, f"is not an uncompressed tar, or damaged after {count} members: {reason}"))


class _TarReader:
    """File object for the headers of a tar: small reads, no seeks backwards, so that no tar fills memory or loops."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._position = self._furthest = 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise ImageError(f"a header claims {size} bytes")
        data = self._file.read(self._position, size)
        self._position += len(data)
        return data

    def seek(self, position: int) -> int:
        # tarfile reads the byte before the next header to check that the last member is complete.
        if position + 1 < self._furthest:
            raise ImageError("its headers point backwards")
        self._position = position
        self._furthest = max(self._furthest, position)
        return position

    def tell(self) -> int:
        return self._position


def in_zip(
    container: Found, file: BinaryIO, on_failure: Callable[[Failure], None], passed: Tally
) -> Iterator[ZipMember]:
    """The images in a zip, in the order of its directory; as ``in_tar``."""
    try:
        archive = zipfile.ZipFile(_ZipReader(OpenFile(file), file.seek(0, os.SEEK_END)))
        for member in archive.infolist():
            own = ZipMember(
                f"{container.path}#{_text(member.filename)}", member.file_size, _zip_time(member), archive, member
            )
            try:
                if not _takes(member.filename, own.head, passed, folder=member.is_dir()):
                    continue
            except ImageError as error:
                on_failure(Failure(own.path, str(error)))
                continue
            if member.file_size > MAX_BYTES:
                on_failure(Failure(own.path, f"has {member.file_size} bytes, at most {MAX_BYTES} are read"))
            else:
                yield own
    except (zipfile.BadZipFile, ImageError, NotImplementedError, ValueError, EOFError) as error:
        on_failure(Failure(container.path, f"is not a zip, or damaged: {' '.join(str(error).split())}"))


@dataclass(frozen=True, slots=True)
class ZipMember(Found):
    """An image in a zip, which is open as long as its members are known."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def read(self) -> bytes:
        """See ``Found``."""
        return self._read(self.size + 1)  # with the byte behind its end its checksum is compared

    def head(self) -> bytes:
        """Its first bytes.

        Raises:
            ImageError: as ``read``.
        """
        return self._read(HEAD)

    def _read(self, most: int) -> bytes:
        if self.info.flag_bits & _ENCRYPTED:
            raise ImageError("is encrypted in the zip: unpack it first")
        if self.info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ImageError(f"is compressed by method {self.info.compress_type}, expected deflate: unpack it first")
        try:
            with self.archive.open(self.info) as opened:
                data = opened.read(most)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
            raise ImageError(f"is damaged in the zip: {' '.join(str(error).split())}") from error
        if len(data) < min(most, self.size):
            raise ImageError(f"is cut off after {len(data)} of {self.size} bytes")
        return data


class _ZipReader(io.RawIOBase):
    """File object for ``zipfile``: limited reads at any position."""

    def __init__(self, file: OpenFile, size: int) -> None:
        super().__init__()
        self._file, self._size, self._position = file, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = max(0, self._size - self._position) if size < 0 else size
        if size > _DIRECTORY_BYTES:
            raise ImageError(f"its directory claims {size} bytes")
        data = self._file.read(self._position, size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("its headers point before its begin")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position


def _takes(name: str, head: Callable[[], bytes], passed: Tally, *, folder: bool) -> bool:
    """Whether a member is taken, by its name or else by its first bytes; counts it otherwise."""
    *folders, own = name.rstrip("/").split("/")
    ending = os.path.splitext(own)[1].lower()
    excluded = next((each for each in folders if each.lower() in EXCLUDED), None)
    if excluded is not None:
        passed.add(f"in {excluded}")
        return False
    if own.startswith("."):
        passed.add("hidden")
        return False
    if ending in SUFFIXES:
        return True
    if folder:
        return False
    unread = unread_kind(head())
    if unread is None:
        return True
    passed.add(_text(ending) or "files without an ending", unread)
    return False


def _zip_time(member: zipfile.ZipInfo) -> int:
    """Modification time of a member, whose zone a zip does not tell; 0 if invalid."""
    try:
        return _nanoseconds(calendar.timegm((*member.date_time, 0, 0, 0)))
    except (ValueError, OverflowError):
        return 0


def _text(name: str) -> str:
    """The name of a member as valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(os.fsencode(name))
    return name


def _nanoseconds(seconds: float) -> int:
    """Modification time of a member; 0 if invalid."""
    return int(seconds * 1e9) if 0 <= seconds < 2**33 else 0
