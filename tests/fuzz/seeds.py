"""Small sound images of every kind that a format has, to start mutations from."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from functools import cache

import numpy as np
import pylibjxl
from PIL import Image, ImageCms, UnidentifiedImageError

from mg_milvus.images.decode import decode
from tests.cameras import dng, heic, jxl, psd
from tests.images import encoded, image, jpeg_with_broken_exif, turned_jpeg

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
MORE_FORMATS = ("HEIC", "JPEG XL", "camera RAW", "AVIF", "JPEG2000", "PSD")
"""Those of phones, cameras and programs, which other decoders read."""
_SIZE = (24, 16)


@cache
def seeds(kind: str) -> tuple[bytes, ...]:
    """Encoded images of one format."""
    return tuple(
        {
            "JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif, "TIFF": _tiff, "BMP": _bmp, "HEIC": _heic,
            "JPEG XL": _jxl, "camera RAW": _raw, "AVIF": _avif, "JPEG2000": _jpeg2000, "PSD": _psd,
        }[kind]()
    )  # fmt: skip


def _plain(seed: int = 3) -> Image.Image:
    return image(seed, _SIZE)


def _clear() -> Image.Image:
    image = _plain().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(_SIZE))
    return image


def _deep() -> Image.Image:
    return Image.fromarray((np.arange(_SIZE[0] * _SIZE[1], dtype=np.uint16) * 170).reshape(_SIZE[::-1]))


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _several(count: int) -> list[Image.Image]:
    return [_plain(seed) for seed in range(4, 4 + count)]


def _jpeg() -> list[bytes]:
    plain = encoded(_plain(), "JPEG")
    return [
        plain,
        encoded(_plain(), "JPEG", progressive=True, subsampling="4:4:4"),
        encoded(_plain().convert("L"), "JPEG"),
        encoded(_plain().convert("CMYK"), "JPEG"),
        encoded(_plain(), "JPEG", icc_profile=_profile(), comment=b"a comment", dpi=(72, 72)),
        encoded(_plain(), "JPEG", restart_marker_blocks=1, optimize=True),
        turned_jpeg(_plain(), 6, progressive=True),
        jpeg_with_broken_exif(_plain()),
        encoded(_plain(), "MPO", save_all=True, append_images=_several(2)),
    ]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    interlaced = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    return [
        encoded(_plain(), "PNG", icc_profile=_profile(), exif=exif, dpi=(72, 72)),
        encoded(_plain().quantize(8), "PNG", transparency=2),
        encoded(_plain().convert("1"), "PNG"),
        encoded(_clear(), "PNG"),
        encoded(_deep(), "PNG"),
        encoded(_plain().convert("LA"), "PNG"),
        encoded(_plain(), "PNG", save_all=True, append_images=_several(3)),
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", interlaced)
        + png_chunk(b"tRNS", bytes(6))
        + png_chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text"))
        + png_chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"text"))
        + png_chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
        + png_chunk(b"IEND", b""),
    ]


def _webp() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 8
    return [
        encoded(_plain(), "WEBP"),
        encoded(_plain(), "WEBP", lossless=True),
        encoded(_clear(), "WEBP", exif=exif, icc_profile=_profile()),
        encoded(_clear(), "WEBP", lossless=True, exact=True),
        encoded(_plain(), "WEBP", save_all=True, append_images=_several(3), lossless=True),
        encoded(_clear(), "WEBP", save_all=True, append_images=_several(2)),
    ]


def _gif() -> list[bytes]:
    return [
        encoded(_plain().quantize(16), "GIF"),
        encoded(_plain().quantize(4), "GIF", interlace=0, transparency=1, comment=b"a comment"),
        encoded(_plain().convert("L"), "GIF"),
        encoded(_plain(), "GIF", save_all=True, append_images=_several(4), loop=0, disposal=2),
    ]


def _tiff() -> list[bytes]:
    plain = _plain()
    made = [
        encoded(plain, "TIFF", compression=way)
        for way in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_deflate")
    ]
    made += [encoded(plain.convert("1"), "TIFF", compression=way) for way in ("group3", "group4", "tiff_ccitt")]
    made += [encoded(image, "TIFF") for image in (_deep(), _clear(), plain.convert("CMYK"), plain.quantize(9))]
    made.append(encoded(plain.convert("F"), "TIFF", big_tiff=True))
    made.append(encoded(plain.convert("YCbCr"), "TIFF", compression="tiff_lzw"))
    made.append(encoded(plain, "TIFF", save_all=True, append_images=_several(3), icc_profile=_profile()))
    made.append(encoded(plain, "TIFF", strip_size=48, compression="packbits"))
    return [*made, _big_endian_tiff()]


def _big_endian_tiff() -> bytes:
    """8 x 8 grey, one tile of 16 x 16."""
    tags = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1), (322, 3, 16), (323, 3, 16)]
    where = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = [struct.pack(">HHIHH", tag, kind, 1, value, 0) for tag, kind, value in tags]
    entries += [struct.pack(">HHII", tag, 4, 1, value) for tag, value in ((324, where), (325, 256))]
    directory = struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)
    return b"MM\0*\0\0\0\x08" + directory + bytes(range(256))


def _bmp() -> list[bytes]:
    run_length = encoded(_plain().quantize(16), "BMP")
    pixels = struct.unpack_from("<I", run_length, 10)[0]
    run_length = (
        run_length[:30] + struct.pack("<I", 1) + run_length[34:pixels] + b"\x18\x05\0\0" * _SIZE[1] + b"\0\3abc\0\0\1"
    )
    top_down = bytearray(encoded(_plain(), "BMP"))
    struct.pack_into("<i", top_down, 22, -_SIZE[1])
    images = (_plain(), _plain().convert("1"), _plain().convert("L"), _plain().quantize(16), _clear())
    return [*(encoded(image, "BMP") for image in images), run_length, bytes(top_down)]


def _heic() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    large = image(3, (70, 50))
    return [
        heic(large),
        heic(large, image(4, (70, 50)), primary=1),
        heic(_clear().resize((64, 48)), exif=exif.tobytes()),
    ]


def _jxl() -> list[bytes]:
    return [
        jxl(_plain()), jxl(_plain().convert("L").convert("RGB")), bytes(pylibjxl.jpeg_to_jxl(turned_jpeg(_plain(), 6))),
    ]  # fmt: skip


def _raw() -> list[bytes]:
    plain = image(3, (64, 48))
    return [dng(plain), dng(plain, encoded(plain, "JPEG")), dng(plain, turned_jpeg(plain, 6), 6)]


def _avif() -> list[bytes]:
    return [
        encoded(_plain(), "AVIF"), encoded(_clear(), "AVIF"),
        encoded(_plain(), "AVIF", save_all=True, append_images=_several(2)),
    ]  # fmt: skip


def _jpeg2000() -> list[bytes]:
    return [
        encoded(_plain(), "JPEG2000"), encoded(_plain(), "JPEG2000", no_jp2=True), encoded(_clear(), "JPEG2000"),
        encoded(_deep(), "JPEG2000"), encoded(_plain(), "JPEG2000", tile_size=(16, 16), num_resolutions=2),
    ]  # fmt: skip


def _psd() -> list[bytes]:
    return [psd(_plain()), psd(image(5, (7, 9)))]


def sound(data: bytes) -> bool:
    """Whether Pillow by itself reads these bytes, or, of formats that it does not know, ``decode``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one seed's EXIF is broken
        try:
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
        except UnidentifiedImageError:
            decode(data)
    return True
