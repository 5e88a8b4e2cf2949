"""How a Milvus collection is reached: ``MilvusConfig``, TLS certificates, and tokens kept out of messages."""

from __future__ import annotations

import base64
import os
import socket
import ssl
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from mg_milvus.errors import StoreError
from mg_milvus.files import read_plain

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The preface of an HTTP/2 client, with empty settings; every server responds to it."""
_MAX_FILE = 1 << 20
"""Bytes of the largest certificate file that is read."""
_DIAGNOSIS_TIMEOUT = 5.0
"""Seconds for finding out why a server was not reached."""


@dataclass(frozen=True, slots=True)
class Tls:
    """An encrypted connection to a server, checked against certificates. Milvus Lite files need none.

    Attributes:
        ca_cert: PEM file of the authority that signed the server's certificate, or of the certificate itself; None:
            the authorities included in gRPC.
        client_cert: PEM file of the client's certificate, for servers that require one; needs ``ca_cert``.
        client_key: PEM file of the client's key.
        server_name: the name in the server's certificate, if it differs from the host in the URI.
    """

    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    server_name: str | None = None

    def check(self) -> None:
        """Check the files.

        Raises:
            StoreError: one is missing, is no PEM file, or does not match the others.
        """
        if (self.client_cert is None) != (self.client_key is None):
            given, missing = ("key", "certificate") if self.client_cert is None else ("certificate", "key")
            raise StoreError(f"a client {given} was given for TLS without its {missing}: give both, or neither")
        if self.client_cert is not None and self.ca_cert is None:
            raise StoreError(
                "a client certificate was given for TLS without the server's authority: give --ca-cert (ca_cert) too"
            )
        for option in fields(self)[:3]:
            path = getattr(self, option.name)
            if path is None:
                continue
            try:
                read_plain(path, _MAX_FILE)
            except (OSError, ValueError) as exc:
                reason = getattr(exc, "strerror", None) or exc
                raise StoreError(f"{option.name} {path!r} cannot be read: {reason}") from exc
        self.context()

    def options(self) -> dict[str, Any]:
        """Options of ``MilvusClient``."""
        options: dict[str, str | None] = {"server_name": self.server_name}
        if self.client_cert is None:
            options["server_pem_path"] = self.ca_cert  # pymilvus' name if the client has no certificate
        else:
            options |= {
                "ca_pem_path": self.ca_cert, "client_pem_path": self.client_cert, "client_key_path": self.client_key
            }  # fmt: skip
        return {"secure": True} | {name: value for name, value in options.items() if value is not None}

    def trouble(self, uri: str) -> str | None:
        """Connect to a server to find out why TLS fails, with the remedy; None if it works, or nothing responds.

        pymilvus and gRPC report only that they could not connect.
        """
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 19530)
            with (
                socket.create_connection((host, port), timeout=_DIAGNOSIS_TIMEOUT) as plain,
                self.context("h2").wrap_socket(plain, server_hostname=self.server_name or host) as encrypted,
            ):
                encrypted.sendall(_PREFACE)
                encrypted.recv(1)  # a missing or refused client certificate is reported here
        except ssl.SSLCertVerificationError as exc:
            return (
                f"its certificate is not trusted ({exc.verify_message}): give --ca-cert FILE with the authority that "
                "signed it, or --server-name NAME as the certificate says"
            )
        except ssl.SSLError as exc:
            if exc.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}:
                return "it does not speak TLS: leave --secure out and write http://, or correct the port"
            return f"TLS failed ({exc.reason or exc}): check --ca-cert, --client-cert and --client-key"
        except (OSError, ValueError):
            return None
        return None

    def context(self, protocol: str = "http/1.1") -> ssl.SSLContext:
        """The same certificates for Python's own TLS, with the protocol inside of it.

        Raises:
            StoreError: a file is no PEM file, or certificate and key do not belong together.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_cert)
        except ssl.SSLError as exc:
            raise StoreError(f"ca_cert {self.ca_cert!r} is not a certificate in PEM ({exc.reason or exc})") from exc
        if self.client_cert is not None:
            try:
                context.load_cert_chain(self.client_cert, self.client_key)
            except ssl.SSLError as exc:
                raise StoreError(
                    f"client_cert {self.client_cert!r} and client_key {self.client_key!r} are not a certificate and "
                    f"its key in PEM ({exc.reason or exc})"
                ) from exc
        context.set_alpn_protocols([protocol])
        return context


@dataclass(frozen=True, slots=True)
class MilvusConfig:
    """How a Milvus collection is reached. User and password in the URI become the token, unless one is given.

    Attributes:
        uri: a Milvus Lite file ``*.db`` or a server ``http://host:19530``; holds no password, so it can be shown.
        token: ``user:password`` or an API key, for servers that require one; not part of the ``repr``.
        collection: its name; None: the schema's, or the only one there is.
        timeout: seconds allowed for connecting and for each request.
        tls: certificates, for a server that is reached with TLS; ``https://`` alone trusts public authorities.
    """

    uri: str
    token: str | None = field(default=None, repr=False)
    collection: str | None = None
    timeout: float = 10.0
    tls: Tls | None = None

    def __post_init__(self) -> None:
        """Move user and password from the URI to the token."""
        uri, token = split_token(self.uri, self.token)
        object.__setattr__(self, "uri", uri)
        object.__setattr__(self, "token", token)

    @property
    def is_file(self) -> bool:
        """Whether the URI is a file of Milvus Lite rather than a server."""
        return "://" not in self.uri


def is_loopback(uri: str) -> bool:
    """Whether a URI leads to this machine: ``localhost``, 127.0.0.0/8, ``::1``, a socket file."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "unix" or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_note(uri: str) -> str:
    """What to add to a message about an unreachable server if gRPC goes through a proxy; empty if it does not."""
    if "://" not in uri or is_loopback(uri):
        return ""
    names = ("grpc_proxy", "https_proxy", "http_proxy")  # in gRPC's own order
    used = next((name for name in names if os.environ.get(name)), None)
    try:
        host = urlsplit(uri).hostname or ""
    except ValueError:
        return ""
    excepted = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or ""  # noqa: SIM112 - as gRPC reads it
    if used is None or any(part.strip() and host.endswith(part.strip()) for part in excepted.split(",")):
        return ""
    return f". The variable {used} sends it through a proxy; for a direct way: no_proxy={host}"


def split_token(uri: str, token: str | None) -> tuple[str, str | None]:
    """The URI without user and password, which are the token unless one is given.

    The URI can be shown then; the token never is.
    """
    scheme, sign, rest = uri.partition("://")
    held, at, place = rest.rpartition("@")  # not by a parser: passwords may contain what ends a host
    if not sign or not at:
        return uri, token
    return f"{scheme}://{place}", token or unquote(held) or None


def hide(text: str, token: str | None) -> str:
    """Replace the token and its password, plain or encoded, in a text from a server or a library."""
    if not token:
        return text
    held = {token, token.partition(":")[2]}
    secrets = held | {base64.b64encode(each.encode()).decode() for each in held} | {quote(each, "") for each in held}
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
