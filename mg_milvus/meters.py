"""Numbers for those who watch: the text format of Prometheus, which the page serves and an ingest writes to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds in seconds for what takes from milliseconds to seconds."""


class Histogram:
    """How many observations were at most so large. Guarded by its owner's lock."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one observation."""
        self._counts[next((i for i, bound in enumerate(self._bounds) if value <= bound), len(self._bounds))] += 1
        self._sum += value

    def samples(self, name: str, labels: Mapping[str, str] | None = None) -> Iterator[str]:
        """The lines of the text format; buckets count everything up to their bound."""
        own = dict(labels or {})
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield sample(f"{name}_bucket", total, own | {"le": str(bound)})
        yield sample(f"{name}_sum", round(self._sum, 6), own)
        yield sample(f"{name}_count", total, own)


def header(name: str, kind: str, told: str) -> list[str]:
    """The two lines before the samples of a metric: what it is, and of which kind (counter, gauge, histogram)."""
    escaped = told.replace("\\", "\\\\").replace("\n", "\\n")
    return [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"]


def sample(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    """One line: a name, its labels, a number."""
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in (labels or {}).items())
    return f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
