"""What the page counts, and how it tells it."""

from __future__ import annotations

import threading
from collections import Counter

from mg_milvus.ingest.metrics import Histogram, header, sample

SIZES = (1, 2, 4, 8, 16, 32)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Whoever asks can invent others; those are counted together, as ``other``."""


class Meters:
    """What the page counts. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._closed: Counter[str] = Counter()
        self._query_seconds = Histogram()
        self._batch_sizes = Histogram(SIZES)

    def request(self, method: str, route: str, status: int) -> None:
        """Count a request by the pattern of its path, so that the number of series is bounded."""
        with self._lock:
            self._requests[method if method in METHODS else "other", route, status] += 1

    def closed(self, reason: str) -> None:
        """Count a connection that was closed on its client: ``head``, ``body``, ``answer`` or ``crowd``."""
        with self._lock:
            self._closed[reason] += 1

    def query(self, seconds: float) -> None:
        """Count an answered query."""
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
            lines += header("mgm_connections_closed_total", "counter", "Connections too slow, or too many, by reason.")
            lines += [
                sample("mgm_connections_closed_total", count, {"reason": reason})
                for reason, count in sorted(self._closed.items())
            ]
            lines += header("mgm_query_seconds", "histogram", "How long queries took to answer.")
            lines += self._query_seconds.samples("mgm_query_seconds")
            lines += header("mgm_batch_images", "histogram", "Query images that the encoder took at once.")
            lines += self._batch_sizes.samples("mgm_batch_images")
            lines += [*header("mgm_rows", "gauge", "Images in the index."), sample("mgm_rows", rows), ""]
        return "\n".join(lines)
