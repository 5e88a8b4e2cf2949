"""What is to be encoded: folders, lists, tars, tables, here, on the web or in a bucket -> the pictures of one shard.

What is shared out among the shards is files: a picture file, or a tar or table with all that is in it. So no machine
reads a byte of what is another's, beyond names.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mg_milvus.bulk.containers import in_table, in_tar
from mg_milvus.bulk.remote import check_url, download, fetch, is_web, listing, without_query
from mg_milvus.errors import MissingPackageError, PictureError
from mg_milvus.hits import Failure
from mg_milvus.images.discover import SUFFIXES, Found, discover, is_url, path_text, text_path
from mg_milvus.plain_files import open_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from mg_milvus.bulk.folder import Shard

_LIST = ".txt"
_CONTAINERS = {".tar": in_tar, ".parquet": in_table}
_TAKEN = frozenset(SUFFIXES | set(_CONTAINERS))
_LONGEST = 16_384
"""Bytes of a path that fit into its column."""


@dataclass(frozen=True, slots=True)
class Remote(Found):
    """A picture on the web or in a bucket; its time is not asked for and 0.

    Attributes:
        allow_private: it may be at an address that is not public.
    """

    allow_private: bool = False

    def read(self) -> bytes:
        """See ``Found``."""
        return fetch(self.path, allow_private=self.allow_private)


def pictures(
    sources: Sequence[str | os.PathLike[str]], shard: Shard, on_failure: Callable[[Failure], None],
    *, allow_private: bool = False,
) -> Iterator[Found]:  # fmt: skip
    """Find the pictures of one shard.

    First the folders and files of this machine, as ``discover`` orders them, then lists and URLs in the order given. In
    a folder, a table beside a tar of its name (as img2dataset writes them) tells about the tar and is passed over.

    Args:
        sources: folders, ``.txt`` files with a path or URL a line (paths from the list's folder), tars, Parquet tables,
            pictures; or URLs of these, of folders in buckets only.
        shard: which share of the files.
        on_failure: told of what cannot be looked at or opened; the walk goes on.
        allow_private: URLs may lead to private, loopback and link-local addresses.

    Raises:
        PictureError: a source does not exist or cannot be read. Raised before the first picture.
        MissingPackageError: a source needs a package that is not installed.
    """
    urls = [str(source) for source in sources if is_url(str(source))]
    paths = [source for source in sources if not is_url(str(source))]
    lists = [path for path in paths if _suffix(os.fspath(path)) == _LIST and not os.path.isdir(path)]
    for path in lists:
        if not os.path.isfile(path):
            raise PictureError(f"{os.fspath(path)!r} does not exist: expected a text file with a path or URL a line")
    for url in urls:
        try:
            check_url(url)
        except PictureError as error:
            raise PictureError(f"'{without_query(url)}' {error}") from error
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
    """The pictures that the files of one shard are or hold."""
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
                    for picture in read(file, content, on_failure):
                        if len(picture.path.encode()) > _LONGEST:
                            on_failure(Failure(picture.path[:100] + "…", f"has a path longer than {_LONGEST} bytes"))
                        else:
                            yield picture
            except MissingPackageError:
                raise
            except (PictureError, OSError) as error:
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
            # Whole before the first line is used: pictures are encoded between two lines, which may take days.
            with _fetched(Remote(url, -1, 0, allow_private)) as lines:
                yield from _listed(lines, url, on_failure, allow_private=allow_private)
        except PictureError as error:
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
                    raise PictureError("names an account, which a list may not: give the URL to mgm encode itself")
                if is_web(origin) and not is_web(text):
                    raise PictureError("is in a bucket, which a list on the web may not name: your keys would open it")
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
