"""Milvus Lite's engine as a server that several programs of one machine share: started, found again, and stopped.

The server is a process of its own (``keeper``) that outlives whoever started it. It keeps a record of itself in a
hidden file beside the data and a lock on that file for as long as it lives. The kernel knows who holds the lock, so a
record that a crash or a reboot left behind is never taken for a server, and no other program for ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mg_milvus import errors, private
from mg_milvus.errors import StoreError, StoreLockedError, UnsupportedError

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
        descriptor = private.open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
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
        StoreError: the folder cannot be made.
    """
    path = Path(place).expanduser().absolute()
    if path.suffix == ".db" and not path.is_dir():
        return path.resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(
            f"the folder {path} for {DEFAULT_NAME} cannot be made ({exc.strerror}): give another folder, or a file "
            "that ends in .db"
        ) from exc
    return (path / DEFAULT_NAME).resolve()


def served(file: Path) -> Served | None:
    """The server of a data file; None when none runs on this machine."""
    try:
        with os.fdopen(private.open_private(record_of(file.resolve()), os.O_RDONLY), "rb") as record:
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
    question: list[int] = [0] * 5
    question[at_type] = fcntl.F_WRLCK
    answer = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *question)))
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
        [sys.executable, "-P", "-m", "mg_milvus.store.keeper", str(file.resolve()), str(port)],
        cwd="/",  # never a folder of data: what lies there may be a stranger's
        env=lite.python_environment(),
        umask=private.UMASK,  # also for the engine, which makes the data file
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
