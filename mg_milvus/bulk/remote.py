"""Files that are not on this machine: http(s) with the standard library, buckets through fsspec."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mg_milvus.errors import MissingPackageError, PictureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

BUCKETS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that fsspec needs for it."""
_WEB = ("http", "https")
_PATIENCE = 60.0
"""Seconds that a web server may keep silent."""
MAX_BYTES = 1 << 28
"""Longest picture file that is taken from the web, a bucket, a tar or a table: 256 MiB."""


def check_url(url: str) -> None:
    """Refuse a URL that cannot be read, or that would give a secret away.

    Raises:
        PictureError: another protocol, or a password in it.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() not in {*BUCKETS, *_WEB} or "::" in url:
        raise PictureError(
            f"has the protocol {parts.scheme}://, expected one of {', '.join(sorted({*BUCKETS, *_WEB}))}"
        )
    if "@" in parts.netloc and parts.scheme.lower() in _WEB:
        raise PictureError("holds a password, which would be kept with every picture: take it out of the URL")


def bucket(url: str) -> tuple[Any, str]:
    """The fsspec file system of a bucket's URL, and the path in it.

    Raises:
        PictureError: not the URL of a bucket.
        MissingPackageError: the package of its protocol is not installed.
    """
    protocol = urlsplit(url).scheme.lower()
    if protocol not in BUCKETS:
        raise PictureError(f"'{url}' is not a folder: expected one of {', '.join(f'{name}://' for name in BUCKETS)}")
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        raise MissingPackageError(
            f"{protocol}:// needs the package {BUCKETS[protocol]}: pip install fsspec {BUCKETS[protocol]}, "
            "or for s3:// and gs:// pip install 'mg-milvus[remote]'"
        ) from error
    return system, str(path)


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """A remote file, open for reading from its begin to its end.

    Raises:
        PictureError: it cannot be read; also raised from inside the block for what reading raises.
    """
    check_url(url)
    try:
        with _open(url) as file:
            yield file
    except (PictureError, MissingPackageError):
        raise
    except Exception as error:  # each protocol's library has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"cannot be fetched: {reason}") from error


def _open(url: str) -> Any:
    if urlsplit(url).scheme.lower() in _WEB:
        return urlopen(Request(url, headers={"User-Agent": "mg-milvus"}), timeout=_PATIENCE)  # noqa: S310  (checked)
    system, path = bucket(url)
    return system.open(path, "rb")


def fetch(url: str) -> bytes:
    """The content of a remote picture file.

    Raises:
        PictureError: it cannot be fetched, or is too long.
    """
    with opened(url) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise PictureError(f"is longer than {MAX_BYTES >> 20} MiB")
    return data


def download(url: str, target: BinaryIO) -> None:
    """Copy a remote file, of any length, to an open one."""
    with opened(url) as file:
        shutil.copyfileobj(file, target, 1 << 20)


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
            raise PictureError(f"'{system.unstrip_protocol(folder)}' cannot be listed: {error}") from error
        inside = [entry for entry in entries if not entry["name"].rstrip("/").rpartition("/")[2].startswith(".")]
        folders += [e["name"] for e in reversed(inside) if e["type"] == "directory" and e["name"].rstrip("/") != folder]
        yield from ((system.unstrip_protocol(e["name"]), int(e["size"] or 0)) for e in inside if e["type"] == "file")
