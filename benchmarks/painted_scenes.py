"""Paint made-up scenes of five kinds, for pages and screenshots that show no picture of anybody else.

    python benchmarks/painted_scenes.py OUT [--each 24]

Writes OUT/KIND/NN.jpg, and to OUT.queries/ three pictures to ask with: of the same kinds, painted with other numbers.
"""

from __future__ import annotations

import argparse
import colorsys
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE = (480, 320)
Colour = tuple[int, int, int]


def hue(value: float, saturation: float, brightness: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(value % 1, min(1, max(0, saturation)), min(1, max(0, brightness)))
    return int(r * 255), int(g * 255), int(b * 255)


def sky(dice: random.Random, top: Colour, bottom: Colour) -> Image.Image:
    column = Image.new("RGB", (1, 2))
    column.putdata([top, bottom])
    picture = column.resize(SIZE, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture, "RGBA")
    for _ in range(dice.randint(0, 5)):
        x, y = dice.uniform(0, SIZE[0]), dice.uniform(0, SIZE[1] * 0.35)
        for _ in range(12):
            w, h = dice.uniform(20, 60), dice.uniform(6, 16)
            dx, dy = dice.gauss(0, 30), dice.gauss(0, 5)
            draw.ellipse((x + dx - w, y + dy - h, x + dx + w, y + dy + h), fill=(255, 255, 255, 26))
    return picture.filter(ImageFilter.GaussianBlur(3))


def ridge(dice: random.Random, base: float, height: float, rough: float) -> list[tuple[float, float]]:
    waves = [(dice.uniform(1, 9), dice.uniform(0, 6.3), dice.uniform(0.3, 1)) for _ in range(6)]
    points = []
    for x in range(0, SIZE[0] + 4, 4):
        y = sum(a * math.sin(f * x / SIZE[0] * 6.3 + p) / (1 + f * (1 - rough)) for f, p, a in waves)
        points.append((float(x), base - height * (y * 0.5 + 0.5)))
    return points


def mountains(dice: random.Random) -> Image.Image:
    tone = dice.choice([0.58, 0.62, 0.06, 0.85])
    picture = sky(dice, hue(tone, 0.55, 0.75), hue(tone - 0.45, 0.25, 0.98))
    draw = ImageDraw.Draw(picture)
    for layer in range(4):
        base = SIZE[1] * (0.5 + 0.15 * layer)
        outline = ridge(dice, base, 95 - 15 * layer, 0.55)
        draw.polygon(
            [*outline, (SIZE[0], SIZE[1]), (0, SIZE[1])], fill=hue(tone, 0.25 + 0.12 * layer, 0.72 - 0.16 * layer)
        )
    return picture


def sea(dice: random.Random) -> Image.Image:
    warm = dice.uniform(0.02, 0.11)
    picture = sky(dice, hue(0.6, dice.uniform(0.3, 0.6), 0.8), hue(warm, 0.5, 1))
    draw = ImageDraw.Draw(picture, "RGBA")
    horizon = SIZE[1] * dice.uniform(0.5, 0.65)
    x, radius = dice.uniform(90, 390), dice.uniform(22, 38)
    draw.ellipse((x - radius, horizon - radius * 1.4, x + radius, horizon + radius * 0.6), fill=hue(warm, 0.35, 1))
    draw.rectangle((0, horizon, *SIZE), fill=hue(dice.uniform(0.5, 0.6), 0.65, 0.55))
    for _ in range(260):
        y = dice.uniform(horizon, SIZE[1])
        near = (y - horizon) / (SIZE[1] - horizon)
        at = dice.gauss(x, 40 + 160 * near) if dice.random() < 0.6 else dice.uniform(0, SIZE[0])
        length = 5 + 30 * near
        draw.line(
            (at - length, y, at + length, y), fill=(255, 235, 200, dice.randint(30, 110)), width=1 + int(2 * near)
        )
    return picture


def city(dice: random.Random) -> Image.Image:
    night = dice.uniform(0.6, 0.75)
    picture = sky(dice, hue(night, 0.7, 0.2), hue(night + dice.uniform(0.1, 0.35), 0.5, 0.6))
    draw = ImageDraw.Draw(picture)
    for layer, shade in ((0, 0.3), (1, 0.16)):
        x = -10.0
        while x < SIZE[0]:
            width, height = dice.uniform(28, 64), dice.uniform(70, 220 - 60 * layer)
            draw.rectangle((x, SIZE[1] - height, x + width, SIZE[1]), fill=hue(night, 0.5, shade))
            for wy in range(int(SIZE[1] - height) + 8, SIZE[1], 12):
                for wx in range(int(x) + 5, int(x + width) - 6, 9):
                    if dice.random() < 0.35:
                        draw.rectangle((wx, wy, wx + 4, wy + 5), fill=hue(0.12, dice.uniform(0.2, 0.6), 0.95))
            x += width + dice.uniform(-4, 8)
    return picture


def flowers(dice: random.Random) -> Image.Image:
    picture = Image.new("RGB", SIZE, hue(0.3, 0.6, 0.35))
    draw = ImageDraw.Draw(picture)
    for _ in range(700):
        x, y = dice.uniform(0, SIZE[0]), dice.uniform(0, SIZE[1])
        draw.line(
            (x, y, x + dice.gauss(0, 6), y - dice.uniform(8, 26)),
            fill=hue(dice.uniform(0.24, 0.36), 0.7, dice.uniform(0.25, 0.6)),
            width=2,
        )
    tone = dice.choice([0.95, 0.13, 0.78, 0.02])
    for _ in range(dice.randint(14, 26)):
        x, y, size = dice.uniform(0, SIZE[0]), dice.uniform(20, SIZE[1]), dice.uniform(12, 26)
        petals, turn = dice.randint(5, 8), dice.uniform(0, 6)
        for petal in range(petals):
            angle = turn + petal * 2 * math.pi / petals
            px, py = x + math.cos(angle) * size * 0.7, y + math.sin(angle) * size * 0.7
            draw.ellipse(
                (px - size * 0.5, py - size * 0.5, px + size * 0.5, py + size * 0.5),
                fill=hue(tone + dice.gauss(0, 0.01), 0.65, 0.95),
            )
        draw.ellipse((x - size * 0.4, y - size * 0.4, x + size * 0.4, y + size * 0.4), fill=hue(0.12, 0.8, 0.9))
    return picture


def balloons(dice: random.Random) -> Image.Image:
    picture = sky(dice, hue(0.57, 0.6, 0.85), hue(0.55, 0.2, 1))
    draw = ImageDraw.Draw(picture)
    for size in sorted(dice.uniform(16, 46) for _ in range(dice.randint(4, 9))):
        x, y, tone = dice.uniform(30, 450), dice.uniform(40, 230), dice.random()
        for stripe in range(6):
            inset = size * stripe / 6
            draw.ellipse(
                (x - size + inset, y - size * 1.15, x + size - inset, y + size * 1.15),
                fill=hue(tone if stripe % 2 else tone + 0.12, 0.75, 0.95),
            )
        draw.polygon(
            [(x - size * 0.3, y + size * 1.1), (x + size * 0.3, y + size * 1.1), (x, y + size * 1.5)],
            fill=hue(tone, 0.6, 0.6),
        )
        draw.rectangle((x - size * 0.16, y + size * 1.5, x + size * 0.16, y + size * 1.75), fill=(110, 75, 45))
    return picture


KINDS = {f.__name__: f for f in (mountains, sea, city, flowers, balloons)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=24)
    options = parser.parse_args()
    for kind, paint in KINDS.items():
        (options.out / kind).mkdir(parents=True, exist_ok=True)
        for number in range(options.each):
            paint(random.Random(f"{kind} {number}")).save(options.out / kind / f"{number:02}.jpg", quality=90)
    queries = options.out.with_name(options.out.name + ".queries")
    queries.mkdir(exist_ok=True)
    for kind in ("sea", "city", "balloons"):
        KINDS[kind](random.Random(f"{kind} asked")).save(queries / f"{kind}.jpg", quality=90)


if __name__ == "__main__":
    main()
