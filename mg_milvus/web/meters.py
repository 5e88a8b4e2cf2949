"""What the page counts, and how it tells it."""

from __future__ import annotations

import threading
from collections import Counter

from mg_milvus.meters import Histogram, header, sample

SIZES = (1, 2, 4, 8, 16, 32)


class Meters:
    """What the page counts. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._query_seconds = Histogram()
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
        """All of it in the text format of Prometheus, with the number of rows of the index."""
        with self._lock:
            lines = header("mgm_requests_total", "counter", "Requests by method, route and status.")
            lines += [
                sample("mgm_requests_total", count, {"method": method, "route": route, "status": str(status)})
                for (method, route, status), count in sorted(self._requests.items())
            ]
            lines += header("mgm_query_seconds", "histogram", "How long questions took to answer.")
            lines += self._query_seconds.samples("mgm_query_seconds")
            lines += header("mgm_batch_pictures", "histogram", "Query pictures that the encoder took at once.")
            lines += self._batch_sizes.samples("mgm_batch_pictures")
            lines += [*header("mgm_rows", "gauge", "Pictures in the index."), sample("mgm_rows", rows), ""]
        return "\n".join(lines)
