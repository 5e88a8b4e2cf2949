"""Files of web servers, for lists that strangers wrote: public addresses only, every redirect looked at, with limits.

A name is resolved once, all its addresses are checked, and one of these is connected to: the name cannot lead elsewhere
a moment later. TLS is checked against the name. Where the environment names a proxy (``http_proxy`` and so on), the
proxy connects: literal addresses are checked, and names as far as this machine can resolve them.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import re
import socket
import ssl
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from mg_milvus.errors import ImageError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO


_SILENCE = 60.0
"""Seconds that a server may keep silent."""
_REDIRECTS = 5
_CHUNK = 1 << 20
_MOVED = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: the last four bytes are an IPv4 address."""
_ROUTED = ipaddress.ip_network("2000::/3")
"""All that is given out of IPv6 for the Internet."""
_INNER = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))
"""Where clouds keep what only their machines should ask for; not every version of Python calls the first private."""
_BESIDE = 1 << 20
"""Bytes that a server may send beside twice a file's own: heads, and the marks of chunks."""
_PRINTED = "".join(map(chr, range(33, 127)))

_Address = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one file may take.

    Attributes:
        bytes: of its content.
        seconds: from the first query to the last byte, redirects included.
        allow_private: also from addresses that are not public.
    """

    bytes: int
    seconds: float
    allow_private: bool = False


def check_web_url(url: str) -> SplitResult:
    """The parts of an http(s) URL.

    Raises:
        ImageError: it holds characters, a password, a host or a port that none should.
    """
    if not url.isprintable():
        raise ImageError("holds control characters, which no URL has")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ImageError("holds a password, which would be kept with every image: take it out of the URL")
    try:
        host, _ = parts.hostname or "", parts.port
        if "[" in parts.netloc:
            ipaddress.IPv6Address(host.partition("%")[0])
            return parts
        plain = host.encode("idna").decode()
    except ValueError as error:
        raise ImageError(f"has no host and port that can be used: {' '.join(str(error).split())}") from error
    if _HOST.fullmatch(plain) is None:
        raise ImageError("has no host that can be used")
    if _NUMBER.fullmatch(plain.rstrip(".").rpartition(".")[2]):
        # What begins with 0 or has fewer parts is read by some as octal, hexadecimal or short, by others otherwise.
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise ImageError("has a host of numbers that is no IP address as it is usually written") from error
    return parts


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet, and no other's in disguise."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour
        if inside is None and ip in _TRANSLATED:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(str(inside))
        if ip not in _ROUTED or ip.teredo is not None:
            return False
    if ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or any(ip in net for net in _INNER):
        return False
    return ip.is_global


def resolve(host: str, port: int) -> list[_Address]:
    """The addresses of a name, as ``socket.getaddrinfo`` gives them."""
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def content(url: str, limits: Limits) -> Iterator[bytes]:
    """The content of a file, in pieces.

    Raises:
        ImageError: it cannot be fetched within the limits, or is where it may not be.
    """
    end = time.monotonic() + limits.seconds
    try:
        for _ in range(_REDIRECTS + 1):
            with _response(check_web_url(url), end, limits) as response:
                if response.status not in _MOVED:
                    yield from _body(response, limits)
                    return
                url = _moved(url, response)
    except TimeoutError as error:
        what = f"{limits.seconds:g} seconds are over" if end - time.monotonic() < 0.1 else "the server keeps silent"
        raise ImageError(f"cannot be fetched: {what}") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"cannot be fetched: {reason_of(error)}") from error
    raise ImageError(f"cannot be fetched: it is redirected more than {_REDIRECTS} times")


def reason_of(error: Exception) -> str:
    """What an exception says, on one line, without the queries of URLs: signed ones are secrets."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return re.sub(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)


def _moved(url: str, response: HTTPResponse) -> str:
    """Where a redirect leads."""
    target = urljoin(url, response.headers.get("Location", "").strip())
    before, after = urlsplit(url).scheme.lower(), urlsplit(target).scheme.lower()
    if after not in _PORTS or (before, after) == ("https", "http"):
        raise ImageError(f"cannot be fetched: it is redirected from {before}:// to {after}://, which is not followed")
    return target


def _body(response: HTTPResponse, limits: Limits) -> Iterator[bytes]:
    if response.status != HTTPStatus.OK:
        raise ImageError(f"cannot be fetched: HTTP Error {response.status}: {' '.join(response.reason.split())[:100]}")
    for name, usual in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        for given in response.headers.get_all(name, []):
            if given.strip().lower() != usual:
                raise ImageError(f"cannot be fetched: its {name} is {given.strip()[:50]!r}, expected {usual} or none")
    too_long = f"is longer than {limits.bytes >> 20} MiB"
    if (response.length or 0) > limits.bytes:
        raise ImageError(too_long)
    size = 0
    while piece := response.read1(_CHUNK):
        size += len(piece)
        if size > limits.bytes:
            raise ImageError(too_long)
        yield piece
    if response.length:
        raise ImageError(f"cannot be fetched: it is cut off after {size} of {size + response.length} bytes")


@contextmanager
def _response(parts: SplitResult, end: float, limits: Limits) -> Iterator[HTTPResponse]:
    """What a server answers, its content still unread."""
    scheme = parts.scheme.lower()
    host = parts.hostname or ""
    port = parts.port or _PORTS[scheme]
    proxy = None if proxy_bypass(f"{host}:{port}") else getproxies().get(scheme)
    addresses = _addresses(host, port, limits, proxied=proxy is not None)
    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_PRINTED)
    headers = {"User-Agent": "mg-milvus", "Accept-Encoding": "identity", "Connection": "close"}
    connection = _Connection(host if host.isascii() else host.encode("idna").decode(), port, end, limits.bytes)
    try:
        if proxy is None:
            plain = connection.reach(addresses)
        else:
            where, log_in = _proxy(proxy)
            if scheme == "https":
                connection.set_tunnel(connection.host, port, log_in)
            plain = connection.reach(resolve(*where))
            if scheme == "https":
                connection.through_proxy()
            else:
                target = f"http://{_bracketed(connection.host)}:{port}{target}"
                headers |= log_in
        if scheme == "https":
            connection.encrypt(plain)
        if port == _PORTS[scheme]:
            headers["Host"] = _bracketed(connection.host)
        connection.request("GET", target, headers=headers)
        yield connection.getresponse()
    finally:
        connection.hang_up()


def _addresses(host: str, port: int, limits: Limits, *, proxied: bool) -> list[_Address]:
    """The addresses of a host, all of them checked; none where a proxy knows them and this machine does not.

    Raises:
        ImageError: one is not public.
    """
    try:
        found = resolve(host, port)
    except OSError:
        if proxied:
            return []
        raise
    for address in () if limits.allow_private else found:
        if not is_public(address[4][0]):
            raise ImageError(
                f"leads to {address[4][0]}, which is no public address: --allow-private (allow_private=True) takes it, "
                "if the list is yours"
            )
    return found


def _proxy(uri: str) -> tuple[tuple[str, int], dict[str, str]]:
    """Host and port of a proxy, and the header that signs in to it."""
    parts = urlsplit(uri if "://" in uri else f"http://{uri}")
    if parts.scheme.lower() != "http" or not parts.hostname:
        raise ImageError(f"cannot be fetched: the environment's proxy is {parts.scheme}://, expected http://")
    held = unquote(parts.netloc.rpartition("@")[0])
    log_in = {"Proxy-Authorization": f"Basic {base64.b64encode(held.encode()).decode()}"} if held else {}
    return (parts.hostname, parts.port or 80), log_in


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Connection(HTTPConnection):
    """A connection to an address that was checked; it ends when its time is over, however slowly bytes come."""

    def __init__(self, host: str, port: int, end: float, most: int) -> None:
        super().__init__(host, port)
        self._end, self._most = end, 2 * most + _BESIDE
        self._plain: socket.socket | None = None

    def connect(self) -> None:
        """Never called: http.client would resolve the name again."""
        raise ImageError("cannot be fetched: the server closed the connection")

    def reach(self, addresses: list[_Address]) -> socket.socket:
        """Connect to the first address that answers.

        Raises:
            OSError: none does.
        """
        trouble = OSError("its name has no address")
        for family, kind, protocol, _, where in addresses:
            plain = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(_left(self._end))
                plain.connect(where)
            except OSError as error:
                plain.close()
                trouble = error
            else:
                self._use(plain)
                return plain
        raise trouble

    def through_proxy(self) -> None:
        """Ask the proxy for a way to the server."""
        self._tunnel()  # type: ignore[attr-defined]

    def encrypt(self, plain: socket.socket) -> None:
        """TLS, checked against the name and not the address."""
        plain.settimeout(_left(self._end))
        self._use(ssl.create_default_context().wrap_socket(plain, server_hostname=self.host))

    def hang_up(self) -> None:
        """Close it, whatever reads from it."""
        if self._plain is not None:
            self._plain.close()

    def _use(self, plain: socket.socket) -> None:
        self._plain = plain
        self.sock: Any = _Timed(plain, self._end, self._most)


class _Timed:
    """What http.client uses of a socket; each step may take what is left of the time."""

    def __init__(self, plain: socket.socket, end: float, most: int) -> None:
        self._plain, self._end, self._most = plain, end, most

    def sendall(self, data: bytes) -> None:
        self._plain.settimeout(_left(self._end))
        self._plain.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Steps(self._plain, self._end, self._most))

    def close(self) -> None:
        """Left to ``hang_up``: the answer is still to be read."""


class _Steps(io.RawIOBase):
    """Reads as much as there is, as long as there is time; not without end what is no content, such as trailers."""

    def __init__(self, plain: socket.socket, end: float, most: int) -> None:
        self._plain, self._end, self._left = plain, end, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._plain.settimeout(_left(self._end))
        count = self._plain.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise ImageError("cannot be fetched: the server sends far more than the file")
        return count


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, _SILENCE)


BUCKETS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that fsspec needs for it."""
_WEB = ("http", "https")
_IMAGE_SECONDS = 600.0
_WHOLE_SECONDS = 6 * 3600.0
"""Seconds that an image, and a tar, table or list, may take on its way."""
_WHOLE_BYTES = 1 << 36
"""Longest tar, table or list that is fetched: 64 GiB."""
MAX_BYTES = 1 << 28
"""Longest image file that is taken from the web, a bucket, a tar or a table: 256 MiB."""


def is_web(url: str) -> bool:
    """Whether a path is the URL of a file on a web server."""
    return "://" in url and urlsplit(url).scheme.lower() in _WEB


def check_url(url: str) -> None:
    """Refuse a URL that cannot be read, or that would give a secret away.

    Raises:
        ImageError: another protocol, characters that steer, or a password in it.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ImageError(f"is no URL: {reason_of(error)}") from error
    scheme = parts.scheme.lower()
    if scheme not in {*BUCKETS, *_WEB} or "::" in url.partition("?")[0].rpartition("]")[2]:
        raise ImageError(f"has the protocol {scheme}://, expected one of {', '.join(sorted({*BUCKETS, *_WEB}))}")
    if scheme in _WEB:
        check_web_url(url)
    elif not url.isprintable():
        raise ImageError("holds control characters, which no URL has")
    elif ":" in parts.netloc.rpartition("@")[0]:
        raise ImageError("holds a password, which would be kept with every image: take it out of the URL")


def without_query(path: str) -> str:
    """A path as messages show it; of a URL without its query, which may be a signature that opens it for everybody."""
    url, sign, member = path.partition("#")
    place, mark, _ = url.partition("?")
    return f"{place}?…{sign}{member}" if mark and "://" in place else path


def bucket(url: str) -> tuple[Any, str]:
    """The fsspec file system of a bucket's URL, and the path in it.

    Raises:
        ImageError: not the URL of a bucket.
        MissingPackageError: the package of its protocol is not installed.
    """
    protocol = urlsplit(url).scheme.lower()
    if protocol not in BUCKETS:
        raise ImageError(
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
    """The content of a remote image file.

    Raises:
        ImageError: it cannot be fetched, is too long, or is at an address that is not public.
    """
    return b"".join(_content(url, Limits(MAX_BYTES, _IMAGE_SECONDS, allow_private)))


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
                    raise ImageError(f"is longer than {limits.bytes >> 20} MiB")
                yield piece
    except (ImageError, MissingPackageError):
        raise
    except Exception as error:  # each protocol's library has exceptions of its own
        raise ImageError(f"cannot be fetched: {reason_of(error)}") from error


def listing(url: str) -> Iterator[tuple[str, int]]:
    """The files under a bucket's folder as (URL, size), folder by folder in the order of their names.

    Hidden entries (``.name``) are passed over. Memory grows with the files of one folder.

    Raises:
        ImageError: it cannot be listed.
    """
    system, top = bucket(url)
    folders = [top.rstrip("/")]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(system.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
        except Exception as error:  # each protocol's library has exceptions of its own
            raise ImageError(f"'{system.unstrip_protocol(folder)}' cannot be listed: {reason_of(error)}") from error
        inside = [entry for entry in entries if not entry["name"].rstrip("/").rpartition("/")[2].startswith(".")]
        folders += [e["name"] for e in reversed(inside) if e["type"] == "directory" and e["name"].rstrip("/") != folder]
        yield from ((system.unstrip_protocol(e["name"]), int(e["size"] or 0)) for e in inside if e["type"] == "file")
