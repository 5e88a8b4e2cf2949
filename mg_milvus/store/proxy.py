"""The port of ``mgm up``: forwards requests with the right token to Milvus Lite's engine, which knows no tokens.

Every user of the machine can reach a port of the loopback address. The engine itself listens on a socket in a folder
of its user alone; programs of that user connect to the socket directly.
"""

from __future__ import annotations

import base64
import hmac
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NoReturn

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

_THREADS = 16
_GRACE = 1.0
_MOST_CALLS = 256
"""Concurrent requests; more are refused, since strangers can send any number."""
_ANY_LENGTH = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_NO_DEADLINE = 1e9
"""Seconds. A request without a deadline has some hundred years left, which gRPC does not accept as a timeout."""
_REFUSED = (
    "it is mgm up of another user, or the token is not the one that its user sees with mgm up --status --show-token"
)


class Proxy:
    """A gRPC server on the loopback address before an engine."""

    def __init__(self, port: int, token: str, engine: str) -> None:
        """Bind the port; requests wait until ``start``.

        Args:
            port: 0: any free port.
            token: that requests must carry, as pymilvus sends it.
            engine: gRPC address of the engine, which need not listen yet.

        Raises:
            RuntimeError: the port cannot be bound.
        """
        self._channel = grpc.insecure_channel(engine, options=_ANY_LENGTH)
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS),
            handlers=[_Guard(token, self._channel)],
            # Otherwise another program may share the port and receive requests with their tokens.
            options=[("grpc.so_reuseport", 0), *_ANY_LENGTH],
            maximum_concurrent_rpcs=_MOST_CALLS,
        )
        self.port = int(self._server.add_insecure_port(f"127.0.0.1:{port}"))

    def start(self) -> None:
        """Accept requests."""
        self._server.start()

    def stop(self) -> None:
        """Release the port; running requests get a second to end."""
        self._server.stop(_GRACE).wait()
        self._channel.close()


class _Guard(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, token: str, channel: grpc.Channel) -> None:
        self._expected = base64.b64encode(token.encode())
        self._channel = channel

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        sent = dict(details.invocation_metadata).get("authorization", "")
        if not hmac.compare_digest(sent.encode() if isinstance(sent, str) else sent, self._expected):
            # A streaming handler reads messages on demand, so a stranger's messages are not even received.
            return grpc.stream_stream_rpc_method_handler(_refuse)
        forward = self._channel.unary_unary(details.method)  # bytes to bytes; the engine has only unary methods

        def call(request: bytes, context: grpc.ServicerContext) -> bytes:
            left = context.time_remaining()
            try:
                return bytes(forward(request, timeout=left if left < _NO_DEADLINE else None))
            except grpc.RpcError as exc:
                context.abort(exc.code(), exc.details())
                raise

        return grpc.unary_unary_rpc_method_handler(call)


def _refuse(_requests: Iterator[bytes], context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSED)
    raise AssertionError  # abort has raised
