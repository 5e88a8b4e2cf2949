"""Edits of images, checked on images small enough to work them out by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mg_milvus.errors import ImageError, QueryError
from mg_milvus.images.augment import AUGMENTATIONS, STRENGTHS, Augmentation
from tests.conftest import kind_of_image

EVERY = [(name, strength) for name in AUGMENTATIONS for strength in STRENGTHS]
KEPT_SIZE = [name for name in AUGMENTATIONS if name not in {"crop", "all"}]


def image(size: tuple[int, int] = (90, 60)) -> Image.Image:
    return kind_of_image("disc", 1, size)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (40, 20)) -> Image.Image:
    return Image.new("RGB", size, colour)


def edited(name: str, strength: str, image: Image.Image) -> np.ndarray:
    return pixels(AUGMENTATIONS[name].apply(image, strength))


def test_the_edits_and_their_order() -> None:
    assert list(AUGMENTATIONS) == ["crop", "flip", "rotation", "colour", "brightness", "blur", "text", "jpeg", "all"]
    assert STRENGTHS == ("mild", "medium", "strong")
    assert all(tuple(edit.versions) == STRENGTHS and edit.description for edit in AUGMENTATIONS.values())


@pytest.mark.parametrize(("name", "strength"), EVERY)
def test_an_edit_changes_the_image_always_alike_and_leaves_the_original(name: str, strength: str) -> None:
    original = image()
    before = pixels(original)
    once, again = (AUGMENTATIONS[name].apply(original, strength) for _ in range(2))
    assert once.mode == "RGB"
    assert np.array_equal(pixels(once), pixels(again))
    assert np.array_equal(pixels(original), before)
    assert once.size != original.size or not np.array_equal(pixels(once), before)


@pytest.mark.parametrize("name", KEPT_SIZE)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", [(90, 60), (31, 57), (200, 3), (1, 1)])
def test_size_is_kept(name: str, strength: str, size: tuple[int, int]) -> None:
    assert AUGMENTATIONS[name].apply(image(size), strength).size == size


@pytest.mark.parametrize(("strength", "area"), [("mild", 0.9), ("medium", 0.7), ("strong", 0.5)])
@pytest.mark.parametrize("name", ["crop", "all"])
def test_a_crop_keeps_its_share_of_the_area_and_the_shape(name: str, strength: str, area: float) -> None:
    cut = AUGMENTATIONS[name].apply(image((900, 600)), strength)
    assert cut.width * cut.height / (900 * 600) == pytest.approx(area, rel=2e-3)
    assert cut.width / cut.height == pytest.approx(1.5, rel=2e-3)


def test_a_crop_is_a_window_a_little_left_of_and_below_the_middle() -> None:
    """Half of 100 x 100: sides of 70.7, so 71; of the 29 to spare 40 % are left of the window and 60 % above it."""
    y, x = np.mgrid[:100, :100]
    where = Image.fromarray(np.stack([x, y, x * 0], axis=2).astype(np.uint8))
    cut = edited("crop", "strong", where)
    assert cut.shape == (71, 71, 3)
    assert cut[0, 0].tolist() == [11, 17, 0]
    assert cut[-1, -1].tolist() == [81, 87, 0]


def test_a_crop_of_one_pixel_is_that_pixel() -> None:
    assert edited("crop", "strong", plain((7, 8, 9), (1, 1))).tolist() == [[[7, 8, 9]]]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_flip_mirrors_left_to_right_and_twice_is_nothing(strength: str) -> None:
    original = image()
    assert np.array_equal(edited("flip", strength, original), pixels(original)[:, ::-1])
    twice = AUGMENTATIONS["flip"].apply(AUGMENTATIONS["flip"].apply(original, strength), strength)
    assert np.array_equal(pixels(twice), pixels(original))


@pytest.mark.parametrize(("strength", "degrees"), [("mild", 5), ("medium", 10), ("strong", 15)])
def test_rotation_moves_a_spot_counter_clockwise_and_blackens_the_corners(strength: str, degrees: float) -> None:
    """A spot 60 pixels right of the middle of 201 x 201 ends 60 cos right of it and 60 sin above it."""
    grey = np.full((201, 201, 3), 100, dtype=np.uint8)
    grey[99:102, 159:162] = 255
    turned = edited("rotation", strength, Image.fromarray(grey))[..., 0]
    rows, columns = np.nonzero(turned > 180)
    assert columns.mean() == pytest.approx(100 + 60 * np.cos(np.radians(degrees)), abs=0.6)
    assert rows.mean() == pytest.approx(100 - 60 * np.sin(np.radians(degrees)), abs=0.6)
    assert [turned[0, 0], turned[0, -1], turned[-1, 0], turned[-1, -1]] == [0, 0, 0, 0]
    assert turned[100, 100] == 100


def test_mild_colour_pulls_the_samples_towards_grey() -> None:
    """Luma of (200, 100, 50) is 59.8 + 58.7 + 5.7 = 124; 0.6 of the way from it: 124 + 0.6 (76, -24, -74)."""
    colour = edited("colour", "mild", plain((200, 100, 50)))[0, 0]
    assert colour == pytest.approx([169.6, 109.6, 79.6], abs=1)


def test_medium_colour_turns_red_to_orange_and_leaves_grey() -> None:
    """21 / 255 of the circle are 29.6 degrees: half of 60, where red has become yellow."""
    assert edited("colour", "medium", plain((200, 0, 0)))[0, 0] == pytest.approx([200, 98.4, 0], abs=3)
    assert edited("colour", "medium", plain((90, 90, 90)))[0, 0].tolist() == [90, 90, 90]


def test_hues_turn_past_the_end_of_the_circle() -> None:
    """Hue 340 degrees, (200, 0, 67), goes on to 9.6 degrees: red with 9.6 / 60 of green."""
    assert edited("colour", "medium", plain((200, 0, 67)))[0, 0] == pytest.approx([200, 32, 0], abs=4)


def test_strong_colour_is_the_luma_in_every_channel() -> None:
    original = image()
    grey = edited("colour", "strong", original)
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert grey[..., 0] == pytest.approx(pixels(original) @ [0.299, 0.587, 0.114], abs=1)


@pytest.mark.parametrize(
    ("strength", "expected"), [("mild", [120, 240, 12]), ("medium", [150, 255, 15]), ("strong", [50, 100, 5])]
)
def test_brightness_multiplies_and_cuts_off(strength: str, expected: list[int]) -> None:
    assert edited("brightness", strength, plain((100, 200, 10)))[5, 5].tolist() == expected


@pytest.mark.parametrize(("strength", "radius"), [("mild", 1.0), ("medium", 1.5), ("strong", 2.0)])
def test_blur_spreads_an_edge_as_a_gaussian_of_that_radius(strength: str, radius: float) -> None:
    """A step from 0 to 240 becomes the normal distribution: its differences have the radius as standard deviation."""
    step = np.zeros((21, 41, 3), dtype=np.uint8)
    step[:, 21:] = 240
    rise = np.diff(edited("blur", strength, Image.fromarray(step))[10, :, 0])
    places = np.arange(40)
    assert rise.sum() == 240
    assert (rise * places).sum() / 240 == pytest.approx(20, abs=0.05)
    assert np.sqrt((rise * (places - 20) ** 2).sum() / 240) == pytest.approx(radius, rel=0.1)


def test_blur_leaves_a_plain_image() -> None:
    assert np.array_equal(edited("blur", "strong", plain((10, 20, 30))), pixels(plain((10, 20, 30))))


@pytest.mark.parametrize(("strength", "quality"), [("mild", 60), ("medium", 30), ("strong", 10)])
def test_jpeg_is_a_save_at_that_quality(strength: str, quality: int) -> None:
    original = image()
    buffer = io.BytesIO()
    original.save(buffer, "JPEG", quality=quality)
    assert np.array_equal(edited("jpeg", strength, original), pixels(Image.open(buffer)))


def test_an_image_too_long_for_a_jpeg_is_an_error_that_says_so() -> None:
    with pytest.raises(ImageError, match="is 65501x1 pixels, too long for a JPEG"):
        AUGMENTATIONS["jpeg"].apply(plain((0, 0, 0), (65501, 1)), "mild")


@pytest.mark.parametrize(("strength", "width"), [("mild", 0.6), ("medium", 0.6), ("strong", 0.55)])
def test_text_is_white_with_a_black_rim_in_the_lower_half_on_its_share_of_the_width(
    strength: str, width: float
) -> None:
    image = edited("text", strength, plain((100, 110, 120), (600, 400)))
    white = (image == 255).all(axis=2)
    black = (image == 0).all(axis=2)
    rows, columns = np.nonzero(white)
    assert rows.min() > 200
    assert (columns.max() - columns.min()) / 600 == pytest.approx(width, abs=0.04)
    assert (columns.max() + columns.min()) / 2 == pytest.approx(300, abs=12)
    assert black[200:].any()
    assert not black[:200].any()


@pytest.mark.parametrize(("strength", "share"), [("mild", 0), ("medium", 0.04), ("strong", 0.08)])
def test_the_box_covers_its_share_at_the_upper_right(strength: str, share: float) -> None:
    upper = edited("text", strength, plain((100, 110, 120), (600, 400)))[:200]
    rows, columns = np.nonzero((upper != [100, 110, 120]).any(axis=2))
    assert len(rows) / (600 * 400) == pytest.approx(share, rel=0.01)
    if share:
        assert (rows.min(), columns.max()) == (16, 575)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_strong_text_and_box_cover_about_fifteen_percent() -> None:
    for size in ((600, 400), (400, 600), (500, 500)):
        changed = (edited("text", "strong", plain((100, 110, 120), size)) != [100, 110, 120]).any(axis=2)
        assert 0.12 < changed.mean() < 0.2


@pytest.mark.parametrize("strength", STRENGTHS)
def test_all_is_every_edit_in_turn(strength: str) -> None:
    original = expected = image()
    for name in ("crop", "flip", "rotation", "colour", "brightness", "blur", "text", "jpeg"):
        expected = AUGMENTATIONS[name].apply(expected, strength)
    assert np.array_equal(edited("all", strength, original), pixels(expected))


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"flip", "brightness", "colour"}))
def test_stronger_means_further_from_the_original(name: str) -> None:
    original = image((240, 160))
    differences = [
        np.abs(pixels(AUGMENTATIONS[name].apply(original, strength).resize(original.size)) - pixels(original)).mean()
        for strength in STRENGTHS
    ]
    assert differences == sorted(differences)
    assert differences[0] < differences[2]


def test_an_unknown_strength_is_refused() -> None:
    with pytest.raises(QueryError, match="strength 'brutal' is unknown: expected one of mild, medium, strong"):
        AUGMENTATIONS["crop"].apply(image(), "brutal")


def test_an_edit_of_ones_own() -> None:
    turned = Augmentation("upside down", {"mild": lambda drawn: drawn.transpose(Image.Transpose.ROTATE_180)})
    assert np.array_equal(pixels(turned.apply(image(), "mild")), pixels(image())[::-1, ::-1])
