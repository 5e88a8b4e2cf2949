"""Counts and durations in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SIZES = (1, 2, 4, 8, 16, 32)


class Histogram:
    """How many observations were at most so large. Guarded by its owner's lock."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one observation."""
        self._counts[next((i for i, bound in enumerate(self._bounds) if value <= bound), len(self._bounds))] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        """The lines of the text format; buckets count everything up to their bound."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Meters:
    """What the page counts. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._query_seconds = Histogram(SECONDS)
        self._batch_sizes = Histogram(SIZES)

    def request(self, method: str, route: str, status: int) -> None:
        """Count a request by the pattern of its path, so that the number of series is bounded."""
        with self._lock:
            self._requests[method, route, status] += 1

    def query(self, seconds: float) -> None:
        """Count an answered question."""
        with self._lock:
            self._query_seconds.add(seconds)

    def batch(self, size: int) -> None:
        """Count a pass of the encoder."""
        with self._lock:
            self._batch_sizes.add(size)

    def text(self, rows: int) -> str:
        """All of it, with the number of rows of the index."""
        with self._lock:
            lines = ["# TYPE mgm_requests_total counter"]
            lines += [
                f'mgm_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}'
                for (method, route, status), count in sorted(self._requests.items())
            ]
            lines += ["# TYPE mgm_query_seconds histogram", *self._query_seconds.lines("mgm_query_seconds")]
            lines += ["# TYPE mgm_batch_pictures histogram", *self._batch_sizes.lines("mgm_batch_pictures")]
            lines += ["# TYPE mgm_rows gauge", f"mgm_rows {rows}", ""]
        return "\n".join(lines)
