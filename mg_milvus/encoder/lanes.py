"""How do several small batches share a processor's cores? Each has one, rather than all of them sharing each batch.

A network of many small steps, run by all cores together, has them wait for each other after every step; and when one of
them is busy with decoding a picture, all of them wait for that one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Job = TypeVar("Job")
    Result = TypeVar("Result")

PICTURES = 8
"""On a CPU, in one lane: what a network makes of more of them does not stay in its cache."""
_LANES = 8
"""At most: a batch of an ingest is 64 pictures. With more cores, each lane has several."""


def in_lanes(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterable[Result]:
    """What ``work`` makes of each job, in order, done by torch on the CPU side by side.

    One job alone is done by all cores together. The results do not depend on it.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(jobs), _LANES)
    if lanes <= 1:
        return [work(job) for job in jobs]
    try:
        with ThreadPoolExecutor(lanes, "mgm-lane", torch.set_num_threads, (threads // lanes,)) as pool:
            return list(pool.map(work, jobs))
    finally:
        torch.set_num_threads(threads)  # torch gives threads that begin later what was set last, by whomever
