"""Milvus Lite's engine killed under open stores: started again, the request repeated once, then one sentence."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mg_milvus import ImageIndex, MilvusConfig, errors
from mg_milvus.store import lite, lite_server
from mg_milvus.store.base import Description
from mg_milvus.store.milvus import MilvusStore
from tests.server import rights
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SCHEMA = rights.SCHEMA


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mgm.db"


@pytest.fixture
def store(file: Path) -> Iterator[MilvusStore]:
    with closing(MilvusStore(MilvusConfig(str(file), collection="photos"))) as opened:
        opened.create(Description(SCHEMA, rights.PRINT))
        opened.put_encoder(rights.PRINT, b"an encoder")
        opened.upsert(rights.rows(SCHEMA))
        yield opened


def kill(file: Path) -> None:
    process = lite._engines[file].process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_every_request_works_after_a_death(store: MilvusStore, file: Path) -> None:
    for work in (rights.read, rights.write, rights.read):
        kill(file)
        work(store, SCHEMA)
    requests: tuple[Callable[[], object], ...] = (
        store.describe, store.count, lambda: store.fetch(["f" * 32]), store.regions.count, store.size,
        lambda: store.get_encoder(rights.PRINT), lambda: store.delete([rights.rows(SCHEMA)[0].id]),
        lambda: store.upsert(rights.rows(SCHEMA)),
    )  # fmt: skip
    for request in requests:
        kill(file)
        request()
    assert store.count() == 3
    assert lite.revive(file) == (3 + len(requests), "by signal 9 (SIGKILL)")


def test_a_request_during_which_it_dies_is_repeated_once(store: MilvusStore, file: Path) -> None:
    process = lite._engines[file].process
    responses = []

    def request() -> None:
        if process.poll() is None:
            kill(file)
        responses.append(store._client.query("photos", filter="size > 0", output_fields=["id"], timeout=10))

    store._connection.call(request)
    assert [len(response) for response in responses] == [3]
    assert lite.revive(file)[0] == 1


def test_a_request_that_kills_it_twice_is_told_so(store: MilvusStore, file: Path) -> None:
    def request() -> object:
        kill(file)
        return store._client.query("photos", filter="size > 0", output_fields=["id"], timeout=10)

    with pytest.raises(errors.StoreError) as caught:
        store._connection.call(request)
    assert str(caught.value) == (
        f"Milvus Lite's engine for {file} ended by signal 9 (SIGKILL) during a request, and again when the request was "
        "repeated: the machine may be out of memory; end other programs, or use a Milvus server (--uri http://HOST:19530)"
    )
    rights.read(store, SCHEMA)


def test_an_engine_that_is_killed_as_it_starts(store: MilvusStore, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(lite, "engine_command", lambda *_: ["/bin/sh", "-c", "kill -9 $$"])
        kill(file)
        with pytest.raises(errors.StoreError, match=r"was ended by signal 9 \(SIGKILL\) while it started: the machine"):
            store.count()
    assert store.count() == 3


def test_two_stores_share_the_new_engine_and_the_last_one_ends_it(store: MilvusStore, file: Path) -> None:
    with closing(MilvusStore(MilvusConfig(str(file), collection="photos"))) as second:
        kill(file)
        assert (second.count(), store.count()) == (3, 3)
        process = lite._engines[file].process
    assert process.poll() is None
    kill(file)
    store.close()
    assert file not in lite._engines
    lite.lock(file).close()  # which is free again


def test_a_file_that_cannot_be_changed(store: MilvusStore, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.close()
    monkeypatch.setattr(lite, "is_read_only", lambda _file: True)
    with closing(MilvusStore(MilvusConfig(str(file), collection="photos"))) as copied:
        kill(file)
        rights.read(copied, SCHEMA)


def test_many_threads_ask_while_it_dies(store: MilvusStore, file: Path) -> None:
    zero = np.zeros((1, 2), np.uint8)

    def ask(number: int) -> list[int]:
        if number == 20:
            kill(file)
        return store.nearest("coarse", zero, 3)[0].distances.tolist()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(100))) == [[0, 1, 1]] * 100


def test_an_index(photos: Path, file: Path) -> None:
    query = photos / "disc" / "00.jpg"
    with ImageIndex.open(str(file)) as index:
        index.ingest(photos / "disc", photos / "stripes")
        for _ in range(2):
            kill(file)
            assert index.query(query, k=1)[0].path == str(query)
        kill(file)
        assert index.ingest(photos / "blocks").added == 20
        assert index.count() == 60


def engine_of(running: lite_server.Server) -> int:
    """The process of a daemon's engine, its only child."""
    (child,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    return int(child)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_daemon_starts_it_again_once_and_says_how_it_ended(file: Path) -> None:
    running, _ = lite_server.up(file, 0)
    try:
        config = MilvusConfig(str(file), collection="photos", timeout=20)
        with closing(MilvusStore(config)) as store, closing(MilvusStore(replace(config, uri=running.uri))) as by_uri:
            store.create(Description(SCHEMA, rights.PRINT))
            store.put_encoder(rights.PRINT, b"an encoder")
            store.upsert(rights.rows(SCHEMA))
            os.kill(engine_of(running), signal.SIGKILL)
            rights.read(store, SCHEMA)
            rights.read(by_uri, SCHEMA)
            assert lite_server.server_of(file) == running
            os.kill(engine_of(running), signal.SIGKILL)  # within a minute
            wait_until(lambda: lite_server.server_of(file) is None, "the daemon has ended")
            store._connection.config = replace(config, timeout=1)
            with pytest.raises(errors.StoreUnavailableError, match=rf"the server of {file} has ended, and {file}\.log"):
                store.count()
    finally:
        lite_server.down(file)
    log = Path(running.log).read_text()
    assert log.count("the engine has ended by signal 9 (SIGKILL)") == 2
