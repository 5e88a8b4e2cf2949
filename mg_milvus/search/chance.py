"""What chance looks like in a collection: how far random pairs of its images are from each other.

A sample of rows is compared pair by pair after an ingest, and the counts of the distances are kept beside the
collection. They turn a distance in bits into the share of random pairs that are as near, which is comparable between
granularities, queries and collections.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.codes import hamming
from mg_milvus.errors import StoreError
from mg_milvus.search.rows import random_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mg_milvus.schema.models import Schema
    from mg_milvus.session import Session
    from mg_milvus.store.base import Store

    Counts = NDArray[np.int64]


SAMPLE = 2_000
"""Rows whose pairs are compared, at most: 2 million pairs."""
FEWEST = 50
"""Fewest rows to measure."""
_GROWN = 2
"""A collection that has become this many times larger, or smaller, is measured again."""
_KEPT_FOR = 60.0
"""Seconds after which a client looks again whether another one has measured."""
_BLOCK = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chance:
    """The distances of random pairs of a collection's images.

    Attributes:
        fingerprint: of the encoder that made the codes.
        rows: of the collection when it was measured.
        counts: granularity -> (bits + 1,) number of pairs that are 0, 1, 2, ... bits apart.
        later: images that were encoded after the heads had been fitted to others.
        far: of these, images unlike those that the heads were fitted on.
    """

    fingerprint: str
    rows: int
    counts: Mapping[str, Counts]
    later: int = 0
    far: int = 0

    def of(self, granularity: str, distances: NDArray[Any]) -> NDArray[np.float64]:
        """The share of random pairs that are at most this far apart.

        Between whole distances the counts are interpolated. One more pair is spread evenly over all distances, so the
        share is never 0, and a smaller distance has a smaller share.

        Args:
            granularity: one of ``counts``.
            distances: (n,) distances in bits, whole numbers or not.

        Returns:
            (n,) float64 above 0, at most 1.
        """
        counts = self.counts[granularity]
        within = np.cumsum(counts) + np.arange(1, len(counts) + 1) / len(counts)
        shares: NDArray[np.float64] = np.interp(distances, np.arange(len(counts)), within) / within[-1]
        return shares

    def spread(self, granularity: str) -> float:
        """How much the distances vary beyond those of random codes, as a share of the bits.

        0 for independent bits; the larger, the more clearly the images fall into groups.
        """
        bits = len(self.counts[granularity]) - 1
        return math.sqrt(max(0.0, self._variance(granularity) - 1 / (4 * bits)))

    def deviation(self, granularity: str) -> float:
        """The standard deviation of the distances around a half of the bits, as a share of the bits."""
        return math.sqrt(self._variance(granularity))

    def _variance(self, granularity: str) -> float:
        counts = self.counts[granularity]
        shares = np.arange(len(counts)) / (len(counts) - 1)
        return float(np.average((shares - 0.5) ** 2, weights=counts))

    def to_bytes(self) -> bytes:
        """JSON, of which ``from_bytes`` makes the same record."""
        counts = {name: own.tolist() for name, own in self.counts.items()}
        whole = {"fingerprint": self.fingerprint, "rows": self.rows, "later": self.later, "far": self.far}
        return json.dumps(whole | {"counts": counts}).encode()

    @classmethod
    def from_bytes(cls, data: bytes, bits: Mapping[str, int]) -> Chance:
        """Read what ``to_bytes`` wrote.

        Args:
            data: from beside a collection.
            bits: granularity -> code length of that collection.

        Raises:
            ValueError: ``to_bytes`` has not written it, or for other codes.
        """
        found = json.loads(data)
        if (
            not isinstance(found, dict)
            or not isinstance(found.get("counts"), dict)
            or not all(type(found.get(name)) is int for name in ("rows", "later", "far"))
        ):
            raise ValueError("no counts of distances")
        if not 0 <= found["far"] <= found["later"]:
            raise ValueError(f"{found['far']} of {found['later']} later images are far")
        counts = {}
        for name, length in bits.items():
            own = found["counts"].get(name)
            if not isinstance(own, list) or len(own) != length + 1:
                raise ValueError(f"no counts of {name}")
            if not all(type(count) is int and 0 <= count <= SAMPLE * SAMPLE for count in own) or not any(own):
                raise ValueError(f"the counts of {name} are no numbers of pairs")
            counts[name] = np.array(own, np.int64)
        return cls(str(found.get("fingerprint")), found["rows"], counts, found["later"], found["far"])


def pair_counts(codes: Mapping[str, NDArray[np.uint8]]) -> dict[str, Counts]:
    """Number of pairs of images at each distance.

    Args:
        codes: granularity -> (n, bits / 8).

    Returns:
        Granularity -> (bits + 1,) counts of the n (n - 1) / 2 pairs.
    """
    found = {}
    for name, own in codes.items():
        bits = 8 * own.shape[1]
        counts = np.zeros(bits + 1, np.int64)
        for start in range(0, len(own), _BLOCK):
            rows = own[start : start + _BLOCK]
            counts += np.bincount(hamming(rows, own[start:])[np.triu_indices(len(rows), 1, len(own) - start)],
                                  minlength=bits + 1)  # fmt: skip
        found[name] = counts
    return found


def measure(store: Store, schema: Schema, fingerprint: str) -> Chance | None:
    """Compare the pairs of a random sample of rows; None for fewer than ``FEWEST``."""
    rows = store.size()
    ids = random_ids(store, schema, SAMPLE) if rows >= FEWEST else []
    stored = store.fetch_codes(ids, tuple(schema.bits)) if ids else {}
    if len(stored) < FEWEST:
        return None
    codes = {
        name: np.frombuffer(b"".join(own[name] for own in stored.values()), np.uint8).reshape(len(stored), bits // 8)
        for name, bits in schema.bits.items()
    }
    return Chance(fingerprint, rows, pair_counts(codes))


class ChanceKeeper:
    """What chance looks like in the collection of a session, as it is kept beside it.

    Attributes:
        session: the open collection.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._read: tuple[str, float, Chance | None] | None = None

    def chance(self) -> Chance | None:
        """The last measurement; None when there is none. Read from the store at most once a minute."""
        fingerprint = self.session.existing().fingerprint
        if self._read is not None and self._read[0] == fingerprint and time.monotonic() - self._read[1] < _KEPT_FOR:
            return self._read[2]
        data, chance = self.session.store.get_statistics(), None
        if data is not None:
            try:
                chance = Chance.from_bytes(data, self.session.existing().schema.bits)
            except (ValueError, RecursionError) as error:
                _log.warning(
                    "the statistics of this collection are damaged (%s); mgm ingest measures them again", error
                )
        if chance is not None and chance.fingerprint != fingerprint:  # of an earlier collection of this name
            chance = None
        self._read = (fingerprint, time.monotonic(), chance)
        return chance

    def refresh(self, later: int = 0, far: int = 0) -> None:
        """Measure the collection where it was not, or has grown or shrunk much since; after rows were written.

        Args:
            later: images just encoded by heads that were fitted to others.
            far: of these, images unlike those.

        A failure of the store is logged: the rows are there, and the next ingest tries again.
        """
        self._read = None
        try:
            self._refresh(later, far)
        except StoreError as error:
            _log.warning("how far images are from each other by chance could not be measured: %s", error)

    def _refresh(self, later: int, far: int) -> None:
        description = self.session.description()
        if description is None:
            return
        known, rows = self.chance(), self.session.store.size()
        current = known is not None and known.rows / _GROWN < rows < known.rows * _GROWN
        if current and not later:
            return
        found = known if current else measure(self.session.store, description.schema, description.fingerprint)
        if found is not None:
            if known is not None:
                later, far = known.later + later, known.far + far
            found = replace(found, later=later, far=far)
            self.session.store.put_statistics(found.to_bytes())
            self._read = (description.fingerprint, time.monotonic(), found)
