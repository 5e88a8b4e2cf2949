"""Many clients at once: queries a second, how long an answer takes, and whether every one comes and is right.

    python benchmarks/clients.py [--rows 10000] [--clients 1,4,16] [--seconds 8] [--json FILE]

``mgm up`` serves a Milvus Lite file of synthetic codes. The clients are processes with an ``ImageIndex`` of their own,
each asking its next query (k = 10, all granularities) as soon as it has its answer; then as many threads of one
process that share one ``ImageIndex``. Every answer is compared with the one that a single client got before: one that
is another, or an error, is a failure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from operations import QUERIES
from result_file import write_result
from side_by_side.measuring import show
from synthetic import fill, make, synthetic_codes

from mg_milvus.config import MilvusConfig
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store import lite_server
from mg_milvus.store.milvus import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.codes import Codes

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 300
"""Seconds that clients may take to start."""


def answer(index: ImageIndex, codes: Mapping[str, Codes], number: int) -> list[str]:
    return [hit.id for hit in index.query_codes({name: own[number] for name, own in codes.items()}, k=10)]


def ask(index: ImageIndex, known: Sequence[Sequence[str]], seconds: float, first: int, start: Any) -> tuple[list, list]:
    """Milliseconds of each answer, and what failed; begins when all others do."""
    codes = synthetic_codes(QUERIES, index.schema, seed=0)
    answer(index, codes, 0)
    taken: list[float] = []
    failed: list[str] = []
    start.wait(PATIENCE)
    end = time.perf_counter() + seconds
    for number in count(first):
        began = time.perf_counter()
        if began > end:
            return taken, failed
        try:
            if answer(index, codes, number % QUERIES) != known[number % QUERIES]:
                failed.append("another answer")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            failed.append(repr(error))
        taken.append(1000 * (time.perf_counter() - began))
    raise AssertionError


def client(uri: str, known: Any, seconds: float, first: int, start: Any, results: Any) -> None:
    """A process of its own."""
    with ImageIndex.open(uri, timeout=60) as index:
        results.put(ask(index, known, seconds, first, start))


def processes(uri: str, known: Any, seconds: float, clients: int) -> list[tuple[list, list]]:
    start, results = SPAWN.Barrier(clients), SPAWN.Queue()
    running = [
        SPAWN.Process(target=client, args=(uri, known, seconds, 7 * number, start, results))
        for number in range(clients)
    ]
    for process in running:
        process.start()
    try:
        return [results.get(timeout=PATIENCE + seconds) for _ in running]
    finally:
        for process in running:
            process.join(10)
            process.kill()


def threads(uri: str, known: Any, seconds: float, clients: int) -> list[tuple[list, list]]:
    results: list[tuple[list, list]] = []
    start = Barrier(clients)
    with ImageIndex.open(uri, timeout=60) as index:
        running = [
            Thread(target=lambda first=7 * number: results.append(ask(index, known, seconds, first, start)))
            for number in range(clients)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    return results


def figures(results: Sequence[tuple[list, list]], seconds: float) -> dict[str, float]:
    taken = [value for own, _ in results for value in own]
    failed = [error for _, own in results for error in own]
    if failed:
        print(f"failures, such as: {failed[0]}")
    return {
        "queries/s": len(taken) / seconds,
        **{f"p{p} ms": float(np.percentile(taken, p)) for p in (50, 95, 99)},
        "failures": len(failed),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    schema, table = Schema(), {}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "clients.db"
        store = open_store(MilvusConfig(str(file), collection=schema.collection, timeout=60))
        make(store, schema)
        fill(store, schema, 0, options.rows)
        store.close()
        uri = lite_server.up(file, 0)[0].uri
        try:
            with ImageIndex.open(uri, timeout=60) as index:
                codes = synthetic_codes(QUERIES, schema, seed=0)
                known = [answer(index, codes, number) for number in range(QUERIES)]
            for clients in map(int, options.clients.split(",")):
                for kind, run in (("processes", processes), ("threads", threads)):
                    if (kind, clients) != ("threads", 1):
                        results = run(uri, known, options.seconds, clients)
                        table[f"{clients} {kind}"] = figures(results, options.seconds)
        finally:
            lite_server.down(file)
    show(f"{options.rows:,} rows", list(next(iter(table.values()))), table)
    if options.json:
        write_result(options.json, table)
    return int(any(own["failures"] for own in table.values()))


if __name__ == "__main__":
    raise SystemExit(main())
