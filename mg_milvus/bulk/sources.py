"""Images inside of files: tars (WebDataset), and Parquet tables (img2dataset, Hugging Face).

An image in ``shots.tar`` is ``/data/shots.tar#cat.jpg``, one in a table ``/data/shots.parquet#17``, rows from 0.
Nothing is unpacked into the file system, and no more than one image a thread is in memory.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from mg_milvus.bulk.dataset import arrow
from mg_milvus.bulk.remote import MAX_BYTES, check_url, download, fetch, is_web, listing, without_query
from mg_milvus.errors import ImageError, MissingPackageError
from mg_milvus.files import open_plain
from mg_milvus.images.discover import SUFFIXES, Found, discover, is_url, path_text, text_path
from mg_milvus.ingest.metadata import listed, rows_at_once
from mg_milvus.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from mg_milvus.bulk.dataset import Shard


_HEADER_BYTES = 1 << 20
"""Longest read for a tar's own headers: names that claim to be longer would fill the memory."""
_ROWS = 16
"""Rows of a table that are in memory together."""
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image")


class OpenFile:
    """A file of this machine, read at any position from any thread; closed when nobody needs it any more."""

    def __init__(self, file: BinaryIO) -> None:
        """Keep a descriptor of ``file`` of our own; it may be closed, and its name removed."""
        self._descriptor = os.dup(file.fileno())

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``; fewer where the file ends."""
        chunks = []
        while size > 0 and (chunk := os.pread(self._descriptor, size, start)):
            chunks.append(chunk)
            start, size = start + len(chunk), size - len(chunk)
        return b"".join(chunks)

    def __del__(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Member(Found):
    """An image that lies at ``start`` in a file."""

    file: OpenFile
    start: int

    def read(self) -> bytes:
        """See ``Found``."""
        data = self.file.read(self.start, self.size)
        if len(data) < self.size:
            raise ImageError(f"is cut off after {len(data)} of {self.size} bytes")
        return data


def in_tar(container: Found, file: BinaryIO, on_failure: Callable[[Failure], None]) -> Iterator[Member]:
    """The images in a tar, in its order: the members with the suffix of an image that are not hidden.

    Args:
        container: the tar.
        file: the same, open; may be closed when the walk is over.
        on_failure: told of members that are no plain files, or too long, and where the tar is damaged.
    """
    opened = OpenFile(file)
    count = 0
    try:
        with tarfile.open(fileobj=_Guarded(opened), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members = []  # or they would all stay in memory
                count += 1
                name = member.name.rpartition("/")[2]
                if os.path.splitext(name)[1].lower() not in SUFFIXES or name.startswith("."):
                    continue
                path = f"{container.path}#{_text(member.name)}"
                if not member.isreg() or member.issparse():
                    on_failure(Failure(path, "is a link, a device or a sparse file in the tar, expected a plain file"))
                elif not 0 <= member.size <= MAX_BYTES:
                    on_failure(Failure(path, f"has {member.size} bytes, at most {MAX_BYTES} are read"))
                else:
                    yield Member(path, member.size, _nanoseconds(member.mtime), opened, member.offset_data)
    except (tarfile.TarError, ImageError, ValueError, OverflowError, RecursionError) as error:
        # tarfile calls itself for each long name, or extended header, that stands before another one.
        reason = "headers of headers" if isinstance(error, RecursionError) else error
        on_failure(Failure(container.path, f"is not an uncompressed tar, or damaged after {count} members: {reason}"))


class _Guarded:
    """What tarfile reads headers from: never much at once, never backwards, so that no tar fills memory or loops."""

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
        # tarfile looks at the byte before the next header, to see whether the last member is whole.
        if position + 1 < self._furthest:
            raise ImageError("its headers lead backwards")
        self._position = position
        self._furthest = max(self._furthest, position)
        return position

    def tell(self) -> int:
        return self._position


def in_table(container: Found, file: BinaryIO, on_failure: Callable[[Failure], None]) -> Iterator[Member]:
    """The images in a Parquet table, one a row.

    They are in a binary column (img2dataset: ``jpg``), or in a struct's ``bytes`` (Hugging Face: ``image``); of several
    columns the first of ``image``, ``jpg``, ``jpeg``, ``png``, ``webp``, ``img`` and ``image``, or the only one.

    Args:
        container: the table.
        file: the same, open.
        on_failure: told of empty cells, and where the table is damaged or has no images.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    pa = arrow()
    row = 0
    try:
        table = pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        column = _image_column(pa, table.schema_arrow)
        together = rows_at_once(table.metadata, {column: 1}, _ROWS)
        for batch in table.iter_batches(batch_size=together, columns=[column]):
            values = batch.column(column).to_pylist()
            images = [value.get("bytes") if isinstance(value, dict) else value for value in values]
            for place, held in enumerate(_spooled(container, row, images)):
                if held is None:
                    on_failure(Failure(f"{container.path}#{row + place}", f"has no bytes in the column {column!r}"))
                elif held.size > MAX_BYTES:
                    on_failure(Failure(held.path, f"has {held.size} bytes, at most {MAX_BYTES} are read"))
                else:
                    yield held
            row += len(images)
    except (pa.ArrowException, OSError, ValueError) as error:  # ImageError is one, too
        reason = " ".join(str(error).split())
        on_failure(Failure(container.path, reason if isinstance(error, ImageError) else f"is damaged: {reason}"))


def _image_column(pa: Any, schema: Any) -> str:
    """Which column holds the images."""

    def is_binary(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    possible = [
        field.name
        for field in schema
        if is_binary(field.type)
        or (pa.types.is_struct(field.type) and any(f.name == "bytes" and is_binary(f.type) for f in field.type))
    ]
    for name in _IMAGE_COLUMNS:
        if name in possible:
            return name
    if len(possible) == 1:
        return str(possible[0])
    raise ImageError(
        f"has {'several binary columns' if possible else 'no column of images'} ({listed(schema.names)}): "
        f"expected one of the name {', '.join(_IMAGE_COLUMNS)}, binary or a struct with 'bytes'"
    )


def _spooled(container: Found, first: int, images: list[bytes | None]) -> list[Member | None]:
    """Images put into a file without a name, from where the threads that decode read them one by one."""
    with tempfile.TemporaryFile() as spool:
        opened, start, members = OpenFile(spool), 0, list[Member | None]()
        for place, data in enumerate(images):
            if data is None:
                members.append(None)
                continue
            path = f"{container.path}#{first + place}"
            members.append(Member(path, len(data), container.mtime_ns, opened, start))
            spool.write(data)
            start += len(data)
        spool.flush()
    return members


def _text(name: str) -> str:
    """The name of a member as text that is valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(os.fsencode(name))
    return name


def _nanoseconds(seconds: float) -> int:
    """A member's time; 0 for what is no time."""
    return int(seconds * 1e9) if 0 <= seconds < 2**33 else 0


_LIST = ".txt"
_CONTAINERS = {".tar": in_tar, ".parquet": in_table}
_TAKEN = frozenset(SUFFIXES | set(_CONTAINERS))
_LONGEST = 16_384
"""Bytes of a path that fit into its column."""


@dataclass(frozen=True, slots=True)
class Remote(Found):
    """An image on the web or in a bucket; its time is not asked for and 0.

    Attributes:
        allow_private: it may be at an address that is not public.
    """

    allow_private: bool = False

    def read(self) -> bytes:
        """See ``Found``."""
        return fetch(self.path, allow_private=self.allow_private)


def images(
    sources: Sequence[str | os.PathLike[str]], shard: Shard, on_failure: Callable[[Failure], None],
    *, allow_private: bool = False,
) -> Iterator[Found]:  # fmt: skip
    """Find the images of one shard.

    First the folders and files of this machine, as ``discover`` orders them, then lists and URLs in the order given. In
    a folder, a table beside a tar of its name (as img2dataset writes them) tells about the tar and is passed over.

    Args:
        sources: folders, ``.txt`` files with a path or URL a line (paths from the list's folder), tars, Parquet tables,
            images; or URLs of these, of folders in buckets only.
        shard: which share of the files.
        on_failure: told of what cannot be looked at or opened; the walk goes on.
        allow_private: URLs may lead to private, loopback and link-local addresses.

    Raises:
        ImageError: a source does not exist or cannot be read. Raised before the first image.
        MissingPackageError: a source needs a package that is not installed.
    """
    urls = [str(source) for source in sources if is_url(str(source))]
    paths = [source for source in sources if not is_url(str(source))]
    lists = [path for path in paths if _suffix(os.fspath(path)) == _LIST and not os.path.isdir(path)]
    for path in lists:
        if not os.path.isfile(path):
            raise ImageError(f"{os.fspath(path)!r} does not exist: expected a text file with a path or URL a line")
    for url in urls:
        try:
            check_url(url)
        except ImageError as error:
            raise ImageError(f"'{without_query(url)}' {error}") from error
    walked = discover([path for path in paths if path not in lists], on_failure, _TAKEN)

    named = {path_text(path) for path in paths}

    def files() -> Iterator[Found]:
        yield from (file for file in walked if file.path in named or not _tells_of_a_tar(file))
        for path in lists:
            with open_plain(path) as lines:
                yield from _listed(lines, os.path.abspath(path), on_failure, allow_private=allow_private)
        for url in urls:
            yield from _named_by(url, on_failure, allow_private=allow_private)

    return _shared(files(), shard, on_failure)


def _shared(files: Iterator[Found], shard: Shard, on_failure: Callable[[Failure], None]) -> Iterator[Found]:
    """The images that the files of one shard are or hold."""
    for file in files:
        if len(file.path.encode()) > _LONGEST:
            on_failure(Failure(file.path[:100] + "…", f"has a path longer than {_LONGEST} bytes"))
        elif not shard.holds(file.path):
            pass
        elif (read := _CONTAINERS.get(_suffix(file.path))) is None:
            yield file
        else:
            try:
                with _whole(file) as content:
                    for image in read(file, content, on_failure):
                        if len(image.path.encode()) > _LONGEST:
                            on_failure(Failure(image.path[:100] + "…", f"has a path longer than {_LONGEST} bytes"))
                        else:
                            yield image
            except MissingPackageError:
                raise
            except (ImageError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                on_failure(Failure(file.path, reason))


def _tells_of_a_tar(file: Found) -> bool:
    return _suffix(file.path) == ".parquet" and text_path(file.path).with_suffix(".tar").exists()


def _whole(file: Found) -> AbstractContextManager[BinaryIO]:
    """A tar or table, open on this machine."""
    return _fetched(file) if isinstance(file, Remote) else open_plain(text_path(file.path))


@contextmanager
def _fetched(file: Remote) -> Iterator[BinaryIO]:
    """A remote file copied into one without a name, which is gone when nobody reads from it any more."""
    with tempfile.TemporaryFile() as copy:
        download(file.path, copy, allow_private=file.allow_private)
        copy.flush()
        copy.seek(0)
        yield copy


def _named_by(url: str, on_failure: Callable[[Failure], None], *, allow_private: bool) -> Iterator[Found]:
    """The files that a URL names: itself, those it lists, or those in the bucket's folder."""
    suffix = _suffix(url)
    if suffix == _LIST:
        try:
            # Whole before the first line is used: images are encoded between two lines, which may take days.
            with _fetched(Remote(url, -1, 0, allow_private)) as lines:
                yield from _listed(lines, url, on_failure, allow_private=allow_private)
        except ImageError as error:
            on_failure(Failure(url, str(error)))
    elif suffix in _TAKEN or is_web(url):
        yield Remote(url, -1, 0, allow_private)
    else:
        for name, size in listing(url):
            if _suffix(name) in _TAKEN:
                yield Remote(name, size, 0)


def _listed(
    lines: BinaryIO, origin: str, on_failure: Callable[[Failure], None], *, allow_private: bool
) -> Iterator[Found]:
    """The files that a list names, one a line; empty lines are passed over."""
    number = 0
    while line := lines.readline(_LONGEST + 2):
        number += 1
        place = f"{path_text(origin) if not is_url(origin) else without_query(origin)}, line {number}"
        if not line.endswith(b"\n") and len(line) > _LONGEST:
            on_failure(Failure(place, f"is longer than {_LONGEST} bytes"))
            while line and not line.endswith(b"\n"):
                line = lines.readline(1 << 20)
            continue
        name = line.rstrip(b"\r\n")
        if not name.strip():
            continue
        text = os.fsdecode(name)
        try:
            if is_url(text):
                text.encode()
                check_url(text)
                if "@" in urlsplit(text).netloc:
                    # The keys of the environment would go to the account that the list names.
                    raise ImageError("names an account, which a list may not: give the URL to mgm encode itself")
                if is_web(origin) and not is_web(text):
                    raise ImageError("is in a bucket, which a list on the web may not name: your keys would open it")
                yield Remote(text, -1, 0, allow_private)
            elif is_url(origin):
                on_failure(Failure(place, f"{text!r} is not a URL, which lists on the web or in a bucket must hold"))
            else:
                path = os.path.join(os.path.dirname(origin), text)
                status = os.stat(path)
                yield Found(path_text(path), status.st_size, status.st_mtime_ns)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            name_shown = without_query(text)
            on_failure(Failure(f"{place}: {name_shown if name_shown.isprintable() else ascii(name_shown)}", reason))


def _suffix(name: str) -> str:
    """The lower-cased ending of a path, or of a URL without its query."""
    path = urlsplit(name).path if is_url(name) else name
    return os.path.splitext(path)[1].lower()
