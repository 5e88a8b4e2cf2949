"""Image files for the tests, made on the spot."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def image(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth random RGB image: the same seed, the same pixels."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def collage(seed: int) -> Image.Image:
    """Four different images beside and below each other, 240 x 160."""
    made = Image.new("RGB", (240, 160))
    for place in range(4):
        cells = np.random.default_rng([seed, place]).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        made.paste(
            Image.fromarray(cells).resize((120, 80), Image.Resampling.BICUBIC), (place % 2 * 120, place // 2 * 80)
        )
    return made


def save_image(path: str | os.PathLike[str], seed: int, size: tuple[int, int] = (64, 48)) -> Path:
    """Write ``image(seed, size)`` in the format of the suffix."""
    image(seed, size).save(path)
    return Path(path)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned_jpeg(image: Image.Image, orientation: int, **options: object) -> bytes:
    """A JPEG with an EXIF orientation; the pixels are stored as given."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, "JPEG", exif=exif, **options)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no more than a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def jpeg_with_broken_exif(image: Image.Image) -> bytes:
    """A sound JPEG whose EXIF points behind its own end; Pillow warns of it."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x03\0" + struct.pack("<HHII", 0x010F, 2, 5000, 9000) * 3
    plain = encoded(image, "JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]


def make_hostile_folder(path: str | os.PathLike[str]) -> dict[str, bool]:
    """Fill a folder with one file of every bad or unusual kind.

    Returns:
        Name -> whether it can be read, for every file that an ingest of the folder meets. Names that are not UTF-8 are
        in the form that ``os.fsdecode`` gives them. One link leads nowhere; one leads back to the folder.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    plain = image(1)
    jpeg = encoded(plain, "JPEG")
    deep = Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21)
    see_through = plain.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(plain.size))
    frames = [image(seed) for seed in (2, 3, 4)]
    readable: dict[str | bytes, bytes] = {
        "plain.jpg": jpeg,
        "UPPER.JPG": encoded(image(5), "JPEG"),
        "png called.jpg": encoded(image(6), "PNG"),
        "cmyk.jpg": encoded(image(7).convert("CMYK"), "JPEG"),
        "sixteen bit.png": encoded(deep, "PNG"),
        "sixteen bit.tif": encoded(deep, "TIFF"),
        "one bit.png": encoded(image(8).convert("1"), "PNG"),
        "palette.png": encoded(see_through.quantize(16), "PNG"),
        "alpha.webp": encoded(see_through, "WEBP"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(frames[1], "WEBP", save_all=True, append_images=frames[2:]),
        "turned.jpg": turned_jpeg(image(9), 6),
        "broken exif.jpg": jpeg_with_broken_exif(image(10)),
        "1x1.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
        "1x10000.png": encoded(image(11, (1, 10_000)), "PNG"),
        "10000x1.jpg": encoded(image(12, (10_000, 1)), "JPEG"),
        "a  space.jpg": encoded(image(13), "JPEG"),
        "new\nline.jpg": encoded(image(14), "JPEG"),
        "quo'te\"s.jpg": encoded(image(15), "JPEG"),
        "back\\slash.jpg": encoded(image(16), "JPEG"),
        "émoji 🦜.jpg": encoded(image(17), "JPEG"),
    }
    if sys.platform != "darwin":  # whose file systems refuse such names
        readable[b"latin-1 caf\xe9.jpg"] = encoded(image(18), "JPEG")
    unreadable: dict[str | bytes, bytes] = {
        "empty.jpg": b"",
        "text.jpg": b"This is no image.\n",
        "noise.png": random.Random(0).randbytes(2000),
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": encoded(plain, "PNG")[:-200],
        "header only.gif": b"GIF89a",
        "bomb.png": png_header(50_000, 50_000),
    }
    for name, content in (readable | unreadable).items():
        (folder / os.fsdecode(name)).write_bytes(content)
    (folder / "dangling.jpg").symlink_to("not here.jpg")
    (folder / "loop").symlink_to(folder)
    names = dict.fromkeys(map(os.fsdecode, readable), True)
    return names | dict.fromkeys(map(os.fsdecode, unreadable), False) | {"dangling.jpg": False}
