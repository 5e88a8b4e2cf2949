"""What the page may do, and for whom."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from mg_milvus.errors import ServeError
from mg_milvus.images.discover import path_text, text_path

if TYPE_CHECKING:
    from pathlib import Path

SHORTEST_TOKEN = 12


@dataclass(frozen=True, slots=True)
class WebSettings:
    """How to serve.

    Attributes:
        read_only: nothing can be ingested or deleted.
        token: what every request has to show; None: nobody is asked, and only this machine's own names are answered.
        ingest_folders: folders whose pictures may be ingested from the page, absolute.
        upload_folder: where uploaded pictures are kept, absolute; None: none can be uploaded into the index.
        thumbnail_folder: where thumbnails are cached; None: they are made anew each time.
        max_upload_bytes: the largest picture that is taken.
        max_pixels: the most pixels that one may have, whether uploaded or read from disk.
    """

    read_only: bool = False
    token: str | None = None
    ingest_folders: tuple[Path, ...] = ()
    upload_folder: Path | None = None
    thumbnail_folder: Path | None = None
    max_upload_bytes: int = 50_000_000
    max_pixels: int = 100_000_000

    def folder_to_ingest(self, asked: str) -> Path:
        """The folder that was asked for, when it is an allowed one or lies in one, links followed.

        Raises:
            ServeError: it is neither.
        """
        allowed = [folder.resolve() for folder in self.ingest_folders]
        try:
            real = text_path(asked).resolve()
        except (OSError, ValueError, RuntimeError):
            real = None
        if real is None or not any(real.is_relative_to(folder) for folder in allowed):
            known = ", ".join(path_text(folder) for folder in self.ingest_folders) or "none: start with --allow-ingest"
            raise ServeError(f"'{asked}' may not be ingested from the page; allowed are {known}")
        return real


def check_address(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token, and tokens that are guessed easily.

    Raises:
        ServeError: the reason and the remedy.
    """
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ServeError(
            f"the token has {len(token)} characters, expected at least {SHORTEST_TOKEN} printable ones of ASCII: make "
            'one with python -c "import secrets; print(secrets.token_urlsafe(16))"'
        )
    if token is None and not is_loopback(host):
        raise ServeError(
            f"host {host} can be reached from other machines, so a token is needed: add --token, or set "
            "MGM_WEB_TOKEN; or leave --host out to serve this machine only"
        )


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
