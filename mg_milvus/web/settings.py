"""What the page may do, and for whom."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING

from mg_milvus.errors import ServeError
from mg_milvus.images.discover import path_text, text_path

if TYPE_CHECKING:
    from pathlib import Path

SHORTEST_TOKEN = 12
SHORTEST_NUMBER = 20
LEAST_NEWS = 8
LEAST_DIFFERENT = 6

_WORDS = (
    "administrator", "admin", "password", "passwort", "passw", "changeme", "letmein", "welcome", "default", "example",
    "qwertzuiop", "qwertyuiop", "qwertz", "qwerty", "azerty", "asdfghjkl", "asdfgh", "zxcvbnm", "yxcvbnm", "iloveyou",
    "trustno1", "sunshine", "princess", "football", "dragon", "monkey", "correcthorsebatterystaple",
    "correct horse battery staple", "secret", "token", "milvus", "mgm", "minioadmin", "test", "root", "user", "guest",
    "login", "1q2w3e4r5t", "1q2w3e4r", "q1w2e3r4",
)  # fmt: skip
"""What tokens are made of that anyone tries first; the longer ones first."""

_WRITTEN_AS = str.maketrans({"0": "o", "@": "a", "$": "s"})


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

    def folder_to_ingest(self, asked: str) -> tuple[Path, Path]:
        """The folder that was asked for, links followed, and the allowed one that it is or lies in.

        Raises:
            ServeError: it lies in none.
        """
        try:
            real = text_path(asked).resolve()
        except (OSError, ValueError, RuntimeError):
            real = None
        for allowed in (folder.resolve() for folder in self.ingest_folders):
            if real is not None and real.is_relative_to(allowed):
                return real, allowed
        known = ", ".join(path_text(folder) for folder in self.ingest_folders) or "none: start with --allow-ingest"
        raise ServeError(f"'{asked[:200]}' may not be ingested from the page; allowed are {known}")


def check_address(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token, and tokens that are guessed easily.

    Raises:
        ServeError: the reason and the remedy.
    """
    weakness = None if token is None else _weakness(token)
    if weakness is not None:
        raise ServeError(f'{weakness}: make one with python -c "import secrets; print(secrets.token_urlsafe(16))"')
    if token is None and not is_loopback(host):
        raise ServeError(
            f"host {host} can be reached from other machines, so a token is needed: add --token, or set "
            "MGM_WEB_TOKEN; or leave --host out to serve this machine only"
        )


def _weakness(token: str) -> str | None:
    """Why a token is guessed easily; None when it is not. The token itself is not repeated."""
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        return f"the token has {len(token)} characters, expected at least {SHORTEST_TOKEN} printable ones of ASCII"
    if token.isdecimal() and len(token) < SHORTEST_NUMBER:
        return f"the token is a number of {len(token)} digits, expected at least {SHORTEST_NUMBER}, or letters as well"
    rest = token.lower().translate(_WRITTEN_AS)
    for word in _WORDS:
        rest = rest.replace(word, "")
    # What continues the character before (aaa, abc, 321), or what was there before, is no news to who guesses.
    steps = [ord(after) - ord(before) for before, after in pairwise(rest)]
    news = rest[:1] + "".join(
        letter for place, (letter, step) in enumerate(zip(rest[1:], steps, strict=True), 1)
        if abs(step) > 1 and rest[place - 1 : place + 1] not in rest[:place]
    )  # fmt: skip
    if len(news) < LEAST_NEWS or len(set(news)) < LEAST_DIFFERENT:
        return (
            "the token is guessed easily: without repetitions, series and well-known words it has "
            f"{len(news)} characters, {len(set(news))} of them different, expected {LEAST_NEWS} and {LEAST_DIFFERENT}"
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
