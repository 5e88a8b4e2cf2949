"""Thumbnails of query results in the terminal, drawn by the library textual-image."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import typer

from mg_milvus.cli.console import console, shorten
from mg_milvus.cli.log import log_info
from mg_milvus.errors import UnsupportedError
from mg_milvus.files import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image
    from rich.console import Console, RenderableType

    from mg_milvus.records import Hit

VARIABLE = "MGM_SHOW"
METHODS = {"kitty": "TGPImage", "sixel": "SixelImage", "blocks": "HalfcellImage"}
"""Value of ``MGM_SHOW`` -> class of ``textual_image.renderable``."""

GAP = 2
"""Columns between two images."""
_CELLS = {"blocks": (25, 9)}
"""Columns and rows of one image; half blocks have the lowest resolution, so they need more space."""
_USUAL_CELLS = (18, 7)
_CELL_PIXELS = (20, 40)
"""Pixels drawn for a character cell; textual-image scales them to the terminal's own."""


def show_hits(hits: Sequence[Hit], *, title: str = "") -> None:
    """Print hits as rows of thumbnails with rank, score and file name, or log why there are none.

    Args:
        hits: best first.
        title: the query; empty where there is only one.

    Raises:
        UnsupportedError: textual-image is not installed.
    """
    with _terminal_input_only():
        method = _method()
        if method is not None:
            _print_thumbnails(hits, title, method)
            return
    log_info(
        "--show draws no images: standard output is not a terminal with colours. Use --html FILE for a page with "
        f"images, or set {VARIABLE} to kitty, sixel or blocks"
    )


def _print_thumbnails(hits: Sequence[Hit], title: str, method: str) -> None:
    out = _image_console(method)
    if title:
        print(escape_controls(title))
    columns, rows = _CELLS.get(method, _USUAL_CELLS)
    across = max(1, (out.width + GAP) // (columns + GAP))
    for start in range(0, len(hits), across):
        row = hits[start : start + across]
        # The library writes kitty's sequences to the terminal directly, so flush what is buffered here first.
        sys.stdout.flush()
        out.print(_renderable(method, _sheet(row, columns, rows), len(row) * (columns + GAP) - GAP, rows))
        names = (shorten(escape_controls(os.path.basename(hit.path) or hit.path), columns) for hit in row)
        for texts in ([f"{hit.rank}  {hit.score:.4f}" for hit in row], names):
            print((" " * GAP).join(_padded(text, columns) for text in texts).rstrip())
        print()


@contextmanager
def _terminal_input_only() -> Iterator[None]:
    """Hide a standard input that is not a terminal, because textual-image reads the terminal's replies from it."""
    stdin = sys.__stdin__
    if stdin is not None and not stdin.isatty():
        sys.__stdin__ = None  # type: ignore[misc]
    try:
        yield
    finally:
        sys.__stdin__ = stdin  # type: ignore[misc]


def _method() -> str | None:
    """Return the method of ``MGM_SHOW``, or the best one of the terminal; None if it has none.

    Raises:
        typer.BadParameter: ``MGM_SHOW`` is none of the methods.
        UnsupportedError: textual-image is not installed.
    """
    if forced := os.environ.get(VARIABLE):
        if forced not in METHODS:
            raise typer.BadParameter(f"{VARIABLE} is '{forced}', expected {', '.join(METHODS)}")
        return forced
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return None
    # Importing the library queries the terminal's capabilities.
    detected = _library().Image
    supported = next((method for method, name in METHODS.items() if getattr(_library(), name) is detected), None)
    return None if supported == "blocks" and os.environ.get("NO_COLOR") else supported


def _library() -> Any:
    try:
        return importlib.import_module("textual_image.renderable")
    except ModuleNotFoundError as exc:
        raise UnsupportedError(
            "--show needs textual-image, which is not installed: pip install 'mg-milvus[terminal]'"
        ) from exc


def _renderable(method: str, image: Image.Image, columns: int, rows: int) -> RenderableType:
    made: RenderableType = getattr(_library(), METHODS[method])(image, columns, rows)
    return made


def _image_console(method: str) -> Console:
    from rich.console import Console

    # kitty encodes the image id in an exact colour; half blocks use the terminal's own colours.
    system: Literal["auto", "truecolor"] = "auto" if method == "blocks" else "truecolor"
    width = console().width if sys.stdout.isatty() else 80
    return Console(file=sys.stdout, force_terminal=True, color_system=system, no_color=False, width=width)


def _sheet(hits: Sequence[Hit], columns: int, rows: int) -> Image.Image:
    """Draw the images side by side, each centred in a box of ``columns`` by ``rows`` cells."""
    from PIL import Image

    width, height = columns * _CELL_PIXELS[0], rows * _CELL_PIXELS[1]
    step = width + GAP * _CELL_PIXELS[0]
    sheet = Image.new("RGBA", (len(hits) * step - GAP * _CELL_PIXELS[0], height))
    for place, hit in enumerate(hits):
        image = _image(hit, (width, height))
        sheet.paste(image, (place * step + (width - image.width) // 2, (height - image.height) // 2))
    return sheet


def _image(hit: Hit, box: tuple[int, int]) -> Image.Image:
    """Read the image of a hit, scaled to its box; an unreadable one becomes a crossed-out grey box."""
    from PIL import Image, ImageDraw, ImageOps

    from mg_milvus.errors import ImageError
    from mg_milvus.images.discover import text_path
    from mg_milvus.images.thumbnails import small

    try:
        image, _, _ = small(text_path(hit.path), max(box), hit.box)
    except ImageError:
        image = Image.new("RGB", box, "#808080")
        draw = ImageDraw.Draw(image)
        for ends in ((0, 0, *box), (0, box[1], box[0], 0)):
            draw.line(ends, fill="#404040", width=max(1, min(box) // 20))
    return ImageOps.contain(image.convert("RGB"), box, Image.Resampling.LANCZOS)


def _padded(text: str, columns: int) -> str:
    from rich.cells import cell_len

    return text + " " * (columns - cell_len(text))
