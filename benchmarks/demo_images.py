"""Write the demo's images: those inside scikit-image's and scikit-learn's wheels, and edited copies of them.

    python benchmarks/demo_images.py OUT                  OUT/images/originals, OUT/images/edited, OUT/queries
    python benchmarks/demo_images.py OUT --own FOLDER     OUT/queries only, cut from three images of FOLDER

``queries/`` holds one image a profile (category.jpg, object.jpg, instance.jpg). None of them is in the folder that is
ingested. The same wheels always give the same images. Nothing is downloaded, and nothing here is redistributed.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Left out: charts and logos (nothing to search for), tiny test files, and motorcycle_right.png, which is a query.
SAMPLES = {
    "skimage": (
        "data/astronaut.png", "data/brick.png", "data/camera.png", "data/cell.png", "data/chelsea.png",
        "data/clock_motion.png", "data/coffee.png", "data/coins.png", "data/grass.png", "data/gravel.png",
        "data/horse.png", "data/hubble_deep_field.jpg", "data/ihc.png", "data/moon.png", "data/motorcycle_left.png",
        "data/page.png", "data/retina.jpg", "data/rocket.jpg", "data/text.png",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}  # fmt: skip
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def crop(image: Image.Image, area: float, x: float, y: float) -> Image.Image:
    """Cut out a share of the area, of the same shape; x and y from 0 (left, top) to 1 (right, bottom) say where."""
    width, height = (round(side * math.sqrt(area)) for side in image.size)
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def turn(image: Image.Image, degrees: float) -> Image.Image:
    """Rotate, then cut the largest upright part of the same shape, so that no empty corner gives the edit away."""
    angle = math.radians(abs(degrees))
    aspect = max(image.width / image.height, image.height / image.width)
    inner = 1 / (math.cos(angle) + aspect * math.sin(angle))
    return crop(image.rotate(degrees, Image.Resampling.BICUBIC), inner**2, 0.5, 0.5)


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop-left": lambda image: crop(image, 0.7, 0.0, 0.5),
    "crop-right": lambda image: crop(image, 0.7, 1.0, 0.5),
    "rotated": lambda image: turn(image, 10),
    "flipped": ImageOps.mirror,
    "jpeg20": lambda image: image,
    "grey": lambda image: image.convert("L"),
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.5),
    "small": lambda image: image.resize((image.width // 3, image.height // 3), Image.Resampling.LANCZOS),
}


def sample_files() -> Iterator[Path]:
    """The sample files inside the installed packages; stops with a sentence when they are not there."""
    for package, names in SAMPLES.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            sys.exit(f"{package} is not installed; install the extra: pip install 'mg-milvus[demo]'")
        for name in names:
            file = Path(spec.origin).parent / name
            if not file.is_file():
                sys.exit(f"{file} is not there; this demo knows scikit-image >= 0.25 and scikit-learn >= 1.5")
            yield file


def read(file: Path) -> Image.Image:
    """A file as an upright RGB image, transparency laid on white."""
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return upright.convert("RGB")


def write(image: Image.Image, file: Path, quality: int = 90) -> None:
    """Save as JPEG."""
    image.save(file, quality=quality)


def write_samples(out: Path) -> None:
    """The originals as they come, eight edited copies of each, and three queries that are in neither folder."""
    originals, edited, queries = out / "images" / "originals", out / "images" / "edited", out / "queries"
    for folder in (originals, edited, queries):
        folder.mkdir(parents=True, exist_ok=True)
    files = {file.stem: file for file in sample_files()}
    for name, file in files.items():
        shutil.copy2(file, originals / file.name)
        image = read(file)
        for edit, change in EDITS.items():
            write(change(image), edited / f"{name}-{edit}.jpg", quality=20 if edit == "jpeg20" else 90)

    write(crop(read(files["gravel"]), 0.3, 0.9, 0.1), queries / "category.jpg")
    write(read(files["motorcycle_left"].with_name("motorcycle_right.png")), queries / "object.jpg")
    dark = ImageEnhance.Brightness(turn(read(files["chelsea"]), -6)).enhance(0.7)
    write(crop(dark, 0.6, 0.6, 0.2), queries / "instance.jpg", quality=40)
    print(f"{len(files)} images and {len(files) * len(EDITS)} edited copies in {out / 'images'}")
    print("queries: category.jpg, a corner of the gravel; object.jpg, the motorcycle from another place;")
    print("         instance.jpg, a darker, turned, recompressed cut of the cat")


def write_own_queries(out: Path, folder: Path) -> None:
    """Cut three queries out of images from the beginning, the middle and the end of a user's folder."""
    queries = out / "queries"
    queries.mkdir(parents=True, exist_ok=True)
    names = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    files = sorted(file for file in names if file.suffix.lower() in SUFFIXES)
    profiles = ("category", "object", "instance")
    for number, profile in enumerate(profiles):
        source, image = first_readable(files[len(files) * number // len(profiles) :], folder)
        write(crop(image, 0.6, 0.5, 0.5), queries / f"{profile}.jpg", quality=60)
        print(f"query {profile}.jpg is cut out of {source}")


def first_readable(files: list[Path], folder: Path) -> tuple[Path, Image.Image]:
    """The first file that Pillow can read, and its image."""
    for file in files:
        try:
            return file, read(file)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    sys.exit(f"no readable image in {folder}; expected a folder with .jpg, .png or .webp files")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--own", type=Path, metavar="FOLDER", help="cut the queries out of images of this folder")
    arguments = parser.parse_args()
    if arguments.own is None:
        write_samples(arguments.out)
    else:
        write_own_queries(arguments.out, arguments.own)


if __name__ == "__main__":
    main()
