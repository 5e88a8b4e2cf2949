"""What is asked of the search for near-duplicates, checked."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.duplicates.calibration import FINE, Calibration
from mg_milvus.duplicates.grouping import KEEP
from mg_milvus.duplicates.tails import largest_distance
from mg_milvus.errors import QueryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mg_milvus.schema import Schema

PRECISION = 0.99
"""Unless told otherwise, one of a hundred pairs found may be near by chance."""
MOST_EACH = 100
"""Near pairs for each picture, on average, up to which the largest distance is looked for."""


@dataclass(frozen=True, slots=True)
class Question:
    """Checked options.

    Attributes:
        distance: of near pairs on ``fine``; None: chosen by the precision.
        precision: share of the pairs found that should not be near by chance.
        keep: a key of ``KEEP``.
    """

    distance: int | None
    precision: float
    keep: str

    @classmethod
    def of(cls, schema: Schema, *, distance: int | None, precision: float | None, keep: str) -> Question:
        """Check options against a schema.

        Raises:
            QueryError: the schema has no ``fine``, or an option is out of range.
        """
        bits = schema.bits
        if FINE not in bits:
            raise QueryError(
                f"near-duplicates are found by the granularity '{FINE}', '{schema.collection}' has {', '.join(bits)}; "
                f"ingest into a collection whose schema has '{FINE}'"
            )
        if distance is not None and precision is not None:
            raise QueryError("distance and precision were both given; the distance follows from the precision")
        if distance is not None and not 0 <= distance <= bits[FINE]:
            raise QueryError(f"distance is {distance}, expected a number of bits from 0 to {bits[FINE]}")
        if precision is not None and not 0 < precision < 1:
            raise QueryError(f"precision is {precision:g}, expected a number between 0 and 1, such as {PRECISION}")
        if keep not in KEEP:
            near = get_close_matches(keep, KEEP, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise QueryError(f"keep is '{keep}'{hint}, expected {', '.join(KEEP)}")
        return cls(distance, PRECISION if precision is None else precision, keep)

    def radius(self, calibration: Calibration, compared: int, pictures: int) -> int:
        """The largest distance that near pairs may turn out to have.

        Raises:
            QueryError: there are too few pictures to tell.
        """
        if self.distance is not None:
            return self.distance
        if calibration.tail is None:
            raise QueryError(
                "it cannot be told here how near unrelated pictures are: there are too few, or nearly all have "
                "duplicates; give a distance in bits, such as 8 (0 finds equal codes)"
            )
        allowed = (1 - self.precision) * MOST_EACH * pictures
        return max(0, int(np.searchsorted(calibration.tail.rates * compared, allowed, side="right")) - 1)

    def chosen(self, calibration: Calibration, compared: int, found: NDArray[np.int64]) -> int | None:
        """The distance of near pairs, given the number of checked pairs found at each distance up to the radius."""
        if self.distance is not None or calibration.tail is None:
            return self.distance
        return largest_distance(calibration.tail.rates[: len(found)] * compared, np.cumsum(found), self.precision)
