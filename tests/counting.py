"""A relay between a client and a Milvus: what is asked of Milvus, call by call, counted where it goes over the wire."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Traffic:
    """What went through: name of the call, bytes of the request and of the answer, in order."""

    calls: list[tuple[str, int, int]] = field(default_factory=list)

    def counted(self) -> dict[str, int]:
        """Name -> how often it was called."""
        return dict(Counter(name for name, _, _ in self.calls))

    def sent(self, name: str) -> int:
        """Bytes of all requests of this name."""
        return sum(request for called, request, _ in self.calls if called == name)

    def received(self) -> int:
        """Bytes of all answers."""
        return sum(answer for _, _, answer in self.calls)


class Relay(grpc.GenericRpcHandler):
    """Passes messages on as they are, without looking inside."""

    def __init__(self, target: grpc.Channel) -> None:
        self._target = target
        self._traffic = Traffic()

    @contextmanager
    def watched(self) -> Iterator[Traffic]:
        """What goes through meanwhile."""
        self._traffic = traffic = Traffic()
        yield traffic

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def passed(request: bytes, context: grpc.ServicerContext) -> bytes:
            ask = self._target.unary_unary(details.method)
            left = min(60.0, context.time_remaining())  # no deadline reads as ages, which gRPC takes for the past
            try:
                answer: bytes = ask(request, metadata=details.invocation_metadata, timeout=left)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            self._traffic.calls.append((details.method.rsplit("/", 1)[1], len(request), len(answer)))
            return answer

        return grpc.unary_unary_rpc_method_handler(passed)


@contextmanager
def relay(uri: str) -> Iterator[tuple[str, Relay]]:
    """The URI of a relay to a Milvus at ``uri``, and the relay."""
    largest = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(uri.removeprefix("http://"), options=largest) as channel:
        handler = Relay(channel)
        server = grpc.server(ThreadPoolExecutor(4), handlers=[handler], options=largest)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}", handler
        finally:
            server.stop(None).wait()
