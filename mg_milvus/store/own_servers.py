"""The servers of ``mgm up`` that this user runs, by their ports: the token of each, and the way to it without one.

They are kept in a folder that only this user can enter: for each port the token, and a link to the engine's socket. The
link has the same name after a new start, so clients that wait for their server find it again. Not in the folder for
what lives as long as a login (XDG_RUNTIME_DIR): a server goes on after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from mg_milvus.errors import StoreError
from mg_milvus.plain_files import read_plain
from mg_milvus.store.served import DEFAULT_PORT, Served, served

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST_SOCKET = 100
"""Bytes of a path; 107 can be connected to on Linux, 103 on macOS."""
_LONGEST_ENTRY = 10_000
_HOSTS = frozenset({"127.0.0.1", "localhost"})


def find(uri: str) -> Served | None:
    """The server of this user's at the URI of a loopback port; None when there is none, or another one."""
    if sys.platform == "win32":
        return None
    parts = urlsplit(uri)
    if parts.scheme.lower() not in {"http", "tcp"} or parts.hostname not in _HOSTS:
        return None
    known = _known(DEFAULT_PORT if parts.port is None else parts.port)
    return None if known is None else known[0]


def token_of(running: Served) -> str:
    """What other programs have to send to a server.

    Raises:
        StoreError: it is not known here.
    """
    known = _known(_port(running))
    if known is None or known[0] != running:
        raise StoreError(
            f"the token of {running.uri} is not in {' or '.join(map(str, _places()))}: start the server anew with the "
            "HOME that you have now (mgm down, mgm up)"
        )
    return known[1]


def publish(running: Served, token: str, engine: Path) -> None:
    """Let the programs of this user find a server, whose record is written. What servers left that have ended goes.

    Args:
        running: the server, which serves at ``socket_for`` its port.
        token: what callers of its port must send.
        engine: the engine's socket.

    Raises:
        StoreError: there is no folder for it.
        OSError: it cannot be written.
    """
    with _alone(_made()) as folder:
        for left in folder.glob(f"{_host()}-*.json"):
            # An entry of the same file is an old one. Its record must not be read: closing it gives up the lock on it.
            if _content(left).get("file") == running.file or _read(left) is None:
                left.unlink()
                left.with_suffix(".sock").unlink(missing_ok=True)
        entry = folder / _name(_port(running))
        entry.unlink(missing_ok=True)
        descriptor = os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({"file": running.file, "token": token}, file)
        link = entry.with_suffix(".sock")
        link.unlink(missing_ok=True)
        link.symlink_to(engine)


def forget(running: Served) -> None:
    """Take a server out that ends, while its port is still taken."""
    with _alone(_made()) as folder:
        entry = folder / _name(_port(running))
        for old in (entry, entry.with_suffix(".sock")):
            old.unlink(missing_ok=True)


def socket_for(port: int, engine: Path) -> Path:
    """The path by which clients reach the engine of a port: a link, unless its name is too long for a socket.

    Raises:
        StoreError: there is no folder for the link.
    """
    link = (_made() / _name(port)).with_suffix(".sock")
    return link if len(os.fsencode(link)) <= _LONGEST_SOCKET else engine


def _port(running: Served) -> int:
    return int(running.uri.rpartition(":")[2])


def _host() -> str:
    """Machines may share a home."""
    return quote(socket.gethostname(), safe="")


def _name(port: int) -> str:
    return f"{_host()}-{port}.json"


def _places() -> list[Path]:
    """Where the folder may be, best first."""
    places = [Path(tempfile.gettempdir()) / f"mg-milvus-{os.geteuid()}"]
    home = Path(os.path.expanduser("~"))
    with contextlib.suppress(OSError):
        if home.stat().st_uid == os.geteuid():  # not another's, as sudo may leave it
            places.insert(0, home / ".local" / "state" / "mg-milvus")
    return places


def _is_ours(place: Path) -> bool:
    """Whether nobody else can have put anything into a folder."""
    try:
        facts = place.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077


def _made() -> Path:
    """The folder, which is made if needed.

    Raises:
        StoreError: nowhere.
    """
    for place in _places():
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(mode=0o700)
        if _is_ours(place):
            return place
    raise StoreError(
        f"mgm up keeps tokens in {' or '.join(map(str, _places()))}, a folder of yours that others cannot enter: it "
        "cannot be made, or needs chmod 700; or set HOME to a folder of yours"
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """While no other server changes the folder."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def _known(port: int) -> tuple[Served, str] | None:
    entries = (_read(place / _name(port)) for place in _places() if _is_ours(place))
    return next(filter(None, entries), None)


def _read(entry: Path) -> tuple[Served, str] | None:
    """The server that an entry names, and its token; None when there is none, or it has ended."""
    content = _content(entry)
    running = served(Path(content["file"])) if content else None
    return None if running is None or _name(_port(running)) != entry.name else (running, content["token"])


def _content(entry: Path) -> dict[str, str]:
    """File and token; nothing when there is no entry, or only a part of one."""
    try:
        content = json.loads(read_plain(entry, _LONGEST_ENTRY))
        return {name: str(content[name]) for name in ("file", "token")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
