"""The command ``mgm`` in a process of its own, which has loaded everything: a second and a half less than a start.

``program()`` is a small program for ``subprocess`` and shells. It passes its arguments, environment, folder, umask and
open streams to a server, which forks itself for each command, and it ends as the command does; signals are passed on.
A command is so run as by ``mgm``, but for what Python and libraries read at their start: the encoding of the locale,
``PYTHON…`` variables, limits of the shell. Tests of those, of ``kill -9`` and of the start itself start the real one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NoReturn

ROOT = Path(__file__).parent.parent
MGM = Path(sysconfig.get_path("scripts")) / "mgm"
"""The real one."""

CLIENT = """#!{python} -ISE
import array, json, os, signal, sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET, socket

def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

open_ones = [number for number in range(3) if is_open(number)]
connection = socket(AF_UNIX, SOCK_SEQPACKET)
while connection.fileno() < 3:  # not in the place of a closed stream
    connection = socket(fileno=os.dup(connection.fileno()))
connection.connect({address!r})
umask = os.umask(0)
request = dict(
    arguments=sys.argv[1:], folder=os.getcwd(), umask=umask, streams=open_ones,
    environment={{name.decode("latin-1"): value.decode("latin-1") for name, value in os.environb.items()}},
)
connection.sendmsg([json.dumps(request).encode()], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", open_ones))])
process = int(connection.recv(100))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(process, number))
for number in open_ones:
    os.close(number)  # who reads the output sees its end when the command ends
code = int(connection.recv(100) or 70)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def program() -> Path:
    """The path of a program that is used as ``mgm`` is; the server behind it ends with this process.

    On Linux: elsewhere libraries do not like to be forked, and it is ``mgm`` itself.
    """
    if sys.platform != "linux":
        return MGM
    folder = Path(tempfile.mkdtemp(prefix="mgm-forked-"))
    address = str(folder / "s")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", str(listener.fileno())], cwd=ROOT, stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
    )  # fmt: skip
    listener.close()

    def end() -> None:
        server.stdin.close()  # type: ignore[union-attr]
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    client = folder / "mgm"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    return client


MODULES = (
    "PIL.Image", "mg_milvus.cli.app", "mg_milvus.doctor", "mg_milvus.duplicates.find", "mg_milvus.encoder.load",
    "mg_milvus.encoder.onnx_runtime", "mg_milvus.index", "mg_milvus.store.milvus", "onnxruntime",
)  # fmt: skip
"""What commands use. ``onnx_runtime`` keeps onnxruntime from starting a thread, which forks would wait for."""


def load() -> dict[bytes, bytes]:
    """Import what commands use, in this process' only thread; returns the variables that imports set."""
    before = dict(os.environb)
    from mg_milvus.store.lite_workarounds import skip_pandas, skip_scipy

    skip_scipy()
    skip_pandas()
    for name in MODULES:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a forked process would wait for threads that it does not have"
    import typer.main

    from mg_milvus.cli.app import app
    from tests import computed_features

    typer.main.get_command = cache(typer.main.get_command)
    typer.main.get_command(app)
    computed_features.install(os.environ.get(computed_features.VARIABLE))
    gc.collect()
    gc.freeze()  # collections would copy the pages that processes share
    return {name: value for name, value in os.environb.items() if name not in before}


def serve(listener: socket.socket) -> socket.socket:
    """Fork for each connection, until standard input ends; returns the connection, in the process that was forked."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if 0 in select.select([listener, 0], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            return connection
        connection.close()


def become(connection: socket.socket, variables: dict[bytes, bytes]) -> None:
    """Have a process of its own be what was asked for, and report its end; returns in that process."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not message:
        os._exit(0)
    request = json.loads(message)
    if process := os.fork():
        for file in files:
            os.close(file)
        connection.send(str(process).encode())
        _, status = os.waitpid(process, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    take_place(request, files, variables)


def take_place(request: dict[str, Any], files: list[int], variables: dict[bytes, bytes]) -> None:
    """Give this process the folder, environment and streams of the request; ``variables`` as an import sets them."""
    os.chdir(request["folder"])
    os.umask(request["umask"])
    own = {name.encode("latin-1"): value.encode("latin-1") for name, value in request["environment"].items()}
    os.environ.clear()
    os.environb.update(variables | own)
    time.tzset()
    for number in range(3):
        os.close(number)
    for number, file in zip(request["streams"], files, strict=True):
        os.dup2(file, number)
        os.close(file)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, text_stream(number, name) if number in request["streams"] else None)
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.argv = [str(MGM), *request["arguments"]]


def text_stream(number: int, name: str) -> io.TextIOWrapper:
    """As Python opens its standard streams."""
    raw = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115 - until the end of the process
    return io.TextIOWrapper(
        raw, "utf-8", "backslashreplace" if number == 2 else "strict", line_buffering=number == 2 or raw.isatty()
    )


def main(listener: socket.socket) -> NoReturn:
    """Serve; in the forked processes: run ``mgm``, with all that Python does at the end of a program."""
    variables = load()
    become(serve(listener), variables)
    from mg_milvus.__main__ import main as mgm

    mgm()
    raise AssertionError("mgm ends its process")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
