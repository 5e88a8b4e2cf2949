"""The kinds of image files, told by their first bytes, whatever their name; and which of them are read here."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mg_milvus.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = 4096
"""Bytes that identify the kind of an image: with the first directory of a camera's TIFF."""

EXTRA = "pip install 'mg-milvus[formats]'"
"""What installs the packages that read more kinds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """An image format.

    Attributes:
        name: as in messages; of those that Pillow reads, Pillow's own.
        starts: whether first bytes are those of this format.
        suffix: of its files.
        media_type: in HTTP.
        package: what reads it, one of the extra ``formats``; empty: Pillow.
        sure: whether its first bytes begin nothing but images.
    """

    name: str
    starts: Callable[[bytes], object]
    suffix: str
    media_type: str
    package: str = ""
    sure: bool = True

    @property
    def missing(self) -> str:
        """What to do to have it read here; empty when it is."""
        return "" if not self.package or find_spec(self.package) else f"{self.name}: {EXTRA}"


def _start(pattern: bytes) -> Callable[[bytes], object]:
    return re.compile(pattern, re.DOTALL).match


def _brands(head: bytes) -> list[bytes]:
    """Brands of a file of the ISO base media format, as HEIC and AVIF are; the major one first."""
    if head[4:8] != b"ftyp":
        return []
    box = head[8 : max(12, int.from_bytes(head[:4], "big"))]
    return [box[:4], *(box[place : place + 4] for place in range(8, len(box) - 3, 4))]


_HEVC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AV1 = frozenset({b"avif", b"avis"})
_EITHER = frozenset({b"mif1", b"msf1", b"mif2"})


def _is_heic(head: bytes) -> bool:
    brands = set(_brands(head))
    return bool(brands & _HEVC) and not brands & _AV1


def _is_avif(head: bytes) -> bool:
    brands = _brands(head)
    return bool(brands) and not _is_heic(head) and (not _AV1.isdisjoint(brands) or brands[0] in _EITHER)


_OLD_RAW = re.compile(
    rb"....ftypcrx |II\*\0.{4}CR|IIU\0|IIR[OS]|MMOR|FUJIFILMCCD-RAW|FOVb|\0MRM|II\x1a\0\0\0HEAPCCDR", re.DOTALL
)
_REDUCED, _COMPRESSION, _PHOTOMETRIC, _SUBDIRECTORIES, _DNG_VERSION = 254, 259, 262, 330, 50706
_SENSOR_COLOURS = frozenset({32803, 34892})
_SENSOR_COMPRESSIONS = frozenset({32767, 32769, 32770, 34713, 65535})
_ENTRY = 12
_MOST_ENTRIES = 256


def _is_raw(head: bytes) -> bool:
    """Whether this is what a camera's sensor gave: formats of their own, and TIFFs whose first image is a preview."""
    if _OLD_RAW.match(head):
        return True
    if head[:4] not in {b"II*\0", b"MM\0*"}:
        return False
    order = "<" if head[:2] == b"II" else ">"
    tags: dict[int, int] = {}
    try:
        (start,) = struct.unpack_from(order + "L", head, 4)
        (count,) = struct.unpack_from(order + "H", head, start)
        for place in range(min(count, _MOST_ENTRIES)):
            tag, kind, _, short, _ = struct.unpack_from(order + "HHLHH", head, start + 2 + _ENTRY * place)
            long = struct.unpack_from(order + "L", head, start + 2 + _ENTRY * place + 8)[0]
            tags[tag] = short if kind == 3 else long
    except struct.error:
        pass  # the directory goes on behind these bytes
    return (
        _DNG_VERSION in tags
        or tags.get(_PHOTOMETRIC) in _SENSOR_COLOURS
        or tags.get(_COMPRESSION) in _SENSOR_COMPRESSIONS
        or (_SUBDIRECTORIES in tags and tags.get(_REDUCED, 0) & 1 == 1)
    )


def _is_tiff(head: bytes) -> bool:
    return re.match(rb"II[*+]\0|MM\0[*+]", head) is not None and not _is_raw(head)


KINDS = (
    Kind("JPEG", _start(rb"\xff\xd8\xff"), ".jpg", "image/jpeg"),
    Kind("PNG", _start(rb"\x89PNG\r\n\x1a\n"), ".png", "image/png"),
    Kind("WEBP", _start(rb"RIFF....WEBP"), ".webp", "image/webp"),
    Kind("GIF", _start(rb"GIF8[79]a"), ".gif", "image/gif"),
    Kind("BMP", _start(rb"BM"), ".bmp", "image/bmp", sure=False),
    Kind("TIFF", _is_tiff, ".tif", "image/tiff"),
    Kind("PPM", _start(rb"P[1-6f]\s"), ".ppm", "image/x-portable-anymap", sure=False),
    Kind("AVIF", _is_avif, ".avif", "image/avif"),
    Kind("JPEG2000", _start(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), ".jp2", "image/jp2"),
    Kind("PSD", _start(rb"8BPS\0\x01.{16}\0[\x01\x08]"), ".psd", "image/vnd.adobe.photoshop"),
    Kind("HEIC", _is_heic, ".heic", "image/heic", "pi_heif"),
    Kind("JPEG XL", _start(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), ".jxl", "image/jxl", "pylibjxl"),
    Kind("camera RAW", _is_raw, ".dng", "image/x-adobe-dng", "rawpy"),
)
"""The formats that ``decode`` reads. Pillow's others are left out: for EPS it starts Ghostscript."""

_NEVER = (
    (re.compile(rb"8BPS\0\x02"), "Photoshop's large format (PSB), not read; export as JPEG or PNG first"),
    (re.compile(rb"8BPS\0\x01.{16}\0[\x10\x20]", re.DOTALL),
     "Photoshop of 16 or 32 bits a channel, not read; export as JPEG or PNG first"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*|<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<svg[\s>]", re.DOTALL),
     "a drawing (SVG), not read; export as PNG first"),
)  # fmt: skip
"""First bytes of images that are never read, and what to do with them."""


def kind_of(data: bytes) -> Kind:
    """The format of an image, by its first bytes.

    Raises:
        ImageError: none that is read here; the message continues a sentence that begins with the image's name.
    """
    if not data:
        raise ImageError("is empty: 0 bytes")
    for kind in KINDS:
        if kind.starts(data):
            if kind.missing:
                raise ImageError(f"is {kind.name}, which needs: {EXTRA}")
            return kind
    for start, remedy in _NEVER:
        if start.match(data):
            raise ImageError(f"is {remedy}")
    readable = (kind.name for kind in KINDS if not kind.missing)
    raise ImageError(f"is not an image that can be read: expected one of {', '.join(readable)}")


def unread_kind(head: bytes) -> str | None:
    """What to do with a file that is not read, by its first bytes; empty when it is no image, None when it is read."""
    for kind in KINDS:
        if kind.sure and kind.starts(head):
            return kind.missing or None
    return next((remedy for start, remedy in _NEVER if start.match(head)), "")
