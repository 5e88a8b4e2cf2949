"""Pictures as what terminals understand: kitty's and iTerm2's protocols, sixel, or half blocks in colours.

Every function takes an RGBA picture and the room it has in columns and rows of text, and gives the characters that draw
it there; transparent pixels keep the terminal's background.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

KITTY_CHUNK = 4096
"""Characters of base64 that kitty takes in one sequence."""

SIXEL_COLOURS = 255

OPAQUE = 128
"""From this alpha on a pixel is drawn where there is no half transparency."""


def kitty(picture: Image.Image, columns: int, rows: int) -> str:
    """A PNG in chunks (https://sw.kovidgoyal.net/kitty/graphics-protocol); the terminal scales it, and says nothing."""
    data = base64.b64encode(_png(picture)).decode("ascii")
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    drawn = []
    for number, chunk in enumerate(chunks):
        control = f"a=T,f=100,q=2,c={columns},r={rows}," if number == 0 else ""
        drawn.append(f"\x1b_G{control}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(drawn)


def iterm(picture: Image.Image, columns: int, rows: int) -> str:
    """A PNG in one sequence (https://iterm2.com/documentation-images.html)."""
    data = _png(picture)
    size = f"size={len(data)};width={columns};height={rows};preserveAspectRatio=0"
    return f"\x1b]1337;File=inline=1;{size}:{base64.b64encode(data).decode('ascii')}\a"


def sixel(picture: Image.Image, columns: int, rows: int) -> str:  # noqa: ARG001 - it is drawn pixel by pixel
    """Bands of six rows in up to 255 colours (DEC VT340); as large as the picture in pixels."""
    quantised = picture.convert("RGB").quantize(SIXEL_COLOURS, dither=Image.Dither.NONE)
    palette = np.array(quantised.getpalette() or [], np.int64).reshape(-1, 3)
    pixels = np.asarray(quantised).astype(np.int64)
    pixels[np.asarray(picture.getchannel("A")) < OPAQUE] = -1
    height, width = pixels.shape
    pixels = np.pad(pixels, ((0, -height % 6), (0, 0)), constant_values=-1)
    used = [int(colour) for colour in np.unique(pixels) if colour >= 0]
    colours = "".join(
        f"#{colour};2;" + ";".join(str(round(100 * part / 255)) for part in palette[colour].tolist()) for colour in used
    )
    bands = "-".join(_band(pixels[top : top + 6]) for top in range(0, len(pixels), 6))
    return f'\x1bP0;1;0q"1;1;{width};{height}{colours}{bands}\x1b\\'


def _band(pixels: NDArray[np.int64]) -> str:
    """Six rows: for each colour its pixels from left to right, a character for six pixels above each other."""
    lines = []
    for colour in np.unique(pixels[pixels >= 0]):
        bits = ((pixels == colour) << np.arange(6)[:, None]).sum(axis=0)
        ends = np.flatnonzero(np.diff(bits, append=-1)) + 1
        runs = np.diff(ends, prepend=0)
        line = [
            chr(63 + value) * count if count < 4 else f"!{count}{chr(63 + value)}"
            for value, count in zip(bits[ends - 1].tolist(), runs.tolist(), strict=True)
        ]
        lines.append(f"#{colour}" + "".join(line))
    return "$".join(lines)


def blocks(picture: Image.Image, columns: int, rows: int, *, true_colour: bool = True) -> str:
    """Half blocks, each two pixels above each other; where colours are few, the nearest of the 6 x 6 x 6 cube."""
    small = np.asarray(picture.resize((columns, 2 * rows), Image.Resampling.LANCZOS))
    lines = []
    for top, bottom in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        cells = [_cell(upper, lower, true_colour) for upper, lower in zip(top, bottom, strict=True)]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _cell(upper: list[int], lower: list[int], true_colour: bool) -> str:
    if upper[3] >= OPAQUE and lower[3] >= OPAQUE:
        return f"\x1b[38;{_colour(upper, true_colour)};48;{_colour(lower, true_colour)}m▀"
    if upper[3] >= OPAQUE:
        return f"\x1b[0;38;{_colour(upper, true_colour)}m▀"
    if lower[3] >= OPAQUE:
        return f"\x1b[0;38;{_colour(lower, true_colour)}m▄"
    return "\x1b[0m "


def _colour(pixel: list[int], true_colour: bool) -> str:
    red, green, blue, _ = pixel
    if true_colour:
        return f"2;{red};{green};{blue}"
    # The cube's steps are 0, 95, 135, 175, 215 and 255.
    red, green, blue = (0 if part < 48 else 1 if part < 115 else (part - 35) // 40 for part in (red, green, blue))
    return f"5;{16 + 36 * red + 6 * green + blue}"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


METHODS: dict[str, Callable[[Image.Image, int, int], str]] = {
    "kitty": kitty, "iterm": iterm, "sixel": sixel, "blocks": blocks,
}  # fmt: skip
