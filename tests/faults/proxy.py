"""A network that delays, cuts and goes silent: a proxy between a client and a server on this machine."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator


class Network:
    """Forwards TCP connections, and does to them what it is told.

    Attributes:
        delay: seconds that a piece of data is kept back, at most; each for a random part of it.
    """

    def __init__(self, target: int, seed: object) -> None:
        self.delay = 0.0
        self._target = target
        self._random = random.Random(str(seed))
        self._flows, self._refuses = threading.Event(), False
        self._flows.set()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float = 0.0) -> None:
        """Cut all connections, and for some time every new one."""
        self._refuses = True
        self._cut()
        time.sleep(seconds)
        self._refuses = False

    def silence(self) -> None:
        """Keep everything back until ``speak``: nobody can tell it from a network that lost it."""
        self._flows.clear()

    def speak(self) -> None:
        """End a silence."""
        self._flows.set()

    def close(self) -> None:
        """End everything."""
        self._refuses = True
        self._flows.set()
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._cut()

    def _cut(self) -> None:
        with self._lock:
            for end in self._sockets:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self._sockets.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.delay:
                    time.sleep(self._random.uniform(0, self.delay))
                self._flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def network(target: int, seed: object) -> Iterator[Network]:
    """A network to a port of this machine."""
    opened = Network(target, seed)
    try:
        yield opened
    finally:
        opened.close()
