"""Files as phones, cameras and Photoshop write them, made of a picture."""

from __future__ import annotations

import io
import struct

import numpy as np
import pillow_heif
import pylibjxl
from PIL import Image


def heic(*images: Image.Image, primary: int = 0, **options: object) -> bytes:
    file = pillow_heif.HeifFile()
    for each in images:
        file.add_from_pillow(each)
    buffer = io.BytesIO()
    file.save(buffer, quality=90, primary_index=primary, **options)
    return buffer.getvalue()


def jxl(picture: Image.Image) -> bytes:
    return bytes(pylibjxl.encode(np.asarray(picture)))


def tiff_directory(place: int, tags: dict[int, tuple[int, list[int] | bytes]]) -> bytes:
    """One directory of a little-endian TIFF that lies at ``place``, with its values behind it."""
    codes = {1: "B", 2: "B", 3: "H", 4: "L", 5: "L", 10: "l"}
    behind = place + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, (kind, given) in sorted(tags.items()):
        numbers = list(given)
        if kind in {5, 10}:  # fractions
            numbers = [part for number in numbers for part in (number, 10_000)]
        data = struct.pack(f"<{len(numbers)}{codes[kind]}", *numbers)
        if len(data) > 4:
            field = struct.pack("<L", behind + len(values))
            values += data + b"\0" * (len(data) % 2)
        else:
            field = data.ljust(4, b"\0")
        entries += struct.pack("<HHL", tag, kind, len(given)) + field
    return struct.pack("<H", len(tags)) + entries + bytes(4) + values


def dng(picture: Image.Image, preview: bytes | None = None, orientation: int = 1) -> bytes:
    """A sensor's red, green, green and blue pixels of a picture, with or without a preview, as DNG stores them."""
    light = (np.asarray(picture) / 255) ** 2.2 * 65_535
    sensor = np.empty(light.shape[:2], "<u2")
    for row, column, colour in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        sensor[row::2, column::2] = light[row::2, column::2, colour]
    pixels, (width, height) = sensor.tobytes(), picture.size
    camera: dict[int, tuple[int, list[int] | bytes]] = {
        271: (2, b"Maker\0"), 272: (2, b"Model\0"), 274: (3, [orientation]), 50706: (1, [1, 4, 0, 0]),
        50708: (2, b"Maker Model\0"), 50728: (5, [10_000] * 3), 50778: (3, [21]),
        50721: (10, [32_405, -15_371, -4_985, -9_693, 18_760, 416, 556, -2_040, 10_572]),
    }  # fmt: skip

    def of_sensor(place: int) -> dict[int, tuple[int, list[int] | bytes]]:
        return {
            254: (4, [0]), 256: (4, [width]), 257: (4, [height]), 258: (3, [16]), 259: (3, [1]), 262: (3, [32_803]),
            273: (4, [place]), 277: (3, [1]), 278: (4, [height]), 279: (4, [len(pixels)]), 33421: (3, [2, 2]),
            33422: (1, [0, 1, 1, 2]), 50714: (3, [0]), 50717: (4, [65_535]),
        }  # fmt: skip

    start = b"II*\0" + struct.pack("<L", 8)
    if preview is None:
        place = 8 + len(tiff_directory(8, camera | of_sensor(0)))
        return start + tiff_directory(8, camera | of_sensor(place)) + pixels
    shown = Image.open(io.BytesIO(preview))
    preview += b"\0" * (len(preview) % 2)

    def of_preview(place: int, second: int) -> dict[int, tuple[int, list[int] | bytes]]:
        return camera | {
            254: (4, [1]), 256: (4, [shown.width]), 257: (4, [shown.height]), 258: (3, [8, 8, 8]), 259: (3, [7]),
            262: (3, [6]), 273: (4, [place]), 277: (3, [3]), 278: (4, [shown.height]), 279: (4, [len(preview)]),
            330: (4, [second]),
        }  # fmt: skip

    second = 8 + len(tiff_directory(8, of_preview(0, 0)))
    third = second + len(tiff_directory(second, of_sensor(0)))
    directories = tiff_directory(8, of_preview(third, second))
    directories += tiff_directory(second, of_sensor(third + len(preview)))
    return start + directories + preview + pixels


def psd(picture: Image.Image, *, version: int = 1, depth: int = 8, composite: bool = True) -> bytes:
    """A Photoshop file without layers; ``composite``: what it says of the image of all layers."""
    width, height = picture.size
    says = struct.pack(">LB", 1, composite) + struct.pack(">LH", 1, 0) * 2 + struct.pack(">L", 1)
    resources = b"8BIM" + struct.pack(">HHL", 1057, 0, len(says)) + says + b"\0" * (len(says) % 2)
    header = b"8BPS" + struct.pack(">H6xHLLHH", version, 3, height, width, depth, 3)
    planes = np.asarray(picture).transpose(2, 0, 1).tobytes()
    return header + bytes(4) + struct.pack(">L", len(resources)) + resources + bytes(4) + b"\0\0" + planes
