"""Spoiled images: the same format and number always give the same bytes."""

from __future__ import annotations

import random
import struct
import zlib
from functools import cache
from typing import TYPE_CHECKING

from tests.fuzz.seeds import FORMATS, MORE_FORMATS, png_chunk, seeds

if TYPE_CHECKING:
    from collections.abc import Callable

_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 317, 320, 322, 324, 338, 339, 347, 530, 34_665, 700)
_SIDES = (0, 1, 3, 255, 1000, 2000, 4096, 16383, 16384, 30_000, 65_500, 65_535)


def mutated(kind: str, number: int) -> bytes:
    """An image of the format ``kind``, spoiled in one to four ways."""
    chance = random.Random(f"{kind} {number}")
    data = bytearray(chance.choice(seeds(kind)))
    for _ in range(chance.choice((1, 1, 2, 2, 3, 4))):
        ways = _OF_FORMAT[kind] if chance.random() < 0.5 else _GENERAL
        data = chance.choice(ways)(data, chance) or data
    return bytes(data)


# Of any file


def _place(data: bytearray, chance: random.Random) -> int:
    """Somewhere; headers are hit more often than pixels."""
    return min(chance.randrange(len(data)), len(data) - 1 if chance.random() < 0.5 else 64)


def _flip_bits(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 1, 2, 8, 40))):
        data[_place(data, chance)] ^= 1 << chance.randrange(8)
    return data


def _noise(data: bytearray, chance: random.Random) -> bytearray:
    start = _place(data, chance)
    length = min(chance.choice((1, 4, 32, 500)), len(data) - start)
    data[start : start + length] = chance.randbytes(length)
    return data


def _cut_off(data: bytearray, chance: random.Random) -> bytearray:
    return data[: max(1, chance.randrange(len(data)))]


def _cut_out(data: bytearray, chance: random.Random) -> bytearray:
    start = _place(data, chance)
    del data[start : start + chance.choice((1, 2, 7, 100, 1000))]
    return data or bytearray(b"x")


def _repeat(data: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(data))
    piece = data[start : start + chance.choice((1, 8, 64, 400))]
    data[start:start] = piece * min(chance.choice((1, 10, 2000)), 200_000 // len(piece))
    return data


def _splice(data: bytearray, chance: random.Random) -> bytearray:
    other = chance.choice(seeds(chance.choice((*FORMATS, *MORE_FORMATS))))
    return data[: chance.randrange(1, len(data) + 1)] + other[chance.randrange(len(other)) :]


def _extreme_number(data: bytearray, chance: random.Random) -> bytearray:
    width = chance.choice((1, 2, 4, 4, 8))
    start = _place(data, chance) // 2 * 2
    value = chance.choice(_EXTREMES) % (1 << 8 * width)
    data[start : start + width] = value.to_bytes(width, chance.choice(("big", "little")))
    return data


_GENERAL = (_flip_bits, _noise, _cut_off, _cut_out, _repeat, _splice, _extreme_number)


# PNG: chunks, with checksums that are right


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if place + 12 + length > len(data):
            break
        found.append((bytes(data[place + 4 : place + 8]), bytes(data[place + 8 : place + 8 + length])))
        place += 12 + length
    return found


def _png(chunks: list[tuple[bytes, bytes]]) -> bytearray:
    return bytearray(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in chunks))


def _png_chunk(data: bytearray, chance: random.Random) -> bytearray:
    """One chunk spoiled, in order or not, more often than allowed, or gone."""
    chunks = _chunks(data)
    if not chunks:
        return data
    place = chance.randrange(len(chunks))
    kind, content = chunks[place]
    way = chance.randrange(5)
    if way == 0 and content:
        chunks[place] = kind, bytes(chance.choice((_flip_bits, _noise, _extreme_number))(bytearray(content), chance))
    elif way == 1:
        chunks[place:place] = [chunks[place]] * chance.choice((1, 5, 3000))
    elif way == 2:
        del chunks[place]
    elif way == 3:
        chance.shuffle(chunks)
    else:
        chunks.insert(place, (bytes(chance.choices(b"IDATpHYsgAMAtRNSPLTEfcTL", k=4)), chance.randbytes(40)))
    return _png(chunks)


def _png_header(data: bytearray, chance: random.Random) -> bytearray:
    """Another size, depth, colour type or interlacing than the pixels have."""
    chunks = _chunks(data)
    if chunks and len(chunks[0][1]) == 13:
        w, h, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
        if chance.random() < 0.6:
            w, h = chance.choice((*_SIDES, 1 << 31, w)), chance.choice((*_SIDES, (1 << 32) - 1, h))
        rest[chance.choice((0, 1, 2, 3, 4, 4, 4))] = chance.choice((0, 1, 2, 3, 4, 6, 8, 16, 32))
        chunks[0] = chunks[0][0], struct.pack(">IIBBBBB", w, h, *rest)
    return _png(chunks)


@cache
def _flood(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def _png_bomb(data: bytearray, chance: random.Random) -> bytearray:
    """A chunk of a few kilobytes that unfolds to megabytes."""
    flood = _flood(chance.choice((1 << 16, 1 << 22, 1 << 24)))
    kind, start = chance.choice(
        (
            (b"zTXt", b"key\0\0"),
            (b"iTXt", b"key\0\1\0\0\0"),
            (b"iCCP", b"name\0\0"),
            (b"IDAT", b""),
            (b"eXIf", b"II*\0"),
        )
    )
    chunks = _chunks(data)
    chunks[1:1] = [(kind, start + flood)] * chance.choice((1, 1, 3, 80))
    return _png(chunks)


# JPEG: segments


def _segments(data: bytes) -> list[tuple[int, int]]:
    """Start and end of each segment before the first scan's data."""
    found, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        (length,) = struct.unpack_from(">H", data, place + 2)
        found.append((place, min(len(data), place + 2 + length)))
        if data[place + 1] == 0xDA:
            break
        place += 2 + length
    return found


def _jpeg_size(data: bytearray, chance: random.Random) -> bytearray:
    for start, _ in _segments(data):
        if data[start + 1] in (0xC0, 0xC1, 0xC2) and start + 10 <= len(data):
            struct.pack_into(">HH", data, start + 5, chance.choice(_SIDES), chance.choice(_SIDES))
            if chance.random() < 0.3:
                data[start + 9] = chance.choice((0, 1, 2, 3, 4, 5, 255))
    return data


def _jpeg_segment(data: bytearray, chance: random.Random) -> bytearray:
    segments = _segments(data)
    if not segments:
        return data
    start, end = chance.choice(segments)
    way = chance.randrange(4)
    if way == 0:
        inside = chance.choice((_flip_bits, _noise, _extreme_number))(data[start + 4 : end] or bytearray(1), chance)
        data[start + 4 : end] = inside
    elif way == 1:
        data[end:end] = data[start:end] * chance.choice((1, 20, 500))
    elif way == 2:
        del data[start:end]
    else:
        data[start + 1] = chance.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xC4, 0xDB, 0xDA, 0xDD, 0xDC, 0xE1, 0xEE))
    return data


def _jpeg_scans(data: bytearray, chance: random.Random) -> bytearray:
    """The scans of the file again and again, each a walk over all pixels."""
    segments = _segments(data)
    if segments and data[segments[-1][0] + 1] == 0xDA:
        start = segments[-1][0]
        data[start:start] = data[start:-2] * min(chance.choice((3, 100)), 1 + 100_000 // len(data))
    return data


def _jpeg_metadata(data: bytearray, chance: random.Random) -> bytearray:
    """EXIF, ICC, Photoshop, MPO and comments full of garbage, once or a thousand times."""
    body = chance.randbytes(chance.choice((0, 10, 500)))
    entries = struct.pack("<H", chance.choice((1, 5, 65_535))) + b"".join(
        struct.pack("<HHII", chance.choice((0x112, 0x8769, 0x8825, 0xB001, 0x927C)), chance.randrange(14),
                    chance.choice(_EXTREMES), chance.choice(_EXTREMES)) for _ in range(5)
    )  # fmt: skip
    marker, start = chance.choice(
        (
            (0xE1, b"Exif\0\0" + b"II*\0\x08\0\0\0" + entries), (0xE2, b"ICC_PROFILE\0\x01\xff"),
            (0xED, b"Photoshop 3.0\0" + b"8BIM"), (0xE2, b"MPF\0II*\0\x08\0\0\0" + entries), (0xFE, b""),
            (0xEE, b"Adobe\0\x64\0\0\0\0\xff"), (0xE0, b"JFIF\0"),
        )
    )  # fmt: skip
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(start + body) + 2) + start + body
    data[2:2] = segment * chance.choice((1, 1, 3, 300))
    return data


# TIFF: directories


def _tiff_tag(data: bytearray, chance: random.Random) -> bytearray:
    """Numbers in entries of the first directory: tag, type, count, value; or where the next directory is."""
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 20:
        return data
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        return data
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for _ in range(chance.choice((1, 1, 2, 4))):
        entry = start + 2 + 12 * chance.randrange(min(count, 40) + 1)
        if entry + 12 > len(data):
            continue
        way = chance.randrange(5)
        if way == 0:
            struct.pack_into(f"{order}H", data, entry, chance.choice(_TAGS))
        elif way == 1:
            struct.pack_into(f"{order}H", data, entry + 2, chance.randrange(20))
        elif way == 2:
            struct.pack_into(f"{order}I", data, entry + 4, chance.choice(_EXTREMES))
        elif way == 3:
            struct.pack_into(f"{order}I", data, entry + 8, chance.choice(_EXTREMES))
        else:
            struct.pack_into(f"{order}HH", data, entry + 8, chance.choice(_SIDES), 0)
    return data


def _tiff_loop(data: bytearray, chance: random.Random) -> bytearray:
    """Thousands of directories, or one that follows itself."""
    if len(data) < 20:
        return data
    order = "<" if data[:2] == b"II" else ">"
    end = len(data) + len(data) % 2
    data += bytes(len(data) % 2)
    struct.pack_into(f"{order}I", data, 4, end)
    length = chance.choice((1, 2000))
    for number in range(length):
        following = end if number == length - 1 else end + 18 * (number + 1)
        data += struct.pack(f"{order}HHHIII", 1, 254, 4, 1, 0, following)
    return data


# GIF, WebP, BMP


def _gif_size(data: bytearray, chance: random.Random) -> bytearray:
    """Of the screen, or of the frame and its place."""
    place = data.find(b",", 13) if chance.random() < 0.5 else -1
    sides = [chance.choice(_SIDES) for _ in range(4)]
    if 0 <= place <= len(data) - 10:
        struct.pack_into("<HHHH", data, place + 1, *sides)
    elif len(data) > 10:
        struct.pack_into("<HH", data, 6, *sides[:2])
    return data


def _gif_frames(data: bytearray, chance: random.Random) -> bytearray:
    place = data.find(b",", 13)
    if place > 0:
        data[place:place] = data[place:-1] * min(chance.choice((5, 3000)), 1 + 400_000 // len(data))
    return data


def _gif_extensions(data: bytearray, chance: random.Random) -> bytearray:
    block = bytes([0x21, chance.choice((0xF9, 0xFE, 0xFF, 0x01, chance.randrange(256)))])
    length = chance.choice((0, 1, 4, 11, 255))
    data[13:13] = (block + bytes([length]) + chance.randbytes(length) + b"\0") * chance.choice((1, 5, 1000))
    return data


def _webp_chunk(data: bytearray, chance: random.Random) -> bytearray:
    """A chunk's length, content or kind; the length of the whole is put right again."""
    place, starts = 12, []
    while place + 8 <= len(data):
        starts.append(place)
        (length,) = struct.unpack_from("<I", data, place + 4)
        place += 8 + length + length % 2
    if not starts:
        return data
    start = chance.choice(starts)
    (length,) = struct.unpack_from("<I", data, start + 4)
    end = min(len(data), start + 8 + length + length % 2)
    way = chance.randrange(5)
    if way == 0:
        struct.pack_into("<I", data, start + 4, chance.choice(_EXTREMES))
    elif way == 1:
        data[end:end] = data[start:end] * min(chance.choice((1, 10, 3000)), 1 + 400_000 // max(1, end - start))
    elif way == 2:
        data[start : start + 4] = chance.choice(
            (b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"ICCP")
        )
    elif way == 3 and end > start + 8:
        data[start + 8 : end] = chance.choice((_flip_bits, _noise, _extreme_number))(data[start + 8 : end], chance)
    else:
        del data[start:end]
    if len(data) > 8:
        struct.pack_into("<I", data, 4, len(data) - 8)
    return data


def _webp_size(data: bytearray, chance: random.Random) -> bytearray:
    """Of the canvas, or of the pixels in their own header."""
    canvas, pixels = data.find(b"VP8X"), data.find(b"VP8 ")
    if canvas > 0 and len(data) >= canvas + 18 and chance.random() < 0.6:
        for place in (canvas + 12, canvas + 15):
            data[place : place + 3] = chance.choice((*_SIDES, (1 << 24) - 1)).to_bytes(3, "little")
    elif pixels > 0 and len(data) >= pixels + 18:
        struct.pack_into("<HH", data, pixels + 14, chance.choice(_SIDES), chance.choice(_SIDES))
    elif (lossless := data.find(b"VP8L")) > 0 and len(data) >= lossless + 13:
        data[lossless + 9 : lossless + 13] = chance.randbytes(4)
    return data


def _bmp_header(data: bytearray, chance: random.Random) -> bytearray:
    fields = {
        10: ("<I", _EXTREMES), 14: ("<I", (12, 40, 52, 56, 64, 108, 124, *_EXTREMES)), 18: ("<i", (*_SIDES, -5)),
        22: ("<i", (*_SIDES, -1, -16, -(1 << 31), (1 << 31) - 1)), 26: ("<H", (0, 1, 65_535)),
        28: ("<H", (0, 1, 2, 4, 8, 16, 24, 32, 64, 65_535)), 30: ("<I", (0, 1, 2, 3, 4, 5, 6, 255)),
        34: ("<I", _EXTREMES), 46: ("<I", (0, 1, 2, 16, 255, 256, 257, *_EXTREMES)),
    }  # fmt: skip
    for place in chance.sample(sorted(fields), chance.choice((1, 2, 3))):
        form, values = fields[place]
        if len(data) >= place + 4:
            struct.pack_into(form, data, place, chance.choice(values))
    return data


def _bmp_runs(data: bytearray, chance: random.Random) -> bytearray:
    """Run lengths that jump and overflow, in an image of four or eight bits."""
    if len(data) < 54:
        return data
    bits, way = chance.choice(((8, 1), (4, 2)))
    struct.pack_into("<HI", data, 28, bits, way)
    (start,) = struct.unpack_from("<I", data, 10)
    runs = b"".join(bytes([chance.choice((0, 0, 1, 255)), chance.choice((0, 1, 2, 3, 255))]) for _ in range(200))
    return data[:start] + runs * chance.choice((1, 50))


# HEIC, AVIF, JPEG 2000, JPEG XL: boxes


_BOXES = (
    b"ftyp", b"meta", b"hdlr", b"pitm", b"iloc", b"iinf", b"infe", b"iprp", b"ipco", b"ispe", b"pixi", b"hvcC", b"av1C",
    b"colr", b"ipma", b"iref", b"irot", b"grid", b"mdat", b"moov", b"jp2h", b"ihdr", b"jp2c", b"jxlp", b"jxlc", b"Exif",
)  # fmt: skip


def _find_boxes(data: bytearray) -> list[int]:
    """Where the lengths of boxes are."""
    return [place - 4 for kind in _BOXES if (place := data.find(kind)) >= 4]


def _box(data: bytearray, chance: random.Random) -> bytearray:
    """A box whose length, kind or content is another, that comes more often, or is gone."""
    if not (starts := _find_boxes(data)):
        return _flip_bits(data, chance)  # a codestream of JPEG XL or JPEG 2000 alone
    start = chance.choice(starts)
    length = int.from_bytes(data[start : start + 4])
    end = min(len(data), start + max(8, length or len(data)))
    way = chance.randrange(5)
    if way == 0:
        struct.pack_into(">I", data, start, chance.choice(_EXTREMES))
    elif way == 1:
        data[start + 4 : start + 8] = chance.choice(_BOXES)
    elif way == 2 and end > start + 8:
        data[start + 8 : end] = chance.choice((_flip_bits, _noise, _extreme_number))(data[start + 8 : end], chance)
    elif way == 3:
        data[end:end] = data[start:end] * min(chance.choice((1, 10, 1000)), 1 + 200_000 // (end - start))
    else:
        del data[start:end]
    return data or bytearray(b"x")


def _box_size(data: bytearray, chance: random.Random) -> bytearray:
    """Width and height as the boxes tell them."""
    for kind, offset in ((b"ispe", 8), (b"ihdr", 4)):
        place = data.find(kind)
        if place > 0 and len(data) >= place + offset + 8:
            struct.pack_into(">II", data, place + offset, chance.choice(_SIDES), chance.choice(_SIDES))
    return data


def _jpeg2000_size(data: bytearray, chance: random.Random) -> bytearray:
    """Sides, tiles, components and depths of the codestream."""
    place = data.find(b"\xff\x51")
    if place >= 0 and len(data) >= place + 42:
        for _ in range(chance.choice((1, 2))):
            struct.pack_into(">I", data, place + 6 + 4 * chance.randrange(8), chance.choice((*_SIDES, *_EXTREMES)))
        if chance.random() < 0.3:
            struct.pack_into(">H", data, place + 38, chance.choice((0, 1, 2, 5, 255, 16_384)))
            data[place + 40] = chance.randrange(256)
    return data


# Photoshop


def _psd_header(data: bytearray, chance: random.Random) -> bytearray:
    """Channels, sides, depth and mode."""
    if len(data) >= 26:
        place, form, values = chance.choice(
            ((12, ">H", (0, 1, 2, 5, 56, 65_535)), (14, ">I", (*_SIDES, 300_000)), (18, ">I", (*_SIDES, 300_000)),
             (22, ">H", (1, 8, 16, 32)), (24, ">H", (0, 1, 2, 3, 4, 7, 8, 9)))
        )  # fmt: skip
        struct.pack_into(form, data, place, chance.choice(values))
    return data


def _psd_section(data: bytearray, chance: random.Random) -> bytearray:
    """The length of a section, or the kind of compression with rows that are none."""
    if len(data) < 40:
        return data
    if chance.random() < 0.5:
        struct.pack_into(">I", data, chance.choice((26, 30, 34)), chance.choice(_EXTREMES))
        return data
    (length,) = struct.unpack_from(">I", data, 30)
    place = 34 + length + 4
    if len(data) >= place + 2:
        struct.pack_into(">H", data, place, chance.choice((1, 1, 2, 3, 65_535)))
    return data


_OF_FORMAT: dict[str, tuple[Callable[[bytearray, random.Random], bytearray], ...]] = {
    "JPEG": (_jpeg_size, _jpeg_segment, _jpeg_scans, _jpeg_metadata),
    "PNG": (_png_chunk, _png_chunk, _png_header, _png_bomb),
    "WEBP": (_webp_chunk, _webp_size),
    "GIF": (_gif_size, _gif_frames, _gif_extensions),
    "TIFF": (_tiff_tag, _tiff_tag, _tiff_loop),
    "BMP": (_bmp_header, _bmp_header, _bmp_runs),
    "HEIC": (_box, _box, _box_size),
    "AVIF": (_box, _box, _box_size),
    "JPEG2000": (_box, _box_size, _jpeg2000_size),
    "JPEG XL": (_box, _extreme_number),
    "camera RAW": (_tiff_tag, _tiff_tag, _tiff_loop),
    "PSD": (_psd_header, _psd_header, _psd_section),
}
