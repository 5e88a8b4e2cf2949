"""Servers for tests: Milvus Lite over TCP, and one that refuses every token."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from mg_milvus.store import lite
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LiteServer:
    """Milvus Lite's engine on a loopback port, as a process that can be killed and started again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        program = lite.program()
        self._process = subprocess.Popen(
            [program, self.file, f"127.0.0.1:{self.port}", "ERROR"],
            env=lite.environment(program),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._listens, f"Milvus Lite's engine listens on port {self.port}")

    def _listens(self) -> bool:
        assert self._process.poll() is None, f"the engine ended with status {self._process.returncode}"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def lite_server(file: Path) -> Iterator[LiteServer]:
    server = LiteServer(file)
    try:
        yield server
    finally:
        server.kill()


class _Refuse(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        sent = dict(details.invocation_metadata).get("authorization", "")
        said = f"auth check failure, please check user and password: {sent}, {base64.b64decode(sent + '==').decode()}"

        def refuse(_request: bytes, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, said)

        return grpc.unary_unary_rpc_method_handler(refuse)


@contextmanager
def refusing_server() -> Iterator[str]:
    """The URI of a gRPC server that knows no token, and repeats what it was sent, as it came and as it is meant."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Refuse()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
