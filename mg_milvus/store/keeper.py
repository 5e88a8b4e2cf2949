"""The process behind ``mgm up``: it holds the data file, runs the engine, stands before it on a port, keeps its log.

``served`` runs it as ``python -m mg_milvus.store.keeper FILE PORT``. It tells on standard output, in one line of JSON,
what it has become: the record of a server, or an error. The engine ends when this process does, however it ends.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from mg_milvus.errors import MgMilvusError, StoreError
from mg_milvus.private import open_private
from mg_milvus.store import lite, own_servers
from mg_milvus.store.lite_keys import index_keys
from mg_milvus.store.served import Served, answers, log_of, record_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import TextIOWrapper

    from mg_milvus.store.proxy import Proxy

LOG_BYTES = 1_000_000
"""After so many the log begins anew; the one before it is kept, with ``.1`` behind its name."""

_START_PATIENCE = 30.0
_STOP_PATIENCE = 5
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
            socket=str(own_servers.socket_for(proxy.port, engine)),
        )
        log = open_log(file)
        leaving.callback(record_of(file).unlink, missing_ok=True)  # while nobody else can have written one
        leaving.callback(own_servers.forget, told)
        try:
            told.write()
            own_servers.publish(told, token, engine)
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
        [binary, file, address, "ERROR", lite.lock_file(file)],
        cwd="/",
        env=lite.environment(binary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    signal.signal(signal.SIGALRM, lambda *_: engine.kill())

    def end(*_: object) -> None:
        engine.terminate()
        signal.alarm(_STOP_PATIENCE)

    signal.signal(signal.SIGTERM, end)
    log.info("%s is served at %s by process %d", file, told.uri, told.pid)
    _await(engine, told)
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


def _await(engine: subprocess.Popen[bytes], told: Served) -> None:
    give_up = time.monotonic() + _START_PATIENCE
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
