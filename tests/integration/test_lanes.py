"""Batches side by side on a processor's cores: order, threads, errors, and codes that do not depend on it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.torch_runtime import IMAGES, TorchEncoder, in_lanes
from tests.conftest import KINDS, kind_of_image

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def threads() -> Iterator[int]:
    """Two threads for torch, however many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def in_a_thread_of_its_own() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_jobs_run_side_by_side_each_on_one_core_and_come_back_in_order(threads: int) -> None:
    both = threading.Barrier(threads, timeout=60)

    def work(job: int) -> tuple[int, int]:
        both.wait()  # until another lane is here, too
        return job, torch.get_num_threads()

    assert list(in_lanes(work, range(6))) == [(job, 1) for job in range(6)]
    assert (torch.get_num_threads(), in_a_thread_of_its_own()) == (threads, threads)


def test_one_job_alone_has_all_cores_and_no_thread_of_its_own(threads: int) -> None:
    found = list(in_lanes(lambda _: (torch.get_num_threads(), threading.current_thread()), [0]))
    assert found == [(threads, threading.current_thread())]
    assert list(in_lanes(str, [])) == []


def test_with_one_core_there_are_no_lanes() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert set(in_lanes(lambda _: threading.current_thread(), range(3))) == {threading.current_thread()}
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_lane_is_the_callers_and_leaves_the_threads_as_they_were(threads: int) -> None:
    def work(job: int) -> int:
        return 1 // job

    with pytest.raises(ZeroDivisionError):
        in_lanes(work, [1, 0, 1])
    assert (torch.get_num_threads(), in_a_thread_of_its_own()) == (threads, threads)


def test_a_code_does_not_depend_on_the_lanes(threads: int) -> None:
    encoder = TorchEncoder(load_encoder().state, device="cpu")
    sizes = [(96, 64), (64, 96)]
    images = [encoder.prepare(kind_of_image(KINDS[i % 3], i, sizes[i % 5 == 0])) for i in range(2 * IMAGES + 3)]
    together = encoder.encode(images)
    torch.set_num_threads(1)
    for row in range(0, len(images), 5):
        alone = encoder.encode([images[row]])
        assert all((alone[name][0] == codes[row]).all() for name, codes in together.items()), row
