"""From files, bytes, arrays and tensors to upright RGB pictures. Whatever is wrong with one is a ``PictureError``.

Safe to call from several threads; Pillow's decoders release the GIL.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mg_milvus.errors import PictureError, QueryError
from mg_milvus.images.bombs import refuse_bombs
from mg_milvus.images.files import content_of, kind_of
from mg_milvus.images.memory import MemoryBudget, memory_needed
from mg_milvus.images.pixels import LAYOUTS, from_array, from_tensor, is_tensor, to_rgb
from mg_milvus.images.quiet import silence_libraries, silence_warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL.ImageFile import ImageFile


class TensorLike(Protocol):
    """A torch tensor, without importing torch."""

    def detach(self) -> Any:
        """The tensor without its gradient."""


PictureSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | TensorLike

DEFAULT_MAX_PIXELS = 200_000_000

_OPENERS: dict[str, Callable[[io.BytesIO, str], ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
"""Name of a kind of ``files.KINDS`` -> what reads its header."""

BYTES_A_PIXEL = 12
"""Decoding may take this many bytes for each pixel that is allowed, by what the header says."""

decoders = MemoryBudget(4 * 2**30)
"""What the decoders of this process take at once: one picture at the default limits, and some of usual size."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""

silence_libraries()


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture, ready to be prepared for an encoder.

    Attributes:
        picture: mode RGB, upright, loaded; smaller than the file's when ``least`` allowed it.
        width: of the full picture, upright, in pixels.
        height: of the full picture, upright, in pixels.
    """

    picture: Image.Image
    width: int
    height: int


def decode(data: bytes, *, least: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> Decoded:
    """Decode an encoded picture; of an animation, the first frame.

    The format is told by the content. Transparency is put on white, the EXIF orientation is honoured, 16 bits a sample
    are scaled to 8, and greyscale of any other range is stretched to 0 … 255.

    Args:
        data: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM/PGM/PBM/PFM or AVIF.
        least: the picture may be reduced by 2, 4 or 8 while decoding (JPEG only), as long as its shorter side keeps
            this many pixels. The same data and ``least`` always give the same pixels.
        max_pixels: larger pictures, and those that take more than ``BYTES_A_PIXEL`` bytes for each of so many pixels,
            are refused by their header, before their pixels are decoded.

    Raises:
        PictureError: the message goes on where a name is put before it: "is empty: 0 bytes". Also for files that
            would take minutes, see ``bombs``.
    """
    with decoding(data, least=least, max_pixels=max_pixels) as decoded:
        return decoded


@contextmanager
def decoding(data: bytes, *, least: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> Iterator[Decoded]:
    """A decoded picture, and its share of the memory for ``decoders`` while the block runs; see ``decode``.

    For many threads, each of which makes something small of each picture. Waits while others take too much.
    """
    file = _header(data, max_pixels)
    full = file.size
    with _pillow_errors():
        if least is not None:
            file.draft(None, (least, least))
        count = memory_needed(file, full, data)
    _check_memory(file, count, max_pixels)
    with decoders.held(count):
        with _pillow_errors():
            decoded = _upright(file, full, own=True)
        yield decoded


def check_header(data: bytes) -> None:
    """Read the whole header of an encoded picture of any size, not its pixels.

    Raises:
        PictureError: it is none that ``decode`` would begin to decode.
    """
    _header(data, sys.maxsize)


def open_picture(source: PictureSource, *, least: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> Decoded:
    """Read a picture from a path, encoded bytes, a PIL image, a numpy array or a torch tensor.

    Args:
        source: arrays are (h, w) grey, (h, w, 3) RGB or (h, w, 4) RGBA; tensors (1, h, w) grey or (3, h, w) RGB; both
            uint8 or float from 0 to 1. What is given is not changed.
        least: as in ``decode``, for paths and bytes.
        max_pixels: as in ``decode``, for paths, bytes and PIL images.

    Raises:
        PictureError: it cannot be read; the message names the source.
    """
    with opening(source, least=least, max_pixels=max_pixels) as decoded:
        return decoded


@contextmanager
def opening(
    source: PictureSource, *, least: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Iterator[Decoded]:
    """A picture from anywhere, and its share of the memory while the block runs; see ``open_picture``, ``decoding``."""
    if isinstance(source, np.ndarray) or is_tensor(source):
        picture = from_array(source) if isinstance(source, np.ndarray) else from_tensor(source)
        yield Decoded(picture, *picture.size)
        return
    name = f"the {type(source).__name__} given as a picture"
    with ExitStack() as stack:
        try:
            if isinstance(source, Image.Image):
                with _pillow_errors():
                    _check_size(source, max_pixels)
                    decoded = _upright(source, source.size, own=False)
            elif isinstance(source, bytes):
                decoded = stack.enter_context(decoding(source, least=least, max_pixels=max_pixels))
            elif isinstance(source, str | os.PathLike):
                name = repr(os.fspath(source))
                data = stack.enter_context(content_of(source))
                decoded = stack.enter_context(decoding(data, least=least, max_pixels=max_pixels))
            else:
                raise PictureError(f"cannot be read: expected a path, encoded bytes, a PIL image, or {LAYOUTS}")
        except PictureError as error:
            raise PictureError(f"{name} {error}") from error
        yield decoded


def crop(decoded: Decoded, box: tuple[int, int, int, int]) -> Image.Image:
    """Cut a region out; where decoding reduced the picture, the region is as much smaller.

    Args:
        decoded: the picture.
        box: x, y, width, height in pixels of the full, upright picture.

    Raises:
        QueryError: the box is empty or reaches out of the picture.
    """
    x, y, w, h = box
    width, height = decoded.width, decoded.height
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise QueryError(
            f"crop {x},{y},{w},{h} does not lie inside the picture, which is {width} pixels wide and {height} high: "
            f"expected X,Y,W,H with W and H from 1, X + W up to {width} and Y + H up to {height}"
        )
    across, down = decoded.picture.size
    right, bottom = -(-(x + w) * across // width), -(-(y + h) * down // height)
    return decoded.picture.crop((x * across // width, y * down // height, right, bottom))


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """What a hostile file makes Pillow raise is a ``PictureError``; what it makes Pillow mutter is not heard."""
    silence_warnings()
    try:
        yield
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"is larger than PIL.Image.MAX_IMAGE_PIXELS allows: {_line(error)}") from error
    except MemoryError as error:
        raise PictureError("does not fit into memory") from error
    except Exception as error:
        raise PictureError(f"is truncated or damaged: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _header(data: bytes, max_pixels: int) -> ImageFile:
    kind = kind_of(data)
    refuse_bombs(data)
    # Image.open would check the size against a limit that is global to the process; the limit here is the caller's.
    with _pillow_errors():
        file = _OPENERS[kind.name](io.BytesIO(data), "")
        _check_size(file, max_pixels)
    return file


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise PictureError(
            f"has {width * height} pixels ({width}x{height}), more than max_pixels={max_pixels}: "
            "raise that limit if the picture can be trusted"
        )
    if width < 1 or height < 1:
        raise PictureError(f"has no pixels ({width}x{height})")


def _check_memory(file: ImageFile, count: int, max_pixels: int) -> None:
    if count > BYTES_A_PIXEL * max_pixels:
        width, height = file.size
        raise PictureError(
            f"takes about {count} bytes to decode ({width}x{height}, {file.format} of mode {file.mode}), more than "
            f"{BYTES_A_PIXEL} for each of max_pixels={max_pixels}: raise that limit if the picture can be trusted"
        )


def _upright(picture: Image.Image, full: tuple[int, int], *, own: bool) -> Decoded:
    """Load, convert and turn a picture; ``own``: nobody else needs what was read, and its memory is given back."""
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.tile:
        # With its canvas already made it does not compare its size with the limit that is global to the process.
        canvas = picture.tag_v2[TiffImagePlugin.IMAGEWIDTH], picture.tag_v2[TiffImagePlugin.IMAGELENGTH]
        picture.im = Image.new(picture.mode, canvas).im
    picture.load()
    turn = None
    with suppress(Exception):  # damaged EXIF says nothing about the pixels
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    if own:
        vars(picture).pop("_decoder", None)  # of WebP and AVIF: whole frames of its own
    rgb = to_rgb(picture)
    if own and rgb is not picture:
        picture.close()
    if turn is None:
        return Decoded(rgb, *full)
    swapped = turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
    return Decoded(rgb.transpose(turn), *(full[::-1] if swapped else full))
