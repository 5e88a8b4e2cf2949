from __future__ import annotations

import io
import logging
import random
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from mg_milvus.errors import ImageError, QueryError
from mg_milvus.images.decode import Decoded, crop, decode, open_image
from tests.images import (
    encoded,
    image,
    jpeg_with_broken_exif,
    make_hostile_folder,
    png_header,
    save_image,
    turned_jpeg,
)

if TYPE_CHECKING:
    from pathlib import Path

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def rows(decoded: Decoded) -> list[list[tuple[int, ...]]]:
    assert decoded.image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(decoded.image).tolist()]


def grey(*values: int) -> list[list[tuple[int, ...]]]:
    return [[(value,) * 3 for value in values]]


# What may be given


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    drawn = image(1)
    file = save_image(tmp_path / "a.png", 1)
    array = np.asarray(drawn)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sources = [
        file, str(file), file.read_bytes(), drawn, array, array / 255.0, (array / 255).astype(np.float32),
        array[:, ::-1].copy()[:, ::-1], tensor, tensor / 255, torch.nn.Parameter(tensor / 255), tensor.double() / 255,
    ]  # fmt: skip
    for source in sources:
        decoded = open_image(source)
        assert (decoded.width, decoded.height) == (64, 48)
        np.testing.assert_array_equal(np.asarray(decoded.image), array)


def test_grey_and_rgba_arrays() -> None:
    assert rows(open_image(np.array([[0, 128, 255]], np.uint8))) == grey(0, 128, 255)
    assert rows(open_image(np.array([[0.0, 0.5, 1.0]]))) == grey(0, 128, 255)
    assert rows(open_image(torch.tensor([[[0, 7, 255]]], dtype=torch.uint8))) == grey(0, 7, 255)
    assert rows(open_image(torch.tensor([[[0, 1]]], dtype=torch.bfloat16))) == grey(0, 255)
    clear_and_solid = np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], np.uint8)
    assert rows(open_image(clear_and_solid)) == [[WHITE, RED]]


@pytest.mark.parametrize(
    ("source", "got"),
    [
        (np.zeros((3, 8, 9), np.uint8), "shape (3, 8, 9), type uint8"),
        (np.zeros((8, 9, 1), np.uint8), "shape (8, 9, 1)"),
        (np.zeros((0, 9), np.uint8), "shape (0, 9)"),
        (np.full((2, 2), 300, np.int32), "type int32, values from 300 to 300"),
        (np.full((2, 2), 255.0), "values from 255.0 to 255.0"),
        (np.array([[np.nan, 0.5]]), "values from nan to nan"),
        (np.zeros((2, 2), bool), "type bool"),
        (torch.zeros(8, 9), "the Tensor given as an image has shape (8, 9), type torch.float32"),
        (torch.zeros(8, 9, 3), "shape (8, 9, 3)"),
        (torch.zeros(1, 3, 8, 9), "shape (1, 3, 8, 9)"),
        (torch.full((1, 2, 2), -0.5), "values from -0.5 to -0.5"),
    ],
)
def test_wrong_layouts_are_refused_with_the_right_ones(source: object, got: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(source)  # type: ignore[arg-type]
    assert got in str(caught.value)
    assert "expected numpy (h, w), (h, w, 3) RGB or (h, w, 4) RGBA, torch (1, h, w) or (3, h, w) RGB" in str(
        caught.value
    )


def test_other_objects_are_refused() -> None:
    with pytest.raises(ImageError, match=r"the int given as an image cannot be read: expected a path, encoded bytes"):
        open_image(7)  # type: ignore[arg-type]


def test_a_given_pil_image_is_not_changed() -> None:
    drawn = Image.open(io.BytesIO(turned_jpeg(image(1), 6)))
    assert open_image(drawn).image.size == (48, 64)
    assert drawn.size == (64, 48)
    assert drawn.getexif()[0x0112] == 6


# What is wrong with a file


def test_paths_that_are_no_image_file(tmp_path: Path) -> None:
    (tmp_path / "empty\n.jpg").write_bytes(b"")
    cases = {
        "empty\n.jpg": r"empty\\n.jpg' is empty: 0 bytes$",
        "gone.jpg": r"gone.jpg' does not exist$",
        "": r"is a folder: expected an image file$",
        "nul\0.jpg": r"nul\\x00.jpg' cannot be read: embedded null byte$",
    }
    for name, message in cases.items():
        with pytest.raises(ImageError, match=message):
            open_image(f"{tmp_path}/{name}")


def test_empty_and_foreign_bytes() -> None:
    with pytest.raises(ImageError, match=r"^is empty: 0 bytes$"):
        decode(b"")
    for data in (
        b"This is text.\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        random.Random(1).randbytes(999),
    ):
        with pytest.raises(ImageError, match=r"^is not an image that can be read: expected one of JPEG, PNG, WEBP"):
            decode(data)
    with pytest.raises(ImageError, match=r"^the bytes given as an image is not an image"):
        open_image(b"This is text.\n")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated(kind: str) -> None:
    data = encoded(image(1), kind)
    for share in (0.05, 0.5, 0.9):
        with pytest.raises(ImageError, match=r"^is truncated or damaged: [^\n]+$"):
            decode(data[: int(len(data) * share)])


def test_images_without_pixels_and_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"^the Image given as an image has no pixels \(0x5\)$"):
        open_image(Image.new("RGB", (0, 5)))

    def full(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "transpose", lambda self, method: full(self))
    with pytest.raises(ImageError, match=r"^does not fit into memory$"):
        decode(turned_jpeg(image(1), 6))


def test_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.new("RGB", (1, 1), RED), "PNG"))
    assert rows(open_image(tmp_path / "a.jpg")) == [[RED]]


def test_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(
        ImageError, match=r"^has 2500000000 pixels \(50000x50000\), more than max_pixels=200000000: raise"
    ):
        decode(png_header(50_000, 50_000))
    with pytest.raises(ImageError, match="more than max_pixels=3071: "):
        open_image(image(1), max_pixels=3071)
    assert decode(encoded(image(1), "PNG"), max_pixels=64 * 48).width == 64


def test_pillows_own_limit_neither_stops_nor_warns_nor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2500)  # warns above, raises above 5000; warnings are errors here
    for kind, size in [
        ("JPEG", (64, 48)),
        ("PNG", (90, 90)),
        ("GIF", (90, 90)),
        ("TIFF", (90, 90)),
        ("WEBP", (64, 48)),
    ]:
        assert decode(encoded(image(1, size), kind)).image.size == size
    assert Image.MAX_IMAGE_PIXELS == 2500
    with pytest.raises(ImageError, match=r"^is larger than PIL.Image.MAX_IMAGE_PIXELS allows: "):
        decode(encoded(image(1, (90, 90)), "WEBP"))


def test_no_word_of_pillow_reaches_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_with_broken_exif(image(1)))
    little_endian_tiff = struct.pack("<HHII", 277, 4, 1, 10**6)  # 10⁶ samples a pixel: Pillow logs an error
    size = struct.pack("<HHII", 256, 4, 1, 2) + struct.pack("<HHII", 257, 4, 1, 2)
    (tmp_path / "b.tif").write_bytes(b"II*\0\x08\0\0\0\x03\0" + size + little_endian_tiff + b"\0" * 4)
    lzw = bytearray(encoded(image(3, (24, 16)), "TIFF", compression="tiff_lzw"))
    lzw[177] = 1  # a code that is not in the table: libtiff writes a line of its own
    (tmp_path / "c.tif").write_bytes(lzw)
    program = (
        "import sys; from mg_milvus.errors import ImageError; from mg_milvus.images.decode import open_image\n"
        "print(open_image(sys.argv[1]).width)\n"
        "for name in sys.argv[2:]:\n"
        "    try: open_image(name)\n"
        "    except ImageError as error: print('refused')\n"
    )
    files = [tmp_path / name for name in ("a.jpg", "b.tif", "c.tif")]
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("64\nrefused\nrefused\n", "")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Image.open(tmp_path / "a.jpg").getexif()
    assert heard  # that file does make Pillow warn


def test_hostile_folder_is_read_as_it_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, readable in make_hostile_folder(tmp_path).items():
        if readable:
            with caplog.at_level(logging.WARNING):
                decoded = open_image(tmp_path / name, least=16)
            assert decoded.image.mode == "RGB", name
        else:
            with pytest.raises(ImageError):
                open_image(tmp_path / name)


# Colours


def test_cmyk_and_ycck_jpeg() -> None:
    # Cyan, magenta, yellow, key: no ink is white, full key is black, full magenta and yellow is red.
    inks = Image.new("CMYK", (32, 8))
    inks.paste((0, 0, 0, 255), (8, 0, 16, 8))
    inks.paste((0, 255, 255, 0), (16, 0, 24, 8))
    inks.paste((255, 0, 0, 0), (24, 0, 32, 8))
    data = encoded(inks, "JPEG", quality=100)
    assert b"Adobe" in data  # so its inks are stored inverted, as Photoshop does it
    row = rows(decode(data))[4]
    for x, expected in [(4, WHITE), (12, BLACK), (20, RED), (28, (0, 255, 255))]:
        assert np.abs(np.subtract(row[x], expected)).max() <= 2
    # The same bytes declared as YCCK: libjpeg turns YCbCr into CMY, and Adobe's inversion then gives
    # stored (255, 255, 255, 255) -> Y=255, Cb=Cr=255, K=255 inverted to 0.
    ycck = data.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2")
    assert ycck != data
    # R = 255 + 1.402 * 127 -> 255; G = 255 - 0.344 * 127 - 0.714 * 127 = 120.6; B = 255.
    # libjpeg's CMY is 255 - RGB = (0, 134, 0), read as inverted inks: (255, 121, 255); no key: the colour is 255 - ink.
    assert np.abs(np.subtract(rows(decode(ycck))[4][4], (0, 134, 0))).max() <= 2


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    # v / 257: 0, 255/257 = 0.99, 128.0, 32896 / 257 = 128, 255
    values = np.array([[0, 255, 32_768, 32_896, 65_535]], np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        assert rows(decode(encoded(Image.fromarray(values), kind))) == grey(0, 1, 128, 128, 255), kind


def test_sixteen_bit_big_endian_tiff_and_transparent_key() -> None:
    image = Image.fromarray(np.array([[0, 30_000, 65_535]], np.uint16))
    big_endian = Image.frombytes("I;16B", (3, 1), struct.pack(">3H", 0, 30_000, 65_535))
    for source in (encoded(big_endian, "TIFF"), big_endian):
        assert rows(open_image(source)) == grey(0, 117, 255)  # 30000 / 257 = 116.7
    assert rows(decode(encoded(image, "PNG", transparency=30_000))) == grey(0, 255, 255)


def test_wide_and_real_grey_is_stretched() -> None:
    assert rows(open_image(Image.fromarray(np.array([[-100, 0, 155]], np.int32)))) == grey(0, 100, 255)
    assert rows(open_image(Image.fromarray(np.array([[0, 10**6]], np.int32)))) == grey(0, 255)
    assert rows(open_image(Image.fromarray(np.array([[0, 0.2, 1]], np.float32)))) == grey(0, 51, 255)
    data = encoded(Image.fromarray(np.array([[0, np.nan, 500, 1000]], np.float32)), "TIFF")
    assert rows(decode(data)) == grey(0, 0, 128, 255)  # 127.5, to the even neighbour


def test_one_bit() -> None:
    image = Image.new("1", (3, 1))
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "PPM", "TIFF", "GIF", "BMP"):
        assert rows(decode(encoded(image, kind))) == grey(0, 255, 0), kind


def test_transparency_is_put_on_white() -> None:
    # 128/255 of black over white: 255 * (1 - 128/255) = 127
    rgba = Image.new("RGBA", (3, 1), (*RED, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 128))
    rgba.putpixel((2, 0), (0, 0, 0, 0))
    for kind in ("PNG", "TIFF"):
        assert rows(decode(encoded(rgba, kind))) == [[RED, (127, 127, 127), WHITE]], kind
    assert rows(decode(encoded(rgba, "WEBP", lossless=True, exact=True))) == [[RED, (127, 127, 127), WHITE]]
    la = Image.new("LA", (2, 1), (0, 0))
    la.putpixel((1, 0), (7, 255))
    assert rows(decode(encoded(la, "PNG"))) == grey(255, 7)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLACK])
    image.putdata([0, 1, 2])
    assert rows(decode(encoded(image, "PNG"))) == [[RED, GREEN, BLACK]]
    assert rows(decode(encoded(image, "PNG", transparency=1))) == [[RED, WHITE, BLACK]]
    assert rows(decode(encoded(image, "GIF", transparency=2))) == [[RED, GREEN, WHITE]]
    assert rows(decode(encoded(image, "PNG", transparency=bytes([255, 0, 128])))) == [[RED, WHITE, (127, 127, 127)]]


def test_transparent_colour_of_rgb_and_grey() -> None:
    rgb = Image.new("RGB", (2, 1), RED)
    rgb.putpixel((1, 0), BLUE)
    assert rows(decode(encoded(rgb, "PNG", transparency=BLUE))) == [[RED, WHITE]]
    assert rows(decode(encoded(Image.new("L", (1, 1), 9), "PNG", transparency=9))) == [[WHITE]]


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_first_frame_of_an_animation(kind: str, options: dict[str, bool]) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert rows(decode(data)) == [[RED] * 4] * 4


def test_multi_image_jpeg() -> None:
    data = encoded(image(1, (400, 300)), "MPO", save_all=True, append_images=[image(2)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    decoded = decode(data, least=100)
    assert (decoded.width, decoded.height, decoded.image.size) == (400, 300, (200, 150))


@pytest.mark.skipif(not features.check("avif"), reason="needs a Pillow with AVIF: pip install --force-reinstall Pillow")
def test_avif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(Image.new("RGB", (40, 20), RED), "AVIF", exif=exif))
    assert (decoded.width, decoded.height) == decoded.image.size == (20, 40)
    assert np.abs(np.subtract(rows(decoded)[5][5], RED)).max() <= 3


# Orientation, size, draft


CORNERS = [[RED, GREEN], [BLUE, WHITE]]
# EXIF: where the first row and the first column of the stored pixels are on the upright image.
UPRIGHT = {
    1: [[RED, GREEN], [BLUE, WHITE]],
    2: [[GREEN, RED], [WHITE, BLUE]],  # top, right
    3: [[WHITE, BLUE], [GREEN, RED]],  # bottom, right
    4: [[BLUE, WHITE], [RED, GREEN]],  # bottom, left
    5: [[RED, BLUE], [GREEN, WHITE]],  # left, top
    6: [[BLUE, RED], [WHITE, GREEN]],  # right, top
    7: [[WHITE, GREEN], [BLUE, RED]],  # right, bottom
    8: [[GREEN, WHITE], [RED, BLUE]],  # left, bottom
    9: [[RED, GREEN], [BLUE, WHITE]],  # no such orientation
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(kind: str, orientation: int) -> None:
    stored = Image.fromarray(np.kron(np.array(CORNERS, np.uint8), np.ones((16, 32, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "JPEG": {"quality": 100}}[kind]
    decoded = decode(encoded(stored, kind, exif=exif, **options))
    swapped = orientation in (5, 6, 7, 8)
    assert (decoded.width, decoded.height) == decoded.image.size == ((32, 64) if swapped else (64, 32))
    w, h = decoded.image.size
    got = [[decoded.image.getpixel((x, y)) for x in (w // 4, 3 * w // 4)] for y in (h // 4, 3 * h // 4)]
    assert np.abs(np.array(got, int) - np.array(UPRIGHT[orientation], int)).max() <= 3


def test_orientation_with_draft_keeps_the_full_size() -> None:
    decoded = decode(turned_jpeg(image(1, (800, 400)), 6), least=100)
    assert (decoded.width, decoded.height) == (400, 800)
    assert decoded.image.size == (100, 200)


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((4000, 3000), 112, (500, 375)),  # 3000 / 8 = 375
        ((800, 600), 112, (200, 150)),  # 600 / 8 would be 75
        ((448, 300), 112, (224, 150)),
        ((223, 300), 112, (223, 300)),  # 223 / 2 would be 111.5
        ((100, 80), 112, (100, 80)),
        ((1, 10_000), 112, (1, 10_000)),
    ],
)
def test_draft_keeps_the_least_side(size: tuple[int, int], least: int, expected: tuple[int, int]) -> None:
    decoded = decode(encoded(image(1, size), "JPEG"), least=least)
    assert decoded.image.size == expected
    assert (decoded.width, decoded.height) == size


def test_same_file_same_pixels_from_path_and_bytes(tmp_path: Path) -> None:
    file = save_image(tmp_path / "a.jpg", 1, (900, 700))
    first = decode(file.read_bytes(), least=112).image.tobytes()
    assert open_image(file, least=112).image.tobytes() == first
    with ThreadPoolExecutor(4) as pool:
        assert {d.image.tobytes() for d in pool.map(lambda _: open_image(file, least=112), range(12))} == {first}


def test_drafted_pixels_are_those_of_a_box_average() -> None:
    drawn = image(1, (512, 512))
    full = np.asarray(drawn.reduce(4), int)
    drafted = np.asarray(decode(encoded(drawn, "JPEG", quality=95), least=128).image, int)
    assert drafted.shape == (128, 128, 3)
    assert np.abs(drafted - full).mean() < 2


def test_slim_images_are_read_whole() -> None:
    for size in ((1, 1), (1, 10_000), (10_000, 1)):
        for kind in ("PNG", "JPEG", "WEBP"):
            decoded = decode(encoded(Image.new("RGB", size, WHITE), kind), least=112)
            assert (decoded.width, decoded.height) == decoded.image.size == size
            assert decoded.image.getextrema() == ((255, 255),) * 3


def test_decoding_releases_the_interpreter() -> None:
    data = encoded(image(1, (4000, 3000)), "JPEG")
    ticks = 0
    done = threading.Event()

    def work() -> None:
        decode(data)
        done.set()

    thread = threading.Thread(target=work)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(60)  # only what gives the interpreter up lets this thread run meanwhile
    try:
        thread.start()
        while not done.wait(0.001):
            ticks += 1
    finally:
        sys.setswitchinterval(switch)
        thread.join()
    assert ticks > 3


# Crops


def test_crop_in_pixels_of_the_full_image() -> None:
    image = Image.new("RGB", (80, 40), RED)
    image.paste(BLUE, (20, 10, 50, 30))
    decoded = decode(encoded(image, "PNG"))
    piece = crop(decoded, (20, 10, 30, 20))
    assert piece.size == (30, 20)
    assert piece.getcolors() == [(600, BLUE)]
    assert crop(decoded, (0, 0, 80, 40)).tobytes() == image.tobytes()


def test_crop_of_a_reduced_image() -> None:
    reduced = Decoded(Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)), 40, 40)  # a quarter
    pixels = np.asarray(reduced.image)
    np.testing.assert_array_equal(np.asarray(crop(reduced, (8, 4, 16, 12))), pixels[1:4, 2:6])
    np.testing.assert_array_equal(np.asarray(crop(reduced, (7, 5, 2, 1))), pixels[1:2, 1:3])  # outwards
    np.testing.assert_array_equal(np.asarray(crop(reduced, (39, 39, 1, 1))), pixels[9:, 9:])


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (0, 0, 5, -1), (-1, 0, 5, 5), (60, 0, 5, 5), (0, 40, 5, 9), (99, 99, 1, 1)]
)
def test_crop_outside_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(QueryError, match="does not lie inside the image, which is 64 pixels wide and 48 high"):
        crop(open_image(image(1)), box)


# Anything at all


SEEDS = {kind: encoded(image(3, (24, 16)), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")} | {
    "exif JPEG": turned_jpeg(image(3, (24, 16)), 8, progressive=True),
    "palette PNG": encoded(image(3, (24, 16)).quantize(8), "PNG", transparency=2),
    "LZW TIFF": encoded(image(3, (24, 16)), "TIFF", compression="tiff_lzw"),
    "animated GIF": encoded(image(3, (24, 16)), "GIF", save_all=True, append_images=[image(4, (24, 16))]),
}


@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_never_raise_anything_else(
    kind: str, data: st.DataObject, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(SEEDS[kind])
    places = st.integers(0, len(content) - 1) | st.integers(0, 64)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        content[place] = byte
    cut = data.draw(st.none() | st.tuples(places, places))
    if cut:
        del content[min(cut) : max(cut)]
    try:
        decoded = decode(bytes(content), least=8, max_pixels=100_000)
    except ImageError:
        pass
    else:
        decoded.image.load()
        assert decoded.image.mode == "RGB"
        assert decoded.width * decoded.height <= 100_000
    assert capfd.readouterr().err == ""


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"P5 ", b"II*\0"]),
)
def test_random_bytes_never_raise_anything_else(noise: bytes, magic: bytes) -> None:
    try:
        decode(magic + noise, max_pixels=100_000)
    except ImageError:
        return


def photographed(kind: str, tags: dict[int, object]) -> bytes:
    """An image whose EXIF part says when it was taken."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x8769] = tags
    read = Image.Exif()
    read.load(exif.tobytes())  # Pillow writes a TIFF's only as it reads them
    return encoded(Image.new("RGB", (32, 24), RED), kind, exif=read)


WRITTEN = {0x9003: "2024:05:01 18:30:07"}  # DateTimeOriginal
SECONDS = 1_714_588_207  # of 2024-05-01T18:30:07Z, by date -u -d


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_time_at_which_a_photograph_was_taken(kind: str) -> None:
    assert decode(photographed(kind, WRITTEN)).taken == SECONDS * 10**9
    assert decode(encoded(Image.new("RGB", (32, 24), RED), kind)).taken is None


@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        ({0x9003: "2024:05:01 18:30:07", 0x9291: "25"}, SECONDS * 10**9 + 250_000_000),  # hundredths
        ({0x9003: "2024:05:01 18:30:07", 0x9011: "+02:00"}, SECONDS * 10**9),  # the clock's time, whatever the zone
        ({0x9003: "2024-05-01T18:30:07"}, SECONDS * 10**9),  # as some programs write it
        ({0x9003: "1969:12:31 23:59:59", 0x9291: "5"}, -500_000_000),
        ({0x9003: "0000:00:00 00:00:00"}, None),  # a camera whose clock was never set
        ({0x9003: "    :  :     :  :  "}, None),  # unknown, as EXIF writes it
        ({0x9003: "2023:02:29 12:00:00"}, None),
        ({0x9003: "9999:12:31 23:59:59"}, None),  # no 64 bits
        ({0x9003: "2024:05:01 24:00:00"}, None),
        ({0x9003: "yesterday"}, None),
        ({0x9004: "2024:05:01 18:30:07"}, None),  # when it was scanned
    ],
)
def test_times_of_cameras(tags: dict[int, object], taken: int | None) -> None:
    assert decode(photographed("JPEG", tags)).taken == taken


def test_broken_exif_says_no_time() -> None:
    assert decode(jpeg_with_broken_exif(image(1))).taken is None
