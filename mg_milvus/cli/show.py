"""``mgm query --show``: the pictures of an answer in the terminal, in rows of thumbnails."""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import typer

from mg_milvus.cli.terminal import console, shorten, tell
from mg_milvus.display import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from PIL import Image

    from mg_milvus.hits import Hit

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
    """Room of one picture, in characters."""

    columns: int
    rows: int


_ROOM = {"blocks": _Cells(25, 9)}
"""Half blocks are coarse and need more room; all others have the usual one."""
_USUAL_ROOM = _Cells(18, 7)


def method_for(environment: Mapping[str, str], *, terminal: bool) -> str | None:
    """How pictures can be shown: kitty, iterm, sixel or blocks; None: not at all.

    Args:
        environment: what the terminal says of itself; ``MGM_SHOW`` goes before everything.
        terminal: whether the output is one.

    Raises:
        typer.BadParameter: ``MGM_SHOW`` is something else.
    """
    from mg_milvus.cli.graphics import METHODS

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
            "no pictures: standard output is no terminal with colours. --html FILE writes a page with them, and "
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
    from mg_milvus.cli.graphics import METHODS, blocks

    if method == "blocks":
        return partial(blocks, true_colour=os.environ.get("COLORTERM") in {"truecolor", "24bit"})
    return METHODS[method]


def _sheet(hits: Sequence[Hit], cells: _Cells) -> Image.Image:
    """The pictures beside each other, each in the middle of its room; what cannot be read is crossed out."""
    from PIL import Image

    across, down = _cell_pixels()
    room = (cells.columns * across, cells.rows * down)
    sheet = Image.new("RGBA", (len(hits) * (room[0] + GAP * across) - GAP * across, room[1]))
    for place, hit in enumerate(hits):
        picture = _picture(hit, room)
        left = place * (room[0] + GAP * across) + (room[0] - picture.width) // 2
        sheet.paste(picture, (left, (room[1] - picture.height) // 2))
    return sheet


def _picture(hit: Hit, room: tuple[int, int]) -> Image.Image:
    from PIL import Image, ImageDraw, ImageOps

    from mg_milvus.errors import PictureError
    from mg_milvus.images.discover import text_path
    from mg_milvus.images.thumbnails import small

    try:
        picture, _, _ = small(text_path(hit.path), max(room), hit.box)
    except PictureError:
        picture = Image.new("RGB", room, "#808080")
        draw = ImageDraw.Draw(picture)
        for ends in ((0, 0, *room), (0, room[1], room[0], 0)):
            draw.line(ends, fill="#404040", width=max(1, min(room) // 20))
    return ImageOps.contain(picture.convert("RGB"), room, Image.Resampling.LANCZOS)


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
