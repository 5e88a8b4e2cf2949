"""Paint made-up scenes of ten kinds, for pages and screenshots that show no image of anybody else.

    python benchmarks/painted_scenes.py OUT [--each 24]

Writes OUT/KIND/NN.jpg, and to OUT.queries/ three images to ask with: of the same kinds, painted with other numbers.
The same names give the same images.
"""

from __future__ import annotations

import argparse
import colorsys
import math
import random
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = (480, 320)
Colour = tuple[int, int, int]


def hue(value: float, saturation: float, brightness: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(value % 1, min(1, max(0, saturation)), min(1, max(0, brightness)))
    return int(r * 255), int(g * 255), int(b * 255)


def gradient(top: Colour, bottom: Colour) -> Image.Image:
    column = Image.new("RGB", (1, 2))
    column.putdata([top, bottom])
    return column.resize(SIZE, Image.Resampling.BICUBIC)


def sky(dice: random.Random, top: Colour, bottom: Colour) -> Image.Image:
    image = gradient(top, bottom)
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(dice.randint(0, 5)):
        x, y = dice.uniform(0, SIZE[0]), dice.uniform(0, SIZE[1] * 0.35)
        for _ in range(12):
            w, h = dice.uniform(20, 60), dice.uniform(6, 16)
            dx, dy = dice.gauss(0, 30), dice.gauss(0, 5)
            draw.ellipse((x + dx - w, y + dy - h, x + dx + w, y + dy + h), fill=(255, 255, 255, 26))
    return image.filter(ImageFilter.GaussianBlur(3))


def ridge(dice: random.Random, base: float, height: float, rough: float) -> list[tuple[float, float]]:
    waves = [(dice.uniform(1, 9), dice.uniform(0, 6.3), dice.uniform(0.3, 1)) for _ in range(6)]
    points = []
    for x in range(0, SIZE[0] + 4, 4):
        y = sum(a * math.sin(f * x / SIZE[0] * 6.3 + p) / (1 + f * (1 - rough)) for f, p, a in waves)
        points.append((float(x), base - height * (y * 0.5 + 0.5)))
    return points


def balloon(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, tone: float) -> None:
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


def visitors(dice: random.Random, image: Image.Image) -> None:
    """In one image of three, a balloon or two: the same detail in another scene."""
    if dice.random() < 0.35:
        for _ in range(dice.randint(1, 2)):
            balloon(
                ImageDraw.Draw(image),
                dice.uniform(50, 430),
                dice.uniform(45, 110),
                dice.uniform(22, 36),
                dice.random(),
            )


def mountains(dice: random.Random) -> Image.Image:
    tone = dice.choice([0.58, 0.62, 0.06, 0.85])
    image = sky(dice, hue(tone, 0.55, 0.75), hue(tone - 0.45, 0.25, 0.98))
    draw = ImageDraw.Draw(image)
    for layer in range(4):
        base = SIZE[1] * (0.5 + 0.15 * layer)
        outline = ridge(dice, base, 95 - 15 * layer, 0.55)
        draw.polygon(
            [*outline, (SIZE[0], SIZE[1]), (0, SIZE[1])], fill=hue(tone, 0.25 + 0.12 * layer, 0.72 - 0.16 * layer)
        )
    visitors(dice, image)
    return image


def sea(dice: random.Random) -> Image.Image:
    warm = dice.uniform(0.02, 0.11)
    image = sky(dice, hue(0.6, dice.uniform(0.3, 0.6), 0.8), hue(warm, 0.5, 1))
    draw = ImageDraw.Draw(image, "RGBA")
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
    return image


def city(dice: random.Random) -> Image.Image:
    night, late = dice.uniform(0.55, 0.8), dice.random()
    glow = hue(night + dice.uniform(0.1, 0.45), 0.3 + 0.3 * late, 0.85 - 0.4 * late)
    image = sky(dice, hue(night, 0.7, 0.55 - 0.4 * late), glow)
    draw = ImageDraw.Draw(image)
    wide, lit = dice.uniform(0.7, 1.7), 0.1 + 0.4 * late
    for layer, shade in ((0, 0.45 - 0.2 * late), (1, 0.26 - 0.12 * late)):
        x = -10.0
        while x < SIZE[0]:
            width, height = dice.uniform(28, 64) * wide, dice.uniform(60, 240 - 60 * layer)
            draw.rectangle((x, SIZE[1] - height, x + width, SIZE[1]), fill=hue(night, 0.5, shade))
            for wy in range(int(SIZE[1] - height) + 8, SIZE[1], 12):
                for wx in range(int(x) + 5, int(x + width) - 6, 9):
                    if dice.random() < lit:
                        draw.rectangle((wx, wy, wx + 4, wy + 5), fill=hue(0.12, dice.uniform(0.2, 0.6), 0.95))
            x += width + dice.uniform(-4, 8)
    return image


def flowers(dice: random.Random) -> Image.Image:
    image = Image.new("RGB", SIZE, hue(0.3, 0.6, 0.35))
    draw = ImageDraw.Draw(image)
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
    return image


def balloons(dice: random.Random) -> Image.Image:
    image = sky(dice, hue(0.57, 0.6, 0.85), hue(0.55, 0.2, 1))
    draw = ImageDraw.Draw(image)
    for size in sorted(dice.uniform(16, 46) for _ in range(dice.randint(4, 9))):
        balloon(draw, dice.uniform(30, 450), dice.uniform(40, 230), size, dice.random())
    return image


def fir(draw: ImageDraw.ImageDraw, x: float, foot: float, height: float, colour: Colour) -> None:
    for tier in range(5):
        top, half = foot - height * (1 - tier * 0.17), height * (0.07 + 0.045 * tier)
        draw.polygon([(x, top), (x - half, top + height * 0.3), (x + half, top + height * 0.3)], fill=colour)
    draw.rectangle((x - height * 0.02, foot - height * 0.05, x + height * 0.02, foot + 2), fill=colour)


def forest(dice: random.Random) -> Image.Image:
    tone = dice.choice([0.36, 0.4, 0.45, 0.3])
    image = sky(dice, hue(tone + 0.15, 0.15, 0.9), hue(tone, 0.12, 0.97))
    draw = ImageDraw.Draw(image)
    for layer in range(4):
        foot = SIZE[1] * (0.58 + 0.15 * layer)
        colour = hue(tone, 0.22 + 0.14 * layer, 0.72 - 0.17 * layer)
        draw.polygon([*ridge(dice, foot, 26, 0.4), SIZE, (0, SIZE[1])], fill=colour)
        for _ in range(26 - 5 * layer):
            fir(
                draw,
                dice.uniform(-10, 490),
                foot + dice.uniform(-12, 10),
                dice.uniform(38, 62) * (1 + 0.5 * layer),
                colour,
            )
    return image


def desert(dice: random.Random) -> Image.Image:
    tone = dice.uniform(0.05, 0.1)
    image = sky(dice, hue(0.58, 0.45, 0.85), hue(tone, 0.3, 1))
    draw = ImageDraw.Draw(image)
    x, y, radius = dice.uniform(60, 420), dice.uniform(50, 120), dice.uniform(16, 26)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 246, 214))
    for layer in range(4):
        base = SIZE[1] * (0.56 + 0.14 * layer)
        outline = ridge(dice, base, 62 - 6 * layer, 0.25)
        draw.polygon([*outline, SIZE, (0, SIZE[1])], fill=hue(tone, 0.42 + 0.1 * layer, 0.93 - 0.1 * layer))
        top = min(outline, key=lambda point: point[1])
        shade = [point for point in outline if point[0] >= top[0]]
        draw.polygon(
            [*shade, (SIZE[0], SIZE[1]), (top[0] + 120, SIZE[1])], fill=hue(tone, 0.5 + 0.1 * layer, 0.8 - 0.11 * layer)
        )
    visitors(dice, image)
    for _ in range(dice.randint(2, 6)):
        x, foot, tall = dice.uniform(20, 460), dice.uniform(215, 310), dice.uniform(24, 52)
        green, thick = hue(0.33, 0.5, 0.38), int(tall / 6)
        draw.line((x, foot, x, foot - tall), fill=green, width=thick)
        for side, at in ((-1, 0.45), (1, 0.6)):
            arm = x + side * tall * 0.28
            draw.line((x, foot - tall * at, arm, foot - tall * at), fill=green, width=thick - 1)
            draw.line((arm, foot - tall * at + 2, arm, foot - tall * (at + 0.3)), fill=green, width=thick - 1)
    return image


def aurora(dice: random.Random) -> Image.Image:
    image = Image.new("RGB", SIZE, hue(0.64, 0.75, 0.14))
    draw = ImageDraw.Draw(image)
    for _ in range(170):
        x, y = dice.uniform(0, SIZE[0]), dice.uniform(0, SIZE[1] * 0.8)
        draw.point((x, y), fill=(dice.randint(140, 255),) * 3)
    glow = Image.new("RGB", SIZE)
    light = ImageDraw.Draw(glow)
    tone = dice.choice([0.4, 0.45, 0.36, 0.82])
    for _ in range(3):
        for x, y in ridge(dice, dice.uniform(170, 260), 120, 0.45):
            length = dice.uniform(50, 120)
            for step in range(6):
                bright = 0.6 * (1 - step / 6)
                light.line(
                    (x, y - length * step / 6, x, y - length * (step + 1) / 6), hue(tone + step * 0.03, 0.8, bright), 5
                )
    image = ImageChops.screen(image, glow.filter(ImageFilter.GaussianBlur(5)))
    draw = ImageDraw.Draw(image)
    draw.polygon([*ridge(dice, 290, 40, 0.5), SIZE, (0, SIZE[1])], fill=hue(0.62, 0.5, 0.2))
    for _ in range(24):
        fir(draw, dice.uniform(0, 480), dice.uniform(280, 312), dice.uniform(26, 70), hue(0.6, 0.6, 0.07))
    return image


def sails(dice: random.Random) -> Image.Image:
    image = sky(dice, hue(0.57, 0.5, 0.9), hue(0.53, 0.12, 1))
    draw = ImageDraw.Draw(image, "RGBA")
    horizon = SIZE[1] * dice.uniform(0.42, 0.55)
    draw.rectangle((0, horizon, *SIZE), fill=hue(dice.uniform(0.5, 0.56), 0.6, 0.68))
    for _ in range(200):
        y = dice.uniform(horizon, SIZE[1])
        near, x = (y - horizon) / (SIZE[1] - horizon), dice.uniform(0, SIZE[0])
        draw.line((x, y, x + 6 + 26 * near, y), fill=(255, 255, 255, dice.randint(30, 90)), width=1 + int(2 * near))
    for near in sorted(dice.uniform(0.05, 0.75) for _ in range(dice.randint(3, 7))):
        x, y, size = dice.uniform(40, 440), horizon + near * (SIZE[1] - horizon), 26 + 90 * near
        tone = dice.random()
        draw.polygon(
            [
                (x - size * 0.5, y - size * 0.14),
                (x + size * 0.5, y - size * 0.14),
                (x + size * 0.34, y),
                (x - size * 0.36, y),
            ],
            fill=hue(tone, 0.6, 0.45),
        )
        draw.polygon(
            [(x, y - size * 1.3), (x, y - size * 0.2), (x + size * 0.46, y - size * 0.2)], fill=(250, 248, 240)
        )
        draw.polygon(
            [(x - 3, y - size * 1.1), (x - 3, y - size * 0.2), (x - size * 0.4, y - size * 0.2)],
            fill=hue(tone, 0.7, 0.9),
        )
        draw.line((x - 1, y - size * 1.35, x - 1, y - size * 0.1), fill=(80, 60, 50), width=2)
    return image


def fruit(dice: random.Random) -> Image.Image:
    wall = dice.choice([0.08, 0.55, 0.12, 0.95])
    image = gradient(hue(wall, 0.18, 0.75), hue(wall, 0.12, 0.9))
    draw = ImageDraw.Draw(image, "RGBA")
    table = SIZE[1] * dice.uniform(0.66, 0.74)
    draw.rectangle((0, table, *SIZE), fill=hue(0.07, 0.5, dice.uniform(0.4, 0.6)))
    for _ in range(40):
        y, x = dice.uniform(table, SIZE[1]), dice.uniform(0, SIZE[0])
        draw.line((x, y, x + dice.uniform(40, 160), y + dice.uniform(-2, 2)), fill=(60, 35, 20, 50))
    centre = dice.uniform(190, 290)
    for row, count in ((0, 3), (1, 4)):
        for place in range(count):
            size, tone = dice.uniform(25, 34), dice.choice([0.0, 0.08, 0.15, 0.27, 0.8])
            x = centre + (place - (count - 1) / 2) * 46 + dice.uniform(-5, 5)
            y = table - 78 + row * 26 - (size - 28)
            ball(draw, x, y, size, tone)
    draw.pieslice((centre - 118, table - 120, centre + 118, table + 14), 0, 180, fill=hue(wall + 0.5, 0.4, 0.5))
    draw.ellipse((centre - 118, table - 62, centre + 118, table - 44), fill=hue(wall + 0.5, 0.35, 0.62))
    for _ in range(dice.randint(1, 3)):
        ball(
            draw,
            dice.choice([dice.uniform(25, centre - 150), dice.uniform(centre + 150, 455)]),
            table + 12,
            26,
            dice.random(),
        )
    return image


def ball(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, tone: float) -> None:
    """A round fruit, lit from the upper left."""
    for step in range(12):
        inner, away = size * (1 - step / 12), size * 0.3 * step / 12
        draw.ellipse(
            (x - away - inner, y - away - inner, x - away + inner, y - away + inner),
            fill=hue(tone, 0.85 - 0.03 * step, 0.6 + 0.034 * step),
        )
    draw.line((x, y - size * 0.9, x + 3, y - size * 1.2), fill=(70, 50, 30), width=3)


KINDS = {f.__name__: f for f in (mountains, sea, city, flowers, balloons, forest, desert, aurora, sails, fruit)}


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
