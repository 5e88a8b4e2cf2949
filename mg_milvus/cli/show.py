"""Images as what terminals understand: kitty's and iTerm2's protocols, sixel, or half blocks in colours.

Every function takes an RGBA image and the room it has in columns and rows of text, and gives the characters that draw
it there; transparent pixels keep the terminal's background.
"""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import typer
from PIL import Image

from mg_milvus.cli.console import console, shorten, tell
from mg_milvus.files import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mg_milvus.records import Hit


KITTY_CHUNK = 4096
"""Characters of base64 that kitty takes in one sequence."""

SIXEL_COLOURS = 255

OPAQUE = 128
"""From this alpha on a pixel is drawn where there is no half transparency."""


def kitty(image: Image.Image, columns: int, rows: int) -> str:
    """A PNG in chunks (https://sw.kovidgoyal.net/kitty/graphics-protocol); the terminal scales it, and says nothing."""
    data = base64.b64encode(_png(image)).decode("ascii")
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    drawn = []
    for number, chunk in enumerate(chunks):
        control = f"a=T,f=100,q=2,c={columns},r={rows}," if number == 0 else ""
        drawn.append(f"\x1b_G{control}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(drawn)


def iterm(image: Image.Image, columns: int, rows: int) -> str:
    """A PNG in one sequence (https://iterm2.com/documentation-images.html)."""
    data = _png(image)
    size = f"size={len(data)};width={columns};height={rows};preserveAspectRatio=0"
    return f"\x1b]1337;File=inline=1;{size}:{base64.b64encode(data).decode('ascii')}\a"


def sixel(image: Image.Image, columns: int, rows: int) -> str:  # noqa: ARG001 - it is drawn pixel by pixel
    """Bands of six rows in up to 255 colours (DEC VT340); as large as the image in pixels."""
    quantised = image.convert("RGB").quantize(SIXEL_COLOURS, dither=Image.Dither.NONE)
    palette = np.array(quantised.getpalette() or [], np.int64).reshape(-1, 3)
    pixels = np.asarray(quantised).astype(np.int64)
    pixels[np.asarray(image.getchannel("A")) < OPAQUE] = -1
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


def blocks(image: Image.Image, columns: int, rows: int, *, true_colour: bool = True) -> str:
    """Half blocks, each two pixels above each other; where colours are few, the nearest of the 6 x 6 x 6 cube."""
    small = np.asarray(image.resize((columns, 2 * rows), Image.Resampling.LANCZOS))
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


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


METHODS: dict[str, Callable[[Image.Image, int, int], str]] = {
    "kitty": kitty, "iterm": iterm, "sixel": sixel, "blocks": blocks,
}  # fmt: skip


VARIABLE = "MGM_SHOW"
GAP = 2
USUAL_CELL = (10, 20)
"""Pixels of one character where the terminal does not say."""

_KITTY = ("xterm-kitty", "xterm-ghostty")
_ITERM = ("iTerm.app", "WezTerm", "mintty")
_SIXEL = ("foot", "mlterm", "contour", "yaft", "sixel")
_MULTIPLEXERS = ("screen", "tmux")


@dataclass(frozen=True, slots=True)
class _Cells:
    """Room of one image, in characters."""

    columns: int
    rows: int


_ROOM = {"blocks": _Cells(25, 9)}
"""Half blocks are coarse and need more room; all others have the usual one."""
_USUAL_ROOM = _Cells(18, 7)


def method_for(environment: Mapping[str, str], *, terminal: bool) -> str | None:
    """How images can be shown: kitty, iterm, sixel or blocks; None: not at all.

    Args:
        environment: what the terminal says of itself; ``MGM_SHOW`` goes before everything.
        terminal: whether the output is one.

    Raises:
        typer.BadParameter: ``MGM_SHOW`` is something else.
    """
    if wanted := environment.get(VARIABLE):
        if wanted not in METHODS:
            raise typer.BadParameter(f"{VARIABLE} is '{wanted}', expected {', '.join(METHODS)}")
        return wanted
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if not terminal or term in {"", "dumb"}:
        return None
    # What sits between the terminal and us knows text and colours only.
    if not ("TMUX" in environment or "STY" in environment or term.startswith(_MULTIPLEXERS)):
        if "KITTY_WINDOW_ID" in environment or term in _KITTY or program == "ghostty":
            return "kitty"
        if program in _ITERM or environment.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
        if any(name in term for name in _SIXEL):
            return "sixel"
    return None if environment.get("NO_COLOR") else "blocks"


def show_hits(hits: Sequence[Hit], *, title: str = "") -> None:
    """Print the hits as thumbnails with rank, score and name; or a line that says why not.

    Args:
        hits: best first.
        title: the query, where there are several.
    """
    out = console()
    method = method_for(os.environ, terminal=sys.stdout.isatty())
    if method is None:
        tell(
            "no images: standard output is no terminal with colours. --html FILE writes a page with them, and "
            f"{VARIABLE}=kitty, iterm, sixel or blocks shows them nevertheless"
        )
        return
    if title:
        print(printable(title))
    width = out.width if sys.stdout.isatty() else 80
    cells = _ROOM.get(method, _USUAL_ROOM)
    across = max(1, (width + GAP) // (cells.columns + GAP))
    draw = _drawing(method)
    for start in range(0, len(hits), across):
        some = hits[start : start + across]
        columns = len(some) * (cells.columns + GAP) - GAP
        print(draw(_sheet(some, cells), columns, cells.rows))
        for line in (
            [f"{hit.rank}  {hit.score:.4f}" for hit in some],
            [shorten(printable(os.path.basename(hit.path) or hit.path), cells.columns) for hit in some],
        ):
            print((" " * GAP).join(_padded(text, cells.columns) for text in line).rstrip())
        print()


def _drawing(method: str) -> Callable[[Image.Image, int, int], str]:

    if method == "blocks":
        return partial(blocks, true_colour=os.environ.get("COLORTERM") in {"truecolor", "24bit"})
    return METHODS[method]


def _sheet(hits: Sequence[Hit], cells: _Cells) -> Image.Image:
    """The images beside each other, each in the middle of its room; what cannot be read is crossed out."""
    from PIL import Image

    across, down = _cell_pixels()
    room = (cells.columns * across, cells.rows * down)
    sheet = Image.new("RGBA", (len(hits) * (room[0] + GAP * across) - GAP * across, room[1]))
    for place, hit in enumerate(hits):
        image = _image(hit, room)
        left = place * (room[0] + GAP * across) + (room[0] - image.width) // 2
        sheet.paste(image, (left, (room[1] - image.height) // 2))
    return sheet


def _image(hit: Hit, room: tuple[int, int]) -> Image.Image:
    from PIL import Image, ImageDraw, ImageOps

    from mg_milvus.errors import ImageError
    from mg_milvus.images.discover import text_path
    from mg_milvus.images.thumbnails import small

    try:
        image, _, _ = small(text_path(hit.path), max(room), hit.box)
    except ImageError:
        image = Image.new("RGB", room, "#808080")
        draw = ImageDraw.Draw(image)
        for ends in ((0, 0, *room), (0, room[1], room[0], 0)):
            draw.line(ends, fill="#404040", width=max(1, min(room) // 20))
    return ImageOps.contain(image.convert("RGB"), room, Image.Resampling.LANCZOS)


def _cell_pixels() -> tuple[int, int]:
    """Width and height of a character in pixels, as the terminal says, or as usual."""
    try:
        import fcntl
        import termios

        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError, ValueError):
        return USUAL_CELL
    rows, columns, width, height = struct.unpack("HHHH", size)
    if not (rows and columns and width // columns and height // rows):
        return USUAL_CELL
    return width // columns, height // rows


def _padded(text: str, columns: int) -> str:
    from rich.cells import cell_len

    return text + " " * (columns - cell_len(text))
