"""Copies edited in ways that nothing was fitted to: framed, covered, photographed from a screen, printed, ...

    python benchmarks/strange_edits.py PHOTOGRAPHS [--queries 100] [--encoder builtin] [--json FILE]

All images of the folder are the database, with heads fitted as an ingest fits them; some of them, edited in each of
thirteen ways, are the queries. Recall@1 of the original as the profile ``instance`` ranks it (``fine``, with views;
ties count as missed), and by the cosine of the features under the codes. The edits are drawn by a fixed seed. Nothing
may be fitted to them. That views help was seen on two of them, in_a_page and collage, so these two prove little.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from result_file import write_result

from mg_milvus.codes import weighted_hamming
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import discover
from mg_milvus.schema.models import Schema
from mg_milvus.search.query_image import QueryImage, encode_query_images, prepared_views

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Edit = Callable[[Image.Image, np.random.Generator], Image.Image]

BATCH = 32


def colour(random: np.random.Generator) -> tuple[int, int, int]:
    r, g, b = (int(value) for value in random.integers(0, 256, 3))
    return r, g, b


def texture(size: tuple[int, int], random: np.random.Generator, cells: int = 12) -> Image.Image:
    """Smooth noise in three colours."""
    grid = random.integers(0, 256, (cells, cells, 3), np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def framed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A wide frame of streaked wood around a mat."""
    border = round(0.14 * min(image.size))
    size = (image.width + 2 * border, image.height + 2 * border)
    streaks = random.integers(60, 150, (size[1], 4, 1), np.uint8) * np.array([[[1, 0.7, 0.45]]])
    wood = Image.fromarray(streaks.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    wood.paste(ImageOps.expand(image.resize((image.width - border, image.height - border)), border // 2, "white"),
               (border, border))  # fmt: skip
    return wood


def covered(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A thumb from one corner and a note with a shadow: a quarter of the picture is hidden."""
    made, (w, h) = image.copy(), image.size
    draw = ImageDraw.Draw(made)
    x, y = random.integers(0, 2, 2) * (w, h)
    draw.ellipse((x - 0.3 * w, y - 0.38 * h, x + 0.3 * w, y + 0.38 * h), fill=(214, 160, 130))
    x, y = random.uniform(0.1, 0.5) * w, random.uniform(0.1, 0.5) * h
    draw.rectangle((x + 5, y + 5, x + 0.36 * w + 5, y + 0.4 * h + 5), fill=(40, 40, 40))
    draw.rectangle((x, y, x + 0.36 * w, y + 0.4 * h), fill=(250, 235, 120))
    return made


def photographed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A screen photographed at an angle: perspective, desk around it, stripes, glare, noise."""
    w, h = image.size
    pixels = np.asarray(image, np.float32)
    stripes = 12 * np.sin(np.arange(h)[:, None] * 2.1 + np.arange(w) * random.uniform(0.2, 0.6))
    glare = 90 * np.exp(-(((np.arange(w) / w - random.uniform(0, 1)) ** 2) / 0.05)) * np.ones((h, 1))
    shown = Image.fromarray(np.clip(pixels * 0.85 + (stripes + glare)[..., None], 0, 255).astype(np.uint8))
    from_corners = [(0, 0), (w, 0), (w, h), (0, h)]
    to_corners = [(x + random.uniform(0.02, 0.13) * w * (1 if x == 0 else -1),
                   y + random.uniform(0.02, 0.13) * h * (1 if y == 0 else -1)) for x, y in from_corners]  # fmt: skip
    rows = []
    for (x, y), (u, v) in zip(to_corners, from_corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    solved = np.linalg.solve(np.array(rows, float), np.array(from_corners, float).ravel())
    warped = shown.transform((w, h), Image.Transform.PERSPECTIVE, solved.tolist(), Image.Resampling.BICUBIC)
    inside = Image.new("L", (w, h), 255).transform((w, h), Image.Transform.PERSPECTIVE, solved.tolist())
    desk = Image.composite(warped, texture((w, h), random, 3).point([v // 3 + 40 for v in range(256)] * 3), inside)
    noisy = np.asarray(desk, np.float32) + random.normal(0, 9, (h, w, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def vintage(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Yellowed, faded, dark corners, grain."""
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    toned = 0.55 * grey * np.array([1.1, 0.95, 0.7]) + 0.35 * np.asarray(image, np.float32) + 25
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    toned *= (1 - 0.35 * (x**2 + y**2))[..., None]
    return Image.fromarray(np.clip(toned + random.normal(0, 12, toned.shape), 0, 255).astype(np.uint8))


def posterised(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """A comic: four levels a channel, dark outlines."""
    flat = ImageOps.posterize(image.filter(ImageFilter.ModeFilter(5)), 2)
    lines = image.convert("L").filter(ImageFilter.FIND_EDGES).point([0 if v < 60 else 255 for v in range(256)])
    return Image.composite(Image.new("RGB", image.size, "black"), flat, lines)


def screenshot(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """The picture in an application on a phone: bars with words and buttons above and below."""
    w, h = image.size
    page = Image.new("RGB", (w, round(max(1.5 * h, 1.2 * w))), random.choice(["white", "#15202b", "#fafafa"]))
    draw = ImageDraw.Draw(page)
    top = (page.height - h) // 2
    page.paste(image, (0, top))
    draw.ellipse((8, top // 2 - 12, 32, top // 2 + 12), fill=colour(random))
    draw.text((44, top // 2 - 8), "someone · 3 hours ago", fill="grey")
    for place in range(4):
        x = (place + 0.5) * w / 4
        draw.rounded_rectangle((x - 16, top + h + 14, x + 16, top + h + 36), 6, outline=colour(random), width=3)
    return page


def collage(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """The picture and three painted ones on one page, it taking four ninths."""
    w, h = image.size
    page = Image.new("RGB", (w, h), "white")
    a, b = round(w * 2 / 3), round(h * 2 / 3)
    page.paste(image.resize((a - 4, b - 4), Image.Resampling.BICUBIC), (0, 0))
    for box in ((a, 0, w, b), (0, b, a, h), (a, b, w, h)):
        page.paste(texture((box[2] - box[0], box[3] - box[1]), random, 4), box[:2])
    return page


def stickers(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Nine faces and stars, each a fifth of the side."""
    made = image.copy()
    draw = ImageDraw.Draw(made)
    side = min(image.size) / 5
    for number in range(9):
        x, y = random.uniform(0, image.width - side), random.uniform(0, image.height - side)
        if number % 2:
            draw.regular_polygon((x + side / 2, y + side / 2, side / 2), 3, rotation=40 * number, fill=colour(random))
            continue
        draw.ellipse((x, y, x + side, y + side), fill=(255, 210, 50), outline="black")
        draw.arc((x + side / 4, y + side / 4, x + 3 * side / 4, y + 3 * side / 4), 20, 160, fill="black", width=3)
    return made


def stretched(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """One side longer by 1.6."""
    w, h = image.size
    return image.resize((round(1.6 * w), h) if random.random() < 0.5 else (w, round(1.6 * h)))


def printed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A black-and-white newspaper: dots of a coarse screen on grey paper."""
    w, h = image.size
    y, x = np.mgrid[:h, :w]
    screen = 127 + 110 * np.sin((x + y) * 1.1) * np.sin((x - y) * 1.1)
    dots = np.asarray(image.convert("L"), np.float32) > screen
    paper = np.where(dots, 215, 45) + random.normal(0, 8, (h, w))
    return Image.fromarray(np.clip(paper, 0, 255).astype(np.uint8)).convert("RGB").filter(ImageFilter.GaussianBlur(0.8))


def in_a_page(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A small illustration, a quarter of the area, among lines of text."""
    w, h = image.size
    page = Image.new("RGB", (w, h), "white")
    draw = ImageDraw.Draw(page)
    for y in range(6, h - 10, 14):
        draw.text((6, y), "lorem ipsum dolor sit amet consectetur adipiscing elit " * (w // 200 + 1), fill=(30, 30, 30))
    x, y = int(random.integers(0, w // 2)), int(random.integers(0, h // 2))
    page.paste(ImageOps.expand(image.resize((w // 2, h // 2), Image.Resampling.BICUBIC), 5, "white"), (x, y))
    return page


def shadowed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Folded and lying half in the shade."""
    w, h = image.size
    y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    shade = np.where(y - random.uniform(0.5, 1.5) * x + random.uniform(-0.1, 0.5) > 0.2, 0.35, 1.0)[..., None]
    made = Image.fromarray((np.asarray(image) * shade).astype(np.uint8))
    draw = ImageDraw.Draw(made)
    for share in (0.33, 0.66):
        draw.line((share * w, 0, share * w + 4, h), fill=(235, 235, 230), width=4)
        draw.line((0, share * h, w, share * h + 3), fill=(235, 235, 230), width=3)
    return made


def pixelated(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Blocks: forty along the longer side, saved as a JPEG."""
    scale = 40 / max(image.size)
    small = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.resize(image.size, Image.Resampling.NEAREST).save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


EDITS: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        framed, covered, photographed, vintage, posterised, screenshot, collage, stickers, stretched, printed,
        in_a_page, shadowed, pixelated,
    )
}  # fmt: skip


def features_of(encoder: Any, images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
    parts = [
        encoder.features([encoder.prepare(image) for image in images[start : start + BATCH]])
        for start in range(0, len(images), BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = [found.path for found in sorted(discover([options.folder], print), key=lambda own: own.path)]
    base: Any = load_encoder(options.encoder)
    database = features_of(base, [Image.open(file).convert("RGB") for file in files])
    bits = Schema().bits
    encoder = base.adapted(database, bits)
    codes, mean = encoder.codes(database)["fine"], database["fine"].mean(axis=0)

    def seen(images: Sequence[Image.Image]) -> list[QueryImage]:
        return [
            QueryImage(encoder.prepare(own), own.width, own.height, views=prepared_views(encoder, own))
            for own in images
        ]

    def distances_of(images: Sequence[Image.Image]) -> np.ndarray:
        asked = [encode_query_images(encoder, seen([own]))["fine"][0] for own in images]
        return np.stack([weighted_hamming(values, codes).min(axis=0) for values in asked])

    asked = np.sort(np.random.default_rng(5).permutation(len(files))[: options.queries])
    result = {}
    print(f"{'recall@1':14}{'codes':>8}{'floats':>8}")
    for place, (name, edit) in enumerate(EDITS.items()):
        random = np.random.default_rng(1000 + place)
        edited = [edit(Image.open(files[row]).convert("RGB"), random) for row in asked]
        queries = features_of(encoder, edited)
        own = np.arange(len(asked)), asked
        distances = distances_of(edited)
        cosines = unit(queries["fine"] - mean) @ unit(database["fine"] - mean).T
        result[name] = {
            "codes": float(((distances <= distances[own][:, None]).sum(axis=1) == 1).mean()),
            "floats": float(((cosines >= cosines[own][:, None]).sum(axis=1) == 1).mean()),
        }
        print(f"{name:14}{result[name]['codes']:8.3f}{result[name]['floats']:8.3f}", flush=True)
    for way in ("codes", "floats"):
        values = [own[way] for own in result.values()]
        print(f"{way}: mean {np.mean(values):.3f}, worst {min(values):.3f}")
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
