"""A server behind TLS: certificates of the test's own, and a proxy that ends TLS before a Milvus over TCP."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def make_certificates(folder: Path) -> Path:
    """``ca.pem`` signs ``server.pem`` (for milvus.test) and ``client.pem``; ``other.pem`` nothing. Keys: ``.key``."""
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    fresh = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("ca", "other"):
        openssl(
            "req", "-x509", *fresh, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
            "-days", "2",
        )  # fmt: skip
    (folder / "server.ext").write_text("subjectAltName=DNS:milvus.test\n")
    (folder / "client.ext").write_text("extendedKeyUsage=clientAuth\n")
    for name in ("server", "client"):
        openssl("req", *fresh, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext",
        )  # fmt: skip
    return folder


@contextmanager
def tls_proxy(certificates: Path, target: str, *, client_certificate: bool = False) -> Iterator[int]:
    """The port on the loopback of a proxy that speaks TLS, and forwards what is in it to the URI ``target``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.set_alpn_protocols(["h2"])
    if client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "ca.pem")
    behind = urlsplit(target)
    open_sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def spawn(function, *arguments) -> None:  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        threads.append(thread)
        thread.start()

    def serve(plain: socket.socket) -> None:
        with suppress(OSError):
            encrypted = context.wrap_socket(plain, server_side=True)
            open_sockets.append(encrypted)
            onward = socket.create_connection((behind.hostname, behind.port))
            open_sockets.append(onward)
            spawn(pump, encrypted, onward)
            pump(onward, encrypted)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listener.accept()
                open_sockets.append(plain)
                spawn(serve, plain)

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    spawn(accept)
    try:
        yield port
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for each in (listener, *open_sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in threads:
            thread.join(10)
