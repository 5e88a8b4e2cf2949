"""How near a picture is on each granularity, as bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Bar:
    """How near a picture is on one granularity; as long as the share of bits that agree."""

    name: str
    hue: int
    percent: float
    distance: int
    bits: int


def bars_of(distances: Mapping[str, int], bits: Mapping[str, int]) -> list[Bar]:
    """A bar for each granularity of which the largest distance is known, in the order of ``bits``."""
    return [
        Bar(name, place % 6, round(100 * max(0.0, 1 - distances[name] / length), 1), distances[name], length)
        for place, (name, length) in enumerate(bits.items())
        if name in distances
    ]
