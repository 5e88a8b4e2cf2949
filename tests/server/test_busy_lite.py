"""Milvus Lite that is busy for longer than a call may take, as while it reads a large collection, is waited for."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import grpc
import pytest
from pymilvus import exceptions

from mg_milvus import errors
from mg_milvus.config import MilvusConfig
from mg_milvus.schema.models import Granularity, Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.client import Connection
from mg_milvus.store.milvus import MilvusStore
from tests.servers import lite_server

if TYPE_CHECKING:
    from pathlib import Path

DESCRIPTION = Description(Schema(granularities=(Granularity(name="coarse", bits=16),)), "0123456789abcdef")


def test_reads_and_writes_wait_for_an_engine_that_is_busy(tmp_path: Path) -> None:
    with lite_server(tmp_path / "busy.db") as server:
        store = MilvusStore(MilvusConfig(server.uri, collection="images", timeout=0.5))
        store.create(DESCRIPTION)
        pid = server._process.pid
        row = Row("0" * 32, "/0.jpg", 1, 1, 1, 1, "", {"coarse": b"\0\0"})
        for work, expected in ((store.count, 0), (lambda: store.upsert([row]), None), (store.count, 1)):
            os.kill(pid, signal.SIGSTOP)
            wakes = threading.Timer(1.7, os.kill, (pid, signal.SIGCONT))
            wakes.start()
            try:
                assert work() == expected
            finally:
                os.kill(pid, signal.SIGCONT)
                wakes.join()
        store.close()


def test_servers_are_not_waited_for_longer_than_allowed() -> None:
    calls = 0

    def exceed() -> None:
        nonlocal calls
        calls += 1
        raise exceptions.MilvusException(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    connection = Connection(MilvusConfig("here", collection="images", timeout=10))
    with pytest.raises(errors.StoreUnavailableError, match="Deadline Exceeded"):
        connection.call(exceed)
    assert calls == 1
    connection.busy_timeout = 0.2
    with pytest.raises(errors.StoreUnavailableError, match="Deadline Exceeded"):
        connection.call(exceed)
    assert calls > 2
