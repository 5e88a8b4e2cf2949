"""``mgm up``: a daemon that shares one Milvus Lite file among the programs of one machine.

The daemon outlives the process that starts it. It writes a record of itself to a hidden file beside the data, and locks
that file while it lives. The kernel knows who holds the lock, so a record left by a crash or a reboot is never taken
for a server, nor another program for the daemon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
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

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 15.0
_MAX_RECORD = 16_000
"""Bytes: three times the size with two paths of maximal length."""
_LOOPBACK = re.compile(r"http://127\.0\.0\.1:([1-9][0-9]{0,4})")
# C's struct flock: type, whence, start, length, pid on Linux; start, length, pid, type, whence on macOS.
_FLOCK = ("hhqqi", 0, 4) if sys.platform == "linux" else ("qqihh", 3, 2)


@dataclass(frozen=True, slots=True)
class Server:
    """A running daemon, as its record describes it.

    Attributes:
        file: the Milvus Lite file that it serves.
        uri: where programs of this machine reach it, with its token.
        pid: of the daemon.
        log: file with the engine's output; at most two megabytes, with the file before it.
        since: time of its start, in ISO 8601 with the time zone.
        socket: the engine's socket, or a link to it; programs of the daemon's user need no token there.
    """

    file: str
    uri: str
    pid: int
    log: str
    since: str
    socket: str

    def write(self) -> None:
        """Write the record of the file, and lock it until this process ends."""
        import fcntl

        path = record_of(Path(self.file))
        path.unlink(missing_ok=True)
        descriptor = files.open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, json.dumps(asdict(self)).encode())
        # Last, for a record without a lock counts as none. The descriptor stays open on purpose.
        fcntl.lockf(descriptor, fcntl.LOCK_EX)


def record_of(file: Path) -> Path:
    """Path of the record of a data file's server."""
    return file.with_name(f".{file.name}.server")


def log_of(file: Path) -> Path:
    """Path of the log of a data file's server."""
    return file.with_name(f"{file.name}.log")


def data_file(place: str | os.PathLike[str]) -> Path:
    """The data file for a path: the path itself if it ends in .db, else ``mgm.db`` in the folder of that name.

    Raises:
        StoreError: the folder cannot be created, or another user's link leads there.
    """
    named = files.expand_home(place)
    path = lite.data_path(named)
    if named.suffix == ".db" and not path.is_dir():
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(
            f"the folder {path} for {DEFAULT_NAME} cannot be created ({exc.strerror}): give another folder, or a file "
            "that ends in .db"
        ) from exc
    return lite.data_path(path / DEFAULT_NAME)


def server_of(file: Path) -> Server | None:
    """The server of a data file; None if none runs on this machine."""
    try:
        with os.fdopen(files.open_private(record_of(file.resolve()), os.O_RDONLY), "rb") as record:
            holder = _holder(record.fileno())
            trusted = holder and _is_own(holder) and not os.fstat(record.fileno()).st_mode & 0o022
            server = _parse_record(record.read(_MAX_RECORD + 1)) if trusted else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    # A record of another process, file or container names nothing that could be reached or stopped.
    own = server is not None and server.pid == holder and server.file == str(file.resolve())
    return server if own else None


def _parse_record(record: bytes) -> Server:
    """Read a record; raise ValueError, TypeError or RecursionError if no daemon has written it."""
    if len(record) > _MAX_RECORD:
        raise ValueError(f"more than {_MAX_RECORD:,} bytes")
    server = Server(**json.loads(record))
    for name, value in asdict(server).items():
        if type(value) is not (int if name == "pid" else str):
            raise TypeError(name)
    port = _LOOPBACK.fullmatch(server.uri)
    if port is None or int(port[1]) > 65_535:
        raise ValueError(server.uri)
    return server


def _is_own(pid: int) -> bool:
    """Whether a process is this user's, where the system tells."""
    return sys.platform != "linux" or Path(f"/proc/{pid}").stat().st_uid == os.geteuid()


def _holder(descriptor: int) -> int:
    """The pid of the process that locks an open file; 0 if there is none in this container."""
    import fcntl

    layout, at_type, at_pid = _FLOCK
    query: list[int] = [0] * 5
    query[at_type] = fcntl.F_WRLCK
    answer = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *query)))
    return 0 if answer[at_type] == fcntl.F_UNLCK else max(0, int(answer[at_pid]))


def up(file: Path, port: int | None = None) -> tuple[Server, bool]:
    """Serve a data file on the loopback address, by a daemon that outlives this process.

    Args:
        file: from ``data_file``.
        port: None: 19530, or that of the running server; 0: any free port.

    Returns:
        The server, which is ready, and whether this call started it.

    Raises:
        UnsupportedError: there is no Milvus Lite for this platform, or it does not support the file's name.
        StoreLockedError: another process has the file open.
        StoreError: the port is taken, or the file is served at another one; the folder is not writable; the file is
            damaged.
    """
    if sys.platform == "win32":
        raise UnsupportedError(
            "there is no Milvus Lite for Windows: start a Milvus server (docker compose -f docker/compose.yaml up "
            "--wait) and use --uri http://localhost:19530"
        )
    running = server_of(file)
    if running is None:
        try:
            return _start(file, DEFAULT_PORT if port is None else port), True
        except StoreLockedError:
            running = server_of(file)  # another process may have started it in the same moment
            if running is None:
                raise
    if port and running.uri != _uri(port):
        raise StoreError(
            f"{file} is served at {running.uri} already: use that, or move it with mgm down and mgm up --port {port}"
        )
    _wait_until_ready(running)
    return running, False


def down(file: Path) -> Server | None:
    """Stop the server of a data file and wait until the file is free; return it, or None if none ran.

    Raises:
        StoreError: it belongs to another user, or cannot be stopped.
    """
    running = server_of(file)
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
        give_up = time.monotonic() + _STOP_TIMEOUT
        while time.monotonic() < give_up:
            if server_of(file) != running:
                return running
            time.sleep(0.02)
    raise StoreError(f"the server of {file} (process {running.pid}) does not end: see {running.log}")


def _uri(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _start(file: Path, port: int) -> Server:
    from mg_milvus.store import lite

    lite.check_file(file)
    lite.program()
    launcher = subprocess.Popen(  # noqa: S603  (this program)
        [sys.executable, "-P", "-m", "mg_milvus.store.lite_server", str(lite.data_path(file)), str(port)],
        cwd="/",  # never a folder of data, where anybody's files may lie
        env=lite.python_environment(),
        umask=files.UMASK,  # also for the engine, which creates the data file
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the server outlives this terminal
    )
    with launcher:  # it ends as soon as it has started the daemon
        assert launcher.stdout is not None  # noqa: S101  (a pipe, see above)
        if not select.select([launcher.stdout], [], [], _START_TIMEOUT)[0]:
            raise StoreError(f"the server of {file} did not start in {_START_TIMEOUT:.0f} seconds: see {log_of(file)}")
        line = launcher.stdout.readline()
    report = json.loads(line or b'{"kind": "StoreError", "message": "the server ended while it was started"}')
    if "kind" in report:
        raise getattr(errors, report["kind"])(report["message"])
    return Server(**report)


def _wait_until_ready(running: Server) -> None:
    """Wait for a server that another process starts."""
    give_up = time.monotonic() + _START_TIMEOUT
    while not is_ready(running):
        if server_of(Path(running.file)) != running or time.monotonic() > give_up:
            raise StoreError(f"the server of {running.file} does not answer at {running.uri}: see {running.log}")
        time.sleep(0.02)


def is_ready(running: Server) -> bool:
    """Whether the engine of a server listens."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        probe.connect(running.socket)
        return True
    return False


_MAX_SOCKET_PATH = 100
"""Bytes of a path; 107 can be connected to on Linux, 103 on macOS."""
_MAX_ENTRY = 10_000
_HOSTS = frozenset({"127.0.0.1", "localhost"})


def server_at(uri: str) -> Server | None:
    """Find the server of this user at a URI with a loopback port; None if there is none."""
    if sys.platform == "win32":
        return None
    parts = urlsplit(uri)
    if parts.scheme.lower() not in {"http", "tcp"} or parts.hostname not in _HOSTS:
        return None
    known = _find_entry(DEFAULT_PORT if parts.port is None else parts.port)
    return None if known is None else known[0]


def token_of(running: Server) -> str:
    """The token that requests to the server's port must carry.

    Raises:
        StoreError: it is not known here.
    """
    known = _find_entry(_port(running))
    if known is None or known[0] != running:
        raise StoreError(
            f"the token of {running.uri} is not in {' or '.join(map(str, _places()))}: start the server again with the "
            "current HOME (mgm down, mgm up)"
        )
    return known[1]


def publish(running: Server, token: str, engine: Path) -> None:
    """Add an entry by which programs of this user find a server; remove entries of servers that have ended.

    Args:
        running: the server, whose record is written.
        token: that requests to its port must carry.
        engine: the engine's socket.

    Raises:
        StoreError: there is no folder for it.
        OSError: it cannot be written.
    """
    with _locked(_entries_folder()) as folder:
        for left in folder.glob(f"{_host()}-*.json"):
            # Another entry of the same file is old. Its record must not be read: closing it would give up its lock.
            if _entry_content(left).get("file") == running.file or _read_entry(left) is None:
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


def forget(running: Server) -> None:
    """Remove the entry of a server that ends, while it still holds its port."""
    with _locked(_entries_folder()) as folder:
        entry = folder / _name(_port(running))
        for old in (entry, entry.with_suffix(".sock")):
            old.unlink(missing_ok=True)


def socket_for(port: int, engine: Path) -> Path:
    """The path of the engine's socket for clients: a link named after the port, unless that is too long a path.

    Raises:
        StoreError: there is no folder for the link.
    """
    link = (_entries_folder() / _name(port)).with_suffix(".sock")
    return link if len(os.fsencode(link)) <= _MAX_SOCKET_PATH else engine


def _port(running: Server) -> int:
    return int(running.uri.rpartition(":")[2])


def _host() -> str:
    """Name of this machine: several may share a home folder."""
    return quote(socket.gethostname(), safe="")


def _name(port: int) -> str:
    return f"{_host()}-{port}.json"


def _places() -> list[Path]:
    """Candidates for the folder of entries, best first."""
    places = [Path(tempfile.gettempdir()) / f"mg-milvus-{os.geteuid()}"]
    home = Path(os.path.expanduser("~"))
    with contextlib.suppress(OSError):
        if home.stat().st_uid == os.geteuid():  # sudo may leave another user's
            places.insert(0, home / ".local" / "state" / "mg-milvus")
    return places


def _is_ours(place: Path) -> bool:
    """Whether only this user can write into a folder."""
    try:
        facts = place.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077


def _entries_folder() -> Path:
    """The folder of entries, created if needed.

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
        "cannot be created, or needs chmod 700; or set HOME to a folder of yours"
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Lock the folder against other servers."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def _find_entry(port: int) -> tuple[Server, str] | None:
    entries = (_read_entry(place / _name(port)) for place in _places() if _is_ours(place))
    return next(filter(None, entries), None)


def _read_entry(entry: Path) -> tuple[Server, str] | None:
    """The server of an entry, and its token; None if there is no entry, or the server has ended."""
    content = _entry_content(entry)
    running = server_of(Path(content["file"])) if content else None
    return None if running is None or _name(_port(running)) != entry.name else (running, content["token"])


def _entry_content(entry: Path) -> dict[str, str]:
    """File and token; empty if there is no entry, or only a part of one."""
    try:
        content = json.loads(read_plain(entry, _MAX_ENTRY))
        return {name: str(content[name]) for name in ("file", "token")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


LOG_BYTES = 1_000_000
"""Size at which a new log begins; the one before it is kept with the suffix ``.1``."""

_ENGINE_START_TIMEOUT = 30.0
_ENGINE_STOP_TIMEOUT = 5
_SHORT_LIFE = 60.0
"""Seconds: an engine that a signal ends sooner after the one before is not started again."""
_DISK_CHECK_INTERVAL = 0.2
_MAX_LINE = 10_000


def run_daemon(file: Path, port: int, report: Callable[[Server], None]) -> None:
    """Serve a data file until SIGTERM, or until the engine ends.

    Args:
        file: the data file, which nobody else may hold.
        port: 0: any free port.
        report: called when the server is ready.

    Raises:
        StoreLockedError, StoreError: it cannot be served; see ``up``.
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
        server = Server(
            file=str(file),
            uri=f"http://127.0.0.1:{proxy.port}",
            pid=os.getpid(),
            log=str(log_of(file)),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            socket=str(socket_for(proxy.port, engine)),
        )
        log = open_log(file)
        leaving.callback(record_of(file).unlink, missing_ok=True)  # while nobody else can have written it
        leaving.callback(forget, server)
        try:
            server.write()
            publish(server, token, engine)
            _run_engine(server, f"unix:{engine}", log, partial(_open, proxy, report))
        except OSError as exc:
            raise StoreError(
                f"{exc.filename} cannot be used ({exc.strerror}): choose a folder you may write to"
            ) from exc


def _open(proxy: Proxy, report: Callable[[Server], None], server: Server) -> None:
    proxy.start()
    report(server)


def _run_engine(server: Server, address: str, log: logging.Logger, report: Callable[[Server], None]) -> None:
    """Run the engine until SIGTERM or a full disk; one that a signal has ended is started again.

    A second time within a minute ends it: the next minute would be the same.
    """
    stopping = threading.Event()
    engine: subprocess.Popen[bytes] | None = None

    def end(*_: object) -> None:
        stopping.set()
        if engine is not None:
            engine.terminate()
            signal.alarm(_ENGINE_STOP_TIMEOUT)

    def kill(*_: object) -> None:
        if engine is not None:
            engine.kill()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, kill)
    first, ended = True, -math.inf
    while first or not stopping.is_set():
        engine = _start_engine(server, address)
        _wait_for_engine(engine, server)
        threading.Thread(target=_watch_disk, args=(Path(server.file), engine, stopping, log), daemon=True).start()
        if first:
            log.info("%s is served at %s by process %d", server.file, server.uri, server.pid)
            report(server)
        first = False
        assert engine.stdout is not None  # noqa: S101  (a pipe, see above)
        while line := engine.stdout.readline(_MAX_LINE):
            log.info("%s", line.decode(errors="replace").rstrip())
        code = engine.wait()
        log.info("the engine has ended %s", lite.describe_end(code))
        if code >= 0 or time.monotonic() - ended < _SHORT_LIFE:
            return
        ended = time.monotonic()


def _start_engine(server: Server, address: str) -> subprocess.Popen[bytes]:
    binary = lite.program()
    Path(address.removeprefix("unix:")).unlink(missing_ok=True)  # left by an engine that was killed
    return subprocess.Popen(  # noqa: S603  (the program of an installed package)
        engine_command(binary, Path(server.file), address, lite.lock_file(Path(server.file))),
        cwd="/",
        env=lite.environment(binary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _watch_disk(file: Path, engine: subprocess.Popen[bytes], stopping: threading.Event, log: logging.Logger) -> None:
    """Stop the engine when the disk is full: it would acknowledge rows it cannot store; see ``lite.check_room``."""
    while engine.poll() is None:
        try:
            lite.check_room(file)
        except StoreError as exc:
            log.error("%s", exc)
            stopping.set()
            engine.kill()
        time.sleep(_DISK_CHECK_INTERVAL)


def _wait_for_engine(engine: subprocess.Popen[bytes], server: Server) -> None:
    give_up = time.monotonic() + _ENGINE_START_TIMEOUT
    while not is_ready(server):
        if engine.poll() is not None or time.monotonic() > give_up:
            code = engine.poll()
            engine.kill()
            engine.wait()
            raise StoreError(lite.cannot_open(Path(server.file), code))
        time.sleep(0.01)


def _listen(port: int, token: str, engine: Path) -> Proxy:
    from mg_milvus.store.proxy import Proxy  # gRPC must not be loaded before ``main`` forks

    try:
        return Proxy(port, token, f"unix:{engine}")
    except RuntimeError as exc:  # without a reason
        reason = "it was taken a moment ago"
        try:
            with socket.socket() as probe:
                probe.setsockopt(
                    socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
                )  # connections of the previous server may linger
                probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = str(error.strerror)
        raise StoreError(
            f"cannot listen on 127.0.0.1 port {port} ({reason}): choose another with --port, or 0 for any that is free"
        ) from exc


class _PrivateLog(RotatingFileHandler):
    """A rotating log readable by this user only."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        return open(open_private(Path(self.baseFilename), flags), "a", encoding="utf-8")


def open_log(file: Path) -> logging.Logger:
    """Open the log of a data file's server: at most two files of ``LOG_BYTES``."""
    log = logging.getLogger("mg_milvus.daemon")
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


def _report(result: object) -> None:
    """Write the one line that the starting process waits for, and close standard output."""
    print(json.dumps(result), flush=True)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)


def main(file: str, port: str) -> int:
    """Become a daemon, serve, and report the start to the starting process."""
    if os.fork():
        os._exit(0)  # the starting process waits for this one; its child stays as the daemon
    try:
        run_daemon(Path(file), int(port), lambda server: _report(asdict(server)))
    except MgMilvusError as exc:
        _report({"kind": type(exc).__name__, "message": str(exc)})
        return 1
    except Exception as exc:  # noqa: BLE001 - nobody would see the traceback
        _report({"kind": "StoreError", "message": f"the server cannot start: {type(exc).__name__}: {exc}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
