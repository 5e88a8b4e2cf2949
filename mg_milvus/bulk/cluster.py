"""Encode on the machines of a Ray cluster; the rows come in the order, and are those, of one machine.

The driver walks the sources and cuts their files into pieces; workers, each with an encoder of its own, open, decode
and encode the files of a piece; the driver takes their rows in the order of the pieces. A piece whose worker dies is
given to another one. All machines have the same packages, and see local files under the same paths. Only the driver
writes.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from mg_milvus.bulk.sources import is_container
from mg_milvus.bulk.stream import Skipped, Work, encode_files
from mg_milvus.encoder.function import FunctionEncoder
from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.onnx_runtime import RUNTIME_VARIABLE, forced_runtime
from mg_milvus.errors import ClusterError, EncoderError, ImageError, MgMilvusError, MissingPackageError
from mg_milvus.files import one_line
from mg_milvus.images.discover import is_url, text_path
from mg_milvus.images.limits import pixel_limit
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.records import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mg_milvus.bulk.stream import EncodedImages
    from mg_milvus.images.discover import Found
    from mg_milvus.store.base import Row


PIECE_BATCHES = 8
"""Batches of a piece of plain images: what a dead worker has done for nothing. A tar or a table is one piece."""
_AHEAD = 4
"""Pieces, for each worker, that may be finished before an earlier one: they wait in the driver's memory."""
_CPUS = 2
"""Cores of a worker without a GPU: one encodes while the other decodes."""
_ATTEMPTS = 3
"""Workers that may die over the same piece."""
_PATIENCE = 5.0
"""Seconds between two reports while no worker is ready."""
_ATTEMPTS_TO_CONNECT = 3
_NOT_STARTED = "Starting Ray client server failed"
"""What a head says that could not start the process of a new driver in time, as a busy one does now and then."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to encode.

    Attributes:
        address: ``ray``, or ``ray://HOST:PORT``.
        device: of the encoders.
        report: called while no worker is ready.
    """

    address: str
    device: str
    report: Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Result:
    """Of one piece: its rows in order, what was skipped, and the worker's runtime and machine."""

    rows: list[Row]
    skipped: Skipped
    runtime: str
    host: str


@dataclass(frozen=True, slots=True)
class _Orders:
    """What each worker is made from; numbers of ``Settings``, as its metrics stay with the driver."""

    encoder: bytes | FunctionEncoder
    device: str
    runtime: str | None
    batch_size: int
    threads: int
    max_pixels: int


class Worker:
    """An encoder in a process of its own: an actor of Ray."""

    def __init__(self, orders: _Orders, known: EncodedImages) -> None:
        self._orders, self._known, self._work = orders, known, cast("Work | None", None)

    def start(self) -> None:
        """Make the encoder; not in ``__init__``, whose exceptions Ray reports as the death of the actor."""
        orders = self._orders
        if orders.runtime:
            os.environ[RUNTIME_VARIABLE] = orders.runtime
        encoder = (
            load_encoder(orders.encoder, device=orders.device) if isinstance(orders.encoder, bytes) else orders.encoder
        )
        self._work = Work(encoder, Settings(orders.batch_size, orders.threads, orders.max_pixels), self._known)

    def encode(self, files: Sequence[Found]) -> Result:
        """Encode a piece.

        Raises:
            ImageError: this machine does not see the folders of local files.
            MissingPackageError: a file needs a package that is not installed here.
        """
        assert self._work is not None, "start comes first"  # noqa: S101 - the driver's own order of calls
        folders = {text_path(file.path).parent for file in files if not is_url(file.path)}
        if missing := sorted(str(folder) for folder in folders if not folder.exists()):
            raise ImageError(
                f"{missing[0]} is not on {socket.gethostname()}, a machine of the Ray cluster: put the images where "
                "all of them see them under the same path, in a shared folder or a bucket"
            )
        skipped = Skipped()
        rows = [row for batch in encode_files(files, self._work, skipped) for row in batch]
        return Result(rows, skipped, self._work.encoder.runtime, socket.gethostname())


def encode_on_ray(files: Iterator[Found], work: Work, skipped: Skipped, cluster: Cluster) -> Iterator[list[Row]]:
    """As ``encode_files``, on a cluster: the same rows in the same order.

    Args:
        files: see ``sources.files_of_shard``.
        work: see ``Work``; None for threads is one for each core of a worker.
        skipped: updated.
        cluster: where.

    Yields:
        The rows of one piece.

    Raises:
        ClusterError: the cluster is not there, has no GPU for the device ``cuda``, or its workers die.
        EncoderError: its machines compute codes in different ways.
        ImageError: a machine does not see the images.
        MissingPackageError: ray is not installed.
    """
    ray = _ray()
    with _connected(ray, cluster.address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, resources = workers(nodes, cluster.device)
        settings, encoder = work.settings, work.encoder
        orders = ray.put(
            _Orders(
                encoder if isinstance(encoder, FunctionEncoder) else encoder.to_bytes(), cluster.device,
                forced_runtime(), settings.batch_size, settings.workers or int(resources["num_cpus"]),
                pixel_limit(settings.max_pixels),
            )
        )  # fmt: skip
        known = ray.put(work.known)
        made = ray.remote(Worker).options(**resources)
        pool = _Pool(ray, lambda: made.remote(orders, known), count, cluster.report)
        try:
            for result in pool.run(_pieces(files, PIECE_BATCHES * settings.batch_size)):
                skipped.unchanged += result.skipped.unchanged
                skipped.failures += result.skipped.failures
                skipped.passed.counts.update(result.skipped.passed.counts)
                yield result.rows
        finally:
            pool.close()


def workers(nodes: Sequence[Mapping[str, float]], device: str) -> tuple[int, dict[str, float]]:
    """How many workers a cluster takes, and the share of a machine of each.

    With GPUs one a GPU: codes of GPUs and CPUs differ in a few bits, so that machines without one have nothing to do.
    Else one for two cores. At least one: clusters that grow on demand begin with no machine.

    Args:
        nodes: name -> amount of the resources of each machine, as Ray names them.
        device: of the encoders.

    Raises:
        ClusterError: the device is ``cuda``, and there is no GPU.
    """
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1] if device in {"auto", "cuda"} else []
    if gpus:
        cpus = min(node.get("CPU", 0) // node["GPU"] for node in gpus)
        return sum(int(node["GPU"]) for node in gpus), {"num_cpus": max(1, cpus), "num_gpus": 1}
    if device == "cuda":
        raise ClusterError(
            f"the Ray cluster has no GPU on its {len(nodes)} machines, expected some: leave --device out"
        )
    cpus = min(_CPUS, max((node.get("CPU", 0) for node in nodes), default=0)) or 1
    return max(1, sum(int(node.get("CPU", 0) // cpus) for node in nodes)), {"num_cpus": cpus}


def _pieces(files: Iterator[Found], size: int) -> Iterator[list[Found]]:
    """Files in order: a tar or a table alone, others in lists of at most ``size``."""
    piece: list[Found] = []
    for file in files:
        if is_container(file):
            yield from ([piece] if piece else [])
            yield [file]
            piece = []
            continue
        piece.append(file)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece


@dataclass(slots=True)
class _Pool:
    """Workers and the pieces that they have.

    Attributes:
        ray: the package.
        make: a new worker.
        count: of workers at a time.
        report: called while no worker is ready.
    """

    ray: Any
    make: Callable[[], Any]
    count: int
    report: Callable[[Progress], None]
    _running: dict[Any, tuple[Any, int | None]] = field(default_factory=dict)
    """Call -> worker and number of its piece; None while it starts."""
    _idle: deque[Any] = field(default_factory=deque)
    _pieces: dict[int, list[Found]] = field(default_factory=dict)
    """Those without a result yet."""
    _again: deque[int] = field(default_factory=deque)
    """Those whose worker died."""
    _results: dict[int, Result] = field(default_factory=dict)
    _deaths: Counter[int | None] = field(default_factory=Counter)
    _first: Result | None = None

    def run(self, pieces: Iterator[list[Found]]) -> Iterator[Result]:
        """Results in the order of the pieces."""
        for _ in range(self.count):
            self._start()
        sent = taken = 0
        while True:
            while self._idle and self._again:
                self._send(self._again.popleft())
            room = min(len(self._idle), taken + _AHEAD * self.count - sent)
            for piece in islice(pieces, max(0, room)):
                self._pieces[sent] = piece
                self._send(sent)
                sent += 1
            if taken in self._results:
                yield self._results.pop(taken)
                taken += 1
            elif taken == sent and self._idle:
                return
            else:
                self._wait()

    def close(self) -> None:
        """End all workers, also in the middle of their pieces."""
        for worker in [*self._idle, *(worker for worker, _ in self._running.values())]:
            self.ray.kill(worker)

    def _start(self) -> None:
        worker = self.make()
        self._running[worker.start.remote()] = worker, None

    def _send(self, number: int) -> None:
        worker = self._idle.popleft()
        self._running[worker.encode.remote(self._pieces[number])] = worker, number

    def _wait(self) -> None:
        """Wait for one call to end."""
        ended, _ = self.ray.wait(list(self._running), num_returns=1, timeout=_PATIENCE)
        if not ended and not self._idle and all(number is None for _, number in self._running.values()):
            self.report(Progress("waiting for the Ray cluster", 0, 0, 0))
        for call in ended:
            worker, number = self._running.pop(call)
            try:
                result = self.ray.get(call)
            except self.ray.exceptions.RayTaskError as error:
                self.ray.kill(worker)
                if isinstance(error.cause, MgMilvusError):
                    raise error.cause from error
                raise
            except self.ray.exceptions.RayError as error:  # the worker, its machine, or the result is gone
                self.ray.kill(worker)
                self._lost(number, error)
            else:
                self._idle.append(worker)
                self._deaths[None] = 0
                if number is not None:
                    self._keep(number, result)

    def _keep(self, number: int, result: Result) -> None:
        self._first = self._first or replace(result, rows=[])
        if result.runtime != self._first.runtime:
            raise EncoderError(
                f"{self._first.host} computes in {self._first.runtime}, {result.host} in {result.runtime}, and their "
                f"codes differ in a few bits: set {RUNTIME_VARIABLE}=onnx here, or use machines of one kind"
            )
        del self._pieces[number]
        self._results[number] = result

    def _lost(self, number: int | None, error: Exception) -> None:
        """Another worker in place of one that died, which does its piece again."""
        self._deaths[number] += 1
        if self._deaths[number] == _ATTEMPTS:
            reason = one_line(str(error), 300)
            if number is None:
                raise ClusterError(
                    f"no worker starts on the Ray cluster ({reason}): install mg-milvus with the same packages on all "
                    "of its machines"
                )
            piece = self._pieces[number]
            raise ClusterError(
                f"{_ATTEMPTS} workers of the Ray cluster died at the same {len(piece)} files, from {piece[0].path} to "
                f"{piece[-1].path} ({reason}): give them more memory, or find the file with mgm encode on one machine"
            )
        if number is not None:
            self._again.append(number)
        self._start()


def _ray() -> Any:
    """The package ray.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingPackageError(
            f"ray, which encodes on many machines, cannot be imported ({error}): pip install 'mg-milvus[ray]'"
        ) from error
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """A connection to the cluster; that of a program that has one is used, and stays.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for attempt in range(_ATTEMPTS_TO_CONNECT):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(None if address == "ray" else address, log_to_driver=False, logging_level="error")
            break
        except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
            # A failed connection leaves Ray's functions directed to a client that is none.
            ray.util.disconnect()
            if _NOT_STARTED in str(error) and attempt + 1 < _ATTEMPTS_TO_CONNECT:
                continue
            raise ClusterError(
                f"the Ray cluster {address} cannot be reached ({one_line(str(error), 300)}): start it with ray start, "
                "and with the Python and ray that are here"
            ) from error
    # Deaths of workers are printed to standard output whatever Ray is told (2.60), where reports and JSON belong.
    printed = getattr(ray._private.worker, "print_to_stdstream", None)
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        ray.shutdown()
        ray._private.worker.print_to_stdstream = printed
