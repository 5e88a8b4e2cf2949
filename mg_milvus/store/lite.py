"""Milvus Lite's engine for one file: started at first use, shared within the process, stopped by its last user.

The engine is a program inside the milvus-lite package; see ``lite_workarounds.engine_program`` for why it is started
here. The lock file is that package's, so that other programs and this one exclude each other.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mg_milvus import files
from mg_milvus.errors import StoreError, StoreLockedError, UnsupportedError
from mg_milvus.store.lite_workarounds import could_be_lite, engine_command, engine_program, index_keys, is_known

_LOCK_TIMEOUT = 2.0
_START_TIMEOUT = 10.0
_MIN_FREE = 32_000_000
"""Bytes: several times the most that one request writes, with its journal."""
_MAX_FOLDER_PATH = 100
"""Bytes of a folder's path; with a socket in it 107 on Linux, 103 on macOS."""
_PASSED_ON = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TMPDIR", "TZ",
)  # fmt: skip
"""Environment variables passed on to started programs: others may hold secrets, or names of foreign code."""
_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
ENDED_REMEDY = "the machine may be out of memory; end other programs, or use a Milvus server (--uri http://HOST:19530)"
_SERVER_REMEDY = "give the URI of a Milvus server instead, such as http://localhost:19530"


@dataclass
class _Engine:
    process: subprocess.Popen[bytes]
    lock: IO[str]
    folder: Path
    file: Path
    """The file that is served: a copy, if the one that was asked for cannot be changed."""
    users: int = 0
    copied: Path | None = None
    """Folder of the copy."""
    deaths: int = 0
    last_end: str = ""

    @property
    def uri(self) -> str:
        return f"unix:{self.folder / 's'}"

    def stop(self) -> None:
        # The lock is released after the program has ended: the next engine must not start while it still writes.
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.lock.close()  # the lock file stays: removing it would let two others lock two different files
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.copied is not None:
            shutil.rmtree(self.copied, ignore_errors=True)


_engines: dict[Path, _Engine] = {}
_left_to_pymilvus: set[Path] = set()
_guard = threading.Lock()


def version() -> str:
    """The installed version of milvus-lite.

    Raises:
        UnsupportedError: none is installed, or one without binary vectors.
    """
    try:
        installed = importlib.metadata.version("milvus-lite")
    except importlib.metadata.PackageNotFoundError as exc:
        raise UnsupportedError(
            "milvus-lite is not installed: pip install 'milvus-lite>=2.5.1,<3'; there is none for Windows and Alpine "
            f"Linux, there {_SERVER_REMEDY}"
        ) from exc
    if int(installed.split(".")[0]) >= 3:
        raise UnsupportedError(
            f"milvus-lite {installed} is installed, which has no binary vectors: pip install 'milvus-lite>=2.5.1,<3'"
        )
    return installed


def program() -> Path:
    """The engine's program.

    Raises:
        UnsupportedError: see ``version``; or the package holds no program for this platform.
    """
    installed, program = version(), engine_program()
    if program is None and not is_known("milvus-lite"):
        raise UnsupportedError(
            f"mgm up starts the engine of milvus-lite 2.5, and {installed} is installed: "
            f"pip install 'milvus-lite==2.5.*', or {_SERVER_REMEDY}"
        )
    if program is None:
        raise UnsupportedError(f"milvus-lite has no engine for this platform: {_SERVER_REMEDY}")
    return program


def data_path(file: Path) -> Path:
    """The absolute path of a data file, with links followed.

    Raises:
        StoreError: another user's link leads there; see ``files.resolve_trusted``.
    """
    try:
        return files.resolve_trusted(file)
    except OSError as exc:
        raise StoreError(
            f"{file} cannot be used: {exc.filename}: {exc.strerror}. Give the path of the file itself, or another"
        ) from exc


def start(file: Path) -> str:
    """The address of the engine that serves this file, for ``MilvusClient``; every call needs a ``stop``.

    Raises:
        UnsupportedError: milvus-lite is not installed, or does not support the file's name.
        StoreLockedError: another process holds the file, and still does after two seconds.
        StoreError: the folder is missing, or the file is something else or damaged.
    """
    file = data_path(file)
    version()
    if not is_known("milvus-lite"):
        return _leave_to_pymilvus(file)
    with _guard:
        engine = _engines.get(file)
        if engine is None:
            check_file(file)
            engine = _launch_copy(program(), file) if is_read_only(file) else _launch(program(), file)
            _engines[file] = engine
        else:
            _revive(engine)
        engine.users += 1
        return engine.uri


def revive(file: Path) -> tuple[int, str]:
    """Start a file's engine again, at the same address, if it has ended by itself.

    Returns:
        How often it has ended since it was first started, and how the last time, such as "by signal 9 (SIGKILL)".

    Raises:
        StoreError: it cannot be started again.
    """
    with _guard:
        engine = _engines.get(file)
        if engine is None:
            return 0, ""
        _revive(engine)
        return engine.deaths, engine.last_end


def _revive(engine: _Engine) -> None:
    code = engine.process.poll()
    if code is None:
        return
    engine.deaths += 1
    engine.last_end = describe_end(code)
    (engine.folder / "s").unlink(missing_ok=True)
    engine.process = _start_process(program(), engine.file, engine.folder)


def describe_end(code: int) -> str:
    """How a process ended, from its ``returncode``."""
    if code >= 0:
        return f"with status {code}"
    try:
        return f"by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"by signal {-code}"


def _leave_to_pymilvus(file: Path) -> str:
    """The file itself: ``MilvusClient`` starts the engine, and stops it when this process ends."""
    check_file(file)
    with _guard:
        if file not in _left_to_pymilvus:  # closing the lock file would give up the lock that milvus-lite holds then
            lock(file).close()
            _left_to_pymilvus.add(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own imports
        importlib.import_module("milvus_lite")
    return str(file)


def stop(file: Path) -> None:
    """End one use of a file's engine; the last one stops it and unlocks the file."""
    file = data_path(file)
    with _guard:
        engine = _engines.get(file)
        if engine is None:
            return
        engine.users -= 1
        if engine.users == 0:
            del _engines[file]
            engine.stop()


os.register_at_fork(after_in_child=_engines.clear)  # they are the parent's
os.register_at_fork(after_in_child=_left_to_pymilvus.clear)


@atexit.register
def _stop_all() -> None:
    with _guard:
        while _engines:
            _engines.popitem()[1].stop()


def check_room(file: Path) -> None:
    """Raise StoreError unless the file's disk has room for one request.

    The engine (2.5.1, measured) acknowledges writes that did not fit on a full disk; they are lost when it stops.
    """
    if is_read_only(file):
        raise StoreError(f"{file} cannot be written to, so it can only be queried: copy it to a folder of yours first")
    free = shutil.disk_usage(file.parent).free
    if free < _MIN_FREE:
        raise StoreError(
            f"the disk of {file} is full: {free:,} bytes are free, {_MIN_FREE:,} are needed to write safely. Make "
            "room, then run the same command again; what was stored stays"
        )


def check_file(file: Path) -> None:
    """Refuse a path that cannot be a Milvus Lite file.

    Raises:
        UnsupportedError: its name.
        StoreError: its folder is missing, or the file is another one, or damaged.
    """
    if len(file.name) > 36 or not re.fullmatch(r"[A-Za-z0-9._-]+", file.name):
        raise UnsupportedError(
            f"'{file.name}' cannot be the name of a Milvus Lite file: use up to 36 letters, digits, dots, '-' and '_'"
        )
    if not file.parent.is_dir():
        raise StoreError(f"the folder {file.parent} for {file.name} does not exist: make it first (mkdir -p)")
    if file.is_dir():
        raise StoreError(f"{file} is a folder, expected a Milvus Lite file: give the name of a file in it")
    if file.exists() and file.stat().st_size and not could_be_lite(file):
        raise StoreError(f"{file} is not a Milvus Lite file, or damaged: choose another name, or restore a copy")


def is_read_only(file: Path) -> bool:
    """Whether a data file exists that this process cannot change, on a read-only disk or in another's folder."""
    return file.exists() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def _launch_copy(binary: Path, file: Path) -> _Engine:
    """Start an engine for a copy of a file, in its own folder: the engine cannot open files that it cannot change."""
    folder = socket_folder(file)
    copy = folder / file.name
    try:
        if shutil.disk_usage(folder).free < file.stat().st_size + _MIN_FREE:
            raise OSError(errno.ENOSPC, f"it has no room for {file.stat().st_size:,} bytes", str(folder))
        shutil.copyfile(file, copy)
        copy.chmod(files.FILE)
        engine = _launch(binary, copy)
    except (OSError, StoreError) as exc:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(exc, StoreError):
            raise
        raise StoreError(
            f"{file} cannot be changed, and its copy for reading cannot be made: {exc.filename}: {exc.strerror}. Set "
            "TMPDIR to a folder with room"
        ) from exc
    engine.copied = folder
    return engine


def _launch(binary: Path, file: Path) -> _Engine:
    locked = lock(file)
    try:
        folder = socket_folder(file)
    except StoreError:
        locked.close()
        raise
    try:
        process = _start_process(binary, file, folder)
    except StoreError:
        locked.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _Engine(process, locked, folder, file)


def _start_process(binary: Path, file: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start an engine that listens in a folder, and wait until it does; its file is locked."""
    index_keys(file)
    process = subprocess.Popen(  # noqa: S603  (the program of an installed package)
        engine_command(binary, file, f"unix:{folder / 's'}", lock_file(file)),
        cwd=folder,  # never a folder of data, where anybody's files may lie
        env=environment(binary),
        umask=files.UMASK,  # a new data file is for this user only
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must not stop the engine before it acknowledges the last batch
    )
    give_up = time.monotonic() + _START_TIMEOUT
    while not (folder / "s").exists():
        if process.poll() is not None or time.monotonic() > give_up:
            code = process.poll()
            process.kill()
            process.wait()
            raise StoreError(cannot_open(file, code))
        time.sleep(0.005)
    return process


def socket_folder(file: Path) -> Path:
    """Create a folder for the engine's socket, and remove those that killed engines of this file left.

    Only for the holder of the file's lock. Each name is new: an engine that is still ending removes its own socket.
    """
    prefix = f"mgm-{hashlib.blake2b(os.fsencode(file), digest_size=4).hexdigest()}-"
    try:
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as exc:
        raise StoreError(f"no temporary folder can be created ({exc}): set TMPDIR to a folder with room") from exc
    if len(os.fsencode(folder)) > _MAX_FOLDER_PATH:
        folder.rmdir()
        raise StoreError(f"{folder} is too long a path for Milvus Lite's socket: set TMPDIR to a shorter one")
    return folder


def environment(binary: Path) -> dict[str, str]:
    """The environment of the engine."""
    libraries = {name: os.pathsep.join((str(binary.parent), *absolute_parts(name))) for name in _PATHS}
    # Without a home folder that it can write into the engine aborts, or refuses every query, though it stores nothing
    # there. Without the other variable it leaves a log file in the folder for temporary files at every start.
    home = os.environ.get("HOME", "")
    if not (os.path.isabs(home) and os.access(home, os.W_OK | os.X_OK)):
        home = tempfile.gettempdir()
    return _passed_on() | libraries | {"HOME": home, "GLOG_logtostderr": "1"}


def python_environment() -> dict[str, str]:
    """The environment of a Python process with this package: it imports modules from the same places."""
    paths = (*_PATHS, *(() if sys.flags.ignore_environment else ("PYTHONPATH",)))
    return _passed_on() | {name: os.pathsep.join(parts) for name in paths if (parts := absolute_parts(name))}


def absolute_parts(name: str) -> list[str]:
    """The absolute folders of a search path in the environment.

    An empty or relative one means the current folder, or one in it, where anybody's files may lie.
    """
    return [part for part in os.environ.get(name, "").split(os.pathsep) if os.path.isabs(part)]


def _passed_on() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}


def cannot_open(file: Path, code: int | None) -> str:
    """The message for an engine that does not start.

    Args:
        file: that it was to serve.
        code: its ``returncode``; None if it still runs, but does not listen.
    """
    if code is not None and code < 0:
        cause = files.limits_note() or f": {ENDED_REMEDY}"
        return f"Milvus Lite's engine for {file} was ended {describe_end(code)} while it started{cause}"
    return f"Milvus Lite cannot open {file}: it is damaged, or the folder cannot be written to{files.limits_note()}"


def lock_file(file: Path) -> Path:
    """The lock file of a data file; the engine ends when its starter no longer holds the lock."""
    return file.with_name(f".{file.name}.lock")


def lock(file: Path) -> IO[str]:
    """Lock a data file until the returned file is closed or this process ends.

    Raises:
        StoreLockedError: another process holds it, and still does after two seconds.
        StoreError: the folder cannot be written to, or the lock file is neither this user's nor of the data's owner.
    """
    try:
        locked = _open_lock(file)
    except OSError as exc:
        raise StoreError(
            f"{lock_file(file)} cannot be written ({exc.strerror}): choose a folder you may write to"
        ) from exc
    give_up = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.lockf(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if time.monotonic() > give_up:
                locked.close()
                raise StoreLockedError(
                    f"{file} is open in another process, such as another mgm, a notebook or a web page: close that, "
                    f"then let all of them share it (mgm up --data {shlex.quote(str(file))}), or use one Milvus server "
                    "(--uri http://HOST:19530)"
                ) from exc
            time.sleep(0.1)
        else:
            return locked


def _open_lock(file: Path) -> IO[str]:
    """Open or create the lock file; another user's is accepted only if the data file is theirs, too."""
    owner = file.stat().st_uid if file.exists() else None
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    locked = os.fdopen(files.open_private(lock_file(file), flags, also=owner), "a")
    status = os.fstat(locked.fileno())
    if status.st_uid == os.geteuid() and not status.st_mode & 0o022:
        # Another program created it. Who can only read it could use it only to keep the owner out.
        os.fchmod(locked.fileno(), files.FILE)
    return locked
