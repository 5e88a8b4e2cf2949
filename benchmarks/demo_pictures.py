"""Write the demo's pictures: those inside scikit-image's and scikit-learn's wheels, and edited copies of them.

    python benchmarks/demo_pictures.py OUT                  OUT/pictures/originals, OUT/pictures/edited, OUT/queries
    python benchmarks/demo_pictures.py OUT --own FOLDER     OUT/queries only, cut from three pictures of FOLDER

``queries/`` holds one picture a profile (category.jpg, object.jpg, instance.jpg). None of them is in the folder that is
ingested. The same wheels always give the same pictures. Nothing is downloaded, and nothing here is redistributed.
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


def crop(picture: Image.Image, area: float, x: float, y: float) -> Image.Image:
    """Cut out a share of the area, of the same shape; x and y from 0 (left, top) to 1 (right, bottom) say where."""
    width, height = (round(side * math.sqrt(area)) for side in picture.size)
    left, top = round((picture.width - width) * x), round((picture.height - height) * y)
    return picture.crop((left, top, left + width, top + height))


def turn(picture: Image.Image, degrees: float) -> Image.Image:
    """Rotate, then cut the largest upright part of the same shape, so that no empty corner gives the edit away."""
    angle = math.radians(abs(degrees))
    aspect = max(picture.width / picture.height, picture.height / picture.width)
    inner = 1 / (math.cos(angle) + aspect * math.sin(angle))
    return crop(picture.rotate(degrees, Image.Resampling.BICUBIC), inner**2, 0.5, 0.5)


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop-left": lambda picture: crop(picture, 0.7, 0.0, 0.5),
    "crop-right": lambda picture: crop(picture, 0.7, 1.0, 0.5),
    "rotated": lambda picture: turn(picture, 10),
    "flipped": ImageOps.mirror,
    "jpeg20": lambda picture: picture,
    "grey": lambda picture: picture.convert("L"),
    "bright": lambda picture: ImageEnhance.Brightness(picture).enhance(1.5),
    "small": lambda picture: picture.resize((picture.width // 3, picture.height // 3), Image.Resampling.LANCZOS),
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
    """A file as an upright RGB picture, transparency laid on white."""
    with Image.open(file) as picture:
        upright = ImageOps.exif_transpose(picture)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return upright.convert("RGB")


def write(picture: Image.Image, file: Path, quality: int = 90) -> None:
    """Save as JPEG."""
    picture.save(file, quality=quality)


def write_samples(out: Path) -> None:
    """The originals as they come, eight edited copies of each, and three queries that are in neither folder."""
    originals, edited, queries = out / "pictures" / "originals", out / "pictures" / "edited", out / "queries"
    for folder in (originals, edited, queries):
        folder.mkdir(parents=True, exist_ok=True)
    files = {file.stem: file for file in sample_files()}
    for name, file in files.items():
        shutil.copy2(file, originals / file.name)
        picture = read(file)
        for edit, change in EDITS.items():
            write(change(picture), edited / f"{name}-{edit}.jpg", quality=20 if edit == "jpeg20" else 90)

    write(crop(read(files["gravel"]), 0.3, 0.9, 0.1), queries / "category.jpg")
    write(read(files["motorcycle_left"].with_name("motorcycle_right.png")), queries / "object.jpg")
    dark = ImageEnhance.Brightness(turn(read(files["chelsea"]), -6)).enhance(0.7)
    write(crop(dark, 0.6, 0.6, 0.2), queries / "instance.jpg", quality=40)
    print(f"{len(files)} pictures and {len(files) * len(EDITS)} edited copies in {out / 'pictures'}")
    print("queries: category.jpg, a corner of the gravel; object.jpg, the motorcycle from another place;")
    print("         instance.jpg, a darker, turned, recompressed cut of the cat")


def write_own_queries(out: Path, folder: Path) -> None:
    """Cut three queries out of pictures from the beginning, the middle and the end of a user's folder."""
    queries = out / "queries"
    queries.mkdir(parents=True, exist_ok=True)
    names = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    files = sorted(file for file in names if file.suffix.lower() in SUFFIXES)
    profiles = ("category", "object", "instance")
    for number, profile in enumerate(profiles):
        source, picture = first_readable(files[len(files) * number // len(profiles) :], folder)
        write(crop(picture, 0.6, 0.5, 0.5), queries / f"{profile}.jpg", quality=60)
        print(f"query {profile}.jpg is cut out of {source}")


def first_readable(files: list[Path], folder: Path) -> tuple[Path, Image.Image]:
    """The first file that Pillow can read, and its picture."""
    for file in files:
        try:
            return file, read(file)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    sys.exit(f"no readable picture in {folder}; expected a folder with .jpg, .png or .webp files")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--own", type=Path, metavar="FOLDER", help="cut the queries out of pictures of this folder")
    arguments = parser.parse_args()
    if arguments.own is None:
        write_samples(arguments.out)
    else:
        write_own_queries(arguments.out, arguments.own)


if __name__ == "__main__":
    main()
