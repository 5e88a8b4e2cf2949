"""Decoding images from files, bytes, arrays and tensors to RGB, within limits of size, memory and time."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import struct
import sys
import warnings
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    PsdImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from mg_milvus.errors import ImageError, QueryError
from mg_milvus.images.colours import bands, grey_of, is_deep, stretched, to_srgb
from mg_milvus.images.files import MemoryBudget, content_of, data_uri, memory_needed, read_stream, refuse_url
from mg_milvus.images.kinds import EXTRA, kind_of
from mg_milvus.images.limits import pixel_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from PIL.ImageFile import ImageFile


# Limits of files that are small and would take Pillow minutes to decode. They are far above what any program writes.
_SCANS = 100
"""Scans of a JPEG, each a pass over all pixels; progressive files have about ten."""
_SEGMENTS = 5000
"""Segments of a JPEG; Pillow concatenates those of one kind in quadratic time."""
_GAP = 1 << 16
"""Bytes between a JPEG's segments, which Pillow reads one by one."""
_PROFILES = 16
"""Colour profiles of a PNG; a kilobyte expands to a megabyte."""
_COMMENTS = 1000
"""Comments of a PPM in text; Pillow copies a block of numbers for each."""
_STRIPS = 65_536
"""Strips or tiles of a TIFF, each of which takes Pillow microseconds."""
_VALUES = 262_144
"""Numbers in one tag of a TIFF; a palette has 196,608."""
_TAGS = 4096
"""Tags of a TIFF; usual files have about twenty."""
_STRIP_TAGS = frozenset({273, 279, 324, 325})
_BYTE_TYPES = frozenset({1, 2, 6, 7})

# Not a stuffed zero after a byte 255 in pixel data, and not restart markers.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END, _SCAN = 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, 0xD8})


def refuse_bombs(data: bytes) -> None:
    """Refuse encoded images that would take a decoder minutes.

    Raises:
        ImageError: the message continues a sentence that begins with the image's name, as those of ``decode``.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data[:2] in {b"II", b"MM"}:
        _check_tiff(data)
    elif data.startswith(b"\x89PNG") and (count := data.count(b"iCCP")) > _PROFILES:
        raise ImageError(f"has {count} colour profiles, at most {_PROFILES} are read")
    elif data[:2] in {b"P1", b"P2", b"P3"} and (count := data.count(b"#")) > _COMMENTS:
        raise ImageError(f"has {count} comments, at most {_COMMENTS} are read")


def _check_tiff(data: bytes) -> None:
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    entry = struct.Struct(f"{order}HHQ8x" if big else f"{order}HHL4x")
    try:
        (start,) = struct.unpack_from(f"{order}Q" if big else f"{order}L", data, 8 if big else 4)
        (tags,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, start)
        first = start + (8 if big else 2)
        entries = [entry.unpack_from(data, first + entry.size * place) for place in range(min(tags, _TAGS + 1))]
    except (struct.error, OverflowError):
        return  # truncated: Pillow reports it
    if tags > _TAGS:
        raise ImageError(f"has {tags} tags, at most {_TAGS} are read")
    for tag, kind, count in entries:
        if tag in _STRIP_TAGS and count > _STRIPS:
            raise ImageError(f"has {count} strips or tiles, at most {_STRIPS} are read")
        if kind not in _BYTE_TYPES and count > _VALUES:
            raise ImageError(f"has {count} numbers in its tag {tag}, at most {_VALUES} are read")


def _check_jpeg(data: bytes) -> None:
    place, segments, scans = 2, 0, 0
    while (marker := _MARKER.search(data, place)) is not None and (kind := data[marker.end() - 1]) != _END:
        if not scans and marker.start() - place > _GAP:
            raise ImageError(f"has {marker.start() - place} bytes between its segments, at most {_GAP} are read")
        segments, scans = segments + 1, scans + (kind == _SCAN)
        if scans > _SCANS or segments > _SEGMENTS:
            raise ImageError(f"has more than {_SCANS} scans or {_SEGMENTS} segments, which no camera or program writes")
        place = marker.end()
        if kind not in _WITHOUT_LENGTH:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))


_IGNORED = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)


def silence_libraries() -> None:
    """Silence Pillow's log lines, and what libtiff writes to standard error; once per process."""
    # With a handler, Python's handler of last resort does not write log lines to the terminal.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    # Without the symbol (no libtiff, or hidden by the platform) its lines stay.
    with contextlib.suppress(OSError, AttributeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def silence_warnings() -> None:
    """Silence Pillow's warnings, such as those of damaged EXIF; before each image.

    ``warnings.catch_warnings`` is not thread-safe, and other code may have overruled a filter that was set once.
    Decompression bomb warnings, which a host program may rely on, stay: decoding here raises none.
    """
    if warnings.filters[:1] != [_IGNORED]:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


LAYOUTS = (
    "numpy (h, w), (h, w, 3) RGB or (h, w, 4) RGBA, torch (1, h, w) or (3, h, w) RGB, each uint8 or float from 0 to 1"
)
"""The accepted arrays and tensors, for messages."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB, by its colour profile.

    Transparent pixels are blended with a background that contrasts.
    """
    if image.mode.startswith(("I", "F")):
        return grey_of(image).convert("RGB")
    if image.has_transparency_data:
        blended = Image.new("RGB", image.size, "black" if _is_white_on_transparency(image) else "white")
        profile = image.info.get("icc_profile")
        for top, band in bands(image):
            layer = band.convert("RGBA")
            blended.paste(to_srgb(layer.convert("RGB"), profile), (0, top), mask=layer)
        return blended
    if image.mode == "P":
        return to_srgb(image.convert("RGB"), image.info.get("icc_profile"))
    return to_srgb(image, image.info.get("icc_profile"))


_NEARLY_WHITE = 224


def _is_white_on_transparency(image: Image.Image) -> bool:
    """Whether nothing would be seen on white: some pixels are transparent, and nearly all others nearly white."""
    white = seen = clear = 0
    for _, band in bands(image):
        values = np.asarray(band.convert("RGBA"))
        visible = values[..., 3] > 127
        seen += int(visible.sum())
        clear += int(visible.size - visible.sum())
        white += int((values[..., :3].min(axis=2)[visible] >= _NEARLY_WHITE).sum())
    return clear > 0 and seen > 0 and white > 0.95 * seen


def from_array(array: NDArray[Any]) -> Image.Image:
    """Convert (h, w) grey, (h, w, 3) RGB or (h, w, 4) RGBA, uint8 or float from 0 to 1, to mode RGB.

    Raises:
        ImageError: another shape, type or range; the message states the layouts.
    """
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
        samples = _samples(array)
        if samples is not None:
            return to_rgb(Image.fromarray(samples))
    raise _refusal(array, array)


def is_tensor(source: object) -> bool:
    """Whether an object is a torch tensor, without importing torch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(source).__mro__)


def from_tensor(tensor: Any) -> Image.Image:
    """Convert (1, h, w) grey or (3, h, w) RGB, uint8 or float from 0 to 1, to mode RGB.

    Raises:
        ImageError: another shape, type or range; the message states the layouts.
    """
    given = tensor.detach().cpu()
    array: NDArray[Any] = (given.float() if given.is_floating_point() else given).numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        samples = _samples(array)
        if samples is not None:
            channels = [Image.fromarray(channel) for channel in samples]
            return Image.merge("RGB", channels if len(channels) == 3 else channels * 3)
    raise _refusal(array, tensor)


def _samples(array: NDArray[Any]) -> NDArray[np.uint8] | None:
    """An array as contiguous uint8; None when it is neither uint8 nor float from 0 to 1, or empty."""
    if array.size and array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.size and array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8, order="C")
    return None


def _refusal(array: NDArray[Any], given: Any) -> ImageError:
    span = f", values from {array.min()} to {array.max()}" if array.size and array.dtype.kind in "iuf" else ""
    return ImageError(
        f"the {type(given).__name__} given as an image has shape {tuple(given.shape)}, type {given.dtype}{span}: "
        f"expected {LAYOUTS}"
    )


class TensorLike(Protocol):
    """A torch tensor, without importing torch."""

    def detach(self) -> Any:
        """The tensor without its gradient."""


ImageSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | io.BytesIO
    | Image.Image
    | NDArray[Any]
    | TensorLike
)

_OPENERS: dict[str, Callable[[io.BytesIO, str], ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PSD": PsdImagePlugin.PsdImageFile,
}
"""Name of a kind of ``kinds.KINDS`` -> Pillow's class, which reads the header."""

_OTHER_OPENERS = {"HEIC": ("pi_heif", "HeifImageFile"), "JPEG XL": ("pylibjxl.pillow_plugin", "JxlImageFile")}
"""The same of kinds that the extra ``formats`` reads: module and name of a class for Pillow."""

BYTES_A_PIXEL = 12
"""Memory that decoding may take for each pixel of ``max_pixels``, in bytes, according to the header."""

decoders = MemoryBudget(4 * 2**30)
"""Memory of the decoders of this process: one image at the default limits, and some of usual size."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> transposition that makes the image upright."""

silence_libraries()


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image.

    Attributes:
        image: mode RGB, upright, loaded; smaller than the full image when ``least`` allows it.
        width: of the full image, upright, in pixels.
        height: of the full image, upright, in pixels.
        note: what is wrong with the file, which can be read all the same; continues a sentence, as errors do.
        taken: when the photograph was taken, see ``_taken``; None where the image does not say.
    """

    image: Image.Image
    width: int
    height: int
    note: str = ""
    taken: int | None = None


@dataclass(frozen=True, slots=True)
class _Header:
    """An image whose header is read: what decodes it, width and height of the full image, the data to decode."""

    file: ImageFile
    full: tuple[int, int]
    data: bytes


def decode(data: bytes, *, least: int | None = None, max_pixels: int | None = None) -> Decoded:
    """Decode an encoded image; of an animation, the first frame.

    The format is recognised by the content. Transparent pixels are blended with white, around a white drawing with
    black; the EXIF orientation is applied, colours of an embedded profile become sRGB, 16 bits per sample are scaled to
    8 by the bits that are used, and greyscale of any other range is stretched to 0 … 255. A JPEG that lacks only its
    end marker is decoded, with a note.

    Args:
        data: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM/PGM/PBM/PFM, AVIF, JPEG 2000 or PSD; with the extra ``formats`` also
            HEIC, JPEG XL and camera RAW.
        least: the image may be reduced by 2, 4 or 8 while decoding (JPEG only), as long as its shorter side keeps
            this many pixels. The same data and ``least`` always give the same pixels.
        max_pixels: larger images, and those that need more than ``BYTES_A_PIXEL`` * ``max_pixels`` bytes, are refused
            by their header, before their pixels are decoded. None: as ``limits.pixel_limit``.

    Raises:
        ImageError: it cannot be decoded, or would take minutes. The message continues a sentence that begins with the
            image's name: "is empty: 0 bytes".
    """
    with decoding(data, least=least, max_pixels=max_pixels) as decoded:
        return decoded


@contextmanager
def decoding(data: bytes, *, least: int | None = None, max_pixels: int | None = None) -> Iterator[Decoded]:
    """Decode an image, holding its share of the memory budget ``decoders`` while the block runs; see ``decode``.

    For many threads that each reduce images to something small. Waits while others hold too much.
    """
    max_pixels = pixel_limit(max_pixels)
    header = _header(data, max_pixels)
    file, size = header.file, header.file.size
    with _pillow_errors():
        if least is not None:
            file.draft(None, (least, least))
        count = memory_needed(file, size, header.data)
    _check_memory(file, count, max_pixels)
    with decoders.held(count):
        with _pillow_errors():
            try:
                decoded = _upright(file, header.full, own=True, again=lambda: _open_again(data))
            except OSError:
                mended = _without_end(header.data, least)
                if mended is None:
                    raise
                decoded = replace(_upright(mended, header.full, own=True), note=_LACKS_END)
        yield decoded


_END_OF_JPEG = b"\xff\xd9"
_OTHER_BYTES = (b"\x9d\x5b" * 256, bytes.fromhex("d3a1c96e57b4e82f") * 64)
_LACKS_END = "lacks its last bytes, as after an interrupted copy; all pixels are there"


def _without_end(data: bytes, least: int | None) -> JpegImagePlugin.JpegImageFile | None:
    """A JPEG that lacks no more than the marker of its end, with that marker; None for all else.

    A decoder fills missing pixels without complaint. So other bytes are put behind the data, too: they change pixels
    that are missing, and no others.
    """
    if not data.startswith(b"\xff\xd8\xff") or data.endswith(_END_OF_JPEG):
        return None
    data = data.removesuffix(b"\xff")
    versions: list[JpegImagePlugin.JpegImageFile] = []
    for tail in (b"", *_OTHER_BYTES):
        file = JpegImagePlugin.JpegImageFile(io.BytesIO(data + tail + _END_OF_JPEG), "")
        if least is not None:
            file.draft(None, (least, least))
        file.load()
        if versions and file.tobytes() != versions[0].tobytes():
            return None
        versions.append(file)
    return versions[0]


def check_header(data: bytes) -> None:
    """Check the header of an encoded image of any size, without decoding its pixels.

    Raises:
        ImageError: ``decode`` would refuse it.
    """
    _header(data, sys.maxsize)


def open_image(source: ImageSource, *, least: int | None = None, max_pixels: int | None = None) -> Decoded:
    """Read an image from a path, encoded bytes, a PIL image, a numpy array or a torch tensor.

    Args:
        source: arrays are (h, w) grey, (h, w, 3) RGB or (h, w, 4) RGBA; tensors (1, h, w) grey or (3, h, w) RGB; both
            uint8 or float from 0 to 1. The source is not changed.
        least: as in ``decode``, for paths and bytes.
        max_pixels: as in ``decode``, for paths, bytes and PIL images.

    Raises:
        ImageError: it cannot be read; the message names the source.
    """
    with opening(source, least=least, max_pixels=max_pixels) as decoded:
        return decoded


@contextmanager
def opening(source: ImageSource, *, least: int | None = None, max_pixels: int | None = None) -> Iterator[Decoded]:
    """Read an image, holding its share of the memory while the block runs; see ``open_image`` and ``decoding``."""
    if isinstance(source, np.ndarray) or is_tensor(source):
        image = from_array(source) if isinstance(source, np.ndarray) else from_tensor(source)
        yield Decoded(image, *image.size)
        return
    name = "the data URI" if isinstance(source, str) else f"the {type(source).__name__} given as an image"
    with ExitStack() as stack:
        try:
            if isinstance(source, Image.Image):
                with _pillow_errors():
                    _check_size(source.size, pixel_limit(max_pixels))
                    decoded = _upright(source, source.size, own=False)
            elif isinstance(source, bytes | bytearray | memoryview):
                decoded = stack.enter_context(decoding(bytes(source), least=least, max_pixels=max_pixels))
            elif isinstance(source, str) and (data := data_uri(source)) is not None:
                name = "the data URI"
                decoded = stack.enter_context(decoding(data, least=least, max_pixels=max_pixels))
            elif isinstance(source, str | os.PathLike):
                name = repr(os.fspath(source))
                refuse_url(os.fspath(source))
                data = stack.enter_context(content_of(source))
                decoded = stack.enter_context(decoding(data, least=least, max_pixels=max_pixels))
            elif callable(read := getattr(source, "read", None)):
                data = read_stream(read)
                decoded = stack.enter_context(decoding(data, least=least, max_pixels=max_pixels))
            else:
                raise ImageError(
                    f"cannot be read: expected a path, encoded bytes, a binary file, a PIL image, or {LAYOUTS}"
                )
        except ImageError as error:
            raise ImageError(f"{name} {error}") from error
        yield decoded


def crop(decoded: Decoded, box: tuple[int, int, int, int]) -> Image.Image:
    """Crop a decoded image; where decoding reduced the image, the crop is reduced as much.

    Args:
        decoded: the image.
        box: x, y, width, height in pixels of the full, upright image.

    Raises:
        QueryError: the box is empty or extends beyond the image.
    """
    x, y, w, h = box
    width, height = decoded.width, decoded.height
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise QueryError(
            f"crop {x},{y},{w},{h} does not lie inside the image, which is {width} pixels wide and {height} high: "
            f"expected X,Y,W,H with W and H from 1, X + W up to {width} and Y + H up to {height}"
        )
    across, down = decoded.image.size
    right, bottom = -(-(x + w) * across // width), -(-(y + h) * down // height)
    return decoded.image.crop((x * across // width, y * down // height, right, bottom))


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Map all exceptions of Pillow to ``ImageError``, and silence its warnings."""
    silence_warnings()
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"is larger than PIL.Image.MAX_IMAGE_PIXELS allows: {_line(error)}") from error
    except MemoryError as error:
        raise ImageError("does not fit into memory") from error
    except Exception as error:
        raise ImageError(f"is truncated or damaged: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _header(data: bytes, max_pixels: int) -> _Header:
    kind = kind_of(data)
    refuse_bombs(data)
    # Image.open would check the size against a limit of the whole process; this one is the caller's.
    with _pillow_errors():
        try:
            header = _open(kind.name, data)
        except ImportError as error:
            raise ImageError(f"is {kind.name}, whose reader cannot be loaded ({_line(error)}): {EXTRA}") from error
        _check_size(header.full, max_pixels)
    return header


def _open(kind: str, data: bytes) -> _Header:
    if kind == "camera RAW":
        from mg_milvus.images.raw import open_raw  # with LibRaw, which is an extra

        return _Header(*open_raw(data))
    opener = _OPENERS.get(kind) or getattr(import_module(_OTHER_OPENERS[kind][0]), _OTHER_OPENERS[kind][1])
    file = opener(io.BytesIO(data), "")
    if kind == "PSD" and not _has_composite(file):
        raise ImageError("has no composite: save it in Photoshop with 'Maximize Compatibility', or export it as PNG")
    return _Header(file, file.size, data)


_VERSION_INFO = 1057
"""Number of the part of a Photoshop file that tells of its composite."""


def _has_composite(file: ImageFile) -> bool:
    """Whether a Photoshop file says that the image of all its layers is in it."""
    versions = [content for number, _, content in file.resources if number == _VERSION_INFO]  # type: ignore[attr-defined]
    return all(content[4:5] != b"\0" for content in versions)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"has {width * height} pixels ({width}x{height}), more than max_pixels={max_pixels}: "
            "raise it by --max-pixels or MGM_MAX_PIXELS if the image can be trusted"
        )
    if width < 1 or height < 1:
        raise ImageError(f"has no pixels ({width}x{height})")


def _check_memory(file: ImageFile, count: int, max_pixels: int) -> None:
    if count > BYTES_A_PIXEL * max_pixels:
        width, height = file.size
        raise ImageError(
            f"takes about {count} bytes to decode ({width}x{height}, {file.format} of mode {file.mode}), more than "
            f"{BYTES_A_PIXEL} for each of max_pixels={max_pixels}: "
            "raise it by --max-pixels or MGM_MAX_PIXELS if the image can be trusted"
        )


def _upright(
    image: Image.Image, full: tuple[int, int], *, own: bool, again: Callable[[], ImageFile] | None = None
) -> Decoded:
    """Load, convert and rotate an image; ``own``: it may be closed, to free its memory; ``again`` opens it anew."""
    deep = again is not None and is_deep(image)
    _give_canvas(image)
    image.load()
    if deep and again is not None:
        image.im = stretched(image, again).im
    turn, taken = None, None
    with suppress(Exception):  # damaged EXIF says nothing about the pixels
        exif = image.getexif()
        # The decoder of JPEG XL turns the image itself, and leaves the EXIF as it was.
        turn = None if image.format == "JXL" else _TURNS.get(exif.get(ExifTags.Base.Orientation, 1))
        taken = _taken(exif.get_ifd(ExifTags.IFD.Exif))
    if own:
        vars(image).pop("_decoder", None)  # WebP and AVIF keep whole frames there
    rgb = to_rgb(image)
    if own and rgb is not image:
        image.close()
    if turn is None:
        return Decoded(rgb, *full, taken=taken)
    swapped = turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
    return Decoded(rgb.transpose(turn), *(full[::-1] if swapped else full), taken=taken)


_EXIF_TIME = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d)(?::(\d\d))?")
_FIRST_YEAR, _LAST_YEAR = 1826, 2261
"""Years of the first photograph, and of the last nanoseconds that fit into 64 bits."""


def _taken(tags: Mapping[int, object]) -> int | None:
    """DateTimeOriginal as nanoseconds since the epoch, of the clock of the camera as if that were UTC.

    A zone is not applied, even where EXIF holds one: images of a journey keep the order and the hours of their day.

    Args:
        tags: of the EXIF part of that name.

    Returns:
        None where there is no such time, or an impossible one.
    """
    text = tags.get(ExifTags.Base.DateTimeOriginal)
    found = _EXIF_TIME.match(text.strip()) if isinstance(text, str) else None
    if found is None or not _FIRST_YEAR <= int(found[1]) <= _LAST_YEAR:
        return None
    try:
        time = datetime(*(int(part or 0) for part in found.groups()), tzinfo=UTC)  # type: ignore[arg-type,misc]
    except ValueError:
        return None
    fraction = re.match(r"\d{1,9}", str(tags.get(ExifTags.Base.SubsecTimeOriginal, "")).strip())
    return int(time.timestamp()) * 10**9 + int(fraction[0].ljust(9, "0") if fraction else 0)


def _give_canvas(image: Image.Image) -> None:
    """Have Pillow not compare the size of a TIFF with the limit of the whole process: it does so for a new canvas."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tile:
        canvas = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
        image.im = Image.new(image.mode, canvas).im


def _open_again(data: bytes) -> ImageFile:
    file = _open(kind_of(data).name, data).file
    _give_canvas(file)
    return file
