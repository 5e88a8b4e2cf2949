"""Files of cameras, phones and programs: what can be read is read; the rest is said, with a remedy."""

from __future__ import annotations

import io
import struct
import sys
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pylibjxl
import pytest
from PIL import Image, ImageCms

from mg_milvus.errors import ImageError
from mg_milvus.images.decode import decode, open_image
from mg_milvus.images.discover import Tally, discover
from mg_milvus.images.thumbnails import small
from tests.cameras import dng, heic, jxl, psd
from tests.images import ORIENTATION, encoded, image, save_image, turned_jpeg

SIZE = (640, 480)
PHOTO = image(3, SIZE)
TURNS = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
"""EXIF orientation -> what a viewer does to the stored pixels."""


def distance(left: Image.Image, right: Image.Image) -> float:
    """Mean difference of the pixels of two RGB images of one size, of 255."""
    assert left.size == right.size
    return float(np.abs(np.asarray(left, np.int16) - np.asarray(right, np.int16)).mean())


def turned(orientation: int) -> Image.Image:
    turn = TURNS[orientation]
    return PHOTO if turn is None else PHOTO.transpose(turn)


# Formats of phones, cameras and programs


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (heic(PHOTO), 3), (jxl(PHOTO), 3), (encoded(PHOTO, "JPEG2000"), 0), (psd(PHOTO), 0),
        (encoded(PHOTO, "AVIF"), 3), (dng(PHOTO, encoded(PHOTO, "JPEG")), 3),
    ],
    ids=["heic", "jxl", "jp2", "psd", "avif", "dng"],
)  # fmt: skip
def test_a_format_is_read_by_its_content_whatever_its_name(data: bytes, most: float, tmp_path: Path) -> None:
    for name in ("x.jpg", "X.HEIC", "no ending"):
        (tmp_path / name).write_bytes(data)
    found = list(discover([tmp_path], pytest.fail))
    assert len(found) == 3
    for own in found:
        decoded = open_image(own.path)
        assert (decoded.width, decoded.height) == SIZE
        assert distance(decoded.image, PHOTO) <= most


@pytest.mark.parametrize("orientation", TURNS)
def test_images_of_phones_and_cameras_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    of_phone = io.BytesIO()
    pillow_heif.from_pillow(PHOTO).save(of_phone, exif=exif.tobytes(), quality=90)
    jpeg = turned_jpeg(PHOTO, orientation)
    preview = encoded(PHOTO, "JPEG")
    for data in (bytes(pylibjxl.jpeg_to_jxl(jpeg)), dng(PHOTO, preview, orientation), dng(PHOTO, jpeg, orientation)):
        decoded = decode(data)
        assert (decoded.width, decoded.height) == turned(orientation).size
        assert distance(decoded.image, turned(orientation)) < 3


def test_a_sensor_without_a_preview_is_developed() -> None:
    plain = decode(dng(PHOTO))
    assert (plain.width, plain.height) == SIZE
    seen = np.asarray(plain.image, np.float64).ravel()
    expected = np.asarray(PHOTO.resize(plain.image.size), np.float64).ravel()
    assert np.corrcoef(seen, expected)[0, 1] > 0.98
    upright = decode(dng(PHOTO, orientation=6))
    assert (upright.width, upright.height) == SIZE[::-1]
    assert distance(upright.image, plain.image.transpose(Image.Transpose.ROTATE_270)) == 0


def test_a_preview_of_a_stamp_is_not_taken_for_the_image() -> None:
    stamp = encoded(Image.new("RGB", (64, 48), "red"), "JPEG")
    assert distance(decode(dng(PHOTO, stamp)).image, decode(dng(PHOTO)).image) == 0


def test_the_preview_stands_for_the_whole_image() -> None:
    preview = encoded(PHOTO.resize((320, 240)), "JPEG")
    decoded = decode(dng(PHOTO, preview))
    assert (decoded.width, decoded.height, decoded.image.size) == (*SIZE, (320, 240))
    with pytest.raises(ImageError, match="more than max_pixels=300000"):
        decode(dng(PHOTO, preview), max_pixels=300_000)


def test_bursts_motion_photos_and_gain_maps_are_their_main_image() -> None:
    other = image(4, SIZE)
    for data in (
        heic(other, PHOTO, primary=1),
        encoded(PHOTO, "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(5000),  # a film behind the photograph
        encoded(PHOTO, "MPO", save_all=True, append_images=[other.resize((160, 120))]),  # as gain maps are stored
        encoded(PHOTO, "AVIF", save_all=True, append_images=[other]),
    ):
        assert distance(decode(data).image, PHOTO) < 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (psd(PHOTO, composite=False), "has no composite: save it in Photoshop with 'Maximize Compatibility'"),
        (psd(PHOTO, version=2), "is Photoshop's large format (PSB), not read; export as JPEG or PNG first"),
        (psd(PHOTO, depth=16), "is Photoshop of 16 or 32 bits a channel, not read; export as JPEG or PNG first"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is a drawing (SVG), not read; export as PNG first"),
    ],
)
def test_what_is_never_read_says_what_to_do(data: bytes, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("package", "name", "data"),
    [
        ("pi_heif", "HEIC", heic(PHOTO.resize((64, 48)))),
        ("pylibjxl", "JPEG XL", jxl(PHOTO.resize((64, 48)))),
        ("rawpy", "camera RAW", dng(PHOTO.resize((64, 48)), encoded(PHOTO, "JPEG"))),
    ],
)
def test_without_its_package_a_kind_is_passed_over_with_the_remedy(
    package: str, name: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "x.own").write_bytes(data)
    save_image(tmp_path / "y.jpg", 1)
    passed = Tally()
    (found,) = discover([tmp_path], pytest.fail, None, passed)
    assert found.path.endswith("y.jpg")
    (record,) = passed.records()
    assert (record.kind, record.count, record.remedy) == (".own", 1, f"{name}: pip install 'mg-milvus[formats]'")
    with pytest.raises(ImageError, match=rf"^is {name}, which needs: pip install 'mg-milvus\[formats\]'$"):
        decode(data)


def test_a_package_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from mg_milvus.images import decode as module

    def broken(name: str) -> None:
        raise ImportError("libheif.so.1: cannot open shared object file")

    monkeypatch.setattr(module, "import_module", broken)
    with pytest.raises(ImageError, match=r"is HEIC, whose reader cannot be loaded \(libheif.so.1: cannot open"):
        decode(heic(PHOTO.resize((64, 48))))


def test_the_first_image_of_a_plain_tiff_is_the_image() -> None:
    several = encoded(PHOTO, "TIFF", save_all=True, append_images=[PHOTO.resize((64, 48))])
    assert decode(several).width == SIZE[0]


# Files that an interrupted copy cut


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"subsampling": "4:4:4"}])
@pytest.mark.parametrize("least", [None, 64])
def test_a_jpeg_without_its_end_is_read_with_a_note(options: dict[str, object], least: int | None) -> None:
    data = encoded(PHOTO, "JPEG", **options)
    whole = decode(data, least=least)
    assert whole.note == ""
    for missing in (1, 2):
        decoded = decode(data[:-missing], least=least)
        assert decoded.note.startswith("lacks its last bytes")
        assert distance(decoded.image, whole.image) == 0


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("picture", ["noise", "photo"])
def test_a_jpeg_that_lacks_pixels_is_refused(picture: str, progressive: bool) -> None:
    noise = Image.fromarray(np.random.default_rng(5).integers(0, 256, (96, 128, 3), np.uint8))
    data = encoded(noise if picture == "noise" else PHOTO, "JPEG", quality=90, progressive=progressive)
    whole, read = decode(data).image, []
    for missing in range(1, 80):
        with suppress(ImageError):
            assert distance(decode(data[:-missing]).image, whole) == 0, missing
            read.append(missing)
    assert len(read) < 20


# Depths and colours


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_any_depth_looks_like_its_copy_of_eight_bits(bits: int, kind: str) -> None:
    eight = np.asarray(PHOTO.convert("L"), np.float64)
    eight = (eight - eight.min()) / (eight.max() - eight.min()) * 255
    deep = Image.fromarray(np.rint(eight / 255 * (2**bits - 1)).astype(np.uint16))
    seen = decode(encoded(deep, kind)).image
    assert np.abs(np.asarray(seen, np.float64) - eight[..., None]).max() <= 1


def sixteen(samples: np.ndarray, kind: str) -> bytes:
    """A PNG or TIFF of 16 bits a sample of an array (h, w, 3 or 4) of RGB or RGBA, as OpenCV writes it."""
    parameters = {"TIFF": [cv2.IMWRITE_TIFF_COMPRESSION, 1], "TIFF deflate": [cv2.IMWRITE_TIFF_COMPRESSION, 8]}
    order = [2, 1, 0, 3][: samples.shape[2]]
    done, data = cv2.imencode(".png" if kind == "PNG" else ".tiff", samples[..., order], parameters.get(kind, []))
    assert done
    return bytes(data)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF deflate"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_of_any_depth_look_like_their_copy_of_eight_bits(bits: int, kind: str, alpha: bool) -> None:
    eight = np.asarray(PHOTO, np.float64)
    eight = (eight - eight.min()) / (eight.max() - eight.min()) * 255
    deep = np.rint(eight / 255 * (2**bits - 1)).astype(np.uint16)
    if alpha:
        deep = np.dstack([deep, np.full(deep.shape[:2], 65_535, np.uint16)])
    seen = decode(sixteen(deep, kind)).image
    assert np.abs(np.asarray(seen, np.float64) - eight).max() <= 1


def test_a_dark_tiff_of_16_bits_is_read_whatever_pillow_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    deep = (np.asarray(PHOTO).astype(np.uint16) * 16)[:96, :128]
    seen = decode(sixteen(deep, "TIFF deflate")).image
    assert np.abs(np.asarray(seen, np.int16) - np.asarray(PHOTO, np.int16)[:96, :128]).max() <= 1


PRIMARIES = {
    "AdobeRGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), 2.2),
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), 2.2),
}
"""Red, green and blue (x, y) at white D65, and gamma."""
BRADFORD = np.array([[1.0478, 0.0229, -0.0501], [0.0296, 0.9904, -0.0171], [-0.0092, 0.0151, 0.7517]])
"""Colours at white D65 -> at D50, as profiles store them."""


def to_xyz(space: str) -> np.ndarray:
    """(3, 3): linear RGB of a space -> XYZ at D65."""
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in PRIMARIES[space][:3]]).T
    return xyz * np.linalg.solve(xyz, (0.9505, 1, 1.0890))


def profile(space: str) -> bytes:
    """An ICC profile of version 2 of a space: three colours, and a gamma."""

    def fixed(*numbers: float) -> bytes:
        return struct.pack(f">{len(numbers)}i", *(round(number * 65_536) for number in numbers))

    columns = (BRADFORD @ to_xyz(space)).T
    curve = b"curv" + bytes(4) + struct.pack(">LH", 1, round(PRIMARIES[space][3] * 256)) + b"\0\0"
    parts = {b"desc": b"desc" + bytes(4) + struct.pack(">L", 2) + b"x\0" + bytes(79), b"cprt": b"text\0\0\0\0x\0\0\0"}
    parts[b"wtpt"] = b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)
    for name, column in zip((b"r", b"g", b"b"), columns, strict=True):
        parts[name + b"XYZ"], parts[name + b"TRC"] = b"XYZ " + bytes(4) + fixed(*column), curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(parts)
    for name, content in parts.items():
        table += name + struct.pack(">LL", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">L4xL4s4s4s", start + len(body), 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed(0.9642, 1, 0.8249) + bytes(48)
    return head + struct.pack(">L", len(parts)) + table + body


def as_srgb(pixels: np.ndarray, space: str) -> np.ndarray:
    """What sRGB calls the colours of a space, by the formulas of IEC 61966-2-1; outside of it the nearest."""
    light = (pixels / 255) ** PRIMARIES[space][3]
    linear = (light @ (np.linalg.inv(to_xyz("sRGB")) @ to_xyz(space)).T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


MUTED = Image.fromarray((np.asarray(image(8, (64, 48))) // 2 + 64).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_of_a_profile_become_those_of_srgb(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    expected = as_srgb(np.asarray(MUTED, np.float64), "AdobeRGB")
    assert np.abs(expected - np.asarray(MUTED)).max() > 20
    data = encoded(MUTED, kind, icc_profile=profile("AdobeRGB"), **options)
    assert np.abs(np.asarray(decode(data).image) - expected).max() <= 3
    assert np.abs(np.asarray(small(data, 64)[0]) - expected).max() <= 3


def test_what_is_see_through_keeps_its_colours_by_the_profile() -> None:
    clear = MUTED.convert("RGBA")
    clear.putalpha(Image.new("L", MUTED.size, 255))
    clear.putpixel((0, 0), (10, 20, 30, 0))
    seen = np.asarray(decode(encoded(clear, "PNG", icc_profile=profile("AdobeRGB"))).image)
    expected = as_srgb(np.asarray(MUTED, np.float64), "AdobeRGB")
    assert np.abs(seen - expected)[1:].max() <= 3
    assert seen[0, 0].tolist() == [255, 255, 255]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("own", [SRGB, b"no profile", profile("AdobeRGB")[:200]])
def test_a_profile_that_says_nothing_changes_nothing(own: bytes) -> None:
    assert distance(decode(encoded(MUTED, "PNG", icc_profile=own)).image, MUTED) == 0
    grey = MUTED.convert("L")
    assert distance(decode(encoded(grey, "PNG", icc_profile=own)).image, grey.convert("RGB")) == 0


def test_an_image_that_is_given_stays_as_it_is() -> None:
    given = MUTED.copy()
    given.info["icc_profile"] = profile("AdobeRGB")
    assert distance(open_image(given).image, MUTED) > 3
    assert distance(given, MUTED) == 0
