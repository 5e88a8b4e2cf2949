"""The verdict on a pair of images from their pixels."""

from __future__ import annotations

import itertools
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from mg_milvus.duplicates.looks import Detail, KeyPoints, look, pixels_of, read_pixels
from mg_milvus.duplicates.verify import (
    Verdict,
    agreement,
    align_by_features,
    largest_difference,
    may_be_copies,
    verdict,
)
from mg_milvus.images.decode import to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable

    Edit = Callable[[Image.Image], Image.Image]


def photo(seed: int) -> Image.Image:
    """A made-up photograph: discs of many sizes and shades, lit from one side."""
    dice = random.Random(seed)
    image = Image.new("RGB", (480, 320), (90, 120, 150))
    draw = ImageDraw.Draw(image)
    for _ in range(160):
        x, y, r = dice.randint(-20, 480), dice.randint(-20, 320), dice.randint(4, 40)
        draw.ellipse((x, y, x + r, y + r * dice.choice([1, 2])), tuple(dice.randint(0, 255) for _ in range(3)))
    light = Image.linear_gradient("L").rotate(90).resize(image.size)
    return Image.blend(image, Image.merge("RGB", [light] * 3), 0.25)


def letter(seed: int) -> Image.Image:
    """A page with one letterhead and other words."""
    dice = random.Random(seed)
    image = Image.new("L", (600, 800), 250)
    draw = ImageDraw.Draw(image)
    draw.text((60, 40), "Miller & Sons, 12 High Street", 20, font=ImageFont.load_default(22))
    for y in range(110, 740, 24):
        text = " ".join("".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 8))) for _ in range(9))
        draw.text((60, y), text[:55], 30, font=ImageFont.load_default(16))
    return image


def compare(folder: Path, left: Image.Image, right: Image.Image, quality: int = 90) -> Verdict:
    files = folder / "left.jpg", folder / "right.jpg"
    left.save(files[0], quality=92)
    right.save(files[1], quality=quality)
    one, two = map(read_pixels, files)
    return verdict((look(*one), look(*two)), lambda: (Detail(lambda: one[1]), Detail(lambda: two[1])))


def captioned(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text(
        (60, 260), "Summer 2024", "white", font=ImageFont.load_default(34), stroke_width=2, stroke_fill="black"
    )
    return image


def moved(image: Image.Image) -> Image.Image:
    """The next frame of a burst: the subject, a piece of another photograph, is somewhere else."""
    frame = image.copy()
    frame.paste(photo(99).crop((100, 100, 200, 240)), (310, 90))
    return frame


def test_a_copied_file_is_identical(tmp_path: Path) -> None:
    assert compare(tmp_path, photo(1), photo(1), quality=92) is Verdict.IDENTICAL


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: image,
        lambda image: image.resize((300, 200), Image.Resampling.LANCZOS),
        lambda image: ImageEnhance.Brightness(image).enhance(1.2),
        lambda image: image.convert("L"),
    ],
    ids=["recompressed", "resized", "brighter", "grey"],
)
def test_the_same_image(tmp_path: Path, edit: Edit) -> None:
    assert compare(tmp_path, photo(1), edit(photo(1)), quality=70) is Verdict.SAME


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: image.crop((14, 10, 466, 310)),
        ImageOps.mirror,
        lambda image: image.rotate(90, expand=True),
        captioned,
        lambda image: ImageOps.mirror(image.crop((14, 10, 466, 310))),
    ],
    ids=["cropped", "mirrored", "turned", "captioned", "cropped and mirrored"],
)
def test_an_edited_image(tmp_path: Path, edit: Edit) -> None:
    assert compare(tmp_path, photo(1), edit(photo(1))) is Verdict.EDITED


def test_another_image_is_different(tmp_path: Path) -> None:
    assert compare(tmp_path, photo(1), photo(2)) is Verdict.DIFFERENT


def test_a_first_look_tells_different_images_without_their_details() -> None:
    looks = [look(bytes([seed]), pixels_of(photo(seed))) for seed in range(6)]
    for left, right in itertools.combinations(looks, 2):
        assert verdict((left, right), lambda: pytest.fail("their details were asked for")) is Verdict.DIFFERENT


@pytest.mark.parametrize("original", [photo(1), letter(1)], ids=["photo", "letter"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turn", [0, 15, 90])
def test_a_first_look_passes_small_crops(original: Image.Image, mirrored: bool, turn: int) -> None:
    w, h = original.size
    crop = original.rotate(turn, Image.Resampling.BICUBIC, expand=turn == 90)
    crop = crop.crop((crop.width // 5, crop.height // 5, crop.width * 4 // 5, crop.height * 4 // 5))
    crop = ImageOps.mirror(crop) if mirrored else crop
    small = crop.resize((crop.width * 3 // 4, crop.height * 3 // 4), Image.Resampling.LANCZOS)
    assert may_be_copies(look(b"a", pixels_of(original)), look(b"b", pixels_of(small)))
    assert max(small.size) < 0.7 * max(w, h)


def test_matches_by_hand() -> None:
    # The first descriptor is 9 and 1 from the right ones and matches; the second is 4.1 and 5 from them, too alike.
    def features(*values: tuple[int, int]) -> KeyPoints:
        descriptors = np.zeros((len(values), 128), np.uint8)
        descriptors[:, :2] = values
        return KeyPoints(np.array([[10 * place, 5] for place in range(len(values))], np.float32), descriptors)

    left, right = features((0, 1), (5, 2)), features((9, 1), (0, 2))
    one, two = left.matches(right)
    assert one.tolist() == [[0, 5]]
    assert two.tolist() == [[10, 5]]
    assert len(left.matches(features((0, 1)))[0]) == 0  # there is no second one to be farther


def test_letters_with_one_head_are_no_copies_but_a_copy_of_a_letter_is(tmp_path: Path) -> None:
    assert compare(tmp_path, letter(1), letter(2)) is Verdict.SIMILAR
    assert compare(tmp_path, letter(1), letter(1), quality=70) is Verdict.SAME


def test_one_other_word_makes_another_letter(tmp_path: Path) -> None:
    changed = letter(1)
    draw = ImageDraw.Draw(changed)
    draw.rectangle((60, 350, 160, 374), 250)
    draw.text((60, 350), "seventeen", 30, font=ImageFont.load_default(16))
    assert compare(tmp_path, letter(1), changed) is Verdict.SIMILAR


def drawing(seed: int) -> Image.Image:
    """Lines on white, 200 pixels a side."""
    dice, image = random.Random(seed), Image.new("L", (200, 200), 255)
    points = [(dice.randint(10, 190), dice.randint(10, 190)) for _ in range(9)]
    ImageDraw.Draw(image).line(points, 0, 3)
    return image


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda image: image, Verdict.SAME),
        (lambda image: image.resize((400, 400), Image.Resampling.BICUBIC), Verdict.SAME),
        (ImageOps.mirror, Verdict.EDITED),
        (lambda _: drawing(2), Verdict.DIFFERENT),
    ],
    ids=["recompressed", "enlarged", "mirrored", "another"],
)
def test_small_drawings(tmp_path: Path, edit: Edit, expected: Verdict) -> None:
    assert compare(tmp_path, drawing(1), edit(drawing(1)), quality=75) is expected


@pytest.mark.parametrize("side", [280, 200, 100])
def test_letters_too_small_to_be_read_are_no_copies(tmp_path: Path, side: int) -> None:
    small = [letter(seed).resize((side * 3 // 4, side), Image.Resampling.LANCZOS) for seed in (1, 2)]
    assert compare(tmp_path, small[0], small[1]) is Verdict.SIMILAR
    copy = Verdict.SAME if side >= 160 else Verdict.SIMILAR
    assert compare(tmp_path, small[0], small[0], quality=75) is copy


def test_the_difference_of_small_images_by_hand() -> None:
    # A stroke of 7 pixels' width in a flat window: where one image has it and the other has not, the mean square of the
    # difference is its variance plus the square of its mean, which is more than the contrast of either.
    left, right = (np.full((60, 60), 200, np.uint8) for _ in range(2))
    left[:, 20:27] = right[:, 20:27] = 20
    assert largest_difference(left, right, np.eye(3)) == 0
    right[30:37, 40:47] = 20
    assert largest_difference(left, right, np.eye(3)) > 1


def test_frames_of_a_burst_are_similar(tmp_path: Path) -> None:
    first = photo(1)
    first.paste(photo(99).crop((100, 100, 200, 240)), (60, 90))
    assert compare(tmp_path, first, moved(photo(1))) is Verdict.SIMILAR


def test_blank_images_stand_apart(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 4, (200, 300)).astype(np.uint8)
    cap, black = Image.fromarray(noise), Image.new("L", (300, 200))
    assert compare(tmp_path, cap, black) is Verdict.SIMILAR
    assert compare(tmp_path, cap, photo(1)) is Verdict.DIFFERENT


def test_mirrored_descriptors_match_those_of_the_mirrored_image(tmp_path: Path) -> None:
    files = tmp_path / "left.png", tmp_path / "right.png"
    photo(1).save(files[0])
    ImageOps.mirror(photo(1)).save(files[1])
    left, right = (Detail(partial(np.asarray, Image.open(file).convert("L"))) for file in files)
    found = align_by_features(left, right)
    assert found is not None
    assert found.turned
    middle = found.matrix @ [100, 50, 1]  # 480 pixels wide: column 100 becomes column 379
    assert np.allclose(middle[:2] / middle[2], [379, 50], atol=1)
    assert np.array_equal(left.features.mirrored().mirrored().descriptors, left.features.descriptors)


def test_a_perspective_that_shrinks_either_way_is_compared_once() -> None:
    # By its corner's scale the right image is the coarser one, and the left one by that of the inverse.
    matrix = np.array([[0.95, 0, 200], [0, 0.95, 200], [0.0005, 0.0005, 1]])
    for each in (matrix, np.linalg.inv(matrix)):
        assert np.linalg.det(each[:2, :2] / each[2, 2]) < 1
    image = np.asarray(photo(1).convert("L"))
    found = agreement(image, image, matrix)
    assert 0 < found.left < 1
    assert found.differing > 0


def test_white_drawings_on_transparency_are_seen() -> None:
    image = Image.new("RGBA", (40, 40))
    ImageDraw.Draw(image).line((5, 20, 35, 20), (255, 255, 255, 255), 3)
    shown = to_rgb(image)
    assert shown.getpixel((20, 20)) == (255, 255, 255)
    assert shown.getpixel((20, 5)) == (0, 0, 0)
    dark = Image.new("RGBA", (40, 40))
    ImageDraw.Draw(dark).line((5, 20, 35, 20), (10, 10, 10, 255), 3)
    assert to_rgb(dark).getpixel((20, 5)) == (255, 255, 255)
