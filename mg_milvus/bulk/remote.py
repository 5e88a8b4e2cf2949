"""Files that are not on this machine: of web servers, and in buckets through fsspec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mg_milvus.bulk.web import Limits, check_web_url, content, reason_of
from mg_milvus.errors import MissingPackageError, PictureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

BUCKETS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that fsspec needs for it."""
_WEB = ("http", "https")
_PICTURE_SECONDS = 600.0
_WHOLE_SECONDS = 6 * 3600.0
"""Seconds that a picture, and a tar, table or list, may take on its way."""
_WHOLE_BYTES = 1 << 36
"""Longest tar, table or list that is fetched: 64 GiB."""
MAX_BYTES = 1 << 28
"""Longest picture file that is taken from the web, a bucket, a tar or a table: 256 MiB."""


def is_web(url: str) -> bool:
    """Whether a path is the URL of a file on a web server."""
    return "://" in url and urlsplit(url).scheme.lower() in _WEB


def check_url(url: str) -> None:
    """Refuse a URL that cannot be read, or that would give a secret away.

    Raises:
        PictureError: another protocol, characters that steer, or a password in it.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise PictureError(f"is no URL: {reason_of(error)}") from error
    scheme = parts.scheme.lower()
    if scheme not in {*BUCKETS, *_WEB} or "::" in url.partition("?")[0].rpartition("]")[2]:
        raise PictureError(f"has the protocol {scheme}://, expected one of {', '.join(sorted({*BUCKETS, *_WEB}))}")
    if scheme in _WEB:
        check_web_url(url)
    elif not url.isprintable():
        raise PictureError("holds control characters, which no URL has")
    elif ":" in parts.netloc.rpartition("@")[0]:
        raise PictureError("holds a password, which would be kept with every picture: take it out of the URL")


def without_query(path: str) -> str:
    """A path as messages show it; of a URL without its query, which may be a signature that opens it for everybody."""
    url, sign, member = path.partition("#")
    place, mark, _ = url.partition("?")
    return f"{place}?…{sign}{member}" if mark and "://" in place else path


def bucket(url: str) -> tuple[Any, str]:
    """The fsspec file system of a bucket's URL, and the path in it.

    Raises:
        PictureError: not the URL of a bucket.
        MissingPackageError: the package of its protocol is not installed.
    """
    protocol = urlsplit(url).scheme.lower()
    if protocol not in BUCKETS:
        raise PictureError(
            f"'{without_query(url)}' is not a folder: expected one of {', '.join(f'{name}://' for name in BUCKETS)}"
        )
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        raise MissingPackageError(
            f"{protocol}:// needs the package {BUCKETS[protocol]}: pip install fsspec {BUCKETS[protocol]}, "
            "or for s3:// and gs:// pip install 'mg-milvus[remote]'"
        ) from error
    return system, str(path)


def fetch(url: str, *, allow_private: bool = False) -> bytes:
    """The content of a remote picture file.

    Raises:
        PictureError: it cannot be fetched, is too long, or is at an address that is not public.
    """
    return b"".join(_content(url, Limits(MAX_BYTES, _PICTURE_SECONDS, allow_private)))


def download(url: str, target: BinaryIO, *, allow_private: bool = False) -> None:
    """Copy a tar, table or list to an open file; see ``fetch``."""
    for piece in _content(url, Limits(_WHOLE_BYTES, _WHOLE_SECONDS, allow_private)):
        target.write(piece)


def _content(url: str, limits: Limits) -> Iterator[bytes]:
    check_url(url)
    return content(url, limits) if is_web(url) else _in_bucket(url, limits)


def _in_bucket(url: str, limits: Limits) -> Iterator[bytes]:
    size = 0
    try:
        system, path = bucket(url)
        with system.open(path, "rb") as file:
            while piece := file.read(1 << 20):
                size += len(piece)
                if size > limits.bytes:
                    raise PictureError(f"is longer than {limits.bytes >> 20} MiB")
                yield piece
    except (PictureError, MissingPackageError):
        raise
    except Exception as error:  # each protocol's library has exceptions of its own
        raise PictureError(f"cannot be fetched: {reason_of(error)}") from error


def listing(url: str) -> Iterator[tuple[str, int]]:
    """The files under a bucket's folder as (URL, size), folder by folder in the order of their names.

    Hidden entries (``.name``) are passed over. Memory grows with the files of one folder.

    Raises:
        PictureError: it cannot be listed.
    """
    system, top = bucket(url)
    folders = [top.rstrip("/")]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(system.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
        except Exception as error:  # each protocol's library has exceptions of its own
            raise PictureError(f"'{system.unstrip_protocol(folder)}' cannot be listed: {reason_of(error)}") from error
        inside = [entry for entry in entries if not entry["name"].rstrip("/").rpartition("/")[2].startswith(".")]
        folders += [e["name"] for e in reversed(inside) if e["type"] == "directory" and e["name"].rstrip("/") != folder]
        yield from ((system.unstrip_protocol(e["name"]), int(e["size"] or 0)) for e in inside if e["type"] == "file")
