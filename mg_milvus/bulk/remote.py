"""Files on web servers and in buckets, read with limits on bytes and time.

Lists of URLs may come from strangers. So http(s) leads to public addresses only, redirects are checked like the first
URL, and a host is resolved once: all its addresses are checked, and the connection goes to one of them, so that DNS
cannot lead elsewhere a moment later. TLS is checked against the host name. A proxy of the environment (``http_proxy``
and so on) connects itself: literal addresses are checked, and names as far as this machine resolves them.
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
    from collections.abc import Callable, Generator, Iterator
    from typing import BinaryIO


BUCKETS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that fsspec needs for it."""
MAX_BYTES = 1 << 28
"""Size of the largest image file that is read from the web, a bucket, a tar or a table: 256 MiB."""
_MAX_CONTAINER_BYTES = 1 << 36
"""Size of the largest tar, table or list that is fetched: 64 GiB."""
_IMAGE_SECONDS = 600.0
_CONTAINER_SECONDS = 6 * 3600.0
"""Most seconds to fetch an image, and a tar, table or list."""
_READ_TIMEOUT = 60.0
"""Most seconds between two reads from a server."""
_CHUNK = 1 << 20
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""The last four bytes of such an address are an IPv4 address."""
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
"""All IPv6 addresses that are assigned for the Internet."""
_CLOUD_INTERNAL = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))
"""Metadata services of clouds; not every version of Python calls the first network private."""
_OVERHEAD = 1 << 20
"""Bytes of headers and chunk marks that a server may send in addition to twice the size limit."""
_PRINTED = "".join(map(chr, range(33, 127)))

_Address = tuple[Any, ...]


def is_web(url: str) -> bool:
    """Whether a path is an http(s) URL."""
    return "://" in url and urlsplit(url).scheme.lower() in _PORTS


def check_url(url: str) -> None:
    """Check a URL, which is stored with its images.

    Raises:
        ImageError: another protocol, control characters, or a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ImageError(f"is no URL: {reason_of(error)}") from error
    scheme = parts.scheme.lower()
    if scheme not in {*BUCKETS, *_PORTS} or "::" in url.partition("?")[0].rpartition("]")[2]:
        raise ImageError(f"has the protocol {scheme}://, expected one of {', '.join(sorted({*BUCKETS, *_PORTS}))}")
    if scheme in _PORTS:
        check_web_url(url)
    elif not url.isprintable():
        raise ImageError("holds control characters, which no URL has")
    elif ":" in parts.netloc.rpartition("@")[0]:
        raise ImageError("holds a password, which would be kept with every image: take it out of the URL")


def check_web_url(url: str) -> SplitResult:
    """The parts of an http(s) URL.

    Raises:
        ImageError: it has control characters, a password, or an invalid host or port.
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
        # Resolvers disagree on numbers with leading zeros and on addresses with fewer than four parts.
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise ImageError("has a host of numbers that is no IP address as it is usually written") from error
    return parts


def without_query(path: str) -> str:
    """A path for messages: of a URL without its query, which may be a signature that grants access."""
    url, hash_, member = path.partition("#")
    place, mark, _ = url.partition("?")
    return f"{place}?…{hash_}{member}" if mark and "://" in place else path


def reason_of(error: Exception) -> str:
    """The message of an exception on one line, without the queries of URLs, which may be signatures."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return re.sub(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one file.

    Attributes:
        bytes: size of its content.
        seconds: from the first request to the last byte, redirects included.
        allow_private: addresses that are not public are allowed.
    """

    bytes: int
    seconds: float
    allow_private: bool = False


def fetch(url: str, *, allow_private: bool = False) -> bytes:
    """The content of a remote image file.

    Raises:
        ImageError: it cannot be fetched, is too long, or is at an address that is not public.
    """
    return b"".join(_read(url, Limits(MAX_BYTES, _IMAGE_SECONDS, allow_private)))


def download(url: str, target: BinaryIO, *, allow_private: bool = False) -> None:
    """Copy a tar, table or list to an open file; see ``fetch``."""
    for chunk in _read(url, Limits(_MAX_CONTAINER_BYTES, _CONTAINER_SECONDS, allow_private)):
        target.write(chunk)


def _read(url: str, limits: Limits) -> Iterator[bytes]:
    check_url(url)
    return _read_web(url, limits) if is_web(url) else _read_bucket(url, limits)


def _chunks(read: Callable[[int], bytes], limits: Limits) -> Generator[bytes, None, int]:
    """Read to the end within the size limit; returns the number of bytes."""
    size = 0
    while chunk := read(_CHUNK):
        size += len(chunk)
        if size > limits.bytes:
            raise _too_long(limits)
        yield chunk
    return size


def _too_long(limits: Limits) -> ImageError:
    return ImageError(f"is longer than {limits.bytes >> 20} MiB")


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


def _read_bucket(url: str, limits: Limits) -> Iterator[bytes]:
    """The content of a file in a bucket, in chunks."""
    try:
        system, path = bucket(url)
        with system.open(path, "rb") as file:
            yield from _chunks(file.read, limits)
    except (ImageError, MissingPackageError):
        raise
    except Exception as error:  # each protocol's library has its own exceptions
        raise ImageError(f"cannot be fetched: {reason_of(error)}") from error


def listing(url: str) -> Iterator[tuple[str, int]]:
    """The files under a folder of a bucket as (URL, size), folder by folder, sorted by name.

    Hidden entries (``.name``) are skipped. Memory grows with the files of one folder.

    Raises:
        ImageError: it cannot be listed.
    """
    system, top = bucket(url)
    folders = [top.rstrip("/")]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(system.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
        except Exception as error:  # each protocol's library has its own exceptions
            raise ImageError(f"'{system.unstrip_protocol(folder)}' cannot be listed: {reason_of(error)}") from error
        inside = [entry for entry in entries if not entry["name"].rstrip("/").rpartition("/")[2].startswith(".")]
        folders += [e["name"] for e in reversed(inside) if e["type"] == "directory" and e["name"].rstrip("/") != folder]
        yield from ((system.unstrip_protocol(e["name"]), int(e["size"] or 0)) for e in inside if e["type"] == "file")


def _read_web(url: str, limits: Limits) -> Iterator[bytes]:
    """The content of a file on a web server, in chunks."""
    end = time.monotonic() + limits.seconds
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            with _response(check_web_url(url), end, limits) as response:
                if response.status not in _REDIRECTS:
                    yield from _body(response, limits)
                    return
                url = _redirect_target(url, response)
    except TimeoutError as error:
        is_over = end - time.monotonic() < 0.1
        cause = f"the limit of {limits.seconds:g} seconds is over" if is_over else "the server does not answer"
        raise ImageError(f"cannot be fetched: {cause}") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"cannot be fetched: {reason_of(error)}") from error
    raise ImageError(f"cannot be fetched: it is redirected more than {_MAX_REDIRECTS} times")


def _redirect_target(url: str, response: HTTPResponse) -> str:
    """The URL that a redirect leads to."""
    target = urljoin(url, response.headers.get("Location", "").strip())
    before, after = urlsplit(url).scheme.lower(), urlsplit(target).scheme.lower()
    if after not in _PORTS or (before, after) == ("https", "http"):
        raise ImageError(f"cannot be fetched: it is redirected from {before}:// to {after}://, which is not followed")
    return target


def _body(response: HTTPResponse, limits: Limits) -> Iterator[bytes]:
    if response.status != HTTPStatus.OK:
        raise ImageError(f"cannot be fetched: HTTP Error {response.status}: {' '.join(response.reason.split())[:100]}")
    for name, expected in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        for given in response.headers.get_all(name, []):
            if given.strip().lower() != expected:
                raise ImageError(
                    f"cannot be fetched: its {name} is {given.strip()[:50]!r}, expected {expected} or none"
                )
    if (response.length or 0) > limits.bytes:
        raise _too_long(limits)
    size = yield from _chunks(response.read1, limits)
    if response.length:
        raise ImageError(f"cannot be fetched: it is cut off after {size} of {size + response.length} bytes")


@contextmanager
def _response(parts: SplitResult, end: float, limits: Limits) -> Iterator[HTTPResponse]:
    """The response of a server, its content still unread."""
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
            plain = connection.connect_to(addresses)
        else:
            where, log_in = _proxy(proxy)
            if scheme == "https":
                connection.set_tunnel(connection.host, port, log_in)
            plain = connection.connect_to(resolve(*where))
            if scheme == "https":
                connection.open_tunnel()
            else:
                target = f"http://{_bracketed(connection.host)}:{port}{target}"
                headers |= log_in
        if scheme == "https":
            connection.start_tls(plain)
        if port == _PORTS[scheme]:
            headers["Host"] = _bracketed(connection.host)
        connection.request("GET", target, headers=headers)
        yield connection.getresponse()
    finally:
        connection.close_socket()


def _addresses(host: str, port: int, limits: Limits, *, proxied: bool) -> list[_Address]:
    """The addresses of a host, all of them checked; none if only a proxy can resolve it.

    Raises:
        ImageError: one is not public.
    """
    try:
        addresses = resolve(host, port)
    except OSError:
        if proxied:
            return []
        raise
    for address in () if limits.allow_private else addresses:
        if not is_public(address[4][0]):
            raise ImageError(
                f"leads to {address[4][0]}, which is no public address: use --allow-private (allow_private=True) if "
                "you trust the list"
            )
    return addresses


def resolve(host: str, port: int) -> list[_Address]:
    """The addresses of a name, as ``socket.getaddrinfo`` gives them."""
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def is_public(address: str) -> bool:
    """Whether an IP address is public, also where it embeds an IPv4 address."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if embedded is None and ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if ip not in _GLOBAL_IPV6 or ip.teredo is not None:
            return False
    if (
        ip.is_multicast
        or ip.is_reserved
        or ip.is_unspecified
        or ip.is_loopback
        or any(ip in net for net in _CLOUD_INTERNAL)
    ):
        return False
    return ip.is_global


def _proxy(uri: str) -> tuple[tuple[str, int], dict[str, str]]:
    """Host and port of a proxy, and the header that signs in to it."""
    parts = urlsplit(uri if "://" in uri else f"http://{uri}")
    if parts.scheme.lower() != "http" or not parts.hostname:
        raise ImageError(f"cannot be fetched: the environment's proxy is {parts.scheme}://, expected http://")
    credentials = unquote(parts.netloc.rpartition("@")[0])
    log_in = {"Proxy-Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"} if credentials else {}
    return (parts.hostname, parts.port or 80), log_in


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Connection(HTTPConnection):
    """A connection to a checked address, with a deadline that slow servers cannot extend."""

    def __init__(self, host: str, port: int, end: float, most: int) -> None:
        super().__init__(host, port)
        self._end, self._most = end, 2 * most + _OVERHEAD
        self._plain: socket.socket | None = None

    def connect(self) -> None:
        """Never called: http.client would resolve the name again."""
        raise ImageError("cannot be fetched: the server closed the connection")

    def connect_to(self, addresses: list[_Address]) -> socket.socket:
        """Connect to the first address that accepts.

        Raises:
            OSError: none accepts.
        """
        failure = OSError("its name has no address")
        for family, kind, protocol, _, where in addresses:
            plain = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(_left(self._end))
                plain.connect(where)
            except OSError as error:
                plain.close()
                failure = error
            else:
                self._use(plain)
                return plain
        raise failure

    def open_tunnel(self) -> None:
        """Ask the proxy for a tunnel to the server."""
        self._tunnel()  # type: ignore[attr-defined]

    def start_tls(self, plain: socket.socket) -> None:
        """Start TLS, checked against the host name."""
        plain.settimeout(_left(self._end))
        self._use(ssl.create_default_context().wrap_socket(plain, server_hostname=self.host))

    def close_socket(self) -> None:
        """Close the socket, even if the response is still being read."""
        if self._plain is not None:
            self._plain.close()

    def _use(self, plain: socket.socket) -> None:
        self._plain = plain
        self.sock: Any = _TimedSocket(plain, self._end, self._most)


class _TimedSocket:
    """The part of a socket that http.client uses, with the timeout of each step set from the deadline."""

    def __init__(self, plain: socket.socket, end: float, most: int) -> None:
        self._plain, self._end, self._most = plain, end, most

    def sendall(self, data: bytes) -> None:
        self._plain.settimeout(_left(self._end))
        self._plain.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_SocketReader(self._plain, self._end, self._most))

    def close(self) -> None:
        """Nothing: the response is still to be read; see ``close_socket``."""


class _SocketReader(io.RawIOBase):
    """Reads what has arrived, until the deadline; bounds the bytes that are not content, such as trailers."""

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
    return min(left, _READ_TIMEOUT)
