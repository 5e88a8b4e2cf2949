"""Which small files would keep Pillow busy for minutes? They are refused before it sees them.

No program writes such files; the limits are far above what any does. Sizes in pixels are checked in ``decode``.
"""

from __future__ import annotations

import re
import struct

from mg_milvus.errors import PictureError

_SCANS = 100
"""Of a JPEG. Each is a walk over all pixels, whatever its length; progressive files have about ten."""
_SEGMENTS = 5000
"""Of a JPEG; Pillow joins those of one kind, each time copying what it has."""
_GAP = 1 << 16
"""Bytes between a JPEG's segments, which Pillow reads one by one."""
_PROFILES = 16
"""Colour profiles of a PNG, where one is allowed; a kilobyte unfolds to a megabyte."""
_COMMENTS = 1000
"""Of a PPM with numbers as text; Pillow copies a block of numbers for each."""
_STRIPS = 65_536
"""Strips or tiles of a TIFF, each of which takes Pillow some microseconds."""
_VALUES = 262_144
"""Numbers of one tag of a TIFF; a palette has 196,608."""
_TAGS = 4096
"""Of a TIFF; usual files have about twenty."""
_STRIP_TAGS = frozenset({273, 279, 324, 325})
_BYTE_TYPES = frozenset({1, 2, 6, 7})

# Not the zero that stands behind a byte 255 among pixels, and not the restarts among them.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END, _SCAN = 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, 0xD8})


def refuse_bombs(data: bytes) -> None:
    """Check an encoded picture for what would take a decoder minutes.

    Raises:
        PictureError: the message goes on where a name is put before it, as those of ``decode``.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data[:2] in {b"II", b"MM"}:
        _check_tiff(data)
    elif data.startswith(b"\x89PNG") and (count := data.count(b"iCCP")) > _PROFILES:
        raise PictureError(f"has {count} colour profiles, at most {_PROFILES} are read")
    elif data[:2] in {b"P1", b"P2", b"P3"} and (count := data.count(b"#")) > _COMMENTS:
        raise PictureError(f"has {count} comments, at most {_COMMENTS} are read")


def _check_tiff(data: bytes) -> None:
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    entry = struct.Struct(f"{order}HHQ8x" if big else f"{order}HHL4x")
    try:
        (start,) = struct.unpack_from(f"{order}Q" if big else f"{order}L", data, 8 if big else 4)
        (tags,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, start)
        first = start + (8 if big else 2)
        entries = [entry.unpack_from(data, first + entry.size * place) for place in range(min(tags, _TAGS + 1))]
    except (struct.error, OverflowError):
        return  # cut off: Pillow says what is missing
    if tags > _TAGS:
        raise PictureError(f"has {tags} tags, at most {_TAGS} are read")
    for tag, kind, count in entries:
        if tag in _STRIP_TAGS and count > _STRIPS:
            raise PictureError(f"has {count} strips or tiles, at most {_STRIPS} are read")
        if kind not in _BYTE_TYPES and count > _VALUES:
            raise PictureError(f"has {count} numbers in its tag {tag}, at most {_VALUES} are read")


def _check_jpeg(data: bytes) -> None:
    place, segments, scans = 2, 0, 0
    while (marker := _MARKER.search(data, place)) is not None and (kind := data[marker.end() - 1]) != _END:
        if not scans and marker.start() - place > _GAP:
            raise PictureError(f"has {marker.start() - place} bytes between its segments, at most {_GAP} are read")
        segments, scans = segments + 1, scans + (kind == _SCAN)
        if scans > _SCANS or segments > _SEGMENTS:
            raise PictureError(
                f"has more than {_SCANS} scans or {_SEGMENTS} segments, which no camera or program writes"
            )
        place = marker.end()
        if kind not in _WITHOUT_LENGTH:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
