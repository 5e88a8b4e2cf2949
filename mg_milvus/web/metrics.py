"""Metrics of the web page: requests, closed connections, query times and encoder batches."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mg_milvus.ingest.metrics import SECONDS, exposition

SIZES = (1, 2, 4, 8, 16, 32)
"""Upper bounds in images."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""All others are counted together as ``other``: clients can invent methods, and the number of series is bounded."""


class Metrics:
    """Metrics of one page, in a registry of its own. Safe to use from several threads."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "mgm_requests", "Requests by method, route and status.", ("method", "route", "status"), registry=own
        )
        self._closed = Counter(
            "mgm_connections_closed", "Connections too slow, or too many, by reason.", ("reason",), registry=own
        )
        self._query_seconds = Histogram("mgm_query_seconds", "Duration of queries.", buckets=SECONDS, registry=own)
        self._batch_sizes = Histogram("mgm_batch_images", "Query images per encoder pass.", buckets=SIZES, registry=own)
        self._rows = Gauge("mgm_rows", "Images in the index.", registry=own)

    def request(self, method: str, route: str, status: int) -> None:
        """Count a request by the pattern of its path, so that the number of series is bounded."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()

    def closed(self, reason: str) -> None:
        """Count a connection that the server closed: ``head``, ``body`` or ``response`` (too slow), or ``limit``."""
        self._closed.labels(reason).inc()

    def query(self, seconds: float) -> None:
        """Record the duration of a query."""
        self._query_seconds.observe(seconds)

    def batch(self, size: int) -> None:
        """Record the number of images of an encoder pass."""
        self._batch_sizes.observe(size)

    def text(self, rows: int) -> str:
        """All metrics in the Prometheus text format, with the number of rows of the index."""
        self._rows.set(rows)
        return exposition(self._registry)
