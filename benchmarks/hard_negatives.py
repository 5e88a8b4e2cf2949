"""Images that share most of their pixels and are no copies of each other: what near-duplicates are mistaken for.

    python benchmarks/hard_negatives.py OUT [--each 43] [--photos FOLDER]

Writes OUT/KIND/NN.png or .jpg: pages of text, chat screenshots, codes of black and white squares, filled forms, frames
of a burst, line drawings on transparency, portraits before one background, blank frames. The same arguments give the
same images.
"""

from __future__ import annotations

import argparse
import random
import string
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

if TYPE_CHECKING:
    from collections.abc import Callable

    Painter = Callable[[random.Random, Image.Image], Image.Image]


def words(dice: random.Random, count: int) -> str:
    return " ".join("".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 9))) for _ in range(count))


def page(dice: random.Random, _: Image.Image) -> Image.Image:
    """A letter: one letterhead, other text."""
    image = Image.new("L", (850, 1100), 252)
    draw = ImageDraw.Draw(image)
    draw.text((80, 60), "Miller & Sons, 12 High Street", 20, font=ImageFont.load_default(26))
    draw.line((80, 100, 770, 100), 60, 2)
    for y in range(140, 1000, 22):
        draw.text((80, y), words(dice, 14)[:82], 30, font=ImageFont.load_default(15))
    return image


def screenshot(dice: random.Random, _: Image.Image) -> Image.Image:
    """A chat: one header, other messages."""
    image = Image.new("RGB", (540, 960), (236, 229, 221))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 540, 80), (7, 94, 84))
    draw.text((90, 25), "Family group", "white", font=ImageFont.load_default(26))
    draw.ellipse((20, 15, 70, 65), (200, 200, 200))
    y = 100
    while y < 860:
        lines, mine = dice.randint(1, 4), dice.random() < 0.5
        x = 140 if mine else 20
        draw.rounded_rectangle((x, y, x + 380, y + 24 * lines + 16), 10, (220, 248, 198) if mine else "white")
        for line in range(lines):
            draw.text((x + 12, y + 8 + 24 * line), words(dice, 6)[:36], "black", font=ImageFont.load_default(17))
        y += 24 * lines + 34
    return image


def code(dice: random.Random, _: Image.Image) -> Image.Image:
    """A square code: the same three finders, other modules."""
    side = 33
    modules = np.array([[dice.random() < 0.5 for _ in range(side)] for _ in range(side)])
    finder = np.pad(np.pad(np.pad(np.ones((3, 3), bool), 1), 1, constant_values=True), 1)
    for rows in (slice(0, 9), slice(side - 9, side)):
        for columns in (slice(0, 9), slice(side - 9, side)):
            if rows.start == 0 or columns.start == 0:
                modules[rows, columns] = finder
    picture = Image.fromarray(np.where(np.pad(modules, 3), 0, 255).astype(np.uint8))
    return picture.resize((468, 468), Image.Resampling.NEAREST)


def form(dice: random.Random, _: Image.Image) -> Image.Image:
    """A form: the same printed labels and boxes, filled in by someone else."""
    fixed, image = random.Random(5), Image.new("L", (850, 1100), 255)
    draw = ImageDraw.Draw(image)
    draw.text((80, 50), "Application for membership", 0, font=ImageFont.load_default(30))
    for y in range(120, 760, 64):
        draw.text((80, y), words(fixed, 2).capitalize(), 40, font=ImageFont.load_default(16))
        draw.rectangle((320, y - 6, 760, y + 34), outline=90, width=2)
        draw.text((332, y + 3), words(dice, 3).title()[:34], 10, font=ImageFont.load_default(18))
    for y in range(790, 1040, 20):
        draw.text((80, y), words(fixed, 16)[:96], 70, font=ImageFont.load_default(12))
    return image


def drawing(dice: random.Random, _: Image.Image) -> Image.Image:
    """White lines on transparency; without a dark background nothing is to be seen."""
    image = Image.new("RGBA", (400, 400))
    draw = ImageDraw.Draw(image)
    for _ in range(dice.randint(4, 7)):
        points = [(dice.randint(20, 380), dice.randint(20, 380)) for _ in range(dice.randint(3, 6))]
        draw.line(points, (255, 255, 255, 255), 6, joint="curve")
    return image


def burst(dice: random.Random, photo: Image.Image) -> Image.Image:
    """A frame: the camera has moved by some pixels, the subject by more, and the noise is another."""
    scene = photo.resize((600, 400)).rotate(dice.uniform(-0.6, 0.6), Image.Resampling.BICUBIC)
    body = Image.new("L", (90, 150))
    ImageDraw.Draw(body).ellipse((4, 4, 86, 146), 255)
    coat = photo.transpose(Image.Transpose.ROTATE_90).resize((90, 150)).rotate(dice.uniform(-25, 25))
    scene.paste(coat, (dice.randint(100, 400), dice.randint(60, 190)), body.filter(ImageFilter.GaussianBlur(2)))
    x, y = dice.randint(0, 12), dice.randint(0, 12)
    return noisy(scene.crop((20 + x, 20 + y, 560 + x, 360 + y)), dice, 4)


def portrait(dice: random.Random, photo: Image.Image) -> Image.Image:
    """A face before the photographer's background: another head, hair, clothes and place."""
    image = photo.resize((400, 500)).filter(ImageFilter.GaussianBlur(1))
    draw = ImageDraw.Draw(image)
    x, y, w, h = 200 + dice.randint(-25, 25), 210 + dice.randint(-20, 20), dice.randint(62, 88), dice.randint(85, 115)
    tint = dice.choice([(235, 200, 175), (198, 150, 115), (140, 95, 66), (90, 60, 44)])
    hair, coat = (tuple(dice.randint(10, 220) for _ in range(3)) for _ in range(2))
    draw.ellipse((x - w - 14, y - h - 26, x + w + 14, y + h * dice.choice([0, 0.5, 1])), hair)
    draw.polygon([(x - 160, 500), (x - 110, y + h + 30), (x + 110, y + h + 30), (x + 160, 500)], coat)
    draw.ellipse((x - w, y - h, x + w, y + h), tint)
    for side in (-1, 1):
        draw.ellipse((x + side * w * 0.42 - 9, y - 22, x + side * w * 0.42 + 9, y - 8), (30, 25, 25))
    draw.arc((x - 30, y + 22, x + 30, y + 22 + dice.randint(14, 40)), 10, 170, (120, 30, 40), 4)
    return noisy(image.filter(ImageFilter.GaussianBlur(0.8)), dice, 3)


def blank(dice: random.Random, _: Image.Image) -> Image.Image:
    """A lens cap: dark, with noise."""
    return noisy(Image.new("RGB", (600, 400), (dice.randint(0, 8),) * 3), dice, 2)


def noisy(image: Image.Image, dice: random.Random, sigma: float) -> Image.Image:
    noise = np.random.default_rng(dice.randrange(2**32)).normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image.convert("RGB")) + noise, 0, 255).astype(np.uint8))


KINDS: dict[str, Painter] = {
    "pages": page, "screenshots": screenshot, "codes": code, "forms": form, "drawings": drawing, "bursts": burst,
    "portraits": portrait, "blank": blank,
}  # fmt: skip


def scene(number: int) -> Image.Image:
    """A made-up scene with texture, where no photographs are given."""
    random_numbers = np.random.default_rng(number)
    image = Image.new("RGB", (600, 400))
    for side in (3, 12, 48):
        layer = random_numbers.integers(0, 256, (side * 2 // 3 + 1, side, 3)).astype(np.uint8)
        image = ImageChops.add(image, Image.fromarray(layer).resize((600, 400), Image.Resampling.BICUBIC), 2)
    return image


def write_hard_negatives(out: Path, each: int, photos: list[Path]) -> list[Path]:
    """Write ``each`` images of every kind; returns the files."""
    files = []
    for name, paint in KINDS.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            base = number // 4 if name == "bursts" else 0  # bursts of four frames, one background for all portraits
            photo = Image.open(photos[base * 7 % len(photos)]).convert("RGB") if photos else scene(base)
            image = paint(random.Random(f"{name} {number}"), photo)
            file = out / name / f"{number:03}.{'png' if name in {'codes', 'drawings'} else 'jpg'}"
            image.save(file, **({} if file.suffix == ".png" else {"quality": 90}))
            files.append(file)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=43)
    parser.add_argument("--photos", type=Path)
    options = parser.parse_args()
    photos = sorted(options.photos.rglob("*.jpg")) if options.photos else []
    print(len(write_hard_negatives(options.out, options.each, photos)), "images")


if __name__ == "__main__":
    main()
