"""The images of a shard: in folders, lists and buckets, in tars (WebDataset) and zips, and in Parquet tables.

An image in ``shots.tar`` has the path ``/data/shots.tar#cat.jpg``, one in a table ``/data/shots.parquet#17``, with rows
from 0. Nothing is unpacked, and at most one image per thread is in memory.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mg_milvus.bulk.archives import Member, OpenFile, in_tar, in_zip
from mg_milvus.bulk.dataset import arrow
from mg_milvus.bulk.remote import MAX_BYTES, check_url, download, fetch, is_web, listing, without_query
from mg_milvus.errors import ImageError, MissingPackageError
from mg_milvus.files import open_plain
from mg_milvus.images.discover import SUFFIXES, Found, Rules, Tally, discover, is_url, path_text, text_path
from mg_milvus.ingest.metadata import listed, rows_at_once
from mg_milvus.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from mg_milvus.bulk.dataset import Shard


_ROWS = 16
"""Rows of a table in memory at a time."""
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img")


def in_table(
    container: Found, file: BinaryIO, on_failure: Callable[[Failure], None], _passed: Tally
) -> Iterator[Member]:
    """The images in a Parquet table, one a row.

    The column is binary (img2dataset: ``jpg``), or a struct with ``bytes`` (Hugging Face: ``image``): the first of
    ``image``, ``jpg``, ``jpeg``, ``png``, ``webp`` and ``img``, or else the only one.

    Args:
        container: the table.
        file: the same, open.
        on_failure: called with empty and too long cells, and when the table is damaged or has no images.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    pa = arrow()
    row = 0
    try:
        table = pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        column = _image_column(pa, table.schema_arrow)
        batch_rows = rows_at_once(table.metadata, {column: 1}, _ROWS)
        for batch in table.iter_batches(batch_size=batch_rows, columns=[column]):
            values = batch.column(column).to_pylist()
            images = [value.get("bytes") if isinstance(value, dict) else value for value in values]
            for place, member in enumerate(_spooled(container, row, images)):
                if member is None:
                    on_failure(Failure(f"{container.path}#{row + place}", f"has no bytes in the column {column!r}"))
                elif member.size > MAX_BYTES:
                    on_failure(Failure(member.path, f"has {member.size} bytes, at most {MAX_BYTES} are read"))
                else:
                    yield member
            row += len(images)
    except (pa.ArrowException, OSError, ValueError) as error:  # ImageError is one, too
        reason = " ".join(str(error).split())
        on_failure(Failure(container.path, reason if isinstance(error, ImageError) else f"is damaged: {reason}"))


def _image_column(pa: Any, schema: Any) -> str:
    """Name of the column of images."""

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
        f"expected one named {', '.join(_IMAGE_COLUMNS)}, binary or a struct with 'bytes'"
    )


def _spooled(container: Found, first: int, images: list[bytes | None]) -> list[Member | None]:
    """Write images to an unnamed file, from which the decoding threads read them one by one; None for an empty cell."""
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


_LIST = ".txt"
_CONTAINERS = {".tar": in_tar, ".zip": in_zip, ".parquet": in_table}
_SUFFIXES = frozenset(SUFFIXES | set(_CONTAINERS))
_MAX_PATH = 16_384
"""Bytes of the longest path that fits into its column."""


@dataclass(frozen=True, slots=True)
class Remote(Found):
    """An image on the web or in a bucket; its modification time is not requested, and 0.

    Attributes:
        allow_private: it may be at an address that is not public.
    """

    allow_private: bool = False

    def read(self) -> bytes:
        """See ``Found``."""
        return fetch(self.path, allow_private=self.allow_private)


def files_of_shard(
    sources: Sequence[str | os.PathLike[str]], shard: Shard, on_failure: Callable[[Failure], None],
    *, allow_private: bool = False, passed: Tally | None = None,
) -> Iterator[Found]:  # fmt: skip
    """Find the files of one shard: images, and tars, zips and tables, which ``images_in`` looks into.

    Images are known by their content, or by the ending of their name where the content is not at hand.

    Folders and files of this machine come first, as ``discover`` orders them, then lists and URLs in the order given.
    In a folder, a table with the name of a tar beside it (as img2dataset writes them) describes the tar and is skipped.

    Args:
        sources: folders, ``.txt`` files with one path (relative to the list's folder) or URL per line, tars, zips,
            Parquet tables, images; or URLs of these, of folders in buckets only.
        shard: which share of the files.
        on_failure: called with each file that cannot be accessed; the walk continues.
        allow_private: URLs may lead to private, loopback and link-local addresses.
        passed: counts what is passed over in folders, buckets, and the archives of the shard.

    Raises:
        ImageError: a source does not exist or cannot be read. Raised before the first image.
        MissingPackageError: a source needs a package that is not installed.
    """
    urls = [str(source) for source in sources if is_url(str(source))]
    paths = [source for source in sources if not is_url(str(source))]
    lists = [path for path in paths if _suffix(os.fspath(path)) == _LIST and not os.path.isdir(path)]
    for path in lists:
        if not os.path.isfile(path):
            raise ImageError(f"{os.fspath(path)!r} does not exist: expected a text file with one path or URL per line")
    for url in urls:
        try:
            check_url(url)
        except ImageError as error:
            raise ImageError(f"'{without_query(url)}' {error}") from error
    passed = Tally() if passed is None else passed
    local = discover([path for path in paths if path not in lists], on_failure, Rules(_SUFFIXES), passed)
    sources_themselves = {path_text(path) for path in paths}

    def files() -> Iterator[Found]:
        for file in local:
            if file.path in sources_themselves or not _describes_tar(file):
                yield file
            else:
                passed.add("tables that describe a tar")
        for path in lists:
            with open_plain(path) as lines:
                yield from _read_list(lines, os.path.abspath(path), on_failure, allow_private=allow_private)
        for url in urls:
            yield from _expand_url(url, on_failure, passed, allow_private=allow_private)

    return (file for file in files() if _fits(file, on_failure) and shard.holds(file.path))


def is_container(file: Found) -> bool:
    """Whether a file is a tar, a zip or a table of images."""
    return _suffix(file.path) in _CONTAINERS


def images_in(files: Iterable[Found], on_failure: Callable[[Failure], None], passed: Tally) -> Iterator[Found]:
    """The images among files, and inside of the tars, zips and tables among them, in order.

    Args:
        files: of ``files_of_shard``.
        on_failure: called with what cannot be read.
        passed: counts what is passed over inside of files.

    Raises:
        MissingPackageError: a file needs a package that is not installed.
    """
    for file in files:
        if not is_container(file):
            yield file
            continue
        try:
            with _open_container(file) as content:
                members = _CONTAINERS[_suffix(file.path)](file, content, on_failure, passed)
                yield from (member for member in members if _fits(member, on_failure))
        except MissingPackageError:
            raise
        except (ImageError, OSError) as error:
            on_failure(Failure(file.path, _reason(error)))


def _fits(image: Found, on_failure: Callable[[Failure], None]) -> bool:
    if len(image.path.encode()) <= _MAX_PATH:
        return True
    on_failure(Failure(image.path[:100] + "…", f"has a path longer than {_MAX_PATH} bytes"))
    return False


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _describes_tar(file: Found) -> bool:
    return _suffix(file.path) == ".parquet" and text_path(file.path).with_suffix(".tar").exists()


def _open_container(file: Found) -> AbstractContextManager[BinaryIO]:
    """Open a tar, zip or table, after a download if it is remote."""
    return _downloaded(file) if isinstance(file, Remote) else open_plain(text_path(file.path))


@contextmanager
def _downloaded(file: Remote) -> Iterator[BinaryIO]:
    """Copy a remote file to an unnamed local file, which ends with its last reference."""
    with tempfile.TemporaryFile() as copy:
        download(file.path, copy, allow_private=file.allow_private)
        copy.flush()
        copy.seek(0)
        yield copy


def _expand_url(
    url: str, on_failure: Callable[[Failure], None], passed: Tally, *, allow_private: bool
) -> Iterator[Found]:
    """The files of a URL: itself, those of a list, or those of a folder in a bucket."""
    suffix = _suffix(url)
    if suffix == _LIST:
        try:
            # Downloaded first: images are encoded between two lines, which may take days.
            with _downloaded(Remote(url, -1, 0, allow_private)) as lines:
                yield from _read_list(lines, url, on_failure, allow_private=allow_private)
        except ImageError as error:
            on_failure(Failure(url, str(error)))
    elif suffix in _SUFFIXES or is_web(url):
        yield Remote(url, -1, 0, allow_private)
    else:
        for name, size in listing(url):
            if (ending := _suffix(name)) in _SUFFIXES:
                yield Remote(name, size, 0)
            else:
                passed.add(ending or "files without an ending")


def _read_list(
    lines: BinaryIO, origin: str, on_failure: Callable[[Failure], None], *, allow_private: bool
) -> Iterator[Found]:
    """The files of a list, one per line; empty lines are skipped."""
    number = 0
    while line := lines.readline(_MAX_PATH + 2):
        number += 1
        place = f"{path_text(origin) if not is_url(origin) else without_query(origin)}, line {number}"
        if not line.endswith(b"\n") and len(line) > _MAX_PATH:
            on_failure(Failure(place, f"is longer than {_MAX_PATH} bytes"))
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
                    # The credentials of the environment would be sent to that account.
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
            public = without_query(text)
            on_failure(Failure(f"{place}: {public if public.isprintable() else ascii(public)}", _reason(error)))


def _suffix(name: str) -> str:
    """The lower-cased ending of a path, or of a URL without its query."""
    path = urlsplit(name).path if is_url(name) else name
    return os.path.splitext(path)[1].lower()
