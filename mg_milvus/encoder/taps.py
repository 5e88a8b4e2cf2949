"""Choosing where to tap a network that nobody described: from the shapes of what its parts give for a square image."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mg_milvus.encoder.backbones import Backbone, Layout
from mg_milvus.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT = "output"
"""Name of the vector that a network gives in the end, as a stage."""
MOST_TAPS = 8
_MOST_EXTRA_TOKENS = 12
"""Class, distillation and register tokens before those of the places."""
_FEWEST_CHANNELS = 8
_LAYOUTS: tuple[Layout, ...] = ("nhwc", "tokens")
_DEPTHS = (1 / 2, 3 / 4, 1)
"""Where a transformer is tapped, in shares of its blocks."""


@dataclass(frozen=True, slots=True)
class Value:
    """What one part of a network gives.

    Attributes:
        name: of the part.
        shape: for one image.
        rank: of parts that would do, those with the lowest are taken.
        series: equal for parts that are repeated.
    """

    name: str
    shape: tuple[int, ...]
    rank: int = 0
    series: str = ""


@dataclass(frozen=True, slots=True)
class Tap:
    """A stage that was chosen.

    Attributes:
        name: of the part.
        channels: of its maps.
        side: places along each side; 1 for a vector.
        layout: axes of its output.
    """

    name: str
    channels: int
    side: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Taps:
    """Chosen stages, early to late.

    Attributes:
        taps: at least one.
        kind: ``pyramid`` for a network that shrinks its maps, ``column`` for one that keeps their size, such as a
            vision transformer; its values have both signs.
    """

    taps: tuple[Tap, ...]
    kind: Literal["pyramid", "column"]


def as_tap(value: Value) -> Tap | None:
    """Read the shape of maps (c, h, h) or (h, h, c), of tokens (t, c), or of a vector (c,); None for other shapes.

    Tokens are those of a square of places, after at most a few of their own.
    """
    match value.shape:
        case (channels,):
            return Tap(value.name, channels, 1, "nchw")
        case (tokens, channels):
            side = math.isqrt(tokens)
            return Tap(value.name, channels, side, "tokens") if tokens - side * side <= _MOST_EXTRA_TOKENS else None
        case (channels, height, width) if height == width:
            return Tap(value.name, channels, height, "nchw")
        case (height, width, channels) if height == width:
            return Tap(value.name, channels, height, "nhwc")
        case _:
            return None


def choose_taps(values: Sequence[Value], side: int, origin: str) -> Taps:
    """Choose stages: the last at each of the three smallest resolutions, or three depths of a transformer.

    A network that keeps its resolution is also tapped at the vector that it gives in the end, if it gives one.

    Args:
        values: in the order in which the network computes them.
        side: of the image, in pixels.
        origin: the network's name in errors.

    Raises:
        EncoderError: there are no maps of features.
    """
    tapped = [
        (value, tap)
        for value in values
        if (tap := as_tap(value)) and 2 <= tap.side <= side // 2 and tap.channels >= _FEWEST_CHANNELS
    ]
    if not tapped:
        raise EncoderError(
            f"{origin} gives no maps of features, of which codes are made; name layers that do with --taps"
        )
    last_of: dict[int, tuple[Value, Tap]] = {}
    for value, tap in tapped:
        if tap.side not in last_of or value.rank <= last_of[tap.side][0].rank:
            last_of[tap.side] = value, tap
    if len(last_of) > 1:
        sides = sorted(last_of, reverse=True)[-3:]
        return Taps(tuple(last_of[each][1] for each in sides), "pyramid")
    blocks = _repeated(tapped)
    count = len(blocks)
    chosen = [blocks[place - 1] for place in sorted({max(1, math.ceil(share * count)) for share in _DEPTHS})]
    vectors = [tap for value in values if value.name == OUTPUT and (tap := as_tap(value)) and len(value.shape) == 1]
    return Taps((*chosen, *vectors), "column")


def _repeated(tapped: Sequence[tuple[Value, Tap]]) -> list[Tap]:
    """The blocks of a column: parts of the longest series of the lowest rank, as wide as the last outer part."""
    first = min(value.rank for value, _ in tapped)
    width = next(tap.channels for value, tap in reversed(tapped) if value.rank == first)
    series: dict[tuple[int, str], list[Tap]] = {}
    for value, tap in tapped:
        if tap.channels == width:
            series.setdefault((value.rank, value.series), []).append(tap)
    repeated = {key: taps for key, taps in series.items() if len(taps) > 1} or series
    lowest = min(rank for rank, _ in repeated)
    return max((taps for (rank, _), taps in repeated.items() if rank == lowest), key=len)


def named_taps(values: Sequence[Value], names: Sequence[str], origin: str) -> Taps:
    """The stages that a user names, early to late.

    Raises:
        EncoderError: the network does not have one of them, or its output is no map of features.
    """
    if len(set(names)) != len(names) or not 1 <= len(names) <= MOST_TAPS:
        raise EncoderError(f"--taps names {', '.join(names)}; expected 1 to {MOST_TAPS} different layers")
    found = {value.name: value for value in values}
    taps = []
    for name in names:
        if name not in found:
            near = [known for known in found if _same_but_for_digits(known, name)] or list(found)
            raise EncoderError(f"{origin} has no layer '{name}'; it has {_few(near)}")
        tap = as_tap(found[name])
        if tap is None:
            raise EncoderError(
                f"the layer '{name}' of {origin} gives the shape {found[name].shape}, expected maps (c, h, h) or "
                "(h, h, c), tokens (t, c) or a vector (c,)"
            )
        taps.append(tap)
    return Taps(tuple(taps), "pyramid" if len({tap.side for tap in taps if tap.side > 1}) > 1 else "column")


def described(name: str, found: Taps, side: int) -> Backbone:
    """The description of a network with these taps, which takes squares of ``side`` pixels."""
    layouts = {tap.layout for tap in found.taps if tap.side > 1}
    layout: Layout = next((each for each in _LAYOUTS if each in layouts), "nchw")
    names = tuple(tap.name for tap in found.taps)
    roles = {}
    if OUTPUT in names and len(names) > 1:
        inner = tuple(each for each in names if each != OUTPUT)
        roles = {"coarse": (OUTPUT,), "mid": (inner[-1], OUTPUT), "fine": inner[-2:], "regions": inner}
    return Backbone(
        name, names, tuple(tap.channels for tap in found.taps), side=side, multiple=0, layout=layout, roles=roles,
        average=found.kind == "column" or layout != "nchw",
    )  # fmt: skip


def series_of(name: str) -> str:
    """A name with its numbers left out: that of all layers of a series."""
    return re.sub(r"\d+", "#", name)


def _same_but_for_digits(one: str, other: str) -> bool:
    return series_of(one) == series_of(other)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
