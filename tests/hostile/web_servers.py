"""Web pages to attack: ``mgm serve`` as a process, and the same server in a thread with shorter times."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import uvicorn

from mg_milvus.index import ImageIndex
from mg_milvus.web.app import bind, config, create_app
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastapi import FastAPI

    from mg_milvus.web.security import WebSettings

TOKEN = "kYe3-Zp8w_Qx51uB"


@dataclass(frozen=True)
class Served:
    """A running ``mgm serve``; ``said`` reads what it writes once it has ended."""

    process: subprocess.Popen[str]
    port: int
    line: str

    def end(self) -> tuple[str, str]:
        """Stop it: what it wrote to standard output, after its first line, and to standard error."""
        self.process.terminate()
        return self.process.communicate(timeout=PATIENCE)


@contextmanager
def mgm_serve(folder: Path, *options: str, **environment: str) -> Iterator[Served]:
    """``mgm serve`` over an empty index, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mg_milvus", "serve", "--uri", "index.db", "--port", "0", *options],
        cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = first_line(process.stdout)
        yield Served(process, int(line.split("/")[2].rpartition(":")[2]), line)
    finally:
        process.kill()
        process.communicate()


def first_line(stream: IO[str] | None) -> str:
    """What a server says when it is ready."""
    assert stream is not None
    line = stream.readline()
    assert line.startswith("http://"), line
    return line


@contextmanager
def in_thread(settings: WebSettings) -> Iterator[tuple[int, FastAPI]]:
    """Port and application of a server in this process, over an empty index in memory."""
    with ImageIndex.open("memory:") as index:
        app = create_app(index, settings)
        taken = bind("127.0.0.1", 0, settings.token)
        running = uvicorn.Server(config(app))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [taken]})
        thread.start()
        while not running.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield int(taken.getsockname()[1]), app
        finally:
            app.state.mgm.shutdown.set()
            running.should_exit = True
            thread.join()
            taken.close()
