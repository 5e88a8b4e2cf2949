"""Milvus Lite's engine as a server that several programs of one machine share: started, found again, and stopped.

The server is a process of its own (``keeper``) that outlives whoever started it. It keeps a record of itself in a
hidden file beside the data and a lock on that file for as long as it lives. The kernel knows who holds the lock, so a
record that a crash or a reboot left behind is never taken for a server, and no other program for ours.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from mg_milvus import errors, files
from mg_milvus.errors import MgMilvusError, StoreError, StoreLockedError, UnsupportedError
from mg_milvus.files import open_private, read_plain
from mg_milvus.store import lite
from mg_milvus.store.lite_workarounds import engine_command, index_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import TextIOWrapper

    from mg_milvus.store.proxy import Proxy


DEFAULT_PORT = 19530
DEFAULT_NAME = "mgm.db"

_START_PATIENCE = 60.0
_STOP_PATIENCE = 15.0
_LONGEST_RECORD = 16_000
"""Bytes: three times what two paths of the longest kind take."""
_LOOPBACK = re.compile(r"http://127\.0\.0\.1:([1-9][0-9]{0,4})")
# C's struct flock: type, whence, start, length, pid on Linux; start, length, pid, type, whence on macOS.
_FLOCK = ("hhqqi", 0, 4) if sys.platform == "linux" else ("qqihh", 3, 2)


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs.

    Attributes:
        file: the Milvus Lite file that it serves.
        uri: where programs of this machine reach it, with its token.
        pid: the process to stop.
        log: what the engine says, at most two megabytes with the file before it.
        since: when it was started, in ISO 8601 with the time zone.
        socket: the engine's socket, or a link to it, where programs of its user reach it without a token.
    """

    file: str
    uri: str
    pid: int
    log: str
    since: str
    socket: str

    def write(self) -> None:
        """Make this the record of the file, and hold it until this process ends."""
        import fcntl

        path = record_of(Path(self.file))
        path.unlink(missing_ok=True)
        descriptor = files.open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, json.dumps(asdict(self)).encode())
        # Last of all, for a record without a lock is nothing. The descriptor stays open on purpose.
        fcntl.lockf(descriptor, fcntl.LOCK_EX)


def record_of(file: Path) -> Path:
    """Where the server of a data file keeps the record of itself."""
    return file.with_name(f".{file.name}.server")


def log_of(file: Path) -> Path:
    """Where the server of a data file writes its log."""
    return file.with_name(f"{file.name}.log")


def data_file(place: str | os.PathLike[str]) -> Path:
    """The data file that a name stands for: itself when it ends in .db, else ``mgm.db`` in the folder of that name.

    Raises:
        StoreError: the folder cannot be created, or another user's link leads there.
    """
    named = Path(place).expanduser()
    path = lite.data_path(named)
    if named.suffix == ".db" and not path.is_dir():
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(
            f"the folder {path} for {DEFAULT_NAME} cannot be made ({exc.strerror}): give another folder, or a file "
            "that ends in .db"
        ) from exc
    return lite.data_path(path / DEFAULT_NAME)


def served(file: Path) -> Served | None:
    """The server of a data file; None when none runs on this machine."""
    try:
        with os.fdopen(files.open_private(record_of(file.resolve()), os.O_RDONLY), "rb") as record:
            holder = _holder(record.fileno())
            believed = holder and _is_own(holder) and not os.fstat(record.fileno()).st_mode & 0o022
            found = _parsed(record.read(_LONGEST_RECORD + 1)) if believed else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    # Another one's record or data file, or a pid of another container: nothing that could be reached, or stopped.
    own = found is not None and found.pid == holder and found.file == str(file.resolve())
    return found if own else None


def _parsed(record: bytes) -> Served:
    """What a record says. ValueError, TypeError or RecursionError: no keeper has written it."""
    if len(record) > _LONGEST_RECORD:
        raise ValueError(f"more than {_LONGEST_RECORD:,} bytes")
    found = Served(**json.loads(record))
    for name, value in asdict(found).items():
        if type(value) is not (int if name == "pid" else str):
            raise TypeError(name)
    port = _LOOPBACK.fullmatch(found.uri)
    if port is None or int(port[1]) > 65_535:
        raise ValueError(found.uri)
    return found


def _is_own(pid: int) -> bool:
    """Whether a process is this user's, where the system says whose it is."""
    return sys.platform != "linux" or Path(f"/proc/{pid}").stat().st_uid == os.geteuid()


def _holder(descriptor: int) -> int:
    """The pid of the process with the lock on an open file; 0 when there is none here."""
    import fcntl

    layout, at_type, at_pid = _FLOCK
    query: list[int] = [0] * 5
    query[at_type] = fcntl.F_WRLCK
    answer = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *query)))
    return 0 if answer[at_type] == fcntl.F_UNLCK else max(0, int(answer[at_pid]))


def up(file: Path, port: int | None = None) -> tuple[Served, bool]:
    """Serve a data file on the loopback address, from a process that goes on when this one ends.

    Args:
        file: from ``data_file``.
        port: None: 19530, or wherever it is served already; 0: any that is free.

    Returns:
        The server, which answers, and whether it was started by this call.

    Raises:
        UnsupportedError: there is no Milvus Lite for this platform, or the file's name is one that it cannot have.
        StoreLockedError: another process has the file open.
        StoreError: the port is taken, or the file is served at another one; the folder cannot be written to; the file
            is damaged.
    """
    if sys.platform == "win32":
        raise UnsupportedError(
            "there is no Milvus Lite for Windows: start a Milvus server (docker compose -f docker/compose.yaml up "
            "--wait) and use --uri http://localhost:19530"
        )
    running = served(file)
    if running is None:
        try:
            return _start(file, DEFAULT_PORT if port is None else port), True
        except StoreLockedError:
            running = served(file)  # someone else may have started it in the same moment
            if running is None:
                raise
    if port and running.uri != _uri(port):
        raise StoreError(
            f"{file} is served at {running.uri} already: use that, or move it with mgm down and mgm up --port {port}"
        )
    _await(running)
    return running, False


def down(file: Path) -> Served | None:
    """Stop the server of a data file and wait until the file is free; the one that ran, None when none did.

    Raises:
        StoreError: it belongs to another user, or cannot be stopped.
    """
    running = served(file)
    if running is None:
        return None
    for request in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(running.pid, request)
        except ProcessLookupError:
            return running
        except PermissionError as exc:
            raise StoreError(
                f"the server of {file} (process {running.pid}) belongs to another user: ask them to stop it"
            ) from exc
        give_up = time.monotonic() + _STOP_PATIENCE
        while time.monotonic() < give_up:
            if served(file) != running:
                return running
            time.sleep(0.02)
    raise StoreError(f"the server of {file} (process {running.pid}) does not end: look at {running.log}")


def _uri(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _start(file: Path, port: int) -> Served:
    from mg_milvus.store import lite

    lite.check_file(file)
    lite.program()
    launcher = subprocess.Popen(  # noqa: S603  (this program)
        [sys.executable, "-P", "-m", "mg_milvus.store.lite_server", str(lite.data_path(file)), str(port)],
        cwd="/",  # never a folder of data: what lies there may be a stranger's
        env=lite.python_environment(),
        umask=files.UMASK,  # also for the engine, which makes the data file
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the end of this terminal is not the server's
    )
    with launcher:  # it ends as soon as it has made the process that stays
        assert launcher.stdout is not None  # noqa: S101  (a pipe, see above)
        if not select.select([launcher.stdout], [], [], _START_PATIENCE)[0]:
            raise StoreError(f"the server of {file} did not start in {_START_PATIENCE:.0f} seconds: see {log_of(file)}")
        told = launcher.stdout.readline()
    answer = json.loads(told or b'{"kind": "StoreError", "message": "the server ended while it was started"}')
    if "kind" in answer:
        raise getattr(errors, answer["kind"])(answer["message"])
    return Served(**answer)


def _await(running: Served) -> None:
    """Wait until a server that someone else is starting answers."""
    give_up = time.monotonic() + _START_PATIENCE
    while not answers(running):
        if served(Path(running.file)) != running or time.monotonic() > give_up:
            raise StoreError(f"the server of {running.file} does not answer at {running.uri}: see {running.log}")
        time.sleep(0.02)


def answers(running: Served) -> bool:
    """Whether the engine of a server listens."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        probe.connect(running.socket)
        return True
    return False


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


LOG_BYTES = 1_000_000
"""After so many the log begins anew; the one before it is kept, with ``.1`` behind its name."""

_KEEPER_START_PATIENCE = 30.0
_KEEPER_STOP_PATIENCE = 5
_LOOK_AT_DISK = 0.2
_LONGEST_LINE = 10_000


def keep(file: Path, port: int, report: Callable[[Served], None]) -> None:
    """Serve a data file until SIGTERM, or until the engine ends.

    Args:
        file: the data file, which nobody else may have.
        port: 0: any that is free.
        report: is called when the server answers.

    Raises:
        StoreLockedError, StoreError: it cannot be served; see ``served.up``.
    """
    with ExitStack() as leaving:
        leaving.callback(lite.lock(file).close)
        lite.check_room(file)
        index_keys(file)
        folder = lite.socket_folder(file)
        leaving.callback(shutil.rmtree, folder, ignore_errors=True)
        engine, token = folder / "s", secrets.token_urlsafe(32)
        proxy = _listen(port, token, engine)
        leaving.callback(proxy.stop)
        told = Served(
            file=str(file),
            uri=f"http://127.0.0.1:{proxy.port}",
            pid=os.getpid(),
            log=str(log_of(file)),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            socket=str(socket_for(proxy.port, engine)),
        )
        log = open_log(file)
        leaving.callback(record_of(file).unlink, missing_ok=True)  # while nobody else can have written one
        leaving.callback(forget, told)
        try:
            told.write()
            publish(told, token, engine)
            _run(told, f"unix:{engine}", log, partial(_open, proxy, report))
        except OSError as exc:
            raise StoreError(
                f"{exc.filename} cannot be used ({exc.strerror}): choose a folder you may write to"
            ) from exc


def _open(proxy: Proxy, report: Callable[[Served], None], told: Served) -> None:
    proxy.start()
    report(told)


def _run(told: Served, address: str, log: logging.Logger, report: Callable[[Served], None]) -> None:
    file, binary = Path(told.file), lite.program()
    engine = subprocess.Popen(  # noqa: S603  (the program of an installed package)
        engine_command(binary, file, address, lite.lock_file(file)),
        cwd="/",
        env=lite.environment(binary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    signal.signal(signal.SIGALRM, lambda *_: engine.kill())

    def end(*_: object) -> None:
        engine.terminate()
        signal.alarm(_KEEPER_STOP_PATIENCE)

    signal.signal(signal.SIGTERM, end)
    log.info("%s is served at %s by process %d", file, told.uri, told.pid)
    _keeper_await(engine, told)
    threading.Thread(target=_end_on_a_full_disk, args=(file, engine, log), daemon=True).start()
    report(told)
    assert engine.stdout is not None  # noqa: S101  (a pipe, see above)
    while line := engine.stdout.readline(_LONGEST_LINE):
        log.info("%s", line.decode(errors="replace").rstrip())
    log.info("the engine has ended with code %d", engine.wait())


def _end_on_a_full_disk(file: Path, engine: subprocess.Popen[bytes], log: logging.Logger) -> None:
    """Rather no answer than one that says a row is kept which is not; see ``lite.check_room``."""
    while engine.poll() is None:
        try:
            lite.check_room(file)
        except StoreError as exc:
            log.error("%s", exc)
            engine.kill()
        time.sleep(_LOOK_AT_DISK)


def _keeper_await(engine: subprocess.Popen[bytes], told: Served) -> None:
    give_up = time.monotonic() + _KEEPER_START_PATIENCE
    while not answers(told):
        if engine.poll() is not None or time.monotonic() > give_up:
            engine.kill()
            engine.wait()
            raise StoreError(lite.cannot_open(Path(told.file)))
        time.sleep(0.01)


def _listen(port: int, token: str, engine: Path) -> Proxy:
    from mg_milvus.store.proxy import Proxy  # gRPC must not be loaded when ``main`` forks

    try:
        return Proxy(port, token, f"unix:{engine}")
    except RuntimeError as exc:  # it does not say why
        reason = "it was taken a moment ago"
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last may linger
                probe.bind(("127.0.0.1", port))
        except OSError as why:
            reason = str(why.strerror)
        raise StoreError(
            f"cannot listen on 127.0.0.1 port {port} ({reason}): choose another with --port, or 0 for any that is free"
        ) from exc


class _PrivateLog(RotatingFileHandler):
    """Log files for this user only."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        return open(open_private(Path(self.baseFilename), flags), "a", encoding="utf-8")


def open_log(file: Path) -> logging.Logger:
    """Two files of ``LOG_BYTES`` at most, however long the server runs."""
    log = logging.getLogger("mg_milvus.keeper")
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.raiseExceptions = False  # a full disk must not stop the server
    try:
        handler = _PrivateLog(log_of(file), maxBytes=LOG_BYTES, backupCount=1)
    except OSError as exc:
        raise StoreError(
            f"{log_of(file)} cannot be written ({exc.strerror}): choose a folder you may write to"
        ) from exc
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    return log


def _tell(answer: object) -> None:
    """The one line that the starter waits for; after it nobody listens."""
    print(json.dumps(answer), flush=True)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)


def main(file: str, port: str) -> int:
    """Become a process of nobody's, serve, and say how it went."""
    if os.fork():
        os._exit(0)  # the starter gets its child back; the one that stays is nobody's child
    try:
        keep(Path(file), int(port), lambda told: _tell(asdict(told)))
    except MgMilvusError as exc:
        _tell({"kind": type(exc).__name__, "message": str(exc)})
        return 1
    except Exception as exc:  # noqa: BLE001 - nobody would see the traceback
        _tell({"kind": "StoreError", "message": f"the server cannot start: {type(exc).__name__}: {exc}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
